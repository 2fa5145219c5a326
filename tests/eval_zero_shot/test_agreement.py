"""Zero-shot numbers are CLIP_benchmark's where no scores tie. clip_benchmark.json beside this file holds what its own
functions (1.6.2) said of the same seeded features: benchmarks/clip_benchmark_agreement.py wrote it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks.clip_benchmark_agreement import CLASSES, KEPT, ours, world

REPO = Path(__file__).resolve().parents[2]
PEERS = REPO / ".venv-peers" / "bin" / "python"
KEPT_NUMBERS = json.loads(KEPT.read_text(encoding="utf-8"))
NAMES = {"acc1", "acc5", "mean_per_class_recall", "mean_average_precision"}


def same(theirs: dict[str, float], seed: int) -> None:
    assert set(theirs) == NAMES
    mine = ours(world(seed))
    for name, value in theirs.items():
        assert mine[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("seed", map(int, KEPT_NUMBERS))
def test_numbers_are_those_of_clip_benchmark(seed: int) -> None:
    same(KEPT_NUMBERS[str(seed)], seed)


def test_the_numbers_could_differ() -> None:
    values = np.array([[KEPT_NUMBERS[seed][name] for name in sorted(NAMES)] for seed in KEPT_NUMBERS])
    assert (values < 0.999).all() and (values > 2 / len(CLASSES)).all()
    assert (np.ptp(values, axis=0) > 1e-3).all()


@pytest.mark.full
def test_clip_benchmark_itself_still_says_so() -> None:
    if not PEERS.is_file():
        pytest.skip("no .venv-peers: make peers")
    has = subprocess.run([str(PEERS), "-c", "import clip_benchmark"], capture_output=True, check=False)
    if has.returncode:
        pytest.skip("clip_benchmark is not in .venv-peers: make peers")
    command = [str(PEERS), "-m", "benchmarks.clip_benchmark_agreement", "--theirs"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for seed, theirs in json.loads(done.stdout.splitlines()[-1]).items():
        same(theirs, int(seed))
