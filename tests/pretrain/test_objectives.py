"""Losses against other people's code, against loops that spell them out, and the pairing rules."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import SigLipLoss
from torch import Tensor

from encoders.features import TextFeatures
from pretrain.objectives import find_objective
from pretrain.objectives.base import GlobalBatch, pairing, pairs_of
from pretrain.objectives.contrastive import Contrastive
from pretrain.objectives.sentence import Sentence
from pretrain.objectives.sigmoid import Sigmoid
from pretrain.pairs import Pairs
from pretrain.schema_objectives import ContrastiveOptions, SentenceOptions, SigmoidOptions
from pretrain.tiled_loss import nce

REPORT, SENTENCE = 0, 2


def batch(pairs: list[tuple[int, int]], kinds: list[int], patients: list[int], bias: Any = None) -> GlobalBatch:
    """Random unit vectors of width 8; `pairs` are (study, unit)."""
    torch.manual_seed(0)
    images, units = (F.normalize(torch.randn(len(x), 8), dim=1).requires_grad_() for x in (patients, kinds))
    samples, texts = (torch.tensor([p[i] for p in pairs]) for i in (0, 1))
    text = TextFeatures(units, torch.tensor(kinds, dtype=torch.int8), torch.arange(len(kinds)), samples, texts)
    return GlobalBatch(
        images, text, torch.tensor(patients), torch.tensor(2.0), bias, torch.zeros(len(images), 0), (), {}
    )


def spelt_out(logits: Tensor, positive: Tensor, negative: Tensor, smoothing: float) -> float:
    """The formula of `nce`, number by number, in Python's double precision."""
    rows = []
    for s, is_positive, is_negative in zip(logits.tolist(), positive.tolist(), negative.tolist(), strict=True):
        against = [s[j] for j in range(len(s)) if is_negative[j]]
        wanted = [s[j] for j in range(len(s)) if is_positive[j]]
        if not wanted:
            continue
        mean = sum(-math.log(math.exp(p) / (math.exp(p) + sum(map(math.exp, against)))) for p in wanted) / len(wanted)
        taken = wanted + against
        spread = sum(-math.log(math.exp(t) / sum(map(math.exp, taken))) for t in taken) / len(taken)
        rows.append((1 - smoothing) * mean + smoothing * spread)
    return sum(rows) / len(rows)


