"""Checks of the terms of a loss: when they count, which texts they see, which labels they learn. Stage 1: no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from pretrain.checks_report import READ_REPORTS
from pretrain.errors import ConfigError
from pretrain.hierarchy import read_hierarchy
from pretrain.schema import ObjectiveSection
from pretrain.schema_data import DataSection
from pretrain.schema_objectives import BY_LABEL, OBJECTIVE_OPTIONS, ContrastiveOptions
from pretrain.yaml_lines import Problem

FULL = ("report", "sentence", "caption")  # kinds that a batch about one section does not have


def check_schedules(objectives: Sequence[ObjectiveSection]) -> Iterator[Problem]:
    starts = {0.0}
    for i, objective in enumerate(objectives):
        path, pairs = ("objectives", i, "schedule"), objective.schedule or ()
        shares = [share for share, _ in pairs]
        starts |= set(shares)
        if not all(a < b for a, b in pairwise(shares)):
            yield Problem(path, f"shares of the run must ascend: {_listed(shares)}", "sort the pairs")
        if 1.0 in shares:
            yield Problem(path, "a pair that begins at 1 begins when the run is over", "shares are below 1")
        if pairs and not any(factor for _, factor in pairs):
            yield Problem(path, "every factor is 0: the term would never count", "give one above 0, or leave it out")
    for start in sorted(starts - {1.0}):
        # A step's state is that of the last share before it, so a run has no states but these.
        if not any(o.weight * o.factor_at(start) for o in objectives) and any(o.weight for o in objectives):
            what = f"from {start:g} of the run on, every term rests or has weight 0: nothing would be learnt there"
            yield Problem(("objectives",), what, "let a schedule begin there")


def check_alternation(data: DataSection, objectives: Sequence[ObjectiveSection]) -> Iterator[Problem]:
    if data.units.alternate is None:
        return
    kinds: set[str] = set()
    for objective in objectives:
        known = OBJECTIVE_OPTIONS.get(objective.name)
        if known is None:
            return  # somebody else's: what it reads is known once it is imported
        if objective.name in READ_REPORTS or objective.options.get("text") in ("sentences", "words"):
            kinds.add("sentence")
        elif "units" in known.model_fields:
            units = objective.options.get("units", known.model_fields["units"].default)
            kinds |= {str(unit) for unit in units} if isinstance(units, list | tuple) else set()
    at = ("data", "units", "alternate")
    if "section" not in kinds:
        what = "no objective compares with section units: every other batch would train no text"
        yield Problem(at, what, "write units: [report, section] for one, or set it to null")
    if not kinds & set(FULL):
        what = "objectives compare with section units alone: every other batch would train no text"
        yield Problem(at, what, "write units: [report, section] for one, or set it to null")


def check_labels(objectives: Sequence[ObjectiveSection]) -> Iterator[Problem]:
    mine = [i for i, objective in enumerate(objectives) if objective.name == "labels"]
    for i in mine[1:]:
        what = "labels is listed twice, and a release holds one head of that name"
        yield Problem(("objectives", i, "name"), what, "list all names in one entry")
    for i in mine:
        names, hierarchy = (objectives[i].options.get(key) for key in ("names", "hierarchy"))
        try:
            if isinstance(names, str):
                read_names(names)
        except ConfigError as error:
            yield _problem(("objectives", i, "names"), error)
        try:
            if isinstance(hierarchy, str):
                read_hierarchy(hierarchy)
        except ConfigError as error:
            yield _problem(("objectives", i, "hierarchy"), error)


def check_positives(objectives: Sequence[ObjectiveSection]) -> Iterator[Problem]:
    """Options of `contrastive` that its `positives` do not read. Whether shards have labels is known once they are
    open."""
    for i, objective in enumerate(objectives):
        if objective.name != "contrastive":
            continue
        given, fields = objective.options, ContrastiveOptions.model_fields
        positives, classes = (given.get(key, fields[key].default) for key in ("positives", "classes"))
        by_class = positives in ("same_label", "same_label_masked")
        at: tuple[str | int, ...] = ("objectives", i)
        if "classes" in given and not by_class:
            fix = "positives: same_label" if classes == "captions" else "leave it out"
            yield Problem((*at, "classes"), f"would be ignored: positives is {positives}", fix)
        if "labels" in given and (positives not in BY_LABEL or classes == "captions"):
            why = "classes is captions" if classes == "captions" else f"positives is {positives}"
            yield Problem((*at, "labels"), f"would be ignored: {why}", "leave it out")
        if "soft_temperature" in given and positives != "soft":
            yield Problem((*at, "soft_temperature"), f"would be ignored: positives is {positives}", "leave it out")
        try:
            if isinstance(labels := given.get("labels"), str):
                read_names(labels)
        except ConfigError as error:
            yield _problem((*at, "labels"), error)


def read_names(path: str) -> tuple[str, ...]:
    """Labels from a file, one a line. Raises ConfigError where it cannot be read or is empty."""
    from data_shards.errors import DataError  # the package brings numpy
    from data_shards.names import read_names as read_lines

    try:
        return read_lines(path)
    except DataError as error:
        raise ConfigError(error.what, fix=error.fix) from None


def _problem(path: tuple[str | int, ...], error: ConfigError) -> Problem:
    what, _, fix = str(error).partition("\n  fix: ")
    return Problem(path, what.partition("\n")[0], fix)


def _listed(shares: Sequence[float]) -> str:
    return ", ".join(f"{share:g}" for share in shares)
