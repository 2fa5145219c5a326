"""The same table in every format is the same records; what is no table is refused with its line."""

from __future__ import annotations

import datetime
import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_shards.errors import DataError
from data_shards.sources.records import as_text, read_columns, read_records

COLUMNS = ["id", "age", "weight", "seen", "report", "fat"]
CELLS: list[list[Any]] = [
    ["a", 41, 70.5, datetime.date(2024, 5, 31), 'No "halo", really.\nEnd.', True],
    ["b", None, 80.0, None, "", False],
    ["007", 3, None, datetime.date(1999, 1, 2), "Größe 2,5 cm", None],
]
TEXTS = [
    ["a", "41", "70.5", "2024-05-31", 'No "halo", really.\nEnd.', "1"],
    ["b", "", "80", "", "", "0"],
    ["007", "3", "", "1999-01-02", "Größe 2,5 cm", ""],
]


def sheet(path: Path, rows: list[list[Any]]) -> Path:
    book = openpyxl.Workbook()
    assert book.active is not None
    for row in rows:
        book.active.append(row)
    book.save(path)
    return path


def make(folder: Path, kind: str) -> Path:
    path = folder / f"table.{kind}"
    text = "\n".join(json.dumps(dict(zip(COLUMNS, row)), default=str) for row in CELLS)
    if kind == "parquet":
        table = pa.table({name: [row[i] for row in CELLS] for i, name in enumerate(COLUMNS)})
        pq.write_table(table, path, row_group_size=2)
    elif kind == "xlsx":
        sheet(path, [list(COLUMNS), *CELLS])
    elif kind == "jsonl":
        path.write_text(text, encoding="utf-8")
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        separator = "\t" if kind == "tsv" else ","
        lines = [separator.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in [COLUMNS, *TEXTS]]
        body = "\n".join(lines).encode()
        path.write_bytes(gzip.compress(body) if kind.endswith("gz") else body)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz", "jsonl", "jsonl.gz", "parquet", "xlsx"])
def test_every_format_gives_the_same_records(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path, kind)
    records = read_records(path)
    assert records.columns == COLUMNS == read_columns(path)
    assert [cells for _, cells in records.rows] == TEXTS
    first = {"csv": 2, "tsv": 2, "csv.gz": 2, "xlsx": 2}.get(kind, 1)
    assert records.rows[0][0] == first
    assert records.rows[2][0] == first + (3 if first == 2 and kind != "xlsx" else 2)  # a report over two lines


def test_cells_become_text_in_one_way() -> None:
    cells = [1.0, 0.1, float("nan"), Decimal("2.50"), Decimal("100"), datetime.datetime(2024, 1, 2), 10**20, ["a", 2.0]]
    assert [as_text(c) for c in cells] == ["1", "0.1", "", "2.5", "100", "2024-01-02", "1" + "0" * 20, "a;2"]
    assert as_text(datetime.datetime(2024, 1, 2, 3, 4)) == "2024-01-02T03:04:00"


def test_parquet_floats_of_32_bits_and_columns_that_nobody_asked_for(tmp_path: Path) -> None:
    table = pa.table({"x": pa.array([0.1, None], pa.float32()), "pixels": [b"\x89PNG", b""], "id": ["a", "b"]})
    pq.write_table(table, tmp_path / "t.parquet")
    records = read_records(tmp_path / "t.parquet", only=["x", "id"])
    assert sorted(records.columns) == ["id", "pixels", "x"]
    at = records.columns.index("x")
    assert [cells[at] for _, cells in records.rows] == ["0.1", ""]
    with pytest.raises(DataError, match="bytes"):
        read_records(tmp_path / "t.parquet")


def test_a_sheet_with_errors_and_unsaved_formulas(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    assert book.active is not None
    book.active.append(["id", "age"])
    book.active.append(["a", "=1+1"])
    book.save(tmp_path / "formula.xlsx")
    with pytest.raises(DataError, match="row 2 of the sheet has a formula whose value was never saved"):
        read_records(tmp_path / "formula.xlsx")
    book.active["B2"] = "#REF!"
    book.active["B2"].data_type = "e"
    book.save(tmp_path / "error.xlsx")
    with pytest.raises(DataError, match="row 2 of the sheet has an error value"):
        read_records(tmp_path / "error.xlsx")
    sheet(tmp_path / "wide.xlsx", [["id"], ["a", "Jane Doe"]])
    with pytest.raises(DataError, match="row 2 of the sheet has cells beyond") as told:
        read_records(tmp_path / "wide.xlsx")
    assert "Doe" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("t.jsonl", b'{"id": "a"}\n{"id": \n', "line 2 is not a JSON object"),
        ("t.jsonl", b'{"id": "a"}\n["Doe"]\n', "line 2 is not a JSON object"),
        ("t.jsonl", b'{"id": "Doe", "id": "b"}\n', "line 1 names a field twice"),
        ("t.jsonl", b"\n\n", "the table is empty"),
        ("t.jsonl", b'{"id": "D\xf6e"}\n', "not UTF-8"),
        ("t.parquet", b"PAR1 Doe", "cannot be read"),
        ("t.xlsx", b"PK\x03\x04 Doe", "cannot be read"),
        ("t.csv.gz", b"\x1f\x8b Doe", "cannot be read"),
        ("t.csv", b"id,x,x\na,1,2\n", "has a name twice: of columns 2, 3"),
        ("t.xls", b"", "tables of type .xls are not read"),
        ("t.pkl", b"cos\nsystem\n", "tables of type .pkl are not read"),
    ],
)
def test_what_is_no_table(tmp_path: Path, name: str, body: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(body)
    with pytest.raises(DataError, match=said) as told:
        read_records(tmp_path / name)
    assert "Doe" not in str(told.value)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet", "t.xlsx"])
def test_a_table_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_records(tmp_path / name)


def test_a_missing_openpyxl_is_told_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sheet(tmp_path / "t.xlsx", [["id"], ["a"]])
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(DataError, match=r"voxclip\[xlsx\]"):
        read_records(path)
