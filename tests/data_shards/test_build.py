from __future__ import annotations

import csv
import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from data_shards.build import main
from data_shards.shard_set import ShardSet
from data_shards.sources.table import ABSENT, PRESENT, SPLIT_NAMES, UNKNOWN
from tests.data_shards.tables import build, rows, write_table

Table = Callable[..., Path]


@pytest.fixture(autouse=True)
def _salt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXCLIP_SALT", "test")


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """table(rows): write volumes for the rows that name one, then the CSV."""
    return functools.partial(write_table, tmp_path)


def test_a_table_becomes_a_shard_set(table: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        build(table(rows()), "--label-columns", "nodule,fat=little", "--licence", "CC0-1.0", "--meta-columns", "fat")
        == 0
    )
    shards = ShardSet.open(tmp_path / "out")
    np.testing.assert_array_equal(
        shards.labels(("nodule", "fat_little")), np.array([[1, 1], [0, np.nan], [np.nan, 0], [np.nan, 1], [1, np.nan]])
    )
    body = shards.json(2)
    assert body["texts"]["report"] == "Nodule number 2. No effusion."
    assert (body["split"], body["licence"], body["meta"]) == ("train", "CC0-1.0", {"fat": "much"})
    assert body["scans"][0]["spacing_mm"] == [2.0, 1.0, 1.0]
    volume = np.asarray(nibabel.load(tmp_path / "Doe-2.nii.gz").dataobj)
    np.testing.assert_array_equal(shards.scan(2)[0][:], volume.transpose(2, 1, 0))
    assert "5 studies of 5 patients" in capsys.readouterr().out
    # No identifier and no file name anywhere in what is handed on.
    for path in (tmp_path / "out").iterdir():
        assert b"Doe" not in path.read_bytes()
        assert b"table" not in path.read_bytes()


