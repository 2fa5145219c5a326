"""Groups, schedule, accumulation, average and clamp: what an update is."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from pretrain import build, studies
from pretrain.config import load_recipe
from pretrain.module import Pretraining
from pretrain.optim import clipped, learning_rate, optimizers, parameter_groups, undecayed
from pretrain.schema import OptimSection, Recipe


def module_of(recipe: Recipe) -> Pretraining:
    """As a run makes it, with its weights at birth."""
    torch.manual_seed(recipe.seed)
    return Pretraining(recipe, build.build_model(recipe), build.build_objectives(recipe))


def recipe_of(runs: Any, **overrides: Any) -> Recipe:
    return load_recipe(str(runs.recipe), runs.argv("x", **overrides)[2:])


def test_norms_biases_embeddings_and_temperatures_do_not_decay(tiny: Any) -> None:
    module = module_of(recipe_of(tiny, optim__weight_decay=0.1))
    names = {id(p): name for name, p in module.named_parameters()}
    groups = parameter_groups(module, module.recipe.optim)
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert set(decay) == {n for n, p in module.named_parameters() if p.requires_grad}
    assert {n for n, d in decay.items() if d} == {
        n for n, p in module.named_parameters()
        if p.ndim > 1 and not n.endswith(("embedding", "token_embedding.weight", "cls_token", "pos_embed"))
    }  # fmt: skip
    assert decay["dual.clip.visual.trunk.blocks.0.qkv.weight"] == 0.1
    assert decay["dual.clip.text.text_projection"] == 0.1
    for name in ("dual.clip.logit_scale", "dual.clip.text.positional_embedding", "objectives.0.logit_bias"):
        assert decay[name] == 0


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", "swin_tiny_patch4_window7_224"])
def test_towers_from_timm_keep_their_own_rules(name: str) -> None:
    tower = timm.create_model(name, pretrained=False)
    free = undecayed(tower)
    assert set(getattr(tower, "no_weight_decay", set)()) <= free
    for parameter, p in tower.named_parameters():
        if p.ndim < 2:
            assert parameter in free
    assert any(p.ndim > 1 and n not in free for n, p in tower.named_parameters())


def test_a_query_projection_decays_though_a_learned_query_does_not() -> None:
    """Hugging Face calls a matrix of every block `attention.self.query.weight`."""
    tower = nn.ModuleDict({"self": nn.ModuleDict({"query": nn.Linear(3, 3)}), "words": nn.Embedding(4, 3)})
    tower.register_parameter("query", nn.Parameter(torch.zeros(1, 1, 3)))
    assert undecayed(tower) == {"query", "self.query.bias", "words.weight"}


def test_gradients_are_clipped_as_torch_clips_them() -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 2), (5,), (1,))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    for a, b in zip(ours[:2], theirs[:2], strict=True):  # the third has none
        a.grad = torch.randn_like(a)
        b.grad = a.grad.clone()
    for bound in (0.5, math.inf):
        assert clipped(ours, bound) == float(nn.utils.clip_grad_norm_(theirs, bound))
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours[:2], theirs[:2], strict=True))


def test_the_rate_rises_in_a_line_and_falls_in_a_cosine() -> None:
    optim = OptimSection(lr=1e-3, warmup_steps=10, final_lr_fraction=0.1)
    rates = [learning_rate(step, 110, optim) for step in range(110)]
    assert rates[:10] == pytest.approx([1e-4 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(1e-3)
    assert rates[60] == pytest.approx(1e-3 * (0.1 + 0.9 * 0.5))
    assert rates[109] == pytest.approx(1e-3 * (0.1 + 0.45 * (1 + math.cos(math.pi * 0.99))))
    assert learning_rate(110, 110, optim) == pytest.approx(1e-4)
    assert learning_rate(0, 5, OptimSection(lr=1.0)) == 1.0


def test_each_part_moves_at_its_own_rate(tiny: Any) -> None:
    """Adam's first step moves every weight by the rate, whatever the gradient."""
    factors = {"image": 0.1, "text": 0.5, "heads": 2.0}
    changes = {"lr_multipliers": factors, "weight_decay": 0.0, "warmup_steps": 0, "eps": 1e-20}
    changes = {f"optim__{key}": value for key, value in changes.items()}
    before = module_of(recipe_of(tiny, **changes)).dual.clip.state_dict()
    assert tiny("run", train__steps=1, **changes) == 0
    moved = {name: float((value - before[name]).abs().max()) for name, value in tiny.weights("run").items()}
    assert moved["visual.trunk.blocks.0.qkv.weight"] == pytest.approx(1e-4, rel=1e-3)
    assert moved["text.transformer.resblocks.0.attn.in_proj_weight"] == pytest.approx(5e-4, rel=1e-3)
    assert moved["visual.head.proj.weight"] == pytest.approx(2e-3, rel=1e-3)
    assert moved["text.text_projection"] == pytest.approx(2e-3, rel=1e-3)
    assert moved["logit_scale"] == pytest.approx(2e-3, rel=1e-3)


