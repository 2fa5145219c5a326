"""Studies made by many processes, handed on in their order: whatever engine runs, the bytes are the same."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from data_shards.shard_write import EncodedStudy
    from data_shards.sources.base import StudyRow

AHEAD = 4  # studies per slot that may be finished before their turn
HELD_BYTES = 1 << 30  # finished studies that wait for their turn; past this no new one is begun
QUEUED = 2  # studies a worker has been given: one in work, one to go on with at once
DIED = "the process that read it died"
ATTEMPTS = 2  # a study whose process died is tried once more: the memory may have been another's
# One thread each: the workers are the parallelism, and more threads would only wait for each other.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Rejection:
    """A study that cannot be used: where its source names it, its hashed key, and why."""

    line: int
    key: str
    reason: str


Make = Callable[["StudyRow"], Any]  # -> EncodedStudy | Rejection


class Pool(Protocol):
    """Something that makes studies. slots: how many it works on at a time."""

    slots: int

    def submit(self, number: int, row: StudyRow) -> None:
        """Begin a study."""

    def collect(self) -> list[tuple[int, Any]]:
        """Wait until at least one study is finished: (its number, EncodedStudy or Rejection)."""

    def close(self) -> None:
        """Stop, also in the middle of studies."""


def in_order(pool: Pool, rows: Iterable[StudyRow]) -> Iterator[EncodedStudy | Rejection]:
    """Results in the order of the rows. Memory is bounded: by studies in flight, and by bytes that wait."""
    source = iter(rows)
    finished: dict[int, Any] = {}
    begun = turn = held = 0
    more = True
    try:
        while True:
            # The study whose turn it is was begun before all that wait, so there is always something to collect.
            while more and begun - turn < AHEAD * pool.slots and (begun == turn or held < HELD_BYTES):
                row = next(source, None)
                more = row is not None
                if row is not None:
                    pool.submit(begun, row)
                    begun += 1
            if turn == begun:
                return
            while turn not in finished:
                for number, result in pool.collect():
                    finished[number] = result
                    held += getattr(result, "size", 0)
            result = finished.pop(turn)
            held -= getattr(result, "size", 0)
            turn += 1
            yield result
    finally:
        pool.close()


class InProcess:
    """One study at a time, here."""

    slots = 1

    def __init__(self, make: Make) -> None:
        self._make = make
        self._waiting: deque[tuple[int, StudyRow]] = deque()

    def submit(self, number: int, row: StudyRow) -> None:
        self._waiting.append((number, row))

    def collect(self) -> list[tuple[int, Any]]:
        number, row = self._waiting.popleft()
        return [(number, self._make(row))]

    def close(self) -> None:
        self._waiting.clear()


class Processes:
    """Worker processes of this machine, each with a pipe of its own, so that a death names the study.

    (concurrent.futures breaks the whole pool when one process dies, and cannot say over which task.)
    died: makes the Rejection of a study whose process died ATTEMPTS times, from the row and words about the death.
    """

    def __init__(self, make: Make, workers: int, died: Callable[[StudyRow, str], Rejection]) -> None:
        self.slots = workers
        self._make, self._died = make, died
        self._waiting: deque[tuple[int, StudyRow]] = deque()
        self._attempts: dict[int, int] = {}
        self._workers = [_Worker(make) for _ in range(workers)]

    def submit(self, number: int, row: StudyRow) -> None:
        self._waiting.append((number, row))

    def collect(self) -> list[tuple[int, Any]]:
        found: list[tuple[int, Any]] = []
        while not found:
            # One each before two each, so that the first studies are spread over all workers.
            for depth in range(1, QUEUED + 1):
                for worker in self._workers:
                    if self._waiting and len(worker.given) < depth:
                        worker.give(*self._waiting.popleft())
            ready = connection.wait([worker.pipe for worker in self._workers if worker.given])
            for i, worker in enumerate(self._workers):
                if worker.pipe not in ready:
                    continue
                try:
                    found.append((worker.given[0][0], worker.pipe.recv()))
                    worker.given.popleft()
                except (EOFError, ConnectionResetError):
                    found += self._bury(worker)
                    self._workers[i] = _Worker(self._make)
        return found

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()

    def _bury(self, worker: _Worker) -> list[tuple[int, Any]]:
        """The study in work is tried again, or rejected; those behind it go back to the head of the queue."""
        how = worker.stop()
        (number, row), *behind = worker.given
        self._waiting.extendleft(reversed(behind))
        self._attempts[number] = self._attempts.get(number, 0) + 1
        if self._attempts[number] < ATTEMPTS:
            self._waiting.appendleft((number, row))
            return []
        return [(number, self._died(row, f"{DIED} ({how}): it may need more memory than there is"))]


class _Worker:
    def __init__(self, make: Make) -> None:
        import multiprocessing

        context = multiprocessing.get_context("spawn")  # a fork would copy open files, locks and threads
        self.pipe, theirs = context.Pipe()
        self.given: deque[tuple[int, StudyRow]] = deque()
        self._process = context.Process(target=_work, args=(theirs, make), daemon=True)
        before = {name: os.environ.get(name) for name in ONE_THREAD}
        os.environ.update(ONE_THREAD)
        try:
            self._process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
        theirs.close()  # or the end of the worker would not be seen

    def give(self, number: int, row: StudyRow) -> None:
        self.given.append((number, row))
        with suppress(BrokenPipeError, ConnectionResetError):  # it died: seen when its answer is waited for
            self.pipe.send(row)

    def stop(self) -> str:
        """End the process; how it ended, if it did by itself."""
        self.pipe.close()
        self._process.join(0.2)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        code = self._process.exitcode or 0
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def _work(pipe: Any, make: Make) -> None:
    """The life of a worker process. It ends with its parent, also in the middle of a study."""
    import multiprocessing
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group: the parent decides
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    rows: SimpleQueue[StudyRow | None] = SimpleQueue()
    # Rows are taken in while a result goes out: else both ends could wait for each other to read.
    threading.Thread(target=_receive, args=(pipe, rows), daemon=True).start()
    while (row := rows.get()) is not None:
        try:
            pipe.send(make(row))
        except (BrokenPipeError, ConnectionResetError):
            return


def _receive(pipe: Any, rows: SimpleQueue[StudyRow | None]) -> None:
    try:
        while True:
            rows.put(pipe.recv())
    except (EOFError, OSError):
        rows.put(None)


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
