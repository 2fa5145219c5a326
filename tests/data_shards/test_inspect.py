"""What `python -m data_shards.inspect` tells and draws."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom import uid

from data_shards import Caption, Scan, Study, Texts
from data_shards.geometry import Geometry, View
from data_shards.inspect.__main__ import main
from data_shards.inspect.draw import plane_of
from data_shards.shard_set import ShardWriter
from tests.data_shards.dicom_files import body, dataset, enhanced, save, series

IDENTIFIERS = ("Doe", "Janette", "PID-4711", "ACC-0815", "19500101")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def png(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def nifti(path: Path, axes: str = "RAS") -> Path:
    """x,y,z grow as `axes` say; the header holds identifiers."""
    flips = [1 if a in "RAS" else -1 for a in axes]
    array = body()[:, ::-1, ::-1].T[:: flips[0], :: flips[1], :: flips[2]]
    image = nibabel.Nifti1Image(
        np.ascontiguousarray(array), np.diag([0.7 * flips[0], 0.8 * flips[1], 2.5 * flips[2], 1])
    )
    image.header["descrip"] = b"Doe^Janette PID-4711"
    nibabel.save(image, path)
    return path


def test_a_nifti(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.png"
    assert main([str(nifti(tmp_path / "Doe_Janette.nii.gz", "LPS")), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    for words in (
        "20 x 24 x 9 voxels of int16", "left back head", "9 x 24 x 20", "2.5 x 0.8 x 0.7 mm", "22 x 19 x 14 mm",
        "Hounsfield units", "p0.5", "volume (CT)",
    ):  # fmt: skip
        assert words in told
    assert not any(word in told for word in IDENTIFIERS)
    picture = png(out)
    assert picture.shape[1] > 1000
    assert picture.std() > 20
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".gz"] == ["a.png"]


def test_what_would_be_refused_is_drawn_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey = np.clip((body().T + 1000) / 8, 0, 255).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(grey, None), tmp_path / "a.nii")
    assert main([str(tmp_path / "a.nii"), "--out", str(tmp_path / "a.png")]) == 1
    said = capsys.readouterr()
    assert "REFUSED" in said.out
    assert "8-bit picture, not HU (eight_bit)" in said.out
    assert "would refuse it: no_orientation, eight_bit" in said.err
    assert png(tmp_path / "a.png").std() > 20


def test_a_folder_of_dicom_and_its_series(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    who = {"PatientName": "Doe^Janette", "PatientID": "PID-4711", "AccessionNumber": "ACC-0815"}
    folder = save(series(body(), ConvolutionKernel="B31f", **who), tmp_path / "Doe" / "deep", uid.RLELossless)
    save(series(body((12, 24, 20)), SeriesInstanceUID="9.9", ConvolutionKernel="B70f", **who), folder)
    save(series(body()[:2], SeriesInstanceUID="9.8", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **who), folder)
    out = str(tmp_path / "a.png")
    assert main([str(tmp_path / "Doe"), "--out", out]) == 0
    told = capsys.readouterr().out
    assert "2 series that are volumes or radiographs" in told
    assert "left out: a series of 2 files: localizer" in told
    assert "12 x 24 x 20" in told
    assert main([str(tmp_path / "Doe"), "--out", out, "--series", "regex:nothing"]) == 1
    said = capsys.readouterr()
    assert "no series of the study is a scan that the rule chooses" in said.err
    one = next(folder.iterdir())
    assert main([str(one), "--out", out]) == 1  # a single slice is no volume
    assert not any(word in told + said.out + said.err + capsys.readouterr().out for word in IDENTIFIERS)


def test_a_radiograph_in_dicom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey = np.random.default_rng(0).integers(0, 4000, (30, 40)).astype("<u2")
    folder = save([dataset(grey, Modality="CR", ViewPosition="PA", PixelData=grey.tobytes())], tmp_path / "x")
    for path in (folder, next(folder.iterdir())):
        assert main([str(path), "--out", str(tmp_path / "a.png")]) == 0
        assert "image (CR, .png)" in capsys.readouterr().out


def test_a_single_enhanced_object_and_tilt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save([enhanced(body())], tmp_path / "e")
    assert main([str(next((tmp_path / "e").iterdir())), "--out", str(tmp_path / "a.png")]) == 0
    assert "9 x 24 x 20" in capsys.readouterr().out
    save(series(body(), step=(0, 0.5, 2.5)), tmp_path / "t")
    assert main([str(tmp_path / "t"), "--out", str(tmp_path / "a.png")]) == 0
    assert "tilted by 11.3 degrees" in capsys.readouterr().out


def test_an_mr_has_windows_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "a.png")
    assert main([str(nifti(tmp_path / "a.nii")), "--modality", "MR", "--out", out]) == 0
    assert "arbitrary" in capsys.readouterr().out
    assert png(tmp_path / "a.png").std() > 20


def test_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep = np.random.default_rng(0).integers(0, 60000, (40, 30)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert main([str(tmp_path / "a.png"), "--out", str(tmp_path / "b.png")]) == 0
    assert "image (CR, .png)" in capsys.readouterr().out
    png(tmp_path / "b.png")


def test_an_array_is_what_the_build_makes_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "a.png")]
    np.save(tmp_path / "a.npy", np.clip((body() + 1000) / 8, 0, 255).astype(np.uint8))
    assert main([str(tmp_path / "a.npy"), "--file-spacing", "2", "1", "1", *out]) == 0
    told = capsys.readouterr().out
    assert "arbitrary" in told and "2 x 1 x 1 mm" in told
    assert png(tmp_path / "a.png").std() > 20
    np.save(tmp_path / "b.npy", body() + 1100)
    assert main([str(tmp_path / "b.npy"), "--file-spacing", "2", "1", "1", *out]) == 1
    assert "would refuse it: not_hu" in capsys.readouterr().err
    assert main([str(nifti(tmp_path / "a.nii")), "--file-spacing", "9", "9", "9", *out]) == 0
    assert "2.5 x 0.8 x 0.7 mm" in capsys.readouterr().out


def test_what_a_geometry_makes_of_it(tmp_path: Path, repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = str(nifti(tmp_path / "a.nii")), str(tmp_path / "a.png")
    view = json.loads(View("centre", (4, 6, 8)).to_json())
    stated = {"deep": {"geometry": json.loads(Geometry(spacing_mm=(5, 1.6, 1.4)).to_json()), "view": view}}
    (tmp_path / "release.json").write_text(json.dumps(stated))
    assert main([path, "--out", out, "--geometry", str(tmp_path / "release.json")]) == 0
    told = capsys.readouterr().out
    assert "4 x 12 x 10 voxels of 5 x 1.6 x 1.4 mm" in told
    assert "shows 40% of it, 0% is padding" in told
    assert main([path, "--out", out, "--geometry", str(repo / "configs" / "ct3d.yaml")]) == 0
    assert "at the geometry's spacing" in capsys.readouterr().out
    (tmp_path / "none.json").write_text("[1]")
    assert main([path, "--out", out, "--geometry", str(tmp_path / "none.json")]) == 1


def shard_set(folder: Path) -> Path:
    with ShardWriter(folder) as writer:
        for i in range(5):
            scan = Scan(
                array=body(seed=i)[:, ::-1, ::-1], spacing_mm=(2.5, 0.8, 0.7), notes=(("oblique", "by 3 degrees"),)
            )
            texts = Texts(findings="A secret finding of Janette Doe.", captions=(Caption("c"),))
            writer.write(
                Study(f"{i}abc", f"p{i}", "train" if i else "val", (scan,), texts, {"nodule": (1, 0, None)[i % 3]})
            )
    return folder


def test_a_shard_set_at_a_glance_and_one_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = str(shard_set(tmp_path / "set")), tmp_path / "a.png"
    assert main([folder, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    for words in ("5 of 5 patients", "train 4, val 1", "2 present, 1 unknown", "9 x 24 x 20", "oblique 5", "5 studies"):
        assert words in told
    assert png(out).std() > 20
    assert main([folder, "--study", "3a", "--out", str(out)]) == 0
    one = capsys.readouterr().out
    for words in ("study 3abc", "findings of 32 characters", "label nodule", "3 degrees (oblique)"):
        assert words in one
    assert "secret" not in told + one
    assert main([folder, "--study", "zz", "--out", str(out)]) == 1


def test_slices_hang_as_on_a_light_box() -> None:
    """The patient's right is on the left, the front and the head are above."""
    array = np.zeros((6, 8, 10), np.int16)
    array[3, 7, 9] = 1  # axial: front and right
    array[5, 4, 9] = 2  # coronal: head and right
    array[5, 7, 5] = 3  # sagittal: head and front
    spacing = (3.0, 2.0, 1.0)
    for plane, value, size in (("axial", 1, (10, 16)), ("coronal", 2, (10, 18)), ("sagittal", 3, (16, 18))):
        picture, drawn = plane_of(array, spacing, plane)
        assert (picture[0, 0], drawn) == (value, size)


@pytest.mark.parametrize("words", [["no such file"], ["x.nii", "--study", "a"]])
def test_errors_in_words(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / words[0]), *words[1:], "--out", str(tmp_path / "a.png")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
