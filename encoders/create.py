"""What timm calls to make one of our towers for volumes, the same for every family: its geometry is in its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from timm.models import load_pretrained
from torch import nn

Model = TypeVar("Model", bound=nn.Module)
TIMMS_OWN = ("pretrained_cfg_overlay", "cache_dir", "pretrained_model_args")  # of no use here


def create_tower(
    name: str, parse: Callable[[str], Any], make: Callable[..., Model], pool: Callable[[Any], str],
    no_weights: str, pretrained: bool, pretrained_cfg: Any, options: dict[str, Any], takes: Sequence[str] = (),
) -> Model:  # fmt: skip
    """A tower from what stood after the dot of its name (`pretrained_cfg`), or from a folder's config (`local-dir:`).

    Args:
        name: before the dot. parse: whole name -> tag. make: (tag, number of classes, those of `takes`) -> tower.
        pool: of a tag, how timm calls its pooling. no_weights: where weights come from, since none are published under
            these names.
        options: timm's other arguments. takes: of these, what the tower takes where it is stated.

    Raises:
        TypeError: an argument that this tower would have to ignore.
        RuntimeError: `pretrained` without a folder.
    """
    folder = pretrained_cfg if isinstance(pretrained_cfg, Mapping) else None
    if pretrained and folder is None:
        raise RuntimeError(f"{name} has no weights to download: {no_weights}")
    tag = parse(
        folder["architecture"] if folder is not None else name + (f".{pretrained_cfg}" if pretrained_cfg else "")
    )
    num_classes = options.pop("num_classes", None) or 0
    taken = {key: value for key in takes if (value := options.pop(key, None)) is not None}
    stated = {"in_chans": tag.channels, "img_size": tag.grid, "global_pool": pool(tag)}
    strange = {k: v for k, v in options.items() if k not in TIMMS_OWN and v not in (None, "", stated.get(k))}
    if strange:
        raise TypeError(f"{tag.name} takes no {strange}: its geometry is in its name")
    model = make(tag, num_classes, **taken)
    if folder is not None:
        model.default_cfg = model.pretrained_cfg = {**model.default_cfg, **folder}  # type: ignore[assignment,dict-item]
        if pretrained:
            load_pretrained(model, model.pretrained_cfg, num_classes=num_classes, in_chans=tag.channels, strict=True)  # type: ignore[arg-type]
    return model
