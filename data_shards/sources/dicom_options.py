"""The command-line options of a DICOM tree, beside those of tables, and from them the studies."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from data_shards.errors import DataError
from data_shards.sources.options import Opened, choice_of, chosen, text_columns
from data_shards.sources.records import read_columns
from data_shards.sources.report_table import JOINS, ReportTable
from data_shards.sources.table_spec import parse_labels, read_splits, words


def add_dicom_options(parser: argparse.ArgumentParser) -> None:
    """What of a folder of DICOM files becomes a study, and where its report is."""
    add = parser.add_argument_group("a folder of DICOM files").add_argument
    add("--reports", metavar="TABLE", help="table of reports; its columns are named by the options of tables")
    add("--join", choices=tuple(JOINS), default="accession", help="how a report finds its study (default: accession)")
    add(
        "--join-columns",
        default="",
        metavar="COLS",
        help="columns of the table to join by (default: accession, study, or patient,date)",
    )
    add(
        "--series",
        default="primary",
        metavar="RULE",
        help="series to keep: primary (default: CT, axial, most slices, thinnest, soft kernel), all, largest, "
        "thinnest, or regex:PATTERN of descriptions",
    )
    add("--study-id", choices=("study", "accession"), default="study", help="what makes files one study")
    add("--modalities", default="", metavar="M,M", help="DICOM codes to keep (default: all)")


def open_dicom_tree(source: Path, args: argparse.Namespace, workers: int = 0) -> Opened:
    """The studies below a folder, after --where, --cap and --balance. Raises: DataError as `read_dicom_tree`, and for
    options that contradict each other."""
    from data_shards.sources.dicom_tree import read_dicom_tree

    if args.group_column:
        raise DataError("--group-column is for tables", fix="name a --split-column of the reports, or a --split-file")
    listing = read_dicom_tree(
        source,
        _reports(args),
        series=args.series,
        study_id=args.study_id,
        modalities=words(args.modalities),
        splits=read_splits(args.split_file) if args.split_file else None,
        val_fraction=args.val_fraction,
        test_fraction=args.test_fraction,
        workers=workers,
    )
    opened = Opened(listing)
    return Opened(chosen(opened, choice_of(args, args.where)))


def _reports(args: argparse.Namespace) -> ReportTable | None:
    if not args.reports:
        return None
    path = Path(args.reports)
    columns = read_columns(path)
    drawn = args.split_file or args.split_by == "patient"
    by_column = args.split_column or ("split" if not drawn and "split" in columns else None)
    if args.split_by == "column" and not by_column:
        raise DataError("--split-by column, and the table has no column split", fix="name it with --split-column")
    table = ReportTable(
        path,
        text_columns(args, columns),
        by=args.join,
        key_columns=tuple(words(args.join_columns)),
        split_column=None if drawn else by_column,
        meta_columns=tuple(words(args.meta_columns)),
        known_columns=tuple(words(args.known_columns)),
    )
    return replace(table, labels=parse_labels(args.label_columns, [c for c in columns if c not in table.needed]))
