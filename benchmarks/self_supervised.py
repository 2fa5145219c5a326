"""Self-supervised image towers by linear probe: graph matching, its first-order version and the usual baselines.

    python -m benchmarks.real_images --data ROOT
    python -m benchmarks.self_supervised [--seeds 3] [--steps 300] [--out runs/self_supervised]

The same tower, images, crops, batches and steps for all (`lvm_med.yaml` on radiographs and CT slices of
benchmarks.real_images); then logistic regression on frozen features of PneumoniaMNIST (pneumonia), of CT slices (which
organs) and of turned patches of them (which organ). `random` is the tower as it is born, with BatchNorm's statistics of
the same batches. Runs and probes that are done are not repeated. Intervals are nested: patients inside every draw of
seeds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.module import run_module
from benchmarks.real_images import ORGANS, PATCH_ORGANS
from benchmarks.scores import Scores, outcome_of, read_scores, told
from eval_zero_shot.statistics import macro_difference, macro_over_runs

CROPS = "crops: {scale: [0.3, 1.0], flip: 0.5, jitter: 0.4, blur: 0.2}"
ARMS = {
    "graph_matching": f"[{{name: graph_matching, hidden: 512, matches: 8, {CROPS}}}]",
    "first_order": f"[{{name: graph_matching, order: first, hidden: 512, matches: 8, {CROPS}}}]",
    "simclr": f"[{{name: simclr, views: crops, dim: 128, hidden: 512, {CROPS}}}]",
    "vicreg": f"[{{name: vicreg, views: crops, {CROPS}}}]",
    "barlow_twins": f"[{{name: barlow_twins, views: crops, {CROPS}}}]",
    "byol": f"[{{name: byol, views: crops, {CROPS}}}]",
    "random": f"[{{name: simclr, views: crops, {CROPS}}}]",  # at a rate of nothing
}
TRAINED_ON = ("xray", "pneumonia", "slices")
PROBES = {"pneumonia": "pneumonia", "slices": ",".join(ORGANS.values()), "patches": ",".join(PATCH_ORGANS)}


def train(arm: str, seed: int, args: argparse.Namespace) -> Path:
    """The run's release."""
    run = f"{arm}-s{seed}-{args.steps}"
    if not (args.out / run / "release").is_dir():
        parts = ", ".join(f"{{name: {name}, path: {args.images / name}}}" for name in TRAINED_ON)
        settings = {
            "seed": seed,
            "data.source": f"{{kind: mixture, mix: temperature, temperature: 2, sources: [{parts}]}}",
            "data.geometry": "{kind: image, size: [64, 64]}",
            "data.train_view": "{kind: centre, size: [64, 64]}",
            "data.eval_view": "{kind: centre, size: [64, 64]}",
            "data.workers": 0,
            "model.image": "{name: resnet10t, image_size: 64}",
            "objectives": ARMS[arm],
            "optim.lr": 1e-12 if arm == "random" else 1e-3,
            "optim.weight_decay": 0.05,
            "optim.warmup_steps": args.steps // 10,
            "train.steps": args.steps,
            "train.batch_size": 64,
            "train.precision": "auto",
            "checkpoint.keep_top": 0,
            "output.root": args.out,
            "output.run": run,
        }
        words = [str(word) for key, value in settings.items() for word in (f"--{key}", value)]
        run_module("pretrain.fit", ["--config", "lvm_med.yaml", *words])
    return args.out / run / "release"


def probe(release: Path, name: str, args: argparse.Namespace) -> Scores:
    out = release.parent / "probes" / name
    if not (out / "results.json").is_file():
        words = ["--model", str(release), "--data", str(args.images / name), "--labels", PROBES[name]]
        run_module("eval_zero_shot.probe", [*words, "--knn", "0", "--batch-size", "64", "--out", str(out)])
    return read_scores(outcome_of(out, "probe"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.self_supervised", description="Self-supervised image towers by linear probe."
    )
    add = parser.add_argument
    add("--images", type=Path, default=Path("shards/images"), metavar="DIR", help="of benchmarks.real_images")
    add("--out", type=Path, default=Path("runs/self_supervised"), metavar="DIR", help="runs, resumed")
    add("--seeds", type=int, default=3, help="seeds of each arm (default: 3)")
    add("--steps", type=int, default=300, help="optimiser steps (default: 300)")
    add("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    add(
        "--beside", nargs="+", type=Path, default=[], metavar="RUN", help="runs of another system, one a seed, to probe"
    )
    args = parser.parse_args(argv)
    print(machine())
    scores: dict[str, dict[str, list[Scores]]] = {name: {arm: [] for arm in args.arms} for name in PROBES}
    for seed in range(args.seeds):
        for arm in args.arms:
            release = train(arm, seed, args)
            for name in PROBES:
                scores[name][arm].append(probe(release, name, args))
            print(f"seed {seed}: {arm}", flush=True)
    for name in PROBES if args.beside else ():
        scores[name]["beside"] = [probe(run / "release", name, args) for run in args.beside]
    for name, arms in scores.items():
        print(f"\n| {name} | macro AUROC | graph_matching - it |\n|---|---|---|")
        runs = {arm: [one.run for one in found] for arm, found in arms.items()}
        for arm, its in runs.items():
            against = runs.get("graph_matching") if arm != "graph_matching" else None
            differ = "" if against is None else told(macro_difference(against, its), "+")
            print(f"| {arm} | {told(macro_over_runs(its))} | {differ} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
