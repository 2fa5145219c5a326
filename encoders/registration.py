"""Registers the volumetric encoders in timm the moment timm is there.

`import encoders` has to be enough for open_clip to find our names, and `python -m encoders.release --help` or a
recipe's check must not pay seconds for importing torch. So registration waits for `timm.models`: now if it is loaded,
else right after it loads.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

TRIGGER = "timm.models"
TOWERS = ("encoders.voxvit", "encoders.swin3d")


def register() -> None:
    """Make sure that timm knows our encoders, at once or when it is imported."""
    if TRIGGER in sys.modules and not getattr(sys.modules[TRIGGER].__spec__, "_initializing", False):
        _import_towers()
    elif not any(isinstance(finder, _AfterTimm) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTimm())


def _import_towers() -> None:
    for name in TOWERS:
        importlib.import_module(name)


class _AfterTimm(MetaPathFinder):
    """Finds `timm.models` as usual, with a loader that registers our towers after it has run."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != TRIGGER:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader)
        return spec


class _Then(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        if module.__spec__ is not None:  # timm is itself again: resources and sources are found through the real loader
            module.__spec__.loader = module.__loader__ = self.loader
        _import_towers()
