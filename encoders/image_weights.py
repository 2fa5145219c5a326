"""Files of weights into timm towers of images: torchvision's and timm's ImageNet networks, SAM's image encoder.

Nothing is loaded in part: a tensor of the tower that the file lacks, one of the file that the tower lacks (classifiers
and the other parts of SAM aside), or another shape is an error that lists them. Tables of positions alone are resampled
to the tower's size, since they are defined at any size. Files from before torch 0.4.1 lack BatchNorm's count of
batches, which no feature depends on: the tower keeps its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from encoders.errors import ReleaseError
from encoders.inflate import Inflation
from encoders.tensor_file import read_tensors

SAM = "image_encoder."  # of segment-anything's own checkpoints, beside prompt_encoder. and mask_decoder.
CLASSIFIERS = ("fc.", "head.", "classifier.", "head_dist.")
COUNT = ".num_batches_tracked"
LISTED = 8  # names in an error
FIX = "name a .safetensors file, or a .pth that torch.save wrote of a state dict"


def load_image_weights(trunk: nn.Module, path: str | Path) -> tuple[Inflation, tuple[str, ...]]:
    """Fill a tower from a .safetensors file, or a .pth or .pt that is read without executing it.

    Returns:
        What became of every tensor, and which were resampled to another size of images.

    Raises:
        ReleaseError: no such file, no state dict, or weights of another architecture; with the names.
    """
    given = {key.removeprefix("module."): value for key, value in read_tensors(path, FIX).items()}
    stored, aside = _of_tower(given, trunk)
    wanted = trunk.state_dict()
    counts = {name: own for name, own in wanted.items() if name.endswith(COUNT) and name not in stored}
    resampled = []
    for name in sorted(stored.keys() & wanted.keys()):
        if stored[name].shape == wanted[name].shape:
            continue
        if (fitted := _resized(name, stored[name], wanted[name])) is not None:
            stored[name] = fitted
            resampled.append(name)
    missing = sorted(wanted.keys() - stored.keys() - counts.keys())
    strange = sorted(stored.keys() - wanted.keys())
    other = [k for k in sorted(wanted.keys() & stored.keys()) if stored[k].shape != wanted[k].shape]
    found = {"missing from the file": missing, "unexpected in the file": strange, "of another shape": other}
    said = [f"{len(names)} {what}: {_some(names)}" for what, names in found.items() if names]
    if said:
        raise ReleaseError(
            f"'{Path(path).name}' does not fit this tower: " + "; ".join(said),
            "part of it would stay random, or hold other weights than the file's",
            "name the architecture that the file was made for in model.image.name (timm.list_models())",
        )
    trunk.load_state_dict({**stored, **counts}, strict=True)
    return Inflation(len(stored), tuple(aside), ()), tuple(resampled)


def _of_tower(given: Mapping[str, Tensor], trunk: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """The file's tensors by the tower's names, and those that are no part of it."""
    own = set(trunk.state_dict())
    sam = any(key.startswith(SAM) for key in given)
    stored: dict[str, Tensor] = {}
    aside = []
    for key, value in given.items():
        if (sam and not key.startswith(SAM)) or (key not in own and key.startswith(CLASSIFIERS)):
            aside.append(key)
            continue
        stored[key.removeprefix(SAM).replace(".mlp.lin", ".mlp.fc") if sam else key] = value
    return stored, aside


def _resized(name: str, value: Tensor, wanted: Tensor) -> Tensor | None:
    """A table of positions for another number of patches; None for any other tensor."""
    last = name.rpartition(".")[2]
    if last in ("rel_pos_h", "rel_pos_w") and value.shape[1:] == wanted.shape[1:]:
        return F.interpolate(value.float().T[None], wanted.shape[0], mode="linear")[0].T.to(value.dtype)
    if last != "pos_embed" or value.ndim != wanted.ndim or value.shape[-1] != wanted.shape[-1]:
        return None
    from timm.layers import resample_abs_pos_embed, resample_abs_pos_embed_nhwc

    if value.ndim == 4:  # SAM: rows and columns
        return resample_abs_pos_embed_nhwc(value, list(wanted.shape[1:3]))
    prefix, side = _prefix(value.shape[1]), _side(wanted.shape[1])
    if prefix is None or side is None or side**2 + prefix != wanted.shape[1]:
        return None
    return resample_abs_pos_embed(value, [side, side], num_prefix_tokens=prefix)


def _prefix(tokens: int) -> int | None:
    """Tokens before a square of patches: none, or [CLS]."""
    return next((n for n in (0, 1) if round((tokens - n) ** 0.5) ** 2 == tokens - n), None)


def _side(tokens: int) -> int | None:
    prefix = _prefix(tokens)
    return None if prefix is None else round((tokens - prefix) ** 0.5)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
