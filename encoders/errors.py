"""Errors of this package: what is wrong, why it would hurt, what to do."""

from __future__ import annotations


class ReleaseError(ValueError):
    """A release folder, a model name or its geometry cannot be used as asked."""

    def __init__(self, what: str, why: str, fix: str) -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__(f"{what}\n  why: {why}\n  fix: {fix}")
