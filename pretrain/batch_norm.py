"""BatchNorm makes every study's features depend on its batch; what that means for training (`model.image.batch_norm`).

A batch that is encoded in parts (`train.chunk`) is normalised by its parts, so the gradient is no longer that of the
batch: relative errors of 0.43 and, with `i3d_resnet26` at random on 16×32×32 voxels, of 2.6 were measured.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch.nn.modules.batchnorm import _BatchNorm

from encoders.dual import DualEncoder
from encoders.tag_resnet3d import parse_resnet_tag
from pretrain.errors import ConfigError

if TYPE_CHECKING:
    from pretrain.schema import Recipe


def with_group_norm(name: str) -> str:
    """The name of the same inflated ResNet with GroupNorm."""
    return replace(parse_resnet_tag(name), norm="group").name


def settle_batch_norm(dual: DualEncoder, recipe: Recipe) -> None:
    """Freeze the statistics where the recipe says so, or locks the image tower (`optim.lr_multipliers.image: 0`), which
    would go on changing by them alone.

    Raises:
        ConfigError: there is none to freeze; or batches are cut into parts and statistics would be those of parts.
    """
    found = [name for name, module in dual.clip.named_modules() if isinstance(module, _BatchNorm)]
    choice, train = recipe.model.image.batch_norm, recipe.train
    if choice == "frozen" and not found:
        raise ConfigError(
            f"model.image.batch_norm: '{recipe.model.image.name}' has no BatchNorm to freeze",
            why="the recipe would say what is not so",
            fix="leave it out",
        )
    if choice == "frozen" or recipe.optim.lr_multipliers.image == 0:
        dual.frozen_statistics = True
        dual.train(dual.training)
    elif found and train.chunk is not None and train.chunk < train.batch_size:
        raise ConfigError(
            f"train.chunk: {len(found)} layers of this model are BatchNorm, first {found[0]}",
            why="a batch in parts would be normalised part by part: another loss and another gradient",
            fix="model.image.batch_norm: group (i3d_*) or frozen (towers with weights), or train.chunk: null",
        )
