"""A progress bar with rate and time left on a terminal, a line now and then in a log file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO, TypeVar

Item = TypeVar("Item")
LOG_EVERY_S = 15.0
SHORT_S = 2.0  # what takes no longer leaves no line in a log


def track(items: Iterable[Item], total: int, label: str, unit: str = "studies") -> Iterator[Item]:
    """Yield the items and show how far it is, on stderr."""
    with counting(total, label, unit) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def counting(total: int, label: str, unit: str = "studies") -> Iterator[Callable[[int], None]]:
    """The same for work that is done in groups: yields `advance(n)`, to be called when n more are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=_terminal())
    began = last = time.monotonic()
    done = 0

    def rate() -> float:
        return done / max(time.monotonic() - began, 1e-9)

    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(label, total=total, rate="")

            def draw(n: int) -> None:
                nonlocal done
                done += n
                bar.update(task, completed=done, rate=f"{rate():.1f} {unit}/s")

            yield draw
        return

    def log(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last > LOG_EVERY_S or (done == total and now - began > SHORT_S):
            last = now
            left = (total - done) / rate()
            print(f"{label}: {done}/{total} {unit}, {rate():.1f}/s, {left:.0f} s left", file=sys.stderr, flush=True)

    yield log


def _terminal() -> TextIO:
    """stderr, through a handle of its own: it stays in sight where a reader's C library is silenced meanwhile."""
    try:
        if sys.stderr.isatty():
            return os.fdopen(os.dup(sys.stderr.fileno()), "w")
    except (OSError, ValueError):
        pass
    return sys.stderr
