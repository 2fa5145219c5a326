"""Weights of an open_clip model as the start of a dual encoder, or of its image tower alone: `model.pretrained` and
`model.image.pretrained`.

A source is a file, or the name of one of the weights that open_clip knows for the architecture (a "tag"), which are
fetched from a hub or found in its cache. Files are read as tensors alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from encoders.errors import ReleaseError
from encoders.tensor_file import read_tensors

Towers = Literal["both", "image"]
WHY = "part of the model would stay random, or hold other weights than it should"
# SigLIP's bias is of a loss, not of a tower; text towers of transformers before 4.31 stored a count from 0 up.
OPTIONAL = ("logit_bias", "text.transformer.embeddings.position_ids")


@dataclass(frozen=True)
class Started:
    """What became of every tensor: how many of the model were `filled`, which of the file were left `aside`, and which
    positions were interpolated to another number of patches or tokens (`resized`)."""

    filled: int
    aside: tuple[str, ...]
    resized: tuple[str, ...]

    def __str__(self) -> str:
        tops = sorted({name.partition(".")[0] for name in self.aside})
        said = f"{self.filled} tensors filled; left aside: {f'{len(self.aside)} of ' if tops else ''}"
        return said + (", ".join(tops) or "none") + "".join(f"; {name} interpolated" for name in self.resized)


def start_from_open_clip(clip: nn.Module, architecture: str, source: str, towers: Towers) -> Started:
    """Fill a model in place.

    Args:
        clip: an `open_clip.CustomTextCLIP`. architecture: the open_clip name whose tags `source` may be one of.
        towers: "image" fills the image tower with its projection, and leaves the rest of the file aside.

    Every tensor of the model (of the image tower) is set and every one of the file is used, but for `OPTIONAL`.
    Positions of another image size or context are interpolated as open_clip does.

    Raises:
        ReleaseError: no such file or tag, weights that cannot be fetched or are no tensors, a tag that was trained with
            another activation, or keys or shapes of another model: all are listed.
    """
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed

    stored = dict(convert_to_custom_text_state_dict(_read(_file_of(architecture, source))))
    for name in ("logit_scale", "logit_bias"):  # a number, or a list of one
        if name in stored:
            stored[name] = stored[name].reshape(())
    aside = [name for name in stored if towers == "image" and not name.startswith("visual.")]
    stored = {name: value for name, value in stored.items() if name not in aside}
    wanted = {k: v for k, v in clip.state_dict().items() if towers == "both" or k.startswith("visual.")}
    for name in OPTIONAL:
        if (name in stored) != (name in wanted):
            aside += [name] * (stored.pop(name, None) is not None)
            wanted.pop(name, None)
    shapes = {name: tuple(value.shape) for name, value in stored.items()}
    for name, resize in (("visual", resize_pos_embed), ("text", resize_text_pos_embed)):
        theirs, ours = (d.get(f"{name}.positional_embedding") for d in (stored, wanted))
        if theirs is not None and ours is not None and theirs.shape[1:] == ours.shape[1:]:
            resize(stored, clip)
    _refuse_unfit(source, architecture, stored, wanted)
    clip.load_state_dict(stored, strict=False)  # strict by _refuse_unfit; what is not `wanted` stays as it is
    resized = tuple(sorted(name for name, value in stored.items() if tuple(value.shape) != shapes[name]))
    return Started(len(wanted), tuple(aside), resized)


def _refuse_unfit(source: str, architecture: str, stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    other = [k for k in stored if k in wanted and stored[k].shape != wanted[k].shape]
    shapes = [f"{k} {tuple(stored[k].shape)} for {tuple(wanted[k].shape)}" for k in other]
    found = {
        "missing": sorted(set(wanted) - set(stored)),
        "unexpected": sorted(set(stored) - set(wanted)),
        "of another shape": shapes,
    }
    said = [f"{len(names)} {what}: {', '.join(names)}" for what, names in found.items() if names]
    if said:
        raise ReleaseError(
            f"'{source}' does not fit the model. {'. '.join(said)}",
            WHY,
            f"name the architecture of the weights (here {architecture}); its own sizes are in "
            f"open_clip.get_model_config('{architecture}')",
        )


def _file_of(architecture: str, source: str) -> Path:
    """The file, or the one that a tag stands for."""
    import open_clip
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg

    path = Path(source).expanduser()
    if path.is_file():
        return path
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if source not in tags:
        raise ReleaseError(
            f"'{source}' is neither a file nor weights that open_clip knows for {architecture}",
            "the model would start at random",
            f"a file, or one of {', '.join(tags) or '(it knows none)'}",
        )
    cfg: dict[str, Any] = get_pretrained_cfg(architecture, source)
    quick = bool((open_clip.get_model_config(architecture) or {}).get("quick_gelu"))
    if bool(cfg.get("quick_gelu")) != quick:
        better = architecture.removesuffix("-quickgelu") if quick else f"{architecture}-quickgelu"
        raise ReleaseError(
            f"'{source}' was trained with {'GELU' if quick else 'QuickGELU'}, {architecture} has the other",
            "every layer would compute something else than it was trained to, without an error",
            f"use {better}",
        )
    try:
        return Path(download_pretrained(cfg))
    except Exception as error:  # whatever a hub or a network raises
        raise ReleaseError(
            f"the weights '{source}' of {architecture} cannot be fetched: {_first_line(error)}",
            "the model would start at random",
            "download the file where there is a network, and name it here",
        ) from error


def _read(path: Path) -> Mapping[str, Tensor]:
    held = read_tensors(path, "a .safetensors file, or a state dict of an open_clip model that torch.save wrote")
    prefix = "module." if all(name.startswith("module.") for name in held) else ""
    return {name.removeprefix(prefix): value for name, value in held.items()}


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
