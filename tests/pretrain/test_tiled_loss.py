"""Losses by tiles are those of all logits at once, and keep what grows with the batch alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.features import TextFeatures
from pretrain import tiled_loss
from pretrain.dense_nce import multi_positive_nce
from pretrain.objectives.base import GlobalBatch, Objective, pairs_of
from pretrain.objectives.contrastive import Contrastive
from pretrain.objectives.sentence import Sentence
from pretrain.objectives.sigmoid import Sigmoid
from pretrain.pairs import Pairs
from pretrain.schema_objectives import ContrastiveOptions, SentenceOptions, SigmoidOptions

# Name -> (study, unit) pairs, patients, units
CASES: dict[str, tuple[list[tuple[int, int]], list[int], int]] = {
    "one text each": ([(i, i) for i in range(12)], list(range(12)), 12),
    "texts shared by studies": ([(i, i % 5) for i in range(9)] + [(0, 3)], list(range(9)), 5),
    "several studies a patient": ([(i, i) for i in range(11)], [5, 9, 5, 1, 1, 1, 2, 3, 4, 9, 5], 11),
    "both, and a pair told twice": ([(i, i % 7) for i in range(13)] * 2 + [(3, 9)], [i // 2 for i in range(13)], 10),
    "studies without a text, a text without a study": ([(0, 0), (4, 2), (4, 3)], [0, 1, 2, 3, 0, 4], 6),
    "no negatives": ([(0, 0), (1, 1)], [7, 7], 2),
}


def of(case: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Pairs]:
    """Random unit vectors of width 6, and pairs."""
    told, patients, units = CASES[case]
    torch.manual_seed(len(case))
    rows, columns = (F.normalize(torch.randn(n, 6, dtype=dtype), dim=1) for n in (len(patients), units))
    sample, unit = (torch.tensor([pair[i] for pair in told]) for i in (0, 1))
    return rows, columns, Pairs.of(sample, unit, torch.tensor(patients) * 10**12, units)


def compare(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], inputs: tuple[Tensor, ...], rtol: float
) -> None:
    """Value and gradients of two functions of the same inputs."""
    found = []
    for function in (ours, theirs):
        leaves = [x.clone().requires_grad_() for x in inputs]
        loss = function(*leaves)
        found.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * max(1.0, float(b.abs().max())))


def test_pairs_are_what_the_masks_say() -> None:
    """Spelt out study by study."""
    for told, patients, units in CASES.values():
        sample, unit = (torch.tensor([pair[i] for pair in told]) for i in (0, 1))
        pairs = Pairs.of(sample, unit, torch.tensor(patients), units)
        positive, negative = pairs.dense()
        for b, u in itertools.product(range(len(patients)), range(units)):
            assert bool(positive[b, u]) == ((b, u) in told)
            kin = any((other, u) in told for other in range(len(patients)) if patients[other] == patients[b])
            assert bool(negative[b, u]) == (not kin)
        assert torch.equal(pairs.taken_B, (positive | negative).sum(1))
        assert torch.equal(pairs.taken_U, (positive | negative).sum(0))


@pytest.mark.parametrize("tile", [1, 3, 5, 64])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("case", CASES)
def test_infonce_by_tiles(case: str, smoothing: float, tile: int) -> None:
    rows, columns, pairs = of(case)
    positive, negative = pairs.dense()

    def ours(rows: Tensor, columns: Tensor, scale: Tensor) -> Tensor:
        to_columns, to_rows = tiled_loss.nce(rows, columns, scale.exp(), pairs, smoothing, tile)
        return to_columns + 0.3 * to_rows

    def theirs(rows: Tensor, columns: Tensor, scale: Tensor) -> Tensor:
        logits = scale.exp() * rows @ columns.T
        to_columns = multi_positive_nce(logits, positive, negative, smoothing)
        return to_columns + 0.3 * multi_positive_nce(logits.T, positive.T, negative.T, smoothing)

    compare(ours, theirs, (rows, columns, torch.tensor(2.0, dtype=rows.dtype)), 1e-9)


@pytest.mark.parametrize("tile", [1, 4, 64])
@pytest.mark.parametrize("case", CASES)
def test_pairwise_sigmoid_by_tiles(case: str, tile: int) -> None:
    rows, columns, pairs = of(case)

    def ours(rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return tiled_loss.pairwise_sigmoid(rows, columns, scale.exp(), bias, pairs, tile)

    def theirs(rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        logits, (positive, negative) = scale.exp() * rows @ columns.T + bias, pairs.dense()
        return (F.softplus(torch.where(positive, -logits, logits)) * (positive | negative)).sum() / len(rows)

    compare(ours, theirs, (rows, columns, *torch.tensor([2.0, -3.0], dtype=rows.dtype)), 1e-8)


@pytest.mark.parametrize("half", [False, True])
def test_extreme_logits_in_single_precision(half: bool) -> None:
    """Logits from -100 to 100: rows whose best negative is far below the tile's; autocast is ignored in both passes."""
    rows, columns, pairs = of("both, and a pair told twice", torch.float32)
    rows[:5] = -columns[2]
    rows[5:8] = columns[9]
    positive, negative = pairs.dense()

    def ours(rows: Tensor, columns: Tensor, scale: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            a, b = tiled_loss.nce(rows, columns, scale, pairs, 0.1, 4)
            return (a + b).float()

    def theirs(rows: Tensor, columns: Tensor, scale: Tensor) -> Tensor:
        logits = scale.double() * rows.double() @ columns.double().T
        to_columns = multi_positive_nce(logits, positive, negative, 0.1)
        return (to_columns + multi_positive_nce(logits.T, positive.T, negative.T, 0.1)).float()

    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        compare(ours, theirs, (rows, columns, torch.tensor(100.0)), 1e-5)


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "contrastive": lambda: Contrastive(ContrastiveOptions(label_smoothing=0.1)),
    "sigmoid": lambda: Sigmoid(SigmoidOptions()),
    "sentence": lambda: Sentence(SentenceOptions(units=("report",))),
}


