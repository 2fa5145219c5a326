"""Our zero-shot numbers against CLIP_benchmark's own functions: `python -m benchmarks.clip_benchmark_agreement`.

The same seeded features (no two scores tie) go through its `evaluate`, prompt ensembles included, and through ours. Run
it where clip_benchmark is importable (`make peers`; .venv-peers/bin/python with --theirs prints its numbers alone);
--write keeps them for the tests, which need no peer.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEPT = Path(__file__).resolve().parents[1] / "tests" / "eval_zero_shot" / "clip_benchmark.json"
SEEDS, STUDIES, WIDTH = (0, 1, 2), 400, 24
CLASSES = tuple(f"tissue {letter}" for letter in "abcdefgh")
TEMPLATES = ("a photo of {}.", "this is {} on a slide.", "an image that shows {}.")


@dataclass(frozen=True)
class World:
    """Legend: N studies, K classes, D width. texts: prompt -> vector D; features of any length."""

    texts: dict[str, NDArray[np.float64]]
    images_ND: NDArray[np.float64]
    truth_N: NDArray[np.intp]
    labels_NK: NDArray[np.float64]


def world(seed: int) -> World:
    """Classes of unequal size, and for the multi-label numbers labels that go with the features."""
    rng = np.random.default_rng(seed)
    centres_KD = rng.normal(size=(len(CLASSES), WIDTH))
    texts = {
        template.replace("{}", name): (centre_D + 0.8 * rng.normal(size=WIDTH)) * rng.uniform(0.5, 5)
        for name, centre_D in zip(CLASSES, centres_KD, strict=True)
        for template in TEMPLATES
    }
    share = np.arange(1, len(CLASSES) + 1) / np.arange(1, len(CLASSES) + 1).sum()
    truth_N = rng.choice(len(CLASSES), STUDIES, p=share)
    images_ND = (centres_KD[truth_N] + 2 * rng.normal(size=(STUDIES, WIDTH))) * rng.uniform(0.5, 5, (STUDIES, 1))
    labels_NK = ((np.eye(len(CLASSES))[truth_N] + (rng.random((STUDIES, len(CLASSES))) < 0.15)) > 0).astype(float)
    return World(texts, images_ND, truth_N, labels_NK)


def theirs(given: World) -> dict[str, float]:
    """clip_benchmark.metrics.zeroshot_classification.evaluate, once of one label a study and once of several."""
    import torch
    from clip_benchmark.metrics.zeroshot_classification import evaluate

    order = list(given.texts)
    table = torch.tensor(np.stack([given.texts[text] for text in order]))
    model = SimpleNamespace(encode_text=lambda ids: table[ids], encode_image=lambda images: images)

    def batches(target: Any) -> Any:
        class Batches(list):
            dataset = SimpleNamespace(classes=CLASSES)

        images = torch.tensor(given.images_ND)
        return Batches((images[i : i + 64], target[i : i + 64]) for i in range(0, len(images), 64))

    said: dict[str, float] = {}
    for target in (torch.tensor(given.truth_N), torch.tensor(given.labels_NK).long()):
        said |= evaluate(
            model, batches(target), lambda texts: torch.tensor([order.index(text) for text in texts]), list(CLASSES),
            [template.replace("{}", "{c}") for template in TEMPLATES], "cpu", amp=False,
        )  # fmt: skip
    return {name: float(value) for name, value in said.items()}


def ours(given: World) -> dict[str, float]:
    from eval_zero_shot.class_metrics import class_metrics
    from eval_zero_shot.classify import side_vectors, unit
    from eval_zero_shot.metrics import average_precision
    from eval_zero_shot.tasks import Task

    classes = {name: {"words": [name]} for name in CLASSES}
    task = Task.model_validate(
        {"name": "agreement", "kind": "classes", "classes": classes, "prompt_sets": {"all": TEMPLATES}}
    )
    (classes_KD,) = side_vectors(task, given.texts)
    scores_NK = unit(given.images_ND, "studies") @ classes_KD.T
    patients = np.arange(len(scores_NK)).astype(str)
    found = {
        m.name: m.value
        for m in class_metrics(scores_NK, given.truth_N, patients, CLASSES, resamples=0)
        if m.of == "" and not m.at
    }
    ones = np.ones((1, len(scores_NK)))
    columns = zip(scores_NK.T, given.labels_NK.T, strict=True)
    return {
        "acc1": float(found["acc1"] or 0),
        "acc5": float(found["acc5"] or 0),
        "mean_per_class_recall": float(found["balanced_accuracy"] or 0),
        "mean_average_precision": float(np.mean([average_precision(s, y, ones)[0] for s, y in columns])),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.clip_benchmark_agreement", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--theirs", action="store_true", help="print CLIP_benchmark's numbers as JSON and nothing else")
    parser.add_argument("--write", action="store_true", help=f"keep CLIP_benchmark's numbers in {KEPT.name}")
    args = parser.parse_args(argv)
    said = {str(seed): theirs(world(seed)) for seed in SEEDS}
    if args.write:
        KEPT.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    if args.theirs:
        print(json.dumps(said))
        return 0
    for seed, of in said.items():
        mine = ours(world(int(seed)))
        for name, value in of.items():
            print(
                f"seed {seed}  {name:24} CLIP_benchmark {value:.9f}  ours {mine[name]:.9f}  {mine[name] - value:+.1e}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
