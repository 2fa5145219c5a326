"""How deep a parameter lies in its tower: what layer-wise learning-rate decay goes by.

The rule is BEiT's (arXiv 2106.08254; microsoft/unilm `beit/optim_factory.py`): with L the number of the projection, a
parameter of layer l has the rate lr · d^(L - l). Embeddings are layer 0, blocks follow, a norm after the last block is
of that block (as in timm), projection and everything behind it have the whole rate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from pretrain.errors import ConfigError

PROJECTION = "projection of the dual encoder"  # stands for it among the names of a trunk that lacks its own head
# Blocks of open_clip's transformers and ResNets and of Hugging Face's models; what ends a tower; and what is before.
BLOCK = re.compile(r"(?:^|\.)(?:resblocks|layers?|blocks?|h|albert_layer_groups)\.(\d+)\.")
STAGE = re.compile(r"(?:^|\.)layer([1-4])\.(\d+)\.")
LAST_NORM = re.compile(r"^(?:.*\.)?(?:ln_post|ln_final|final_layer_norm|ln_f|final_norm)\.")
BEHIND = re.compile(r"(?:^|\.)(?:pooler|attnpool|attn_pool|proj|text_projection|vision_projection)(?:\.|$)")


def layer_factors(clip: nn.Module, decay: float) -> dict[str, float]:
    """Factor of the learning rate of every parameter of an open_clip dual encoder by its name; 1 behind the towers.

    Raises:
        ConfigError: a tower in which no layers can be told apart.
    """
    whole: Any = clip
    factors = {name: 1.0 for name, _ in clip.named_parameters()}
    for tower, part, prefix in (
        ("image", getattr(whole.visual, "trunk", None), "visual.trunk."),
        ("image", whole.visual, "visual."),
        ("text", whole.text, "text."),
    ):
        if part is None or (prefix == "visual." and hasattr(whole.visual, "trunk")):
            continue
        depth, last = _from_timm(part) if hasattr(part, "group_matcher") else _by_name(part)
        if last < 1:  # nothing is in front of the projection (a stem without blocks is: it is one layer)
            raise ConfigError(
                f"optim.layer_decay: the layers of the {tower} tower, a {type(part).__name__}, cannot be told apart",
                why="all of it would move at one rate, and the recipe say otherwise",
                fix="set optim.layer_decay to 1, or use a tower of open_clip, timm or Hugging Face",
            )
        factors |= {prefix + name: decay ** (last - layer) for name, layer in depth.items()}
    return factors


def _from_timm(trunk: Any) -> tuple[Mapping[str, int], int]:
    """Layer of each parameter as timm (and our towers) group them, and the layer of the projection behind the trunk."""
    from timm.models._manipulate import group_with_matcher

    names = [(name, None) for name, _ in trunk.named_parameters()]
    found: dict[str, int] = dict(
        group_with_matcher(iter([*names, (PROJECTION, None)]), trunk.group_matcher(coarse=False), reverse=True)
    )
    return found, found.pop(PROJECTION)


def _by_name(tower: nn.Module) -> tuple[Mapping[str, int], int]:
    """The same of towers that say nothing: blocks by the numbers in their names, in the order of the tower."""
    names = [name for name, _ in tower.named_parameters()]
    blocks = {name: found for name in names if (found := _block(name)) is not None}
    order = {block: i + 1 for i, block in enumerate(sorted(set(blocks.values())))}
    last = len(order) + 1 if order else 0
    depth = {}
    for name in names:
        if name in blocks:
            depth[name] = order[blocks[name]]
        elif LAST_NORM.match(name):
            depth[name] = last - 1
        else:
            depth[name] = last if BEHIND.search(name) else 0
    return depth, last


def _block(name: str) -> tuple[int, int] | None:
    if stage := STAGE.search(name):  # of a ResNet
        return int(stage[1]), int(stage[2])
    found = BLOCK.search(name)
    return (0, int(found[1])) if found else None
