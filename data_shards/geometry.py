"""Preprocessing as data: frozen records with one canonical JSON, whose sha256 is their identity.

A release stores its geometry, and evaluators compare identities instead of assuming: mismatched preprocessing turns an
AUROC of 0.80 into 0.49 in this field.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

from data_shards.errors import DataError

AIR_HU = -1024.0
LUNG, SOFT_TISSUE, BONE = (-1000.0, 200.0), (-160.0, 240.0), (-450.0, 1050.0)  # windows in HU: low, high
PERCENTILES = (0.5, 1.0, 2.0, 5.0, 25.0, 50.0, 75.0, 95.0, 98.0, 99.0, 99.5)  # stored with every volume that is read
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of open_clip


class _Record:
    """Canonical JSON and identity for the frozen dataclasses below: sorted keys, no spaces, shortest exact floats.
    `source` of a geometry is what is read of a study: "volume" or "image"."""

    _floats: ClassVar[tuple[str, ...]] = ()  # fields whose numbers are floats whichever way they were written
    _ints: ClassVar[tuple[str, ...]] = ()
    _later: ClassVar[tuple[str, ...]] = ()  # fields that came later: not written at their default, so identities last

    def __post_init__(self) -> None:
        for kind, names in ((float, self._floats), (int, self._ints)):
            for name in names:
                object.__setattr__(self, name, _as(kind, getattr(self, name), name))
        self._check()

    def _check(self) -> None:
        raise NotImplementedError

    def to_json(self) -> str:
        data = asdict(self)  # type: ignore[call-overload]
        for field in fields(self):  # type: ignore[arg-type]
            if field.name in self._later and data[field.name] == field.default:
                del data[field.name]
        return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """From plain data (JSON lists become tuples). Raises DataError for an unknown key."""
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        if strange := sorted(set(data) - known):
            raise DataError(
                f"{cls.__name__} has no field {strange}",
                "a setting that nobody reads would be taken for applied",
                f"it has {sorted(known)}",
            )
        return cls(**{k: _tuples(v) for k, v in data.items()})

    @property
    def identity(self) -> str:
        """sha256 (hex) of the canonical JSON: equal exactly when the preprocessing is equal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def differences(self, other: Any) -> list[str]:
        """The fields that differ, in words, for error messages."""
        mine, theirs = json.loads(self.to_json()), json.loads(other.to_json())
        names = sorted(set(mine) | set(theirs))
        return [f"{n}: {mine.get(n)} against {theirs.get(n)}" for n in names if mine.get(n) != theirs.get(n)]


@dataclass(frozen=True)
class Geometry(_Record):
    """How a volume becomes the grid of numbers an encoder sees.

    orientation: always "RAS": axes D,H,W grow toward the head, the front and the patient's right.
    spacing_mm: voxel distance (z, y, x) after resampling; None keeps each volume's own.
    interpolation: "linear" or "nearest". antialias: widen the linear filter when an axis shrinks.
    pad_hu: what lies outside the volume, in the volume's unit.
    windows: (low, high) pairs; each gives one channel, scaled to [-1, 1].
    windows_in: "unit", the volume's unit (HU), or "percentile": of PERCENTILES, as stored with each volume, for MR and
        others of arbitrary units. What lies outside the volume is then the low end of each window.
    rounding: "none", or "nearest" to round resampled values to whole units.
    levels: evenly spaced values, from end to end of a window, that resampled ones are rounded to: 256 for an 8-bit
        picture of it, None rounds nothing.
    scans_per_study: how many scans of a study an encoder sees together, the windows of one after those of another; -1
        where a study has fewer (data_shards.preprocess.stacked).
    """

    kind: str = "volume"
    orientation: str = "RAS"
    spacing_mm: tuple[float, float, float] | None = (3.0, 3.0, 3.0)
    interpolation: str = "linear"
    antialias: bool = True
    pad_hu: float = AIR_HU
    windows: tuple[tuple[float, float], ...] = (LUNG, SOFT_TISSUE, BONE)
    rounding: str = "none"
    dtype: str = "float32"
    windows_in: str = "unit"
    scans_per_study: int = 1
    levels: int | None = None
    _floats = ("spacing_mm", "pad_hu", "windows")
    _ints = ("scans_per_study", "levels")
    _later = ("windows_in", "scans_per_study", "levels")
    source: ClassVar[str] = "volume"

    @property
    def channels(self) -> int:
        return self.scans_per_study * len(self.windows)

    def _check(self) -> None:
        _one_of(self, kind=("volume",), orientation=("RAS",), interpolation=("linear", "nearest"))
        _one_of(self, rounding=("none", "nearest"), dtype=("float32",), windows_in=("unit", "percentile"))
        if self.spacing_mm is not None and (len(self.spacing_mm) != 3 or not all(s > 0 for s in self.spacing_mm)):
            raise DataError(f"spacing_mm {self.spacing_mm} is not three positive numbers", fix="give z, y, x in mm")
        if self.scans_per_study < 1:
            raise DataError(f"scans_per_study {self.scans_per_study} is below 1", fix="1: each study by one scan")
        _check_windows(self.windows, self.windows_in, self.levels)


