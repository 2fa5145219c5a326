"""The tasks that ship with the package: `python -m eval_zero_shot.catalogue` prints them as a table.

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


def print_table() -> None:
    """The same tasks for a terminal: a row each, without what would not fit into it."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("task", no_wrap=True)
    table.add_column("classes", justify="right")
    table.add_column("kind", no_wrap=True)
    table.add_column("source", overflow="fold")
    for name in packaged_tasks():
        task = load_task(name)
        table.add_row(name, str(len(task.names)), task.kind, escape(_source(task)[0]))
    console = Console()
    console.print(table)
    console.print("Prompt sets, rules, caveats and labels of each: --markdown, or docs/tasks.md", highlight=False)


def _row(task: Task) -> tuple[str, ...]:
    source, caveats = _source(task)
    rule = task.rule.replace("_", " ")
    if task.kind == "findings":
        rule += f", threshold: {task.threshold}"
    sets = [f"{name} ({_size(task, name)})" for name in task.prompt_sets]
    return (f"`{task.name}`", source, str(len(task.names)), task.kind, rule, ", ".join(sets), caveats)


def _source(task: Task) -> tuple[str, str]:
    """Where a task's data come from, and what to know of it."""
    source, _, caveats = task.about.partition(". ")
    return source.rstrip("."), caveats


def _size(task: Task, prompt_set: str) -> str:
    """Prompts of a class in a set, of findings those of the positive side: "5", or "5-10"."""
    sizes = {len(task.prompts(name, prompt_set)[0]) for name in task.names}
    return "-".join(str(size) for size in sorted({min(sizes), max(sizes)}))


def _labels(task: Task) -> str:
    return ", ".join(" or ".join(f"`{label}`" for label in task.label_of(name)) for name in task.names)


def unimed_groups() -> dict[str, tuple[str, ...]]:
    """Modality -> names of the tasks of UniMed-CLIP's 21 sets."""
    return {group: tuple(names) for group, names in _read()["groups"].items()}


def unimed_weights() -> dict[str, dict[str, int]]:
    """Weighting (sets, printed, groups) -> modality -> its weight in the average."""
    return _read()["weights"]


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
        for weighting, weights in unimed_weights().items()
    }


def _read() -> dict[str, dict[str, dict[str, int]]]:
    return yaml.safe_load(GROUPS.read_text(encoding="utf-8"))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m eval_zero_shot.catalogue", description="List the zero-shot tasks that ship with the package."
    )
    parser.add_argument("--markdown", action="store_true", help="everything there is to say of them, as Markdown")
    if parser.parse_args(argv).markdown:
        print(markdown())
    else:
        print_table()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
