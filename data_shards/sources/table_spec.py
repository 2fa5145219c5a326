"""How the user names a table's columns: the options of `data_shards.build` as one frozen object."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_shards.errors import DataError
from data_shards.names import read_names
from data_shards.sources.cells import told_columns
from data_shards.sources.records import read_records
from data_shards.sources.values import split_name

TEXT_FIELDS = ("report", "findings", "impression", "caption")


@dataclass(frozen=True)
class ImageColumn:
    """Where the path of one image of a study is, and what that image is to the study.

    template: path made from columns, e.g. "{image}" or "ct/{volume}.nii.gz"; ";" separates several paths in one cell.
    role, phase: kept with the scan. A study has one primary scan: the first path of the first column.
    """

    template: str
    role: str = "primary"
    phase: str | None = None

    def __post_init__(self) -> None:
        """Raises: DataError for a template that is none."""
        try:
            self.place(dict.fromkeys(self.columns, ""))
        except ValueError:
            raise DataError(
                f"the image template {self.template!r} is not understood",
                fix='put each column in braces, as in "ct/{volume}.nii.gz"',
            ) from None

    @property
    def columns(self) -> list[str]:
        return [name for _, name, _, _ in string.Formatter().parse(self.template) if name]

    def place(self, cells: Mapping[str, str]) -> str:
        """The path of a row. A name in braces is a column's, dots and brackets included."""
        parts = string.Formatter().parse(self.template)
        return "".join(text + (format(cells[name], form or "") if name else "") for text, name, form, _ in parts)


@dataclass(frozen=True)
class TableSpec:
    """Where the columns are.

    images: at least one. texts: field of the study -> column. labels: label -> (column, value that means present, or
    None for a 0/1 column). spacing_columns: one column with three numbers, or three columns, z, y, x in mm.
    split_column: else `splits` (id or patient -> split, of a split file), else a hash of the patient, or of
    `group_column`. known_columns: identifiers to mask in the texts. where: condition on the table's columns (SQL), rows
    that do not meet it are left out before anything is read.
    """

    root: Path
    images: tuple[ImageColumn, ...]
    patient_column: str
    texts: dict[str, str]
    id_column: str | None = None
    split_column: str | None = None
    group_column: str | None = None
    splits: dict[str, str] | None = None
    labels: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    meta_columns: tuple[str, ...] = ()
    known_columns: tuple[str, ...] = ()
    slope_column: str | None = None
    intercept_column: str | None = None
    spacing_columns: tuple[str, ...] = ()
    modality_column: str | None = None
    phase_column: str | None = None
    where: str = ""
    val_fraction: float = 0.1
    test_fraction: float = 0.0

    @property
    def image_columns(self) -> list[str]:
        """The columns that paths are made of."""
        return list(dict.fromkeys(name for image in self.images for name in image.columns))

    @property
    def needed(self) -> set[str]:
        """The columns that the table must have."""
        one = (
            self.patient_column,
            self.id_column,
            self.split_column,
            self.group_column,
            self.slope_column,
            self.intercept_column,
            self.modality_column,
            self.phase_column,
        )
        many = (*self.texts.values(), *self.meta_columns, *self.known_columns, *self.spacing_columns)
        labels = (column for column, _ in self.labels.values())
        return {c for c in one if c} | {*many, *labels, *self.image_columns}

    @property
    def private(self) -> set[str]:
        """Columns whose values no message repeats."""
        return {
            self.patient_column,
            *self.texts.values(),
            *self.image_columns,
            *self.known_columns,
            *(c for c in (self.id_column, self.group_column) if c),
        }

    def check(self) -> None:
        """Raises: DataError for options that contradict each other."""
        if not self.images:
            raise DataError("no image column is named", fix="say --image-column COL, or --image-columns COL,COL")
        if self.val_fraction < 0 or self.test_fraction < 0 or self.val_fraction + self.test_fraction >= 1:
            raise DataError("--val-fraction and --test-fraction must leave something to train on")
        if len(self.spacing_columns) not in (0, 1, 3):
            raise DataError(
                f"--spacing-columns names {len(self.spacing_columns)} columns",
                fix="name one that holds z, y, x, or three: Z,Y,X",
            )
        told = {self.id_column, self.patient_column, *self.known_columns}
        if kept := [column for column in self.meta_columns if column in told]:
            raise DataError(
                f"--meta-columns names {kept}, which identify the patient or the study",
                "they would reach whoever gets the shards",
                "leave them out; keys and patients are kept as salted hashes",
            )
        if sum(map(bool, (self.split_column, self.splits is not None, self.group_column))) > 1:
            raise DataError(
                "the split is asked for in two ways",
                "one of them would be ignored in silence",
                "say one of --split-column, --split-file and --group-column",
            )


def parse_images(columns: str, roles: str = "", phases: str = "") -> tuple[ImageColumn, ...]:
    """ "ap,lat" -> the column ap, primary, and the column lat with the role "lat"; roles and phases one for each
    column, or none. Raises: DataError where their numbers differ, or two scans would be primary."""
    names = words(columns)
    role_of = words(roles) or ["primary", *names[1:]]
    phase_of: Sequence[str | None] = words(phases) or [None] * len(names)
    for option, given in (("--image-roles", role_of), ("--image-phases", phase_of)):
        if len(given) != len(names):
            raise DataError(
                f"{option} names {len(given)} for {len(names)} image columns",
                "a scan would be taken for another",
                "name one for each column of --image-columns",
            )
    if role_of.count("primary") != 1:
        raise DataError("--image-roles must name one column primary", "a study's main scan would be anybody's guess")
    order = sorted(range(len(names)), key=lambda i: role_of[i] != "primary")
    return tuple(ImageColumn(f"{{{names[i]}}}", role_of[i], phase_of[i]) for i in order)


