"""Stage-1 checks of terms that a recipe can have once: no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pretrain.schema import ObjectiveSection
from pretrain.yaml_lines import Problem

ONCE = ("byol", "distillation")  # whose pass holds a moving average of its own


def check_once(objectives: Sequence[ObjectiveSection]) -> Iterator[Problem]:
    for name in ONCE:
        for i in [i for i, objective in enumerate(objectives) if objective.name == name][1:]:
            what = f"{name} is listed twice, and a recipe has one moving average of that name"
            yield Problem(("objectives", i, "name"), what, "leave one out; weight and schedule change its share")
