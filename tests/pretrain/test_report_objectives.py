"""Objectives that read reports, against loops in float64, what their gradient reaches, and mistakes of recipes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.stem import Standardise
from pretrain.config import load_recipe
from pretrain.errors import ConfigError
from pretrain.objectives.base import GlobalBatch
from pretrain.objectives.matching import drawn
from pretrain.passes import split, whole
from tests.pretrain.test_grad_cache import cached, fixed_seed, in_one_graph
from tests.pretrain.test_reports import (
    ALL,
    COARSE,
    CONTRAST,
    FINE,
    MASKED,
    MATCHING,
    PYRAMID,
    SEEING,
    SENTENCES,
    STUDIES,
    WORD,
    WORDS,
    batch,
    module_of,
    rows_of,
)

assert fixed_seed


def test_hard_negatives_are_drawn_by_their_similarity() -> None:
    torch.manual_seed(0)
    sharp, allowed = torch.randn(1, 5).double(), torch.tensor([[True, False, True, True, False]])
    draws = (torch.arange(20_000) + 0.5) / 20_000
    counts = torch.bincount(drawn(sharp.expand(20_000, 5), allowed.expand(20_000, 5), draws), minlength=5) / 20_000
    want = torch.softmax(sharp[0].masked_fill(~allowed[0], float("-inf")), 0)
    torch.testing.assert_close(counts.double(), want, rtol=0, atol=1e-3)
    for edge in (0.0, 1 - 2**-24):  # of the half-open interval
        assert allowed[0, drawn(sharp, allowed, torch.tensor([edge]))]
    assert drawn(sharp, torch.zeros(1, 5, dtype=torch.bool), torch.tensor([0.5])).tolist() == [0]


@pytest.mark.parametrize(
    ("options", "temperature"),
    [
        ('"exclude_related": true', 0.07),
        ('"exclude_related": false', 0.07),
        ('"temperature": 0.5', 0.5),
        ('"gather": false, "exclude_related": false', 0.07),
    ],
)
def test_matching_is_the_cross_entropy_of_a_positive_and_two_hard_negatives(
    tiny: Any, options: str, temperature: float
) -> None:
    module = module_of(tiny, f'objectives=[{{"name": "matching", {options}}}, {MASKED}]')
    alone, related = '"gather": false' in options, '"exclude_related": false' in options
    made, report = batch(), module.dual.report
    assert report is not None
    torch.manual_seed(3)
    rows = rows_of(module, whole(made))
    module._begin(made)
    if alone:  # studies 0 to 2 are one rank's, 3 and 4 another's
        matching = module.objectives[0]
        whole_batch = GlobalBatch(
            F.normalize(rows["image:global.pooled"].values, dim=-1), None, made.patient_B, torch.tensor(0.0), None,
            torch.zeros(5, 0), (), rows, counts=(3, 2),
        )  # fmt: skip
        loss = float(matching.of_images(rows, whole(made), whole_batch)[0].detach())
    else:
        module.of_batch(rows)
        module.of_part(rows, whole(made))
        loss = module.logged["loss/matching"]
    report.double()
    study = rows["report:units.report"].owner.tolist()
    image = F.normalize(rows["image:global.pooled"].values.double(), dim=-1)
    text = F.normalize(rows["report:units.report"].values.double(), dim=-1)

    def negative(i: int, j: int) -> bool:
        if alone:
            return i != j and (study[i] < 3) == (study[j] < 3)
        if related:
            return i != j
        kin = {frozenset(p) for p in ((0, 3), (0, 4), (3, 0))}  # one patient, the same sentences
        return i != j and frozenset((study[i], study[j])) not in kin

    def draw(similarity: list[float], others: list[int], u: float) -> int:
        weights = [math.exp(s / temperature) for s in similarity]
        total, reached = sum(weights), 0.0
        for other, weight in zip(others, weights, strict=True):
            reached += weight
            if reached > u * total:
                return other
        raise AssertionError

    def logit(i: int, j: int) -> float:
        """Of image i and text j."""
        mine = rows["report:units.states"].owner == study[j]
        states, place = rows["report:units.states"].values[mine].double(), rows["report:units.places"].values[mine]
        tokens = rows["image:global.tokens"].values[study[i]][None].double()
        return float(report.match(states, place, [len(states)], tokens, torch.tensor([0]))[0])

    terms = []
    for r in range(4):
        others = [s for s in range(4) if negative(r, s)]
        first, second = rows["report:units.draws"].values[r].tolist()
        hard_text = draw([float(image[study[r]] @ text[s]) for s in others], others, first)
        hard_image = draw([float(image[study[s]] @ text[r]) for s in others], others, second)
        pairs = ((r, r, 1), (r, hard_text, 0), (hard_image, r, 0))
        terms += [math.log1p(math.exp(-logit(i, j) if y else logit(i, j))) for i, j, y in pairs]
    assert loss == pytest.approx(sum(terms) / 12, rel=1e-5)


def test_hard_negatives_are_as_hard_as_the_learnt_temperature_says(tiny: Any) -> None:
    module = module_of(tiny, f"objectives=[{CONTRAST}, {MATCHING}]")
    contrast, matching = module.objectives
    assert float(matching.temperature()) == pytest.approx(0.07)  # type: ignore[operator]
    with torch.no_grad():
        contrast.logit_scale.fill_(math.log(20.0))  # type: ignore[union-attr, operator]
    assert float(matching.temperature()) == pytest.approx(0.05)  # type: ignore[operator]
    fixed = module_of(tiny, f'objectives=[{CONTRAST}, {{"name": "matching", "temperature": 0.3}}]').objectives[1]
    assert fixed.temperature() == 0.3  # type: ignore[operator]


def test_the_two_predictions_hide_the_same_tokens_unless_told_otherwise(tiny: Any) -> None:
    own = '{"name": "masked_language", "own_mask": true}', SEEING[:-1] + ', "own_mask": true}'
    targets: dict[str, Tensor] = {}
    for words in (f"{MASKED}, {SEEING}", ", ".join(own)):
        module = module_of(tiny, f"objectives=[{words}]")
        torch.manual_seed(5)
        rows = rows_of(module, whole(batch()))
        targets |= {name: one.values for name, one in rows.items() if name.endswith(".targets")}
        loss = module.compute(batch())
        assert math.isfinite(float(loss.detach())) and module.logged["loss/masked_language0"] > 0
    assert sorted(targets) == [f"report:masked{which}.targets" for which in ("", "_image", "_text")]
    assert not torch.equal(targets["report:masked_image.targets"], targets["report:masked_text.targets"])


def test_studies_without_a_valid_negative_teach_nothing(tiny: Any) -> None:
    """Two studies of one patient; of a third with them, its own negatives exist."""
    module = module_of(tiny, f"objectives=[{MATCHING}]")
    for said, taken in ((STUDIES[0:1] + STUDIES[3:4], 0), (STUDIES[0:2] + STUDIES[3:4], 3)):
        module.zero_grad()
        loss = module.compute(batch(said))
        assert module.logged["matching/studies"] == taken
        loss.backward()
        gradient = module.dual.report.matched.weight.grad  # type: ignore[union-attr]
        assert (gradient is not None and bool(gradient.any())) == bool(taken)
        assert float(loss.detach()) == 0.0 or taken


REACHED = {
    CONTRAST: ("clip.visual.head.proj.weight", "report.layers.0.qkv.weight", "report.projections.report.weight"),
    MATCHING: ("clip.visual.trunk.", "report.layers.0.qkv.weight", "report.image_in.0.weight", "report.matched.weight"),
    MASKED: ("report.tokens.weight", "report.predict.dense.weight", "report.predict.bias", "report.norm.weight"),
    SEEING: ("clip.visual.trunk.", "report.fusion.0.q.weight", "report.predict.bias", "report.tokens.weight"),
    SENTENCES: ("clip.visual.trunk.blocks.0.", "report.layers.0.qkv.weight", "report.projections.sentences.weight"),
    WORD: ("clip.visual.trunk.blocks.0.", "report.layers.0.qkv.weight", "report.projections.words.weight"),
    COARSE: ("clip.visual.trunk.", "report.layers.1.qkv.weight", "report.projections.sentences.weight"),
    FINE: ("clip.visual.trunk.", "report.layers.1.qkv.weight", "report.projections.words.weight"),
}  # fmt: skip


@pytest.mark.parametrize("objective", list(REACHED))
def test_the_gradient_reaches_what_it_should_and_nothing_else_is_there(tiny: Any, objective: str) -> None:
    pyramid = objective in (COARSE, FINE)
    module = module_of(tiny, f"objectives=[{objective}]", *(PYRAMID if pyramid else ()))
    module.compute(batch(depth=32 if pyramid else 16)).backward()
    assert all(p.grad is not None and p.grad.any() for p in module.objectives.parameters())
    gradients = {n: p.grad for n, p in module.dual.named_parameters() if p.grad is not None and p.grad.any()}
    for name in REACHED[objective]:
        assert any(found.startswith(name) for found in gradients), name
    assert not any(name.startswith("clip.text.") for name in gradients)
    untouched = {n for n, p in module.dual.named_parameters() if n.startswith("report.") and p.grad is None}
    drawn_by = {f"report.projections.report.{name}" for name in ("weight", "bias")}
    assert untouched == (drawn_by if objective == MATCHING else set()), "what nothing trains is not there"


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("objectives", [ALL, f"objectives=[{CONTRAST}, {SEEING}]", f"objectives=[{SENTENCES}, {WORD}]"])
def test_in_parts_the_gradient_is_that_of_one_graph(tiny: Any, chunk: int, objectives: str) -> None:
    module, made = module_of(tiny, objectives, f"train.chunk={chunk}", "model.image.token_dropout=0.5"), batch()
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.2
    want_loss, want = in_one_graph(module, made, chunk)
    loss, got = cached(module, made)
    torch.testing.assert_close(loss, want_loss, rtol=1e-5, atol=1e-6)
    assert {name for name in want if name.startswith("dual.report.")} == {
        name for name in got if name.startswith("dual.report.")
    }
    for name, gradient in want.items():
        close = 1e-5 * float(gradient.abs().max() + 1)
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=close, msg=name)
    assert any(part.studies == slice(2, 3) for part in split(made, 1)), "one part has no report"


def test_no_places_of_images_are_kept(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither between the passes nor in what is predicted of them: similarities with every report, and pooled features
    by which hard negatives are drawn."""
    kept: list[set[str]] = []
    monkeypatch.setattr("pretrain.grad_cache.refuse_too_much", lambda rows, *_: kept.append(set(rows)))
    module = module_of(tiny, f"objectives=[{MATCHING}, {SENTENCES}, {WORD}]", "train.chunk=2")
    of_batch = module.of_batch
    monkeypatch.setattr(module, "of_batch", lambda rows, **how: (kept.append(set(rows)), of_batch(rows, **how))[1])
    cached(module, batch())
    assert kept[0] == kept[1]
    assert {name for name in kept[0] if not name.startswith("report:")} == {
        "image:global.pooled",
        "scores:hierarchical1",
        "scores:hierarchical2",
    }


