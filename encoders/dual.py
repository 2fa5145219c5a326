"""The dual encoder: open_clip's own model inside, so that what is trained is what is released.

Legend: B studies, U text units, D embedding width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from encoders.attention import Packing
from encoders.features import ImageFeatures, Level, TextFeatures
from encoders.image_only import ImageOnly
from encoders.open_clip_vit import encode_vit, is_plain_vit
from encoders.report_layout import Reports
from encoders.report_transformer import ReportTransformer
from encoders.text import encode_foreign, encode_packed, is_packable, project, without_projection


@dataclass(frozen=True)
class DualFeatures:
    """What one call of the dual encoder gives, of the towers that were given something."""

    image: ImageFeatures | None
    text: TextFeatures | None


class DualEncoder(nn.Module):
    """Image and text tower with one embedding space.

    `clip` is an `open_clip.CustomTextCLIP`; its state dict is exactly the released weights file. Images go through its
    image tower, texts through its text tower in packed form; an `encoders.image_only.ImageOnly` in its place has none.
    `report`, where there is one, reads whole reports beside them (encoders.report_transformer); it is released as a
    head.

    Args:
        clip: the open_clip model.
        model_cfg: the dict it was built from (`open_clip_config.json`, key `model_cfg`).
    """

    def __init__(self, clip: nn.Module, model_cfg: dict[str, Any]) -> None:
        super().__init__()
        self.clip: Any = clip
        self.model_cfg = model_cfg
        self.report: ReportTransformer | None = None
        self.attention_backend = "auto"
        self.pad_id = 0
        self.frozen_statistics = False

    def train(self, mode: bool = True) -> DualEncoder:
        """With `frozen_statistics`, BatchNorm layers stay as they are evaluated; their scales and shifts are learnt."""
        super().train(mode)
        if self.frozen_statistics:
            for module in self.clip.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    @property
    def logit_scale(self) -> Tensor:
        """ln of the inverse temperature."""
        return self.clip.logit_scale

    @property
    def logit_bias(self) -> Tensor | None:
        return self.clip.logit_bias

    @property
    def level_widths(self) -> tuple[int, ...]:
        """Channels of the image tower's maps, finest first: four of a `swin3d`, the patch tokens of other timm towers,
        none of open_clip's own."""
        trunk: Any = getattr(self.clip.visual, "trunk", None)
        return () if trunk is None else getattr(trunk, "level_widths", (trunk.num_features,))

    def encode_image(
        self, images: Tensor, tokens: bool = False, trunk: bool = False, levels: Sequence[int] = (), kept: bool = False
    ) -> ImageFeatures:
        """Images [B, C, (D,) H, W], one scan a study, to features; with `tokens` the tower's patch tokens as well, with
        `trunk` its pooled features before the projection, with `levels` its maps of these numbers, 0 the finest, with
        `kept` which patches token dropout left.

        Raises:
            ValueError: `tokens`, `trunk`, `kept` or a level asked of a tower that does not give them.
        """
        visual = self.clip.visual
        patch = grid = before = places = None
        maps: dict[int, Level] = {}
        if not (tokens or trunk or levels or kept):
            # Evaluated, a tower gives the bits that its users get from open_clip.
            fast = self.training and is_plain_vit(visual)
            pooled = encode_vit(visual, images, self.attention_backend) if fast else visual(images)
        else:
            if not hasattr(visual, "trunk"):
                raise ValueError("patch tokens and trunk features come from timm towers only (ours and timm's)")
            if any(level >= len(self.level_widths) for level in levels):
                raise ValueError(f"level {max(levels)} asked of an image tower that has {len(self.level_widths)}")
            if kept and not hasattr(visual.trunk, "forward_kept"):
                raise ValueError("this image tower drops no tokens: which are kept is known of a voxvit")
            features, maps, places = _features_and_levels(visual.trunk, images, levels, kept)
            before = visual.trunk.forward_head(features, pre_logits=True)
            pooled = visual.head(before)
            if tokens:
                patch, grid = _patch_tokens(visual.trunk, features, images.shape[2:])
        study = torch.arange(len(pooled), device=pooled.device)
        return ImageFeatures(pooled, study, pooled, patch, grid, before if trunk else None, maps, places)

    def encode_units(self, tokens_T: Tensor, lengths: Sequence[int]) -> Tensor:
        """Packed token ids [T] of units with `lengths` tokens each to [U, D]."""
        packing = Packing(tuple(lengths), tokens_T.device)
        if is_packable(self.clip.text):
            return encode_packed(self.clip.text, tokens_T, packing, self.attention_backend)
        return encode_foreign(self.clip.text, tokens_T, packing, self.pad_id)

    def pool_units(self, tokens_T: Tensor, lengths: Sequence[int]) -> Tensor:
        """The same before the projection into the joint space: [U, C].

        Raises:
            ValueError: a text tower of another kind, whose projection cannot be told apart.
        """
        packing, tower = Packing(tuple(lengths), tokens_T.device), self.clip.text
        if is_packable(tower):
            return encode_packed(tower, tokens_T, packing, self.attention_backend, projected=False)
        if not isinstance(getattr(tower, "proj", None), nn.Module):
            raise ValueError("features before the projection come from the native and Hugging Face text towers only")
        with without_projection(tower):
            return encode_foreign(tower, tokens_T, packing, self.pad_id)

    def project_units(self, pooled_UC: Tensor) -> Tensor:
        """Pooled features of units into the joint space, [U, D]."""
        return project(self.clip.text, pooled_UC)

    def encode_text(self, text: Any) -> TextFeatures:
        """Features of a batch's distinct texts (`data_shards.stream.TextBatch`)."""
        units = self.encode_units(text.tokens_T, text.lengths)
        return TextFeatures(units, text.kind_U, text.hash64_U, text.pair_sample_P, text.pair_unit_P)

    # What training asks of the report transformer goes through here: FSDP2 gathers weights for the outermost module.

    def read_reports(
        self, reports: Reports, levels: Collection[str] = (), ids_T: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Every token's state [T, C], and the features of some levels (`ReportTransformer.levels`)."""
        assert self.report is not None
        states = self.report.read(reports, ids_T)
        return states, self.report.levels(states, reports, levels)

    def match_reports(self, *args: Any) -> Tensor:
        """`ReportTransformer.match`."""
        assert self.report is not None
        return self.report.match(*args)

    def predict_masked(self, *args: Any) -> Tensor:
        """`ReportTransformer.predict_masked`."""
        assert self.report is not None
        return self.report.predict_masked(*args)

    def forward(
        self,
        images: Tensor | None,
        text: Any = None,
        tokens: bool = False,
        trunk: bool = False,
        levels: Sequence[int] = (),
        kept: bool = False,
    ) -> DualFeatures:
        """One tower or both in one call, which is what sharded training (FSDP2) hooks into."""
        return DualFeatures(
            None if images is None else self.encode_image(images, tokens, trunk, levels, kept),
            None if text is None else self.encode_text(text),
        )


def _features_and_levels(
    trunk: Any, images: Tensor, levels: Sequence[int], kept: bool
) -> tuple[Tensor, dict[int, Level], Tensor | None]:
    """What the head takes, the maps that are asked for, and with `kept` the places of the tokens that are there; one
    run of the tower for all."""
    if levels and hasattr(trunk, "forward_pyramid"):
        every = trunk.forward_pyramid(images)
        maps = {k: Level(every[k].flatten(2).transpose(1, 2), tuple(every[k].shape[2:])) for k in levels}
        return trunk.features_of(every), maps, None
    features, places = trunk.forward_kept(images) if kept else (trunk.forward_features(images), None)
    if not levels:
        return features, {}, places
    cells, grid = _patch_tokens(trunk, features, images.shape[2:])
    return features, {0: Level(cells, grid if math.prod(grid) == cells.shape[1] else None)}, places


def _patch_tokens(trunk: Any, features: Tensor, size: torch.Size) -> tuple[Tensor, tuple[int, ...]]:
    if features.ndim in (4, 5):  # convolutional trunks: B, C, (D,) H, W; timm's Swin and its kin: B, H, W, C
        if getattr(trunk, "output_fmt", "NCHW") == "NHWC":
            features = features.permute(0, 3, 1, 2)
        return features.flatten(2).transpose(1, 2), tuple(features.shape[2:])
    if hasattr(trunk, "features_grid"):
        grid = trunk.features_grid(tuple(size))
        return features[:, int(trunk.cls_token is not None) :], grid
    prefix = int(getattr(trunk, "num_prefix_tokens", 0))
    return features[:, prefix:], tuple(trunk.patch_embed.grid_size)


def build_dual(model_cfg: dict[str, Any]) -> DualEncoder:
    """A dual encoder with fresh weights from open_clip's `model_cfg` dict; without `text_cfg` an image tower alone.

    Raises:
        TypeError: a key that open_clip 3.3 does not know.
        RuntimeError: an image tower that is not registered in timm.
    """
    from open_clip.model import CustomTextCLIP

    import encoders.voxvit  # noqa: F401  registers our names in timm

    cfg = copy.deepcopy(model_cfg)
    if "text_cfg" not in cfg:
        return DualEncoder(ImageOnly(cfg["vision_cfg"]), model_cfg)
    if cfg.pop("custom_text", None) is not True:
        raise TypeError("model_cfg must say custom_text: true, the layout of the released weights")
    dual = DualEncoder(CustomTextCLIP(**cfg), model_cfg)
    if model_cfg["text_cfg"].get("hf_model_name"):
        dual.pad_id = int(getattr(dual.clip.text.config, "pad_token_id", 0) or 0)
    return dual
