"""What adapting to a domain forgets of another, and what interpolating the weights makes of both.

    python -m benchmarks.real_images --data ROOT
    python -m benchmarks.adaptation [--seeds 3] [--steps 300] [--out runs/adaptation]

`biomed2d.yaml` is trained on chest radiographs (base), then goes on with CT slices alone for half as many steps
(adapted), BatchNorm as the base left it; merged is the mean of both weights that validation chose (`finish`). Twice:
`own`, where the slices' validation split chooses, and `both`, where the radiographs' have a part in it. All are scored
on the test splits of the slices (in-domain) and of the radiographs (held out). Runs that are done are not repeated.
Intervals are nested: patients inside every draw of seeds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import yaml

from benchmarks.machine import machine
from benchmarks.module import run_module
from benchmarks.real_data import XRAY_LABELS
from benchmarks.real_images import ORGANS
from benchmarks.scores import read_scores, told
from eval_zero_shot.outcome import Outcome, read_results
from eval_zero_shot.statistics import Run, macro_difference, macro_over_runs

TASK = "public_images"
HELD = ("xray", "pneumonia")
CHEST = (*XRAY_LABELS, "pneumonia")
WEIGHTS = {"base": "alpha=0", "adapted": "alpha=1", "merged": ""}  # variants of the scores


def train(run: str, args: argparse.Namespace, settings: dict[str, object]) -> Path:
    """The run's folder."""
    folder = args.out / run
    if not (folder / "results" / "results.json").is_file():
        every = {
            "data.workers": 0,
            "checkpoint.keep_top": 0,
            "evaluate.every_steps": 1_000_000,
            "evaluate.task": TASK,
            "optim.warmup_steps": args.steps // 15,
            "output.root": args.out,
            "output.run": run,
            **settings,
        }
        words = [str(word) for key, value in every.items() for word in (f"--{key}", value)]
        words = ["--config", "biomed2d.yaml", *words]
        if (folder / "recipe.yaml").is_file():
            words = ["--resume", str(folder)]
        run_module("pretrain.fit", words)
    return folder


def captions(args: argparse.Namespace, name: str, labels: Sequence[str]) -> Path:
    """The recipe's caption file without what the studies have no label of."""
    text = (resources.files("data_shards") / "caption_templates" / "public_images.yaml").read_text(encoding="utf-8")
    every = yaml.safe_load(text)
    every["classes"] = {label: every["classes"][label] for label in labels}
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{name}.yaml"
    path.write_text(yaml.safe_dump(every), encoding="utf-8")
    return path.resolve()


def sources(args: argparse.Namespace, names: Sequence[str]) -> str:
    parts = ", ".join(f"{{name: {name}, path: {args.images / name}}}" for name in names)
    return f"{{kind: mixture, mix: temperature, temperature: 2, batches: stratified, by: source, sources: [{parts}]}}"


def outcomes(folder: Path) -> dict[str, Outcome]:
    """Of the slices and of each collection of radiographs."""
    return {o.task: o for o in read_results(folder / "results") if o.protocol == "interpolation"}


def pooled(found: dict[str, Outcome], names: Sequence[str], variant: str) -> Run:
    """The studies of several domains; what a domain does not know of a finding is unknown."""
    each = [read_scores(found[name], variant).run for name in names]
    scores, labels, patients = zip(*((run.scores_NL, run.labels_NL, run.patients_N) for run in each), strict=True)
    return Run(np.concatenate(scores), np.concatenate(labels), np.concatenate(patients))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adaptation", description="Adapting, forgetting and interpolation of weights."
    )
    add = parser.add_argument
    add("--images", type=Path, default=Path("shards/images"), metavar="DIR", help="of benchmarks.real_images")
    add("--out", type=Path, default=Path("runs/adaptation"), metavar="DIR", help="runs, resumed")
    add("--seeds", type=int, default=3, help="default: 3")
    add("--steps", type=int, default=300, help="steps of the base; adapting takes half of them (default: 300)")
    args = parser.parse_args(argv)
    print(machine())
    found: dict[str, list[dict[str, Outcome]]] = {"own": [], "both": []}
    for seed in range(args.seeds):
        steps = {"seed": seed, "train.steps": args.steps}
        chest = {"data.source": sources(args, HELD), "data.units.templates": captions(args, "chest", CHEST)}
        base = train(f"base-{args.steps}-s{seed}", args, {**steps, **chest})
        for choice, its in found.items():
            held = ", ".join(
                f"{{name: {name}, task: {TASK}, data: {args.images / name}{', select: val' * (choice == 'both')}}}"
                for name in HELD
            )
            adapting = {
                **steps,
                "train.steps": args.steps // 2,
                "data.source": f"{{kind: shards, path: {args.images / 'slices'}}}",
                "data.units.templates": captions(args, "organs", tuple(ORGANS.values())),
                "model.init": base / "release",
                "model.image.batch_norm": "frozen",
                "finish": f"{{interpolate_with: base, held_out: [{held}]}}",
            }
            its.append(outcomes(train(f"{choice}-{args.steps}-s{seed}", args, adapting)))
            alpha = its[-1]["xray"].provenance["alpha"]
            print(f"seed {seed}, chosen by {choice}: a = {alpha:g}", flush=True)
    own = next(name for name in found["own"][0] if name not in HELD)
    domains = {"CT slices": (own,), "radiographs": HELD, "all findings": (own, *HELD)}
    for choice, its in found.items():
        print(
            f"\nalpha chosen by {choice}\n\n| findings | base | adapted | merged | merged - base | merged - adapted |"
        )
        print("|---|---|---|---|---|---|")
        for domain, names in domains.items():
            runs = {key: [pooled(one, names, variant) for one in its] for key, variant in WEIGHTS.items()}
            values = [told(macro_over_runs(some)) for some in runs.values()]
            values += [told(macro_difference(runs["merged"], runs[end]), "+") for end in ("base", "adapted")]
            print(f"| {domain} | {' | '.join(values)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
