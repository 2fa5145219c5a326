"""Registers the volumetric encoders in timm the moment timm is there, and text towers in open_clip likewise.

`import encoders` has to be enough for open_clip to find our names, and `python -m encoders.release --help` or a
recipe's check must not pay seconds for importing torch. So registration waits for `timm.models`: now if it is loaded,
else right after it loads.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

TRIGGER = "timm.models"
TOWERS = ("encoders.voxvit",)
TEXT_TRIGGER = "open_clip.hf_configs"
# What open_clip has to know of a Hugging Face text tower, of those that it does not know.
TEXT_TOWERS = {"longformer": {"config_names": {"width": "hidden_size"}, "pooler": "cls_pooler"}}


def register() -> None:
    """Make sure that timm and open_clip know our encoders, at once or when they are imported."""
    for trigger, then in ((TRIGGER, _import_towers), (TEXT_TRIGGER, _name_text_towers)):
        if trigger in sys.modules and not getattr(sys.modules[trigger].__spec__, "_initializing", False):
            then()
        elif not any(isinstance(finder, _After) and finder.trigger == trigger for finder in sys.meta_path):
            sys.meta_path.insert(0, _After(trigger, then))


def _import_towers() -> None:
    for name in TOWERS:
        importlib.import_module(name)


def _name_text_towers() -> None:
    known: dict[str, object] = sys.modules[TEXT_TRIGGER].arch_dict
    for name, entry in TEXT_TOWERS.items():
        known.setdefault(name, entry)


class _After(MetaPathFinder):
    """Finds a module as usual, with a loader that registers our towers after it has run."""

    def __init__(self, trigger: str, then: Callable[[], None]) -> None:
        self.trigger, self.then = trigger, then

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.trigger:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader, self.then)
        return spec


class _Then(Loader):
    def __init__(self, loader: Loader, then: Callable[[], None]) -> None:
        self.loader, self.then = loader, then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        if module.__spec__ is not None:  # timm is itself again: resources and sources are found through the real loader
            module.__spec__.loader = module.__loader__ = self.loader
        self.then()
