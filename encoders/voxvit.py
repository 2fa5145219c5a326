"""`voxvit`: a vision transformer over volumes, registered in timm, its geometry in its name (encoders.tag).

Legend: B studies (mostly of one volume), K volumes of a study, C width, (D, H, W) token grid of a volume, S = H·W
tokens of one slice, N = D·S tokens (of all volumes: K·D·S).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from encoders.block import NORM_EPS, Block, rope_tables
from encoders.create import create_tower
from encoders.pooling import AttentionPool, GridPool
from encoders.stem import ConvStem, ExtremesStem, PatchStem
from encoders.study_tokens import StudyTokens, present_volumes, seen
from encoders.tag import SIZES, Tag, parse_tag
from encoders.tag_fields import Size3

# Scans look alike and stem tokens are large: positions as faint as a 2D ViT's 0.02 are not heard for hundreds of steps.
POSITION_STD = 0.2


def _at(x_BNC: Tensor, keep_BK: Tensor | None) -> Tensor:
    """Rows [B, K, C] at the places that token dropout leaves."""
    return x_BNC if keep_BK is None else x_BNC.gather(1, keep_BK[..., None].expand(-1, -1, x_BNC.shape[2]))


class VoxViT(nn.Module):
    """Vision transformer over volumes [B, channels, D, H, W] of any size that is a multiple of the patch.

    With `tag.volumes` K above 1 the channels are those of K volumes one after another, the volumes of a study. Each
    goes through the same stem and has the same positions, and an embedding of its number; tokens of all volumes are
    those of the study, as if the volumes lay one above another. A volume that is -1 everywhere is absent: its tokens
    are neither computed nor attended nor pooled, and zero in what `forward_features` gives.

    The interface is timm's: `forward_features` [B, (1+)N, C], `forward_head` [B, C], `forward`, `num_features`,
    `reset_classifier`, `group_matcher`, `set_grad_checkpointing`, `no_weight_decay`, so that open_clip can wrap it.

    Args:
        tag: the geometry.
        num_classes: width of a linear classifier; 0 for none.
        token_dropout: share of tokens dropped in training, the same number in every slice (FLIP, arXiv 2212.00794).
    """

    def __init__(self, tag: Tag, num_classes: int = 0, token_dropout: float = 0.0) -> None:
        super().__init__()
        width, depth, heads = SIZES[tag.size]
        self.tag, self.num_classes, self.token_dropout = tag, num_classes, token_dropout
        self.num_features = self.head_hidden_size = self.embed_dim = width
        self.grad_checkpointing = False
        self.token_stride = tag.patch
        self.default_cfg = self.pretrained_cfg = {
            "architecture": tag.name,
            "input_size": (tag.channels, *tag.grid),
            "pool_size": None,
            "num_classes": num_classes,
            "first_conv": "patch_embed.0",
            "classifier": "head",
        }
        stems = {"patch": PatchStem, "conv": ConvStem, "extremes": ExtremesStem}
        self.patch_embed = stems[tag.stem](tag.channels_each, width, tag.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if tag.pool == "cls" else None
        if tag.positions == "learned":
            self.pos_embed: nn.Parameter | None = nn.Parameter(torch.randn(1, width, *tag.tokens) * POSITION_STD)
        else:
            self.pos_embed = None
        # Zero: the number of a volume says nothing of the body, as its positions do, until training finds that it does.
        self.volume_embed = nn.Parameter(torch.zeros(tag.volumes, width)) if tag.volumes > 1 else None
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth if tag.layers is None else tag.layers))
        self.norm = nn.LayerNorm(width, NORM_EPS)
        self.attn_pool = AttentionPool(width, heads) if tag.pool == "attn" else None
        self.grid_pool = GridPool(width, math.prod(tag.tokens)) if tag.pool == "grid" else None
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        self.apply(self._init)

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def token_grid(self, size: Size3) -> Size3:
        """Token grid of a study whose volumes have `size` voxels: along its depth one volume after another.

        Raises:
            ValueError: the patch does not divide the size.
        """
        if any(s % p or s < p for s, p in zip(size, self.tag.patch, strict=True)):
            raise ValueError(
                f"a volume of {'x'.join(map(str, size))} voxels cannot be cut into patches of "
                f"{'x'.join(map(str, self.tag.patch))}\n  why: a part of the body would be dropped in silence\n"
                "  fix: pad or crop to a multiple of the patch (the release's own preprocessing does)"
            )
        depth, height, width = (s // p for s, p in zip(size, self.tag.patch, strict=True))
        return self.tag.volumes * depth, height, width

    def features_grid(self, size: Size3) -> Size3:
        """Grid of the tokens that `forward_features` gives for volumes of `size` voxels."""
        return self.token_grid(self.tag.grid if self.grid_pool is not None else size)

    def _rope(self, grid: Size3, keep: Tensor | None, batch: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        if self.tag.positions != "rope":
            return None
        tables = []
        for table, identity in zip(rope_tables(grid, self._head_width, device), (1.0, 0.0), strict=True):
            table = table.expand(batch, -1, -1)
            table = _at(table, keep)
            if self.cls_token is not None:  # the CLS token has no place: it is not rotated
                table = F.pad(table, (0, 0, 1, 0), value=identity)
            tables.append(table)
        return tables[0], tables[1]

    @property
    def _head_width(self) -> int:
        return self.embed_dim // SIZES[self.tag.size][2]

    def _kept(self, grid: Size3, batch: int, device: torch.device) -> Tensor | None:
        """Indices [B, kept] of the tokens that stay, ordered; the same number in each slice."""
        if not (self.training and self.token_dropout > 0):
            return None
        per_slice = grid[1] * grid[2]
        stay = max(1, round(per_slice * (1 - self.token_dropout)))
        order = torch.rand(batch, grid[0], per_slice, device=device).argsort(-1)[..., :stay].sort(-1).values
        return (order + torch.arange(grid[0], device=device)[None, :, None] * per_slice).flatten(1)

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, channels, D, H, W] in the release's windows to normalised tokens [B, (1+)N, C], CLS (if any) first."""
        return self.forward_kept(x)[0]

    def forward_kept(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward_features` gives, and the places in the token grid [B, kept] that were seen, in order.

        Token dropout takes the same number of tokens from every slice before any block; a `patch` stem does not even
        embed them.
        """
        grid = self.token_grid(x.shape[2:])  # type: ignore[arg-type]
        keep = self._kept(grid, x.shape[0], x.device)
        tokens = self._of_volumes(x, keep, grid) if self.tag.volumes == 1 else self._of_studies(x, keep, grid)
        if keep is None:
            keep = torch.arange(math.prod(grid), device=x.device).expand(x.shape[0], -1)
        return tokens, keep

    def _of_volumes(self, x: Tensor, keep: Tensor | None, grid: Size3) -> Tensor:
        x = self._embed(x, keep, grid)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
        rope = self._rope(grid, keep, x.shape[0], x.device)
        for i, block in enumerate(self.blocks):
            slices = grid[0] if self.tag.attention == "slice3" and i % 3 != 2 and grid[0] > 1 else 1
            x = self._run(block, x, rope, slices)
        x = self.norm(x)
        if self.grid_pool is not None and (keep is not None or grid != self.tag.tokens):
            x = self._on_native_grid(x, keep, grid)
        return x

    def _of_studies(self, x: Tensor, keep: Tensor | None, whole: Size3) -> Tensor:
        """Volumes that are there, one after another; places `keep` are those of the grid `whole` of all volumes."""
        assert self.volume_embed is not None
        volumes = self.tag.volumes
        grid: Size3 = (whole[0] // volumes, *whole[1:])
        each = math.prod(grid)
        if keep is not None:  # places inside their own volume
            keep = keep.view(len(x) * volumes, -1) % each
        tokens = each if keep is None else keep.shape[1]
        study = StudyTokens.of(present_volumes(x, volumes), tokens, int(self.cls_token is not None))
        keep = None if keep is None else study.present(keep)
        y = self._embed(study.present(x.unflatten(1, (volumes, -1)).flatten(0, 1)), keep, grid)
        y = y + study.present(self.volume_embed.repeat(len(x), 1))[:, None]
        rows = y.flatten(0, 1)
        rope = None
        if self.tag.positions == "rope":
            tables = (t.expand(len(y), -1, -1) for t in rope_tables(grid, self._head_width, x.device))
            rope = tuple(_at(table, keep).flatten(0, 1) for table in tables)
        if self.cls_token is not None:
            rows = torch.cat([self.cls_token[0].expand(len(x), -1).to(rows.dtype), rows])
            if rope is not None:
                ends = zip(rope, (1.0, 0.0), strict=True)  # CLS is not rotated
                rope = tuple(F.pad(table, (0, 0, len(x), 0), value=identity) for table, identity in ends)
        inside = {"slice3": grid[0], "volume3": 1, "full": 0}[self.tag.attention]
        for i, block in enumerate(self.blocks):
            rows = self._run(block, rows, rope, inside if i % 3 != 2 else 0, study)
        rows = self.norm(rows)
        if self.grid_pool is not None and (keep is not None or grid != self.tag.tokens):
            rows = self._on_native_grid(rows.view(y.shape), keep, grid).flatten(0, 1)
        return study.dense(rows)

    def _embed(self, x: Tensor, keep: Tensor | None, grid: Size3) -> Tensor:
        """Volumes to their tokens with positions, those at the places `keep` alone."""
        if keep is not None and isinstance(self.patch_embed, PatchStem):
            x = self.patch_embed.some(x, keep)
        else:
            x = _at(self.patch_embed(x).flatten(2).transpose(1, 2), keep)
        if self.pos_embed is not None:
            place: Tensor = self.pos_embed
            if grid != self.tag.tokens:
                place = F.interpolate(place, size=grid, mode="trilinear", align_corners=False)
            x = x + _at(place.flatten(2).transpose(1, 2).expand(x.shape[0], -1, -1), keep)
        return x

    def _run(self, block: nn.Module, x: Tensor, rope: Any, slices: int, *study: StudyTokens) -> Tensor:
        if self.grad_checkpointing and self.training:
            return checkpoint(block, x, rope, slices, *study, use_reentrant=False)
        return block(x, rope, slices, *study)

    def _on_native_grid(self, x: Tensor, keep: Tensor | None, grid: Size3) -> Tensor:
        """Tokens put back to their places (dropped ones are zero) and resampled to the native grid."""
        batch, _, width = x.shape
        if keep is not None:
            places = x.new_zeros(batch, math.prod(grid), width)
            x = places.scatter(1, keep[..., None].expand(-1, -1, width), x)
        block = x.transpose(1, 2).reshape(batch, width, *grid)
        block = F.interpolate(block, size=self.tag.tokens, mode="trilinear", align_corners=False)
        return block.flatten(2).transpose(1, 2)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens to one vector a study [B, C], or classifier logits. Of several volumes, `o-grid` pools each by itself
        and takes their mean."""
        if self.tag.volumes > 1 and self.cls_token is None:
            x = self._pooled_studies(x)
        elif self.attn_pool is not None:
            x = self.attn_pool(x)
        elif self.grid_pool is not None:
            x = self.grid_pool(x)
        elif self.cls_token is not None:
            x = x[:, 0]
        else:
            x = x.amax(1) if self.tag.pool == "max" else x.mean(1)
        return x if pre_logits else self.head(x)

    def _pooled_studies(self, x: Tensor) -> Tensor:
        seen_BN = seen(x)
        seen_BN = seen_BN | ~seen_BN.any(1, keepdim=True)  # a single token of an absent volume, say, stays finite
        if self.attn_pool is not None:
            return self.attn_pool(x, seen_BN)
        if self.tag.pool == "max":
            return x.masked_fill(~seen_BN[..., None], -torch.inf).amax(1)
        if self.grid_pool is not None:
            volumes = (len(x), self.tag.volumes)
            seen_BN = seen_BN.view(*volumes, -1).any(2)
            x = self.grid_pool(x.reshape(math.prod(volumes), -1, x.shape[2])).view(*volumes, -1)
            x = x * seen_BN[..., None]
        return x.sum(1) / seen_BN.sum(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier. Pooling is part of the name: asking for another one is refused."""
        if global_pool not in (None, "", self.tag.pool):
            raise ValueError(f"pooling '{global_pool}' asked of {self.tag.name}: name it in the tag (o-…)")
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        blocks = [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^cls_token|pos_embed|volume_embed|patch_embed", "blocks": blocks}

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "volume_embed", "cls_token", "attn_pool.query"}


def _create(size: str, pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> VoxViT:
    return create_tower(
        f"voxvit_{size}", parse_tag, lambda tag, classes, patch_drop_rate=0.0: VoxViT(tag, classes, patch_drop_rate),
        lambda tag: tag.pool, "load a release folder instead (encoders.load)", pretrained, pretrained_cfg, kwargs,
        takes=("patch_drop_rate",),
    )  # fmt: skip


@register_model
def voxvit_tiny(pretrained: bool = False, **kwargs: Any) -> VoxViT:
    """Width 192, 12 blocks, 3 heads."""
    return _create("tiny", pretrained, **kwargs)


@register_model
def voxvit_small(pretrained: bool = False, **kwargs: Any) -> VoxViT:
    """Width 384, 12 blocks, 6 heads."""
    return _create("small", pretrained, **kwargs)


@register_model
def voxvit_base(pretrained: bool = False, **kwargs: Any) -> VoxViT:
    """Width 768, 12 blocks, 12 heads."""
    return _create("base", pretrained, **kwargs)


@register_model
def voxvit_large(pretrained: bool = False, **kwargs: Any) -> VoxViT:
    """Width 1024, 24 blocks, 16 heads."""
    return _create("large", pretrained, **kwargs)
