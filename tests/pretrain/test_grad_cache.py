"""Gradients of a batch in parts are those of the whole batch, with every random choice switched on."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data_shards.batch import Batch, TextBatch
from data_shards.units import Unit, text_identity
from encoders.tokenize import BPE
from pretrain import build
from pretrain.config import load_recipe
from pretrain.errors import ConfigError
from pretrain.module import Pretraining
from pretrain.objectives.base import GlobalBatch, Objective, Surroundings
from pretrain.passes import Part, Rows, split
from pretrain.schema_base import Section

SENTENCES = ("No effusion.", "Nodule in the left lung.", "Large heart.", "Cyst of the liver.", "Stone in a kidney.")


def batch(studies: int = 7) -> Batch:
    """Volumes of noise; study i has sentences i and i + 1 of five, so that texts repeat, and its own report."""
    generator = torch.Generator().manual_seed(0)
    said = [(SENTENCES[i % 5], SENTENCES[(i + 1) % 5]) for i in range(studies)]
    units = [[(0, " ".join(two)), (2, two[0]), (2, two[1])] for two in said]
    texts = TextBatch.of([[Unit(kind, t, text_identity(t)) for kind, t in each] for each in units], BPE(64))
    labels = torch.tensor([[float("nan"), i % 2, 1.0] for i in range(studies)])
    return Batch(
        0, torch.arange(studies), [str(i) for i in range(studies)], torch.arange(studies) // 2,
        torch.randn(studies, 1, 16, 32, 32, generator=generator), labels, ("a", "b", "c"), texts,
    )  # fmt: skip


class Known(Objective):
    """A sum over studies: the trunk's features against their labels, where known."""

    reads = ("image:global.trunk", "labels")
    coupling = "sample"
    Options = Section

    def attach(self, around: Surroundings) -> None:
        self.layer = nn.Linear(around.dual.clip.visual.trunk.num_features, 3)

    def terms(self, batch: Batch) -> Tensor:
        return batch.labels_BL.isfinite().sum()

    def each(self, rows: Mapping[str, Rows], part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        wanted = part.batch.labels_BL[part.studies]
        loss = (self.layer(rows["image:global.trunk"].values).float() - wanted.nan_to_num()).square()
        return (loss * wanted.isfinite()).sum(), {}


class OfTokens(Objective):
    """A loss of the whole batch that reads every token: what `train.chunk` has to keep."""

    reads = ("image:global.tokens",)
    Options = Section

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return batch.rows["image:global.tokens"].values.mean((1, 2)).var(), {}


def module_of(tiny: Any, words: list[str]) -> Pretraining:
    recipe = load_recipe(tiny.recipe, words)
    torch.manual_seed(0)
    dual = build.build_model(recipe)
    objectives = [*build.build_objectives(recipe), Known(Section())]
    for objective in objectives:
        objective.attach(Surroundings(dual, ("a", "b", "c"), lambda: batch().labels_BL))
    recipe = recipe.model_copy(update={"objectives": (*recipe.objectives, recipe.objectives[0])})
    module = Pretraining(recipe, dual, objectives).train()
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.2
    return module


def cached(module: Pretraining, whole: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients as training computes them, without a trainer."""
    module.manual_backward = lambda loss, **how: loss.backward(**how)  # type: ignore[method-assign,assignment,misc]
    module.zero_grad()
    loss = module._backward(whole, last=True)
    return loss, {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def in_one_graph(module: Pretraining, whole: Batch, chunk: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The same parts with the same random choices, all in one graph: no cache."""
    module.zero_grad()
    module._begin(whole)
    pieces: dict[str, list[Rows]] = {}
    parts, reads, every = split(whole, chunk), module._cached(), []
    for number, part in enumerate(parts):
        rows: dict[str, Rows] = {}
        for round_, fields in enumerate(reads.rounds):
            torch.manual_seed(SEED + round_ * len(parts) + number)
            rows |= module.encode(part, fields)
        every.append((rows, part))
        for name, one in rows.items():
            pieces.setdefault(name, []).append(one)
    merged = {n: Rows(torch.cat([p.values for p in e]), torch.cat([p.owner for p in e])) for n, e in pieces.items()}
    loss = module.of_batch(merged)
    for number, (rows, part) in enumerate(every):
        torch.manual_seed(SEED + len(reads.rounds) * len(parts) + number)
        of_part = module.of_part(rows, part)
        loss = loss if of_part is None else loss + of_part
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def same_gradient(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> None:
    """To 1e-5 of the whole gradient's length, and of the largest entry in every entry."""
    assert got.keys() >= want.keys()
    largest = max(float(gradient.abs().max()) for gradient in want.values())
    apart = {name: got[name] - gradient for name, gradient in want.items()}
    for name, difference in apart.items():
        assert float(difference.abs().max()) <= 1e-5 * largest, name
    lengths = (sum(float(x.double().square().sum()) for x in each.values()) for each in (apart, want))
    assert next(lengths) <= 1e-10 * next(lengths)


SEED = 77


@pytest.fixture(autouse=True)
def fixed_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no trainer, whose ranks would have to wait."""
    monkeypatch.setattr("pretrain.module._mixed", lambda *_: SEED)
    monkeypatch.setattr("pretrain.module.no_sync", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(Pretraining, "trainer", None)


@pytest.mark.parametrize("chunk", [1, 3, 4])
@pytest.mark.parametrize("centred", ["true", "false"])
def test_the_gradient_is_that_of_one_graph(tiny: Any, chunk: int, centred: str) -> None:
    words = [
        f"train.chunk={chunk}", f"model.centred={centred}", "model.image.token_dropout=0.5",
        'objectives=[{"name": "sentence"}, {"name": "contrastive"}, {"name": "sigmoid"}]',
    ]  # fmt: skip
    module, whole = module_of(tiny, words), batch()
    want_loss, want = in_one_graph(module, whole, chunk)
    loss, got = cached(module, whole)
    torch.testing.assert_close(loss, want_loss, rtol=1e-5, atol=1e-6)
    assert {
        "objectives.3.layer.weight",
        "dual.clip.logit_scale",
        "dual.clip.text.token_embedding.weight",
    } <= want.keys()
    same_gradient(got, want)
    # Without the part's own seed in both passes the gradient would be another one.
    torch.manual_seed(0)
    module.recipe = load_recipe(tiny.recipe, [*words[1:], "train.chunk=null"])
    whole_loss, _ = cached(module, whole)
    assert not torch.allclose(whole_loss, want_loss, rtol=1e-4), "token dropout draws other tokens in one part"


def test_targets_that_follow_labels_are_those_of_the_whole_batch(tiny: Any) -> None:
    every = ["own", "same_label", "same_label_masked", "soft"]
    told = ", ".join(f'{{"name": "contrastive", "positives": "{one}"}}' for one in every)
    module, whole = module_of(tiny, ["train.chunk=3", f"objectives=[{told}]"]), batch()
    want_loss, want = in_one_graph(module, whole, 3)
    loss, got = cached(module, whole)
    torch.testing.assert_close(loss, want_loss, rtol=1e-5, atol=1e-6)
    assert len({round(module.logged[f"loss/contrastive{i}"], 6) for i in range(4)}) == 4
    same_gradient(got, want)


def test_under_autocast_weights_keep_their_gradient(tiny: Any) -> None:
    module, whole = module_of(tiny, ["train.chunk=3"]), batch()
    with torch.autocast("cpu", torch.bfloat16):
        _, got = cached(module, whole)
    with torch.autocast("cpu", torch.bfloat16):
        _, want = in_one_graph(module, whole, 3)
    for name in (
        "dual.clip.visual.trunk.blocks.0.qkv.weight",
        "dual.clip.text.transformer.resblocks.0.attn.in_proj_weight",
    ):
        assert got[name].abs().max() > 0
        torch.testing.assert_close(got[name], want[name], rtol=0.05, atol=0.02 * float(want[name].abs().max()))


def test_features_that_would_fill_memory_are_refused(tiny: Any) -> None:
    module = module_of(tiny, ["train.chunk=2", "train.cache_gib=1e-6"])
    with pytest.raises(ConfigError, match=r"7 studies and their gradients would take [\d.e-]+ GiB, mostly text:units"):
        cached(module, batch())


def test_less_memory_is_kept_for_the_backward_pass(tiny: Any) -> None:
    """Bytes that autograd saves at any one time: those of a part, not of the batch."""
    module, whole = module_of(tiny, ["train.chunk=1"]), batch(16)
    kept = [0, 0]  # now, at most

    def pack(tensor: Tensor) -> Any:
        size = tensor.numel() * tensor.element_size()
        kept[0] += size
        kept[1] = max(kept)
        return _Held(tensor, size, kept)

    peaks = {}
    for chunk in (1, 16):
        module.recipe = load_recipe(tiny.recipe, [f"train.chunk={chunk}"])
        kept[:] = [0, 0]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
            cached(module, whole)
        peaks[chunk] = kept[1]
    assert peaks[1] < peaks[16] / 5


class _Held:
    """A saved tensor that is counted as long as the graph holds it."""

    def __init__(self, tensor: Tensor, size: int, kept: list[int]) -> None:
        self.tensor, self.size, self.kept = tensor, size, kept

    def __del__(self) -> None:
        self.kept[0] -= self.size


def test_what_would_fill_memory_later_is_refused_at_the_start(tiny: Any) -> None:
    """Without dropped tokens at the end of the run; an objective whose time is yet to come."""
    own = "tests.pretrain.test_grad_cache:OfTokens"
    told = f'[{{"name": "contrastive"}}, {{"name": "{own}", "schedule": [[0.5, 1.0]]}}]'
    words = ["train.chunk=2", "model.image.token_dropout=0.5", f"objectives={told}"]
    whole = batch()
    pooled, tokens = 7 * 16, 7 * 8 * module_of(tiny, words).dual.clip.visual.trunk.num_features
    for share, fits in ((0.5, False), (2.0, True)):
        gib = 2 * 4 * (pooled + share * tokens) / 2**30
        module = module_of(tiny, [*words, f"train.cache_gib={gib}"])
        if fits:
            cached(module, whole)
        else:
            with pytest.raises(ConfigError, match=r"mostly image:global\.tokens"):
                cached(module, whole)


class OfMasked(Objective):
    """It would read more than a loss of images against texts may."""

    reads = ("image:global.tokens", "report:masked.states")
    coupling = "image"
    Options = Section


class WithoutImage(Objective):
    """It would score nothing against texts."""

    reads = ("text:units.units",)
    coupling = "pair"
    Options = Section


class WithoutText(Objective):
    """It would score images against nothing."""

    reads = ("image:global.tokens", "labels")
    coupling = "pair"
    Options = Section


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (OfMasked, r"OfMasked of coupling `image` reads report:masked\.states"),
        (WithoutText, "WithoutText of coupling `pair` reads no text"),
        (WithoutImage, "WithoutImage of coupling `pair` reads no image"),
    ],
)
def test_what_losses_of_images_and_texts_may_read(tiny: Any, kind: type[Objective], said: str) -> None:
    recipe = load_recipe(tiny.recipe)
    with pytest.raises(ValueError, match=said):
        Pretraining(recipe, build.build_model(recipe), [*build.build_objectives(recipe), kind(Section())])


def test_nothing_of_a_batch_stays(tiny: Any) -> None:
    told = '[{"name": "contrastive"}, {"name": "hierarchical"}, {"name": "attended", "heads": 2}]'
    for chunk in ("null", "2"):
        module = module_of(tiny, [f"train.chunk={chunk}", f"objectives={told}"])
        cached(module, batch())
        assert module._shared is None and not module._told
