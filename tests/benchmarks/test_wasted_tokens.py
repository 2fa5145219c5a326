from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest

from benchmarks import wasted_tokens


def test_short_texts_waste_the_context_and_long_ones_are_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").mkdir()
    with gzip.open(tmp_path / "text" / "roco_captions_ccby.csv.gz", "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["caption"])
        writer.writerows([["a " * 6], ["a " * 18]])  # 8 and 20 tokens with start and end
    assert wasted_tokens.main(["--data", str(tmp_path), "--context", "16", "32"]) == 0
    said = capsys.readouterr().out
    assert "2 captions, mean 14 tokens, longest 20" in said
    assert "| 16 | 25.0 % | 0.0 % | 50.0 % | 14.3 % |" in said  # 24 of 32 positions; 4 of 28 tokens lost
    assert "| 32 | 56.2 % | 0.0 % | 0.0 % | 0.0 % |" in said
