"""`model.image.inflate` and `model.image.batch_norm`: what a tower starts from, and BatchNorm where batches are cut."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pretrain import build
from pretrain.config import load_recipe, smoke
from pretrain.errors import ConfigError
from pretrain.module import Pretraining
from tests.pretrain.test_grad_cache import batch, cached

TOWER = "i3d_resnet26.i-16x32x32_c-1"
SMALL = f"{TOWER}_w-8"


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2D weights as training leaves them, small enough to be read in a moment."""
    torch.manual_seed(0)
    net = timm.create_model("resnet26", num_classes=0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.2, 0.5)
    path = tmp_path_factory.mktemp("flat") / "resnet26.safetensors"
    save_file(net.state_dict(), path)
    return path


@pytest.fixture
def no_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are computed without one, whose ranks would have to wait."""
    monkeypatch.setattr("pretrain.module.no_sync", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(Pretraining, "trainer", None)


def module_of(tiny: Any, image: str, **keys: Any) -> Pretraining:
    """The tiny recipe with another image tower and no token dropout."""
    words = [f"model.image.name={image}", "model.image.token_dropout=0", 'objectives=[{"name": "contrastive"}]']
    recipe = load_recipe(tiny.recipe, words + [f"{k.replace('__', '.')}={v}" for k, v in keys.items()])
    torch.manual_seed(0)
    return Pretraining(recipe, build.build_model(recipe), build.build_objectives(recipe)).train()


def in_one_graph(module: Pretraining) -> dict[str, Tensor]:
    module.zero_grad()
    module.compute(batch()).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def distance(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    """Relative error of the image tower's gradient."""
    names = [name for name in want if ".visual." in name]
    error = sum(float((got[n] - want[n]).double().square().sum()) for n in names)
    return (error / sum(float(want[n].double().square().sum()) for n in names)) ** 0.5


@pytest.mark.parametrize("choice", ["frozen", "group"])
def test_gradient_of_parts_is_that_of_the_batch(tiny: Any, flat: Path, choice: str, no_trainer: None) -> None:
    module = module_of(tiny, TOWER, model__image__inflate=flat, model__image__batch_norm=choice, train__chunk=3)
    before = {name: buffer.clone() for name, buffer in module.dual.named_buffers()}
    want = in_one_graph(module)
    _, got = cached(module, batch())
    assert distance(got, want) < 1e-4
    assert float(want["dual.clip.visual.trunk.bn1.weight"].abs().max()) > 0  # scales and shifts are learnt
    assert all(torch.equal(before[name], buffer) for name, buffer in module.dual.named_buffers())
    assert any("running_mean" in name for name in before) == (choice == "frozen")


def test_batch_norm_gives_another_gradient_and_is_refused(tiny: Any, no_trainer: None) -> None:
    module = module_of(tiny, SMALL)
    want = in_one_graph(module)
    module.recipe = load_recipe(tiny.recipe, ["train.chunk=3", "model.image.token_dropout=0"])
    _, got = cached(module, batch())
    assert distance(got, want) > 0.05  # what the refusal saves from
    with pytest.raises(ConfigError, match=r"train.chunk: 29 layers of .* BatchNorm, first visual.trunk.bn1"):
        module_of(tiny, SMALL, train__chunk=3)
    module_of(tiny, SMALL, train__chunk=4)  # the whole batch of 4 in one part


