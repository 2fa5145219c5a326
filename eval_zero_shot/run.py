"""Zero-shot evaluation of one model on one shard set.

    python -m eval_zero_shot.run --model RELEASE_DIR --data SHARDS --task NAME [--split test] [--out DIR]

Images and texts are embedded once; classification, synonyms, retrieval and intervals are arithmetic on those vectors.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_shards.opening import add_tar_options, open_studies
from eval_zero_shot.errors import EvalError
from eval_zero_shot.inputs import choose_rows
from eval_zero_shot.labels import task_labels
from eval_zero_shot.tasks import Task, load_task

SYNONYMS = "synonyms"  # a prompt set of this name is scored beside the default one

if TYPE_CHECKING:
    from eval_zero_shot.classify import Classification
    from eval_zero_shot.embedding import Precision, StudyFeatures
    from eval_zero_shot.feature_cache import FeatureCache
    from eval_zero_shot.results import Results
    from eval_zero_shot.retrieve import Recall
    from eval_zero_shot.statistics import Interval


def evaluate(
    model: Any,
    tokenizer: Any,
    shards: Any,
    rows: Sequence[int] | NDArray,
    geometry: Any,
    view: Any,
    task: Task,
    *,
    stored_geometry: Any = None,
    allow_geometry_mismatch: bool = False,
    batch_size: int = 8,
    precision: Precision = "fp32",
    pools: Sequence[int] = (64,),
    ks: Sequence[int] = (1, 5, 10),
    repeats: int = 100,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    out: str | Path | None = None,
    progress: bool = False,
    cache: FeatureCache | None = None,
    release_sha256: str | None = None,
    provenance: dict[str, Any] | None = None,
) -> Results:
    """Score a model on `rows` of a ShardSet. Nothing of the model, its mode or any random state is changed.

    Args:
        model, tokenizer: see `eval_zero_shot.embedding`.
        geometry, view: how studies are read; `stored_geometry` is the one the model was trained with, where known.
        pools, ks, repeats: retrieval (`eval_zero_shot.retrieve`); no pools, no retrieval.
        resamples: patient bootstrap; 0 leaves intervals out, for scoring while training.
        out: folder for `results.json` and `scores.csv`.
        cache, release_sha256: with both, features of studies are taken from there where they are known, and kept.
        provenance: more entries for the results (weights hash, split).

    Raises:
        EvalError: geometries differ, the task names no label of the data, no study, features that are not finite.
    """
    from eval_zero_shot.classify import class_embeddings, classify
    from eval_zero_shot.embedding import embed_images, embed_texts, study_texts
    from eval_zero_shot.results import Cases, FindingResult, Results
    from eval_zero_shot.retrieve import retrieve, text_hash
    from eval_zero_shot.statistics import Run, auroc_intervals

    require_same_geometry(stored_geometry, geometry, allow_geometry_mismatch)
    rows = np.asarray(rows)
    labels_NL = task_labels(shards, rows, task)

    def embedded() -> StudyFeatures:
        return embed_images(
            model, shards, rows, geometry, view, batch_size=batch_size, precision=precision, progress=progress
        )

    if cache is not None and release_sha256 is not None:
        from eval_zero_shot.feature_cache import identity_of

        identity = identity_of(release_sha256, geometry, view, shards, rows, precision)
        studies = cache.get_or_make(identity, embedded)
    else:
        studies = embedded()
    reports = [study_texts(shards.json(int(row))["texts"]) for row in rows] if pools else []
    vectors = embed_texts(model, tokenizer, (*task.texts(), *(r for r in reports if r)), precision=precision)

    scored = classify(studies.features_ND, class_embeddings(task, vectors), labels_NL)
    synonyms: Classification | None = None
    if SYNONYMS in task.prompt_sets:
        synonyms = classify(studies.features_ND, class_embeddings(task, vectors, SYNONYMS), labels_NL)

    def intervals(scores_NL: NDArray, labels: NDArray) -> tuple[Sequence[Interval | None], Interval | None]:
        if resamples == 0:
            return [None] * labels.shape[1], None
        run = Run.of(scores_NL, labels, studies.patients)
        return auroc_intervals(run, resamples=resamples, seed=seed, level=level)

    each, macro_interval = intervals(scored.scores_NL, labels_NL)
    synonym_interval = intervals(synonyms.scores_NL, labels_NL)[1] if synonyms else None
    per_finding = {}
    for j, (name, score) in enumerate(scored.findings.items()):
        per_finding[name] = FindingResult(
            score.auroc, score.auprc, each[j] if score.reason is None else None,
            score.n_pos, score.n_neg, score.n_unknown,
            pos_patients=len(np.unique(studies.patients[labels_NL[:, j] == 1])),
            neg_patients=len(np.unique(studies.patients[labels_NL[:, j] == 0])),
            synonym_auroc=synonyms.findings[name].auroc if synonyms else None,
            reason=score.reason,
            f1=score.f1,
            balanced_accuracy=score.balanced_accuracy,
        )  # fmt: skip

    told = [i for i, report in enumerate(reports) if report]
    retrieval: tuple[Recall, ...] = ()
    if told:
        texts_ND = np.stack([vectors[reports[i]] for i in told])
        hashes = [text_hash(reports[i]) for i in told]
        retrieval = retrieve(
            studies.features_ND[told], texts_ND, hashes, pools=pools, ks=ks, repeats=repeats, seed=seed
        )

    unscored_NL = np.full(labels_NL.shape, np.nan)
    synonym_positive_NL = synonym_negative_NL = unscored_NL
    if synonyms:
        synonym_positive_NL, synonym_negative_NL = synonyms.positive_NL, synonyms.negative_NL
    results = Results(
        task=task.name,
        macro=scored.macro_auroc,
        macro_auprc=scored.macro_auprc,
        macro_interval=macro_interval,
        per_finding=per_finding,
        excluded=scored.excluded,
        synonym_macro=synonyms.macro_auroc if synonyms else None,
        synonym_interval=synonym_interval,
        retrieval=retrieval,
        studies=len(rows),
        patients=len(np.unique(studies.patients)),
        provenance={
            "task_sha256": task.identity,
            "prompts": {s: task.written_out(s) for s in task.prompt_sets},
            "geometry_sha256": getattr(geometry, "identity", None),
            "stored_geometry_sha256": getattr(stored_geometry, "identity", None),
            "view_sha256": getattr(view, "identity", None),
            "data_sha256": getattr(shards, "manifest_hash", None),
            "rows_sha256": hashlib.sha256("\n".join(studies.keys).encode()).hexdigest(),
            "without_report": len(reports) - len(told),
            "precision": precision,
            "seed": seed,
            **(provenance or {}),
        },
        cases=Cases(
            task.names, studies.keys, tuple(map(str, studies.patients)), labels_NL,
            scored.positive_NL, scored.negative_NL, synonym_positive_NL, synonym_negative_NL,
        ),
    )  # fmt: skip
    if out is not None:
        results.write(out)
    return results


def require_same_geometry(stored: Any, asked: Any, allow_mismatch: bool = False) -> None:
    """Raise EvalError when a model would see volumes prepared otherwise than it was trained with."""
    if stored is None or stored.identity == asked.identity or allow_mismatch:
        return
    raise EvalError(
        "the model was trained with another geometry; trained against asked: " + "; ".join(stored.differences(asked)),
        why="mismatched preprocessing is known to turn an AUROC of 0.80 into chance",
        fix="leave --geometry out to use the model's own, or say --allow-geometry-mismatch if this is the question",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval_zero_shot.run", description="Zero-shot classification and retrieval of a released model."
    )
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="release folder (python -m encoders.release)")
    add("--data", required=True, metavar="DIR", help="shard set (python -m data_shards.build)")
    add("--task", required=True, nargs="+", metavar="NAME", help="packaged tasks or YAML files of prompts")
    add("--split", default="test", help="split of the shard set to score (default: test)")
    add("--out", metavar="DIR", help="folder for results.json and scores; of several tasks, one folder each inside")
    add("--max-studies", type=int, metavar="N", help="score a fixed choice of N studies")
    add("--batch-size", type=int, default=8, metavar="N", help="studies encoded together (default: 8)")
    add("--precision", choices=("fp32", "bf16", "auto"), default="fp32", help="arithmetic (default: fp32)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--pool", type=int, nargs="*", default=[64], metavar="N", help="retrieval pool sizes; none: no retrieval")
    add("--resamples", type=int, default=1000, metavar="N", help="patient bootstrap (default: 1000; 0: no intervals)")
    add("--seed", type=int, default=0, help="of resamples and pools (default: 0)")
    add("--geometry", metavar="FILE", help="JSON of the geometry to read studies with (default: the model's own)")
    add("--cache", default="~/.cache/voxclip/features", metavar="DIR", help="of features (default: %(default)s)")
    add("--no-cache", action="store_true", help="encode every study again and keep nothing")
    add("--allow-geometry-mismatch", action="store_true", help="score although --geometry is not the model's")
    add_tar_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 1 with the reason on stderr."""
    args = _parser().parse_args(argv)
    from data_shards.errors import DataError
    from encoders.errors import ReleaseError

    try:
        _evaluate_release(args, [load_task(name) for name in args.task])
    except (EvalError, DataError, ReleaseError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _evaluate_release(args: argparse.Namespace, tasks: Sequence[Task]) -> None:
    from data_shards.geometry import geometry_from_dict

    names = [task.name for task in tasks]
    if len(set(names)) < len(names) or any(name != Path(name).name for name in names):
        raise EvalError(
            "two tasks have one name, or a name is no name of a folder",
            why="one's results would be written over the other's",
            fix="change `name:` in the task file",
        )
    shards = open_studies(args.data, args)
    rows = choose_rows(shards.rows(args.split), args.max_studies, args.seed)
    from eval_zero_shot.feature_cache import FeatureCache
    from eval_zero_shot.release import load_dual
    from eval_zero_shot.results import print_table

    loaded = load_dual(args.model, args.device)
    geometry = geometry_from_dict(_json(args.geometry)) if args.geometry else loaded.geometry
    for task in tasks:  # features of the studies are the same for all: the cache has them after the first
        out = Path(args.out) / task.name if args.out and len(tasks) > 1 else args.out
        results = evaluate(
            loaded.model, loaded.tokenizer, shards, rows, geometry, loaded.view, task,
            stored_geometry=loaded.geometry, allow_geometry_mismatch=args.allow_geometry_mismatch,
            batch_size=args.batch_size, precision=args.precision, pools=args.pool, resamples=args.resamples,
            seed=args.seed, out=out, progress=sys.stderr.isatty(), release_sha256=loaded.sha256,
            cache=None if args.no_cache else FeatureCache(args.cache),
            provenance={"split": args.split, "release_sha256": loaded.sha256},
        )  # fmt: skip
        print_table(results)
        if out:
            print(f"wrote {Path(out) / 'results.json'}, scores.csv and scores.parquet")


def _json(path: str) -> dict[str, Any]:
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvalError(f"geometry file is not readable JSON ({error})", fix="give one written by to_json()") from None
    if not isinstance(data, dict):
        raise EvalError("geometry file is not a JSON object", fix="give one written by to_json()")
    return data


if __name__ == "__main__":
    sys.exit(main())
