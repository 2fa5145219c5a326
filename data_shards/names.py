"""Lists of labels too long for a command line or a recipe: a text file with one name a line."""

from __future__ import annotations

from pathlib import Path

from data_shards.errors import DataError


def read_names(path: str | Path) -> tuple[str, ...]:
    """Names in their order, each once. Raises DataError where the file cannot be read or is empty."""
    fix = "a text file with the name of a label on each line"
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' cannot be read ({type(error).__name__})", fix=fix) from None
    names = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not names:
        raise DataError(f"'{path}' names no label", fix=fix)
    return names
