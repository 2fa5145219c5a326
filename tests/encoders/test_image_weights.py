"""Checkpoints of others into timm towers: every tensor in its place or an error with its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from encoders.errors import ReleaseError
from encoders.image_weights import load_image_weights


def random_state(module: torch.nn.Module) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    return {
        k: torch.randn(v.shape, generator=draw) if v.is_floating_point() else v for k, v in module.state_dict().items()
    }


def sam_checkpoint(depth: int, size: int) -> dict[str, Any]:
    """Keys and shapes of segment-anything's `sam_vit_b_01ec64.pth`, its blocks cut off at `depth`, for images of `size`
    pixels (theirs: 1024), with random values."""
    draw, grid, width = torch.Generator().manual_seed(0), size // 16, 768
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, grid, grid, width), "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,), "neck.0.weight": (256, width, 1, 1), "neck.1.weight": (256,),
        "neck.1.bias": (256,), "neck.2.weight": (256, 256, 3, 3), "neck.3.weight": (256,), "neck.3.bias": (256,),
    }  # fmt: skip
    for i in range(depth):
        side = grid if i in (2, 5, 8, 11) else 14  # all over in these blocks, in windows of 14 elsewhere
        block = {
            "norm1.weight": (width,), "norm1.bias": (width,), "attn.rel_pos_h": (2 * side - 1, 64),
            "attn.rel_pos_w": (2 * side - 1, 64), "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width), "attn.proj.bias": (width,), "norm2.weight": (width,),
            "norm2.bias": (width,), "mlp.lin1.weight": (4 * width, width), "mlp.lin1.bias": (4 * width,),
            "mlp.lin2.weight": (width, 4 * width), "mlp.lin2.bias": (width,),
        }  # fmt: skip
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    made = {f"image_encoder.{name}": torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    others = {
        "prompt_encoder.not_a_point_embed.weight": torch.zeros(1, 256),
        "mask_decoder.iou_token.weight": torch.zeros(1, 256),
    }
    return {**made, **others}


def test_torchvisions_resnet50(tmp_path: Path) -> None:
    """Weights of torchvision in timm's resnet50: the same features."""
    theirs = torchvision.models.resnet50().eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet50.pth")
    trunk = timm.create_model("resnet50", num_classes=0).eval()
    told, resampled = load_image_weights(trunk, tmp_path / "resnet50.pth")
    assert told.filled == len(trunk.state_dict()) and told.aside == ("fc.weight", "fc.bias") and not resampled
    theirs.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(trunk(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_a_file_from_before_batches_were_counted(tmp_path: Path) -> None:
    """The tower keeps its own counts; a statistic that is missing is still an error."""
    trunk = timm.create_model("resnet10t", num_classes=0)
    state = random_state(trunk)
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    counts = [k for k in state if k.endswith("num_batches_tracked")]
    trunk.load_state_dict({**trunk.state_dict(), **dict.fromkeys(counts, torch.tensor(7))})
    torch.save(old, tmp_path / "old.pth")
    told, _ = load_image_weights(trunk, tmp_path / "old.pth")
    loaded = trunk.state_dict()
    assert counts and told.filled == len(old) and all(loaded[k] == 7 for k in counts)
    assert all(torch.equal(loaded[k], v) for k, v in old.items())
    del old["bn1.running_var"]
    torch.save(old, tmp_path / "older.pth")
    with pytest.raises(ReleaseError, match=r"1 missing from the file: bn1\.running_var"):
        load_image_weights(trunk, tmp_path / "older.pth")


@pytest.mark.parametrize("wrapped", [False, True])
def test_timms_own_files(wrapped: bool, tmp_path: Path) -> None:
    """As safetensors; or as a training script saves them: in a dict, of a wrapped module, with a classifier."""
    source = timm.create_model("vit_tiny_patch16_224", num_classes=10, depth=2)
    state = random_state(source)
    path = tmp_path / ("model.pth" if wrapped else "model.safetensors")
    if wrapped:
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    else:
        save_file(state, path)
    trunk = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2)
    told, _ = load_image_weights(trunk, path)
    assert set(told.aside) == {"head.weight", "head.bias"}
    assert all(torch.equal(value, state[name]) for name, value in trunk.state_dict().items())


def test_positions_are_resampled_to_another_size(tmp_path: Path) -> None:
    state = random_state(timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1))
    y, x = torch.meshgrid(torch.linspace(0, 1, 14), torch.linspace(0, 1, 14), indexing="ij")
    state["pos_embed"][0, 1:] = (y + 2 * x).reshape(-1, 1)
    save_file(state, tmp_path / "model.safetensors")
    trunk: Any = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1, img_size=112)
    _, resampled = load_image_weights(trunk, tmp_path / "model.safetensors")
    assert resampled == ("pos_embed",)
    table = trunk.pos_embed.detach()[0]
    assert torch.equal(table[0], state["pos_embed"][0, 0])  # of [CLS]
    places = (torch.arange(7) + 0.5) * 2 - 0.5  # in old cells
    want = places[3] / 13 + 2 * places / 13
    torch.testing.assert_close(table[1:].view(7, 7, -1)[3, 1:-1, 0], want[1:-1], atol=0.02, rtol=0)


