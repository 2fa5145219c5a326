"""The command-line options of tables, presets and MedMNIST, and from them the studies."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from data_shards.errors import DataError
from data_shards.sources.base import Listing
from data_shards.sources.records import TABLE_SUFFIXES, read_columns, table_suffix
from data_shards.sources.table_spec import (
    ImageColumn,
    TableSpec,
    parse_images,
    parse_labels,
    parse_texts,
    read_splits,
    words,
)

if TYPE_CHECKING:
    from data_shards.selection import Choice

VAL_FRACTION, TEST_FRACTION = 0.1, 0.0  # of patients, where splits are drawn


@dataclass(frozen=True)
class Opened:
    """Studies, and what is true of all of them where the command line does not say otherwise."""

    listing: Listing
    modality: str | None = None
    licence: str = ""
    name: str = ""


def add_table_options(parser: argparse.ArgumentParser) -> None:
    """How a table's columns are named."""
    add = parser.add_argument_group("columns of a table").add_argument
    add("--root", metavar="DIR", help="folder the image paths start from (default: the table's)")
    add("--image-column", default="image", metavar="COL", help="column with the image path (default: image)")
    add("--image-template", metavar="T", help='path made from columns, e.g. "ct/{volume}.nii.gz"')
    add("--image-columns", metavar="COLS", help="several images of a study; all but the primary one may be blank")
    add("--image-roles", default="", metavar="R,R", help="role of each image column, one of them primary")
    add("--image-phases", default="", metavar="P,P", help="contrast phase of each image column")
    add("--id-column", metavar="COL", help="unique study id (default: column id, else the image path)")
    add(
        "--patient-column",
        default="patient",
        metavar="COL",
        help="patient id (default: patient); the study id's column where every study is another patient",
    )
    add(
        "--text-columns",
        default="report",
        metavar="COLS",
        help="REPORT | FINDINGS,IMPRESSION | report=COL,caption=COL (default: report)",
    )
    add(
        "--label-columns",
        default="",
        metavar="COLS",
        help="0/1 columns, or COL=VALUE to make one from categories; by commas, @FILE with one a line, or '*': all "
        "columns that no other option names (but those that --where, --balance and --cap look at)",
    )
    add("--meta-columns", default="", metavar="COLS", help="further columns to keep in the json (no identifiers!)")
    add("--known-columns", default="", metavar="COLS", help="identifiers to mask in the texts (name, accession, ...)")
    add("--slope-column", metavar="COL", help="rescale slope where the file's header is wrong or has none")
    add("--intercept-column", metavar="COL", help="rescale intercept, likewise")
    add("--spacing-columns", default="", metavar="COLS", help="voxel spacing in mm: one column of z, y, x, or three")
    add("--modality-column", metavar="COL", help="DICOM code of each study's modality")
    add("--phase-column", metavar="COL", help="contrast phase of each study")
    split = parser.add_argument_group("which split a study is in").add_argument
    split("--split-column", metavar="COL", help="train|val|test (default: column split where there is one)")
    split("--split-file", metavar="FILE", help="ids by split: .json, a table, or train=IDS.txt,val=IDS.txt")
    split(
        "--split-by", choices=("patient", "column"), help="draw by patient even where there is a split column, or not"
    )
    split("--group-column", metavar="COL", help="draw by another column than the patient, such as the site")
    split(
        "--val-fraction", type=float, default=VAL_FRACTION, metavar="F", help="of patients, where drawn (default: 0.1)"
    )
    split(
        "--test-fraction", type=float, default=TEST_FRACTION, metavar="F", help="of patients, where drawn (default: 0)"
    )


def add_preset_options(parser: argparse.ArgumentParser) -> None:
    """Which published collection the source is."""
    add = parser.add_argument_group("published collections").add_argument
    add(
        "--preset",
        metavar="NAME",
        help="read --source as this collection, or a YAML of your own; see data_shards.sources",
    )
    add(
        "--scans",
        choices=("all", "first"),
        help="of a study's scans keep all, or the first (default: as the preset says)",
    )


def add_choice_options(parser: argparse.ArgumentParser) -> None:
    """Which studies to build at all."""
    add = parser.add_argument_group("which studies are built").add_argument
    add(
        "--allow-no-text",
        action="store_true",
        help="take studies without a text: captions are made of labels (data.units.templates), or images are enough",
    )
    add("--where", default="", metavar="SQL", help="condition; on a table it may name any of its columns")
    add("--cap", action="append", default=[], metavar="COLUMN=N", help="at most N of each value, in train; repeatable")
    add("--balance", metavar="COLUMN", help="as many of each known value as the rarest has, in train")
    add("--seed", type=int, default=0, metavar="S", help="which studies caps and balance take (default: 0)")


