"""What a study is, before it is written to a shard and after it is read from one (contract 1)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_shards.errors import DataError

SCHEMA_VERSION = 1
UNITS = ("HU", "SUV", "arbitrary")
UNIT_KINDS = ("report", "section", "sentence", "caption")
VOLUME_EXT = "vol.b2nd"  # the member is KEY.00.vol.b2nd, then KEY.01.vol.b2nd, ...
IMAGE_EXTS = ("png", "jpg", "jpeg", "webp", "tif", "tiff")
VOLUME_DTYPES = ("int16", "float16")
MIN_SLICES = 3  # fewer is a localiser or a broken series, not a volume
_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")  # no dot: webdataset splits key from extension at the first one


def modality_code(text: str | None) -> str | None:
    """ "ct" -> "CT"; None for nothing. Raises: DataError for what cannot be a DICOM modality (PS3.3 C.7.3.1.1.1)."""
    code = (text or "").strip().upper()
    if code and not re.fullmatch(r"[A-Z][A-Z0-9_]{1,15}", code):
        raise DataError(
            "a modality is no DICOM code", "its values would be taken for another unit", "use CT, MR, PT, CR, DX, ..."
        )
    return code or None


@dataclass(frozen=True)
class Scan:
    """One volume or one planar image.

    array: D,H,W int16 or float16; index D grows toward the head (Superior), H toward the front (Anterior),
        W toward the patient's Right. Physical value = array * slope + intercept, in `unit`. None for an image.
    image: the original encoded bytes of a planar image (None for a volume); `ext` is its true extension.
    spacing_mm: distance between voxel centres along D,H,W.
    percentiles: of the intensities that are not air, in `unit` (data_shards.intensity.percentiles).
    notes: (code, words) of what was unusual or repaired (data_shards.quality).
    """

    array: np.ndarray | None = None
    image: bytes | None = None
    ext: str = "b2nd"
    modality: str = "CT"
    spacing_mm: tuple[float, float, float] | None = None
    unit: str = "HU"
    slope: float = 1.0
    intercept: float = 0.0
    phase: str | None = None
    role: str = "primary"
    percentiles: dict[str, float] = field(default_factory=dict)
    notes: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The entry of this scan in the sample's json; percentiles and notes only where there are any."""
        entry: dict[str, Any] = {
            "modality": self.modality,
            "spacing_mm": None if self.spacing_mm is None else [float(s) for s in self.spacing_mm],
            "unit": self.unit,
            "dtype": str(self.array.dtype) if self.array is not None else None,
            "slope": float(self.slope),
            "intercept": float(self.intercept),
            "phase": self.phase,
            "role": self.role,
            "ext": self.ext,
            "shape": list(self.array.shape) if self.array is not None else None,
        }
        if self.percentiles:
            entry["percentiles"] = {name: float(value) for name, value in self.percentiles.items()}
        if self.notes:
            entry["notes"] = [list(note) for note in self.notes]
        return entry

    def check(self) -> None:
        """Refuse a scan that cannot be written faithfully. Raises DataError."""
        if (self.array is None) == (self.image is None):
            raise DataError("a scan needs either a volume or an image, and this one has both or neither")
        if self.unit not in UNITS:
            raise DataError(
                f"unknown unit {self.unit!r}", "windows would be applied to the wrong scale", f"use {UNITS}"
            )
        if self.array is None:
            if self.ext not in IMAGE_EXTS:
                raise DataError(f"image extension {self.ext!r} is not supported", fix=f"use one of {IMAGE_EXTS}")
            return
        if self.array.ndim != 3:
            raise DataError(
                f"the volume has {self.array.ndim} axes, not 3",
                "a time or channel axis would be read as slices",
                "write each time point or channel as a scan of its own",
            )
        if min(self.array.shape) < MIN_SLICES:
            shape = "x".join(map(str, self.array.shape))
            raise DataError(
                f"the volume is {shape}: fewer than {MIN_SLICES} voxels along an axis",
                "a localiser or a broken series would be trained on as if it were a volume",
                "leave it out, or convert the whole series",
            )
        if str(self.array.dtype) not in VOLUME_DTYPES:
            raise DataError(f"volume dtype {self.array.dtype} is not one of {VOLUME_DTYPES}", fix="convert first")
        if self.array.dtype == np.float16 and not np.isfinite(self.array).all():
            raise DataError("the volume holds NaN or infinite voxels", "one of them turns the loss into NaN")
        if self.spacing_mm is None or len(self.spacing_mm) != 3 or not all(_positive(s) for s in self.spacing_mm):
            raise DataError(
                f"voxel spacing {self.spacing_mm} is not three positive numbers (z, y, x in mm)",
                "resampling to a common spacing would distort the anatomy",
                "give the true spacing: --file-spacing Z Y X of data_shards.build, spacing_mm in Python",
            )


@dataclass(frozen=True)
class Caption:
    """One of several descriptions of a study; `weight` is its chance of being drawn relative to the others."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Texts:
    """The words about a study: a whole report, its sections where they are known, and free captions."""

    report: str = ""
    findings: str = ""
    impression: str = ""
    captions: tuple[Caption, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "report": self.report,
            "findings": self.findings,
            "impression": self.impression,
            "captions": [{"text": c.text, "weight": float(c.weight)} for c in self.captions],
        }

    @property
    def empty(self) -> bool:
        words = [self.report, self.findings, self.impression, *(c.text for c in self.captions)]
        return not any(w.strip() for w in words)


@dataclass(frozen=True)
class Study:
    """One training sample. `key` and `patient` are salted hashes already (data_shards.privacy.hashed).

    labels: finding -> 1 present, 0 absent, None unknown (never taken for absent).
    """

    key: str
    patient: str
    split: str
    scans: tuple[Scan, ...]
    texts: Texts
    labels: dict[str, int | None] = field(default_factory=dict)
    source: str = ""
    licence: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The sample's json member; keys in a fixed order, so equal studies give equal bytes."""
        return {
            "schema_version": SCHEMA_VERSION,
            "scans": [s.to_json() for s in self.scans],
            "texts": self.texts.to_json(),
            "labels": dict(sorted(self.labels.items())),
            "patient": self.patient,
            "source": self.source,
            "licence": self.licence,
            "split": self.split,
            "meta": self.meta,
        }

    def check(self) -> None:
        """Refuse a study that must not be trained on. Raises DataError."""
        if not _KEY.fullmatch(self.key):
            raise DataError(
                "a study key must be 1-80 letters, digits, '-' or '_'",
                "a dot splits the key from the extension in a WebDataset tar",
                "hash the identifier with data_shards.privacy.hashed",
            )
        if not self.scans:
            raise DataError(f"study {self.key} has no scan")
        if self.texts.empty and self.texts != Texts():
            raise DataError(
                f"study {self.key} has no text, only white space",
                "an empty caption becomes a positive pair with every other empty caption",
                "leave it out, fill its text column, or say that it has none: Texts()",
            )
        if not self.patient or not self.split:
            raise DataError(f"study {self.key} has no patient or no split", "patients could leak between splits")
        wrong = sorted(n for n, v in self.labels.items() if v not in (0, 1, None))
        if wrong:
            raise DataError(f"study {self.key}: labels {wrong} are not 0, 1 or unknown", fix="use None for unknown")
        for scan in self.scans:
            scan.check()


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
