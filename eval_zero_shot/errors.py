"""Errors of this package. They never quote report text, patient identifiers or paths of patient files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class EvalError(ValueError):
    """An evaluation that cannot be trusted or done: what is wrong, why it would hurt, what to do."""

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__(what + (f"\n  why: {why}" if why else "") + (f"\n  fix: {fix}" if fix else ""))


class LeftOut(Exception):
    """A protocol has nothing to ask of this model, and why: no failure, and told."""


def gathered(errors: Sequence[Exception]) -> Exception:
    """The one error, or one that tells all of several, each in its own words."""
    if len(errors) == 1:
        return errors[0]
    told = "\n".join(str(error) for error in errors).replace("\n", "\n    ")
    return EvalError(f"{len(errors)} mistakes:\n    {told}")


def unreadable(kind: str, path: Path, error: Exception, *, why: str, fix: str) -> EvalError:
    """Of a file that a person named and that cannot be read: named without its folder, where it is missing in the words
    that are used of shard sets. kind: what it should be, such as "suite"."""
    if isinstance(error, FileNotFoundError):
        return EvalError(f"there is no {kind} '{path.name}'", why=why, fix=fix)
    return EvalError(f"{kind} '{path.name}' cannot be read ({type(error).__name__})", why=why, fix=fix)
