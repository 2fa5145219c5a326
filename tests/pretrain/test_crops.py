"""Crops with known places, and the objectives on pairs of views, against loops in double precision."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from pretrain import build
from pretrain.config import load_recipe
from pretrain.crops import Boxes, by_view, cut, draw_boxes, images_of, jittered, pairs_of_views, try_small
from pretrain.errors import ConfigError
from pretrain.module import Pretraining
from pretrain.objectives import find_objective
from pretrain.objectives.base import GlobalBatch, Surroundings
from pretrain.passes import Part, Rows
from pretrain.schema_objectives import BarlowTwinsOptions, BYOLOptions, CropOptions, SimCLROptions, VICRegOptions
from tests.pretrain.test_grad_cache import cached, fixed_seed, in_one_graph
from tests.pretrain.test_views import Tower, nt_xent, of_views
from tests.pretrain.two_ranks import ranks_and_one

assert fixed_seed  # a fixture of this module as well
STUDIES, WIDTH = 6, 5
PAIRS: dict[str, Any] = {
    "vicreg": VICRegOptions(views="crops", dim=4, hidden=7),
    "barlow_twins": BarlowTwinsOptions(views="crops", dim=4, hidden=7),
    "byol": BYOLOptions(views="crops", dim=4, hidden=7),
}
ALL = ("simclr", *PAIRS, "graph_matching")


def boxes(*rows: tuple[float, float, float, float, bool]) -> Boxes:
    return Boxes(*(torch.tensor(column) for column in zip(*rows, strict=True)))


def test_a_crop_is_that_part_of_the_image_and_says_where_it_lies() -> None:
    """Of an image whose pixels are their own coordinates."""
    y, x = torch.meshgrid((torch.arange(64) + 0.5) / 64, (torch.arange(48) + 0.5) / 48, indexing="ij")
    image = torch.stack([y, x])[None]
    told = boxes((0.25, 0.125, 0.5, 0.5, False), (0.0, 0.5, 0.5, 0.25, True), (0.0, 0.0, 1.0, 1.0, False))
    crops = cut(image.expand(3, -1, -1, -1), told, (16, 24))
    places = told.places((16, 24)).unflatten(1, (16, 24)).permute(0, 3, 1, 2)
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # at the border of the image pixels repeat
    torch.testing.assert_close(crops[inside], places[inside], atol=1e-4, rtol=0)
    assert crops[1, 1, 0, 0] > crops[1, 1, 0, -1]  # mirrored
    torch.testing.assert_close(cut(image, boxes((0.0, 0.0, 1.0, 1.0, False)), (64, 48)), image, atol=1e-5, rtol=0)


def test_boxes_are_as_large_as_was_said_and_inside() -> None:
    torch.manual_seed(0)
    found = draw_boxes(2000, (0.1, 0.5), 0.25, torch.device("cpu"))
    area = found.height * found.width
    assert 0.07 < area.min() < 0.12 and 0.48 < area.max() < 0.501 and 0.27 < area.mean() < 0.32
    assert (found.top >= 0).all() and (found.top + found.height <= 1.0001).all()
    assert (found.left >= 0).all() and (found.left + found.width <= 1.0001).all()
    aspect = found.width / found.height
    assert aspect.min() > 0.74 and aspect.max() < 1.34 and 0.2 < found.mirrored.float().mean() < 0.3


def test_jitter_and_blur() -> None:
    images = torch.randn(40, 3, 32, 32) * 0.5 + 2
    torch.testing.assert_close(jittered(images, 0.0, 0.0), images)
    changed = jittered(images, 0.4, 0.0)
    gain = changed.std((1, 2, 3)) / images.std((1, 2, 3))
    assert gain.min() < 0.8 and gain.max() > 1.2 and (changed.mean((1, 2, 3)) - 2).abs().max() < 0.3
    blurred = jittered(images, 0.0, 1.0)
    torch.testing.assert_close(blurred.mean((2, 3)), images.mean((2, 3)), atol=0.05, rtol=0)
    assert (blurred.std((2, 3)).mean() < images.std((2, 3)).mean()) and blurred.shape == images.shape


def part_of(images: Tensor) -> Part:
    class Batch:
        images_BCDHW = images

    return Part(Batch(), slice(1, 4), slice(0, 0))  # type: ignore[arg-type]


def test_small_crops_are_of_another_size_and_one_seed_gives_one_set() -> None:
    part = part_of(torch.randn(5, 3, 32, 24))
    told = CropOptions(small=3, small_size=16)
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(list(images_of(part, told)))
    (large, owner, _), (small, others, where) = made[0]
    assert large.shape == (6, 3, 32, 24) and small.shape == (9, 3, 16, 16)
    assert owner.tolist() == [1, 2, 3] * 2 and others.tolist() == [1, 2, 3] * 3
    assert (where.height * where.width).max() <= 0.41
    assert torch.equal(made[0][0][0], made[1][0][0]) and not torch.equal(made[0][0][0], made[2][0][0])


def test_views_are_sorted_by_study_whatever_parts_they_came_from() -> None:
    values = torch.arange(12.0)
    rows = Rows(values, torch.tensor([0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3]))  # two parts of two studies, three views
    assert by_view(rows).tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    assert pairs_of_views(2) == [(0, 1)] and pairs_of_views(4) == [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3)]


def built(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    one = find_objective(name)(PAIRS[name].model_copy(update=changes))
    one.attach(Surroundings(Tower(width=WIDTH, stride=(4, 4)), ()))  # type: ignore[arg-type]
    return one.double()


def rows_of(views: Tensor, name: str) -> dict[str, Rows]:
    """Of views [v, B, C]; `float` keeps doubles."""
    flat = views.flatten(0, 1)
    return {name: Rows(flat, torch.arange(views.shape[1]).repeat(views.shape[0]))}


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objectives compute in fp32; in these tests they keep what they are given."""
    monkeypatch.setattr(Tensor, "float", lambda self: self if self.dtype == torch.float64 else self.to(torch.float32))


