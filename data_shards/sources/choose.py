"""Which reader a --source is for: the one place that knows them all, each imported when it is needed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from data_shards.errors import DataError
from data_shards.sources.base import Refused
from data_shards.sources.options import (
    Opened,
    add_preset_options,
    add_table_options,
    choice_of,
    chosen,
    open_known,
    table_spec,
)
from data_shards.sources.records import TABLE_SUFFIXES, read_columns

if TYPE_CHECKING:
    from data_shards.foreign.shards import ForeignShards


def open_source(args: argparse.Namespace) -> Opened:
    """The studies of --source: a preset's folder, a table, .npz, tars, a folder of DICOM files, or a folder with images
    and one table.

    Raises: DataError as their readers, and for a folder that is none of these.
    """
    source = Path(args.source)
    if args.preset or (source.is_file() and source.suffix != ".tar"):
        npz = source.suffix.lower() == ".npz"
        _require(args, "a collection (--preset)" if args.preset else "a MedMNIST archive" if npz else "a table")
        opened = open_known(source, args)
        assert opened is not None  # only of folders nothing is known
        return opened
    if not source.is_dir():
        if source.suffix == ".tar":  # a tar, or a pattern such as train/*.tar
            return _tars(args)
        raise DataError("the source does not exist", fix="check --source")
    if (source / "manifest.json").is_file():
        raise DataError("the source is a shard set already", fix="train on it; python -m data_shards.select thins it")
    tables = _tables(source)
    tars = next(source.glob("*.tar"), None) is not None
    if args.reports:
        return _tars(args) if tars else _dicom(source, args)
    if tars and any(_names_images(table, args) for table in tables):
        raise DataError(
            "the source is a folder with a table of images and with tars",
            "one of them would be ignored",
            'name the table, or the tars by a pattern in quotes: --source "FOLDER/*.tar"',
        )
    if tars or (not tables and next(source.rglob("*.tar"), None) is not None):
        return _tars(args)
    return _folder(source, tables, args)


def _tables(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file() and path.name.lower().endswith(_TABLES)]


def _names_images(table: Path, args: argparse.Namespace) -> bool:
    return set(table_spec(args, table).image_columns) <= set(read_columns(table))


def _folder(source: Path, tables: list[Path], args: argparse.Namespace) -> Opened:
    """A folder whose one table says what is in it, or one of DICOM files alone."""
    if len(tables) > 1:
        raise DataError(
            f"the source is a folder with {len(tables)} tables",
            "the wrong studies would be built",
            "name one: --source TABLE of images, or --source FOLDER --reports TABLE for DICOM",
        )
    if tables and _names_images(tables[0], args):
        _require(args, "a table")
        args.root = args.root or str(source)
        opened = open_known(tables[0], args)
        assert opened is not None
        return opened
    images = sum(1 for _ in islice((p for p in source.rglob("*") if p.name.lower().endswith(_IMAGES)), 1000))
    if tables and images:
        raise DataError(
            f"the source is a folder with {images}{' or more' if images == 1000 else ''} images, and its table has no "
            f"column {', '.join(table_spec(args, tables[0]).image_columns)}",
            "which image belongs to which row is unknown",
            "name the column of the image paths with --image-column (or --image-template), of "
            + ", ".join(read_columns(tables[0])),
        )
    if tables:
        args.reports = str(tables[0])
        return _dicom(source, args)
    if images:
        raise DataError(
            f"the source is a folder with {images}{' or more' if images == 1000 else ''} images and no table",
            "patients, splits and reports would be unknown",
            "write a table with the columns id, image, patient, report; give it as --source, or put it in the folder",
        )
    return _dicom(source, args)


_TABLES = tuple(f"{suffix}{packed}" for suffix in TABLE_SUFFIXES for packed in ("", ".gz"))
_IMAGES = (".nii", ".nii.gz", ".npy", ".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")


def _require(args: argparse.Namespace, kind: str) -> None:
    from data_shards.sources.dicom_options import add_dicom_options
    from data_shards.sources.fitting import require_fitting

    defaults = argparse.ArgumentParser()
    for add in (add_table_options, add_dicom_options, add_tar_options, add_preset_options):
        add(defaults)
    require_fitting(args, kind, defaults)


def _dicom(source: Path, args: argparse.Namespace) -> Opened:
    from data_shards.sources.dicom_options import open_dicom_tree

    _require(args, f"a folder of DICOM files {'with' if args.reports else 'without'} --reports")
    return open_dicom_tree(source, args, args.workers)


def _tars(args: argparse.Namespace) -> Opened:
    from data_shards.foreign.shards import ForeignShards

    _require(args, "published tars")
    shards = ForeignShards.open(
        args.source,
        layout=args.layout,
        val_fraction=args.val_fraction,
        test_fraction=args.test_fraction,
        modality=args.modality,
        patient_field=args.patient_field,
        max_damaged=sys.maxsize,  # what is lost is refused below, and counted once, by --max-rejects
        workers=args.workers,
    )
    found = shards.listing()
    opened = Opened(replace(found, refused=(*found.refused, *_lost(shards))), args.modality)
    return Opened(chosen(opened, choice_of(args, args.where)), opened.modality)


def _lost(shards: ForeignShards) -> Iterator[Refused]:
    """One for each sample or member that is left out. Tars are told by number: their names are in the notes only."""
    for i, side in enumerate(shards.sidecars, 1):
        told = 0
        for what, (numbers, count) in side.about["flaws"].items():
            told += count
            for at in range(count):
                number = numbers[at] if at < len(numbers) else 0
                where = f"tar {i}, member {number}" if number else f"tar {i}, another member"
                yield Refused(number, f"tar {i}/{what}/{at}", f"{where}: {what}")
        for at in range(told, side.about["lost"]):
            yield Refused(0, f"tar {i}//{at}", f"tar {i}, another member: cannot be used")


def add_tar_options(parser: argparse.ArgumentParser) -> None:
    """How somebody else's tars are read."""
    add = parser.add_argument_group("published WebDataset tars").add_argument
    add(
        "--layout",
        default="auto",
        metavar="NAME",
        help="unimed, biomedica, clip_benchmark or img2dataset (default: recognised by their members)",
    )
    add("--patient-field", metavar="NAME", help="field of the json that must not be in two splits (patient, article)")
