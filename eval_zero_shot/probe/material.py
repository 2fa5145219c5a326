"""What a probe learns from and is scored on: rows of three splits, and draws of the first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval_zero_shot.errors import EvalError
from eval_zero_shot.probe.draws import Draws, Labelled, make_draws, read_draws
from eval_zero_shot.probe.protocol import Rows
from eval_zero_shot.probe.split import Question


def rows_of(inputs: Any, train_split: str, validation_split: str, split: str, max_studies: int | None = None) -> Rows:
    """Rows of the splits; a validation split that the data has not is no mistake.

    Raises EvalError where a split is learnt from and scored, or has no study.
    """
    if split in (train_split, validation_split):
        raise EvalError(
            f"split '{split}' is learnt from and scored", why="its score would be memory", fix="name another"
        )
    has = validation_split != train_split and inputs.shards.manifest["splits"].get(validation_split)
    return Rows(
        inputs.rows(train_split), inputs.rows(validation_split) if has else None, inputs.rows(split, max_studies)
    )


def require_one(file: str | Path | None, shots: Sequence[int], fractions: Sequence[float]) -> None:
    """Raise EvalError where a file of draws and numbers of them are both given."""
    if file is not None and (shots or fractions):
        raise EvalError(
            "--draws with --shots or --fractions", why="the file says which there are", fix="give one or the other"
        )


def draws_of(
    inputs: Any, rows: Rows, asked: Question, file: str | Path | None, shots: Sequence[int], fractions: Sequence[float],
    draws: int, seed: int,
) -> Draws | None:  # fmt: skip
    """The file's draws, or new ones; None where neither shots nor fractions are asked for. A fraction of 1 is the whole
    split, which is always probed. Raises EvalError where a file and numbers are both given."""
    require_one(file, shots, fractions)
    if file is None and not (shots or fractions):
        return None
    if file is not None:
        return read_draws(file, asked, inputs.shards.manifest_hash)
    held = None if rows.validation is None else Labelled.of(inputs.shards, rows.validation, asked)
    return make_draws(
        Labelled.of(inputs.shards, rows.train, asked), held, asked, inputs.shards.manifest_hash, shots=shots,
        fractions=[f for f in fractions if f != 1], draws=draws, seed=seed,
    )  # fmt: skip
