"""What every source hands to the build: a list of studies, each with the places of its scans and its words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from data_shards.schema import Texts


@dataclass(frozen=True)
class ScanFile:
    """Where one scan lies, and what its own header does not say or says wrongly (None: as the header says).

    path: a NIfTI, .npy or image file, a folder with one DICOM series, a .npz, or a tar.
    files: of a folder with several DICOM series, the names of this one's files.
    item: of a .npz that holds many studies, which (array name, position).
    at: of a tar, the payload's (offset, bytes); `ext` is then the member's extension, `crc32` the payload's.
    axes: of a .npy or .npz volume, where its three axes grow: letters of S/I, A/P, R/L, such as "IPL" (None: "SAR").
    slope, intercept: stored value * slope + intercept is in the scan's unit, instead of what the header says.
    notes: what the source found unusual, as (code of data_shards.quality, words).
    """

    path: str
    files: tuple[str, ...] = ()
    item: tuple[str, int] | None = None
    at: tuple[int, int] | None = None
    ext: str = ""
    crc32: int | None = None
    axes: str | None = None
    modality: str | None = None
    spacing_mm: tuple[float, float, float] | None = None
    slope: float | None = None
    intercept: float | None = None
    phase: str | None = None
    role: str = "primary"
    notes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class StudyRow:
    """One study as its source tells it. Nothing is hashed yet, so it never leaves the building process.

    line: where the source names it (line of a table, number of a study), for messages and rejected.csv.
    known: further words that identify the patient (name, numbers), masked wherever the texts repeat them.
    licence: of this study, where the source tells it; else the one given for all.
    """

    line: int
    id: str
    scans: tuple[ScanFile, ...]
    patient: str
    split: str
    texts: Texts
    labels: dict[str, int | None] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    known: tuple[str, ...] = ()
    licence: str = ""


@dataclass(frozen=True)
class Refused:
    """A study that the source itself cannot use."""

    line: int
    id: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """All studies of a source, in a fixed order; `refused` are counted as rejects, `notes` are told before building."""

    rows: list[StudyRow]
    refused: tuple[Refused, ...] = ()
    notes: tuple[str, ...] = ()