def test_muon_takes_the_matrices_and_leaves_the_rest(tiny: Any) -> None:
    recipe = recipe_of(tiny, optim__muon=20.0, optim__lr=1e-3, optim__lr_multipliers={"image": 0.5})
    module = module_of(recipe)
    adam, muon = optimizers(module, recipe.optim, fused=True)
    assert (type(adam), type(muon)) == (torch.optim.AdamW, torch.optim.Muon)
    names = {id(p): n for n, p in module.named_parameters()}
    plain, flat = ({names[id(p)] for g in o.param_groups for p in g["params"]} for o in (adam, muon))
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    assert plain | flat == trained and not plain & flat
    kept = undecayed(module)
    assert flat == {n for n, p in module.named_parameters() if p.requires_grad and p.ndim == 2 and n not in kept}
    assert "dual.clip.text.token_embedding.weight" in plain and "dual.clip.visual.trunk.blocks.0.qkv.weight" in flat
    (image,) = {g["lr_factor"] for g in muon.param_groups if g["name"].startswith("image")}
    assert image * recipe.optim.lr == pytest.approx(0.5 * 2e-2)


def test_accumulated_batches_are_the_mean_of_their_losses_exactly(tiny: Any) -> None:
    """Not a batch of twice the size: each batch is contrasted within itself."""
    changes = {"optim__accumulate": 2, "optim__warmup_steps": 0, "model__image__token_dropout": 0.0, "train__steps": 1}
    assert tiny("run", **changes) == 0
    recipe = recipe_of(tiny, **changes)
    module = module_of(recipe).train()
    (optimizer,) = optimizers(module, recipe.optim, fused=True)
    stream = build.training_stream(recipe, studies.build_data(recipe), build.tokenizer(recipe), 0, 1, 0)
    assert len(stream) == 2
    for batch in stream:
        (module.compute(batch) / 2).backward()
    nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
    optimizer.step()
    by_hand, trained = module.dual.clip.state_dict(), tiny.weights("run")
    assert all(torch.equal(by_hand[name], value) for name, value in trained.items())


def test_the_average_follows_the_weights(tiny: Any, task_file: Path) -> None:
    kept = {"evaluate__task": str(task_file), "evaluate__every_steps": 1, "checkpoint__keep_top": 9}
    assert tiny("run", optim__ema_decay=0.75, train__steps=4, **kept) == 0
    average: dict[str, torch.Tensor] = {}
    for step in range(1, 5):
        folder = tiny.checkpoint("run", f"step-{step:08d}")
        trained = torch.load(folder / "trainer.ckpt", weights_only=True)["trained"]
        average = {n: v if step == 1 else 0.75 * average[n] + 0.25 * v for n, v in trained.items()}
        released = tiny.weights("run", folder.name)
        assert released.keys() == average.keys()
        for name, value in released.items():
            torch.testing.assert_close(value, average[name], rtol=1e-5, atol=1e-7)


def test_the_temperature_stays_below_a_hundred(troubled: Any, trouble: Callable[..., None]) -> None:
    trouble(push_scale=True)
    assert troubled("run", optim__lr=0.5, optim__warmup_steps=0, optim__clip_norm=None) == 0
    assert float(troubled.weights("run")["logit_scale"]) == pytest.approx(math.log(100), abs=1e-6)


def test_a_temperature_that_nothing_reads_stays_where_it_is(make_fit: Any, tmp_path: Path) -> None:
    runs = make_fit(tmp_path, objectives=[{"name": "sentence"}])
    assert runs("run", train__steps=3) == 0
    assert float(runs.weights("run")["logit_scale"]) == pytest.approx(math.log(1 / 0.07))
