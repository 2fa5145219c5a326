"""Each detection: a scan that has it, and one that does not."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from data_shards import DataError, Scan, quality
from data_shards.volume import read_volume
from tests.data_shards.dicom_files import body

PLAIN = np.diag([0.7, 0.8, 2.5, 1.0])


def nifti(path: Path, array_xyz: np.ndarray, affine: np.ndarray = PLAIN, q: int = 0, s: int = 1, **forms: Any) -> Path:
    image = nibabel.Nifti1Image(array_xyz, affine)
    image.set_sform(forms.get("sform", affine), s)
    image.set_qform(forms.get("qform", affine), q)
    nibabel.save(image, path)
    return path


def ct() -> np.ndarray:
    """x,y,z: right, front, head."""
    return np.ascontiguousarray(body()[:, ::-1, ::-1].transpose(2, 1, 0))


def codes(scan: Scan) -> list[str]:
    return [code for code, _ in scan.notes]


def test_a_plain_ct_has_nothing_to_say(tmp_path: Path) -> None:
    assert read_volume(nifti(tmp_path / "a.nii", ct())).notes == ()


def test_an_8_bit_export(tmp_path: Path) -> None:
    grey = np.clip((ct() + 1000) / 8, 0, 255).astype(np.uint8)
    path = nifti(tmp_path / "a.nii", grey)
    with pytest.raises(DataError, match="8-bit picture, not HU"):
        read_volume(path)
    assert codes(read_volume(path, accept=["eight_bit"]))[0] == "eight_bit"
    assert "eight_bit" not in codes(read_volume(path, modality="MR"))


def test_values_that_are_not_hu(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no air: its intercept is missing"):
        read_volume(nifti(tmp_path / "shifted.nii", ct() + 1024))
    path = nifti(tmp_path / "ct_rate.nii", (ct() + 1024 + 8192).astype(np.int16))
    assert read_volume(path, slope=1, intercept=-8192 - 1024).notes == ()
    with pytest.raises(DataError, match="without voxels near 0 to 60 is not in HU"):
        read_volume(nifti(tmp_path / "scaled.nii", (ct() * 3 - 500).astype(np.int16)))


def test_a_ct_without_air_is_noted(tmp_path: Path) -> None:
    assert codes(read_volume(nifti(tmp_path / "a.nii", np.clip(ct(), -200, 300)))) == ["no_air"]


def test_saturation_is_a_peak_at_the_end_not_an_end(tmp_path: Path) -> None:
    metal = ct()
    metal[5:8, 8:12, 2:7] += np.random.default_rng(0).integers(500, 6000, (3, 4, 5)).astype(np.int16)
    assert "saturated" not in codes(read_volume(nifti(tmp_path / "whole.nii", metal)))
    scan = read_volume(nifti(tmp_path / "cut.nii", np.minimum(metal, 1500)))
    assert codes(scan) == ["saturated"]
    assert "greatest value 1500" in scan.notes[0][1]


def test_a_nifti_without_orientation(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", ct(), q=0, s=0)
    with pytest.raises(DataError, match="says nothing about orientation"):
        read_volume(path)
    assert "no_orientation" in codes(read_volume(path, accept=["no_orientation"]))
    assert read_volume(nifti(tmp_path / "b.nii", ct(), q=1, s=0)).notes == ()


def test_a_broken_qform_refuses_only_where_its_code_says_that_it_counts(tmp_path: Path) -> None:
    for code in (0, 1):
        path = nifti(tmp_path / f"{code}.nii", ct())
        raw = bytearray(path.read_bytes())
        struct.pack_into("<hh", raw, 252, code, 1)  # qform_code, sform_code (nifti1.h)
        struct.pack_into("<fff", raw, 256, 0.9, 0.9, 0.9)  # a quaternion longer than 1
        path.write_bytes(raw)
    assert codes(read_volume(tmp_path / "0.nii")) == []
    with pytest.raises(DataError, match="qform is no rotation"):
        read_volume(tmp_path / "1.nii")
    assert codes(read_volume(tmp_path / "1.nii", accept=("forms_contradict",))) == ["forms_contradict"]


def test_forms_that_disagree(tmp_path: Path) -> None:
    mirrored = np.diag([-0.7, 0.8, 2.5, 1.0])
    with pytest.raises(DataError, match="qform and sform of the NIfTI point 180 degrees apart"):
        read_volume(nifti(tmp_path / "a.nii", ct(), q=1, s=1, qform=mirrored))
    scan = read_volume(nifti(tmp_path / "b.nii", ct(), q=1, s=1, qform=np.diag([0.75, 0.8, 2.5, 1])))
    assert codes(scan) == ["forms_differ"]
    assert scan.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    assert read_volume(nifti(tmp_path / "c.nii", ct(), q=1, s=1)).notes == ()


def test_left_handed_and_oblique_axes(tmp_path: Path) -> None:
    left = read_volume(nifti(tmp_path / "a.nii", ct()[::-1], np.diag([-0.7, 0.8, 2.5, 1.0])))
    assert codes(left) == ["left_handed"]
    np.testing.assert_array_equal(left.array, ct().transpose(2, 1, 0))
    angle = np.radians(12)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    scan = read_volume(nifti(tmp_path / "b.nii", ct(), turn @ PLAIN))
    assert codes(scan) == ["oblique"]
    assert "12.0 degrees" in scan.notes[0][1]
    assert scan.spacing_mm == pytest.approx((2.5, 0.8, 0.7))


def test_a_sheared_nifti_is_set_upright(tmp_path: Path) -> None:
    sheared = PLAIN.copy()
    sheared[1, 2] = 2.5 * np.tan(np.radians(20))
    scan = read_volume(nifti(tmp_path / "a.nii", ct(), sheared))
    assert ("gantry_tilt", "slices are tilted by 20.0 degrees: set upright by interpolation") in scan.notes
    assert scan.array is not None
    assert scan.array.shape[1] > ct().shape[1]
    skewed = PLAIN.copy()
    skewed[0, 1] = 0.3
    with pytest.raises(DataError, match="rows and columns of the volume are not perpendicular"):
        read_volume(nifti(tmp_path / "b.nii", ct(), skewed))


@pytest.mark.parametrize("spacing", [(2.5, 0.001, 0.7), (40.0, 0.8, 0.7)])
def test_implausible_spacings(spacing: tuple[float, float, float], tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", ct())
    with pytest.raises(DataError, match="are not those of a patient's scan"):
        read_volume(path, spacing_mm=spacing)
    assert read_volume(path, spacing_mm=(3, 1, 1)).notes == ()


def test_a_scan_longer_than_a_person() -> None:
    assert quality.of_spacing((600, 512, 512), (5.0, 1.0, 1.0)) == [
        ("implausible_spacing", "voxels of 5 x 1 x 1 mm make a scan of 3.0 m")
    ]
    assert quality.of_spacing((400, 512, 512), (5.0, 1.0, 1.0)) == []


def test_every_fatal_code_says_why_and_what_to_do() -> None:
    for code, fatal in quality.FATAL.items():
        if fatal:
            with pytest.raises(DataError) as caught:
                quality.refuse([(code, "words")])
            assert caught.value.why
            assert caught.value.fix
            quality.refuse([(code, "words")], accept=[code])
        else:
            quality.refuse([(code, "words")])
    with pytest.raises(DataError, match="nothing to accept is called"):
        quality.check_accept(["oblique"])


def test_notes_and_percentiles_travel_in_the_json(tmp_path: Path) -> None:
    entry = read_volume(nifti(tmp_path / "a.nii", ct()[::-1], np.diag([-0.7, 0.8, 2.5, 1.0]))).to_json()
    assert entry["notes"] == [["left_handed", "stored with left-handed axes: turned, nothing is mirrored"]]
    values = np.sort(ct()[ct() > -950])
    assert entry["percentiles"]["50"] == values[(len(values) + 1) // 2 - 1]
    assert list(entry["percentiles"]) == ["0.5", "1", "2", "5", "25", "50", "75", "95", "98", "99", "99.5"]
    assert "notes" not in Scan(array=np.zeros((3, 3, 3), np.int16)).to_json()