@dataclass(frozen=True)
class PlanarGeometry(_Record):
    """How a planar image becomes C,H,W: the same steps as open_clip's evaluation transform.

    interpolation: "bicubic" or "bilinear"; resize_mode: "shortest" (then crop), "longest" (then pad) or "squash".
    deep_percentiles: images of more than 8 bits are clipped to these percentiles of the image and scaled to 8 bits
        first (open_clip would clip all values above 255 to white).
    """

    kind: str = "image"
    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    mode: str = "RGB"
    deep_percentiles: tuple[float, float] = (0.5, 99.5)
    source: ClassVar[str] = "image"
    _floats = ("mean", "std", "deep_percentiles")
    _ints = ("size",)

    @property
    def channels(self) -> int:
        return len(self.mode)

    def _check(self) -> None:
        _one_of(self, kind=("image",), interpolation=("bicubic", "bilinear"), mode=("RGB", "L"))
        _one_of(self, resize_mode=("shortest", "longest", "squash"))
        if len(self.size) != 2 or min(self.size) < 1:
            raise DataError(f"size {self.size} is not (height, width)")
        if len(self.mean) != self.channels or len(self.std) != self.channels or min(self.std) <= 0:
            raise DataError(f"mean and std need {self.channels} numbers for mode {self.mode}, std above 0")
        low, high = self.deep_percentiles
        if not 0 <= low < high <= 100:
            raise DataError(f"deep_percentiles {self.deep_percentiles} are not two rising percentages")


@dataclass(frozen=True)
class SliceGeometry(_Record):
    """How one slice of a volume becomes C,H,W for an encoder of images (data_shards.slices).

    plane: "axial", "coronal" or "sagittal". size: height and width in pixels.
    spacing_mm: millimetres a pixel; None scales each slice, its proportions kept, so that the whole of it fits.
    windows: one (low, high) pair, the same in all three channels, or three, a channel each. windows_in, pad_hu,
        interpolation, antialias, rounding, levels: as for a volume.
    mean, std: subtracted and divided by per channel, of windows scaled to [0, 1]: those that a tower was trained with.
    span: part of the volume along the plane's axis that slices are taken from (first, last), 0 at the feet, the back
        and the left.
    """

    kind: str = "slice"
    plane: str = "axial"
    size: tuple[int, int] = (224, 224)
    spacing_mm: float | None = None
    windows: tuple[tuple[float, float], ...] = (LUNG, SOFT_TISSUE, BONE)
    windows_in: str = "unit"
    pad_hu: float = AIR_HU
    interpolation: str = "linear"
    antialias: bool = True
    rounding: str = "none"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    span: tuple[float, float] = (0.0, 1.0)
    levels: int | None = None
    channels: ClassVar[int] = 3
    source: ClassVar[str] = "volume"
    scans_per_study: ClassVar[int] = 1
    _floats = ("spacing_mm", "windows", "pad_hu", "mean", "std", "span")
    _ints = ("size", "levels")
    _later = ("levels",)

    def _check(self) -> None:
        _one_of(self, kind=("slice",), plane=PLANES, interpolation=("linear", "nearest"))
        _one_of(self, rounding=("none", "nearest"), windows_in=("unit", "percentile"))
        if len(self.size) != 2 or min(self.size) < 1:
            raise DataError(f"size {self.size} is not (height, width)")
        if self.spacing_mm is not None and self.spacing_mm <= 0:
            raise DataError(f"spacing_mm {self.spacing_mm} is not positive", fix="give millimetres a pixel, or null")
        if len(self.windows) not in (1, 3):
            raise DataError(f"{len(self.windows)} windows for the three channels of an image", fix="give one, or three")
        _check_windows(self.windows, self.windows_in, self.levels)
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise DataError("mean and std need three numbers, std above 0")
        if not 0 <= self.span[0] < self.span[1] <= 1:
            raise DataError(f"span {self.span} is not a rising pair within 0 and 1")


