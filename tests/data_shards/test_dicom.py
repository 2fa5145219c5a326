"""DICOM series in the transfer syntaxes that PACS export, voxel for voxel."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from data_shards import DataError, Scan
from data_shards.dicom import pixels as dicom_pixels
from data_shards.volume import read_volume
from tests.data_shards.dicom_files import SPACING, body, dataset, enhanced, read_back, real_ct, save, series

LOSSLESS = {
    "implicit": uid.ImplicitVRLittleEndian,
    "big endian": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
    "RLE": uid.RLELossless,
    "JPEG lossless": uid.JPEGLossless,
    "JPEG lossless SV1": uid.JPEGLosslessSV1,
    "JPEG-LS": uid.JPEGLSLossless,
    "JPEG 2000": uid.JPEG2000Lossless,
}
LOSSY = {"JPEG-LS near": (uid.JPEGLSNearLossless, 3), "JPEG 2000 lossy": (uid.JPEG2000, 60)}


def codes(scan: Scan) -> set[str]:
    return {code for code, _ in scan.notes}


def stored(scan: Scan) -> np.ndarray:
    """As the test wrote it: rows toward the back, columns toward the left."""
    assert scan.array is not None
    return scan.array[:, ::-1, ::-1]


@pytest.fixture(scope="module")
def ct() -> np.ndarray:
    return body()


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("syntax", LOSSLESS.values(), ids=LOSSLESS)
def test_lossless_syntaxes_give_the_same_voxels(syntax: str, signed: bool, ct: np.ndarray, tmp_path: Path) -> None:
    how: dict[str, Any] = {"BitsStored": 12, "HighBit": 11}
    if signed:
        how = {"PixelRepresentation": 1, "RescaleIntercept": 0}
    scan = read_volume(save(series(ct, **how), tmp_path / "s", syntax))
    np.testing.assert_array_equal(stored(scan), ct)
    assert scan.spacing_mm == pytest.approx(SPACING)
    assert scan.notes == ()


@pytest.mark.parametrize(("syntax", "most"), LOSSY.values(), ids=LOSSY)
def test_lossy_syntaxes_come_close_and_are_noted(syntax: str, most: int, tmp_path: Path) -> None:
    ct = body((3, 128, 128))
    how = {"LossyImageCompression": "01", "LossyImageCompressionRatio": "4.5"}
    scan = read_volume(save(series(ct, BitsStored=12, HighBit=11, **how), tmp_path / "s", syntax))
    off = np.abs(stored(scan).astype(int) - ct).max()
    assert 0 < off <= most
    assert codes(scan) == {"lossy"}


def test_jpeg_baseline_is_read_and_an_8_bit_ct_refused(ct: np.ndarray, tmp_path: Path) -> None:
    eight: dict[str, Any] = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "RescaleIntercept": 0}
    grey = np.clip((ct + 1024) // 8, 0, 255).astype(np.uint8)
    eight["Modality"] = "MR"
    items = [dataset(plane, (0, 0, 2.5 * i), PixelData=plane.tobytes(), **eight) for i, plane in enumerate(grey)]
    folder = save(items, tmp_path / "s", uid.JPEGBaseline8Bit)
    scan = read_volume(folder)
    assert np.abs(stored(scan).astype(int) - grey).mean() < 5
    assert (scan.unit, codes(scan) >= {"lossy"}) == ("arbitrary", True)
    with pytest.raises(DataError, match="is an 8-bit picture, not HU"):
        read_volume(folder, modality="CT")


def test_a_real_ct_survives_each_compression(shared_data: Path, tmp_path: Path) -> None:
    ct = real_ct(shared_data)
    for syntax in (uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.RLELossless):
        scan = read_volume(save(series(ct), tmp_path / syntax.keyword, syntax))
        np.testing.assert_array_equal(stored(scan), ct)


def test_the_decoders_are_ours(monkeypatch: pytest.MonkeyPatch, ct: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("gdcm", reason="the extra dicom is not installed")
    assert dicom_pixels.decoders_for(uid.JPEGLosslessSV1) == ("gdcm",)
    assert dicom_pixels.decoders_for(uid.JPEGLSLossless) == ("gdcm", "pyjpegls")
    assert dicom_pixels.decoders_for(uid.RLELossless) == ("pydicom",)
    folder = save(series(ct), tmp_path / "s", uid.JPEGLSLossless)
    for name in ("gdcm", "pyjpegls"):
        monkeypatch.setattr(dicom_pixels, "DECODERS", (name,))
        np.testing.assert_array_equal(stored(read_volume(folder)), ct)
    monkeypatch.setattr(dicom_pixels, "DECODERS", ())  # as where the extra is not installed
    with pytest.raises(DataError, match=r"JPEG-LS Lossless(.|\n)*pip install 'voxclip\[dicom\]'"):
        read_volume(folder)


def test_an_unknown_syntax_and_damaged_files(
    ct: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(series(ct), tmp_path / "s", uid.RLELossless)
    path = next(folder.iterdir())
    whole = path.read_bytes()
    item = read_back(path)
    item.file_meta.TransferSyntaxUID = uid.HTJ2KLossless
    item.save_as(path)
    with pytest.raises(DataError, match=r"High-Throughput JPEG 2000(.|\n)*decompress it first") as caught:
        read_volume(folder)
    assert "pip install" not in str(caught.value)  # no extra would help
    for kept, words in ((-200, "is cut off"), (700, "has no pixels"), (200, "is cut off")):
        path.write_bytes(whole[:kept])
        with pytest.raises(DataError, match=words) as caught:
            read_volume(folder)
        assert path.name not in str(caught.value) + caplog.text + capsys.readouterr().err


# ---- multi-frame


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEGLSLossless])
def test_enhanced_ct_is_placed_frame_by_frame(syntax: str, ct: np.ndarray, tmp_path: Path) -> None:
    even = ct // 2 * 2  # frames have slopes of 1 and 2
    scan = read_volume(save([enhanced(even)], tmp_path / "s", syntax))
    np.testing.assert_array_equal(stored(scan), even)
    assert scan.spacing_mm == pytest.approx(SPACING)


def test_enhanced_mr_without_rescale(ct: np.ndarray, tmp_path: Path) -> None:
    item = enhanced(ct, Modality="MR")
    for group in item.PerFrameFunctionalGroupsSequence:
        del group.PixelValueTransformationSequence
    item.SOPClassUID = item.file_meta.MediaStorageSOPClassUID = uid.EnhancedMRImageStorage
    scan = read_volume(save([item], tmp_path / "s"))
    assert (scan.modality, scan.unit, scan.slope, scan.intercept) == ("MR", "arbitrary", 1.0, 0.0)


def test_frames_that_are_no_single_volume(ct: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds 2 stacks or time points"):
        read_volume(save([enhanced(ct, stacks=2)], tmp_path / "stacks"))
    movie = dataset(ct[0], NumberOfFrames=4, PixelData=bytes(ct[0].nbytes * 4))
    with pytest.raises(DataError, match="4 frames says nothing about where each lies"):
        read_volume(save([movie], tmp_path / "movie"))


# ---- slices


def test_order_is_by_position_not_by_number_or_name(ct: np.ndarray, tmp_path: Path) -> None:
    items = series(ct)
    for number, item in zip(np.random.default_rng(0).permutation(len(items)), items):
        item.InstanceNumber = int(number)
    np.testing.assert_array_equal(stored(read_volume(save(items, tmp_path / "s"))), ct)


def test_missing_slices_are_refused_or_filled(ct: np.ndarray, tmp_path: Path) -> None:
    items = series(ct)
    folder = save([*items[:4], *items[5:]], tmp_path / "s")
    with pytest.raises(DataError, match="about 1 of 9 slices are missing"):
        read_volume(folder)
    scan = read_volume(folder, accept=("missing_slices",))
    assert codes(scan) == {"missing_slices"}
    got = stored(scan)
    np.testing.assert_array_equal(np.delete(got, 4, 0), np.delete(ct, 4, 0))
    np.testing.assert_array_equal(got[4], np.rint((ct[3].astype(float) + ct[5]) / 2))


def test_uneven_slices(ct: np.ndarray, tmp_path: Path) -> None:
    def moved(by: float) -> list[Dataset]:
        items = series(ct)
        items[4].ImagePositionPatient = [-10, -20, 10 + by]
        return items

    assert "nearly_even" in codes(read_volume(save(moved(0.08), tmp_path / "little")))
    folder = save(moved(0.5), tmp_path / "much")
    with pytest.raises(DataError, match=r"slice distances run from 2\.00 to 3\.00 mm"):
        read_volume(folder)
    scan = read_volume(folder, accept=("uneven_spacing",))
    got = stored(scan).astype(float)
    assert got.shape == ct.shape
    np.testing.assert_allclose(got[4], ct[3] + (ct[4] - ct[3].astype(float)) * 2.5 / 3, atol=0.51)
    assert scan.spacing_mm == pytest.approx(SPACING)


def test_slices_at_one_place(ct: np.ndarray, tmp_path: Path) -> None:
    items = series(ct)
    copy = dataset(ct[3], items[3].ImagePositionPatient)  # another object with the same picture
    scan = read_volume(save([*items, copy], tmp_path / "copy"))
    np.testing.assert_array_equal(stored(scan), ct)
    assert codes(scan) == {"repeated_slices"}
    other = save([*series(ct), dataset(ct[4], items[3].ImagePositionPatient)], tmp_path / "other")
    with pytest.raises(DataError, match="1 slices share a place with another one and differ from it"):
        read_volume(other)
    twice = save(series(ct), tmp_path / "twice")
    shutil.copy(next(twice.iterdir()), twice / "again")  # the same object in a second file
    scan = read_volume(twice)
    np.testing.assert_array_equal(stored(scan), ct)
    assert scan.notes == (("repeated_slices", "1 files hold a slice that another file holds too"),)


@pytest.mark.parametrize("degrees", [-15.0, 8.0])
def test_gantry_tilt_is_set_upright(degrees: float, tmp_path: Path) -> None:
    shift = SPACING[0] * np.tan(np.radians(degrees))  # of each slice, toward the back
    rod = np.full((16, 60, 20), -1000, np.int16)
    rod[:, 28:34, 8:12] = 300  # runs along the slices' normal in the patient: in tilted slices it seems to wander
    tilted = np.full_like(rod, -1000)
    for i in range(len(rod)):
        at = 28 - shift * i / SPACING[1]
        whole, part = int(np.floor(at)), at - np.floor(at)
        tilted[i, whole : whole + 6, 8:12] = 300
        tilted[i, whole, 8:12] = -1000 + 1300 * (1 - part)
        tilted[i, whole + 6, 8:12] = -1000 + 1300 * part
    items = series(tilted, step=(0, shift, SPACING[0]))
    scan = read_volume(save(items, tmp_path / "s"))
    (words,) = [words for code, words in scan.notes if code == "gantry_tilt"]
    assert f"{abs(degrees):.1f} degrees" in words
    got = stored(scan).astype(float)
    assert scan.spacing_mm == pytest.approx(SPACING)
    rows = np.arange(got.shape[1])
    mass = (got + 1000).sum(2)
    middle = (mass * rows).sum(1) / mass.sum(1)
    np.testing.assert_allclose(middle, middle[0], atol=0.05)  # upright again
    np.testing.assert_allclose(mass.sum(1), 6 * 4 * 1300, rtol=0.01)
    assert "gantry_tilt" not in codes(read_volume(save(series(body()), tmp_path / "straight")))


def test_localizers_colours_and_other_series(ct: np.ndarray, tmp_path: Path) -> None:
    scout = save(series(ct, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), tmp_path / "scout")
    with pytest.raises(DataError, match="the series is a localizer"):
        read_volume(scout)
    mixed = save(series(ct), tmp_path / "mixed")
    save(series(ct[:3], ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), mixed)
    with pytest.raises(DataError, match="differ in size, spacing or direction"):
        read_volume(mixed)
    two = save(series(ct), tmp_path / "two")
    names = tuple(p.name for p in sorted(two.iterdir()))
    save(series(ct[::-1], SeriesInstanceUID="9.9"), two)
    with pytest.raises(DataError, match="holds 2 DICOM series"):
        read_volume(two)
    np.testing.assert_array_equal(stored(read_volume(two, files=names)), ct)


def test_files_without_a_preamble(ct: np.ndarray, tmp_path: Path) -> None:
    folder = save(series(ct), tmp_path / "s", uid.ImplicitVRLittleEndian)
    for path in folder.iterdir():
        item = read_back(path)
        bare = Dataset()
        bare.update({tag: item[tag] for tag in item.keys()})  # noqa: SIM118 - a Dataset iterates its elements
        bare.save_as(path, implicit_vr=True, little_endian=True)
        assert path.read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(stored(read_volume(folder)), ct)


# ---- values


def test_fractions_are_rounded_to_the_nearest_hu(ct: np.ndarray, tmp_path: Path) -> None:
    folder = save(series(ct, RescaleSlope=0.5, RescaleIntercept=-1024.25), tmp_path / "s")
    off = stored(read_volume(folder)).astype(float) - ct
    assert np.abs(off).max() <= 0.75


def test_slope_and_intercept_from_outside_override_the_header(ct: np.ndarray, tmp_path: Path) -> None:
    folder = save(series(ct), tmp_path / "s")
    np.testing.assert_array_equal(stored(read_volume(folder, slope=1, intercept=-1000)), ct + 24)


def pet(activity: np.ndarray, **attributes: Any) -> list[Dataset]:
    """PET slices in Bq/ml, each with a slope of its own."""
    drug = Dataset()
    drug.RadionuclideTotalDose, drug.RadionuclideHalfLife = 370e6, 6588.0
    drug.RadiopharmaceuticalStartTime = "100000.00"
    said: dict[str, Any] = {
        "Modality": "PT",
        "SOPClassUID": uid.PositronEmissionTomographyImageStorage,
        "Units": "BQML",
        "CorrectedImage": ["ATTN", "DECY", "SCAT"],
        "DecayCorrection": "START",
        "PatientWeight": 74.0,
        "SeriesDate": "20200101",
        "SeriesTime": "110000.00",
        "AcquisitionDate": "20200101",
        "AcquisitionTime": "110000.00",
        "RadiopharmaceuticalInformationSequence": Items([drug]),
        "RescaleIntercept": 0,
        **attributes,
    }
    return [dataset(plane, (0, 0, 2.5 * i), RescaleSlope=float(1 + i), **said) for i, plane in enumerate(activity)]


def test_pet_becomes_suv(tmp_path: Path) -> None:
    activity = np.random.default_rng(0).integers(0, 30000, (6, 12, 12)).astype(float)
    scan = read_volume(save(pet(activity), tmp_path / "s"))
    dose = 370e6 * 2 ** (-3600 / 6588.0)
    assert scan.array is not None
    assert scan.unit == "SUV"
    got = stored(scan) * scan.slope + scan.intercept
    np.testing.assert_allclose(got, activity * 74000 / dose, atol=6 * 74000 / dose)
    without: list[dict[str, Any]] = [{"PatientWeight": None}, {"Units": "CNTS"}, {"CorrectedImage": ["ATTN"]}]
    for missing in (*without, {"DecayCorrection": "NONE"}):
        plain = read_volume(save(pet(activity, **missing), tmp_path / str(missing)))
        assert (plain.unit, codes(plain)) == ("arbitrary", {"no_suv"})
    admin = read_volume(save(pet(activity, DecayCorrection="ADMIN"), tmp_path / "admin"))
    assert admin.slope / scan.slope == pytest.approx(dose / 370e6)
