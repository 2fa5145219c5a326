from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from data_shards import DataError
from data_shards.volume import read_image, read_volume


def ct(shape: tuple[int, ...] = (5, 6, 7), seed: int = 0) -> np.ndarray:
    """x,y,z as NIfTI stores it."""
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, np.diag([0.7, 0.8, 2.5, 1.0]) if affine is None else affine), path)
    return path


def test_axes_are_head_front_right_whatever_the_file_stores(tmp_path: Path) -> None:
    array = ct()
    ras = read_volume(save(tmp_path / "ras.nii.gz", array))
    lps = read_volume(save(tmp_path / "lps.nii", array[::-1, ::-1], np.diag([-0.7, -0.8, 2.5, 1.0])))
    turned = np.array([[0, 0, 0.7, 0], [0, 0.8, 0, 0], [2.5, 0, 0, 0], [0, 0, 0, 1]])
    sagittal = read_volume(save(tmp_path / "zyx.nii", np.ascontiguousarray(array.transpose(2, 1, 0)), turned))
    for scan in (ras, lps, sagittal):
        np.testing.assert_array_equal(scan.array, array.transpose(2, 1, 0))
        assert scan.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
        assert (scan.unit, scan.slope, scan.modality) == ("HU", 1.0, "CT")


def test_other_modalities_keep_their_range(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((5, 6, 7)) * 3.7
    scan = read_volume(save(tmp_path / "mr.nii", values.astype(np.float32)), modality="MR")
    assert scan.unit == "arbitrary"
    assert scan.array is not None
    np.testing.assert_allclose(scan.array * scan.slope + scan.intercept, values.transpose(2, 1, 0), atol=3.7 / 60000)


def test_a_trailing_axis_of_one_is_no_fourth_axis(tmp_path: Path) -> None:
    scan = read_volume(save(tmp_path / "a.nii", ct()[..., None]))
    assert scan.array is not None
    assert scan.array.shape == (7, 6, 5)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (ct((5, 6, 7, 2)), r"has 4 axes \(5x6x7x2\), not 3"),
        (ct((9, 9, 2)), "the volume is 2x9x9: fewer than 3 voxels"),
        (np.where(np.arange(210).reshape(5, 6, 7) == 3, np.nan, 1.0).astype(np.float32), "1 of 210 voxels are NaN"),
        (np.zeros((5, 6, 7), np.int16), "every voxel of the volume has the same value"),
        (np.arange(210).reshape(5, 6, 7).astype(np.float32) * 1e3, "is not in HU"),
    ],
)
def test_volumes_that_must_not_be_trained_on(tmp_path: Path, array: np.ndarray, message: str) -> None:
    path = save(tmp_path / "Doe_Jane_4711.nii.gz", array)
    with pytest.raises(DataError, match=message) as caught:
        read_volume(path)
    assert "Doe" not in str(caught.value)
    assert "4711" not in str(caught.value)


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    path = save(tmp_path / "Doe.nii.gz", ct((40, 40, 40)))
    path.write_bytes(path.read_bytes()[:-3000])
    (tmp_path / "text.nii").write_text("not a volume at all " * 50)
    for broken, message in ((path, "cannot be read"), (tmp_path / "text.nii", "not a readable NIfTI")):
        with pytest.raises(DataError, match=message) as caught:
            read_volume(broken)
        assert "Doe" not in str(caught.value)
    with pytest.raises(DataError, match=r"file is missing(.|\n)*check the path$"):
        read_volume(tmp_path / "none.nii")


def test_a_singular_affine(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", ct())
    body = bytearray(path.read_bytes())
    body[296:312] = bytes(16)  # srow_y, the affine's second line (nifti1.h)
    path.write_bytes(body)
    with pytest.raises(DataError, match="affine is singular"):
        read_volume(path)


def test_npy_needs_a_spacing(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ct())
    assert read_volume(tmp_path / "a.npy", spacing_mm=(3, 1, 1)).spacing_mm == (3.0, 1.0, 1.0)
    with pytest.raises(DataError, match="voxel spacing None"):
        read_volume(tmp_path / "a.npy")
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        read_volume(tmp_path / "evil.npy", spacing_mm=(3, 1, 1))


# ---- DICOM


def test_a_dicom_series_is_sorted_and_oriented(series: Any, tmp_path: Path) -> None:
    stored = ct((9, 6, 5))  # slices toward the head, rows toward the back, columns toward the left
    scan = read_volume(series(tmp_path / "s", stored))
    np.testing.assert_array_equal(scan.array, stored[:, ::-1, ::-1])
    assert scan.spacing_mm == pytest.approx((2.5, 0.8, 0.7))


def test_a_missing_slice_and_a_second_series(series: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"slice distances run from 2\.50 to 5\.00 mm"):
        read_volume(series(tmp_path / "gap", ct((9, 6, 5)), skip=4))
    series(tmp_path / "two", ct((9, 6, 5)))
    with pytest.raises(DataError, match="holds 2 DICOM series"):
        read_volume(series(tmp_path / "two", ct((9, 6, 5)), uid="1.2.4"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no DICOM image(.|\n)*give a NIfTI, a \.npy or the folder"):
        read_volume(tmp_path / "empty")


# ---- images


def test_images_keep_their_bytes_and_true_extension(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 60000, (20, 30)).astype(np.uint16)
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    Image.fromarray((pixels >> 8).astype(np.uint8)).save(tmp_path / "named_wrongly.png", "JPEG")
    for name, ext in (("deep.png", "png"), ("named_wrongly.png", "jpg")):
        scan = read_image(tmp_path / name)
        assert scan.image == (tmp_path / name).read_bytes()
        assert (scan.ext, scan.modality) == (ext, "CR")


def test_unreadable_images(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:2000])
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.full((9, 9), 7, np.uint8)).save(tmp_path / "blank.png")
    Image.fromarray(noise).save(tmp_path / "two.tif", save_all=True, append_images=[Image.fromarray(noise)])
    for name, message in (
        ("cut.png", "cannot be decoded"),
        ("text.png", "cannot be decoded"),
        ("blank.png", "same value"),
        ("two.tif", "2 frames"),
        ("none.png", "cannot be read"),
    ):
        with pytest.raises(DataError, match=message):
            read_image(tmp_path / name)
    with pytest.raises(DataError, match="a folder was given where one image is read"):
        read_image(tmp_path)


def test_a_damaged_nifti_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ct.nii"
    nibabel.save(nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)), path)
    data = bytearray(path.read_bytes())
    data[70:72] = (9999).to_bytes(2, "little")  # the data type's code
    path.write_bytes(data)
    with pytest.raises(DataError, match="not a readable NIfTI"):
        read_volume(path)
