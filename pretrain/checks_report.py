"""Checks of a recipe's report transformer and of the objectives that read it. Stage 1: no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pretrain.schema import ModelSection, ObjectiveSection
from pretrain.schema_data import DataSection
from pretrain.yaml_lines import Problem

READ_REPORTS = ("report_contrastive", "matching", "masked_language")


def check_report(data: DataSection, model: ModelSection, objectives: Sequence[ObjectiveSection]) -> Iterator[Problem]:
    report = model.report
    for i, objective in enumerate(objectives):
        if report is None and (
            objective.name in READ_REPORTS or objective.options.get("text") in ("sentences", "words")
        ):
            what = f"{objective.name} reads reports, and there is no model.report"
            yield Problem(("objectives", i), what, "add model.report: {} (docs/recipes.md)")
        looks = objective.name == "matching" or objective.options.get("condition") == "image"
        if objective.name in READ_REPORTS and looks and report is not None and not report.fusion_layers:
            what = f"0 layers look at the image, and {objective.name} needs them"
            yield Problem(("model", "report", "fusion_layers"), what, "1 or more")
    if report is None:
        return
    if report.width % report.heads:
        yield Problem(("model", "report", "heads"), f"{report.heads} heads do not divide width {report.width}")
    if not data.units.sentences:
        what = "reports are read sentence by sentence, which data.units does not make"
        yield Problem(("model", "report"), what, "set data.units.sentences: true")
    elif data.units.max_sentences > report.max_sentences:
        what = f"{report.max_sentences} sentences are read, of up to {data.units.max_sentences} in data.units"
        yield Problem(("model", "report", "max_sentences"), what, "make them equal: sentences would be lost in silence")
