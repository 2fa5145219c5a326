"""`masked_image` and `distillation`: against loops in float64, in parts, and through a stopped run; the finish."""

from __future__ import annotations

import copy
import dataclasses
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from encoders.tag import parse_tag
from pretrain.config import load_recipe
from pretrain.errors import ConfigError
from pretrain.objectives.base import GlobalBatch, Surroundings
from pretrain.objectives.distillation import STUDENT, TEACHER, Distillation
from pretrain.objectives.masked_image import MaskedImage, at, others
from pretrain.passes import Part, Rows
from pretrain.schema_objectives import DistillationOptions, MaskedImageOptions
from pretrain.token_dropout import token_dropout
from tests.pretrain.test_grad_cache import batch, cached, fixed_seed, in_one_graph, module_of

assert fixed_seed  # a fixture of every test here as well
IMAGE = {"name": "voxvit_tiny.p-8x8x16_i-16x32x32_c-1_a-slice3_l-1", "token_dropout": 0.5}
OBJECTIVES = 'objectives=[{"name": "contrastive"}, {"name": "masked_image", "width": 96}, {"name": "distillation"}]'
WORDS = [f"model.image.name={IMAGE['name']}", OBJECTIVES]
GRID = (2, 4, 2)


def module(tiny: Any, *words: str) -> Any:
    return module_of(tiny, [*WORDS, *words])


def objective(found: Any, kind: type) -> Any:
    return next(o for o in found.objectives if isinstance(o, kind))


def spelt_out_target(image: Tensor, place: int, normalise: bool) -> list[float]:
    """The voxels of a patch, one at a time."""
    z, y, x = place // 8, place // 2 % 4, place % 2
    voxels = [float(image[0, 8 * z + i, 8 * y + j, 16 * x + k]) for i in range(8) for j in range(8) for k in range(16)]
    if not normalise:
        return voxels
    mean = sum(voxels) / len(voxels)
    variance = sum((v - mean) ** 2 for v in voxels) / len(voxels)
    return [(v - mean) / math.sqrt(variance + 1e-4) for v in voxels]