def table_spec(args: argparse.Namespace, table: Path) -> TableSpec:
    """The options of `add_table_options` for a table. Raises: DataError for those that contradict each other."""
    columns = read_columns(table)
    if args.image_columns:
        if args.image_template:
            raise DataError("--image-template and --image-columns are both given", fix="say one of them")
        images = parse_images(args.image_columns, args.image_roles, args.image_phases)
    else:
        if args.image_roles or args.image_phases:
            raise DataError("--image-roles and --image-phases are for --image-columns", fix="name these columns")
        images = (ImageColumn(args.image_template or f"{{{args.image_column}}}"),)
    drawn = args.split_file or args.group_column or args.split_by == "patient"
    if args.split_by == "column" and (args.split_file or args.group_column):
        raise DataError("--split-by column, and a split file or group column, are both given", fix="say one of them")
    by_column = args.split_column or (None if drawn or "split" not in columns else "split")
    if args.split_by == "column" and not by_column:
        raise DataError("--split-by column, and the table has no column split", fix="name it with --split-column")
    shares = (args.val_fraction, args.test_fraction)
    if (by_column or args.split_file) and shares != (VAL_FRACTION, TEST_FRACTION):
        raise DataError(
            "--val-fraction and --test-fraction draw splits, and the "
            + ("split file" if args.split_file else f"column {by_column!r}")
            + " says them already",
            "the fractions would be ignored",
            "leave them out, or draw in spite of it: --split-by patient",
        )
    spec = TableSpec(
        root=Path(args.root) if args.root else table.parent,
        images=images,
        patient_column=args.patient_column,
        texts=text_columns(args, columns),
        id_column=args.id_column or ("id" if "id" in columns else None),
        split_column=None if args.split_by == "patient" else by_column,
        group_column=args.group_column,
        splits=read_splits(args.split_file) if args.split_file else None,
        meta_columns=tuple(words(args.meta_columns)),
        known_columns=tuple(words(args.known_columns)),
        slope_column=args.slope_column,
        intercept_column=args.intercept_column,
        spacing_columns=tuple(words(args.spacing_columns)),
        modality_column=args.modality_column,
        phase_column=args.phase_column,
        where=args.where,
        val_fraction=args.val_fraction,
        test_fraction=args.test_fraction,
    )
    return replace(spec, labels=parse_labels(args.label_columns, [c for c in columns if c not in spec.needed]))


def text_columns(args: argparse.Namespace, columns: Sequence[str]) -> dict[str, str]:
    """--text-columns; none where texts may be missing and the table has not the column that is looked for by itself."""
    unasked = args.text_columns == "report" and "report" not in columns
    if args.allow_no_text and (unasked or not words(args.text_columns)):
        return {}
    return parse_texts(args.text_columns)


def open_known(source: Path, args: argparse.Namespace) -> Opened | None:
    """The studies of a preset's folder, a table or a MedMNIST archive, after --where, --cap and --balance.

    None where `source` is none of these (a folder without --preset). Raises: DataError as their readers.
    """
    in_table = False
    if args.preset:
        from data_shards.sources.presets import load_preset
        from data_shards.sources.presets.engine import read

        found = load_preset(args.preset)
        if args.scans:
            found = found.model_copy(update={"scans": args.scans})
        opened = Opened(read(found, source), found.modality, found.licence, found.source)
    elif source.suffix.lower() == ".npz":
        from data_shards.sources.medmnist import licence_of, read_medmnist, set_name

        opened = Opened(read_medmnist(source), None, licence_of(set_name(source)), set_name(source))
    elif source.is_dir():
        return None
    elif table_suffix(source) in TABLE_SUFFIXES or source.is_file():
        from data_shards.sources.table import read_table

        opened, in_table = Opened(read_table(source, table_spec(args, source))), True
    else:
        raise DataError("the source does not exist", fix="check --source")
    return replace(opened, listing=chosen(opened, choice_of(args, "" if in_table else args.where)))


def choice_of(args: argparse.Namespace, where: str) -> Choice:
    """The options of `add_choice_options`."""
    from data_shards.selection import Choice, parse_cap

    return Choice(where, tuple(parse_cap(cap) for cap in args.cap), args.balance, args.seed)


def chosen(opened: Opened, choice: Choice) -> Listing:
    """The listing without the studies that are not chosen; the notes say how many went."""
    if not (choice.where or choice.caps or choice.balance):
        return opened.listing
    from data_shards.selection import listing_table, select_rows

    table = listing_table(opened.listing, opened.modality, opened.licence, opened.name)
    rows = select_rows(table, choice).rows
    note = f"--where, --cap and --balance keep {len(rows)} of {table.num_rows} studies"
    kept = [opened.listing.rows[int(i)] for i in rows]
    return replace(opened.listing, rows=kept, notes=(*opened.listing.notes, note))
