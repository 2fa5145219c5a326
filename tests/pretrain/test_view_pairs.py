"""The objectives on pairs of views against loops in double precision."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.crops import pairs_of_views
from pretrain.objectives import find_objective
from pretrain.objectives.base import GlobalBatch, Surroundings
from pretrain.passes import Rows
from pretrain.schema_objectives import BarlowTwinsOptions, BYOLOptions, SimCLROptions, VICRegOptions
from tests.pretrain.test_views import Tower, nt_xent, of_views

STUDIES, WIDTH = 6, 5
PAIRS: dict[str, Any] = {
    "vicreg": VICRegOptions(views="crops", dim=4, hidden=7),
    "barlow_twins": BarlowTwinsOptions(views="crops", dim=4, hidden=7),
    "byol": BYOLOptions(views="crops", dim=4, hidden=7),
}


def built(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    one = find_objective(name)(PAIRS[name].model_copy(update=changes))
    one.attach(Surroundings(Tower(width=WIDTH, stride=(4, 4)), ()))  # type: ignore[arg-type]
    return one.double()


def rows_of(views: Tensor, name: str) -> dict[str, Rows]:
    """Of views [v, B, C]; `float` keeps doubles."""
    flat = views.flatten(0, 1)
    return {name: Rows(flat, torch.arange(views.shape[1]).repeat(views.shape[0]))}


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objectives compute in fp32; in these tests they keep what they are given."""
    monkeypatch.setattr(Tensor, "float", lambda self: self if self.dtype == torch.float64 else self.to(torch.float32))


def global_batch(rows: dict[str, Rows]) -> GlobalBatch:
    one = torch.tensor(1.0)
    return GlobalBatch(None, None, torch.arange(STUDIES), one, None, torch.zeros(STUDIES, 0), (), rows)


def spelt_out_head(head: Any, x: Tensor) -> list[list[float]]:
    """A projector on one view, layer by layer, BatchNorm over the studies of the batch."""
    rows = x.detach().tolist()
    for layer in head:
        if isinstance(layer, torch.nn.Linear):
            weight, bias = layer.weight.tolist(), layer.bias.tolist() if layer.bias is not None else None
            rows = [
                [
                    sum(w * v for w, v in zip(ws, row, strict=True)) + (bias[j] if bias else 0)
                    for j, ws in enumerate(weight)
                ]
                for row in rows
            ]
        elif isinstance(layer, torch.nn.BatchNorm1d):
            for j in range(len(rows[0])):
                column = [row[j] for row in rows]
                mean = sum(column) / len(column)
                variance = sum((v - mean) ** 2 for v in column) / len(column)
                for row in rows:
                    row[j] = (row[j] - mean) / math.sqrt(variance + 1e-5)
        else:
            rows = [[max(v, 0.0) for v in row] for row in rows]
    return rows


def spelt_out_vicreg(a: list[list[float]], b: list[list[float]]) -> float:
    n, d = len(a), len(a[0])
    s = sum((x - y) ** 2 for r, q in zip(a, b, strict=True) for x, y in zip(r, q, strict=True)) / n / d
    v = c = 0.0
    for z in (a, b):
        means = [sum(row[j] for row in z) / n for j in range(d)]
        for j in range(d):
            for k in range(d):
                shared = sum((row[j] - means[j]) * (row[k] - means[k]) for row in z) / (n - 1)
                if j == k:
                    v += max(0.0, 1 - math.sqrt(shared + 1e-4)) / d / 2
                else:
                    c += shared**2 / d
    return 25 * s + 25 * v + c


def spelt_out_barlow(a: list[list[float]], b: list[list[float]]) -> float:
    n, d, total = len(a), len(a[0]), 0.0
    moments = []
    for z in (a, b):
        means = [sum(row[j] for row in z) / n for j in range(d)]
        moments.append([(m, math.sqrt(sum((r[j] - m) ** 2 for r in z) / n + 1e-5)) for j, m in enumerate(means)])
    for j in range(d):
        for k in range(d):
            (ma, sa), (mb, sb) = moments[0][j], moments[1][k]
            cross = sum((r[j] - ma) / sa * (q[k] - mb) / sb for r, q in zip(a, b, strict=True)) / n
            total += (1 - cross) ** 2 if j == k else 0.0051 * cross**2
    return total


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize(("name", "spelt_out"), [("vicreg", spelt_out_vicreg), ("barlow_twins", spelt_out_barlow)])
def test_statistics_of_two_views(name: str, spelt_out: Any, views: int) -> None:
    one = built(name)
    seen = torch.randn(views, STUDIES, WIDTH, dtype=torch.float64, requires_grad=True)
    loss, _ = one(global_batch(rows_of(seen, "image:crops.trunk")))
    z = [spelt_out_head(one.head, view) for view in seen]
    pairs = pairs_of_views(views)
    assert loss.item() == pytest.approx(sum(spelt_out(z[s], z[t]) for s, t in pairs) / len(pairs), rel=1e-8)
    loss.backward()
    assert seen.grad is not None and seen.grad.abs().amax(-1).min() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in one.head.parameters() if p.ndim == 2)


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("views", [2, 3])
def test_byol_is_the_cosine_to_the_projection_of_the_average(views: int) -> None:
    one = built("byol")
    with torch.no_grad():
        for p in (p for p in one.target_head.parameters() if p.ndim == 2):
            p.add_(0.3 * torch.randn_like(p))
    seen = torch.randn(views, STUDIES, WIDTH, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, STUDIES, WIDTH, dtype=torch.float64)
    rows = rows_of(seen, "image:byol.trunk") | rows_of(target, "image:byol.target")
    heads = copy.deepcopy((one.head, one.predictor, one.target_head))
    loss, logs = one(global_batch(rows))
    head, predictor, target_head = heads
    q = [spelt_out_head(predictor, torch.tensor(spelt_out_head(head, view))) for view in seen]
    aim_layers = [torch.tensor(spelt_out_head(target_head, view)) for view in target]
    total, count = 0.0, 0
    for a in range(views):
        for b in range(2):
            if a != b:
                for x, y in zip(q[a], aim_layers[b].tolist(), strict=True):
                    dot = sum(v * w for v, w in zip(x, y, strict=True))
                    total += dot / math.sqrt(sum(v * v for v in x) * sum(w * w for w in y))
                    count += 1
    assert loss.item() == pytest.approx(2 - 2 * total / count, rel=1e-6)
    assert logs["cosine"].item() == pytest.approx(total / count, rel=1e-6)
    loss.backward()
    assert seen.grad is not None and seen.grad.abs().amax(-1).min() > 0
    assert all(p.grad is None for p in one.target_head.parameters())


@pytest.mark.usefixtures("doubles")
def test_simclr_finds_its_partner_among_crops_too() -> None:
    torch.manual_seed(0)
    one = find_objective("simclr")(SimCLROptions(views="crops", dim=4))
    one.attach(Surroundings(Tower(width=WIDTH, stride=(4, 4)), ()))  # type: ignore[arg-type]
    one.double()
    seen = torch.randn(10, WIDTH, dtype=torch.float64)
    batch = of_views(seen, [1, 2, 3, 4, 5], [0, 1, 2, 3, 4])
    renamed = {"image:crops.trunk": batch.rows["image:views.trunk"]}
    loss, _ = one(replace(batch, rows=renamed))
    assert loss.item() == pytest.approx(
        nt_xent(one.head(seen).detach().tolist(), [1, 2, 3, 4, 5], [0, 1, 2, 3, 4], 0.5)
    )
