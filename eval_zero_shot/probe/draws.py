"""Which studies a probe of few labels learns from: drawn once from data and a seed, shared by every model.

    python -m eval_zero_shot.probe.draws --data SHARDS [--labels ...] [--shots 1 2 4 8 16] [--fractions 0.01 0.1]
                                         [--draws 5] [--seed 0] --out draws.json

Shots: for every class (of labels: for positives and negatives of each label apart) k patients and one study of each.
Draw number d of k shots is the beginning of draw d of more shots. Fractions: whole patients, at least one study of
every class, then at random until the share of studies is reached. Neither depends on a model, on features or on the
order of rows. Keys and patients are the shards' hashes.

Legend: N studies, L labels or classes; a cell is a class, or a side of a label ("effusion=1").
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.opening import add_tar_options, open_studies
from eval_zero_shot.cases import EveryScan, add_scans
from eval_zero_shot.errors import EvalError, unreadable
from eval_zero_shot.inputs import run_command
from eval_zero_shot.probe.split import FORM, Question, question

VERSION = 1
VALIDATION_SHOTS = 4  # at most, of a class: CoOp's rule, min(k, 4)
Array = NDArray[np.float64]
Cells = dict[str, list[str]]


@dataclass(frozen=True)
class Labelled:
    """Studies of one split: keys_N, patients_N, labels_NL as `Question.labels` gives them."""

    keys_N: NDArray[np.str_]
    patients_N: NDArray[np.str_]
    labels_NL: Array

    @classmethod
    def of(cls, shards: Any, rows: NDArray, asked: Question) -> Labelled:
        keys, patients = (np.array([name(int(r)) for r in rows], dtype=str) for name in (shards.key, shards.patient))
        return cls(keys, patients, asked.labels(shards)[rows])

    def by_key(self) -> Labelled:
        order = np.argsort(self.keys_N)
        return Labelled(self.keys_N[order], self.patients_N[order], self.labels_NL[order])


@dataclass(frozen=True)
class Draws:
    """shots[k][d] and validation[k][d]: cell -> keys (fewer than k where the split has fewer patients). fractions[f]:
    lists of keys. sha256: of the file."""

    shots: dict[int, list[Cells]]
    validation: dict[int, list[Cells]]
    fractions: dict[float, list[list[str]]]
    content: Mapping[str, Any]

    @property
    def text(self) -> str:
        return json.dumps(self.content, indent=1, sort_keys=True) + "\n"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def cells_of(asked: Question) -> list[tuple[str, int, float]]:
    """(cell, column, value of the label)."""
    if asked.exclusive:
        return [(name, j, 1.0) for j, name in enumerate(asked.names)]
    return [(f"{name}={side}", j, float(side)) for j, name in enumerate(asked.names) for side in (1, 0)]


def make_draws(
    train: Labelled, validation: Labelled | None, asked: Question, data_sha256: str, *, shots: Sequence[int] = (),
    fractions: Sequence[float] = (), draws: int = 5, seed: int = 0,
) -> Draws:  # fmt: skip
    """Draw. Raises EvalError on shots below 1, fractions outside (0, 1) or fewer than one draw."""
    if draws < 1 or min(shots, default=1) < 1 or not all(0 < f < 1 for f in fractions):
        raise EvalError(
            f"draws {draws}, shots {list(shots)}, fractions {list(fractions)}",
            why="no study could be drawn, or all of them",
            fix="draws and shots of 1 or more, fractions between 0 and 1 (the whole split is always probed)",
        )
    of_train = [_shots(train.by_key(), asked, max(shots, default=0), f"{seed}/train/{d}") for d in range(draws)]
    held = validation.by_key() if validation is not None else None
    of_held = [
        {} if held is None else _shots(held, asked, VALIDATION_SHOTS, f"{seed}/validation/{d}") for d in range(draws)
    ]
    by_fraction = {
        f: [_fraction(train.by_key(), asked, f, f"{seed}/{f!r}/{d}") for d in range(draws)] for f in fractions
    }
    content = {
        "version": VERSION,
        "data_sha256": data_sha256,
        "names": list(asked.names),
        "exclusive": asked.exclusive,
        "seed": seed,
        "shots": {str(k): [{c: keys[:k] for c, keys in draw.items()} for draw in of_train] for k in shots},
        "validation": {
            str(k): [{c: keys[: min(k, VALIDATION_SHOTS)] for c, keys in draw.items()} for draw in of_held]
            for k in shots
        },
        "fractions": {repr(f): drawn for f, drawn in by_fraction.items()},
    }
    return _of_content(content)


def _of_content(content: Mapping[str, Any]) -> Draws:
    shots, validation = ({int(k): v for k, v in content[name].items()} for name in ("shots", "validation"))
    return Draws(shots, validation, {float(f): v for f, v in content["fractions"].items()}, content)


def read_draws(path: str | Path, asked: Question, data_sha256: str) -> Draws:
    """Draws of a file. Raises EvalError where it is unreadable, or of other data or labels."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        found = _of_content(content)
        made_for = [content[name] for name in ("version", "names", "exclusive", "data_sha256")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = "the probes of two models must learn from the same studies"
        fix = "write it with python -m eval_zero_shot.probe.draws"
        raise unreadable("file of draws", Path(path), error, why=why, fix=fix) from None
    wanted = [VERSION, list(asked.names), asked.exclusive, data_sha256]
    differ = [n for n, a, b in zip(("version", "labels", "kind", "data"), made_for, wanted, strict=True) if a != b]
    if differ:
        raise EvalError(
            f"the file of draws was made for another {', '.join(differ)}",
            why="its studies are not these",
            fix="name the shards, labels and --scans it was made for, or write it again",
        )
    return found


def _permuted(names: Sequence[str], words: str) -> list[str]:
    """An order of distinct names that follows from them and `words` alone."""
    number = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big")
    distinct = sorted(set(names))
    return [distinct[i] for i in np.random.Generator(np.random.Philox(number)).permutation(len(distinct))]


def _shots(held: Labelled, asked: Question, count: int, words: str) -> Cells:
    """Of every cell, one study each of at most `count` patients."""
    drawn: Cells = {}
    for cell, column, value in cells_of(asked):
        rows = np.flatnonzero(held.labels_NL[:, column] == value)
        patients = _permuted(held.patients_N[rows].tolist(), f"{words}/{cell}")[:count]
        drawn[cell] = []
        for patient in patients:
            own = held.keys_N[rows[held.patients_N[rows] == patient]].tolist()
            drawn[cell].append(_permuted(own, f"{words}/{cell}/{patient}")[0])
    return drawn


def _fraction(held: Labelled, asked: Question, fraction: float, words: str) -> list[str]:
    """Whole patients: for each cell, rarest first, until its share is reached (one study at least, never so many that
    the share of all studies is passed for more than that one), then any until the share of all is reached."""
    order = _permuted(held.patients_N.tolist(), words)
    of_patient = {p: np.flatnonzero(held.patients_N == p) for p in order}
    wanted, chosen = max(1, round(fraction * len(held.keys_N))), np.zeros(len(held.keys_N), bool)
    masks = [held.labels_NL[:, column] == value for _, column, value in cells_of(asked)]
    for mask_N in sorted((m for m in masks if m.any()), key=lambda m: int(m.sum())):
        share = max(1, int(fraction * mask_N.sum()))
        for patient in order:
            have = int((chosen & mask_N).sum())
            if have >= share or (have and chosen.sum() >= wanted):
                break
            if mask_N[of_patient[patient]].any():
                chosen[of_patient[patient]] = True
    for patient in order:
        if chosen.sum() >= wanted:
            break
        chosen[of_patient[patient]] = True
    return held.keys_N[chosen].tolist()


def add_draws(parser: argparse.ArgumentParser) -> None:
    """--labels, splits and how to draw."""
    add = parser.add_argument
    add("--labels", metavar="LABELS", help=f"{FORM} (default: the task's, or all labels)")
    for split, default in (("train", "train"), ("validation", "val")):
        add(f"--{split}-split", default=default, metavar="NAME", help=f"default: {default}")
    add("--shots", type=int, nargs="*", default=[], metavar="K", help="studies a class, such as 1 2 4 8 16")
    add("--fractions", type=float, nargs="*", default=[], metavar="F", help="of the training studies, such as 0.01 0.1")
    add("--draws-seed", type=int, default=0, metavar="N", help="default: 0")
    add("--draws-count", type=int, default=5, metavar="N", help="draws of each (default: 5)")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m eval_zero_shot.probe.draws", description="Draw the studies of few-label probes, once."
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="shard set with labels")
    add_draws(parser)
    add_scans(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="JSON to write")
    add_tar_options(parser)
    return run_command(parser, argv, _draw)


def _draw(args: argparse.Namespace) -> None:
    shards: Any = open_studies(args.data, args)
    if args.scans == "every":
        shards = EveryScan(shards)
    asked = question(args.labels, shards.label_names)
    splits = shards.manifest["splits"]
    if not splits.get(args.train_split):
        raise EvalError(
            f"no study in split '{args.train_split}'", why="nothing to draw", fix=f"one of: {', '.join(splits)}"
        )
    train = Labelled.of(shards, shards.rows(args.train_split), asked)
    has = splits.get(args.validation_split)
    validation = Labelled.of(shards, shards.rows(args.validation_split), asked) if has else None
    found = make_draws(
        train, validation, asked, shards.manifest_hash, shots=args.shots or (1, 2, 4, 8, 16),
        fractions=args.fractions or (0.01, 0.1), draws=args.draws_count, seed=args.draws_seed,
    )  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    aside = args.out.with_name(f".{args.out.name}.{os.getpid()}.tmp")
    aside.write_text(found.text, encoding="utf-8", newline="\n")
    os.replace(aside, args.out)
    print(f"wrote {args.out}: {len(found.shots)} numbers of shots and {len(found.fractions)} fractions, "
          f"{args.draws_count} draws each, sha256 {found.sha256[:12]}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