def test_a_first_step_without_images_leaves_the_stem_unmeasured(tiny: Any) -> None:
    later = '{"name": "contrastive", "schedule": [[0.5, 1.0]]}'
    name = "model.image.name=voxvit_tiny.p-8x16x16_i-16x32x32_c-1_s-extremes_l-1"
    module = module_of(tiny, name, f"objectives=[{MASKED}, {later}]", "train.chunk=2")
    [stem] = [layer for layer in module.modules() if isinstance(layer, Standardise)]
    cached(module, batch())
    assert not bool(stem.known)
    module.batches_done = module.recipe.train.steps - 1
    cached(module, batch())
    assert bool(stem.known) and bool(stem.mean_C.any())


def test_a_report_transformer_that_nothing_reads_is_refused(tiny: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.report: no objective reads it"):
        module_of(tiny)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["model.report=null", f"objectives=[{MASKED}]"],
            "masked_language reads reports, and there is no model.report",
        ),
        (
            ["model.report=null", 'objectives=[{"name": "hierarchical", "text": "words"}]'],
            "hierarchical reads reports, and there is no model.report",
        ),
        (["model.report.fusion_layers=0", f"objectives=[{MATCHING}]"], "matching needs them"),
        (["model.report.fusion_layers=0", f"objectives=[{SEEING}]"], "masked_language needs them"),
        (["model.report.heads=5", ALL], "5 heads do not divide width 24"),
        (["data.units.sentences=false", ALL], "sentence by sentence"),
        (["data.units.max_sentences=64", ALL], "50 sentences are read, of up to 64"),
    ],
)
def test_mistakes_of_a_recipe(tiny: Any, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_recipe(tiny.recipe, [*WORDS, *words])


def test_without_patch_tokens_there_is_nothing_to_look_at(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.reports.image_width", lambda visual: 0)
    with pytest.raises(ConfigError, match="gives no patch tokens"):
        module_of(tiny, ALL)
    assert module_of(tiny, f"objectives=[{MASKED}]", "model.report.fusion_layers=0").dual.report is not None
