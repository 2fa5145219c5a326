"""Real DICOM files for tests, in any transfer syntax, written the way scanners and PACS write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items

SPACING = (2.5, 0.8, 0.7)
GDCM_NAMES = {
    uid.JPEGLosslessSV1: "JPEGLosslessProcess14_1",
    uid.JPEGLossless: "JPEGLosslessProcess14",
    uid.JPEG2000Lossless: "JPEG2000Lossless",
    uid.JPEG2000: "JPEG2000",
    uid.JPEGBaseline8Bit: "JPEGBaselineProcess1",
}
JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)


def body(shape: tuple[int, int, int] = (9, 24, 20), seed: int = 0) -> np.ndarray:
    """HU, D,H,W as stored (toward head, back, left): air around tissue around lung, and no two slices alike."""
    rng = np.random.default_rng(seed)
    d, h, w = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside, lung = (h**2 + w**2) < 0.8, (h**2 + (w - 0.3) ** 2 + 0.3 * d**2) < 0.15
    array = np.where(lung, -800, np.where(inside, 40, -1000)) + rng.integers(-20, 20, shape)
    return array.astype(np.int16)


def real_ct(shared: Path) -> np.ndarray:
    """A real abdomen CT of ../shared/data, D,H,W as scanners store it (head, back, left)."""
    image: Any = nibabel.as_closest_canonical(nibabel.load(shared / "misc_ct" / "ct" / "ts_example_ct_sm.nii.gz"))
    return np.ascontiguousarray(np.asarray(image.dataobj).transpose(2, 1, 0)[:, ::-1, ::-1]).astype(np.int16)


def dataset(plane: np.ndarray, position: Sequence[float] = (0, 0, 0), **attributes: Any) -> Dataset:
    """One CT slice of HU values; any attribute may be said otherwise, None leaves it out."""
    item = Dataset()
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = attributes.get("SOPClassUID", uid.CTImageStorage)
    meta.MediaStorageSOPInstanceUID = attributes.get("SOPInstanceUID", uid.generate_uid())
    item.file_meta = meta
    said = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PatientID": "P1",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.1",
        "Rows": plane.shape[0],
        "Columns": plane.shape[1],
        "PixelSpacing": [SPACING[1], SPACING[2]],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [float(p) for p in position],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        **attributes,
    }
    for name, value in said.items():
        if value is not None:
            setattr(item, name, value)
    if "PixelData" not in said:
        stored = np.rint((plane - float(item.get("RescaleIntercept", 0))) / float(item.get("RescaleSlope", 1)))
        item.PixelData = stored.astype("<i2" if item.PixelRepresentation else "<u2").tobytes()
    return item


def study(number: int, **attributes: Any) -> dict[str, Any]:
    """Header values of one study."""
    return {
        "StudyInstanceUID": f"1.2.{number}",
        "SeriesInstanceUID": f"1.2.{number}.1",
        "AccessionNumber": f"ACC{number:04d}",
        "PatientID": f"PID-{number // 2:05d}",
        "PatientName": f"Doe{number}^Janette",
        "StudyDate": f"202001{number + 10:02d}",
        **attributes,
    }


def series(array: np.ndarray, step: Sequence[float] = (0, 0, SPACING[0]), **attributes: Any) -> list[Dataset]:
    """Slices i at i * step mm, numbered from the head down, as some scanners do."""
    return [
        dataset(plane, np.array([-10.0, -20.0, 0.0]) + i * np.array(step), InstanceNumber=len(array) - i, **attributes)
        for i, plane in enumerate(array)
    ]


def save(items: Sequence[Dataset], folder: Path, syntax: str = uid.ExplicitVRLittleEndian, **names: Any) -> Path:
    """One file an item, in a transfer syntax; names have nothing to do with the order. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    start = len(list(folder.iterdir()))
    for i, item in enumerate(items):
        path = folder / f"IM{(start + i) * 7919 % 10007:05d}"
        _save(item, path, uid.UID(syntax))
    return folder


def _save(item: Dataset, path: Path, syntax: uid.UID) -> None:
    if syntax in GDCM_NAMES:
        item.save_as(path, enforce_file_format=True)
        _with_gdcm(path, GDCM_NAMES[syntax])
        return
    if syntax in JPEG_LS or syntax == uid.RLELossless:
        plugin = {"encoding_plugin": "pyjpegls"} if syntax in JPEG_LS else {"encoding_plugin": "pydicom"}
        more = {"jls_error": 3} if syntax == uid.JPEGLSNearLossless else {}
        if syntax in JPEG_LS:
            pytest.importorskip("jpeg_ls", reason="the extra dicom is not installed")
        item.compress(syntax, generate_instance_uid=False, **plugin, **more)
    elif syntax == uid.ExplicitVRBigEndian:
        item["PixelData"].VR = "OW"
        item.PixelData = np.frombuffer(item.PixelData, "<u2").astype(">u2").tobytes()
    item.file_meta.TransferSyntaxUID = syntax
    item.save_as(path, enforce_file_format=True)


def _with_gdcm(path: Path, name: str) -> None:
    gdcm = pytest.importorskip("gdcm", reason="the extra dicom is not installed")
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
    if name == "JPEG2000":  # the syntax allows lossless streams too, and gdcm would write one
        codec = gdcm.JPEG2000Codec()
        codec.SetReversible(False)
        codec.SetRate(0, 8.0)
        change.SetUserCodec(codec)
    change.SetInput(reader.GetImage())
    assert change.Change(), name
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def enhanced(array: np.ndarray, stacks: int = 1, **attributes: Any) -> Dataset:
    """An enhanced multi-frame CT (or MR) object: frames in shuffled order, each placed by its functional groups."""
    shared, frames = Dataset(), []
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [SPACING[1], SPACING[2]], SPACING[0]
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Items([measures]), Items([orientation])
    order = np.random.default_rng(1).permutation(len(array))
    slopes = np.where(np.arange(len(array)) % 2, 2.0, 1.0)  # each frame has its own rescale
    for i in order:
        group, place, value, content = Dataset(), Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [-10.0, -20.0, float(SPACING[0] * i)]
        value.RescaleSlope, value.RescaleIntercept, value.RescaleType = float(slopes[i]), -1024.0, "HU"
        content.StackID, content.InStackPositionNumber = str(1 + int(i) % stacks), int(i) + 1
        group.PlanePositionSequence, group.FrameContentSequence = Items([place]), Items([content])
        group.PixelValueTransformationSequence = Items([value])
        frames.append(group)
    stored = [np.rint((array[i] + 1024) / slopes[i]).astype("<u2") for i in order]
    item = dataset(
        array[0],
        SOPClassUID=uid.EnhancedCTImageStorage,
        PixelData=np.stack(stored).tobytes(),
        NumberOfFrames=len(array),
        PixelSpacing=None,
        ImageOrientationPatient=None,
        ImagePositionPatient=None,
        RescaleSlope=None,
        RescaleIntercept=None,
        **attributes,
    )
    item.SharedFunctionalGroupsSequence, item.PerFrameFunctionalGroupsSequence = Items([shared]), Items(frames)
    return item


def read_back(path: Path) -> Dataset:
    return pydicom.dcmread(path)
