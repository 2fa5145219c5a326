"""Both trainers really run, on a few images."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import images_per_second


@pytest.mark.full
def test_both_train_and_are_timed(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(shared_data), "--context", "77", "--repeats", "1", "--steps", "3", "--batch", "2"]
    assert images_per_second.main(words) == 0
    said = capsys.readouterr().out
    assert "context 77, round 1: ours " in said and "open_clip_train" in said and "ratio " in said
