"""What is asked for and what is left out: texts, splits, keys, sources that are none."""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.build import main
from data_shards.opening import with_text
from data_shards.shard_set import ShardSet
from tests.data_shards.tables import build, rows, write_table

Table = Callable[..., Path]


@pytest.fixture(autouse=True)
def _salt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXCLIP_SALT", "test")


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """table(rows): write volumes for the rows that name one, then the CSV."""
    return functools.partial(write_table, tmp_path)


def test_labels_without_texts_are_built_only_when_said(
    table: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [{name: cell for name, cell in row.items() if name != "report"} for row in rows(4)]
    source = table(entries)
    assert build(source, "--label-columns", "nodule") == 1  # a report is looked for
    assert "no column ['report']" in capsys.readouterr().err
    assert build(source, "--label-columns", "nodule", "--allow-no-text", "--dry-run") == 0
    told = capsys.readouterr().out
    assert "none at all in 4 studies" in told and "cannot be used" not in told
    assert build(source, "--label-columns", "nodule", "--allow-no-text") == 0
    shards = ShardSet.open(tmp_path / "out")
    assert shards.textless.tolist() == [0, 1, 2, 3]
    assert shards.labels(("nodule",))[:2, 0].tolist() == [1, 0]


def test_a_study_without_text_among_others_is_told_apart(table: Table, tmp_path: Path) -> None:
    entries = rows(4)
    entries[2]["report"] = " "
    assert build(table(entries), "--allow-no-text") == 0
    shards = ShardSet.open(tmp_path / "out")
    assert [shards.json(int(row))["texts"]["report"] for row in shards.textless] == [""]
    assert with_text(shards, shards.rows()).tolist() == [0, 1, 3]


def test_which_study_a_key_is_goes_into_a_private_file(table: Table, tmp_path: Path) -> None:
    entries = rows(4)
    entries[2]["report"] = " "
    private = tmp_path / "mine" / "keys.csv"
    assert build(table(entries), "--max-rejects", "1", "--private-keys", str(private)) == 0
    with private.open(newline="") as file:
        told = {row["key"]: row for row in csv.DictReader(file)}
    (refused,) = csv.DictReader((tmp_path / "out" / "rejected.csv").open(newline=""))
    assert told[refused["key"]] == {"key": refused["key"], "line": "4", "id": "Doe-2", "patient": "Jane Doe 2"}
    shards = ShardSet.open(tmp_path / "out")
    assert {told[shards.key(row)]["id"] for row in range(3)} == {"Doe-0", "Doe-1", "Doe-3"}
    assert private.stat().st_mode & 0o077 == 0


def test_private_keys_do_not_lie_among_the_shards(
    table: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(table(rows(2)), "--private-keys", str(tmp_path / "out" / "keys.csv")) == 1
    assert "inside the shard set" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_nan_is_no_report(table: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = rows(4)
    entries[1]["report"] = "NaN"
    assert build(table(entries)) == 1
    assert "line 3: the study has no text" in capsys.readouterr().err


def test_fractions_that_a_split_column_would_overrule_are_refused(
    table: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = table(rows(4))
    assert build(source, "--test-fraction", "0.3") == 1
    assert "the column 'split' says them already" in capsys.readouterr().err
    assert build(source, "--test-fraction", "0.3", "--split-by", "patient") == 0


def test_a_folder_whose_table_names_no_images_is_not_taken_for_dicom(
    table: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [{"filename": f"{i}.png", "patient": f"p{i}", "report": "Clear."} for i in range(3)]
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 12)).astype(np.uint8)).save(
            tmp_path / f"{i}.png"
        )
    table(entries)
    assert main(["--source", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert "its table has no column image" in told and "--image-column" in told and "filename" in told
    assert main(["--source", str(tmp_path / "0.png"), "--out", str(tmp_path / "out")]) == 1
    assert "a .png file alone is no source" in capsys.readouterr().err