PLANES = ("axial", "coronal", "sagittal")  # across the axes D, H, W
SEVERAL = ("sliding", "multi", "slices")  # kinds of view that give several crops of a study


@dataclass(frozen=True)
class View(_Record):
    """Which part of a study one training or evaluation example shows.

    kind: "random" crop | "centre" crop, padded where the study is smaller | "resize" the whole study |
        "sliding" crops that cover all of a volume | "multi": the corners and the middle (nine crops of a volume, five
        of an image, whose crops are 7/8 of its shorter side) | "slices": `slices` evenly spaced ones of a volume that
        is seen slice by slice, where "centre" is the middle one.
    size: D,H,W voxels after resampling; H,W for images (empty: the geometry's size).
    jitter: where a study is smaller than a random crop, shift it by up to this many voxels.
    scale: part of a planar image that a random crop covers (least, most).
    overlap: part of a sliding crop shared with its neighbour. merge: how scores of several crops are joined.
    """

    kind: str = "centre"
    size: tuple[int, ...] = ()
    jitter: int = 0
    scale: tuple[float, float] = (0.8, 1.0)
    overlap: float = 0.25
    merge: str = "mean"
    slices: int = 1
    _floats = ("scale", "overlap")
    _ints = ("size", "jitter", "slices")
    _later = ("slices",)

    def _check(self) -> None:
        _one_of(self, kind=("random", "centre", "resize", *SEVERAL), merge=("mean", "max"))
        if len(self.size) not in (0, 2, 3) or any(s < 1 for s in self.size):
            raise DataError(f"view size {self.size} is not D,H,W or H,W")
        if not 0 <= self.overlap < 1 or self.jitter < 0 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise DataError("a view needs 0 <= overlap < 1, jitter >= 0 and 0 < scale <= 1")
        if self.slices < 1:
            raise DataError(f"a view of {self.slices} slices shows nothing", fix="use 1 or more")


AnyGeometry = Geometry | PlanarGeometry | SliceGeometry


def geometry_from_dict(data: dict[str, Any]) -> AnyGeometry:
    """The geometry that `data["kind"]` names: "volume", "image" or "slice"."""
    kind = data.get("kind")
    if kind == "volume":
        return Geometry.from_dict(data)
    if kind == "image":
        return PlanarGeometry.from_dict(data)
    if kind == "slice":
        return SliceGeometry.from_dict(data)
    raise DataError(f"geometry kind {kind!r} is unknown", fix='use "volume", "image" or "slice"')


def _check_windows(windows: tuple[tuple[float, float], ...], windows_in: str, levels: int | None) -> None:
    if not windows or any(len(w) != 2 or not w[0] < w[1] for w in windows):
        raise DataError(f"windows {windows} are not (low, high) pairs with low < high")
    if windows_in == "percentile" and (strange := {p for w in windows for p in w} - set(PERCENTILES)):
        raise DataError(f"percentiles {sorted(strange)} are not stored with volumes", fix=f"use some of {PERCENTILES}")
    if levels is not None and levels < 2:
        raise DataError(f"levels {levels} is below 2", "both ends of a window would be one", "None rounds nothing")


def _one_of(record: Any, **allowed: tuple[str, ...]) -> None:
    for name, values in allowed.items():
        if getattr(record, name) not in values:
            raise DataError(f"{type(record).__name__}.{name} is {getattr(record, name)!r}", fix=f"use one of {values}")


def _as(kind: type, value: Any, name: str) -> Any:
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return tuple(_as(kind, v, name) for v in value)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or kind(value) != value
    ):
        raise DataError(f"{name} holds {value!r}, which is not a finite {kind.__name__}")
    return kind(value)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
