"""What a table's row may say of its study: several images, numbers that files do not know, splits, identifiers."""

from __future__ import annotations

import io
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_shards.errors import DataError
from data_shards.make_study import StudyMaker
from data_shards.reading import read_scan, read_scans
from data_shards.shard_set import EncodedStudy
from data_shards.sources.base import Listing, ScanFile
from data_shards.sources.table import ImageColumn, TableSpec, parse_images, read_splits, read_table


def noise(i: int, shape: tuple[int, ...] = (12, 10), dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(i).integers(0, np.iinfo(dtype).max, shape).astype(dtype)


def table(folder: Path, rows: list[dict[str, Any]], **more: Any) -> Listing:
    columns = dict.fromkeys(name for row in rows for name in row)
    path = folder / "t.jsonl"
    path.write_text("\n".join(json.dumps({c: row.get(c) for c in columns}) for row in rows))
    spec: dict[str, Any] = {"images": (ImageColumn("{image}"),), "texts": {"report": "report"}, "id_column": "id"}
    return read_table(path, TableSpec(root=folder, patient_column="patient", **(spec | more)))


def row(i: int, **more: Any) -> dict[str, Any]:
    return {"id": f"s{i}", "image": f"{i}.png", "patient": f"p{i}", "report": f"Report {i}."} | more


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for i in range(8):
        Image.fromarray(noise(i)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_odd_names_and_cells(tmp_path: Path) -> None:
    """Columns with dots and brackets, a cell that is no path, bytes that nobody asked for."""
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "a.png")
    for name in ("file.name", "image[0]"):
        (tmp_path / "t.csv").write_text(f"id,{name},patient,report\ns1,a.png,p1,clear\n")
        spec = TableSpec(tmp_path, (ImageColumn(f"{{{name}}}"),), "patient", {"report": "report"}, id_column="id")
        assert read_table(tmp_path / "t.csv", spec).rows[0].scans[0].path.endswith("a.png")
    with pytest.raises(DataError, match="is not understood"):
        ImageColumn("{image")
    spec = TableSpec(tmp_path, (ImageColumn("{image}"),), "patient", {"report": "report"}, id_column="id")
    for cell, fails in (("x" * 300, True), (";".join(["a.png"] * 60), False)):
        (tmp_path / "t.csv").write_text(f"id,image,patient,report\ns1,{cell},p1,clear\n")
        with pytest.raises(DataError, match=r"names no file .*: line 2") if fails else nullcontext():
            assert len(read_table(tmp_path / "t.csv", spec).rows[0].scans) == 60
    cells = {"id": ["s1"], "image": ["a.png"], "patient": ["p1"], "report": ["x"], "age": [3], "thumb": [b"\0\1"]}
    pq.write_table(pa.table({**cells, "picture": [{"bytes": b"\0", "path": "x"}]}), tmp_path / "t.parquet")
    assert len(read_table(tmp_path / "t.parquet", replace(spec, where="age > 1")).rows) == 1
    with pytest.raises(DataError, match="holds bytes"):
        read_table(tmp_path / "t.parquet", replace(spec, where="thumb = 'x'"))


def test_several_images_of_a_study(images: Path) -> None:
    rows = [
        row(0, image="0.png; 1.png", lateral="2.png"),
        row(1, image=["3.png", "4.png"], lateral=""),
        row(2, image="5.png", lateral="6.png"),
    ]
    found = table(images, rows, images=parse_images("image,lateral", phases="a,b")).rows
    told = [[(Path(s.path).stem, s.role, s.phase) for s in study.scans] for study in found]
    assert told == [
        [("0", "primary", "a"), ("1", "further", "a"), ("2", "lateral", "b")],
        [("3", "primary", "a"), ("4", "further", "a")],
        [("5", "primary", "a"), ("6", "lateral", "b")],
    ]
    made = StudyMaker(salt="s")(found[0])
    assert isinstance(made, EncodedStudy)
    assert [name.split(".", 1)[1] for name, _ in made.members] == ["00.png", "01.png", "02.png", "json"]
    with pytest.raises(DataError, match=r"column 'image' names no file.*: line 2"):
        table(images, [row(0), row(1, image="1.png;gone.png")])
    with pytest.raises(DataError, match=r"column 'image' names no file.*: line 1"):
        table(images, [row(0, image="", lateral="2.png")], images=parse_images("image,lateral"))


def test_a_name_with_the_separator_in_it_is_one_file(images: Path) -> None:
    (images / "0.png").rename(images / "a;b.png")
    assert len(table(images, [row(0, image="a;b.png")]).rows[0].scans) == 1


def test_roles_and_phases_are_one_a_column() -> None:
    lateral_first = parse_images("lat,ap", "lateral,primary")
    assert [(i.template, i.role) for i in lateral_first] == [("{ap}", "primary"), ("{lat}", "lateral")]
    for roles, phases in (("primary", ""), ("a,b", ""), ("primary,primary", ""), ("", "arterial")):
        with pytest.raises(DataError):
            parse_images("lat,ap", roles, phases)


def test_numbers_that_the_file_does_not_know(tmp_path: Path) -> None:
    volumes = [noise(i, (5, 6, 7), np.uint16) // 16 for i in range(2)]
    np.save(tmp_path / "0.npy", volumes[0])
    np.savez_compressed(tmp_path / "1.npz", anything=volumes[1])
    rows = [
        row(0, image="0.npy", slope=1.0, intercept=-1024, zyx="[2.5, 0.7, 0.8]", mod="CT", when="venous"),
        row(1, image="1.npz", slope=None, intercept="", zyx="3x0.7x0.8", mod="MR", when=""),
    ]
    named = {
        "slope_column": "slope",
        "intercept_column": "intercept",
        "modality_column": "mod",
        "phase_column": "when",
    }
    found = table(tmp_path, rows, spacing_columns=("zyx",), **named).rows
    ct, mr = found[0].scans[0], found[1].scans[0]
    assert (ct.slope, ct.intercept, ct.spacing_mm, ct.modality, ct.phase) == (1, -1024, (2.5, 0.7, 0.8), "CT", "venous")
    assert (mr.slope, mr.intercept, mr.spacing_mm, mr.modality, mr.phase) == (None, None, (3, 0.7, 0.8), "MR", None)
    (scan,) = read_scans(found[0])
    assert scan.array is not None and scan.unit == "HU" and scan.phase == "venous"
    np.testing.assert_array_equal(scan.array, volumes[0].astype(int) - 1024)
    (scan,) = read_scans(found[1])
    assert scan.array is not None and scan.unit == "arbitrary"
    np.testing.assert_allclose(scan.array * scan.slope + scan.intercept, volumes[1], atol=scan.slope)


def test_numbers_that_are_none_are_told_by_line(images: Path) -> None:
    rows = [row(0, slope="1", zyx="1,1,1"), row(1, slope="Doe", zyx="1,1"), row(2, slope="nan", zyx="1,0,1")]
    with pytest.raises(DataError) as told:
        table(images, rows, slope_column="slope", spacing_columns=("zyx",))
    said = str(told.value)
    assert "column 'slope' is not a number: line 2, 3" in said
    assert "column 'zyx' is not 3 numbers (z, y, x in mm): line 2" in said
    assert "column 'zyx' is not a spacing above 0: line 3" in said and "Doe" not in said


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_images_of_16_bits(tmp_path: Path, suffix: str) -> None:
    deep = noise(0, (12, 10), np.uint16)
    Image.fromarray(deep).save(tmp_path / f"0{suffix}")
    (scan,) = read_scans(table(tmp_path, [row(0, image=f"0{suffix}")]).rows[0])
    assert scan.image == (tmp_path / f"0{suffix}").read_bytes() and scan.unit == "arbitrary"


def test_arrays_that_are_images_and_arrays_that_are_nothing(tmp_path: Path) -> None:
    for i, array in enumerate((noise(0, (9, 8), np.uint16), noise(1, (9, 8, 3)))):
        np.save(tmp_path / f"{i}.npy", array)
        scan = read_scan(ScanFile(str(tmp_path / f"{i}.npy")))
        assert scan.image is not None
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(scan.image))), array)
    np.save(tmp_path / "obj.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=noise(0), b=noise(1))
    np.save(tmp_path / "deep.npy", noise(0, (4, 4, 4, 4)))
    np.save(tmp_path / "float.npy", np.ones((4, 5)) * np.arange(5))
    for name, said in (("obj.npy", "read"), ("two.npz", "2 arrays"), ("deep.npy", "neither"), ("float.npy", "float64")):
        with pytest.raises(DataError, match=said):
            read_scan(ScanFile(str(tmp_path / name)))
    np.save(tmp_path / "v.npy", noise(0, (4, 5, 6)))
    with pytest.raises(DataError, match="spacing"):
        read_scan(ScanFile(str(tmp_path / "v.npy")))
    for axes, spacing in (("LSP", (3.0, 1.0, 2.0)), ("sar", (1.0, 2.0, 3.0))):
        scan = read_scan(ScanFile(str(tmp_path / "v.npy"), axes=axes, spacing_mm=spacing, modality="MR"))
        assert scan.spacing_mm == (1.0, 2.0, 3.0)
    with pytest.raises(DataError, match="three of S/I"):
        read_scan(ScanFile(str(tmp_path / "v.npy"), axes="SSR", spacing_mm=(1, 1, 1)))


def test_identifiers_are_passed_on_but_not_words_that_would_cut_the_text(images: Path) -> None:
    rows = [row(0, id="ACC-1234", patient="55512345", name="Jane Doe", room="12")]
    (study,) = table(images, rows, known_columns=("name", "room")).rows
    assert study.known == ("ACC-1234", "55512345", "Jane Doe")


def test_splits_by_a_file_by_a_group_and_by_patient(images: Path) -> None:
    rows = [row(i, site="ab"[i % 2]) for i in range(6)]
    (images / "s.json").write_text(
        json.dumps({"train": ["s0", "s1", "p2"], "validation": ["s3", "s4"], "test": ["s5"]})
    )
    splits = read_splits(str(images / "s.json"))
    assert [r.split for r in table(images, rows, splits=splits).rows] == ["train"] * 3 + ["val"] * 2 + ["test"]
    (images / "train.txt").write_text("s0\ns1\n\n")
    (images / "val.txt").write_text("s2\n")
    assert read_splits(f"train={images}/train.txt,dev={images}/val.txt") == {"s0": "train", "s1": "train", "s2": "val"}
    pq.write_table(pa.table({"set": ["train", "testing"], "study": ["s0", "s1"]}), images / "s.parquet")
    splits = read_splits(str(images / "s.parquet"))
    assert splits == {"s0": "train", "s1": "test"}
    with pytest.raises(DataError, match="neither id nor patient is in the split file: line 3, 4, 5, 6"):
        table(images, rows, splits=splits)
    by_site = {r.id: r.split for r in table(images, rows, group_column="site", val_fraction=0.5).rows}
    assert len({by_site[f"s{i}"] for i in (0, 2, 4)}) == 1 and len({by_site[f"s{i}"] for i in (1, 3, 5)}) == 1
    same = [row(i, patient="p", site="site" + str(i)) for i in range(8)]
    with pytest.raises(DataError, match="the patient is in another split"):
        table(images, same, group_column="site", val_fraction=0.5)
    (images / "s.json").write_text(json.dumps({"train": ["s0"], "test": ["s0"]}))
    with pytest.raises(DataError, match="in 'train' and in 'test'"):
        read_splits(str(images / "s.json"))
    (images / "s.csv").write_text("id,age\ns0,4\n")
    with pytest.raises(DataError, match="split file is no table of ids and splits; is its first line"):
        read_splits(str(images / "s.csv"))


def test_where_is_asked_of_any_column_before_files_are_looked_for(images: Path) -> None:
    rows = [row(i, age=30 + i, view="ap" if i % 2 else "lat") for i in range(6)]
    rows[0] |= {"image": "gone.png", "age": None}
    listing = table(images, rows, where="age > 32 and view = 'ap'")
    assert [r.id for r in listing.rows] == ["s3", "s5"]
    assert listing.notes == ("--where keeps 2 of 6 rows",)
    assert table(images, rows, where="age > 32").notes == ("--where keeps 3 of 6 rows; unknown for 1, left out",)
    with pytest.raises(DataError, match="no row of the table meets"):
        table(images, rows, where="age > 99")
    with pytest.raises(DataError) as told:
        table(images, rows, where="cast(report as int) > 3")
    assert "Report 1" not in str(told.value)


def test_options_that_contradict_each_other(images: Path) -> None:
    for more in (
        {"split_column": "site", "group_column": "site"},
        {"spacing_columns": ("a", "b")},
        {"val_fraction": 1.0},
        {"images": ()},
    ):
        with pytest.raises(DataError):
            table(images, [row(0, site="a", a=1, b=1)], **more)
