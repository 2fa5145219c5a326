"""Runs with objectives on two views: a `swin3d` that starts from a published file, radiographs, two ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain import build
from pretrain.config import load_recipe
from pretrain.errors import ConfigError
from tests.encoders.test_swin3d import published
from tests.pretrain.two_ranks import ranks_and_one

SWIN = "swin3d_tiny.i-32x32x32_c-1_w-12_l-1"
VIEWS = [{"name": "simclr", "dim": 8}, {"name": "rotation"}, {"name": "inpainting"}]
SIZE = {"kind": "centre", "size": [32, 32, 32]}


@pytest.fixture
def swin(make_fit: Any, tmp_path: Path) -> Any:
    return make_fit(
        tmp_path,
        model={"image": {"name": SWIN, "pretrained_file": str(tmp_path / "file.pt")}},
        objectives=[{"name": "contrastive"}, *VIEWS],
        train={"steps": 3, "chunk": 3},
    )


def words(recipe: Any) -> list[str]:
    return [f"data.train_view.size={SIZE['size']}", f"data.eval_view.size={SIZE['size']}"]


def file_for(recipe: Any) -> dict[str, torch.Tensor]:
    import timm

    return published(timm.create_model(SWIN))


def test_a_model_starts_from_a_published_file(swin: Any, tmp_path: Path) -> None:
    file = file_for(swin)
    torch.save({"state_dict": file}, tmp_path / "file.pt")
    recipe = load_recipe(str(swin.recipe), words(swin))
    trunk = build.build_model(recipe).clip.visual.trunk
    assert torch.equal(trunk.swin.layers4[0].blocks[0].mlp.linear2.bias, file["module.layers4.0.blocks.0.mlp.fc2.bias"])
    assert torch.equal(trunk.swin.patch_embed.proj.weight, file["module.patch_embed.proj.weight"])
    resumed = build.build_model(recipe, with_init=False).clip.visual.trunk  # it has weights of its own
    assert not torch.equal(resumed.swin.patch_embed.proj.weight, file["module.patch_embed.proj.weight"])
    del file["module.patch_embed.proj.weight"]
    torch.save(file, tmp_path / "file.pt")
    with pytest.raises(ConfigError, match=r"model\.image\.pretrained_file: 'file\.pt' does not fit"):
        build.build_model(recipe)


@pytest.mark.full
def test_a_swin_trains_on_all_of_them_and_is_released(swin: Any, tmp_path: Path) -> None:
    import encoders

    torch.save(file_for(swin), tmp_path / "file.pt")
    assert swin("run", data__train_view=SIZE, data__eval_view=SIZE) == 0
    rows = swin.metrics("run")
    for name in ("loss/simclr", "loss/rotation", "loss/inpainting", "rotation/accuracy"):
        assert any(f",{name}," in row for row in rows), name
    released = encoders.load(swin.folder("run") / "release").model
    assert released.encode_image(torch.zeros(1, 1, 32, 32, 32), levels=(2,)).levels[2].grid == (2, 2, 2)


def test_radiographs_have_views_too(make_fit: Any, tmp_path: Path, radiograph_data: dict[str, Any]) -> None:
    runs = make_fit(
        tmp_path,
        data=radiograph_data,
        model={"image": {"name": "resnet10t", "image_size": 32}},
        objectives=[{"name": "contrastive"}, *VIEWS],
        train={"steps": 3},
    )
    assert runs("run") == 0
    assert all(
        any(f",loss/{name}," in row for row in runs.metrics("run")) for name in ("simclr", "rotation", "inpainting")
    )


@pytest.mark.full
def test_two_ranks_have_the_gradients_of_one_process(tiny: Any, tmp_path: Path) -> None:
    first, second, one = ranks_and_one("two_ranks_views", tiny.recipe, tmp_path)
    assert float((first.pop("mean") - one.pop("mean")).abs()) < 1e-5  # over ranks, of a loss of coupling `sample`
    second.pop("mean")
    assert first.keys() == second.keys() == one.keys() and len(one) > 10
    for name, gradient in one.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.full
def test_sharded_towers_train_on_views_like_whole_ones(make_fit: Any, tmp_path: Path) -> None:
    """Objectives' own matrices stay whole under FSDP2, and count in the norm of the gradient."""
    runs = make_fit(
        tmp_path,
        objectives=[{"name": "contrastive"}, *VIEWS],
        model={"image": {"name": "voxvit_tiny.p-8x16x16_i-16x32x32_c-1_s-conv_l-1"}},
        train={"steps": 3, "batch_size": 2, "devices": 2},
    )
    for strategy in ("ddp", "fsdp2"):
        process = runs.start(strategy, train__strategy=strategy)
        said = process.communicate(timeout=500)[0]
        assert process.returncode == 0, said
    ours, theirs = ([row.split(",") for row in runs.metrics(s)[1:]] for s in ("fsdp2", "ddp"))
    assert {"loss/inpainting", "grad_norm"} <= {row[1] for row in ours}
    for a, b in zip(ours, theirs, strict=True):
        assert a[:2] == b[:2] and float(a[2]) == pytest.approx(float(b[2]), rel=1e-3, abs=1e-6), a[:2]
