"""benchmarks.chunked_step on a handful of phantoms: all at once holds most, and the more parts the less."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import chunked_step


def test_parts_hold_less(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chunked_step.main(["--batch", "8", "--repeats", "1", "--cache", str(tmp_path)]) == 0
    rows = re.findall(r"^\| (.+?) \| [\d.]+ \| ([\d.]+) \| ([\d,]+) \|$", capsys.readouterr().out, re.MULTILINE)
    assert [name for name, _, _ in rows] == ["all at once", "1 studies", "2 studies", "4 studies"]
    assert rows[0][1] == "1.00"
    held = [int(megabytes.replace(",", "")) for _, _, megabytes in rows]
    assert held[0] > held[3] > held[2] > held[1] > 0
