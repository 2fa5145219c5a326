"""One line that names a model, to the model on its device."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from eval_zero_shot.errors import EvalError
from eval_zero_shot.models import KINDS, split_spec

if TYPE_CHECKING:
    from encoders.loading import Loaded


def load_model(spec: str, device: str) -> Loaded:
    """`KIND:REST` as `eval_zero_shot.models.KINDS` lists it.

    Raises:
        EvalError: unknown kind, weights that are not there or not loadable, a package that is not installed.
    """
    parts = split_spec(spec)
    if parts is None or not parts[1]:
        raise EvalError(
            f"'{spec}' names no model",
            why="there is nothing to load",
            fix="python -m eval_zero_shot.models lists the kinds: " + ", ".join(f"{k}:..." for k in KINDS),
        )
    kind, rest = parts
    module = import_module(f"eval_zero_shot.models.{KINDS[kind].module}")
    return module.load(kind, rest, device)


def with_kind(name: str) -> str:
    """How a model that somebody names without its kind is named here; "" for what no library of ours knows."""
    import open_clip
    import timm

    if name in open_clip.list_models():
        return f"open_clip:{name}/TAG, TAG a pretrained tag of it or a file of its weights"
    return f"timm:{name}" if timm.is_model(name) else ""