def global_batch(rows: dict[str, Rows]) -> GlobalBatch:
    one = torch.tensor(1.0)
    return GlobalBatch(None, None, torch.arange(STUDIES), one, None, torch.zeros(STUDIES, 0), (), rows)


def spelt_out_head(head: Any, x: Tensor) -> list[list[float]]:
    """A projector on one view, layer by layer, BatchNorm over the studies of the batch."""
    rows = x.detach().tolist()
    for layer in head:
        if isinstance(layer, torch.nn.Linear):
            weight, bias = layer.weight.tolist(), layer.bias.tolist() if layer.bias is not None else None
            rows = [
                [
                    sum(w * v for w, v in zip(ws, row, strict=True)) + (bias[j] if bias else 0)
                    for j, ws in enumerate(weight)
                ]
                for row in rows
            ]
        elif isinstance(layer, torch.nn.BatchNorm1d):
            for j in range(len(rows[0])):
                column = [row[j] for row in rows]
                mean = sum(column) / len(column)
                variance = sum((v - mean) ** 2 for v in column) / len(column)
                for row in rows:
                    row[j] = (row[j] - mean) / math.sqrt(variance + 1e-5)
        else:
            rows = [[max(v, 0.0) for v in row] for row in rows]
    return rows


def spelt_out_vicreg(a: list[list[float]], b: list[list[float]]) -> float:
    n, d = len(a), len(a[0])
    s = sum((x - y) ** 2 for r, q in zip(a, b, strict=True) for x, y in zip(r, q, strict=True)) / n / d
    v = c = 0.0
    for z in (a, b):
        means = [sum(row[j] for row in z) / n for j in range(d)]
        for j in range(d):
            for k in range(d):
                shared = sum((row[j] - means[j]) * (row[k] - means[k]) for row in z) / (n - 1)
                if j == k:
                    v += max(0.0, 1 - math.sqrt(shared + 1e-4)) / d / 2
                else:
                    c += shared**2 / d
    return 25 * s + 25 * v + c


