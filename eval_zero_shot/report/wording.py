"""What an evaluation found, in sentences."""

from __future__ import annotations

from typing import Any

FEW = 15


def verdict(results: dict[str, Any]) -> list[str]:
    """A few plain sentences: how well it separates, what it does best and worst, retrieval, and what to doubt."""
    found = {n: f for n, f in results["per_finding"].items() if f["auroc"] is not None}
    said = [f"Scored on {results['studies']} studies of {results['patients']} patients."]
    if results["macro"] is None:
        return [*said, "No finding has both positive and negative studies, so nothing can be said of it."]
    interval = results["macro_interval"] or {}
    span = ""
    if interval.get("low") is not None:
        span = f" (95 % interval {interval['low']:.3f} to {interval['high']:.3f})"
    few = [n for n, f in found.items() if min(f["pos_patients"], f["neg_patients"]) < FEW]
    grade = _grade(results["macro"]) if len(few) < len(found) else "too few cases to say how good that is"
    noun = "1 finding" if len(found) == 1 else f"{len(found)} findings"
    said.append(f"Macro AUROC over {noun}: {results['macro']:.3f}{span}: {grade}.")
    best, worst = max(found, key=lambda n: found[n]["auroc"]), min(found, key=lambda n: found[n]["auroc"])
    if best != worst:
        said.append(f"Best: {_named(best, found)}. Weakest: {_named(worst, found)}.")
    spans = {n: f["interval"] for n, f in found.items() if f["interval"] and f["interval"]["low"] is not None}
    chance = [n for n, span in spans.items() if span["low"] <= 0.5 <= span["high"]]
    below = [n for n, span in spans.items() if span["high"] < 0.5]
    if below:
        said.append(f"Below chance (are labels or prompts swapped?): {_list(below)}.")
    if chance:
        said.append(f"Not told from chance: {_list(chance)}.")
    if few:
        said.append(f"Too few cases for a firm statement (under {FEW} patients on a side): {_list(few)}.")
    if results["synonym_macro"] is not None:
        said.append(f"With synonyms it has not been trained on, the macro AUROC is {results['synonym_macro']:.3f}.")
    firsts = [r for r in results["retrieval"] if r["k"] == 1 and r["value"] is not None]
    for r in firsts:
        said.append(
            f"Retrieval {r['direction'].replace('_', ' ')}: the right one of {r['pool']} comes first in "
            f"{100 * r['value']:.0f} % of queries ({_times(r['value'] / r['chance'])} chance)."
        )
    return said


def _grade(auroc: float) -> str:
    for least, words in ((0.95, "separates almost all cases"), (0.85, "good"), (0.7, "moderate"), (0.55, "weak")):
        if auroc >= least:
            return words
    return "no better than chance"


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio >= 9.5 else f"{ratio:.1f} times"


def _named(name: str, found: dict[str, Any]) -> str:
    return f"{name.replace('_', ' ')} ({found[name]['auroc']:.2f})"


def _list(names: list[str]) -> str:
    return ", ".join(n.replace("_", " ") for n in names)
