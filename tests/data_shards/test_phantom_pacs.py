"""Phantoms as a PACS hands studies out: the same voxels come back from the DICOM files, and the table fits them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from data_shards import DataError
from data_shards.phantom import generate
from data_shards.phantom.__main__ import main
from data_shards.phantom.pacs import write_pacs
from data_shards.volume import read_volume


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pacs(tmp_path_factory.mktemp("pacs") / "export", 7)


def test_dicom_gives_the_phantom_back(pacs: Path) -> None:
    with (pacs / "reports.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 and {row["split"] for row in rows} == {"train", "val", "test"}
    split_of = {row["patient"]: row["split"] for row in rows}
    for index, row in enumerate(rows):
        study = generate(index, 0)
        assert row["findings"] == study.texts.findings and split_of[row["patient"]] == row["split"]
        for name, value in study.labels.items():
            assert row[name] == ("" if value is None else str(value))
        scan = read_volume(pacs / row["patient"] / row["accession"] / "body")
        np.testing.assert_array_equal(scan.array, study.scans[0].array)
        assert scan.spacing_mm == pytest.approx(study.scans[0].spacing_mm, abs=1e-4)


def test_an_export_is_not_mixed_with_another(pacs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="already holds files"):
        write_pacs(pacs, 1)
    assert main(["--dicom", "--out", str(pacs), "--studies", "1"]) == 1
    assert "already holds files" in capsys.readouterr().err
    assert main(["--dicom", "--out", str(tmp_path / "new"), "--studies", "1"]) == 0
    assert len(list((tmp_path / "new").rglob("*.dcm"))) > 10
