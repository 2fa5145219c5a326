"""Linear probes of the towers that a sweep of systems trained, beside the regression on thumbnails.

    python -m benchmarks.system_probes images [--out runs/sweeps/images]
    python -m benchmarks.system_probes organs --task benchmarks/ct_patches_reports.yaml

Zero-shot scores compare what systems make of images and words together; these compare the images' features alone,
where systems that have learnt their words badly may still have learnt to see. Logistic regression on frozen features
of every run that the sweep's summary.json names, on the same splits. With `--task`, zero-shot scores by other prompts
than the sweep's instead, and VELVET-Med's with its own reader of reports too. What is done is not repeated: delete the
runs' folders `probes` and those named after tasks where the shards were built anew. Intervals are nested: patients
inside every draw of seeds.

Legend: N studies, L facts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.comparisons import SWEEPS
from benchmarks.machine import machine
from benchmarks.module import run_module
from benchmarks.real_baseline import thumbnail_probe
from benchmarks.real_data import CT_LABELS, XRAY_LABELS
from benchmarks.real_images import ORGANS, PATCH_ORGANS
from benchmarks.scores import outcome_of, read_scores, told
from benchmarks.sweep import differences_of
from eval_zero_shot.statistics import Run, macro_difference, macro_over_runs

# What the studies of each sweep are asked about: shard set -> labels.
QUESTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "images": {
        "shards/images/xray": XRAY_LABELS,
        "shards/images/pneumonia": ("pneumonia",),
        "shards/images/slices": tuple(ORGANS.values()),
    },
    "patches": {"shards/images/patches": tuple(PATCH_ORGANS)},
    "systems_real": {"shards/ct": CT_LABELS},
    "organs": {"shards/organs": tuple(PATCH_ORGANS)},
}
THUMBNAIL = "thumbnails"
OWN_READER = ", its report transformer"


def score(run: Path, data: str, labels: Sequence[str], task: Path | None, own_reader: bool = False) -> Run:
    """Scores of one run's tower on one shard set, a column a label: of a linear probe, or of a task's prompts, read by
    the text tower or by the report transformer beside it."""
    kind = "probes" if task is None else f"{task.stem}_own_reader" if own_reader else task.stem
    out = run / kind / Path(data).name
    if not (out / "results.json").is_file():
        model = f"report:{run / 'release'}" if own_reader else str(run / "release")
        words = ["--model", model, "--data", data, "--batch-size", "64", "--out", str(out)]
        if task is None:
            run_module("eval_zero_shot.probe", [*words, "--labels", ",".join(labels), "--knn", "0"])
        else:
            run_module("eval_zero_shot.classify", [*words, "--task", str(task)])
    found = read_scores(outcome_of(out, "probe" if task is None else "classification"))
    order = [found.findings.index(label) for label in labels]
    return Run(found.run.scores_NL[:, order], found.run.labels_NL[:, order], found.run.patients_N)


def has_reader(run: Path) -> bool:
    heads = run / "release" / "heads.json"
    return heads.is_file() and "report" in json.loads(heads.read_text())


def thumbnails(data: str, labels: Sequence[str]) -> Run:
    from data_shards.shard_set import ShardSet

    shards = ShardSet.open(data)
    found, test = thumbnail_probe(shards, labels)
    return Run.of(found.logits_NL, test.labels_NL, test.patients_N)


def side_by_side(runs: Sequence[Run]) -> Run:
    """Studies of several sets with labels of their own: what a set was not asked is unknown of its studies."""
    count, width = (sum(run.scores_NL.shape[axis] for run in runs) for axis in (0, 1))
    scores, labels = np.zeros((count, width)), np.full((count, width), np.nan)
    row = column = 0
    for run in runs:
        block = slice(row, row + run.scores_NL.shape[0]), slice(column, column + run.scores_NL.shape[1])
        scores[block], labels[block] = run.scores_NL, run.labels_NL
        row, column = block[0].stop, block[1].stop
    return Run(scores, labels, np.concatenate([run.patients_N for run in runs]))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.system_probes", description="Linear probes of the towers of a sweep."
    )
    add = parser.add_argument
    add("name", choices=sorted(QUESTIONS), metavar="NAME", help=", ".join(QUESTIONS))
    add("--out", type=Path, metavar="DIR", help="of benchmarks.sweep (default: runs/sweeps/NAME)")
    add("--arms", nargs="+", metavar="ARM", help="these arms alone (default: all of the summary)")
    add("--task", type=Path, metavar="FILE", help="zero-shot by these prompts in place of linear probes")
    args = parser.parse_args(argv)
    out, asked = args.out or Path("runs/sweeps") / args.name, QUESTIONS[args.name]
    names = {arm: list(its["runs"]) for arm, its in json.loads((out / "summary.json").read_text())["arms"].items()}
    if unknown := sorted(set(args.arms or ()) - set(names)):
        parser.error(f"--arms: {', '.join(unknown)} is none of {', '.join(names)}")
    names = {arm: names[arm] for arm in args.arms or names}
    print(machine())
    found: dict[str, list[Run]] = {}
    for arm, its in names.items():
        readers = [False, True] if args.task is not None and all(has_reader(out / one) for one in its) else [False]
        for own in readers:
            found[arm + OWN_READER * own] = [
                side_by_side([score(out / one, *question, args.task, own) for question in asked.items()]) for one in its
            ]
        print(f"{arm}: {len(its)} runs", flush=True)
    pixels = side_by_side([thumbnails(*question) for question in asked.items()])
    facts = sum(map(len, asked.values()))
    how = "linear probe" if args.task is None else args.task.stem
    print(f"\n| arm | macro AUROC of {facts} facts, {how} | - {THUMBNAIL} |\n|---|---|---|")
    print(f"| {THUMBNAIL} | {told(macro_over_runs([pixels]))} | |")
    for arm, runs in found.items():
        beyond = told(macro_difference(runs, [pixels] * len(runs)), "+")
        print(f"| {arm} | {told(macro_over_runs(runs))} | {beyond} |")
    print("\n| difference | seeds | macro AUROC |\n|---|---|---|")
    pairs = differences_of(SWEEPS[args.name], list(found))
    for a, b in [*pairs, *((a, b + OWN_READER) for a, b in pairs if b + OWN_READER in found)]:
        both = min(len(found[a]), len(found[b]))
        print(f"| {a} - {b} | {both} | {told(macro_difference(found[a][:both], found[b][:both]), '+')} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