@pytest.mark.full
def test_the_bytes_do_not_depend_on_the_workers(table: Table, tmp_path: Path) -> None:
    source = table(rows(9))
    assert build(source, "--max-samples", "4", out="one") == 0
    assert build(source, "--max-samples", "4", "--workers", "2", out="two") == 0
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert len(names) == 5
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_images_and_templates_and_a_split_by_patient(tmp_path: Path) -> None:
    (tmp_path / "png").mkdir()
    lines = ["file,who,caption,findings"]
    for i in range(60):
        noise = np.random.default_rng(i).integers(0, 255, (16, 12)).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path / "png" / f"f{i}.png")
        lines.append(f"f{i},p{i // 2},chest {i},clear {i}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    arguments = ["--image-template", "png/{file}.png", "--patient-column", "who", "--val-fraction", "0.3"]
    assert build(tmp_path / "t.csv", *arguments, "--text-columns", "findings=findings,caption=caption") == 0
    shards = ShardSet.open(tmp_path / "out")
    assert shards.json(5)["texts"] == {
        "report": "",
        "findings": "clear 5",
        "impression": "",
        "captions": [{"text": "chest 5", "weight": 1.0}],
    }
    assert shards.scan(5)[0] == (tmp_path / "png" / "f5.png").read_bytes()
    assert shards.members(5)[0].endswith(".00.png")
    split = {r["patient"]: set() for r in shards.index.to_pylist()}  # type: ignore[var-annotated]
    for r in shards.index.to_pylist():
        split[r["patient"]].add(r["split"])
    assert all(len(s) == 1 for s in split.values())
    assert 4 <= len(shards.rows("val")) <= 32


def test_every_mistake_of_a_table_is_told_at_once(
    table: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = rows(6)
    bad[1]["id"] = bad[0]["id"]
    bad[2]["image"] = "missing.nii.gz"
    bad[3]["nodule"] = "perhaps"
    bad[4]["patient"] = ""
    bad[5]["patient"] = bad[0]["patient"]
    source = table(bad)
    (tmp_path / "missing.nii.gz").unlink()
    assert build(source, "--label-columns", "nodule") == 1
    told = capsys.readouterr().err
    for message in (
        "the id was used on an earlier line: line 3",
        "column 'image' names no file below the table's folder: line 4",
        "label column 'nodule' is neither 1, 0, -1 nor blank (for categories say nodule=VALUE): line 5",
        "no patient: line 6",
        "the patient is in another split on an earlier line: line 7",
    ):
        assert message in told
    assert "Doe" not in told
    assert not (tmp_path / "out").exists()


def test_missing_columns_are_listed(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(table(rows()), "--text-columns", "findings,impression", "--patient-column", "who") == 1
    told = capsys.readouterr().err
    assert "no column ['findings', 'impression', 'who']" in told
    assert "--text-columns COL (default: report)" in told and "--patient-column id where every study" in told


HEADER = "id,image,patient,split,report\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEADER + 'a,,p,train,"Clear."\nb,,q,train,"Clear.\nc,,r,train,Jane Doe has cancer.\n', "starts on line 3 has"),
        (HEADER + 'a,,p,train,"Clear.\nb,,q,train,"Jane Doe has cancer."\n', "starts on line 2 has"),
        (HEADER + 'a,,p,train,"One\nTwo."\nb,,q,train,"Jane "Doe" has cancer."\n', "starts on line 4 has"),
        (HEADER + 'a,,p,train,"One\nTwo."\nb,,q,train,Clear.\n', "names no file below the table's folder: line 2, 4"),
        ('"id";"image"\n"a";"Doe, Jane"\n', "separated by semicolons, not by commas"),
        ("id\timage\na\tDoe\n", "separated by tabs, not by commas"),
        ("", "the table is empty"),
        (HEADER, "a header and no rows"),
        ("Doe-1,Doe.nii,Jane Doe,train,Jane Doe has cancer.\n", "is its first line the header?"),
    ],
)
def test_files_that_are_no_such_table(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str) -> None:
    (tmp_path / "table.csv").write_text(text)
    assert build(tmp_path / "table.csv") == 1
    told = capsys.readouterr().err
    assert said in told and told.count("fix:") == 1
    assert "Doe" not in told and "cancer" not in told


def test_a_quoted_report_may_have_lines_quotes_and_commas(table: Table, tmp_path: Path) -> None:
    entries = rows(3)
    entries[1]["report"] = 'FINDINGS: clear, no "halo".\n\nIMPRESSION: normal.'
    assert build(table(entries)) == 0
    shards = ShardSet.open(tmp_path / "out")
    assert [shards.json(i)["texts"]["report"] for i in range(3)] == [entry["report"] for entry in entries]


def test_a_template_and_a_root_are_named_where_they_were_given(
    table: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(table(rows(1)), "--image-template", "ct/{id}.nii", "--root", str(tmp_path / "scans")) == 1
    assert "--image-template 'ct/{id}.nii' names no file below --root: line 2" in capsys.readouterr().err


def _spoil(path: Path, kind: str) -> None:
    array = np.random.default_rng(0).integers(-900, 900, (8, 7, 6)).astype(np.float32)
    if kind == "two slices":
        array = array[:, :, :2]
    elif kind == "4D":
        array = np.stack([array, array], -1)
    elif kind == "NaN":
        array[3, 3, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-60])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("two slices", "fewer than 3 voxels along an axis"),
        ("4D", "has 4 axes (8x7x6x2), not 3"),
        ("NaN", "1 of 336 voxels are NaN or infinite"),
        ("truncated", "cannot be read"),
        ("no text", "has no text"),
        ("unreadable PNG", "the image cannot be decoded"),
    ],
)
def test_bad_studies(table: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, reason: str) -> None:
    entries = rows(4)
    if kind == "no text":
        entries[2]["report"] = "  "
    if kind == "unreadable PNG":
        entries[2]["image"] = "Doe.png"
        (tmp_path / "Doe.png").write_bytes(b"\x89PNG not really")
    source = table(entries)
    if kind not in ("no text", "unreadable PNG"):
        _spoil(tmp_path / entries[2]["image"], kind)
    assert build(source) == 1
    told = capsys.readouterr().err
    assert "1 studies cannot be used, 0 are allowed; nothing was built" in told
    assert reason in told
    assert "Doe" not in told
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["rejected.csv"]
    # Allowed, the rest is built in the same place, and the list stays beside it.
    assert build(source, "--max-rejects", "1") == 0
    shards = ShardSet.open(tmp_path / "out")
    assert len(shards) == 3
    with (tmp_path / "out" / "rejected.csv").open() as file:
        (rejected,) = csv.DictReader(file)
    assert rejected["line"] == "4"
    assert reason in rejected["reason"]
    assert len(rejected["key"]) == 16
    assert rejected["key"] not in [shards.key(r) for r in range(3)]
    assert list(tmp_path.glob(".*tmp")) == []


def test_a_repaired_table_leaves_no_old_list_of_rejects(table: Table, tmp_path: Path) -> None:
    entries = rows(3)
    entries[0]["report"] = ""
    assert build(table(entries)) == 1
    assert build(table(rows(3))) == 0
    assert not (tmp_path / "out" / "rejected.csv").exists()
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["samples"] == 3


def test_an_existing_shard_set_is_kept(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    source = table(rows(3))
    assert build(source) == 0
    assert build(source) == 1
    assert "already holds files" in capsys.readouterr().err


def test_help_teaches_without_torch() -> None:
    code = (
        "import sys, data_shards.build as b\n"
        "try: b.main(['--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'blosc2', 'pyarrow', 'nibabel'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "python -m data_shards.build --source reads.csv --out shards" in shown
    docs = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
    for word in filter(None, (*PRESENT, *ABSENT, *UNKNOWN, *SPLIT_NAMES)):
        assert re.search(rf"[ ,]{re.escape(word)}[ ,;:.]", shown), f"--help does not say that {word} is accepted"
        assert f"`{word}`" in docs, f"docs/data.md does not say that {word} is accepted"


def test_category_that_no_row_has_is_refused(table: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = table(rows()), tmp_path / "out"
    assert main(["--source", str(source), "--out", str(out), "--label-columns", "fat=litle"]) == 1
    told = capsys.readouterr().err
    assert "fat=litle" in told and "['little', 'much']" in told and not out.exists()
    assert main(["--source", str(source), "--out", str(out), "--label-columns", "patient=Jane"]) == 1
    assert "Doe" not in capsys.readouterr().err.replace(str(source), "")
