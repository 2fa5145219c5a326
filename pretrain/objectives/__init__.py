"""Objectives by name. A new method is one file here and a name in a YAML, or an import path `package.module:Class`."""

from __future__ import annotations

import importlib

from pydantic import ValidationError

from pretrain.objectives.base import Objective

NAMES = {
    "contrastive": "pretrain.objectives.contrastive:Contrastive",
    "sigmoid": "pretrain.objectives.sigmoid:Sigmoid",
    "sentence": "pretrain.objectives.sentence:Sentence",
}


def build_objective(name: str, options: dict[str, object]) -> Objective:
    """An objective from its recipe entry.

    Raises:
        ValueError: a name or import path that does not exist, no Objective, or options it does not take.
    """
    path = NAMES.get(name, name)
    module, _, attribute = path.partition(":")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"objective '{name}' cannot be imported: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, Objective)):
        raise ValueError(f"objective '{name}' is no subclass of pretrain.objectives.base.Objective")
    try:
        return cls(cls.Options.model_validate(options))
    except ValidationError as error:
        lines = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"objective '{name}': {lines}") from error
