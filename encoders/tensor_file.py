"""A file of somebody's weights to a dict of tensors, without executing anything in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from encoders.errors import ReleaseError

WRAPPERS = ("state_dict", "model")  # where training scripts put the weights inside what they save


def read_tensors(path: str | Path, fix: str) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of one that `torch.save` wrote, bare or under one of WRAPPERS, by the file's
    own names.

    Args:
        fix: what to name instead, for the errors.

    Raises:
        ReleaseError: no such file, a damaged one, one that holds code, or something else than tensors.
    """
    import torch
    from safetensors.torch import load_file

    file = Path(path).expanduser()
    try:
        held: Any = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # whatever pickle, zip, safetensors and the disk raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ReleaseError(
            f"'{file.name}' cannot be read as tensors: {reason}",
            "a pickle that holds more than tensors can run code, and a damaged file holds no weights",
            fix,
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(held, Mapping) and isinstance(held.get(wrapper), Mapping):
            held = held[wrapper]
    if not (isinstance(held, Mapping) and held and all(isinstance(value, Tensor) for value in held.values())):
        raise ReleaseError(f"'{file.name}' holds no dict of tensors", "part of the model would stay random", fix)
    return dict(held)
