"""Zero-shot classification by prompts: the command, and the arithmetic from vectors to scores.

    python -m eval_zero_shot.classify --model MODEL --data SHARDS --task TASK [--threshold-split val] [--out DIR]

Shapes: N studies, D embedding, L findings, P prompts. Scores are cos(image, positive) - cos(image, negative): with two
classes this orders studies exactly as CLIP's softmax does, without the saturated ties of a softmax in low precision.
Ensembles as in CLIP (Radford et al. 2021, arXiv 2103.00020 §3.1.4): mean of the normalised prompts, normalised again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval_zero_shot.errors import EvalError
from eval_zero_shot.tasks import Task, load_task

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ClassEmbeddings:
    """One vector a side and finding: `positive_LD`, `negative_LD`. Of length 1, but for the rule mean_cosine, where the
    product with an image is the mean of its cosines with the prompts."""

    names: tuple[str, ...]
    positive_LD: Array
    negative_LD: Array


def unit(vectors: ArrayLike, what: str) -> Array:
    """Rows scaled to length 1, float64. Raises EvalError naming `what` on a row that is not finite or has no length."""
    array = np.asarray(vectors, dtype=np.float64)
    length = np.linalg.norm(array, axis=-1, keepdims=True)
    bad = ~(np.isfinite(length) & (length > 1e-12))
    if bad.any():
        raise EvalError(
            f"{what}: {int(bad.sum())} of {bad.size} feature vectors are zero or not finite",
            why="a cosine with them is not a number, and any AUROC of it would be noise",
            fix="look at the training run: a non-finite weight, or an encoder that returns nothing for these inputs",
        )
    return array / length


def require_findings(task: Task) -> None:
    """Raises EvalError where a command scores findings only and the task is of kind classes."""
    if task.kind != "findings":
        raise EvalError(
            f"task {task.name} is of kind {task.kind}",
            why="its classes have no negative prompts; exactly one of them is right",
            fix="score it with python -m eval_zero_shot.classify",
        )


def class_embeddings(
    task: Task, text_vectors: Mapping[str, ArrayLike], prompt_set: str | None = None
) -> ClassEmbeddings:
    """Ensembles of the prompts of one set (None: the default) of a task of kind findings.

    text_vectors: every prompt -> vector D, see `embedding.embed_texts`. Raises EvalError for a task of kind classes.
    """
    require_findings(task)
    positive_LD, negative_LD = side_vectors(task, text_vectors, prompt_set)
    return ClassEmbeddings(task.names, positive_LD, negative_LD)


def side_vectors(task: Task, text_vectors: Mapping[str, ArrayLike], prompt_set: str | None = None) -> tuple[Array, ...]:
    """A vector of every class [L, D] for each of the sides of `Task.prompts`, by the task's rule."""
    sides: list[list[Array]] = [[] for _ in task.prompts(task.names[0], prompt_set)]
    for name in task.names:
        for side, prompts in zip(sides, task.prompts(name, prompt_set), strict=True):
            prompts_PD = unit([np.asarray(text_vectors[prompt]) for prompt in prompts], f"prompts of {name}")
            mean_D = prompts_PD.mean(axis=0)
            side.append(mean_D if task.rule == "mean_cosine" else unit(mean_D, f"prompt ensemble of {name}"))
    return tuple(np.stack(side) for side in sides)


def _parser() -> argparse.ArgumentParser:
    from eval_zero_shot.cases import add_scans
    from eval_zero_shot.inputs import add_inputs

    parser = argparse.ArgumentParser(
        prog="python -m eval_zero_shot.classify", description="Zero-shot classification by prompts."
    )
    add_inputs(parser)
    add_scans(parser)
    add = parser.add_argument
    add("--task", required=True, metavar="TASK", help="packaged task or YAML file of classes and prompts")
    add("--threshold-split", metavar="NAME", help="fit thresholds here and score every prompt set, never on the test")
    add("--prompt-set", metavar="NAME", help="the set that stands for the task (default: its first)")
    add(
        "--attended",
        action="store_true",
        help="also scores by the released head `attended`, beside the cosine",
    )
    add("--resamples", type=int, default=1000, metavar="N", help="patient bootstrap (default: 1000; 0: no intervals)")
    add("--seed", type=int, default=0, help="of the resamples (default: 0)")
    add("--out", metavar="DIR", help="folder for results.json and scores.parquet")
    return parser


def _run(args: argparse.Namespace) -> None:
    task = load_task(args.task)  # fails fast, before torch is imported
    task.known_set(args.prompt_set)
    from eval_zero_shot.classification import score_classification
    from eval_zero_shot.classification_table import print_classification
    from eval_zero_shot.inputs import open_inputs
    from eval_zero_shot.outcome import write_results

    inputs = open_inputs(args)
    fit_rows = inputs.rows(args.threshold_split) if args.threshold_split else None
    outcome = score_classification(
        inputs, inputs.rows(args.split, args.max_studies), task, split=args.split, threshold_rows=fit_rows,
        threshold_split=args.threshold_split or "", prompt_set=args.prompt_set, attended=args.attended,
        resamples=args.resamples, seed=args.seed,
    )  # fmt: skip
    print_classification(outcome)
    if args.out:
        print(f"wrote {write_results(args.out, [outcome])} and scores.parquet")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 1 with the reason on stderr."""
    from eval_zero_shot.inputs import run_command

    return run_command(_parser(), argv, _run)


if __name__ == "__main__":
    sys.exit(main())
