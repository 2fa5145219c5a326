"""Two real gloo processes on one mixture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data_shards import Study
from data_shards.shard_set import ShardWriter


@pytest.mark.full
def test_two_ranks_see_disjoint_samples_and_take_equally_many_steps(
    tmp_path: Path, study: Callable[..., Study]
) -> None:
    sizes = {"ct": 16, "mr": 8}
    for name, count in sizes.items():
        with ShardWriter(tmp_path / name) as writer:
            for i in range(count):
                writer.write(replace(study(i, "train", (8, 8, 8)), patient=f"{name}{i}"))
    script, root = Path(__file__).with_name("two_ranks.py"), Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([sys.executable, str(script), str(tmp_path), str(r)], env=environment) for r in (0, 1)]
    try:
        assert [rank.wait(120) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    first, second = (json.loads((tmp_path / f"{r}.json").read_text()) for r in (0, 1))
    assert first == second and len(first["steps"]) == 12
    assert first["realised"]["source"] == {"ct": 32, "mr": 16}
    for a, b in first["steps"]:
        assert len(a) == len(b) == 2 and not set(a) & set(b)
    # Weights 2 : 1 of 16 and 8 studies: six steps are one pass over both sources.
    for start in (0, 6):
        one, two = ([key for step in first["steps"][start : start + 6] for key in step[r]] for r in (0, 1))
        assert not set(one) & set(two)
        assert sorted(one + two) == sorted(f"{name}/study{i}" for name, count in sizes.items() for i in range(count))
