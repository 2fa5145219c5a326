"""Tables of the public collections, and the thumbnail that an encoder has to beat."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import real_baseline
from benchmarks.real_data import CT_LABELS, ct_table, xray_table
from data_shards.schema import Scan, Study, Texts
from data_shards.shard_set import ShardWriter
from eval_zero_shot import load_task


def test_cts_of_three_collections(shared_data: Path) -> None:
    rows = list(ct_table(shared_data))
    assert Counter(row["split"] for row in rows) == {"train": 170 + 51 + 8, "test": 33}
    assert all((shared_data / row["image"]).is_file() for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)
    patients = {row["id"]: row["patient"] for row in rows}
    assert patients["misc_ct-ts_example_ct"] == patients["misc_ct-ts_example_ct_sm"]
    assert patients["misc_ct-ts_aorta_cta"] == patients["misc_ct-ts_pulmonary_cta"]
    assert {row[label] for row in rows if not row["id"].startswith("openkbp") for label in CT_LABELS} == {""}
    assert set(load_task("head_neck_ct").names) == set(CT_LABELS)
    training = " ".join(row["report"] for row in rows)
    # the facts are asked for in the words of the reports
    assert all(prompt in training for prompt in load_task("head_neck_ct").texts())


def test_radiographs_are_split_by_patient_later(shared_data: Path) -> None:
    rows = list(xray_table(shared_data))
    assert (len(rows), len({row["patient"] for row in rows})) == (243, 71)
    assert "split" not in rows[0]
    assert all(row["intensive_care"] == str(int("is treated in intensive" in row["report"])) for row in rows)
    assert not any("mg/l" in row["report"] for row in rows)


def test_a_thumbnail_tells_bright_from_dark(tmp_path: Path, capsys: Any) -> None:
    with ShardWriter(tmp_path / "shards") as writer:
        for i in range(120):
            array = np.random.default_rng(i).normal(100 * (i % 2), 30, (20, 20, 20)).astype(np.int16)
            scans, labels = (Scan(array=array, spacing_mm=(3.0, 2.0, 2.0)),), {"bright": i % 2, "never": 0}
            split = "train" if i < 80 else "test"
            writer.write(Study(f"{i:016x}", f"{i:016x}", split, scans, Texts(report="A scan."), labels))
    assert real_baseline.main([str(tmp_path / "shards"), "--labels", "bright,never"]) == 0
    said = capsys.readouterr().out
    assert "| bright | 1.000 |" in said
    assert "a class is missing" in said


@pytest.mark.parametrize("name", ["head_neck_ct", "hannover_cxr", "public_images"])
def test_packaged_tasks_load(name: str) -> None:
    assert load_task(name).classes