def test_frozen_statistics_survive_training_mode(tiny: Any, flat: Path) -> None:
    start = {"model__image__inflate": flat, "model__image__batch_norm": "frozen"}
    dual = module_of(tiny, TOWER, **start).dual
    norms = [m for m in dual.modules() if isinstance(m, nn.BatchNorm3d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert dual.clip.visual.trunk.layer1.training
    with pytest.raises(ConfigError, match="has no BatchNorm to freeze"):
        module_of(tiny, f"{TOWER}_n-group", **start)


def test_weights_that_do_not_fit_are_refused(tiny: Any, flat: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.image.inflate: these 2D weights do not fit .* has shape"):
        module_of(tiny, SMALL, model__image__inflate=flat)


@pytest.mark.parametrize(
    ("words", "key", "says"),
    [
        (["model.image.inflate=nowhere.pth"], "model.image.inflate", "no file 'nowhere.pth'"),
        (["model.image.inflate=resnet500"], "model.image.inflate", "did you mean resnet50"),
        (["model.image.inflate=resnet50", "model.image.name=resnet50"], "model.image.inflate", "nothing to inflate"),
        (["model.image.batch_norm=frozen"], "model.image.batch_norm", "nothing would be normalised"),
        (["model.image.batch_norm=group", "model.image.name=resnet50"], "model.image.batch_norm", "resnet50_gn"),
        (["model.image.batch_norm=layer"], "model.image.batch_norm", "batch, frozen, group"),
        (["model.image.name=i3d_resnet26.i-16x32x32_c-2"], "data.geometry.windows", "c-2"),
        (["model.image.name=i3d_resnet26.i-16x32x48_c-1"], "data.eval_view.size", "i-16x32x48"),
        (["model.image.name=i3d_resnet34.i-16x32x32_c-1"], "model.image.name", "did you mean i3d_resnet"),
        (["model.image.name=i3d_resnt26"], "model.image.name", "did you mean i3d_resnet26"),
        (["model.image.name=i3_resnet152.i-16x32x32"], "model.image.name", "did you mean i3d_resnet152"),
    ],
)
def test_recipes_are_refused_before_torch(tiny: Any, words: list[str], key: str, says: str) -> None:
    names = [] if any("image.name" in word for word in words) else [f"model.image.name={SMALL}"]
    with pytest.raises(ConfigError) as caught:
        load_recipe(tiny.recipe, ["model.image.token_dropout=0", *names, *words])
    assert f"{key}  (" in str(caught.value)
    assert says in str(caught.value)


def test_a_run_ends_in_a_release(tiny: Any, flat: Path) -> None:
    image = {"name": TOWER, "token_dropout": 0.0, "inflate": str(flat), "batch_norm": "group"}
    keys = {"train__steps": 1, "train__chunk": 2, "checkpoint__every_steps": 1, "optim__warmup_steps": 0}
    assert tiny("run", model__image=image, **keys) == 0
    release = tiny.folder("run") / "release"
    assert load_file(release / "open_clip_model.safetensors")["visual.trunk.layer1.0.conv2.weight"].ndim == 5
    model = open_clip.create_model(f"local-dir:{release}").eval()
    assert model.visual.trunk.tag.name == f"{TOWER}_n-group"
    assert model.encode_image(torch.zeros(1, 1, 16, 32, 32)).shape == (1, 16)


def test_smoke_runs_of_inflated_towers_are_small(tiny: Any, flat: Path) -> None:
    words = [f"model.image.name={TOWER}", "model.image.token_dropout=0", f"model.image.inflate={flat}"]
    small = smoke(load_recipe(tiny.recipe, [*words, "model.image.batch_norm=frozen"]))
    assert (small.model.image.name, small.model.image.inflate) == (SMALL, None)
    assert small.model.image.batch_norm == "group"


@pytest.mark.full
def test_sharded_weights_train_like_whole_ones(tiny: Any) -> None:
    """Blocks of a ResNet are sharded, and recomputed for the backward pass."""
    image = {"name": SMALL, "token_dropout": 0.0, "grad_checkpointing": True}
    keys = {"model__image": image, "train__devices": 2, "train__steps": 3, "optim__warmup_steps": 0}
    losses = {}
    for strategy in ("ddp", "fsdp2"):
        process = tiny.start(strategy, **keys, train__strategy=strategy)
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 0, said
        rows = [line.split(",") for line in tiny.metrics(strategy)]
        losses[strategy] = [float(row[2]) for row in rows if row[1] == "loss"]
    assert len(losses["ddp"]) == 2  # the first and the last are written
    assert losses["fsdp2"] == pytest.approx(losses["ddp"], abs=1e-4)