def spelt_out_barlow(a: list[list[float]], b: list[list[float]]) -> float:
    n, d, total = len(a), len(a[0]), 0.0
    moments = []
    for z in (a, b):
        means = [sum(row[j] for row in z) / n for j in range(d)]
        moments.append([(m, math.sqrt(sum((r[j] - m) ** 2 for r in z) / n + 1e-5)) for j, m in enumerate(means)])
    for j in range(d):
        for k in range(d):
            (ma, sa), (mb, sb) = moments[0][j], moments[1][k]
            cross = sum((r[j] - ma) / sa * (q[k] - mb) / sb for r, q in zip(a, b, strict=True)) / n
            total += (1 - cross) ** 2 if j == k else 0.0051 * cross**2
    return total


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize(("name", "spelt_out"), [("vicreg", spelt_out_vicreg), ("barlow_twins", spelt_out_barlow)])
def test_statistics_of_two_views(name: str, spelt_out: Any, views: int) -> None:
    one = built(name)
    seen = torch.randn(views, STUDIES, WIDTH, dtype=torch.float64, requires_grad=True)
    loss, _ = one(global_batch(rows_of(seen, "image:crops.trunk")))
    z = [spelt_out_head(one.head, view) for view in seen]
    pairs = pairs_of_views(views)
    assert loss.item() == pytest.approx(sum(spelt_out(z[s], z[t]) for s, t in pairs) / len(pairs), rel=1e-8)
    loss.backward()
    assert seen.grad is not None and seen.grad.abs().amax(-1).min() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in one.head.parameters() if p.ndim == 2)


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("views", [2, 3])
def test_byol_is_the_cosine_to_the_projection_of_the_average(views: int) -> None:
    one = built("byol")
    with torch.no_grad():
        for p in (p for p in one.target_head.parameters() if p.ndim == 2):
            p.add_(0.3 * torch.randn_like(p))
    seen = torch.randn(views, STUDIES, WIDTH, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, STUDIES, WIDTH, dtype=torch.float64)
    rows = rows_of(seen, "image:byol.trunk") | rows_of(target, "image:byol.target")
    heads = copy.deepcopy((one.head, one.predictor, one.target_head))
    loss, logs = one(global_batch(rows))
    head, predictor, target_head = heads
    q = [spelt_out_head(predictor, torch.tensor(spelt_out_head(head, view))) for view in seen]
    aim_layers = [torch.tensor(spelt_out_head(target_head, view)) for view in target]
    total, count = 0.0, 0
    for a in range(views):
        for b in range(2):
            if a != b:
                for x, y in zip(q[a], aim_layers[b].tolist(), strict=True):
                    dot = sum(v * w for v, w in zip(x, y, strict=True))
                    total += dot / math.sqrt(sum(v * v for v in x) * sum(w * w for w in y))
                    count += 1
    assert loss.item() == pytest.approx(2 - 2 * total / count, rel=1e-6)
    assert logs["cosine"].item() == pytest.approx(total / count, rel=1e-6)
    loss.backward()
    assert seen.grad is not None and seen.grad.abs().amax(-1).min() > 0
    assert all(p.grad is None for p in one.target_head.parameters())


@pytest.mark.usefixtures("doubles")
def test_simclr_finds_its_partner_among_crops_too() -> None:
    torch.manual_seed(0)
    one = find_objective("simclr")(SimCLROptions(views="crops", dim=4))
    one.attach(Surroundings(Tower(width=WIDTH, stride=(4, 4)), ()))  # type: ignore[arg-type]
    one.double()
    seen = torch.randn(10, WIDTH, dtype=torch.float64)
    batch = of_views(seen, [1, 2, 3, 4, 5], [0, 1, 2, 3, 4])
    renamed = {"image:crops.trunk": batch.rows["image:views.trunk"]}
    loss, _ = one(GlobalBatch(**{**batch.__dict__, "rows": renamed}))
    assert loss.item() == pytest.approx(
        nt_xent(one.head(seen).detach().tolist(), [1, 2, 3, 4, 5], [0, 1, 2, 3, 4], 0.5)
    )


@pytest.fixture
def films(make_fit: Callable[..., Any], tmp_path: Path, radiograph_data: dict[str, Any]) -> Any:
    return make_fit(
        tmp_path,
        data=radiograph_data | {"units": {"report": False}},
        model={"text": None, "image": {"name": "resnet10t", "image_size": 32}},
        objectives=[{"name": "graph_matching"}],
        train={"steps": 3, "batch_size": 4},
    )


def entry(name: str, **more: Any) -> dict[str, Any]:
    """Small crops, and cells where somebody reads them: alone, the objectives on pairs do not."""
    small: dict[str, Any] = {"name": name, "crops": {"small": 1, "small_size": 24}}
    if name != "graph_matching":
        small |= {"views": "crops", "dim": 16}
    return small | ({"hidden": 32} if name in PAIRS else {}) | more


@pytest.mark.parametrize("name", ALL)
def test_each_alone_trains_a_tower(films: Any, name: str) -> None:
    assert films("run", objectives=[entry(name)]) == 0
    losses = [float(row.split(",")[2]) for row in films.metrics("run") if f",loss/{name}," in row]
    assert len(losses) == 2 and all(math.isfinite(loss) for loss in losses)


