"""Caps, balance, files of selections, and the command line, on shard sets that were really written."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_shards import Scan, Study, Texts
from data_shards.errors import DataError
from data_shards.select import main
from data_shards.selection import (
    Cap,
    Choice,
    index_table,
    listing_table,
    load_selection,
    parse_cap,
    save_selection,
    select_rows,
)
from data_shards.shard_set import ShardSet, ShardWriter
from data_shards.sources.base import Listing, ScanFile, StudyRow


def concepts(n: int, extra: int = 0) -> pa.Table:
    """Concepts of very different sizes: half plots, a quarter x-rays, ...; every fifth sample is of another split."""
    names = ["plot" if i % 2 else "x-ray" if i % 4 else "ct" if i % 8 else None for i in range(n + extra)]
    return pa.table(
        {
            "key": [f"k{i}" for i in range(n + extra)],
            "split": ["test" if i % 5 == 0 else "train" for i in range(n + extra)],
            "meta:concept": names,
            "label:effusion": pa.array([None if i % 7 == 0 else int(i % 3 == 0) for i in range(n + extra)], pa.int8()),
        }
    )


def kept(table: pa.Table, choice: Choice) -> set[str]:
    return {table["key"][int(i)].as_py() for i in select_rows(table, choice).rows}


def test_caps_hold_in_train_and_leave_the_test_split_alone() -> None:
    table = concepts(400)
    selected = select_rows(table, Choice(caps=(Cap("concept", 30), Cap("concept", 5, "plot"))))
    rows = [table.slice(int(i), 1).to_pylist()[0] for i in selected.rows]
    train = Counter(r["meta:concept"] for r in rows if r["split"] == "train")
    assert train == {"plot": 5, "x-ray": 30, "ct": 30, None: 30}
    assert sum(r["split"] == "test" for r in rows) == 80
    before, met, last = selected.counts["meta:concept"]["plot"]
    assert (before, met, last) == (200, 200, 5 + 40)
    assert selected.counts["split"] == {"train": (320, 320, 95), "test": (80, 80, 80)}
    everywhere = Choice(caps=(Cap("concept", 3),), thin_splits=("train", "test"))
    assert len(select_rows(table, everywhere).rows) == 12


def test_the_choice_is_the_seeds_and_stays_when_studies_are_added() -> None:
    table, more = concepts(400), concepts(400, extra=40)
    choice = Choice(caps=(Cap("concept", 20),), seed=1)
    first = kept(table, choice)
    assert first == kept(table, choice)
    shuffled = table.take(np.random.default_rng(0).permutation(400))
    assert first == kept(shuffled, choice)
    assert first != kept(table, Choice(caps=(Cap("concept", 20),), seed=2))
    test = {f"k{i}" for i in range(440) if i % 5 == 0}
    later = kept(more, choice)
    gone, come = (first - test) - later, (later - test) - first
    # A sample makes room only for a new one of its own concept.
    assert len(gone) == len(come) <= 32 and all(int(key[1:]) >= 400 for key in come)


def test_balance_gives_every_known_value_as_many_as_the_rarest() -> None:
    table = concepts(400)
    selected = select_rows(table, Choice(balance="effusion", thin_splits=("train", "test")))
    counts = {value: last for value, (_, _, last) in selected.counts["label:effusion"].items()}
    assert counts["1"] == counts["0"] > 50 and counts["unknown"] == 0
    capped = Choice(
        balance="effusion", caps=(Cap("concept", 10),), where="concept is not null", thin_splits=("train", "test")
    )
    selected = select_rows(table, capped)
    assert selected.counts["label:effusion"]["1"][2] == selected.counts["label:effusion"]["0"][2] > 0
    assert all(last <= 10 for _, _, last in selected.counts["meta:concept"].values())


@pytest.mark.parametrize("seed", range(8))
def test_balance_holds_whatever_the_other_caps_take(seed: int) -> None:
    rng = np.random.default_rng(seed)
    columns = {f"meta:{name}": rng.integers(0, 4, 60).astype(str).tolist() for name in "abc"}
    table = pa.table({"key": [f"k{i}" for i in range(60)], "split": ["train"] * 60, **columns})
    caps = (Cap("b", 6), Cap("c", 9), Cap("c", 2, "1"))
    counts = select_rows(table, Choice(balance="a", caps=caps, seed=seed)).counts
    assert len({last for _, _, last in counts["meta:a"].values()}) == 1
    assert all(last <= 6 for _, _, last in counts["meta:b"].values()) and counts["meta:c"]["1"][2] <= 2


def test_a_sample_with_several_values_counts_for_each() -> None:
    values = [["a", "b"], ["a"], ["b"], ["a", "c"], [], None]
    table = pa.table({"key": list("uvwxyz"), "split": ["train"] * 6, "meta:concept": values})
    selected = select_rows(table, Choice(caps=(Cap("concept", 1),)))
    assert all(last <= 1 for _, _, last in selected.counts["meta:concept"].values())
    assert selected.counts["meta:concept"]["unknown"] == (2, 2, 1)


def test_what_cannot_be_chosen_is_refused() -> None:
    table = concepts(40)
    for choice in (
        Choice(caps=(Cap("gone", 1),)),
        Choice(where="concept = 'none such'"),
        Choice(caps=(Cap("concept", 1),), thin_splits=("val",)),
        Choice(where="concept = 'plot'", caps=(Cap("concept", 0),), thin_splits=("train", "test")),
    ):
        with pytest.raises(DataError):
            select_rows(table, choice)
    assert [parse_cap(t) for t in ("concept=5", "label:effusion=1:7", "a=b:c:2")] == [
        Cap("concept", 5),
        Cap("label:effusion", 7, "1"),
        Cap("a", 2, "b:c"),
    ]
    for text in ("concept", "concept=", "=5", "concept=many", "concept=-1", "concept=²", "concept=٣"):
        with pytest.raises(DataError):
            parse_cap(text)


def shard_set(folder: Path, seed: int = 0) -> ShardSet:
    with ShardWriter(folder, max_samples=5) as writer:
        for i in range(16):
            array = np.random.default_rng(i + seed).integers(-900, 900, (4, 5, 6)).astype(np.int16)
            scan = Scan(array=array, spacing_mm=(3.0, 2.0, 2.0))
            labels = {"effusion": None if i == 3 else i % 2}
            split = "test" if i < 4 else "train"
            texts = Texts(report=f"Report {i}.")
            writer.write(
                Study(f"s{i}", f"p{i}", split, (scan,), texts, labels, "made up", ("CC0-1.0", "x")[i % 3 == 0])
            )
    return ShardSet.open(folder)


@pytest.mark.parametrize("suffix", [".parquet", ".json"])
def test_from_the_command_line_to_rows(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    shards, out = shard_set(tmp_path / "set"), tmp_path / "new" / f"selection{suffix}"
    words = [str(tmp_path / "set"), "--where", "licence = 'CC0-1.0' and effusion is not null"]
    words += ["--cap", "effusion=2", "--seed", "3"]
    assert main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "nothing is written" in shown and not out.exists() and not out.parent.exists()
    assert main([*words, "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[:6] == shown.splitlines()[:6]
    lines = [line.split() for line in shown.splitlines()]
    assert ["label:effusion", "1", "7", "5", "3"] in lines  # of the 5, one is of the test split and 2 of train stay
    rows = load_selection(out, shards)
    assert rows.dtype == np.int64 and (np.diff(rows) > 0).all()
    index = shards.index.to_pylist()
    assert all(index[r]["licence"] == "CC0-1.0" and index[r]["label:effusion"] is not None for r in rows)
    train = Counter(index[r]["label:effusion"] for r in rows if index[r]["split"] == "train")
    assert train == {0: 2, 1: 2}
    assert list(out.parent.iterdir()) == [out]
    # The same words give the same file.
    bytes_before = out.read_bytes()
    assert main([*words, "--out", str(out)]) == 0
    assert out.read_bytes() == bytes_before


def test_a_selection_of_another_set_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    shards, other = shard_set(tmp_path / "set"), shard_set(tmp_path / "other", seed=9)
    out = tmp_path / "s.json"
    assert main([str(tmp_path / "set"), "--out", str(out)]) == 0
    assert len(load_selection(out, shards)) == 16
    with pytest.raises(DataError, match="from another shard set"):
        load_selection(out, other)
    body = json.loads(out.read_text())
    for change in ({"keys": ["s1", "s1"]}, {"keys": ["gone"]}, {"version": 99}, {"manifest": None}):
        out.write_text(json.dumps(body | change))
        with pytest.raises(DataError):
            load_selection(out, shards)
    for text in ("{", "[]", '"x"', ""):
        out.write_text(text)
        with pytest.raises(DataError):
            load_selection(out, shards)
    (tmp_path / "s.parquet").write_bytes(b"PAR1")
    for name in ("s.parquet", "gone.json"):
        with pytest.raises(DataError):
            load_selection(tmp_path / name, shards)


class Bare:
    """The same studies as a set of somebody else's tars tells them: by the methods of Shards, without an index."""

    def __init__(self, shards: ShardSet) -> None:
        self.label_names, self.manifest, self.manifest_hash = shards.label_names, shards.manifest, shards.manifest_hash
        self.key, self.patient, self.labels, self.rows = shards.key, shards.patient, shards.labels, shards.rows
        self.json = shards.json
        self.size = len(shards)

    def __len__(self) -> int:
        return self.size

    def modality(self, row: int) -> str:
        return "CT"


