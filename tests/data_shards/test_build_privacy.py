"""Identifiers planted everywhere a hospital's data has room for them: none may be in anything that a build leaves."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import struct
import sys
import tarfile
import warnings
from pathlib import Path
from typing import Any

import blosc2
import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin

from data_shards.build import main
from data_shards.build_folder import work_folder
from data_shards.shard_set import ShardSet
from tests.conftest import write_series

NAMES = ("Mustermann", "Erika", "Quillfeather", "Zwiebelbach")
NUMBERS = ("MRN7788321", "7788321", "ACC99120455", "19610203", "1961-02-03", "03.02.1961", "0171 5550173")
PLANTED = (*NAMES, *NUMBERS)
WORDS = " ".join(PLANTED)
REPORT = (
    "Patient: Erika Mustermann, DOB 03.02.1961, MRN: 7788321. Comparison with the CT of 1961-02-03. "
    "The lungs are clear. Small left effusion. Discussed with Dr. Quillfeather by phone 0171 5550173, ACC99120455."
)
COLUMNS = ("id", "image", "patient", "name", "born", "address", "accession", "split", "report", "site", "effusion")


def _tags() -> bytes:
    tags = Image.Exif()
    tags[0x010E], tags[0x013B] = WORDS, WORDS
    return tags.tobytes()


def _nifti(path: Path) -> None:
    array = np.random.default_rng(0).integers(-1000, 1000, (8, 7, 6)).astype(np.int16)
    image = nibabel.Nifti1Image(array, np.eye(4))
    image.header["descrip"], image.header["aux_file"] = b"Mustermann Erika 19610203", b"MRN7788321"
    image.header["db_name"], image.header["intent_name"] = b"Mustermann", b"Erika"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", WORDS.encode()))
    nibabel.save(image, path)


def _dicom(folder: Path) -> None:
    import pydicom

    write_series(folder, np.random.default_rng(1).integers(-900, 900, (5, 8, 8)).astype(np.int16))
    for i, path in enumerate(sorted(folder.iterdir())):
        item = pydicom.dcmread(path)
        item.PatientName, item.PatientID, item.PatientBirthDate = "Mustermann^Erika", "MRN7788321", "19610203"
        item.AccessionNumber, item.ReferringPhysicianName = "ACC99120455", "Quillfeather"
        item.StudyDescription, item.PatientComments, item.PatientAddress = WORDS[:60], WORDS, "Zwiebelbach 3"
        item.SeriesDescription, item.ProtocolName = "Mustermann Erika", "MRN7788321"
        item.private_block(0x0029, "SOME MAKER", create=True).add_new(0x10, "LO", "Mustermann Erika")
        item.save_as(folder / f"Mustermann_Erika_{i}.dcm")
        path.unlink()


def _images(folder: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 255, (20, 21, 3)).astype(np.uint8))
    words = PngImagePlugin.PngInfo()
    words.add_text("Patient", WORDS)
    words.add_itxt("Name", WORDS)
    picture.save(folder / "Mustermann.png", pnginfo=words, exif=_tags())
    picture.save(folder / "Mustermann.jpg", exif=_tags(), comment=WORDS, xmp=WORDS.encode())
    data = (folder / "Mustermann.jpg").read_bytes()
    maker = b"Photoshop 3.0\0" + WORDS.encode()
    (folder / "Mustermann.jpg").write_bytes(
        data[:2] + b"\xff\xed" + struct.pack(">H", len(maker) + 2) + maker + data[2:]
    )
    picture.save(folder / "Mustermann.webp", exif=_tags(), xmp=WORDS.encode())
    picture.save(folder / "Mustermann.tif", tiffinfo={270: WORDS, 305: WORDS, 315: WORDS})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A table of eight studies: a NIfTI, a DICOM folder, four images, an array, and a NIfTI that is cut off."""
    folder = tmp_path / "Zwiebelbach" / "Mustermann_Erika_19610203"
    folder.mkdir(parents=True)
    _nifti(folder / "Mustermann.nii.gz")
    _nifti(folder / "Mustermann_cut.nii")
    (folder / "Mustermann_cut.nii").write_bytes((folder / "Mustermann_cut.nii").read_bytes()[:-50])
    _dicom(folder / "Mustermann_MRN7788321")
    _images(folder)
    np.save(folder / "Mustermann.npy", np.random.default_rng(3).integers(-900, 900, (5, 6, 7)).astype(np.int16))
    files = ["Mustermann.nii.gz", "Mustermann_MRN7788321", "Mustermann.npy", "Mustermann_cut.nii"]
    files += [f"Mustermann.{ext}" for ext in ("png", "jpg", "webp", "tif")]
    with (folder / "Mustermann_Erika.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for i, name in enumerate(files):
            identity = [f"Mustermann-{i}-MRN7788321", name, "Mustermann, Erika", "Erika Mustermann", "1961-02-03"]
            writer.writerow([*identity, "Zwiebelbach 3", "ACC99120455", "train", REPORT, "west", "1"])
    return folder / "Mustermann_Erika.csv"


def build(source: Path, out: Path, *more: str) -> int:
    options = ["--known-columns", "name,accession", "--meta-columns", "site", "--label-columns", "effusion"]
    return main(["--source", str(source), "--out", str(out), "--file-spacing", "2", "1", "1", *options, *more])


def leaks(text: str | bytes) -> list[str]:
    data = (text.encode() if isinstance(text, str) else text).lower()
    return [word for word in PLANTED if word.lower().encode() in data or word.lower().encode("utf-16-le") in data]


def assert_clean(folder: Path) -> int:
    """No planted word in any file below a folder, raw or unpacked. Returns the number of volumes and images seen."""
    seen = 0
    for path in folder.rglob("*"):
        assert not leaks(path.name)
        if path.is_dir():
            continue
        assert not leaks(path.read_bytes()), path.name
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            assert not leaks(repr(table.to_pylist()) + repr(table.schema.metadata))
        if path.suffix == ".tar":
            with tarfile.open(path) as tar:
                for member in tar:
                    assert not leaks(repr(member.get_info()))
                    data = tar.extractfile(member).read()  # type: ignore[union-attr]
                    seen += _payload(member.name, data)
    return seen


def _payload(name: str, data: bytes) -> int:
    if name.endswith(".b2nd"):
        volume = blosc2.ndarray_from_cframe(data)
        assert not leaks(volume[:].tobytes()) and not leaks(repr(dict(volume.schunk.vlmeta.getall())))
    elif not name.endswith(".json"):
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert not leaks(repr(image.info) + repr(dict(image.getexif())) + repr(getattr(image, "text", "")))
    else:
        assert not leaks(repr(json.loads(data)))
        return 0
    return 1


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.full)])
def test_nothing_that_identifies_leaves(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], workers: str
) -> None:
    out = tmp_path / "out"
    assert build(source, out, "--workers", workers) == 1
    told = capfd.readouterr()
    assert "1 studies cannot be used" in told.err and not leaks(told.err) and not leaks(told.out)
    assert_clean(out)
    assert_clean(work_folder(out))
    assert build(source, out, "--workers", workers, "--max-rejects", "1") == 0
    told = capfd.readouterr()
    assert not leaks(told.err) and not leaks(told.out)
    assert assert_clean(out) == 7
    shards = ShardSet.open(out)
    report = shards.json(0)["texts"]["report"]
    assert "The lungs are clear. Small left effusion." in report
    assert {entry["ext"] for row in range(7) for entry in shards.json(row)["scans"]} == {"b2nd", "png", "jpg", "webp"}
    assert shards.json(0)["meta"] == {"site": "west"}
    masked = shards.manifest["texts"]["masked"]
    assert shards.manifest["texts"]["deidentified"] is True and masked["known"] >= 7 and masked["date"] >= 7
    assert f"known {masked['known']}" in told.out, "counts are told"


