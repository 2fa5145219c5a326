"""The report passes and masked language, against loops in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from data_shards.batch import Batch, TextBatch
from data_shards.units import Unit, hash64, text_identity
from encoders.tokenize import BPE
from pretrain import build
from pretrain.config import load_recipe
from pretrain.masking import mask_tokens, masked_counts
from pretrain.module import Pretraining
from pretrain.objectives.base import Surroundings
from pretrain.passes import Part, Rows, whole
from pretrain.reports import reports_of
from tests.pretrain.test_grad_cache import fixed_seed

assert fixed_seed

# Patient and sentences. The first and the last say the same in another order; the third has no sentence.
STUDIES: tuple[tuple[int, tuple[str, ...]], ...] = (
    (1, ("No effusion.", "Small nodule in the left lung.")),
    (2, ("The heart is large.",)),
    (3, ()),
    (1, ("Cyst of the liver, bronchiectasis.", "No effusion.", "Stone in a kidney.")),
    (4, ("Small nodule in the left lung.", "No effusion.")),
)
REPORT = "{width: 24, heads: 2, layers: 2, fusion_layers: 1, feedforward: 32, dropout: 0.0, max_tokens: 40}"
WORDS = (f"model.report={REPORT}", "data.units.max_sentences=50", "model.image.token_dropout=0.0")
MASKED, MATCHING, CONTRAST = '{"name": "masked_language"}', '{"name": "matching"}', '{"name": "report_contrastive"}'
SEEING = '{"name": "masked_language", "condition": "image"}'
SENTENCES, WORD = (f'{{"name": "hierarchical", "width": 8, "text": "{text}"}}' for text in ("sentences", "words"))
COARSE, FINE = SENTENCES[:-1] + ', "level": 2}', WORD[:-1] + ', "level": 1}'
PYRAMID = (  # the tower of objectives that ask for a level
    "model.image.name=swin3d_tiny.i-32x32x32_c-1_w-12_l-1", "data.train_view.size=[32,32,32]",
    "data.eval_view.size=[32,32,32]",
)  # fmt: skip
ALL = f"objectives=[{CONTRAST}, {MATCHING}, {MASKED}, {SEEING}]"


def batch(studies: tuple[tuple[int, tuple[str, ...]], ...] = STUDIES, depth: int = 16) -> Batch:
    units = []
    for number, (_, said) in enumerate(studies):
        report = Unit(0, " ".join(said) or "None.", hash64(f"report {number}"))
        units.append([report, *(Unit(2, text, text_identity(text)) for text in said)])
    images = torch.randn(len(studies), 1, depth, 32, 32, generator=torch.Generator().manual_seed(0))
    rows, patients = torch.arange(len(studies)), torch.tensor([patient for patient, _ in studies])
    return Batch(0, rows, [str(i) for i in rows], patients, images, torch.zeros(len(studies), 0), (),
                 TextBatch.of(units, BPE(64)))  # fmt: skip


def module_of(tiny: Any, *words: str) -> Pretraining:
    recipe = load_recipe(tiny.recipe, [*WORDS, *words])
    torch.manual_seed(0)
    dual = build.build_model(recipe)
    objectives = build.build_objectives(recipe)
    for objective in objectives:
        objective.attach(Surroundings(dual, (), objectives=objectives))
    module = Pretraining(recipe, dual, objectives).train()
    with torch.no_grad():
        for name, parameter in module.dual.named_parameters():
            if name.startswith("report."):
                parameter += 0.05 * torch.randn_like(parameter)
    return module


def rows_of(module: Pretraining, part: Part) -> dict[str, Rows]:
    return module.encoders(module.dual, part)


def test_a_report_is_its_sentences_in_the_order_they_stand_in(tiny: Any) -> None:
    """Sentences that other studies had before stand where this report has them."""
    dual = module_of(tiny, ALL).dual
    assert dual.report is not None
    made = batch()
    reports, study_R, many = reports_of(dual.report, made, slice(0, 5))
    assert study_R.tolist() == [0, 1, 3, 4] and many == 4
    for row, study in enumerate(study_R.tolist()):
        pieces = reports.ids_T[(reports.report_T == row) & (reports.place_T > 0)].tolist()
        want = [i for sentence in STUDIES[study][1] for i in BPE(64)(sentence)[1:-1]]
        assert pieces == want


def test_fields_say_whose_they_are(tiny: Any) -> None:
    module = module_of(tiny, ALL)
    module.encoders.wanted["report:units"] |= {"words", "sentences", "word_sentences"}
    made, report = batch(), module.dual.report
    assert report is not None
    report.projections = torch.nn.ModuleDict({level: torch.nn.Identity() for level in ("report", "sentences", "words")})
    rows = {name.partition(".")[2]: one for name, one in rows_of(module, whole(made)).items() if "report:u" in name}
    words = [["no", "effusion", "."], ["small", "nodule", "in", "the", "left", "lung", "."]]
    assert rows["report"].owner.tolist() == rows["draws"].owner.tolist() == [0, 1, 3, 4]
    assert rows["sentences"].owner.tolist() == [0, 0, 1, 3, 3, 3, 4, 4]
    assert rows["word_sentences"].values[: sum(map(len, words))].tolist() == [0] * 3 + [1] * 7
    theirs = rows["word_sentences"].values[rows["words"].owner == 3].tolist()
    assert theirs == [0] * 7 + [1] * 3 + [2] * 5, "cyst of the liver , bronchiectasis ."
    assert len(rows["words"].values) == len(rows["words"].owner) == len(rows["word_sentences"].values)
    alone = rows_of(module, Part(made, slice(3, 4), slice(0, 0)))
    mine = rows["words"].values[rows["words"].owner == 3]
    torch.testing.assert_close(alone["report:units.words"].values, mine, rtol=0, atol=1e-6)
    assert alone["report:units.words"].owner.unique().tolist() == [3]
    assert torch.equal(rows["identity"].values[0, 1], rows["identity"].values[3, 1]), "the same sentences"
    assert len(rows["identity"].values.unique()) == 4 + 3


def test_a_part_without_a_report_has_fields_without_rows_that_still_reach_the_weights(tiny: Any) -> None:
    module = module_of(tiny, f"objectives=[{CONTRAST}, {MASKED}, {SEEING}]")
    part = Part(batch(), slice(2, 3), slice(0, 0))
    rows = rows_of(module, part)
    assert {len(one.values) for name, one in rows.items() if name.startswith("report:")} == {0}
    module._begin(part.batch)
    loss = module.of_part(rows, part)
    assert loss is not None and float(loss.detach()) == 0.0
    (loss + rows["report:units.report"].values.sum()).backward()
    for name, parameter in module.dual.report.named_parameters():  # type: ignore[union-attr]
        assert parameter.grad is not None and not parameter.grad.any(), name


@pytest.mark.parametrize("seed", [0, 1])
def test_fifteen_percent_of_each_report_are_hidden(tiny: Any, seed: int) -> None:
    dual = module_of(tiny, ALL).dual
    assert dual.report is not None
    said = tuple((i, tuple(f"nodule {j} of {i} mm in segment {j}." for j in range(4))) for i in range(60))
    reports, _, _ = reports_of(dual.report, batch(said), slice(0, 60))
    torch.manual_seed(seed)
    ids, targets = mask_tokens(reports, dual.report.special)
    torch.manual_seed(seed)
    again = mask_tokens(reports, dual.report.special)
    assert torch.equal(ids, again[0]) and torch.equal(targets, again[1])
    hidden = targets >= 0
    for row in range(60):
        mine = reports.report_T == row
        pieces = int((mine & (reports.place_T > 0)).sum())
        assert int((mine & hidden).sum()) == int(masked_counts(reports)[row]) == math.floor(0.15 * pieces + 0.5) > 0
    assert torch.equal(targets[hidden], reports.ids_T[hidden]) and bool((reports.place_T[hidden] > 0).all())
    assert torch.equal(ids[~hidden], reports.ids_T[~hidden])
    share = [float((ids[hidden] == what).float().mean()) for what in (torch.tensor(49408), targets[hidden])]
    assert share == pytest.approx([0.8, 0.1], abs=0.07) and int(ids.max()) < 49409 + 51
    assert len(reports.position_T[hidden].unique()) > 15, "anywhere in the report"


def test_masked_language_is_the_cross_entropy_of_the_hidden_tokens(tiny: Any) -> None:
    module, made = module_of(tiny, f"objectives=[{MASKED}, {SEEING}]"), batch()
    report = module.dual.report
    assert report is not None
    torch.manual_seed(5)
    loss = module.compute(made)
    torch.manual_seed(5)
    rows = rows_of(module, whole(made))
    double = {name: one.values.double() for name, one in rows.items() if one.values.is_floating_point()}
    targets, owner = rows["report:masked.targets"].values, rows["report:masked.states"].owner
    report.double()
    want = []
    for image in (False, True):
        losses = []
        for study in owner.unique().tolist():
            mine = owner == study
            states, place = double["report:masked.states"][mine], rows["report:masked.places"].values[mine]
            if image:
                tokens = double["image:global.tokens"][study][None]
                states = report.fuse(states, place, [len(states)], tokens, torch.tensor([0]))
            for state, target in zip(states, targets[mine].tolist(), strict=True):
                if target >= 0:
                    assert report.predict is not None
                    logits = report.predict(state[None], report.tokens.weight)[0]
                    losses.append(float((torch.logsumexp(logits, 0) - logits[target]).detach()))
        assert len(losses) == int(module.objectives[0].terms(made))  # type: ignore[operator]
        want.append(sum(losses) / len(losses))
    assert float(loss.detach()) == pytest.approx(sum(want), rel=1e-5)
    assert module.logged["loss/masked_language0"] == pytest.approx(want[0], rel=1e-5)
    assert module.logged["loss/masked_language1"] == pytest.approx(want[1], rel=1e-5)