def test_sams_image_encoder(tmp_path: Path) -> None:
    """Three of its twelve blocks at its true width: the third looks at the whole image."""
    made = sam_checkpoint(3, 1024)
    torch.save(made, tmp_path / "sam_vit_b.pth")
    kwargs: dict[str, Any] = {"num_classes": 0, "depth": 3, "global_attn_indexes": (2,)}
    trunk = timm.create_model("samvit_base_patch16", **kwargs)
    told, resampled = load_image_weights(trunk, tmp_path / "sam_vit_b.pth")
    assert not resampled and told.filled == len(trunk.state_dict())
    assert set(told.aside) == {"prompt_encoder.not_a_point_embed.weight", "mask_decoder.iou_token.weight"}
    for name, value in trunk.state_dict().items():
        assert torch.equal(value, made["image_encoder." + name.replace(".mlp.fc", ".mlp.lin")]), name
    small = timm.create_model("samvit_base_patch16", img_size=224, **kwargs)
    _, resampled = load_image_weights(small, tmp_path / "sam_vit_b.pth")
    assert resampled == ("blocks.2.attn.rel_pos_h", "blocks.2.attn.rel_pos_w", "pos_embed")
    assert small(torch.zeros(1, 3, 224, 224)).shape == (1, 256)


def test_the_real_layout_is_that_of_all_twelve_blocks() -> None:
    with torch.device("meta"):
        trunk = timm.create_model("samvit_base_patch16", num_classes=0)
    wanted = {k: tuple(v.shape) for k, v in trunk.state_dict().items()}
    made = {
        k.removeprefix("image_encoder.").replace(".mlp.lin", ".mlp.fc"): tuple(v.shape)
        for k, v in sam_checkpoint(12, 1024).items()
    }
    assert wanted.items() <= made.items() and len(made) == len(wanted) + 2


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    trunk = timm.create_model("resnet10t", num_classes=0)
    before = random_state(trunk)
    trunk.load_state_dict(before)
    state = dict(before)
    state["strange.weight"] = torch.zeros(1)
    state["bn1.weight"] = torch.zeros(3)
    del state["conv1.0.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ReleaseError) as refused:
        load_image_weights(trunk, tmp_path / "model.safetensors")
    said = str(refused.value)
    assert "1 missing from the file: conv1.0.weight" in said and "1 unexpected in the file: strange.weight" in said
    assert "1 of another shape: bn1.weight" in said
    assert all(torch.equal(before[k], v) for k, v in trunk.state_dict().items())  # nothing is loaded in part
    save_file(random_state(timm.create_model("resnet18", num_classes=0)), tmp_path / "other.safetensors")
    with pytest.raises(ReleaseError, match=r"and \d+ more"):
        load_image_weights(trunk, tmp_path / "other.safetensors")


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    import pickle

    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "executed",)

    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"state_dict": Trap()}))
    with pytest.raises(ReleaseError, match="cannot be read as tensors"):
        load_image_weights(timm.create_model("resnet10t", num_classes=0), tmp_path / "trap.pth")
    assert not (tmp_path / "executed").exists()
