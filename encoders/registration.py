"""Makes our encoders known to timm, and Longformer to open_clip, the moment these libraries are there.

`import encoders` has to be enough for open_clip to find our names, and `python -m encoders.release --help` or a
recipe's check must not pay seconds for importing torch. So registration waits for the module it adds to: now if that is
loaded, else right after it loads.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

TOWERS = ("encoders.voxvit", "encoders.resnet3d", "encoders.swin3d")


def _towers() -> None:
    for name in TOWERS:
        importlib.import_module(name)


def _longformer() -> None:
    """open_clip 3.3 builds any text tower of transformers whose names of sizes it knows; Longformer's are RoBERTa's."""
    known = sys.modules["open_clip.hf_configs"].arch_dict
    known.setdefault("longformer", {**known["roberta"], "pooler": "cls_pooler"})


AFTER: dict[str, Callable[[], None]] = {"timm.models": _towers, "open_clip.hf_configs": _longformer}


def register() -> None:
    """Make sure that timm and open_clip know what we add, at once or when they are imported."""
    for name, add in AFTER.items():
        if name in sys.modules and not getattr(sys.modules[name].__spec__, "_initializing", False):
            add()
        elif not any(isinstance(finder, _After) and finder.name == name for finder in sys.meta_path):
            sys.meta_path.insert(0, _After(name))


class _After(MetaPathFinder):
    """Finds one module as usual, with a loader that adds to it after it has run."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader, AFTER[name])
        return spec


class _Then(Loader):
    def __init__(self, loader: Loader, add: Callable[[], None]) -> None:
        self.loader, self.add = loader, add

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        if module.__spec__ is not None:  # it is itself again: resources and sources are found through the real loader
            module.__spec__.loader = module.__loader__ = self.loader
        self.add()
