"""Every file of a folder tree to the few header values that studies and series are made of. No pixels are read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.dicom.header import RADIOGRAPHS, Frame, frames_of, is_image, not_a_scan, open_header, text_of, texts_of
from data_shards.errors import DataError
from data_shards.progress import track

NOT_DICOM = "not DICOM"
# What tells time points, echoes, phases and reconstructions apart that share one series UID.
_PHASES = ("TemporalPositionIdentifier", "AcquisitionNumber", "EchoNumbers", "TriggerTime", "ContentTime")
_ONLY = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription",
    "InstanceNumber", "Modality", "ImageType", "PatientID", "IssuerOfPatientID", "PatientName", "OtherPatientIDs",
    "AccessionNumber", "StudyID", "StudyDate", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PixelSpacing",
    "ImagePositionPatient", "ImageOrientationPatient", "ConvolutionKernel", "ViewPosition",
    "PresentationIntentType", "BurnedInAnnotation", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", *_PHASES,
)  # fmt: skip
_CHUNK = 64  # files a worker takes at once


@dataclass(frozen=True)
class Header:
    """One DICOM object. file: path below the root. why_not: why it is no part of a volume, "" where it may be.

    broken: it would be one, were its header whole. image: it shows something, a volume's part or not.
    patient: PatientID, after "ISSUER/" where there is one; patient_id: PatientID alone.
    normal: direction of its slices (LPS), along: where they lie on it, in mm. known: identifiers worth masking.
    """

    file: str
    why_not: str
    study: str
    series: str
    instance: str
    patient: str
    accession: str
    date: str
    modality: str
    known: tuple[str, ...]
    description: str
    number: int
    kernel: str
    shape: tuple[Any, ...] = ()
    normal: tuple[float, ...] = ()
    along: tuple[float, ...] = ()
    phases: tuple[str, ...] = ()
    broken: bool = False
    view: str = ""
    image: bool = True
    patient_id: str = ""

    @property
    def radiograph(self) -> bool:
        """An image of its own, no slice."""
        return self.modality in RADIOGRAPHS


def read_headers(root: Path, workers: int = 0) -> tuple[list[Header], int]:
    """(headers in the order of their paths, how many files are not DICOM). Links to folders are not followed.

    Raises: DataError for a root that is no folder, or holds no DICOM.
    """
    if not root.is_dir():
        raise DataError("the DICOM tree is no folder", fix="give the folder that holds the export")
    files = sorted(_walk(root))
    found = [h for h in track(_read(root, files, workers), len(files), "reading headers", "files") if h is not None]
    if not found:
        raise DataError(
            f"none of the {len(files)} files below the folder is DICOM",
            "there is nothing to build from",
            "give the folder that holds the export; for NIfTI or PNG use a table",
        )
    return found, len(files) - len(found)


def _walk(root: Path) -> Iterator[str]:
    for folder, _, names in os.walk(root):
        for name in names:
            if name.upper() != "DICOMDIR":  # an index of the others
                yield os.path.relpath(os.path.join(folder, name), root)


def _read(root: Path, files: Sequence[str], workers: int) -> Iterator[Header | None]:
    one = partial(read_header, root)
    if workers < 1:
        yield from map(one, files)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(one, files, chunksize=_CHUNK)


def read_header(root: Path, file: str) -> Header | None:
    """None for what is not DICOM. What a damaged file no longer tells, its study perhaps, is empty."""
    try:
        found = open_header(root / file, _ONLY)
    except DataError as error:
        return Header(file, error.what, "", "", file, "", "", "", "", (), "", 0, "", broken=True)
    if found is None:
        return None
    item, reached = found
    issuer, patient = text_of(item, "IssuerOfPatientID"), text_of(item, "PatientID")
    names = [n for key in ("PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID") for n in texts_of(item, key)]
    names += text_of(item, "PatientName").split("=")  # whole in each script: data_shards.deidentify takes names apart
    frames: list[Frame] = []
    broken = True
    try:
        if is_image(item) and not reached:
            raise DataError("an image's file ends before its pixels")
        why_not = not_a_scan(item)
        radiograph = text_of(item, "Modality") in RADIOGRAPHS
        frames = [] if why_not or radiograph else frames_of(item)
        broken = False
    except DataError as error:
        why_not = error.what
    except Exception as error:  # a header damaged in a way that pydicom meets late
        why_not = f"unreadable header ({type(error).__name__})"
    number = text_of(item, "SeriesNumber")
    header = Header(
        file=file,
        why_not=why_not,
        study=text_of(item, "StudyInstanceUID"),
        series=text_of(item, "SeriesInstanceUID"),
        instance=text_of(item, "SOPInstanceUID") or file,
        patient=f"{issuer}/{patient}" if issuer and patient else patient,
        accession=text_of(item, "AccessionNumber"),
        date=text_of(item, "StudyDate"),
        modality=text_of(item, "Modality").upper() or "CT",
        known=tuple(dict.fromkeys(n.strip(" ^") for n in names if n.strip(" ^"))),
        description=text_of(item, "SeriesDescription"),
        number=int(number) if number.lstrip("-").isdigit() else 0,
        kernel=text_of(item, "ConvolutionKernel"),
        broken=broken,
        view=text_of(item, "ViewPosition").upper(),
        image=is_image(item),
        patient_id=patient,
    )
    return _with_places(header, item, frames) if frames else header


def _with_places(header: Header, item: Any, frames: list[Frame]) -> Header:
    first = frames[0]
    turned = max(float(np.abs([f.row - first.row, f.column - first.column]).max()) for f in frames)
    if turned > 1e-3 or len({f.stack for f in frames}) > 1:
        return replace(header, why_not="frames of several stacks, time points or directions", broken=True)
    direction = tuple(round(float(v), 2) + 0.0 for v in (*first.row, *first.column))
    return replace(
        header,
        shape=(text_of(item, "Rows"), text_of(item, "Columns"), *(round(s, 4) for s in first.spacing), *direction),
        normal=tuple(float(v) for v in first.normal),
        along=tuple(round(float(f.position @ first.normal), 3) for f in frames),
        phases=tuple(text_of(item, name) for name in _PHASES),
    )
