"""Makers of studies that die: for engines in worker processes, so in a module that these can import."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from data_shards.engine import Rejection
from data_shards.sources.base import StudyRow


@dataclass(frozen=True)
class Dying:
    """Gives back the line of a row, with the process; dies over some lines.

    deadly: lines that kill the process each time. once: lines that do the first time only, noted in `folder`.
    """

    folder: str
    deadly: tuple[int, ...] = ()
    once: tuple[int, ...] = ()

    def __call__(self, row: StudyRow) -> tuple[int, int]:
        note = Path(self.folder) / f"{row.line}.died"
        if row.line in self.deadly or (row.line in self.once and not note.exists()):
            note.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return row.line, os.getpid()


class Echo:
    """Gives back the line and the words of a row."""

    def __call__(self, row: StudyRow) -> tuple[int, str]:
        return row.line, row.texts.report


def died(row: StudyRow, reason: str) -> Rejection:
    return Rejection(row.line, f"key{row.line}", reason)
