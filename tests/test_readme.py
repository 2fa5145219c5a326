"""Every code block of the README runs, in order, in one working folder, so that a copied line works.

A comment before a block changes that: `<!-- test: full -->` leaves it to `make test-full`, `<!-- test: skip REASON -->`
leaves it out. Blocks of other languages are text.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
RUNNERS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
_FENCE = re.compile(r"^```(\w*)\s*$")
_MARK = re.compile(r"^<!-- test: (.*?) -->\s*$")


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    code: str
    mark: str  # "", "full" or "skip"


def blocks(text: str) -> list[Block]:
    """Runnable blocks of a Markdown text.

    Raises:
        ValueError: a mark that is none of the two, a skip without a reason, a block that never ends.
    """
    found: list[Block] = []
    mark, start, language, lines = "", 0, "", list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        fence = _FENCE.match(line)
        if start and line.startswith("```"):
            if language in RUNNERS:
                found.append(Block(start, language, "\n".join(lines), mark))
            mark, start, lines = "", 0, []
        elif start:
            lines.append(line)
        elif fence:
            start, language = number, fence[1]
        elif (comment := _MARK.match(line)) is not None:
            if comment[1] != "full" and not re.match(r"skip \S", comment[1]):
                raise ValueError(f"line {number}: '{comment[1]}' is neither 'full' nor 'skip REASON'")
            mark = comment[1].partition(" ")[0]
        elif line.strip() and not line.startswith("<!--"):
            mark = ""  # a mark belongs to the block right below it
    if start:
        raise ValueError(f"the block of line {start} never ends")
    return found


def run(block: Block, folder: Path) -> None:
    """Run one block in the folder, with our interpreter first in PATH and the repository importable."""
    environment = dict(
        os.environ,
        PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        PYTHONPATH=str(REPO),
        OMP_NUM_THREADS="1",
    )
    result = subprocess.run(
        [*RUNNERS[block.language], block.code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    output = (result.stdout + result.stderr)[-3000:]
    assert result.returncode == 0, f"README.md line {block.line} exits {result.returncode}\n{block.code}\n{output}"


def _readme() -> list[Block]:
    found = blocks((REPO / "README.md").read_text(encoding="utf-8"))
    assert {b.language for b in found} == set(RUNNERS), "the README shows commands and Python"
    return found


def test_readme_blocks_run(tmp_path: Path) -> None:
    for block in _readme():
        if not block.mark:
            run(block, tmp_path)


@pytest.mark.full
def test_all_readme_blocks_run_in_order(tmp_path: Path) -> None:
    for block in _readme():
        if block.mark != "skip":
            run(block, tmp_path)


def test_marks_choose_blocks() -> None:
    text = "\n".join(
        [
            "```bash", "true", "```", "```text", "no code", "```",
            "<!-- test: full -->", "```python", "x = 1", "y = 2", "```",
            "<!-- test: skip needs a GPU -->", "", "```bash", "false", "```",
            "<!-- test: full -->", "prose between", "```bash", "true", "```",
        ]
    )  # fmt: skip
    assert blocks(text) == [
        Block(1, "bash", "true", ""),
        Block(8, "python", "x = 1\ny = 2", "full"),
        Block(14, "bash", "false", "skip"),
        Block(19, "bash", "true", ""),
    ]


@pytest.mark.parametrize("text", ["<!-- test: skip -->", "<!-- test: slow -->", "```bash\ntrue"])
def test_malformed_marks_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="line 1"):
        blocks(text)


def test_a_failing_block_is_reported_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="line 7 exits 1"):
        run(Block(7, "bash", "false", ""), tmp_path)
    run(Block(1, "bash", "echo text > file", ""), tmp_path)
    run(Block(2, "python", "import pretrain; assert open('file').read() == 'text\\n'", ""), tmp_path)