def test_a_dry_run_tells_no_identifier(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert build(source, tmp_path / "out", "--dry-run") == 1  # one of them cannot be read
    told = capfd.readouterr()
    assert "8 studies" in told.out and not leaks(told.out) and not leaks(told.err)
    assert not (tmp_path / "out").exists()


def test_texts_that_are_de_identified_already(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert build(source, tmp_path / "out", "--keep-text-as-is", "--max-rejects", "1") == 0
    shards = ShardSet.open(tmp_path / "out")
    assert shards.json(0)["texts"]["report"] == REPORT
    assert shards.manifest["texts"] == {"deidentified": False}
    assert "texts are stored as they are" in capfd.readouterr().out


def test_a_kept_column_that_repeats_an_identifier_is_refused(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert build(source, tmp_path / "out", "--meta-columns", "address,name", "--max-rejects", "7") == 1
    told = capfd.readouterr().err
    assert "--meta-columns names ['name']" in told and not leaks(told)
    source.write_text(source.read_text().replace(",west,", ",ward ACC99120455,"))
    assert build(source, tmp_path / "out", "--max-rejects", "7") == 1
    told = capfd.readouterr().err
    assert "the kept column 'site' repeats an identifier of the study" in told and not leaks(told)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda text: text.replace("Mustermann.png", "Mustermann_Erika_gone.png"), "names no file"),
        (lambda text: text.replace('"Mustermann, Erika"', ""), "no patient"),
        (lambda text: text.replace(",west,1", ",west,Mustermann"), "is neither 1, 0"),
        (lambda text: text.replace("-1-MRN", "-0-MRN"), "the id was used on an earlier line"),
        (lambda text: text.replace('"Patient:', "Patient:", 1), "fields"),
    ],
)
def test_errors_name_lines_only(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], spoil: Any, said: str
) -> None:
    source.write_text(spoil(source.read_text()))
    assert build(source, tmp_path / "out") == 1
    told = capfd.readouterr().err
    assert said in told and not leaks(told)


def test_a_fault_of_the_program_tells_places_only(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that fails with the file's name in its message, while listing and while reading."""
    import data_shards.build_run
    import data_shards.reading

    listing = False

    def fail(path: Any, *rest: Any, **more: Any) -> Any:
        warnings.warn(f"strange value in {path}", stacklevel=1)
        logging.getLogger("pydicom").warning(f"strange value in {path}")
        if not listing:
            print(f"cannot read {path}", file=sys.stderr)
            os.write(2, f"libtiff: {path}".encode())
        raise RuntimeError(f"cannot read {path}")

    with monkeypatch.context() as patch:
        patch.setattr(data_shards.reading, "read_image", fail)
        assert build(source, tmp_path / "out", "--max-rejects", "5") == 0
    listing = True
    monkeypatch.setattr(data_shards.build_run, "_files", fail)
    assert build(source, tmp_path / "other") == 1
    told = capfd.readouterr()
    assert "error: RuntimeError in the program, at " in told.err
    assert not leaks(told.err) and not leaks(told.out)
    assert "reading failed (RuntimeError)" in (tmp_path / "out" / "rejected.csv").read_text()
    assert_clean(tmp_path / "out")
