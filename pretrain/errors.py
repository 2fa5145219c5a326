"""Errors of this package. They never quote report text, patient identifiers or paths of patient files."""

from __future__ import annotations


class ConfigError(ValueError, SystemExit):
    """A recipe, override or run folder that cannot be used: what is wrong, why it would hurt, what to do.

    It is also a SystemExit carrying its message, so a command line that lets it pass prints the message alone,
    without a traceback, and exits 1; library code catches it as a ValueError.
    """

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        message = what + (f"\n  why: {why}" if why else "") + (f"\n  fix: {fix}" if fix else "")
        super().__init__(message)
        self.code = message
