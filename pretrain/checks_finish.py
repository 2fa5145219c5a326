"""Checks of the finish section. Stage 1: no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pretrain.schema import EvaluateSection, ModelSection
from pretrain.schema_data import DataSection
from pretrain.schema_finish import FinishSection, HeldOut
from pretrain.yaml_lines import Problem


def check_finish(
    finish: FinishSection | None, model: ModelSection, data: DataSection, evaluate: EvaluateSection
) -> Iterator[Problem]:
    """Whether there are weights to interpolate with and tasks to choose by. The studies themselves are opened later,
    but before training."""
    if finish is None:
        return
    if model.text is None:
        what = "alpha is chosen by how images meet texts, and model.text is null"
        yield Problem(("finish",), what, "leave finish out")
    if finish.interpolate_with == "base" and model.init is None and model.pretrained is None:
        what = "there is nothing to interpolate with: this run starts from random weights, of one tower at least"
        fix = "name model.init or model.pretrained (a resumed run whose base has moved: start), or leave finish out"
        yield Problem(("finish", "interpolate_with"), what, fix)
    names = Counter([own_name(evaluate), *(domain_name(one) for one in finish.held_out)])
    for i, one in enumerate(finish.held_out):
        at = ("finish", "held_out", i)
        if one.select == one.split:
            what = f"select and split are both '{one.split}': alpha would be chosen on what is shown"
            yield Problem((*at, "select"), what, "name two splits, or null")
        if "://" not in one.data and not Path(one.data).expanduser().exists():
            yield Problem((*at, "data"), f"there is no folder or tar '{one.data}'", "hours of training would end there")
        if names[domain_name(one)] > 1:
            what = f"two tasks are called '{domain_name(one)}': their rows would be one"
            yield Problem(at, what, "give this one a name")


def own_name(evaluate: EvaluateSection) -> str:
    """What tables call the recipe's own task."""
    return Path(evaluate.task).stem if evaluate.task else "retrieval"


def domain_name(one: HeldOut) -> str:
    """What tables call a held-out domain."""
    return one.name or (Path(one.task).stem if one.task else "retrieval")
