"""Two views of an image and the objectives on them, against loops that spell them out in double precision."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from encoders.features import TextFeatures
from pretrain.decoder import Decoder, steps_of
from pretrain.errors import ConfigError
from pretrain.objectives import find_objective
from pretrain.objectives.base import GlobalBatch, Surroundings
from pretrain.objectives.simclr import SimCLR
from pretrain.passes import Encoders, Rows, split, whole
from pretrain.schema_objectives import InpaintingOptions, RotationOptions, SimCLROptions
from pretrain.views import TwoViews, two_views
from tests.pretrain.test_grad_cache import batch, cached, fixed_seed, in_one_graph, module_of

assert fixed_seed  # a fixture of this module as well
OPTIONS = {"simclr": SimCLROptions(dim=12), "rotation": RotationOptions(), "inpainting": InpaintingOptions()}
NAMES = '{"name": "simclr", "dim": 12}, {"name": "rotation"}, {"name": "inpainting"}'
THREE, FOUR = f"objectives=[{NAMES}]", f'objectives=[{NAMES}, {{"name": "contrastive"}}]'


def seeded(images: Tensor, seed: int = 0, **settings: float) -> TwoViews:
    torch.manual_seed(seed)
    return two_views(images, **{"max_drop": 0.3, "block": 0.25} | settings)


@pytest.mark.parametrize("size", [(8, 12, 12), (20, 20)])
def test_views_are_turned_and_cut(size: tuple[int, ...]) -> None:
    images = torch.randn(6, 2, *size)
    made = seeded(images)
    assert made.images.shape == made.clean.shape == (12, 2, *size) and made.dropped.shape == (12, 1, *size)
    assert set(made.turns.tolist()) == {0, 1, 2, 3}
    for i in range(12):
        assert torch.equal(made.clean[i], torch.rot90(images[i % 6], int(made.turns[i]), (-2, -1)))
        kept = ~made.dropped[i].expand(2, *size)
        assert torch.equal(made.images[i][kept], made.clean[i][kept])
        assert (made.images[i][~kept] != made.clean[i][~kept]).all() and int((~kept).sum()) > 0
    assert not torch.equal(made.dropped[:6], made.dropped[6:])  # two views of a study are two draws


def test_a_plane_that_is_not_square_is_turned_by_half() -> None:
    images = torch.randn(8, 1, 4, 6, 8)
    made = seeded(images)
    assert set(made.turns.tolist()) == {0, 2}
    assert torch.equal(made.clean[0], torch.rot90(images[0], int(made.turns[0]), (-2, -1)))


def test_blocks_cover_as_much_as_was_said() -> None:
    images = torch.zeros(40, 1, 20, 20, 20)
    shares = seeded(images, max_drop=0.4, block=0.5).dropped.float().mean((1, 2, 3, 4))
    assert 0.1 < shares.mean() < 0.3 and shares.max() < 0.4 + 0.125 and shares.min() > 0
    small = seeded(images, max_drop=1e-9, block=0.25).dropped.sum((1, 2, 3, 4))
    assert small.min() >= 1 and small.max() <= 5**3  # one block, its sides at most a quarter


def test_noise_is_of_the_image_and_its_channel() -> None:
    images = torch.randn(1, 2, 24, 24, 24) * torch.tensor([3.0, 0.5]).view(1, 2, 1, 1, 1) + 7
    made = seeded(images, max_drop=0.9, block=0.9)
    for c, deviation in enumerate((3.0, 0.5)):
        noise = made.images[0, c][made.dropped[0, 0]]
        assert noise.mean() == pytest.approx(7, abs=0.3) and noise.std() == pytest.approx(deviation, rel=0.1)


def test_one_seed_gives_one_pair_of_views() -> None:
    images = torch.randn(3, 1, 8, 8, 8)
    a, b, c = seeded(images, 1), seeded(images, 1), seeded(images, 2)
    assert all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("images", "clean", "dropped", "turns"))
    assert not torch.equal(a.images, c.images)


def built(name: str, dual: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    objective = find_objective(name)(OPTIONS[name].model_copy(update=changes))
    objective.attach(Surroundings(dual, ()))
    return objective


class Tower(nn.Module):
    """As much of a dual encoder as `attach` looks at."""

    def __init__(self, width: int = 16, stride: tuple[int, ...] = (2, 4, 4)) -> None:
        super().__init__()
        self.clip = nn.Module()
        self.clip.visual = nn.Module()
        self.clip.visual.trunk = trunk = nn.Module()
        trunk.num_features, trunk.token_stride, trunk.pretrained_cfg = width, stride, {"input_size": (2, 8, 8, 8)}


def of_views(views: Tensor, patients: list[int], reports: list[int], read_texts: bool = False) -> GlobalBatch:
    """A global batch of `views` [2B, C]; study i has report `reports[i]` and a sentence that all share."""
    studies = len(patients)
    samples, units = torch.arange(studies).repeat(2), torch.tensor([*reports, *[9] * studies])
    kind = torch.tensor([0] * 9 + [2], dtype=torch.int8)
    text = told = None
    if read_texts:
        text = TextFeatures(torch.zeros(10, 4), kind, torch.arange(10), samples, units)
    else:
        told = torch.stack([samples, units + 100, kind[units].long()], 1)
    rows = {"image:views.trunk": Rows(views, torch.arange(studies).repeat(2))}
    one = torch.tensor(1.0)
    return GlobalBatch(None, text, torch.tensor(patients), one, None, torch.zeros(studies, 0), (), rows, told_P3=told)


def nt_xent(
    z: list[list[float]], patients: list[int], reports: list[int], temperature: float, ranks: list[int] | None = None
) -> float:
    """SimCLR's loss, view by view, in Python's double precision."""
    studies = len(patients)
    unit = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in z]
    total = 0.0
    for i, row in enumerate(unit):
        s = [math.exp(sum(a * b for a, b in zip(row, other, strict=True)) / temperature) for other in unit]
        me = i % studies
        wanted = s[(i + studies) % (2 * studies)]
        others = [j for j in range(2 * studies) if patients[j % studies] != patients[me]]
        others = [j for j in others if ranks is None or ranks[j % studies] == ranks[me]]
        against = sum(s[j] for j in others if reports[j % studies] != reports[me])
        total -= math.log(wanted / (wanted + against))
    return total / (2 * studies)


@pytest.mark.parametrize("read_texts", [True, False])
@pytest.mark.parametrize(
    ("patients", "reports"),
    [([1, 2, 3, 4, 5], [0, 1, 2, 3, 4]), ([1, 2, 1, 4, 5], [0, 1, 2, 3, 1])],  # 0, 2: a patient; 1, 4: a report
)
@pytest.mark.parametrize("hidden", [None, 7])
def test_simclr(read_texts: bool, patients: list[int], reports: list[int], hidden: int | None) -> None:
    objective = built("simclr", Tower(), hidden=hidden).double()
    views = torch.randn(10, 16, dtype=torch.float64, requires_grad=True)
    views_read = of_views(views, patients, reports, read_texts)
    views_read.rows["image:views.trunk"].values.float = lambda: views  # type: ignore[method-assign]  # keep doubles
    loss, logs = objective(views_read)
    assert loss.item() == pytest.approx(
        nt_xent(objective.head(views).detach().tolist(), patients, reports, 0.5), rel=1e-10
    )
    loss.backward()
    assert views.grad is not None and views.grad.abs().amax(1).min() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in objective.parameters())
    assert 0 <= float(logs["accuracy"]) <= 1


@pytest.mark.parametrize(("gather", "exclude"), [(True, False), (False, True), (False, False)])
def test_simclr_as_published(gather: bool, exclude: bool) -> None:
    """Negatives of one rank; every other study a negative."""
    patients, reports, ranks = [1, 2, 1, 4, 5], [0, 1, 2, 3, 1], [0, 0, 0, 1, 1]
    objective = built("simclr", Tower(), gather=gather, exclude_related=exclude).double()
    views = torch.randn(10, 16, dtype=torch.float64)
    views_read = replace(of_views(views, patients, reports), counts=(3, 2))
    views_read.rows["image:views.trunk"].values.float = lambda: views  # type: ignore[method-assign]  # keep doubles
    want = nt_xent(
        objective.head(views).detach().tolist(), patients if exclude else list(range(5)),
        reports if exclude else list(range(5)), 0.5, None if gather else ranks,
    )  # fmt: skip
    assert objective(views_read)[0].item() == pytest.approx(want, rel=1e-10)


def test_views_that_are_alike_are_found() -> None:
    objective = built("simclr", Tower())
    one = torch.eye(5, 16) * 10
    with torch.no_grad():
        loss, logs = objective(of_views(torch.cat([one, one]), [1, 2, 3, 4, 5], [0, 1, 2, 3, 4]))
        other, few = objective(of_views(torch.cat([one, one.roll(1, 0)]), [1, 2, 3, 4, 5], [0, 1, 2, 3, 4]))
    assert float(logs["accuracy"]) == 1 and float(few["accuracy"]) == 0 and loss < other


def test_rotation() -> None:
    objective = built("rotation", Tower()).double()
    trunk, turns = torch.randn(6, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 3, 1])
    rows = {f"image:views.{f}": Rows(v, torch.arange(3).repeat(2)) for f, v in (("trunk", trunk), ("turns", turns))}
    loss, logs = objective.each(rows, whole(batch(3)))
    want, right = 0.0, 0
    for logits, turn in zip(objective.head(trunk).tolist(), turns.tolist(), strict=True):
        want += math.log(sum(math.exp(v) for v in logits)) - logits[turn]
        right += logits.index(max(logits)) == turn
    assert loss.item() == pytest.approx(want / 2, rel=1e-6) and logs["accuracy"].item() == right / 2


@pytest.mark.parametrize("over", ["dropped", "all"])
def test_inpainting(over: str) -> None:
    objective = built("inpainting", Tower(), over=over).double()
    grid, size = (2, 3, 2), (4, 12, 8)
    tokens = torch.randn(4, 12, 16, dtype=torch.float64)
    clean, dropped = torch.randn(4, 2, *size, dtype=torch.float64), torch.rand(4, 1, *size) < 0.3
    owner = torch.arange(2).repeat(2)
    rows = {
        "image:views.tokens": Rows(tokens, owner, grid), "image:views.clean": Rows(clean, owner),
        "image:views.dropped": Rows(dropped, owner),
    }  # fmt: skip
    loss, _ = objective.each(rows, whole(batch(2)))
    made, want = objective.decoder(tokens, grid), 0.0
    for i in range(4):
        errors = [
            abs(float(made[i, c, d, h, w] - clean[i, c, d, h, w]))
            for c in range(2) for d in range(4) for h in range(12) for w in range(8)
            if over == "all" or dropped[i, 0, d, h, w]
        ]  # fmt: skip
        want += sum(errors) / len(errors)
    assert loss.item() == pytest.approx(want / 2, rel=1e-5)
    broken = {**rows, "image:views.tokens": Rows(tokens, owner, None)}
    with pytest.raises(ConfigError, match="do not cover"):
        objective.each(broken, whole(batch(2)))


@pytest.mark.parametrize(
    ("stride", "steps"),
    [
        ((8, 16, 16), [(2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)]),
        ((14, 14), [(2, 2), (7, 7)]),
        ((7, 7, 7), [(7, 7, 7)]),
        ((32, 32, 32), [(2, 2, 2)] * 5),
    ],
)
def test_the_decoder_puts_every_token_in_its_place(stride: tuple[int, ...], steps: list[tuple[int, ...]]) -> None:
    assert steps_of(stride) == steps
    decoder = Decoder(16, 3, stride)
    grid = (2, 1, 3)[-len(stride) :]
    tokens = torch.randn(1, math.prod(grid), 16)
    changed = tokens.clone()
    changed[0, -1] += 1  # the last place of the grid
    with torch.no_grad():
        moved = (decoder(tokens, grid) != decoder(changed, grid)).flatten(0, 1).any(0)
    assert tuple(moved.shape) == decoder.size_of(grid)
    want = torch.zeros_like(moved)
    want[tuple(slice(s * (g - 1), None) for s, g in zip(stride, grid, strict=True))] = True
    assert torch.equal(moved, want)


@pytest.mark.parametrize("chunk", [2, 7])
def test_in_parts_as_in_one_graph(tiny: Any, chunk: int) -> None:
    """And all heads and the tower get a gradient."""
    module, batch_ = module_of(tiny, [f"train.chunk={chunk}", "model.image.token_dropout=0.0", FOUR]), batch()
    want_loss, want = in_one_graph(module, batch_, chunk)
    loss, got = cached(module, batch_)
    torch.testing.assert_close(loss, want_loss, rtol=1e-5, atol=1e-6)
    for name in (
        "objectives.0.head.0.weight", "objectives.1.head.weight", "objectives.2.decoder.layers.0.weight",
        "dual.clip.visual.trunk.blocks.0.qkv.weight",
    ):  # fmt: skip
        assert want[name].abs().max() > 0
    for name, gradient in want.items():
        atol = 1e-5 * float(gradient.abs().max() + 1)
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=atol, msg=name)


@pytest.mark.parametrize("name", OPTIONS)
def test_each_alone_reaches_the_tower(tiny: Any, name: str) -> None:
    module = module_of(tiny, ["model.image.token_dropout=0.0", f'objectives=[{{"name": "{name}"}}]'])
    own, added = module.sections
    module.sections = (own, added.model_copy(update={"weight": 0.0}))  # that which `module_of` adds
    module.zero_grad()
    module.compute(batch(3)).backward()
    reached = {n for n, p in module.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert "dual.clip.visual.trunk.blocks.0.mlp.0.weight" in reached and any("objectives.0." in n for n in reached)
    assert not any("clip.text" in n for n in reached)


def test_the_tower_runs_once_for_all_three(tiny: Any) -> None:
    module = module_of(tiny, ["model.image.token_dropout=0.0", THREE])
    calls: list[int] = []
    module.dual.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    module.encoders = Encoders(list(module.objectives)[:3])
    for part in split(batch(4), 2):
        module.encoders(module.dual, part)
    assert calls == [4, 4]  # two views of the two studies of a part


def test_other_views_under_the_same_name_are_refused() -> None:
    pair = [built("simclr", Tower()), built("rotation", Tower(), max_drop=0.1)]
    with pytest.raises(ValueError, match="two different passes are offered as 'image:views'"):
        Encoders(pair)


def test_a_tower_without_features_is_refused() -> None:
    dual = Tower()
    del dual.clip.visual.trunk
    for name in OPTIONS:
        with pytest.raises(ConfigError, match=f"objective {name}: this image tower gives neither"):
            built(name, dual)
    dual = Tower()
    del dual.clip.visual.trunk.token_stride
    with pytest.raises(ConfigError, match="does not say how many voxels"):
        built("inpainting", dual)


def test_they_are_found_by_name() -> None:
    assert find_objective("simclr") is SimCLR
