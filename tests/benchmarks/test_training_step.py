"""The benchmark of a training step, at a size that takes no time."""

from __future__ import annotations

from typing import Any

from benchmarks import training_step
from encoders.tag import parse_tag

TAG = "p-4x8x8_i-16x32x32_c-1_a-slice3_l-3"


def test_the_table(capsys: Any) -> None:
    assert training_step.main(["--size", "tiny", "--tag", TAG, "--repeats", "1", "--threads", "1"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:]] == ["| plain", "| ours", "| ours 50%"]
    plain, *others = ([float(v.rstrip(" |")) for v in row[1:]] for row in rows[1:])
    assert plain[1] == 1.0
    assert all(min(each) >= 0 for each in others)


def test_both_towers_have_the_same_weights_and_slices_save_operations() -> None:
    tag = parse_tag(f"voxvit_tiny.{TAG}")
    found = training_step.contestants("tiny", tag)
    del found["merlin"]  # its sizes are in tests/benchmarks/test_model_sizes.py
    count = {name: sum(p.numel() for p in it.make().parameters()) for name, it in found.items()}
    assert count["conv"] == count["plain"] == count["ours"] + 192  # the position of CLS
    flop = {name: training_step.operations(it.make, (1, *it.shape)) for name, it in found.items()}
    assert flop["plain"] > flop["ours"] > 1.8 * flop["ours 50%"]
