"""What an audit says: one check, one sentence, one severity, and the words on top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["fail", "warn", "not checked", "ok"]
SEVERITIES: tuple[Severity, ...] = ("fail", "warn", "not checked", "ok")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    says: a whole sentence with the number, the threshold and where that came from; for "not checked", why not.
    value, threshold: the number and what it was held against, None where there is none. n: studies looked at.
    """

    name: str
    severity: Severity
    says: str
    value: float | None = None
    threshold: float | None = None
    n: int = 0


def ordered(checks: Sequence[Check]) -> list[Check]:
    """The worst first; as they came within a severity."""
    return sorted(checks, key=lambda check: SEVERITIES.index(check.severity))


def headline(checks: Sequence[Check]) -> str:
    """The verdict in a sentence."""
    of = {severity: [c.name for c in checks if c.severity == severity] for severity in SEVERITIES}
    counts = {"to look at": of["warn"], "passed": of["ok"], "not checked": of["not checked"]}
    rest = ", ".join(f"{len(names)} {word}" for word, names in counts.items() if names)
    if of["fail"]:
        return f"Do not report these scores as they are: {_listed(of['fail'])} failed" + (
            f" ({rest})." if rest else "."
        )
    if of["warn"]:
        return f"No check failed, but {_listed(of['warn'])} should be looked at ({rest})."
    if not of["ok"]:
        return "Nothing could be checked."
    return f"Nothing was found against these scores ({rest})."


def sentences(checks: Sequence[Check]) -> tuple[str, ...]:
    """The headline, then every check, the worst first, each beginning with its severity."""
    return (headline(checks), *(f"{c.severity.upper()} {c.name}: {c.says}" for c in ordered(checks)))


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
