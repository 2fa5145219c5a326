"""The outcome of a classification as tables on a terminal."""

from __future__ import annotations

from eval_zero_shot.outcome import Metric, Outcome


def print_classification(outcome: Outcome) -> None:
    """Per class, then the whole with its interval, prompt sets and groups, then what a reader must know."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    findings = outcome.headline == "auroc"
    # Narrow: names and intervals stand whole on 80 columns.
    table = Table(title=f"{outcome.task}: {outcome.model}", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("finding" if findings else "class", no_wrap=True)
    heads = ("AUROC", "95 % interval", "AUPRC", "sens.", "F1", "F1*")
    for heading in heads if findings else ("recall", "95 % interval", "AUROC", "AUPRC", "F1"):
        table.add_column(heading, justify="right", min_width=11 if "interval" in heading else None)
    fitted = outcome.metric("f1", threshold="validation")
    rule = "sign" if fitted is None or fitted.value is None else "validation"
    for of in (*outcome.classes, ""):
        if not of:
            table.add_section()
        table.add_row(of or "macro", *(_finding(outcome, of, rule) if findings else _class(outcome, of)))
    console.print(table)
    for metric in outcome.metrics:
        if metric.value is not None and metric.of == "" and set(metric.at) & {"prompts", "group", "average", "scores"}:
            where = ", ".join(f"{name} {value}" for name, value in metric.at.items())
            console.print(f"{metric.name}, {where}: {_value(metric)} {_span(metric)}", highlight=False)
    if not findings:
        for name in ("acc1", "acc5", "calibration_error"):
            for metric in outcome.metrics:
                if metric.name == name and metric.of == "" and set(metric.at) <= {"bins"}:
                    console.print(f"{name}: {_value(metric)} {_span(metric)}", highlight=False)
    console.print(f"{outcome.counted}.", highlight=False)
    if findings:
        said = "sens.: at specificity 0.9. F1: threshold"
        console.print(f"{said} {rule}; F1*: test-chosen, for comparison with papers.", highlight=False)
    for note in outcome.notes:
        console.print(note, highlight=False, markup=False)


def _finding(outcome: Outcome, of: str, rule: str) -> tuple[str, ...]:
    main = outcome.metric("auroc", of)
    sensitive = outcome.metric("sensitivity", of, specificity=0.9)
    decided = (outcome.metric("f1", of, threshold=name) for name in (rule, "test"))
    return _value(main), _span(main), *map(_value, (outcome.metric("auprc", of), sensitive, *decided))


def _class(outcome: Outcome, of: str) -> tuple[str, ...]:
    main = outcome.metric("recall" if of else "balanced_accuracy", of)
    f1 = outcome.metric("f1" if of else "f1_macro", of)
    return _value(main), _span(main), *map(_value, (outcome.metric("auroc", of), outcome.metric("auprc", of), f1))


def _value(metric: Metric | None) -> str:
    return "–" if metric is None or metric.value is None else f"{metric.value:.3f}"


def _span(metric: Metric | None) -> str:
    if metric is None or metric.low is None or metric.high is None:
        return "" if metric is None else (metric.reason or "")
    return f"{metric.low:.3f}–{metric.high:.3f}"
