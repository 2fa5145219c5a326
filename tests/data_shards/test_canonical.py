"""A volume on its way from any file to int16 in canonical axes, and from there to the model: the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from pydicom import uid

from data_shards import DataError, Scan, Study, Texts
from data_shards.intensity import percentiles_of, to_stored
from data_shards.preprocess import Geometry, View
from data_shards.reading import read_scan
from data_shards.shard_set import ShardSet, ShardWriter
from data_shards.sources.base import ScanFile
from data_shards.stream import ordered_pass
from data_shards.units import UnitPolicy
from data_shards.volume import read_volume
from encoders.preprocessing import Preprocess
from tests.data_shards.dicom_files import body, enhanced, real_ct, save, series

MR = Geometry(spacing_mm=(2.0, 1.0, 1.0), windows=((0.5, 99.5), (5, 95)), windows_in="percentile")
CT = Geometry(spacing_mm=(2.0, 1.0, 1.0))


def mr(path: Path, scale: float = 1.0) -> Path:
    values = (body().astype(np.float32) + 1020).clip(0) * scale
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(values.T), np.diag([0.7, 0.8, 2.5, 1])), path)
    return path


def streamed(scan: Scan, geometry: Geometry, view: View, folder: Path) -> torch.Tensor:
    with ShardWriter(folder) as writer:
        writer.write(Study("0" * 16, "1" * 16, "test", (scan,), Texts(report="A scan.")))
    shards = ShardSet.open(folder)
    (batch,) = ordered_pass(
        shards, shards.rows("test"), geometry, view, lambda text: [1, len(text), 2], UnitPolicy(), batch_size=1
    )
    return batch.images_BCDHW[0]


def test_files_and_streams_agree_bit_for_bit(tmp_path: Path) -> None:
    ct, view = body(), View("centre", (12, 24, 20))
    tilted = series(ct, step=(0, 0.4, 2.5), Modality="CT")
    cases: list[tuple[Path, Geometry]] = [
        (save(series(ct), tmp_path / "jpeg", uid.JPEGLSLossless), CT),
        (save(tilted, tmp_path / "tilted"), CT),
        (save([enhanced(ct)], tmp_path / "enhanced"), CT),
        (save(series(ct, Modality="MR", RescaleSlope=0.37), tmp_path / "mr"), MR),
        (mr(tmp_path / "mr.nii.gz"), MR),
    ]
    for i, (path, geometry) in enumerate(cases):
        modality = "MR" if geometry is MR else None
        scan = read_volume(path, modality=modality)
        got = Preprocess(geometry, view)(path, modality=modality)
        assert torch.equal(got, streamed(scan, geometry, view, tmp_path / f"shards{i}"))
        assert got.std() > 0.1


def test_arrays_get_percentiles_of_their_own(tmp_path: Path) -> None:
    scan = read_volume(mr(tmp_path / "a.nii"), modality="MR")
    assert scan.array is not None
    values = scan.array * np.float64(scan.slope) + scan.intercept
    preprocess = Preprocess(MR, View("centre", (12, 24, 20)))
    torch.testing.assert_close(preprocess(values, spacing_mm=scan.spacing_mm), preprocess(scan), atol=1e-3, rtol=0)


def test_a_percentile_window_does_not_depend_on_the_unit(tmp_path: Path) -> None:
    preprocess = Preprocess(MR, View("centre", (12, 24, 20)))
    one = preprocess(mr(tmp_path / "a.nii"), modality="MR")
    other = preprocess(mr(tmp_path / "b.nii", 0.0123), modality="MR")
    torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


def test_air_does_not_move_the_percentiles() -> None:
    rng = np.random.default_rng(0)
    tissue, air = rng.normal(500, 100, 40000), np.abs(rng.normal(0, 5, 60000))
    little = percentiles_of(np.concatenate([tissue, air[:20000]]), "arbitrary")
    much = percentiles_of(np.concatenate([tissue, air]), "arbitrary")
    assert little["50"] == pytest.approx(500, abs=5)
    assert much == pytest.approx(little, abs=10)
    hu = np.concatenate([rng.integers(-100, 100, 1000), np.full(5000, -1000)]).astype(np.int16)
    assert -100 <= percentiles_of(hu.reshape(10, 20, 30))["0.5"] < -90


# ---- stored values


def test_stored_integers_are_kept_exactly() -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (4, 5, 6)).astype(np.uint16)
    stored, slope, intercept = to_stored(deep, 0.5, -3.0, "arbitrary")
    np.testing.assert_array_equal(stored * slope + intercept, deep * 0.5 - 3.0)
    small = deep // 4
    stored, slope, intercept = to_stored(small, 0.5, -3.0, "arbitrary")
    np.testing.assert_array_equal(stored, small)
    assert (slope, intercept) == (0.5, -3.0)


def test_hu_are_whole_and_rounded_half_to_even() -> None:
    raw = np.array([-1.0, 0.5, 1.5, 2.4, 2.6]).reshape(5, 1, 1)
    assert to_stored(raw)[0].ravel().tolist() == [-1, 0, 2, 2, 3]
    raw16 = np.array([0, 1, 65535], np.uint16).reshape(3, 1, 1)
    assert to_stored(raw16, 1.0, -32768.0)[0].ravel().tolist() == [-32768, -32767, 32767]
    with pytest.raises(DataError, match="is not in HU"):
        to_stored(raw16, 1.0, 0.0)


def test_float16_when_asked(tmp_path: Path) -> None:
    scan = read_scan(ScanFile(str(mr(tmp_path / "a.nii", 0.01)), modality="MR"), dtype="float16")
    assert scan.array is not None
    assert (scan.array.dtype, scan.slope, scan.intercept) == (np.float16, 1.0, 0.0)
    want = (body().astype(np.float32) + 1020).clip(0) * 0.01
    np.testing.assert_allclose(scan.array, want, rtol=1e-3)
    assert scan.percentiles["99.5"] == pytest.approx(np.percentile(want[want > 1.1], 99.5), rel=0.01)
    with pytest.raises(DataError, match="do not fit float16"):
        read_scan(ScanFile(str(mr(tmp_path / "b.nii", 100.0)), modality="MR"), dtype="float16")


def test_a_scan_file_says_what_the_header_does_not(tmp_path: Path) -> None:
    ct = np.ascontiguousarray(body()[:, ::-1, ::-1].T)
    image = nibabel.Nifti1Image((ct + 8192).astype(np.int16), np.diag([0.7, 0.8, 2.5, 1]))
    image.header.set_slope_inter(2, 5)  # a header that lies
    nibabel.save(image, tmp_path / "a.nii.gz")
    note = ("several_series", "2 series, 1 kept (primary)")
    said: dict[str, Any] = {"spacing_mm": (3.0, 1.0, 1.0), "phase": "arterial", "role": "secondary", "notes": (note,)}
    scan = read_scan(ScanFile(str(tmp_path / "a.nii.gz"), slope=1.0, intercept=-8192.0, **said))
    np.testing.assert_array_equal(scan.array, ct.transpose(2, 1, 0))
    assert (scan.spacing_mm, scan.phase, scan.role, scan.notes) == ((3.0, 1.0, 1.0), "arterial", "secondary", (note,))


def test_options_fill_in_what_a_file_does_not_say(tmp_path: Path) -> None:
    ct = np.ascontiguousarray(body()[:, ::-1, ::-1])
    nibabel.save(nibabel.Nifti1Image(ct.T, np.diag([0.7, 0.8, 2.5, 1])), tmp_path / "a.nii")
    said = read_scan(ScanFile(str(tmp_path / "a.nii"), modality="ct"), spacing_mm=(5, 3, 3))
    assert said.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    assert (said.modality, said.unit) == ("CT", "HU")
    np.save(tmp_path / "a.npy", ct)
    bare = read_scan(ScanFile(str(tmp_path / "a.npy")), "mr", (5, 3, 3), dtype="float16")
    assert bare.array is not None
    assert (bare.spacing_mm, bare.modality, bare.unit, bare.array.dtype) == ((5, 3, 3), "MR", "arbitrary", np.float16)
    assert read_scan(ScanFile(str(tmp_path / "a.npy"), spacing_mm=(1, 1, 1)), None, (5, 3, 3)).spacing_mm == (1, 1, 1)
    with pytest.raises(DataError, match="a modality is no DICOM code"):
        read_scan(ScanFile(str(tmp_path / "a.nii"), modality="C T of Doe"))


def test_what_is_accepted_of_a_volume_is_accepted_of_an_array(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", body() + 1100)
    file = ScanFile(str(tmp_path / "a.npy"), spacing_mm=(2, 1, 1))
    with pytest.raises(DataError, match="intercept is missing"):
        read_scan(file)
    assert [code for code, _ in read_scan(file, accept=("not_hu",)).notes] == ["not_hu"]
    np.save(tmp_path / "b.npy", np.clip((body() + 1000) / 8, 0, 255).astype(np.uint8))
    built, loaded = (
        read_scan(ScanFile(str(tmp_path / "b.npy")), None, (2, 1, 1)),
        read_volume(tmp_path / "b.npy", None, (2, 1, 1)),
    )
    assert built.to_json() == loaded.to_json() and built.unit == "arbitrary"


def test_a_real_ct_is_the_same_from_nifti_and_dicom(shared_data: Path, tmp_path: Path) -> None:
    nifti = read_volume(shared_data / "misc_ct" / "ct" / "ts_example_ct_sm.nii.gz")
    dicom = read_volume(save(series(real_ct(shared_data)), tmp_path / "s", uid.JPEGLosslessSV1))
    np.testing.assert_array_equal(nifti.array, dicom.array)
    assert nifti.percentiles == dicom.percentiles


@pytest.mark.full
def test_every_real_ct_is_read_without_a_fatal_note(shared_data: Path) -> None:
    folders = ("misc_ct/ct", "ibsi_sts_ct/ct", "openkbp_ct/ct")
    files = [path for folder in folders for path in sorted((shared_data / folder).glob("*.nii.gz"))[:40]]
    assert files
    for path in files:
        scan = read_volume(path)
        assert scan.percentiles["0.5"] < scan.percentiles["99.5"]
