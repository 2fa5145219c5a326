"""A progress bar with rate and time left on a terminal, a line now and then in a log file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

Item = TypeVar("Item")
LOG_EVERY_S = 15.0


def track(items: Iterable[Item], total: int, label: str, unit: str = "studies") -> Iterator[Item]:
    """Yield the items and show how far it is, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=_terminal())
    began = last = time.monotonic()
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(label, total=total, rate="")
            for done, item in enumerate(items, 1):
                yield item
                bar.update(task, completed=done, rate=f"{done / (time.monotonic() - began):.1f} {unit}/s")
        return
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last > LOG_EVERY_S or done == total:
            rate, last = done / max(now - began, 1e-9), now
            print(f"{label}: {done}/{total} {unit}, {rate:.1f}/s, {(total - done) / rate:.0f} s left", file=sys.stderr)


def _terminal() -> TextIO:
    """stderr, through a handle of its own: it stays in sight where a reader's C library is silenced meanwhile."""
    try:
        if sys.stderr.isatty():
            return os.fdopen(os.dup(sys.stderr.fileno()), "w")
    except (OSError, ValueError):
        pass
    return sys.stderr