def spelt_out_position(place: int, width: int) -> list[float]:
    each, out = width // 6, []
    for p in (place // 8, place // 2 % 4, place % 2):
        for f in (math.sin, math.cos):
            out += [f(p / 10_000 ** (i / each)) for i in range(each)]
    return out


@pytest.mark.parametrize("normalise", [True, False])
def test_masked_image_is_the_error_over_the_dropped_patches(tiny: Any, normalise: bool) -> None:
    found = module(tiny)
    one = MaskedImage(MaskedImageOptions(width=96, blocks=2, normalise=normalise))
    one.attach(Surroundings(found.dual, ()))
    one.double()
    whole = batch(3)
    tokens = torch.randn(3, 8, 192, dtype=torch.float64)
    kept = torch.stack(
        [torch.randperm(16, generator=torch.Generator().manual_seed(i))[:8].sort().values for i in range(3)]
    )
    part = Part(whole, slice(0, 3), slice(0, 0))
    owner = torch.arange(3)
    loss, _ = one.each({"image:global.tokens": Rows(tokens, owner), "image:global.kept": Rows(kept, owner)}, part)
    want = 0.0
    decoder = one.decoder
    for i in range(3):
        at_place = dict(zip(kept[i].tolist(), tokens[i], strict=True))
        sequence = [
            (decoder.enter(at_place[p]) if p in at_place else decoder.mask_token[0, 0])
            + torch.tensor(spelt_out_position(p, 96), dtype=torch.float64)
            for p in range(16)
        ]
        x = torch.stack(sequence)[None]
        for block in decoder.blocks:
            x = block(x, None, 1)
        errors = []
        for p in set(range(16)) - set(at_place):
            voxels = decoder.leave(decoder.norm(x[0, p])).tolist()
            aimed = spelt_out_target(part.images[i], p, normalise)
            errors.append(sum((a - b) ** 2 for a, b in zip(voxels, aimed, strict=True)) / len(aimed))
        want += sum(errors) / len(errors)
    assert float(loss.detach()) == pytest.approx(want, rel=1e-6)  # positions are fp32


def test_a_flat_window_is_nothing_to_predict(tiny: Any) -> None:
    from pretrain.objectives.masked_image import patches

    image = torch.full((1, 1, 16, 32, 32), -1.0)
    assert float(patches(image, (8, 8, 16), True).abs().max()) == 0.0


def test_gradients_reach_the_tower_and_what_is_dropped_is_not_seen(tiny: Any) -> None:
    found, whole = module(tiny), batch(3)
    found._begin(whole)

    def encoded(images: Tensor) -> tuple[Part, dict[str, Rows]]:
        part = Part(dataclasses.replace(whole, images_BCDHW=images), slice(0, 3), slice(0, 0))
        torch.manual_seed(0)  # the same tokens are dropped
        return part, found.encoders(found.dual, part)

    part, rows = encoded(whole.images_BCDHW)
    tokens, kept = rows["image:global.tokens"].values, rows["image:global.kept"].values
    dropped = others(kept, 16)
    assert dropped.shape == (3, 8)
    assert torch.equal(torch.cat([dropped, kept], 1).sort(1).values, torch.arange(16).expand(3, 16))
    assert torch.equal(
        at(dropped[..., None].float(), torch.zeros(3, 1, dtype=torch.long))[:, 0, 0], dropped[:, 0].float()
    )
    for places, same in ((dropped, True), (kept, False)):
        noisy = whole.images_BCDHW.clone()
        for i, row in enumerate(places.tolist()):
            for place in row:
                z, y, x = 8 * (place // 8), 8 * (place // 2 % 4), 16 * (place % 2)
                noisy[i, :, z : z + 8, y : y + 8, x : x + 16] = torch.randn(8, 8, 16)
        _, seen = encoded(noisy)
        assert torch.equal(seen["image:global.kept"].values, kept)
        assert torch.equal(seen["image:global.tokens"].values, tokens) is same
    one = objective(found, MaskedImage)
    one.each(rows, part)[0].backward()
    reached = {name for name, p in found.named_parameters() if p.grad is not None and float(p.grad.abs().max()) > 0}
    assert {
        "dual.clip.visual.trunk.patch_embed.0.weight", "dual.clip.visual.trunk.blocks.0.qkv.weight",
        "objectives.1.decoder.mask_token", "objectives.1.decoder.leave.weight",
    } <= reached  # fmt: skip
    assert not any("text" in name for name in reached)


def test_distillation_is_the_cosine_to_the_centred_teacher(tiny: Any) -> None:
    one = Distillation(DistillationOptions(width=8))
    one.attach(Surroundings(module(tiny).dual, ()))
    exact = copy.deepcopy(one.predictor).double()
    centre, total = [0.0] * 192, 0.0
    for n in range(3):
        student, teacher = torch.randn(2, 4, 192, generator=torch.Generator().manual_seed(n))
        student.requires_grad_()
        owner = torch.arange(4)
        rows = {STUDENT: Rows(student, owner), TEACHER: Rows(teacher, owner)}
        none = torch.zeros(0)
        loss, _ = one(GlobalBatch(None, None, owner, none, None, torch.zeros(4, 0), (), rows))
        new = max(0.1, 1 / (n + 1))
        mean = [sum(float(t[j]) for t in teacher) / 4 for j in range(192)]
        centre = [(1 - new) * c + new * m for c, m in zip(centre, mean, strict=True)]
        total = 0.0
        for z, t in zip(student, teacher, strict=True):
            q = exact(z.double()).tolist()
            aim = [float(v) - c for v, c in zip(t, centre, strict=True)]
            dot = sum(a * b for a, b in zip(q, aim, strict=True))
            total += 2 - 2 * dot / math.sqrt(sum(a * a for a in q) * sum(b * b for b in aim))
        assert float(loss.detach()) == pytest.approx(total / 4, rel=1e-5)
    loss.backward()
    assert student.grad is not None and float(student.grad.abs().amax(1).min()) > 0
    assert float(one.predictor[0].weight.grad.abs().max()) > 0
    assert all(not p.requires_grad for p in one.teacher.parameters())


def test_the_teacher_sees_every_token_and_follows_the_student(tiny: Any) -> None:
    found = module(tiny, "train.steps=8")
    one, trunk = objective(found, Distillation), found.dual.clip.visual.trunk
    found.train()
    assert trunk.training and not one.teacher.trunk.training
    images = batch(3).images_BCDHW
    trunk.eval()
    with torch.no_grad():
        assert torch.equal(one.teacher(images), trunk(images))
        trunk.train()
        assert not torch.allclose(one.teacher(images), trunk(images), atol=1e-3)
        before = one.teacher.trunk.norm.weight.clone()
        trunk.norm.weight += 1.0
    for step in (0, 4):
        found.batches_done = step
        keep = 1 - (1 - 0.99) * (math.cos(math.pi * step / 8) + 1) / 2
        one.after_step(found)
        want = keep * before + (1 - keep) * trunk.norm.weight
        torch.testing.assert_close(one.teacher.trunk.norm.weight, want)
        before = want.detach()


@pytest.mark.parametrize("chunk", [1, 3])
def test_in_parts_the_gradient_is_that_of_one_graph_and_the_teacher_reads_once(tiny: Any, chunk: int) -> None:
    found, whole = module(tiny, f"train.chunk={chunk}"), batch()
    one = objective(found, Distillation)
    want_loss, want = in_one_graph(found, whole, chunk)
    one.centre_C.zero_(), one.seen.zero_()
    seen: list[int] = []
    one.teacher.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    loss, got = cached(found, whole)
    seen.clear()  # before the first batch a part was looked at alone, to say how much memory all of them take
    state = one.centre_C.clone(), one.seen.clone()
    cached(found, whole)
    assert sum(seen) == len(whole)
    one.centre_C, one.seen = state
    torch.testing.assert_close(loss, want_loss, rtol=1e-5, atol=1e-6)
    assert {"objectives.1.decoder.mask_token", "objectives.2.predictor.0.weight"} <= want.keys() == got.keys()
    for name, gradient in want.items():
        scale = float(gradient.abs().max() + 1)
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name)


def test_steps_without_dropout_cost_nothing_and_touch_everything(tiny: Any) -> None:
    found, whole = module(tiny), batch(2)
    found.dual.clip.visual.trunk.token_dropout = 0.0
    found._begin(whole)
    part = Part(whole, slice(0, 2), slice(0, 0))
    one = objective(found, MaskedImage)
    loss, _ = one.each(found.encoders(found.dual, part), part)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(p.grad is not None and float(p.grad.abs().max()) == 0.0 for p in one.parameters())


def test_the_finish_is_the_last_share_of_the_steps(tiny: Any) -> None:
    recipe = load_recipe(tiny.recipe, ["train.steps=20", "model.image.token_dropout_finish=0.1"])
    assert [token_dropout(recipe, step) for step in range(20)] == [0.5] * 18 + [0.0] * 2
    recipe = load_recipe(tiny.recipe, ["train.steps=20"])
    assert {token_dropout(recipe, step) for step in range(20)} == {0.5}


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("model.image.token_dropout=0", "masked_image predicts the patches that token dropout took"),
        ("model.image.token_dropout=0", "distillation compares a tower that drops tokens"),
        ("model.image.name=voxvit_tiny.p-8x8x16_i-16x32x32_c-1_o-grid", "o-grid puts zeros"),
        ("model.image.name=voxvit_tiny.p-8x8x16_i-16x32x32_c-1_s-conv", "s-conv works over the whole volume"),
        ("model.image.name=voxvit_tiny.p-8x8x16_i-16x32x32_c-1_s-extremes", "every kept token has seen them"),
    ],
)
def test_recipes_that_cannot_learn_so_are_refused(tiny: Any, word: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_recipe(tiny.recipe, [*WORDS, word])


def test_a_finish_of_no_dropout_is_refused(tiny: Any) -> None:
    with pytest.raises(ConfigError, match=r"token_dropout_finish .*\n  would be ignored"):
        load_recipe(tiny.recipe, ["model.image.token_dropout=0", "model.image.token_dropout_finish=0.1"])


def test_towers_that_drop_nothing_are_refused(tiny: Any) -> None:
    found = module(tiny)
    found.dual.clip.visual.trunk.tag = parse_tag("voxvit_tiny.p-8x8x16_i-16x32x32_c-1_s-conv")
    with pytest.raises(ConfigError, match="s-conv works over the whole volume"):
        MaskedImage(MaskedImageOptions()).attach(Surroundings(found.dual, ()))
    found.dual.clip.visual.trunk = torch.nn.Identity()
    with pytest.raises(ConfigError, match="does not give the tokens that token dropout leaves"):
        MaskedImage(MaskedImageOptions()).attach(Surroundings(found.dual, ()))
    del found.dual.clip.visual.trunk
    with pytest.raises(ConfigError, match="does not give its features before the projection"):
        Distillation(DistillationOptions()).attach(Surroundings(found.dual, ()))


def test_a_stopped_run_goes_on_with_teacher_centre_and_finish(
    make_fit: Callable[..., Any], tmp_path: Path, trouble: Callable[..., None], equal: Any
) -> None:
    runs = make_fit(
        tmp_path,
        model={"image": IMAGE | {"token_dropout_finish": 0.3}},
        objectives=[
            {"name": "trouble:Trouble"}, {"name": "contrastive"}, {"name": "masked_image", "width": 96},
            {"name": "distillation", "momentum": 0.5},
        ],
        optim={"accumulate": 2},
        train={"steps": 6},
    )  # fmt: skip
    trouble()
    assert runs("whole") == 0
    trouble(signal_at=5, signal=int(signal.SIGTERM))
    assert runs("stopped") == 143
    trouble()
    assert runs.resume("stopped") == 0
    assert equal(runs.weights("stopped"), runs.weights("whole"))
    assert runs.metrics("stopped") == runs.metrics("whole")
    own = [
        torch.load(runs.checkpoint(name) / "trainer.ckpt", weights_only=True)["objectives"]
        for name in ("stopped", "whole")
    ]
    assert equal(*own)
    assert float(own[0]["3.seen"]) == 12 and float(own[0]["3.centre_C"].abs().max()) > 0
    student = runs.weights("whole")["visual.trunk.blocks.0.qkv.weight"]
    assert not torch.equal(own[0]["3.teacher.trunk.blocks.0.qkv.weight"], student)
    dropped = [line.split(",")[2] for line in runs.metrics("whole") if ",token_dropout," in line]
    assert dropped == ["0.5", "0"]  # after the first step and the last
    masked = [float(line.split(",")[2]) for line in runs.metrics("whole") if ",loss/masked_image," in line]
    assert masked[0] > 0.1 and masked[-1] == 0.0
