"""`swin3d`: the SwinUNETR encoder (arXiv 2201.01266, MONAI's `SwinTransformer`), registered in timm.

Its geometry is in its name (encoders.tag_swin3d); weights published for it: encoders.swin3d_weights.

Legend: B volumes, C channels, D, H, W voxels before and cells after, N = D·H·W cells of a map, K maps from fine to
coarse.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn

from encoders.create import create_tower
from encoders.tag_fields import Size3
from encoders.tag_swin3d import MULTIPLE, STRIDES, SwinTag, parse_swin_tag

WINDOW, PATCH = 7, 2


def _encoder(tag: SwinTag) -> nn.Module:
    """MONAI's module. Imported here, because that takes seconds and most runs have another tower. Made on the CPU and
    moved, because its constructor reads numbers out of tensors, which the meta device has none of."""
    from monai.networks.nets.swin_unetr import SwinTransformer

    where = torch.empty(0).device
    with torch.device("cpu") if where.type == "meta" else contextlib.nullcontext():
        made = SwinTransformer(
            tag.channels, tag.embed, (WINDOW,) * 3, (PATCH,) * 3, tag.depths, tag.heads, downsample="merging"
        )
    return made.to(where)


class Swin3D(nn.Module):
    """Shifted windows over volumes [B, channels, D, H, W], sides multiples of 32; four maps, finest first.

    The interface is timm's, as in `encoders.voxvit`, and `forward_pyramid`. Tokens are the cells of the coarsest map;
    a volume's feature is their mean, as in VELVET-Med (arXiv 2508.12108). Maps are normalised over channels without
    weights, as SwinUNETR takes them. Where a map is smaller than the window, MONAI reads the relative positions of the
    first cells of a 7×7×7 window, whatever the map's shape: kept, because the published weights were trained so.

    Args:
        tag: the geometry.
        num_classes: width of a linear classifier; 0 for none.
    """

    def __init__(self, tag: SwinTag, num_classes: int = 0) -> None:
        super().__init__()
        self.tag, self.num_classes = tag, num_classes
        self.level_widths = tuple(tag.embed * 2 ** (k + 1) for k in range(len(STRIDES)))
        self.num_features = self.head_hidden_size = self.embed_dim = self.level_widths[-1]
        self.token_stride: Size3 = (MULTIPLE,) * 3
        self.cls_token = None
        self.default_cfg = self.pretrained_cfg = {
            "architecture": tag.name,
            "input_size": (tag.channels, *tag.grid),
            "pool_size": None,
            "num_classes": num_classes,
            "first_conv": "swin.patch_embed.proj",
            "classifier": "head",
        }
        self.swin = _encoder(tag)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def features_grid(self, size: Size3) -> Size3:
        """Cells of the coarsest map of a volume of `size` voxels.

        Raises:
            ValueError: a side is no multiple of 32.
        """
        if any(s % MULTIPLE or s < MULTIPLE for s in size):
            raise ValueError(
                f"a volume of {'x'.join(map(str, size))} voxels is not a multiple of {MULTIPLE} in every direction\n"
                "  why: cells of the coarser maps would reach over the edge, and the four maps would not lie over each "
                "other\n  fix: pad or crop to a multiple (the release's own preprocessing does)"
            )
        return tuple(s // MULTIPLE for s in size)  # type: ignore[return-value]

    def forward_pyramid(self, x: Tensor) -> tuple[Tensor, ...]:
        """K = 4 maps [B, C, D, H, W] at strides 4, 8, 16 and 32, of `level_widths` channels."""
        self.features_grid(x.shape[2:])  # type: ignore[arg-type]
        return tuple(self.swin(x, normalize=True)[1:])

    @staticmethod
    def features_of(pyramid: tuple[Tensor, ...]) -> Tensor:
        """What `forward_features` gives, of the maps that `forward_pyramid` gave."""
        return pyramid[-1].flatten(2).transpose(1, 2)

    def forward_features(self, x: Tensor) -> Tensor:
        """Cells of the coarsest map, [B, N, C]."""
        return self.features_of(self.forward_pyramid(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Cells to one vector a volume [B, C], or classifier logits."""
        x = x.mean(1)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def load_pretrained_file(self, path: str) -> None:
        """Start from a published file. See `encoders.swin3d_weights.load_swinvit`."""
        from encoders.swin3d_weights import load_swinvit

        load_swinvit(self, path)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier. There is one pooling: asking for another is refused."""
        if global_pool not in (None, "", "mean"):
            raise ValueError(f"pooling '{global_pool}' asked of {self.tag.name}: it has the mean alone")
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's attention and MLP in the backward pass."""
        for module in self.swin.modules():
            if hasattr(module, "use_checkpoint"):
                module.use_checkpoint = enable  # type: ignore[assignment]

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        blocks = [(r"^swin\.layers(\d+)\.0\.blocks\.(\d+)", None), (r"^swin\.layers(\d+)\.0\.downsample", (99,))]
        return {"stem": r"^swin\.patch_embed", "blocks": blocks}

    def no_weight_decay(self) -> set[str]:
        return {n for n, _ in self.named_parameters() if "relative_position" in n}


def _create(size: str, pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> Swin3D:
    return create_tower(
        f"swin3d_{size}", parse_swin_tag, Swin3D, lambda _: "mean",
        "load a release folder (encoders.load), or name MONAI's model_swinvit.pt in model.image.pretrained_file",
        pretrained, pretrained_cfg, kwargs,
    )  # fmt: skip


@register_model
def swin3d_tiny(pretrained: bool = False, **kwargs: Any) -> Swin3D:
    """SwinUNETR's encoder: width 48, 2, 2, 2, 2 blocks."""
    return _create("tiny", pretrained, **kwargs)


@register_model
def swin3d_small(pretrained: bool = False, **kwargs: Any) -> Swin3D:
    """VELVET-Med's encoder: width 48, 2, 8, 8, 8 blocks."""
    return _create("small", pretrained, **kwargs)


@register_model
def swin3d_base(pretrained: bool = False, **kwargs: Any) -> Swin3D:
    """Width 96, 2, 8, 8, 8 blocks."""
    return _create("base", pretrained, **kwargs)
