"""Heads that are released beside the dual encoder, by name, so that `heads.json` can rebuild them.

A head is an `nn.Module` whose `options` (plain JSON) are the keyword arguments it was made with. `heads.json` names
registered
classes only, never an import path: a release must not be able to choose which code runs.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from encoders.errors import ReleaseError

_HEADS: dict[str, type[nn.Module]] = {}
Head = TypeVar("Head", bound=type[nn.Module])


def register_head(name: str) -> Callable[[Head], Head]:
    """Class decorator: make a head known as `name`. Raises ValueError when another class has that name."""

    def register(cls: Head) -> Head:
        if _HEADS.setdefault(name, cls) is not cls:
            raise ValueError(f"a head named '{name}' is registered already")
        return cls

    return register


def describe_head(head: nn.Module) -> dict[str, Any]:
    """The entry of a head in `heads.json`: {"class": name, "options": {...}}.

    Raises:
        ReleaseError: its class is not registered, so that nobody could load it.
    """
    for name, cls in _HEADS.items():
        if type(head) is cls:
            return {"class": name, "options": dict(head.options)}  # type: ignore[arg-type]
    raise ReleaseError(
        f"head class {type(head).__name__} is not registered",
        "its weights would be released without a way to load them",
        "decorate it with encoders.heads.register_head",
    )


def build_heads(spec: Mapping[str, Mapping[str, Any]], weights: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """Heads from `heads.json` (`spec`) and `heads.safetensors` (`weights`, keys `NAME.parameter`), in eval mode.

    Raises:
        ReleaseError: an unregistered class, options it does not take, or weights that do not fit.
    """
    for module in pkgutil.iter_modules(__path__):  # every head of this package is known, whoever was imported before
        importlib.import_module(f"{__name__}.{module.name}")
    import encoders.report_transformer  # noqa: F401  registers ours

    heads: dict[str, nn.Module] = {}
    for name, entry in spec.items():
        cls, options = _HEADS.get(str(entry.get("class"))), entry.get("options") or {}
        if cls is None:
            raise ReleaseError(
                f"head '{name}' is of class '{entry.get('class')}', which is not registered",
                "its scores would be missing",
                f"import the module that registers it; known here: {sorted(_HEADS) or 'none'}",
            )
        try:
            head = cls(**options)
            head.load_state_dict({k[len(name) + 1 :]: v for k, v in weights.items() if k.startswith(f"{name}.")})
        except (TypeError, RuntimeError) as error:
            raise ReleaseError(
                f"head '{name}' cannot be rebuilt: {error}",
                "it would score with random weights",
                "use the version of this package that wrote the release",
            ) from error
        heads[name] = head.eval()
    unclaimed = sorted({k for k in weights if k.partition(".")[0] not in heads})
    if unclaimed:
        raise ReleaseError(
            f"weights of no described head: {', '.join(unclaimed[:4])}",
            "nobody could say what they are for",
            "describe each released head (encoders.heads.describe_head)",
        )
    return heads