def nce_of(logits: Tensor, positive: Tensor, negative: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """InfoNCE both ways of a matrix of logits, each row a patient of its own, with any masks."""
    pairs = Pairs(*positive.nonzero().T, torch.arange(len(logits)), *(~negative).nonzero().T, logits.shape[1])
    return nce(
        logits, torch.eye(logits.shape[1], dtype=logits.dtype), torch.ones((), dtype=logits.dtype), pairs, smoothing
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_with_one_positive_a_row_infonce_is_cross_entropy(smoothing: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 6, requires_grad=True)
    eye = torch.eye(6, dtype=torch.bool)
    for ours, these in zip(nce_of(logits, eye, ~eye, smoothing), (logits, logits.T), strict=True):
        (gradient,) = torch.autograd.grad(ours, logits, retain_graph=True)
        theirs = F.cross_entropy(these, torch.arange(6), label_smoothing=smoothing)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(gradient, torch.autograd.grad(theirs, logits)[0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_infonce_with_several_positives_and_pairs_left_out(smoothing: float) -> None:
    torch.manual_seed(1)
    logits = 3 * torch.randn(7, 9, dtype=torch.float64)
    kind = torch.randint(0, 3, (7, 9))
    kind[2] = 0  # a row without a positive
    kind[3, kind[3] == 0] = 2  # a row without a negative
    positive, negative = kind == 1, kind == 0
    to_columns, to_rows = nce_of(logits, positive, negative, smoothing)
    assert float(to_columns) == pytest.approx(spelt_out(logits, positive, negative, smoothing), rel=1e-12)
    assert float(to_rows) == pytest.approx(spelt_out(logits.T, positive.T, negative.T, smoothing), rel=1e-12)


def test_a_row_without_negatives_teaches_nothing_and_breaks_nothing() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    positive = torch.tensor([[True, False, False], [True, False, False]])
    negative = torch.tensor([[False, False, False], [False, True, True]])
    for smoothing in (0.0, 0.1):
        logits.grad = None
        nce_of(logits, positive, negative, smoothing)[0].backward()
        assert logits.grad is not None and torch.isfinite(logits.grad).all()
        assert torch.equal(logits.grad[0], torch.zeros(3))
        assert logits.grad[1].abs().min() > 0


def test_the_symmetric_loss_is_that_of_clip() -> None:
    b = batch([(i, i) for i in range(5)], [REPORT] * 5, [0, 1, 2, 3, 4])
    loss, logs = Contrastive(ContrastiveOptions())(b)
    logits = b.logit_scale.exp() * b.images_BD @ b.text.units_UD.T
    target = torch.arange(5)
    torch.testing.assert_close(loss, (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2)
    assert float(logs["units"]) == 5


def test_the_sigmoid_loss_is_that_of_open_clip() -> None:
    b = batch([(i, i) for i in range(5)], [REPORT] * 5, [0, 1, 2, 3, 4], bias=torch.tensor(-10.0))
    ours, _ = Sigmoid(SigmoidOptions())(b)
    theirs = SigLipLoss()(b.images_BD, b.text.units_UD, b.logit_scale.exp(), b.logit_bias)
    torch.testing.assert_close(ours, theirs)
    wrt = (b.images_BD, b.text.units_UD)
    for a, c in zip(torch.autograd.grad(ours, wrt), torch.autograd.grad(theirs, wrt), strict=True):
        torch.testing.assert_close(a, c)


def test_sentences_have_as_many_positives_as_reports_hold_them() -> None:
    """Three reports, four distinct sentences; the second stands in two reports."""
    pairs = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 3)]
    b = batch(pairs, [SENTENCE] * 4, [0, 1, 2])
    objective = Sentence(SentenceOptions())
    loss, logs = objective(b)
    expected = 0.0
    scale, bias = math.exp(float(objective.logit_scale.detach())), float(objective.logit_bias.detach())
    images, units = (x.detach().double().tolist() for x in (b.images_BD, b.text.units_UD))
    for i, image in enumerate(images):
        for u, unit in enumerate(units):
            z = 1 if (i, u) in pairs else -1
            logit = scale * sum(x * y for x, y in zip(image, unit, strict=True)) + bias
            expected += math.log1p(math.exp(-z * logit))
    assert float(loss.detach()) == pytest.approx(expected / 3, rel=1e-5)
    assert float(logs["positives"]) == pytest.approx(5 / 3)
    assert objective.logit_scale.requires_grad and objective.logit_bias.requires_grad


def test_only_units_of_the_kinds_asked_for_count() -> None:
    b = batch([(0, 0), (0, 1), (1, 2), (1, 3)], [REPORT, SENTENCE, REPORT, SENTENCE], [0, 1])
    reports, sentences = pairing(b, ("report",)), pairing(b, ("sentence",))
    assert torch.equal(reports.units_UD, b.text.units_UD[[0, 2]])
    assert torch.equal(sentences.units_UD, b.text.units_UD[[1, 3]])
    assert reports.positive_BU.tolist() == sentences.positive_BU.tolist() == [[True, False], [False, True]]
    with pytest.raises(ValueError, match="no text unit of kind caption"):
        pairing(b, ("caption",))


def test_texts_of_the_same_patient_are_neither_positive_nor_negative() -> None:
    b = batch([(0, 0), (1, 1), (2, 2)], [REPORT] * 3, [7, 7, 8])
    pairs = pairing(b, ("report",))
    assert pairs.positive_BU.tolist() == torch.eye(3, dtype=torch.bool).tolist()
    assert pairs.negative_BU.tolist() == [[False, False, True], [False, False, True], [True, True, False]]
    for objective in (Contrastive(ContrastiveOptions()), Sigmoid(SigmoidOptions())):
        told = []
        for first in (b.images_BD[0], -b.images_BD[0]):
            images = torch.stack([first, *b.images_BD[1:]]).detach()
            told.append(torch.autograd.grad(objective(replace(b, image_BD=images))[0], b.text.units_UD)[0][1])
        assert torch.equal(*told)  # what the second text is told does not depend on the first image


def test_identical_reports_are_no_negatives() -> None:
    """Studies 0 and 1 share their report: one unit with two positives."""
    b = batch([(0, 0), (1, 0), (2, 1)], [REPORT] * 2, [0, 1, 2])
    pairs = pairing(b, ("report",))
    assert pairs.positive_BU.tolist() == [[True, False], [True, False], [False, True]]
    assert torch.equal(pairs.negative_BU, ~pairs.positive_BU)


def test_somebody_elses_objective_trains(make_fit: Any, tmp_path: Path, plugins: None) -> None:
    runs = make_fit(tmp_path, objectives=[{"name": "trouble:Plain", "width": 16}], train={"steps": 12})
    assert runs("run") == 0
    losses = [float(row.split(",")[2]) for row in runs.metrics("run") if ",loss," in row]
    assert losses[-1] < losses[0] - 0.1
    state = torch.load(runs.checkpoint("run") / "trainer.ckpt", weights_only=True)
    assert set(state["objectives"]) == {"0.map.weight"}


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"name": "trouble:Nobody"}, "objectives.0.name: objective 'trouble:Nobody' cannot be imported"),
        ({"name": "trouble:fill"}, "is no subclass of pretrain.objectives.base.Objective"),
        ({"name": "trouble:Plain"}, "objectives.0.width"),
        ({"name": "trouble:Plain", "width": 16, "widht": 1}, "objectives.0.widht"),
        ({"name": "trouble:Plain", "width": "wide"}, "objectives.0.width"),
    ],
)
def test_a_wrong_objective_is_refused_before_a_run_folder_is_made(
    make_fit: Any, tmp_path: Path, plugins: None, capsys: pytest.CaptureFixture[str], section: dict[str, Any], said: str
) -> None:
    runs = make_fit(tmp_path, objectives=[section])
    assert runs("run") == 1
    message = capsys.readouterr().err
    assert said in message
    assert not runs.folder("run").exists()


def test_the_names_of_the_objectives() -> None:
    assert [find_objective(n) for n in ("contrastive", "sigmoid", "sentence")] == [Contrastive, Sigmoid, Sentence]


def test_to_text_weighs_the_direction_from_image_to_text() -> None:
    together = batch([(0, 0), (1, 1), (2, 0), (2, 2)], [SENTENCE] * 3, [1, 2, 3])
    units, pairs = pairs_of(together, ("sentence",))
    to_text, to_image = nce(together.images_BD, units, torch.tensor(math.exp(2.0)), pairs)
    assert abs(float(to_text - to_image)) > 1e-3
    for share in (1.0, 0.0, 0.25):
        loss = Contrastive(ContrastiveOptions(units=("sentence",), to_text=share))(together)[0]
        torch.testing.assert_close(loss, (share * to_text + to_image) / (share + 1))
