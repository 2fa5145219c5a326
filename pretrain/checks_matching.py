"""Stage-1 checks of `graph_matching` and of terms that a recipe can have once: no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import ValidationError

from pretrain.schema import ObjectiveSection
from pretrain.schema_objectives import GraphMatchingOptions
from pretrain.yaml_lines import Problem

ONCE = ("byol", "distillation")  # whose pass holds a moving average of its own


def check_once(objectives: Sequence[ObjectiveSection]) -> Iterator[Problem]:
    for name in ONCE:
        for i in [i for i, objective in enumerate(objectives) if objective.name == name][1:]:
            what = f"{name} is listed twice, and a recipe has one moving average of that name"
            yield Problem(("objectives", i, "name"), what, "leave one out; weight and schedule change its share")


def check_matching(objectives: Sequence[ObjectiveSection]) -> Iterator[Problem]:
    """Options of `graph_matching` that were written and that its others leave unread."""
    for i, objective in enumerate(objectives):
        if objective.name != "graph_matching":
            continue
        try:
            told = GraphMatchingOptions(**objective.options)
        except ValidationError:
            continue  # said elsewhere
        for key, why in _unread(told).items():
            if key in objective.options:
                yield Problem(("objectives", i, key), f"would be ignored: {why}", "leave it out, or change the other")


def _unread(told: GraphMatchingOptions) -> dict[str, str]:
    """Which options are not read, and why."""
    found: dict[str, str] = {}
    if told.gradient != "imle":
        found["strength"] = f"gradient is {told.gradient}"
    if told.solver != "search":
        found["paths"] = f"solver is {told.solver}"
    if told.order == "first":
        found["solver"] = found["paths"] = "order is first, which is solved exactly"
        if not told.layers:  # message passing goes along edges too
            found["edges"] = "order is first and layers is 0"
    if told.temperature == 0:
        found["samples"] = "temperature is 0, so that all samples are one"
    if told.alpha == 1:
        found["matches"] = "alpha is 1"
    return found
