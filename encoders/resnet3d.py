"""`i3d_resnetN`: a ResNet whose kernels are inflated to 3D, Merlin's image tower (arXiv 2406.06512; I3D: 1705.07750).

Registered in timm, its geometry in its name (encoders.tag_resnet3d). 2D weights: encoders.inflate_resnet.

Legend: B volumes, C channels, D, H, W voxels before and cells after; S stride.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from encoders.conv3d import Conv3d
from encoders.create import create_tower
from encoders.tag_resnet3d import DEPTHS, ResNetTag, parse_resnet_tag

EXPANSION = 4  # output channels of a block, in multiples of its inner ones
GROUPS = 32  # of GroupNorm (arXiv 1803.08494)


def _norm(tag: ResNetTag, width: int) -> nn.Module:
    return nn.BatchNorm3d(width) if tag.norm == "batch" else nn.GroupNorm(math.gcd(GROUPS, width), width)


class Bottleneck(nn.Module):
    """1×1×1, 3×3×3 with the stride (of all three axes), 1×1×1, added to the input."""

    def __init__(self, tag: ResNetTag, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        out = EXPANSION * inner
        self.conv1 = Conv3d(channels, inner, 1, bias=False)
        self.bn1 = _norm(tag, inner)
        self.conv2 = Conv3d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = _norm(tag, inner)
        self.conv3 = Conv3d(inner, out, 1, bias=False)
        self.bn3 = _norm(tag, out)
        self.downsample: nn.Module | None = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(Conv3d(channels, out, 1, stride=stride, bias=False), _norm(tag, out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


@contextlib.contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Normalise by the batch without moving running statistics."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def _recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """A block whose activations are computed again for the backward pass. Once: Merlin nests this, which computes its
    blocks three times; and the second time must not move the running statistics again."""
    return checkpoint(
        block, x, use_reentrant=False, preserve_rng_state=False,
        context_fn=lambda: (contextlib.nullcontext(), _statistics_kept(block)),
    )  # fmt: skip


class ResNet3D(nn.Module):
    """Inflated ResNet over volumes [B, channels, D, H, W] of any size.

    Stem 3×7×7 with stride (1, 2, 2), max pool 3×3×3 with stride 2, then four stages of bottlenecks; a cell of the last
    map stands for 16×32×32 voxels. Parameters have torchvision's names.

    Windows arrive in [-1, 1] and are read in [0, 1], as Merlin does: the zeros that convolutions pad with are then the
    lower end of the window, air.

    Args:
        tag: the geometry.
        num_classes: width of a linear classifier; 0 for none.
    """

    def __init__(self, tag: ResNetTag, num_classes: int = 0) -> None:
        super().__init__()
        self.tag, self.num_classes = tag, num_classes
        self.num_features = self.head_hidden_size = 8 * EXPANSION * tag.width
        self.grad_checkpointing = False
        self.default_cfg = self.pretrained_cfg = {
            "architecture": tag.name,
            "input_size": (tag.channels, *tag.grid),
            "pool_size": None,
            "num_classes": num_classes,
            "first_conv": "conv1",
            "classifier": "fc",
        }
        self.conv1 = Conv3d(tag.channels, tag.width, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False)
        self.bn1 = _norm(tag, tag.width)
        channels = tag.width
        for stage, depth in enumerate(DEPTHS[tag.size]):
            blocks = []
            for number in range(depth):
                inner, stride = tag.width << stage, 2 if stage and not number else 1
                blocks.append(Bottleneck(tag, channels, inner, stride))
                channels = EXPANSION * inner
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)  # type: ignore[arg-type]  # blocks begin as identity: 1706.02677 §5.1

    @property
    def blocks(self) -> list[nn.Module]:
        return [block for stage in range(1, 5) for block in self.get_submodule(f"layer{stage}").children()]

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, channels, D, H, W] in the release's windows to the last map [B, C, ⌈D/16⌉, ⌈H/32⌉, ⌈W/32⌉]."""
        x = self.conv1((x + 1) * 0.5)
        x = F.relu(self.bn1(x), inplace=True)
        x = F.max_pool3d(x, 3, stride=2, padding=1)
        for block in self.blocks:
            x = _recomputed(block, x) if self.grad_checkpointing and self.training else block(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to its mean [B, C], or classifier logits."""
        x = x.mean((2, 3, 4))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier. The last map is averaged: asking for another pooling is refused."""
        if global_pool not in (None, "", "avg"):
            raise ValueError(f"pooling '{global_pool}' asked of {self.tag.name}: it averages its last map")
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        return {"stem": r"^conv1|^bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}


def _create(depth: str, pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> ResNet3D:
    return create_tower(
        f"i3d_{depth}", parse_resnet_tag, ResNet3D, lambda _: "avg",
        "convert Merlin's (encoders.convert), inflate those of a 2D ResNet (model.image.inflate), or load a release "
        "folder (encoders.load)", pretrained, pretrained_cfg, kwargs,
    )  # fmt: skip


@register_model
def i3d_resnet26(pretrained: bool = False, **kwargs: Any) -> ResNet3D:
    """2, 2, 2, 2 blocks: for small machines."""
    return _create("resnet26", pretrained, **kwargs)


@register_model
def i3d_resnet50(pretrained: bool = False, **kwargs: Any) -> ResNet3D:
    """3, 4, 6, 3 blocks."""
    return _create("resnet50", pretrained, **kwargs)


@register_model
def i3d_resnet101(pretrained: bool = False, **kwargs: Any) -> ResNet3D:
    """3, 4, 23, 3 blocks."""
    return _create("resnet101", pretrained, **kwargs)


@register_model
def i3d_resnet152(pretrained: bool = False, **kwargs: Any) -> ResNet3D:
    """3, 8, 36, 3 blocks: Merlin's."""
    return _create("resnet152", pretrained, **kwargs)
