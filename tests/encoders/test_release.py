"""From a checkpoint, or a model in memory, to a folder; and from there to open_clip and timm without us."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import encoders
from data_shards.preprocess import PlanarGeometry, View
from encoders.dual import DualEncoder
from encoders.errors import ReleaseError
from encoders.folder import inspect
from encoders.release import main, release_run, write_release, write_timm_release


@pytest.fixture
def run(tmp_path: Path, make_dual: Callable[..., DualEncoder], geometry: Any, view: Any) -> Path:
    """A run folder as pretrain writes it: two checkpoints, `last` and `best` as links."""
    dual, root = make_dual(), tmp_path / "run" / "checkpoints"
    for step in (100, 200):
        folder = root / f"step-{step:08d}"
        folder.mkdir(parents=True)
        with torch.no_grad():
            dual.clip.logit_scale.fill_(step / 100)
        save_file({k: v.contiguous() for k, v in dual.clip.state_dict().items()}, folder / "encoders.safetensors")
        told = {"name": "toy", "step": step, "recipe_sha256": "ab" * 32, "manifest": "cd" * 32, "heads": {}}
        told |= {"model_cfg": dual.model_cfg, "geometry": geometry.to_json(), "view": view.to_json()}
        (folder / "model.json").write_text(json.dumps(told))
        (folder / "trainer.ckpt").write_bytes(b"a pickle that would run code")
    (root / "last").symlink_to("step-00000200")
    (root / "best").symlink_to("step-00000100")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("checkpoint", "step"), [("best", 100), ("last", 200), ("step-200", 200), ("step-00000100", 100)]
)
def test_a_checkpoint_by_name(run: Path, tmp_path: Path, checkpoint: str, step: int) -> None:
    folder = release_run(run, tmp_path / "out", checkpoint=checkpoint)
    loaded = encoders.load(folder)
    assert loaded.model.logit_scale.item() == step / 100
    provenance = loaded.config["provenance"]
    assert provenance["step"] == step and provenance["recipe_sha256"] == "ab" * 32
    assert {"torch", "open_clip_torch", "timm"} <= provenance["versions"].keys()
    source = load_file(run / "checkpoints" / checkpoint_folder(step) / "encoders.safetensors")
    weights = load_file(folder / "open_clip_model.safetensors")
    assert weights.keys() == source.keys() and all(torch.equal(weights[k], source[k]) for k in source)


def checkpoint_folder(step: int) -> str:
    return f"step-{step:08d}"


def test_the_same_checkpoint_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    first, again = release_run(run, tmp_path / "a" / "x"), release_run(run, tmp_path / "b" / "x")
    assert inspect(first).sha256 == inspect(again).sha256


def test_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["--run", str(run), "--out", str(out)]) == 0
    assert f"encoders.load('{out}')" in capsys.readouterr().out
    assert main(["--run", str(run), "--out", str(out)]) == 1
    assert "error: 'out' exists" in capsys.readouterr().err
    assert main(["--run", str(run), "--out", str(out), "--overwrite", "--checkpoint", "last"]) == 0
    assert encoders.load(out).model.logit_scale.item() == 2
    assert main(["--run", str(run), "--out", str(tmp_path / "p"), "--checkpoint", "step-7"]) == 1
    assert "it has best, last, step-00000100, step-00000200" in capsys.readouterr().err
    assert main(["--run", str(tmp_path), "--out", str(tmp_path / "p")]) == 1
    assert "give --run a folder made by pretrain.fit" in capsys.readouterr().err
    assert main(["--run", str(tmp_path / "nope"), "--out", str(tmp_path / "p")]) == 1
    assert "it does not exist" in capsys.readouterr().err
    assert main(["--relocate", str(out)]) == 1
    assert "no Hugging Face text tower" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--run", "x"], ["--run", "x", "--out", "y", "--relocate", "z"]])
def test_half_a_command_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


def test_damaged_checkpoints(run: Path, tmp_path: Path) -> None:
    folder = run / "checkpoints" / "step-00000100"
    weights = (folder / "encoders.safetensors").read_bytes()
    (folder / "encoders.safetensors").write_bytes(weights[:-10])
    with pytest.raises(ReleaseError, match="damaged"):
        release_run(run, tmp_path / "out")
    (folder / "encoders.safetensors").unlink()
    with pytest.raises(ReleaseError, match=r"no encoders\.safetensors"):
        release_run(run, tmp_path / "out")
    (folder / "encoders.safetensors").write_bytes(weights)
    (folder / "model.json").write_text("{}")
    with pytest.raises(ReleaseError, match="damaged"):
        release_run(run, tmp_path / "out")
    save_file({"x.weight": torch.zeros(2)}, folder / "heads.safetensors")
    with pytest.raises(ReleaseError):
        release_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_of_another_model(
    tmp_path: Path, make_dual: Callable[..., DualEncoder], geometry: Any, view: Any
) -> None:
    dual = make_dual()
    weights = dual.clip.state_dict()
    for change in (
        {"visual.head.proj.weight": torch.zeros(5, 5)},
        {"one.more": torch.zeros(1)},
    ):
        with pytest.raises(ReleaseError, match="do not fit: 1 of"):
            write_release(tmp_path / "r", {**weights, **change}, dual.model_cfg, geometry, view)
    del weights["text.ln_final.bias"]
    with pytest.raises(ReleaseError, match=r"first text\.ln_final\.bias"):
        write_release(tmp_path / "r", weights, dual.model_cfg, geometry, view)
    assert not (tmp_path / "r").exists()


def test_input_of_another_model(
    tmp_path: Path, make_dual: Callable[..., DualEncoder], geometry: Any, view: View, planar: PlanarGeometry
) -> None:
    dual = make_dual()
    for wrong, where, said in [
        (replace(geometry, windows=((-100.0, 100.0),)), view, "takes 2 channels, the geometry has 1 windows"),
        (geometry, replace(view, size=(9, 16, 16)), "not a multiple of the patch"),
        (geometry, replace(view, size=(16, 16)), "not D, H, W"),
        (planar, View("centre"), "takes volumes, the geometry is for images"),
    ]:
        with pytest.raises(ReleaseError, match=said):
            write_release(tmp_path / "r", dual.clip.state_dict(), dual.model_cfg, wrong, where)
    native = make_dual({"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 48})
    with pytest.raises(ReleaseError, match="built for 48 pixels, the geometry makes 32"):
        write_release(tmp_path / "r", native.clip.state_dict(), native.model_cfg, planar, View("centre"))
    grey = PlanarGeometry(size=(48, 48), mode="L", mean=(0.5,), std=(0.5,))
    with pytest.raises(ReleaseError, match="mode L cannot be released"):
        write_release(tmp_path / "r", native.clip.state_dict(), native.model_cfg, grey, View("centre"))
    with pytest.raises(ReleaseError, match="custom_text: true"):
        write_release(tmp_path / "r", dual.clip.state_dict(), {**dual.model_cfg, "custom_text": False}, geometry, view)


WITHOUT_US = """
import sys, torch, open_clip
from PIL import Image
torch.set_grad_enabled(False)
for folder in sys.argv[2:]:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["no pleural effusion"])
    x = preprocess(Image.open(sys.argv[1]))
    torch.save([x, model.eval().encode_image(x[None]), model.encode_text(tokens)], folder + ".pt")
