"""What DICOM headers say: single and enhanced multi-frame images as frames, and what is no scan at all.

Attribute names and values: DICOM PS3.3 (image type C.7.6.1.1.2, functional groups C.7.6.16.2) and PS3.4 annex B.5.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_shards.errors import DataError

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR
# CT, MR, PET, each also enhanced and converted to enhanced, and nuclear medicine.
_VOLUMES = tuple(
    f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "2.1", "2.2", "4", "4.1", "4.4", "128", "130", "128.1", "20")
)
RADIOGRAPHS = ("CR", "DX", "MG")  # read one by one, each an image
_OTHER_PLANAR = ("XA", "RF", "US", "IO", "PX", "OP", "SM", "ES")
_MADE = {"MPR", "REFORMATTED", "PROJECTION IMAGE", "MIP", "MINIP", "MEAN", "VRT", "CURVED", "AVERAGE", "CSA MPR"}
_PIXELS = (0x7FE00010, 0x7FE00009, 0x7FE00008, 0x56000020)  # whole numbers, doubles, floats, spectra
_IMAGE = 0x00280000  # the first tag of what describes an image; studies, series and places come before
_UNDEFINED = 0xFFFFFFFF  # the length of an element that ends at a delimiter
_BARE = (b"\x08\x00", b"\x02\x00")  # how a data set without preamble begins: group 8 or 2, little endian


@dataclass(frozen=True)
class Frame:
    """One slice of a DICOM object. position and directions in mm, LPS. value = stored * slope + intercept."""

    item: Any
    index: int
    position: np.ndarray
    row: np.ndarray
    column: np.ndarray
    spacing: tuple[float, float]
    slope: float
    intercept: float
    stack: str

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.row, self.column)


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom repeats the header's values in warnings, and names of files in its log."""
    log = logging.getLogger("pydicom")
    before, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before


def open_dicom(path: Path) -> Any | None:
    """The data set of a file, None for what is not DICOM.

    Files without the 128 byte preamble are read too. Raises: DataError for a DICOM file that cannot be read.
    """
    import pydicom

    found = _opened(path, lambda file, force: pydicom.dcmread(file, force=force))
    return None if found is None else _image_of(*found)


def open_header(path: Path, only: Sequence[str]) -> tuple[Any, bool] | None:
    """The attributes `only` of a file, and whether it goes on to pixels. No pixels are read; None: not DICOM.

    A value at which the file ends is left out, it may be half of one. Of a header damaged further on, what stands
    before the description of the image (group 0028) is returned. Raises: DataError for a DICOM file that tells nothing.
    """
    from pydicom.filereader import read_partial
    from pydicom.tag import Tag

    tags: list[Any] = [Tag(name) for name in only]
    reached = False

    def at_pixels(tag: Any, vr: str | None, length: int) -> bool:
        nonlocal reached
        reached = tag in _PIXELS
        return reached

    def read(file: BinaryIO, force: bool) -> Any:
        try:
            return read_partial(file, at_pixels, force=force, specific_tags=tags)
        except Exception:  # a damaged file raises anything
            file.seek(0)
            return read_partial(file, lambda tag, vr, length: tag >= _IMAGE, force=force, specific_tags=tags)

    found = _opened(path, read)
    if found is None:
        return None
    for tag in list(found[0].keys()):
        raw = found[0].get_item(tag)
        if raw.is_raw and isinstance(raw.value, bytes) and len(raw.value) < raw.length < _UNDEFINED:
            del found[0][tag]
    item = _image_of(*found)
    return None if item is None else (item, reached)


def _opened(path: Path, read: Callable[[BinaryIO, bool], Any]) -> tuple[Any, bool] | None:
    """(data set, whether a preamble says that it is DICOM), None for what is not DICOM."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
            whole = start[128:] == b"DICM"
            if not whole and start[:2] not in _BARE:
                return None
            file.seek(0)
            with quiet():
                return read(file, not whole), whole
    except Exception as error:  # a damaged file raises anything; one that only begins like DICOM is none
        if not isinstance(error, OSError) and not whole:
            return None
        raise DataError(
            f"a DICOM file is damaged or cannot be opened ({type(error).__name__})",
            "the volume would have holes",
            "copy or export the series again",
        ) from None


def _image_of(found: Any, whole: bool) -> Any | None:
    if "SOPClassUID" in found or "Rows" in found:
        return found
    if not whole or str(getattr(found, "file_meta", {}).get("MediaStorageSOPClassUID", "")) == _DIRECTORY:
        return None
    raise DataError("a DICOM file is cut off", "the volume would have holes", "copy it again")


def is_image(item: Any) -> bool:
    """Whether it shows something, or would if its file were whole."""
    return text_of(item, "Rows") not in ("", "0") or text_of(item, "SOPClassUID") in _VOLUMES


def text_of(item: Any, name: str) -> str:
    """A header value as plain text; "" where it is absent or cannot be decoded."""
    try:
        value = item.get(name)
    except Exception:  # damaged values raise what they like
        return ""
    return "" if value is None else str(value).strip()


def texts_of(item: Any, name: str) -> list[str]:
    """The values of an attribute that may have several, as plain texts."""
    try:
        return [str(value).strip() for value in _many(item.get(name))]
    except Exception:  # damaged values raise what they like
        return []


def image_type(item: Any) -> tuple[str, ...]:
    """ImageType in capitals; of an enhanced object, also its frames' type."""
    values = list(_many(item.get("ImageType")))
    for group in item.get("SharedFunctionalGroupsSequence") or []:
        for part in ("CTImageFrameTypeSequence", "MRImageFrameTypeSequence"):
            values += [v for kind in group.get(part) or [] for v in _many(kind.get("FrameType"))]
    return tuple(str(v).strip().upper() for v in values)


