"""What libraries print about a file may name a patient: it reaches no terminal and no log."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def quiet() -> Iterator[None]:
    """Without Python's warnings and log records; what we print ourselves stays."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def silent() -> Iterator[None]:
    """Without a word on stdout and stderr, of C libraries as well."""
    told = _told()
    aside = [os.dup(handle) for handle in told]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for handle in told:
            os.dup2(nowhere, handle)
        with quiet(), open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):
            yield
    finally:
        for handle, kept in zip(told, aside, strict=True):
            os.dup2(kept, handle)
            os.close(kept)
        os.close(nowhere)


def _told() -> list[int]:
    """stdout and stderr, where they are open."""
    found: list[int] = []
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
            os.fstat(number)
        except (OSError, ValueError, AttributeError):
            continue
        found.append(number)
    return found
