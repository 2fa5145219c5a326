"""Text-conditioned pooling: the loss by a float64 loop, where its gradient goes, the released head and its maps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import encoders
from encoders.features import TextFeatures
from encoders.heads.attended import AttendedPooling
from pretrain import build, studies
from pretrain.config import load_recipe
from pretrain.objectives import attended
from pretrain.objectives.base import GlobalBatch, Surroundings
from pretrain.passes import Rows
from pretrain.schema_objectives import AttendedOptions
from tests.pretrain.test_grad_cache import batch as studies_of
from tests.pretrain.test_grad_cache import cached, fixed_seed, in_one_graph, module_of, same_gradient

assert fixed_seed  # a fixture

SENTENCE = 2
B, N, C, U, D = 4, 6, 12, 5, 8
PAIRS = [(0, 0), (0, 1), (1, 1), (2, 2), (3, 3), (3, 4)]
PATIENTS = [7, 8, 9, 9]  # the texts of studies 2 and 3 are neither for the other


def small() -> tuple[attended.Attended, Tensor, GlobalBatch]:
    """The objective, tokens of all images, and everything else of a batch."""
    torch.manual_seed(0)
    objective = attended.Attended(AttendedOptions(heads=2))
    objective.head = AttendedPooling(C, D, 2)
    text = F.normalize(torch.randn(U, D), dim=1).requires_grad_()
    samples, units = (torch.tensor([p[i] for p in PAIRS]) for i in (0, 1))
    texts = TextFeatures(text, torch.full((U,), SENTENCE, dtype=torch.int8), torch.arange(U), samples, units)
    tokens = torch.randn(B, N, C).requires_grad_()
    scale, patients = torch.tensor(0.0), torch.tensor(PATIENTS)
    return objective, tokens, GlobalBatch(None, texts, patients, scale, None, torch.zeros(B, 0), (), {}, counts=(B,))


def loss_of(objective: attended.Attended, tokens: Tensor, batch: GlobalBatch) -> Tensor:
    """Of all images, in two parts."""
    total = torch.zeros(())
    for some in (slice(0, 3), slice(3, B)):
        rows = {"image:global.tokens": Rows(tokens[some], torch.arange(B)[some])}
        total = total + objective.of_images(rows, None, batch)[0]  # type: ignore[arg-type]  # it asks nothing of a part
    return total / B


def spelt_out(objective: attended.Attended, tokens: Tensor, batch: GlobalBatch) -> Tensor:
    """Pair by pair, head by head, in double precision."""
    head = objective.head.double()
    tokens, text = tokens.double(), batch.text.units_UD.double()
    total, width = torch.zeros((), dtype=torch.float64), D // 2
    for b in range(B):
        x = F.layer_norm(tokens[b], (C,), head.norm.weight, head.norm.bias)
        keys, values = x @ head.key.weight.T, x @ head.value.weight.T
        keys, values = (torch.cat([m, torch.zeros(1, D, dtype=torch.float64)]) for m in (keys, values))
        for u in range(U):
            query = head.query.weight @ text[u] + head.query.bias
            parts = []
            for h in range(2):
                own = slice(h * width, (h + 1) * width)
                weight = (keys[:, own] @ query[own] / math.sqrt(width)).softmax(0)
                parts.append(weight @ values[:, own])
            pooled = head.out.weight @ torch.cat(parts) + head.out.bias
            logit = objective.logit_scale.exp() * (pooled / pooled.norm()) @ text[u] + objective.logit_bias
            if (b, u) in PAIRS:
                total = total - F.logsigmoid(logit)
            elif not any(PATIENTS[b] == PATIENTS[other] for other, unit in PAIRS if unit == u):
                total = total - F.logsigmoid(-logit)
    return total / B


@pytest.mark.parametrize("block", [1 << 25, 1])
def test_the_loss_is_the_loop_over_pairs(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """In one block, and in one block an image with recomputation."""
    monkeypatch.setattr(attended, "BLOCK", block)
    objective, tokens, batch = small()
    loss = loss_of(objective, tokens, batch)
    got = torch.autograd.grad(loss, [tokens, batch.text.units_UD, *objective.parameters()])
    want_loss = spelt_out(objective, tokens, batch)
    leaves = [tokens, batch.text.units_UD, *objective.parameters()]
    want = torch.autograd.grad(want_loss, leaves)
    torch.testing.assert_close(loss.double(), want_loss, rtol=1e-5, atol=1e-6)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-5)


def test_a_text_without_a_place_looks_at_the_empty_token() -> None:
    objective, tokens, batch = small()
    head = objective.head
    maps = head.maps(tokens, batch.text.units_UD)
    assert maps.shape == (B, U, N) and (maps.sum(-1) < 1).all() and (maps > 0).all()
    with torch.no_grad():
        head.query.weight.zero_()
        head.query.bias.zero_()
    torch.testing.assert_close(head.maps(tokens, batch.text.units_UD), torch.full((B, U, N), 1 / (N + 1)))


def test_training_releases_a_head_that_evaluators_draw(tiny: Any) -> None:
    from eval_zero_shot.report.focus import attention

    objectives = [{"name": "contrastive"}, {"name": "attended", "heads": 2}]
    assert tiny("run", objectives=objectives, train__steps=4, train__chunk=2) == 0
    loaded = encoders.load(tiny.root / "run" / "release")
    map_ = attention(loaded, torch.randn(1, 16, 32, 32).numpy(), torch.randn(16).double().numpy())
    assert map_ is not None and map_.shape == (2, 2, 2) and 0 < map_.sum() < 1
    assert "attended" in "".join(tiny.metrics("run"))


def test_the_gradient_reaches_both_towers_and_the_head(tiny: Any) -> None:
    recipe = load_recipe(tiny.recipe, ['objectives=[{"name": "attended", "heads": 2}]', "model.image.token_dropout=0"])
    from pretrain.module import Pretraining

    torch.manual_seed(0)
    dual, objectives = build.build_model(recipe), build.build_objectives(recipe)
    objectives[0].attach(Surroundings(dual, ()))
    module = Pretraining(recipe, dual, objectives)
    batch = next(iter(build.training_stream(recipe, studies.build_data(recipe), build.tokenizer(recipe), 0, 1, 0)))
    module.compute(batch).backward()
    reached = {name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    own = {f"objectives.0.{name}" for name, _ in objectives[0].named_parameters()}
    assert own <= reached and "dual.clip.text.text_projection" in reached
    assert "dual.clip.visual.trunk.blocks.0.qkv.weight" in reached
    assert "dual.clip.visual.head.proj.weight" not in reached, "it reads tokens, before the projection"


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("centred", ["true", "false"])
def test_in_parts_the_gradient_is_that_of_one_graph(tiny: Any, chunk: int, centred: str) -> None:
    """Texts wait for what the images of all parts say of them; a loss of the whole batch reads them as well."""
    objectives = '[{"name": "contrastive"}, {"name": "attended", "heads": 2, "weight": 0.5}, {"name": "sentence"}]'
    words = [f"train.chunk={chunk}", f"model.centred={centred}", "model.image.token_dropout=0.5"]
    module, whole = module_of(tiny, [*words, f"objectives={objectives}"]), studies_of(7)
    want_loss, want = in_one_graph(module, whole, chunk)
    loss, got = cached(module, whole)
    torch.testing.assert_close(loss, want_loss, rtol=1e-5, atol=1e-6)
    assert {"objectives.1.head.query.weight", "dual.clip.text.token_embedding.weight"} <= want.keys()
    same_gradient(got, want)
    assert module.logged["loss/attended"] > 0 and module.logged["attended/units"] == pytest.approx(5)


def test_no_tokens_are_kept(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither between the passes nor in what is predicted of them."""
    kept: list[set[str]] = []
    monkeypatch.setattr("pretrain.grad_cache.refuse_too_much", lambda rows, *_: kept.append(set(rows)))
    both = 'objectives=[{"name": "contrastive"}, {"name": "attended", "heads": 2}]'
    module = module_of(tiny, ["train.chunk=2", both])
    of_batch = module.of_batch
    monkeypatch.setattr(module, "of_batch", lambda rows, **how: (kept.append(set(rows)), of_batch(rows, **how))[1])
    cached(module, studies_of(7))
    assert kept == [{"image:global.pooled", "text:units.units"}] * 2
