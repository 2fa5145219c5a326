"""The arithmetic of the order, without any data: shares, passes, ranks, groups, counts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from data_shards import DataError
from data_shards.mixture import Mixture
from data_shards.order import Layout, Order

SIZES = (30, 50, 20)
NAMES = ("a", "b", "c")
SOURCE = np.repeat(np.arange(3), SIZES)
ROWS = np.arange(100)
MODALITY = ["CT" if row % 3 else "MR" for row in ROWS]  # a third of every source is MR
NAMES_OF_KINDS, KIND = ("CT", "MR"), np.array([m == "MR" for m in MODALITY]).astype(int)
WEIGHTS = [6, 3, 1]


def order(batch: int = 8, rank: int = 0, world: int = 1, **mixture: Any) -> Order:
    given = {"weights": WEIGHTS} if "mix" not in mixture else {}
    layout = Layout.of(Mixture(**given, **mixture), ROWS, NAMES, SOURCE, NAMES_OF_KINDS, KIND)
    return Order(layout, 3, batch, rank, world)


def rows_of(an_order: Order, steps: range) -> list[list[int]]:
    return [[draw.row for draw in an_order(step)] for step in steps]


KINDS = [
    {"batches": "mixed"},
    {"batches": "homogeneous"},
    {"batches": "stratified"},
    {"batches": "homogeneous", "by": "modality"},
    {"batches": "stratified", "by": "modality"},
]


def test_without_a_mixture_the_order_is_one_permutation_a_pass() -> None:
    """Written out as it was before there were mixtures: a change would break every resumed run."""
    plain = Order(Layout.plain(ROWS[10:]), 7, 8)
    got = [(d.row, d.seed) for step in range(30) for d in plain(step)]
    want = []
    for position in range(240):
        epoch, place = divmod(position, 90)
        permutation = np.random.Generator(np.random.Philox([7, epoch])).permutation(90)
        want.append((10 + int(permutation[place]), (7, epoch)))
    assert got == want


def test_a_mixture_of_one_source_is_no_mixture() -> None:
    layout = Layout.of(Mixture([2.0]), ROWS, ("a",), np.zeros(100, np.int64), NAMES_OF_KINDS, KIND)
    assert rows_of(Order(layout, 7, 8), range(20)) == rows_of(Order(Layout.plain(ROWS), 7, 8), range(20))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mix", [{}, {"mix": "proportional"}, {"mix": "temperature", "temperature": 3.0}])
def test_counts_are_those_of_the_samples_drawn(kind: dict[str, Any], mix: dict[str, Any]) -> None:
    an_order = order(12, **kind, **mix)
    drawn: Counter[int] = Counter()
    for step in range(60):
        assert an_order.count(step, SOURCE, 3).tolist() == [drawn[i] for i in range(3)]
        drawn.update(int(SOURCE[d.row]) for d in an_order(step))
    is_ct = np.array([m == "CT" for m in MODALITY]).astype(int)
    ct = sum(is_ct[row] for rows in rows_of(an_order, range(60)) for row in rows)
    assert an_order.count(60, is_ct, 2).tolist() == [720 - ct, ct]


def test_shares_are_exact_and_never_drift() -> None:
    an_order = order(5)
    for step in range(1, 400):
        got = an_order.count(step, SOURCE, 3)
        assert np.abs(got - np.array([0.6, 0.3, 0.1]) * 5 * step).max() < 10, "within one block of ten positions"
    assert an_order.count(10_000_000, SOURCE, 3).tolist() == [30_000_000, 15_000_000, 5_000_000]


@pytest.mark.parametrize("weights", [[1.0, 1 / 3, 1 / 7], [1.0, 1e-4, 1e-4], [1000.0, 3.7, 3.7]])
def test_odd_weights_keep_their_shares_in_every_block(weights: list[float]) -> None:
    """Largest remainders of a running total may take back a sample; blocks are long enough that they never do."""
    an_order = Order(Layout.of(Mixture(weights), ROWS, NAMES, SOURCE, NAMES_OF_KINDS, KIND), 0, 1)
    length = an_order.inner[0].length
    before = np.zeros(3, np.int64)
    for block in range(1, 200):
        now = np.array(an_order.inner[0].before(block * length))
        assert (now >= before).all() and (now - before).sum() == length
        assert np.abs(now - np.array(weights) / sum(weights) * block * length).max() < 1
        before = now


@pytest.mark.parametrize("kind", KINDS)
def test_any_step_is_found_without_those_before_it(kind: dict[str, Any]) -> None:
    used, fresh = order(12, **kind), order(12, **kind)
    rows_of(used, range(30))
    for step in (29, 10**9, 4):
        assert rows_of(used, range(step, step + 2)) == rows_of(fresh, range(step, step + 2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_comes_again_only_after_all_of_its_cell(kind: dict[str, Any]) -> None:
    an_order = order(12, **kind)
    cell_of = {int(row): i for i, cell in enumerate(an_order.layout.cells) for row in cell}
    seen: dict[int, list[int]] = {}
    for rows in rows_of(an_order, range(120)):
        for row in rows:
            seen.setdefault(cell_of[row], []).append(row)
    for cell, rows in seen.items():
        n = len(an_order.layout.cells[cell])
        passes = [rows[i : i + n] for i in range(0, len(rows) - n + 1, n)]
        assert passes and all(len(set(one)) == n for one in passes)
        assert len(passes) < 2 or passes[0] != passes[1]


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_deal_out_the_global_batch(kind: dict[str, Any]) -> None:
    whole = rows_of(order(12, **kind), range(40))
    parts = [rows_of(order(4, rank, 3, **kind), range(40)) for rank in range(3)]
    assert [a + b + c for a, b, c in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize(("by", "of_row"), [("source", SOURCE), ("modality", np.array(MODALITY))])
def test_a_homogeneous_batch_is_of_one_group(by: str, of_row: np.ndarray) -> None:
    groups = []
    for rows in rows_of(order(8, batches="homogeneous", by=by), range(200)):
        (group,) = {str(of_row[row]) for row in rows}
        groups.append(group)
    counts = Counter(groups)
    want = {"0": 120, "1": 60, "2": 20} if by == "source" else {"CT": 200 * share_of("CT"), "MR": 200 * share_of("MR")}
    assert counts == pytest.approx(want, abs=2)
    assert groups[:20] != sorted(groups[:20]) or groups[20:40] != sorted(groups[20:40])


def share_of(modality: str) -> float:
    """A source's weight goes to its modalities in the proportions it has them."""
    inside = [np.mean([m == modality for m, s in zip(MODALITY, SOURCE, strict=True) if s == i]) for i in range(3)]
    return float(np.dot(inside, [0.6, 0.3, 0.1]))