def test_sets_without_an_index_are_selected_from_as_well(tmp_path: Path) -> None:
    shards = shard_set(tmp_path / "set")
    choice = Choice("effusion is not null and modality = 'CT'", (Cap("effusion", 2),))
    bare: Any = Bare(shards)
    np.testing.assert_array_equal(
        select_rows(index_table(bare), choice).rows, select_rows(index_table(shards), choice).rows
    )
    out = tmp_path / "s.parquet"
    save_selection(out, bare, choice, select_rows(index_table(bare), choice))
    np.testing.assert_array_equal(load_selection(out, bare), load_selection(out, shards))


def test_mistakes_of_the_command_line_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard_set(tmp_path / "set")
    for words, said in (
        (["--where", "effusion = 1"], "--dry-run"),
        (["--where", "gone = 1", "--dry-run"], "the columns are key,"),
        (["--cap", "gone=1", "--dry-run"], "there is no column 'gone'"),
        (["--out", str(tmp_path / "x.csv")], ".parquet or .json"),
        (["--cap", "effusion=1", "--thin-splits", "val", "--dry-run"], "--thin-splits"),
    ):
        assert main([str(tmp_path / "set"), *words]) == 1
        told = capsys.readouterr().err
        assert said in told and "fix:" in told
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]


def test_a_listing_is_chosen_from_before_anything_is_read() -> None:
    rows = [
        StudyRow(
            i,
            f"s{i}",
            (ScanFile("nowhere", modality="CT" if i % 2 else None),),
            f"p{i}",
            "train",
            Texts(report="x"),
            {"effusion": int(i % 3 == 0)},
            {"concept": ["plot", "ct"][i % 2], "age": str(30 + i), "tags": ["a"]},
        )
        for i in range(12)
    ]
    table = listing_table(Listing(rows), modality="MR", licence="CC0-1.0")
    assert table["modality"].to_pylist()[:2] == ["MR", "CT"]
    chosen = select_rows(table, Choice("modality = 'CT' and age > 34", (Cap("concept", 2),)))
    assert len(chosen.rows) == 2 and all(r % 2 and r > 4 for r in chosen.rows)
