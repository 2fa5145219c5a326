"""Contrast of images and whole reports: a double-precision loop, duplicates, patients and ranks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pretrain.objectives.base import GlobalBatch
from pretrain.objectives.report_contrastive import ReportContrastive
from pretrain.passes import Rows
from pretrain.schema_objectives import ReportContrastiveOptions


def global_batch(identity: list[tuple[int, int]], patient: list[int], counts: tuple[int, ...] = ()) -> GlobalBatch:
    """Studies with a report each, features of unit-free size."""
    torch.manual_seed(1)
    n, one = len(patient), torch.tensor(1.0)
    images = F.normalize(torch.randn(n, 8), dim=-1).requires_grad_()
    reports = torch.randn(n, 8).requires_grad_()
    owner = torch.arange(n)
    rows = {"report:units.report": Rows(reports, owner), "report:units.identity": Rows(torch.tensor(identity), owner)}
    return GlobalBatch(images, None, torch.tensor(patient), one, None, torch.zeros(n, 0), (), rows, counts=counts)


def spelt_out(b: GlobalBatch, related: Any, same: Any, scale: float, smoothing: float) -> float:
    """Symmetric InfoNCE in float64; `same(i, j)`: positives, `related(i, j)`: no negatives."""
    image = b.images_BD.detach().double()
    text = F.normalize(b.rows["report:units.report"].values.detach().double(), dim=-1)
    n, total = len(image), 0.0
    for rows, columns in ((image, text), (text, image)):
        for i in range(n):
            logit = [scale * float(rows[i] @ columns[j]) for j in range(n)]
            positives = [j for j in range(n) if same(i, j)]
            negatives = [j for j in range(n) if not related(i, j)]
            lose = sum(
                math.log(1 + sum(math.exp(logit[j] - logit[p]) for j in negatives)) for p in positives
            ) / len(positives)  # fmt: skip
            every = [logit[j] for j in {*positives, *negatives}]
            smooth = math.log(sum(map(math.exp, every))) - sum(every) / len(every)
            total += ((1 - smoothing) * lose + smoothing * smooth) / (2 * n)
    return total


IDENTITY, PATIENT = [(1, 11), (2, 12), (3, 12), (4, 14), (1, 15), (6, 16)], [1, 2, 3, 4, 5, 4]


@pytest.mark.parametrize("gather", [True, False])
@pytest.mark.parametrize("exclude", [True, False])
def test_report_level_contrast(gather: bool, exclude: bool) -> None:
    """Studies 0 and 4 have one report, 1 and 2 the same sentences, 3 and 5 one patient; ranks have 2 and 4 studies."""
    b = global_batch(IDENTITY, PATIENT, (2, 4))
    objective = ReportContrastive(ReportContrastiveOptions(gather=gather, exclude_related=exclude))
    loss, logs = objective(b)
    texts = {frozenset(p) for p in ((0, 4), (1, 2))}

    def near(i: int, j: int) -> bool:
        return gather or (i < 2) == (j < 2)

    def same(i: int, j: int) -> bool:
        return i == j or (exclude and frozenset((i, j)) in texts and near(i, j))

    def related(i: int, j: int) -> bool:
        kin = frozenset((i, j)) in texts or {i, j} == {3, 5}
        return i == j or (exclude and kin) or not near(i, j)

    assert float(loss.detach()) == pytest.approx(spelt_out(b, related, same, 1 / 0.07, 0.1), rel=1e-5)
    assert float(logs["scale"]) == pytest.approx(1 / 0.07)
    wanted = torch.autograd.grad(loss, [b.image_BD, b.rows["report:units.report"].values, objective.logit_scale])  # type: ignore[list-item]
    assert all(bool(g.abs().max() > 0) for g in wanted)


def test_without_a_report_in_the_batch_it_says_so() -> None:
    b = global_batch(IDENTITY, PATIENT)
    empty = {name: Rows(one.values[:0], one.owner[:0]) for name, one in b.rows.items()}
    with pytest.raises(ValueError, match="no study of this batch has a sentence"):
        ReportContrastive(ReportContrastiveOptions())(replace(b, rows=empty))


def test_a_temperature_at_its_bound_finds_its_way_back() -> None:
    objective = ReportContrastive(ReportContrastiveOptions())
    with torch.no_grad():
        objective.logit_scale.fill_(5.0)
    objective.after_step(objective)
    assert float(objective.logit_scale) == pytest.approx(math.log(100.0))
    loss, _ = objective(global_batch(IDENTITY, PATIENT))
    loss.backward()
    assert objective.logit_scale.grad is not None and objective.logit_scale.grad.abs() > 0
