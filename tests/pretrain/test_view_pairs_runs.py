"""Runs of the objectives on pairs of views and crops: alone, together, in parts, on two ranks; what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain import build
from pretrain.config import load_recipe
from pretrain.errors import ConfigError
from pretrain.module import Pretraining
from pretrain.objectives.base import Surroundings
from tests.pretrain.test_grad_cache import cached, fixed_seed, in_one_graph
from tests.pretrain.two_ranks import ranks_and_one

assert fixed_seed  # a fixture of this module as well
PAIRS = ("vicreg", "barlow_twins", "byol")
ALL = ("simclr", *PAIRS, "graph_matching")


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