def parse_texts(value: str) -> dict[str, str]:
    """ "col" -> report; "a,b" -> findings, impression; "findings=a,impression=b,caption=c" as said."""
    parts = words(value)
    if parts and all("=" in p for p in parts):
        named = dict(p.split("=", 1) for p in parts)
    elif len(parts) in (1, 2) and not any("=" in p for p in parts):
        named = dict(zip(("report",) if len(parts) == 1 else ("findings", "impression"), parts))
    else:
        raise DataError(
            f"--text-columns {value!r} is not understood", fix="say REPORT, FINDINGS,IMPRESSION or report=COLUMN,…"
        )
    if strange := sorted(set(named) - set(TEXT_FIELDS)):
        raise DataError(f"--text-columns has no text field {strange}", fix=f"use {TEXT_FIELDS}")
    return named


def parse_labels(value: str, others: Sequence[str] = ()) -> dict[str, tuple[str, str | None]]:
    """ "effusion,fat=moderate" -> {"effusion": ("effusion", None), "fat_moderate": ("fat", "moderate")}.

    "@FILE": the same, one a line of a file. "*": each of `others`, the columns that no other option names, is 0/1.
    Raises: DataError for a file that cannot be read, no column left for "*", and two columns of one label.
    """
    if value.strip() == "*":
        asked = [(name, name, "") for name in others if name != "split"]  # read by its name, or left aside
        if not asked:
            raise DataError(
                "--label-columns '*': every column is named by another option",
                "the studies would have no labels",
                "leave it out, or name the columns",
            )
    else:
        parts = read_names(value.strip()[1:]) if value.strip().startswith("@") else words(value)
        sides = [part.partition("=") for part in parts]
        asked = [(part, column.strip(), wanted.strip()) for part, (column, _, wanted) in zip(parts, sides, strict=True)]
    labels: dict[str, tuple[str, str | None]] = {}
    for name, column, wanted in asked:
        found = (column, wanted or None)
        label = "_".join(name.replace("=", " ").split())
        if labels.setdefault(label, found) != found:
            raise DataError(
                f"two of --label-columns are of the label '{label}'",
                "one would be lost",
                "rename a column: blanks and = become _",
            )
    return labels


def words(value: str) -> list[str]:
    """ "a, b" -> ["a", "b"]."""
    return [word for word in (part.strip() for part in value.split(",")) if word]


def read_splits(value: str) -> dict[str, str]:
    """Which split each id (or patient) is in, of a split file.

    value: a .json of {"train": [ids], ...}; a table with two columns, the id and its split (the latter named split or
        set); or lists of one id a line: "train=train_ids.txt,val=val_ids.txt".
    Raises: DataError for a file that is none of these, and for an id in two splits.
    """
    if "=" in value:
        listed = [(split, _lines(Path(file))) for split, _, file in (part.partition("=") for part in words(value))]
    elif value.lower().endswith(".json"):
        listed = _json_splits(Path(value))
    else:
        listed = _table_splits(Path(value))
    found: dict[str, str] = {}
    for split, ids in listed:
        for one in ids:
            if found.setdefault(one, split_name(split)) != split_name(split):
                raise DataError(
                    f"an id of the split file is in {found[one]!r} and in {split_name(split)!r}",
                    "held-out results would be measured on studies seen in training",
                    "list each id once",
                )
    if not found:
        raise DataError("the split file names no id", fix="see `read_splits` in docs/sources.md for its three forms")
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the split file cannot be read ({type(error).__name__})", fix="check --split-file") from None


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in _read(path).splitlines() if line.strip()]


def _json_splits(path: Path) -> list[tuple[str, list[str]]]:
    try:
        body = json.loads(_read(path))
    except ValueError:
        body = None
    if not isinstance(body, dict) or not all(isinstance(ids, list) for ids in body.values()):
        raise DataError("the split file is not JSON of the form {split: [ids]}", fix='write {"train": ["id", …], …}')
    return [(split, [str(one).strip() for one in ids]) for split, ids in body.items()]


def _table_splits(path: Path) -> list[tuple[str, list[str]]]:
    records = read_records(path)
    named = [i for i, name in enumerate(records.columns) if name.strip().lower() in ("split", "set", "subset")]
    named_columns = [records.columns[i] for i in named]
    if len(records.columns) != 2 or len(named) != 1:
        raise DataError(
            f"the split file is no table of ids and splits; {told_columns(records.columns, named_columns)}",
            "the id and its split could be mixed up",
            "give it two columns: the id, and one named split",
        )
    at = named[0]
    short = [line for line, cells in records.rows if len(cells) != 2 or not all(cell.strip() for cell in cells)]
    if short:
        raise DataError(f"line {short[0]} of the split file has no id or no split", fix="give each line both")
    return [(cells[at], [cells[1 - at].strip()]) for _, cells in records.rows]
