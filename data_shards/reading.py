"""Scan files of any source to scans: the one place that knows which reader is for which file."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from isal.isal_zlib import crc32

from data_shards.errors import DataError
from data_shards.schema import Scan
from data_shards.sources.base import ScanFile, StudyRow
from data_shards.volume import is_volume, read_image, read_volume


def read_scans(
    row: StudyRow,
    modality: str | None = None,
    spacing_mm: Sequence[float] | None = None,
    accept: Collection[str] = (),
    dtype: str = "int16",
) -> tuple[Scan, ...]:
    """The scans of a study.

    Args:
        modality: where the row does not say.
        spacing_mm: (z, y, x), for files without a spacing (.npy, .npz) of rows that do not say either. What a ScanFile
            says itself goes before its file's header.
        accept: codes of data_shards.quality that do not refuse a volume.
        dtype: of volumes that are not in HU, "int16" or "float16".
    Raises: DataError for a file that is not what it claims to be, and for every fatal note of data_shards.quality.
    """
    return tuple(read_scan(file, modality, spacing_mm, accept, dtype) for file in row.scans)


def read_scan(
    file: ScanFile,
    modality: str | None = None,
    spacing_mm: Sequence[float] | None = None,
    accept: Collection[str] = (),
    dtype: str = "int16",
) -> Scan:
    """One scan; arguments and errors as for `read_scans`."""
    modality = file.modality or modality
    if file.at is not None:
        scan = read_image(file.path, modality, file.at)
        if file.crc32 is not None and crc32(scan.image or b"") != file.crc32:
            raise DataError(
                "the image in the tar does not match its crc32",
                "the tar changed, or went bad, since it was scanned: pixels would be silently wrong",
                "copy the tar again",
            )
    elif file.path.lower().endswith((".npy", ".npz")):
        from data_shards.arrays import scan_of_array
        from data_shards.sources.npz import read_array

        array = read_array(file.path, file.item)
        spacing_mm = file.spacing_mm or spacing_mm
        scan = scan_of_array(
            array, modality, spacing_mm, file.axes, file.phase, file.slope, file.intercept, accept, dtype
        )
    elif is_volume(file.path):
        scan = read_volume(
            file.path, modality, file.spacing_mm, file.phase, file.files, file.slope, file.intercept, accept, dtype
        )
    else:
        scan = read_image(file.path, modality)
    return dataclasses.replace(scan, role=file.role, notes=(*file.notes, *scan.notes))
