"""Errors of this package. They never quote report text, patient identifiers or paths of patient files."""

from __future__ import annotations


class EvalError(ValueError):
    """An evaluation that cannot be trusted or done: what is wrong, why it would hurt, what to do."""

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what + (f"\n  why: {why}" if why else "") + (f"\n  fix: {fix}" if fix else ""))


class LeftOut(Exception):
    """A protocol has nothing to ask of this model, and why: no failure, and told."""