assert not [name for name in sys.modules if name.partition(".")[0] in ("encoders", "data_shards", "pretrain")]
"""


def test_planar_releases_need_nothing_of_ours(tmp_path: Path, make_dual: Callable[..., DualEncoder]) -> None:
    """Plain open_clip in a process that never imports us: the same pixels and the same features."""
    from PIL import Image

    dual, folders = make_dual("resnet10t"), []
    for mode in ("shortest", "longest", "squash"):
        planar = PlanarGeometry(size=(32, 48), resize_mode=mode, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
        folders.append(write_release(tmp_path / mode, dual.clip.state_dict(), dual.model_cfg, planar, View("centre")))
    picture = tmp_path / "x.png"
    Image.effect_noise((90, 70), 80).save(picture)
    arguments = [sys.executable, "-c", WITHOUT_US, str(picture), *map(str, folders)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=600, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    for folder in folders:
        x, image, text = torch.load(folder.with_suffix(".pt"), weights_only=True)
        loaded = encoders.load(folder)
        assert torch.equal(loaded.preprocess(picture), x)
        with torch.no_grad():
            assert torch.equal(loaded.model.encode_image(x[None]).study_BD, image)
            tokens = torch.tensor(loaded.tokenizer("no pleural effusion"))
            torch.testing.assert_close(loaded.model.encode_units(tokens, [len(tokens)]), text, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("architecture", ["voxvit_tiny.p-4x8x8_i-8x16x16_c-2_s-conv_e-rope_l-1", "resnet10t"])
def test_an_image_tower_alone(
    tmp_path: Path, geometry: Any, view: View, planar: PlanarGeometry, architecture: str
) -> None:
    volume = architecture.startswith("voxvit")
    trunk: Any = timm.create_model(architecture, num_classes=0).eval()
    how = (geometry, view) if volume else (planar, View("centre"))
    folder = write_timm_release(tmp_path / "r", trunk.state_dict(), architecture, *how, provenance={"name": "mae"})
    x = torch.randn(2, 2, 8, 16, 16) if volume else torch.randn(2, 3, 32, 32)
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    loaded = encoders.load(folder)
    with torch.no_grad():
        assert torch.equal(plain(x), trunk(x))
        assert torch.equal(loaded.model(x), trunk(x))
        classifier = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3).eval()
        assert classifier(x).shape == (2, 3)
        assert torch.equal(classifier.forward_features(x), trunk.forward_features(x))
    assert (loaded.kind, loaded.tokenizer, loaded.geometry, loaded.view) == ("timm", None, *how)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ReleaseError, match=r"no weights: model\.safetensors"):
        encoders.load(folder)


def test_an_image_tower_of_another_shape(tmp_path: Path, geometry: Any, view: View) -> None:
    trunk = timm.create_model("voxvit_tiny.p-4x8x8_i-8x16x16_c-2_l-1")
    with pytest.raises(ReleaseError, match="do not fit"):
        write_timm_release(tmp_path / "r", trunk.state_dict(), "voxvit_tiny.p-4x8x8_i-8x16x16_c-2_l-2", geometry, view)
    assert not (tmp_path / "r").exists()


def test_tied_weights_are_released(tmp_path: Path, make_dual: Callable[..., DualEncoder], planar: Any) -> None:
    dual = make_dual("resnet10t")
    blocks = dual.clip.text.transformer.resblocks
    blocks[1].ln_1.weight = blocks[0].ln_1.weight
    folder = write_release(tmp_path / "r", dual.clip.state_dict(), dual.model_cfg, planar, View("centre"))
    again = encoders.load(folder).model.clip.text.transformer.resblocks
    assert torch.equal(again[1].ln_1.weight, blocks[0].ln_1.weight)


def test_the_card_says_how_to_load_it(released: tuple[Path, DualEncoder]) -> None:
    card = (released[0] / "README.md").read_text()
    assert 'encoders.load("release")' in card and "import encoders, open_clip" in card
    assert '"spacing_mm": [6.0, 5.0, 5.0]' in card and "licence" in card