def reports(studies: int) -> GlobalBatch:
    """A report each, two studies a patient, every eighth report a copy."""
    torch.manual_seed(0)
    images, units = (F.normalize(torch.randn(studies, 32), dim=1).requires_grad_() for _ in range(2))
    number = torch.arange(studies)
    text = TextFeatures(
        units, torch.zeros(studies, dtype=torch.int8), number, number, number - (number % 8 == 7).long()
    )
    scale, bias = torch.tensor(2.0, requires_grad=True), torch.tensor(-5.0, requires_grad=True)
    return GlobalBatch(images, text, number // 2, scale, bias, torch.zeros(studies, 0), (), {})


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_is_kept_for_the_backward_pass_grows_with_the_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled_loss, "TILE", 256)
    kept = {}
    for studies in (512, 1024, 2048):
        batch, storages = reports(studies), {}

        def pack(tensor: Tensor, into: dict[int, Any] = storages) -> Tensor:
            into[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss, _ = OBJECTIVES[name]()(batch)
        pairs = pairs_of(batch, ("report",))[1].in_tiles(256)
        lists = sum(x.nbytes for x in vars(pairs).values() if isinstance(x, Tensor))
        kept[studies] = sum(storage.nbytes() for storage in storages.values()) + lists
        assert kept[studies] >= 2 * studies * 32 * 4, "the features at least"
        loss.backward()
        assert batch.images_BD.grad is not None and batch.images_BD.grad.abs().max() > 0
    assert kept[1024] <= 2.1 * kept[512] and kept[2048] <= 2.1 * kept[1024]
    assert kept[2048] < 2048 * 2048, "less than a byte a pair"


def test_the_same_bits_twice_and_none_for_what_is_frozen() -> None:
    rows, columns, pairs = of("several studies a patient", torch.float32)
    first, second = (
        torch.autograd.grad(tiled_loss.nce(x, columns, torch.tensor(7.0), pairs, tile=3)[0], x)[0]
        for x in (rows.clone().requires_grad_(), rows.clone().requires_grad_())
    )
    assert torch.equal(first, second) and columns.grad is None
