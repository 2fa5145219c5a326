"""Two runs of one seed on two threads end with the same bits."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.full
def test_two_threads_give_the_same_bits_twice(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        words = [
            "--data.source.studies", "200", "--train.steps", "12", "--optim.warmup_steps", "5",
            "--evaluate.task", "null", "--data.cache", str(tmp_path / "cache"),
            "--output.root", str(tmp_path), "--output.run", name,
        ]  # fmt: skip
        command = [sys.executable, "-m", "pretrain.fit", "--config", "ct3d.yaml", *words]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "2"}, capture_output=True)
        weights = (tmp_path / name / "release" / "open_clip_model.safetensors").read_bytes()
        found.append(hashlib.sha256(weights).hexdigest())
    assert found[0] == found[1]