def test_all_of_them_share_one_pass_and_byol_follows(films: Any) -> None:
    recipe = load_recipe(str(films.recipe), [f"objectives={json.dumps([entry(name) for name in ALL])}"])
    torch.manual_seed(0)
    dual, objectives = build.build_model(recipe), build.build_objectives(recipe)
    for one in objectives:
        one.attach(Surroundings(dual, ()))
    module = Pretraining(recipe, dual, objectives).train()
    calls: list[tuple[int, ...]] = []
    dual.register_forward_pre_hook(lambda _, args: calls.append(tuple(args[0].shape)))
    module.compute(films_batch()).backward()
    assert sorted(calls) == sorted([(10, 3, 32, 32), (5, 3, 24, 24)] * 2)  # crops for all, and those of byol
    reached = {n for n, p in module.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    for i, name in enumerate(ALL):
        assert any(n.startswith(f"objectives.{i}.head") for n in reached), name
    assert any("visual.trunk" in n for n in reached) and not any("teacher" in n or "target" in n for n in reached)
    byol: Any = objectives[ALL.index("byol")]
    before = [p.clone() for p in (byol.target_head[0].weight, next(byol.teacher.parameters()))]
    with torch.no_grad():
        byol.head[0].weight += 1
        for p in dual.clip.visual.trunk.parameters():
            p += 1
    byol.after_step(module)
    after = (byol.target_head[0].weight, next(byol.teacher.parameters()))
    for a, b in zip(after, before, strict=True):
        torch.testing.assert_close(a - b, torch.full_like(a, 0.004), rtol=1e-2, atol=1e-5)


def films_batch(size: int = 5) -> Any:
    """Images without texts."""
    from data_shards.batch import Batch, TextBatch

    draw = torch.Generator().manual_seed(3)
    images = torch.randn(size, 3, 32, 32, generator=draw)
    texts = TextBatch.of([[] for _ in range(size)], lambda text: [])
    keys, patients = [f"s{i}" for i in range(size)], torch.arange(size)
    return Batch(0, torch.arange(size), keys, patients, images, torch.zeros(size, 0), (), texts)


@pytest.mark.parametrize("chunk", [2, 3])
def test_in_parts_as_in_one_graph(films: Any, chunk: int) -> None:
    """Also with BatchNorm in the heads, which see the whole batch."""
    crops = {"small": 1}
    each = [
        entry(
            name,
            crops=crops | ({} if name == "byol" else {"cells": 2}),
            **({"temperature": 0.0} if name == ALL[-1] else {}),
        )
        for name in ALL
    ]
    words = [f"objectives={json.dumps(each)}", f"train.chunk={chunk}", "model.image.name=vit_tiny_patch16_224"]
    recipe = load_recipe(str(films.recipe), words)
    torch.manual_seed(0)
    dual, objectives = build.build_model(recipe), build.build_objectives(recipe)
    for one in objectives:
        one.attach(Surroundings(dual, ()))
    module, batch = Pretraining(recipe, dual, objectives).train(), films_batch()
    want_loss, want = in_one_graph(module, batch, chunk)
    loss, got = cached(module, batch)
    torch.testing.assert_close(loss, want_loss, rtol=1e-4, atol=1e-5)
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        scale = float(gradient.abs().max() + 1)
        torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=1e-4 * scale, msg=name)


def test_a_tower_with_batch_norm_is_not_cut_into_parts(films: Any) -> None:
    with pytest.raises(ConfigError, match="layers of this model are BatchNorm"):
        build.build_model(load_recipe(str(films.recipe), ["train.chunk=2"]))


