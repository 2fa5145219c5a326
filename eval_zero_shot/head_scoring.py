"""A released head of labels against the labels of shards: AUROC and average precision of each, and their means.

Legend: N cases, C trunk width, K outputs of the head, L labels that the shards have.
The head is linear on the trunk's features, so the logits of a study of several crops or scans are those of their mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.errors import EvalError
from eval_zero_shot.measured import Mean, Measure, measure
from eval_zero_shot.metrics import average_precision
from eval_zero_shot.outcome import Metric, Outcome
from eval_zero_shot.statistics import Run, finding_interval, weighted_auroc

if TYPE_CHECKING:
    import pandas as pd

    from eval_zero_shot.inputs import Inputs

MIN_POSITIVES = 20
Array = NDArray[np.float64]
SHOWN = 5  # names that a message writes out
METRICS: dict[str, Callable[[Array, Array, Array], Array]] = {"auroc": weighted_auroc, "auprc": average_precision}


def head_of(loaded: Any, name: str, names: Sequence[str] | None = None) -> tuple[Any, tuple[str, ...]]:
    """A released head and the label of each of its outputs. names: of a head that does not say them (Merlin's).

    Raises EvalError: no such head, or names that it has already, lacks, or has another number of.
    """
    from encoders.heads.labels import LabelHead
    from encoders.heads.linear import LinearHead

    known = {key: head for key, head in loaded.heads.items() if isinstance(head, LabelHead | LinearHead)}
    if name not in known:
        raise EvalError(
            f"the model was released without a head of labels '{name}'",
            why="there is nothing to score",
            fix=f"--head {' or '.join(known)}" if known else "train it with objective labels (docs/objectives.md)",
        )
    head = known[name]
    if isinstance(head, LabelHead):
        if names is not None:
            raise EvalError(f"--names, and head '{name}' has them", why="they would be ignored", fix="leave it out")
        return head, head.labels
    outputs = int(head.options["outputs"])
    if names is None or len(names) != outputs:
        raise EvalError(
            f"head '{name}' has {outputs} outputs without names, and --names says {len(names or ())} (each once)",
            why="its scores would be compared with the labels of others",
            fix="give a file with a label of the shards on each line, in the order of the outputs",
        )
    return head, tuple(names)


def score_head(
    inputs: Inputs, rows: NDArray, head: str = "labels", names: Sequence[str] | None = None, *, split: str = "test",
    min_positives: int = MIN_POSITIVES, resamples: int = 1000, seed: int = 0, level: float = 0.95,
) -> Outcome:  # fmt: skip
    """Of every label of the head that the shards have `auroc`, `auprc` and `positives`; their means (of == "") are over
    the labels with at least `min_positives` cases of each class, of which alone there are numbers and scores.

    An unknown label of a case is left out of that label's numbers.

    Raises:
        EvalError: `head_of`; no label that the shards have, or none with enough cases; features that are not there.
    """
    module, labels = head_of(inputs.loaded, head, names)
    have = [name for name in labels if name in inputs.shards.label_names]
    if not have:
        raise EvalError(
            f"none of the {len(labels)} labels of head '{head}' ({_some(labels)}) is a label of these shards",
            why="every score would be compared with nothing",
            fix=f"give shards with labels of these names; they have: {_some(inputs.shards.label_names) or 'none'}",
        )
    labels_NL = np.asarray(inputs.shards.labels(tuple(have))[rows], dtype=np.float64)
    counts_2L = np.stack([(labels_NL == 1).sum(0), (labels_NL == 0).sum(0)])
    enough_L = counts_2L.min(0) >= min_positives
    if not enough_L.any():
        raise EvalError(
            f"no label of head '{head}' is known to be present in {min_positives} {inputs.cases} of split '{split}' "
            "and absent in as many",
            why="an AUROC of fewer says little",
            fix=f"--min-positives {counts_2L.min(0).max()} at most, or score a larger split",
        )
    scored = [name for name, enough in zip(have, enough_L, strict=True) if enough]
    found = replace(inputs, vectors="trunk").features(rows)
    column_L = [labels.index(name) for name in scored]
    scores_NL, labels_NL = _logits(module, found.features_ND)[:, column_L], labels_NL[:, enough_L]
    metrics = _metrics(scores_NL, labels_NL, found.patients, scored, resamples, seed, level)
    for name, (present, absent), enough in zip(have, counts_2L.T.tolist(), enough_L, strict=True):
        metrics.append(Metric("positives", float(present), of=name, n=present + absent, level=level))
        few = f"present in {present} and absent in {absent}, and {min_positives} of each are asked for"
        if not enough:
            metrics += [Metric(m, None, of=name, n=present + absent, level=level, reason=few) for m in METRICS]
    return Outcome(
        "head", head, inputs.name, inputs.loaded.sha256, "auroc", tuple(metrics), **inputs.counted(rows),
        classes=tuple(scored),
        provenance=inputs.provenance(
            rows, split, seed=seed, task_sha256=hashlib.sha256(repr((head, scored)).encode()).hexdigest(),
            min_positives=min_positives, resamples=resamples,
        ),
        notes=(*inputs.said(rows), *_notes(head, labels, have, scored, labels_NL, min_positives, inputs.cases)),
        scores=_table(found.keys, found.patients, scored, scores_NL, labels_NL),
    )  # fmt: skip


def _logits(head: Any, features_NC: NDArray[np.float32]) -> Array:
    import torch

    weight = next(head.parameters())
    with torch.no_grad():
        logits_NK = head(torch.from_numpy(features_NC).to(weight)).double().cpu().numpy()
    if not np.isfinite(logits_NK).all():
        raise EvalError(
            "logits of the head are not finite",
            why="any AUROC of them would be noise",
            fix="look at the training run: a non-finite weight",
        )
    return logits_NK


def _metrics(
    scores_NL: Array, labels_NL: Array, patients_N: NDArray, names: Sequence[str], resamples: int, seed: int,
    level: float,
) -> list[Metric]:  # fmt: skip
    """A label's own AUROC has the closed-form interval (eval_zero_shot.delong), all else that of resampled patients."""
    known_L = (~np.isnan(labels_NL)).sum(0).tolist()
    measures = [
        Measure(name=metric, of=name, n=n, compute=lambda w, f=compute, s=s, y=y: f(s, y, w))  # type: ignore[misc]
        for metric, compute in METRICS.items()
        for name, n, s, y in zip(names, known_L, scores_NL.T, labels_NL.T, strict=True)
    ]
    means = [
        Mean(name=metric, n=len(labels_NL), members=tuple(range(i * len(names), (i + 1) * len(names))))
        for i, metric in enumerate(METRICS)
    ]
    found = measure(measures, means, patients_N, resamples=resamples, seed=seed, level=level)
    run = Run.of(scores_NL, labels_NL, patients_N)
    closed = [
        Metric.of_interval("auroc", finding_interval(run, j, level), of=name, n=known_L[j])
        for j, name in enumerate(names)
    ]
    return [*closed, *found[len(names) :]]


def _notes(
    head: str, labels: Sequence[str], have: Sequence[str], scored: Sequence[str], labels_NL: Array, min_positives: int,
    cases: str,
) -> list[str]:  # fmt: skip
    said = [f"Means are over {len(scored)} of {len(labels)} labels of head '{head}'; scores are its logits."]
    if lacking := [name for name in labels if name not in have]:
        said.append(f"{len(lacking)} are no labels of these shards: {_some(lacking)}.")
    if few := [name for name in have if name not in scored]:
        said.append(f"{len(few)} are present or absent in fewer than {min_positives} {cases}: {_some(few)}.")
    if unknown := int(np.isnan(labels_NL).sum()):
        said.append(f"Unknown labels are left out: {unknown:,} of {labels_NL.size:,}.")
    return said


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _table(
    keys: Sequence[str], patients_N: NDArray, names: Sequence[str], scores_NL: Array, labels_NL: Array
) -> pd.DataFrame:
    import pandas as pd

    n, width = labels_NL.shape
    return pd.DataFrame(
        {
            "key": np.tile(np.asarray(keys, dtype=object), width),
            "patient": np.tile(patients_N.astype(object), width),
            "variant": "",
            "of": np.repeat(np.asarray(names, dtype=object), n),
            "score": scores_NL.T.ravel(),
            "label": labels_NL.T.ravel(),
        }
    )