def test_by_modality_the_sources_keep_their_weights() -> None:
    for batches in ("homogeneous", "stratified"):
        counts = order(10, batches=batches, by="modality").count(3000, SOURCE, 3)
        assert counts / counts.sum() == pytest.approx([0.6, 0.3, 0.1], abs=0.02)


def test_a_stratified_batch_has_every_group_at_its_share() -> None:
    for rows in rows_of(order(20, batches="stratified"), range(50)):
        assert Counter(SOURCE[row] for row in rows) == {0: 12, 1: 6, 2: 2}
    places = {tuple(SOURCE[row] for row in rows) for rows in rows_of(order(20, batches="stratified"), range(50))}
    assert len(places) > 40, "and not always in the same places, or a rank would see one source only"
    # Across ranks: 4 x 5, though none of the ranks could hold 12 : 6 : 2.
    ranks = [rows_of(order(5, rank, 4, batches="stratified"), range(3)) for rank in range(4)]
    for parts in zip(*ranks, strict=True):
        assert Counter(SOURCE[row] for part in parts for row in part) == {0: 12, 1: 6, 2: 2}


def test_a_batch_too_small_for_all_groups_is_refused_with_the_number_needed() -> None:
    with pytest.raises(DataError, match=r"global batch of 2 cannot hold all 3 groups.* none of c[\s\S]*of 10, or"):
        order(2, batches="stratified")
    with pytest.raises(DataError, match="none of c"):
        order(2, 0, 2, batches="stratified")
    order(5, 1, 2, batches="stratified")


def test_another_seed_is_another_order() -> None:
    layout = order().layout
    assert rows_of(Order(layout, 3, 8), range(5)) != rows_of(Order(layout, 4, 8), range(5))
