"""One command for every source: what --source is, and what becomes of it."""

from __future__ import annotations

import csv
import io
import os
import shutil
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from data_shards.build import main
from data_shards.phantom.pacs import write_pacs
from data_shards.shard_set import ShardSet
from tests.data_shards import foreign_tars


@pytest.fixture(autouse=True)
def _salt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VOXCLIP_SALT", "test")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # the index of foreign tars


def build(source: Path | str, out: Path, *more: str) -> int:
    return main(["--source", str(source), "--out", str(out), *more])


def write_folder(folder: Path, studies: int = 4) -> Path:
    """NIfTI files and a table beside them."""
    folder.mkdir()
    with (folder / "reads.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", "patient", "report", "age", "concept"])
        for i in range(studies):
            array = np.random.default_rng(i).integers(-1000, 1000, (24, 21, 18)).astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), folder / f"{i}.nii.gz")
            writer.writerow([f"s{i}", f"{i}.nii.gz", f"p{i}", "Clear lungs.", 40 + i, "ab"[i % 2]])
    return folder


def test_a_folder_with_its_table(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in")
    assert build(folder, tmp_path / "out") == 0
    assert len(ShardSet.open(tmp_path / "out")) == 4
    (folder / "more.csv").write_text("id,image\n")
    assert build(folder, tmp_path / "other") == 1


def test_what_else_lies_in_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sidecar of another program is no table, and a backup below the folder does not replace the studies."""
    folder = write_folder(tmp_path / "in")
    (folder / "dataset_description.json").write_text("{}")
    foreign_tars.unimed(folder / "old" / "backup.tar")
    assert build(folder, tmp_path / "out") == 0
    assert len(ShardSet.open(tmp_path / "out")) == 4
    foreign_tars.unimed(folder / "beside.tar")
    assert build(folder, tmp_path / "other") == 1
    assert "with a table of images and with tars" in capsys.readouterr().err


def test_columns_that_identify_are_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(write_folder(tmp_path / "in"), tmp_path / "out", "--meta-columns", "age,patient") == 1
    assert "--meta-columns names ['patient']" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("patients", "kept", "said"),
    [
        (["p1", "p2"], ["x", "p2"], "repeats an identifier of the study"),
        (["4711", "4712"], ["x", "4712"], "repeats an identifier of the study"),
        (["7", "8"], ["7", "8"], "repeats the patient in every row"),
        (["s", "t"], ["0", "1"], "repeats the id in every row"),
        (["40", "41"], ["39", "41"], ""),  # an age
    ],
)
def test_short_identifiers_are_not_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], patients: list[str], kept: list[str], said: str
) -> None:
    folder = write_folder(tmp_path / "in", 2)
    rows = [f"{i},{i}.nii.gz,{patients[i]},Clear.,{kept[i]}" for i in range(2)]
    (folder / "reads.csv").write_text("\n".join(["id,image,patient,report,kept", *rows]))
    assert build(folder, tmp_path / "out", "--meta-columns", "kept") == int(bool(said))
    assert said in capsys.readouterr().err


def test_another_image_is_another_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "in")
    assert build(folder, tmp_path / "out") == 0
    moved = folder.rename(tmp_path / "moved")
    assert build(moved, tmp_path / "out", "--resume") == 0
    assert "built already" in capsys.readouterr().out
    (moved / "b").mkdir()
    shutil.copy(moved / "1.nii.gz", moved / "b" / "0.nii.gz")
    table = moved / "reads.csv"
    text = table.read_text()
    for other in ("1.nii.gz", "b/0.nii.gz"):
        table.write_text(text.replace("0.nii.gz", other))
        assert build(moved, tmp_path / "out", "--resume") == 1
        assert "built already" not in capsys.readouterr().out
    table.write_text(text)
    shutil.copy(moved / "b" / "0.nii.gz", moved / "0.nii.gz")
    (moved / "0.nii.gz").write_bytes((moved / "0.nii.gz").read_bytes() + b"\0" * 9)
    assert build(moved, tmp_path / "out", "--resume") == 1
    assert "built already" not in capsys.readouterr().out


def test_meta_columns_are_in_the_index(tmp_path: Path) -> None:
    options = ["--meta-columns", "age,concept", "--where", "age < 43"]
    assert build(write_folder(tmp_path / "in"), tmp_path / "out", *options) == 0
    index = ShardSet.open(tmp_path / "out").index
    assert index["meta:age"].to_pylist() == [40.0, 41.0, 42.0]
    assert index["meta:concept"].to_pylist() == ["a", "b", "a"]


def test_volumes_at_one_spacing(tmp_path: Path) -> None:
    from data_shards.resample import resampled
    from data_shards.volume import read_volume

    folder = write_folder(tmp_path / "in", 1)
    assert build(folder, tmp_path / "out", "--spacing", "3", "2", "2", "--patient-column", "id") == 0
    source, meta = ShardSet.open(tmp_path / "out").scan(0)
    want = resampled(read_volume(folder / "0.nii.gz"), (3.0, 2.0, 2.0))
    assert meta["spacing_mm"] == [3.0, 2.0, 2.0]
    np.testing.assert_array_equal(source[:], want.array)


def test_a_dicom_export_with_its_table(tmp_path: Path) -> None:
    root = write_pacs(tmp_path / "export", 2)
    texts = ["--text-columns", "findings,impression", "--label-columns", "splenomegaly"]
    assert build(root, tmp_path / "found", *texts) == 0
    reports = root.joinpath("reports.csv").rename(tmp_path / "reports.csv")
    assert build(root, tmp_path / "named", "--reports", str(reports), *texts) == 0
    found, named = (ShardSet.open(tmp_path / name) for name in ("found", "named"))
    assert len(found) == 2 and found.json(0) == named.json(0) and found.json(0)["texts"]["findings"]
    assert found.label_names == ("splenomegaly",)
    words = ["--reports", str(reports), *texts[:2], "--known-columns", "patient", "--label-columns", "*"]
    assert build(root, tmp_path / "star", *words) == 0
    assert {"splenomegaly", "ascites"} < set(ShardSet.open(tmp_path / "star").label_names)


def test_dicom_without_reports_is_refused_before_it_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_pacs(tmp_path / "export", 1)
    (root / "reports.csv").unlink()
    assert build(root, tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert "no study has a text" in told and "--reports" in told


def test_studies_that_the_source_refuses_are_rejects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pydicom

    root = write_pacs(tmp_path / "export", 2)
    for path in root.glob("*/ACC0000001/*/*.dcm"):
        item = pydicom.dcmread(path)
        item.PatientID = ""
        item.save_as(path)
    texts = ["--text-columns", "findings,impression"]
    assert build(root, tmp_path / "out", *texts) == 1
    assert "no PatientID" in capsys.readouterr().err
    assert build(root, tmp_path / "out", *texts, "--max-rejects", "1") == 0
    assert len(ShardSet.open(tmp_path / "out")) == 1
    with (tmp_path / "out" / "rejected.csv").open() as file:
        (rejected,) = csv.DictReader(file)
    assert "no PatientID" in rejected["reason"] and len(rejected["key"]) == 16


def test_published_tars(tmp_path: Path) -> None:
    foreign_tars.unimed(tmp_path / "in" / "0.tar")
    assert build(tmp_path / "in", tmp_path / "out") == 0
    assert build(f"{tmp_path}/in/*.tar", tmp_path / "pattern") == 0
    shards = ShardSet.open(tmp_path / "out")
    assert len(shards) == 6 and len(shards.json(0)["texts"]["captions"]) >= 1
    with tarfile.open(tmp_path / "in" / "0.tar") as tar:
        image = tar.extractfile("000000.jpg").read()  # type: ignore[union-attr]
    want = np.asarray(Image.open(io.BytesIO(image)))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(shards.scan(0)[0]))), want)
    for name in ("index.parquet", "manifest.json", "shard-000000.tar"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "pattern" / name).read_bytes()


def test_bad_samples_of_tars_are_rejects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Listed and counted once, by the one option that the build has for it; a flipped bit is seen too."""
    samples = [[(f"{i}.jpg", foreign_tars.picture(i, size=(400, 400))), (f"{i}.txt", b"a scan")] for i in range(5)]
    samples[2][1] = ("2.txt", b"\xff\xfe")
    samples[4].pop()
    tar = foreign_tars.write_tar(tmp_path / "in" / "0.tar", [member for sample in samples for member in sample])
    words = ["--layout", "unimed", "--val-fraction", "0"]
    assert build(tmp_path / "in", tmp_path / "out", *words, "--max-rejects", "1") == 1
    told = capsys.readouterr().err
    assert "2 studies cannot be used, 1 are allowed" in told and "--max-damaged" not in told
    assert build(tmp_path / "in", tmp_path / "out", *words, "--max-rejects", "2") == 0
    with (tmp_path / "out" / "rejected.csv").open() as file:
        rejected = list(csv.DictReader(file))
    assert [r["line"] for r in rejected] == ["5", "9"] and "tar 1, member 5: " in rejected[0]["reason"]
    assert len({r["key"] for r in rejected}) == 2
    before, data = tar.stat(), bytearray(tar.read_bytes())
    with tarfile.open(tar) as opened:
        member = opened.getmember("1.jpg")
    data[member.offset_data + member.size - 40] ^= 1
    tar.write_bytes(data)
    os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert build(tmp_path / "in", tmp_path / "other", *words, "--max-rejects", "2") == 1
    assert "does not match its crc32" in capsys.readouterr().err


def test_medmnist(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 5), ("val", 2), ("test", 2)):
        arrays[f"{split}_images"] = rng.integers(0, 255, (n, 28, 28)).astype(np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 2, (n, 1)).astype(np.uint8)
    np.savez_compressed(tmp_path / "pneumoniamnist.npz", **arrays)  # type: ignore[arg-type]
    assert build(tmp_path / "pneumoniamnist.npz", tmp_path / "out") == 0
    shards = ShardSet.open(tmp_path / "out")
    assert shards.manifest["splits"] == {"test": 2, "train": 5, "val": 2}
    assert shards.json(0)["source"] == "pneumoniamnist" and shards.json(0)["licence"] == "CC-BY-4.0"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("a table", ["--reports", "x.csv"]),
        ("a table", ["--layout", "unimed", "--series", "all"]),
        ("a table", ["--join", "study"]),
        ("a table", ["--scans", "first"]),
        ("a folder of DICOM files without --reports", ["--text-columns", "findings"]),
        ("a folder of DICOM files with --reports", ["--slope-column", "x"]),
        ("a folder of DICOM files with --reports", ["--root", "x", "--image-column", "x", "--id-column", "x"]),
        ("a folder of DICOM files with --reports", ["--patient-column", "x"]),
        ("published tars", ["--label-columns", "x"]),
        ("published tars", ["--split-file", "x.json"]),
        ("a MedMNIST archive", ["--val-fraction", "0.2"]),
        ("a collection (--preset)", ["--text-columns", "x", "--test-fraction", "0.2"]),
    ],
)
def test_options_that_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, words: list[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    table, archive = folder / "reads.csv", folder / "pneumoniamnist.npz"
    source, more = {
        "a table": (table, []),
        "published tars": (folder, []),
        "a MedMNIST archive": (archive, []),
        "a collection (--preset)": (folder, ["--preset", "ct-rate"]),
        "a folder of DICOM files with --reports": (folder, ["--reports", str(table)]),
    }.get(kind, (folder, []))
    if source != folder or "with" in kind.split():
        source.touch() if source != folder else table.touch()
    if kind == "published tars":
        foreign_tars.unimed(folder / "0.tar")
    assert build(source, tmp_path / "out", *words, *more) == 1
    told = capsys.readouterr().err
    assert f"the source is {kind}, which" in told and all(word in told for word in words if word.startswith("--"))


@pytest.mark.parametrize("words", [["--val-fraction", "10"], ["--test-fraction", "-1"], ["--val-fraction", "nan"]])
def test_fractions_are_shares(tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit):
        build(write_folder(tmp_path / "in", 1), tmp_path / "out", *words)


def test_what_a_report_is_found_by_is_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    words = ["--reports", "x.csv", "--join-columns", "acc", "--meta-columns", "acc"]
    assert build(tmp_path / "in", tmp_path / "out", *words) == 1
    assert "--meta-columns names ['acc']" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: p, "the source does not exist"),
        (lambda p: p.with_suffix(".tar"), "there is no .tar there"),
        (lambda p: (p.mkdir(), (p / "a.nii.gz").write_bytes(b""), p)[-1], "1 images and no table"),
        (lambda p: (p.mkdir(), (p / "manifest.json").write_bytes(b"{}"), p)[-1], "is a shard set already"),
        (
            lambda p: (p.mkdir(), (p / "a.csv").write_text("x"), (p / "b.csv").write_text("x"), p)[-1],
            "a folder with 2 tables",
        ),
    ],
)
def test_what_is_no_source(tmp_path: Path, capsys: pytest.CaptureFixture[str], make: object, said: str) -> None:
    source = make(tmp_path / "in")  # type: ignore[operator]
    assert build(source, tmp_path / "out") == 1
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VOXCLIP_SALT")
    folder = write_folder(tmp_path / "in", 12)
    text = (folder / "reads.csv").read_text().splitlines()
    text[3] = text[3].replace("Clear lungs.", "")
    text[5] = text[5].replace("Clear lungs.", "Seen by Dr. Quillfeather on 03.02.2011.")
    (folder / "reads.csv").write_text("\n".join(text))
    (folder / "0.nii.gz").write_bytes((folder / "0.nii.gz").read_bytes()[:-40])
    before = sorted(tmp_path.rglob("*"))
    assert build(folder, tmp_path / "out", "--dry-run", "--label-columns", "concept=a", "--val-fraction", "0.4") == 1
    told = capsys.readouterr().out
    for line in (
        "12 studies, 12 scans",
        "split train: ",
        "split val: ",
        "report 11; none at all in 1 studies",
        "label concept_a: 6 present, 6 absent, 0 unknown",
        "date 1",
        "line 2 cannot be used: the volume cannot be read",
        "line 4 cannot be used: the study has no text",
        "7 studies were not opened",
        "2 studies cannot be used; --max-rejects is 0: the build would stop",
    ):
        assert line in told, f"{line!r} is not in\n{told}"
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"