@pytest.mark.parametrize(
    ("objectives", "says"),
    [
        ('[{"name": "vicreg", "views": "crops", "max_drop": 0.1}]', "would be ignored: views is crops"),
        ('[{"name": "vicreg", "crops": {"small": 2}}]', "would be ignored: views is turned"),
        (
            '[{"name": "vicreg", "views": "crops"}, {"name": "graph_matching", "crops": {"flip": 0}}]',
            "other crops than",
        ),
        ('[{"name": "graph_matching", "crops": {"small_size": 32}}]', "there are no small crops"),
        ('[{"name": "graph_matching", "crops": {"scale": [0.9, 0.1]}}]', "the first not above the second"),
        ('[{"name": "graph_matching", "solver": "guess"}]', "solver"),
        ('[{"name": "graph_matching", "crops": {"small_scale": [0.1, 0.2]}}]', "there are no small crops"),
        ('[{"name": "vicreg", "views": "crops", "crops": {"cells": 3}}]', "nobody reads feature maps"),
        ('[{"name": "graph_matching", "alpha": 1, "crops": {"cells": 3}}]', "nobody reads feature maps"),
        (
            '[{"name": "graph_matching", "crops": {"cells": 3}}, {"name": "byol", "views": "crops", '
            '"crops": {"cells": 3}}]',
            "objectives.1.crops.cells",
        ),
        ('[{"name": "graph_matching", "strength": 80}]', "would be ignored: gradient is fenchel_young"),
        ('[{"name": "graph_matching", "solver": "pygmtools", "paths": 4}]', "would be ignored: solver is pygmtools"),
        ('[{"name": "graph_matching", "order": "first", "paths": 4}]', "would be ignored: order is first"),
        ('[{"name": "graph_matching", "order": "first", "solver": "search"}]', "would be ignored: order is first"),
        ('[{"name": "graph_matching", "order": "first", "layers": 0, "edges": "own"}]', "order is first and layers"),
        ('[{"name": "graph_matching", "temperature": 0, "samples": 4}]', "would be ignored: temperature is 0"),
        ('[{"name": "graph_matching", "alpha": 1, "matches": 4}]', "would be ignored: alpha is 1"),
        ('[{"name": "distillation"}, {"name": "distillation"}]', "distillation is listed twice"),
        ('[{"name": "byol"}, {"name": "simclr"}, {"name": "byol", "views": "crops"}]', "byol is listed twice"),
    ],
)
def test_settings_that_nobody_reads_are_refused(films: Any, objectives: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_recipe(str(films.recipe), [f"objectives={objectives}"])
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "objectives",
    [
        '[{"name": "graph_matching", "gradient": "imle", "strength": 8, "samples": 2, "paths": 4, "solver": "search"}]',
        '[{"name": "graph_matching", "order": "first", "edges": "own", "matches": 4, "temperature": 0}]',
        '[{"name": "vicreg", "views": "crops", "crops": {"cells": 3, "small": 1, "small_scale": [0.1, 0.2]}}, '
        '{"name": "graph_matching", "crops": {"cells": 3, "small": 1, "small_scale": [0.1, 0.2]}}]',
    ],
)
def test_settings_that_are_read_pass(films: Any, objectives: str) -> None:
    assert load_recipe(str(films.recipe), [f"objectives={objectives}"]).objectives


@pytest.mark.parametrize("name", ALL)
def test_small_crops_that_the_tower_does_not_take_make_no_run(
    films: Any, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = {"name": "vit_tiny_patch16_224", "image_size": 32}
    small = entry(name, crops={"small": 1, "small_size": 48})
    assert films("run", model={"text": None, "image": image}, objectives=[small]) == 1
    said = capsys.readouterr().err
    assert f"objective {name}: crops.small_size: this tower takes no images of 48 pixels" in said
    assert not films.folder("run").exists()


def test_a_trial_of_small_crops_changes_nothing() -> None:
    trunk = timm.create_model("resnet10t", num_classes=0).train()
    trunk.bn1.eval()
    before, draws = copy.deepcopy(trunk.state_dict()), torch.get_rng_state()
    try_small(trunk, CropOptions(small=1, small_size=24), "vicreg")
    after = trunk.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(draws, torch.get_rng_state()) and trunk.training and not trunk.bn1.training


def test_volumes_have_no_crops(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="this tower takes volumes"):
        load_recipe(str(tiny.recipe), ['objectives=[{"name": "graph_matching", "alpha": 1}]'])


@pytest.mark.full
def test_two_ranks_have_the_gradients_of_one_process(films: Any, tmp_path: Path) -> None:
    """Two studies on one rank and three on the other, groups and statistics over all five."""
    recipe = tmp_path / "still.yaml"
    recipe.write_text(films.recipe.read_text().replace("resnet10t", "vit_tiny_patch16_224"))
    first, second, one = ranks_and_one("two_ranks_crops", recipe, tmp_path)
    assert first.keys() == second.keys() == one.keys() and len(one) > 50
    assert any(name.startswith("objectives.0.layers.1") for name in one)
    for name, gradient in one.items():
        assert torch.equal(first[name], second[name])
        atol = 1e-5 * float(gradient.abs().max() + 1)
        torch.testing.assert_close(first[name], gradient, rtol=1e-3, atol=atol, msg=name)
