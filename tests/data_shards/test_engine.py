from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_shards import engine
from data_shards.engine import AHEAD, InProcess, Processes, Rejection, in_order
from data_shards.schema import Texts
from data_shards.sources.base import StudyRow
from tests.data_shards.dying import Dying, Echo, died


def rows(n: int) -> list[StudyRow]:
    return [StudyRow(line, f"s{line}", (), f"p{line}", "train", Texts("Clear.")) for line in range(1, n + 1)]


class Backwards:
    """A pool that finishes the last begun study first, and remembers how many it held."""

    slots = 3

    def __init__(self, size: int = 0) -> None:
        self.size, self.flying, self.done = size, list[int](), 0
        self.most, self.closed = 0, False

    def submit(self, number: int, row: StudyRow) -> None:
        self.flying.append(number)
        self.most = max(self.most, len(self.flying) + self.done)

    def collect(self) -> list[tuple[int, Any]]:
        self.done += 1
        return [(number := self.flying.pop(), _Sized(number, self.size))]

    def close(self) -> None:
        self.closed = True


class _Sized:
    def __init__(self, number: int, size: int) -> None:
        self.number, self.size = number, size


def test_results_keep_the_order_of_the_rows() -> None:
    pool = Backwards()
    assert [result.number for result in in_order(pool, rows(50))] == list(range(50))  # type: ignore[union-attr]
    assert pool.closed and list(in_order(Backwards(), [])) == []


def test_what_waits_is_bounded_by_studies_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = 0

    def endless() -> Iterator[StudyRow]:
        nonlocal begun
        for row in rows(10_000):
            begun += 1
            yield row

    results = in_order(Backwards(), endless())
    next(results)
    assert begun <= AHEAD * Backwards.slots
    results.close()  # type: ignore[attr-defined]
    monkeypatch.setattr(engine, "HELD_BYTES", 1)
    begun = 0
    results = in_order(Backwards(size=10), endless())
    for turn in range(100):
        next(results)
        assert begun <= turn + AHEAD * Backwards.slots


def test_a_pool_is_closed_when_the_build_stops() -> None:
    pool = Backwards()
    results = in_order(pool, rows(9))
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert pool.closed


@pytest.mark.full
def test_a_dead_worker_costs_its_study_only(tmp_path: Path) -> None:
    make = Dying(str(tmp_path), deadly=(5,), once=(2, 9))
    results: list[Any] = list(in_order(Processes(make, 2, died), rows(12)))
    assert [getattr(r, "line", None) or r[0] for r in results] == list(range(1, 13))
    (rejected,) = [r for r in results if isinstance(r, Rejection)]
    assert rejected == Rejection(
        5, "key5", "the process that read it died (signal 9): it may need more memory than there is"
    )
    assert os.getpid() not in {r[1] for r in results if isinstance(r, tuple)}


@pytest.mark.full
def test_long_rows_and_large_results_do_not_wait_for_each_other(tmp_path: Path) -> None:
    many = [replace(row, texts=Texts("x" * 3_000_000)) for row in rows(12)]
    assert [r[0] for r in in_order(Processes(Echo(), 2, died), many)] == list(range(1, 13))  # type: ignore[index]


def test_in_process(tmp_path: Path) -> None:
    assert [r[0] for r in in_order(InProcess(Dying(str(tmp_path))), rows(5))] == [1, 2, 3, 4, 5]  # type: ignore[index]
