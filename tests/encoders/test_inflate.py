"""2D weights in towers for volumes: from every kind of file, to any number of windows, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

import encoders
from encoders.errors import ReleaseError
from encoders.inflate import inflate

assert encoders.load
NAME = "i3d_resnet26.i-16x32x32_c-1"


@pytest.fixture(scope="module")
def flat() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return timm.create_model("resnet26", num_classes=3).state_dict()


def tower(name: str = NAME) -> Any:
    torch.manual_seed(1)
    return timm.create_model(name).eval()


def test_every_kind_of_file_gives_the_same_tower(flat: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(flat, tmp_path / "a.safetensors")
    torch.save(flat, tmp_path / "b.pth")
    torch.save({"state_dict": {f"module.backbone.{k}": v for k, v in flat.items()}, "epoch": 3}, tmp_path / "c.pth")
    found = []
    for file, prefix in (("a.safetensors", ""), ("b.pth", ""), ("c.pth", "module.backbone.")):
        built = tower()
        assert inflate(built, str(tmp_path / file)).aside == (f"{prefix}fc.bias", f"{prefix}fc.weight")
        found.append(built.state_dict())
    kernel = found[0]["layer2.0.conv2.weight"]
    assert torch.equal(kernel[:, :, 1], flat["layer2.0.conv2.weight"])
    assert float(kernel[:, :, [0, 2]].abs().max()) == 0.0
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in found[0])


@pytest.mark.parametrize(
    ("source", "built"),
    [("resnet26.bt_in1k", NAME), ("vit_tiny_patch16_224.augreg_in21k", "voxvit_tiny.p-4x16x16_i-8x32x32_c-1")],
)
def test_a_timm_name_is_what_the_hub_has_of_it(
    source: str, built: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of the hub's own cache, of which timm and huggingface_hub are asked as ever, without a network."""
    torch.manual_seed(2)
    published = timm.create_model(source)
    folder = tmp_path / f"models--timm--{source}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(published.state_dict(), folder / "snapshots" / ("0" * 40) / "model.safetensors")
    save_file(published.state_dict(), tmp_path / "file.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    named, filed = tower(built), tower(built)
    assert inflate(named, source) == inflate(filed, str(tmp_path / "file.safetensors"))
    theirs = filed.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in named.state_dict().items())
    with pytest.raises(ReleaseError, match=r"no 2D weights at 'resnet50\.a1_in1k'"):
        inflate(tower(), "resnet50.a1_in1k")  # timm knows it, and no hub has it here


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_equal_windows_look_like_a_grey_image(flat: dict[str, Tensor], channels: int, tmp_path: Path) -> None:
    save_file(flat, tmp_path / "a.safetensors")
    built = tower(f"i3d_resnet26.i-16x32x32_c-{channels}")
    inflate(built, str(tmp_path / "a.safetensors"))
    x = torch.rand(2, 1, 4, 32, 32)
    one_slice = torch.nn.functional.conv2d(x[:, :, 1].expand(-1, 3, -1, -1), flat["conv1.weight"], stride=2, padding=3)
    assert torch.allclose(built.conv1(x.expand(-1, channels, -1, -1, -1))[:, :, 1], one_slice, atol=1e-5)


def test_group_norm_takes_scale_and_shift_alone(flat: dict[str, Tensor], tmp_path: Path) -> None:
    flat = {k: v + 0.5 if k.endswith("bn1.weight") else v for k, v in flat.items()}
    save_file(flat, tmp_path / "a.safetensors")
    built = tower(f"{NAME}_n-group")
    left = inflate(built, str(tmp_path / "a.safetensors"))
    assert {name.rpartition(".")[2] for name in left.aside if not name.startswith("fc.")} == {
        "running_mean", "running_var", "num_batches_tracked",
    }  # fmt: skip
    assert torch.equal(built.bn1.weight, flat["bn1.weight"])


def test_weights_of_another_network_are_refused(flat: dict[str, Tensor], tmp_path: Path) -> None:
    def refused(state: dict[str, Tensor], says: str, name: str = NAME) -> None:
        save_file(state, tmp_path / "a.safetensors")
        built = tower(name)
        before = {k: v.clone() for k, v in built.state_dict().items()}
        with pytest.raises(ReleaseError, match=says):
            inflate(built, str(tmp_path / "a.safetensors"))
        assert all(torch.equal(before[k], v) for k, v in built.state_dict().items())

    refused(flat, r"layer1.2.conv1.weight is missing", "i3d_resnet50.i-16x32x32_c-1")
    refused({**flat, "layer4.2.conv1.weight": torch.zeros(1)}, r"layer4.2.conv1.weight has no place")
    refused(flat, r"conv1.weight has shape \(64, 3, 7, 7\)", "i3d_resnet26.i-16x32x32_c-1_w-16")
    refused({k: v for k, v in flat.items() if k != "conv1.weight"}, "0 kernels of 7×7")
    refused({k: v for k, v in flat.items() if k != "bn1.running_mean"}, "bn1.running_mean is missing")


def test_what_cannot_be_read_or_inflated_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    for source, says in ((tmp_path / "broken.pth", "cannot be read as tensors"), ("no_such", "no 2D weights at")):
        with pytest.raises(ReleaseError, match=says):
            inflate(tower(), str(source))
    torch.save({"state_dict": {"epoch": 3}}, tmp_path / "c.pth")
    with pytest.raises(ReleaseError, match="holds no dict of tensors"):
        inflate(tower(), str(tmp_path / "c.pth"))
    with pytest.raises(ReleaseError, match="ResNet cannot start from 2D weights"):
        inflate(timm.create_model("resnet10t"), str(tmp_path / "c.pth"))