def not_a_scan(item: Any) -> str:
    """Why an object is no part of a volume and no radiograph, in words; "" where it may be one."""
    uid, kind = text_of(item, "SOPClassUID"), image_type(item)
    modality, told = text_of(item, "Modality"), text_of(item, "SeriesDescription").upper()
    if not item.get("Rows") or not item.get("Columns"):
        return "no image (report, PDF, presentation state, structure set or the like)"
    if modality == "SEG":
        return "segmentation"
    if uid.startswith(_SECONDARY_CAPTURE) or "SCREEN SAVE" in kind or "DOSE_INFO" in kind:
        return "dose report" if "DOSE" in told or "DOSE_INFO" in kind else "secondary capture"
    if modality in _OTHER_PLANAR:
        return f"image of modality {modality}, which is not read from DICOM: convert it to PNG"
    if modality in RADIOGRAPHS:
        return not_a_radiograph(item)
    if "LOCALIZER" in kind or "SCOUT" in kind:
        return "localizer"
    if _MADE & set(kind) or (kind[:2] == ("DERIVED", "SECONDARY") and "AXIAL" not in kind):
        return "reformatted or otherwise derived series"
    if int(item.get("SamplesPerPixel") or 1) > 1:
        return "colour image"
    return ""


def not_a_radiograph(item: Any) -> str:
    """Why an object is no single radiograph that may be shown, in words; "" where it is one."""
    if text_of(item, "Modality") not in RADIOGRAPHS:
        return "not of modality " + ", ".join(RADIOGRAPHS)
    if int(item.get("NumberOfFrames") or 1) > 1:
        return "several frames"
    if int(item.get("SamplesPerPixel") or 1) > 1:
        return "colour image"
    if text_of(item, "PresentationIntentType") == "FOR PROCESSING":
        return "raw detector image (for processing)"
    if text_of(item, "BurnedInAnnotation") == "YES":
        return "words are burned into the pixels, perhaps a name"
    return ""


def frames_of(item: Any) -> list[Frame]:
    """The slices of one object. Raises: DataError for a slice without position, direction or spacing."""
    count = int(item.get("NumberOfFrames") or 1)
    if "PerFrameFunctionalGroupsSequence" not in item:
        if count > 1:
            raise DataError(
                f"an object of {count} frames says nothing about where each lies",
                "only enhanced multi-frame objects place their frames in the patient",
                "convert the series to NIfTI, for instance with dcm2niix",
            )
        return [_frame(item, 0, (item,))]
    shared = list(item.get("SharedFunctionalGroupsSequence") or [])
    groups = list(item.PerFrameFunctionalGroupsSequence)
    if len(groups) != count:
        raise DataError(f"{count} frames, but {len(groups)} descriptions of frames", "slices would be misplaced")
    return [_frame(item, i, (group, *shared)) for i, group in enumerate(groups)]


_MACROS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "FrameContentSequence",
)


def _frame(item: Any, index: int, groups: Sequence[Any]) -> Frame:
    said: dict[str, Any] = {}
    parts = [p for group in groups for p in [group, *(m for name in _MACROS for m in group.get(name) or [])]]
    for name in (
        "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept",
        "StackID", "TemporalPositionIndex",
    ):  # fmt: skip
        said[name] = next((part[name].value for part in parts if name in part and part[name].value is not None), None)
    try:
        position, both, spacing = (
            np.atleast_1d(np.asarray(said[name], float))
            for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
        )
    except (TypeError, ValueError):
        position = both = spacing = np.zeros(0)
    if (len(position), len(both), len(spacing)) != (3, 6, 2) or not np.isfinite([*position, *both, *spacing]).all():
        raise DataError("a slice has no position, direction or spacing", "its place in the patient is unknown")
    if min(spacing) <= 0 or min(np.linalg.norm(both[:3]), np.linalg.norm(both[3:])) < 0.9:
        raise DataError("a slice's spacing or direction is not one", "its place in the patient is unknown")
    slope, intercept = said["RescaleSlope"], said["RescaleIntercept"]
    stack = f"{said['StackID'] or ''}/{said['TemporalPositionIndex'] or ''}"
    return Frame(
        item,
        index,
        position,
        both[:3],
        both[3:],
        (float(spacing[0]), float(spacing[1])),
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
        stack,
    )


def _many(value: Any) -> Sequence[Any]:
    if value is None or value == "":
        return ()
    return (value,) if isinstance(value, str) else tuple(value)
