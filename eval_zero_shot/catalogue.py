"""The tasks that ship with the package: `python -m eval_zero_shot.catalogue` prints the table of docs/tasks.md.

Also the averages over UniMed-CLIP's 21 sets, by every weighting that is in use (task_groups.yaml). Never imports torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from eval_zero_shot.errors import EvalError
from eval_zero_shot.tasks import Task, load_task, packaged_tasks

GROUPS = Path(__file__).with_name("task_groups.yaml")
HEADER = ("task", "source", "classes", "kind", "rule", "prompt sets", "caveats")


def markdown() -> str:
    """Two parts, in Markdown: a row of every packaged task, and the labels that each asks shards for."""
    tasks = [load_task(name) for name in packaged_tasks()]
    rows = [HEADER, ("---",) * len(HEADER), *(_row(task) for task in tasks)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n\n## Labels\n\n" + "\n".join(f"- `{task.name}`: {_labels(task)}" for task in tasks)


def _row(task: Task) -> tuple[str, ...]:
    source, _, caveats = task.about.partition(". ")
    rule = task.rule.replace("_", " ")
    if task.kind == "findings":
        rule += f", threshold: {task.threshold}"
    sets = [f"{name} ({_size(task, name)})" for name in task.prompt_sets]
    return (f"`{task.name}`", source.rstrip("."), str(len(task.names)), task.kind, rule, ", ".join(sets), caveats)


def _size(task: Task, prompt_set: str) -> str:
    """Prompts of a class in a set, of findings those of the positive side: "5", or "5-10"."""
    sizes = {len(task.prompts(name, prompt_set)[0]) for name in task.names}
    return "-".join(str(size) for size in sorted({min(sizes), max(sizes)}))


def _labels(task: Task) -> str:
    return ", ".join(" or ".join(f"`{label}`" for label in task.label_of(name)) for name in task.names)


def unimed_groups() -> dict[str, tuple[str, ...]]:
    """Modality -> names of the tasks of UniMed-CLIP's 21 sets."""
    return {group: tuple(names) for group, names in _read()["groups"].items()}


def unimed_averages(score_of: Mapping[str, float]) -> dict[str, float]:
    """Averages of one metric over the 21 sets, by the name of the weighting: sets, printed, groups.

    score_of: task -> score, for all 21 (more are left alone). A group's score is the mean of its sets. Which metric
    UniMed-CLIP averages for its binary sets is stated nowhere. Raises EvalError naming the sets that have no score.
    """
    groups = unimed_groups()
    if missing := [name for names in groups.values() for name in names if name not in score_of]:
        raise EvalError(
            f"{len(missing)} of the 21 sets have no score: {', '.join(missing)}",
            why="an average over fewer sets is another number under the same name",
            fix="score them, or state the mean of the sets that there are by yourself",
        )
    means = {group: sum(score_of[name] for name in names) / len(names) for group, names in groups.items()}
    return {
        weighting: sum(weights[group] * mean for group, mean in means.items()) / sum(weights.values())
        for weighting, weights in _read()["weights"].items()
    }


def _read() -> dict[str, dict[str, dict[str, int]]]:
    return yaml.safe_load(GROUPS.read_text(encoding="utf-8"))


def main(argv: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(
        prog="python -m eval_zero_shot.catalogue", description="List the zero-shot tasks that ship with the package."
    ).parse_args(argv)
    print(markdown())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
