"""Which series of a study is trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_shards import DataError
from data_shards.reading import read_scan
from data_shards.sources.dicom_choice import parse_rule, soft_kernel
from data_shards.sources.dicom_tree import read_dicom_tree
from tests.data_shards.dicom_files import body, save, series, study


def several(root: Path) -> None:
    """One study: thick soft, thin lung, thin soft, PET."""
    for n, (slices, step, kernel, modality) in enumerate(
        [(5, 5.0, "B31f", "CT"), (21, 1.0, "B70f", "CT"), (20, 1.0, "B30f", "CT"), (30, 3.0, "", "PT")], 1
    ):
        ct = body((slices, 12, 12), seed=n)
        said = study(1, SeriesInstanceUID=f"1.2.1.{n}", SeriesNumber=n, Modality=modality, ConvolutionKernel=kernel)
        save(series(ct, step=(0, 0, step), SeriesDescription=f"scan {n} {kernel}", **said), root / str(n))


@pytest.mark.parametrize(
    ("rule", "want"),
    [
        ("primary", [3]),  # thin and soft, though the lung kernel has one slice more
        ("all", [3, 2, 1, 4]),
        ("largest", [4]),
        ("thinnest", [3]),
        ("regex:b3[01]", [3, 1]),
    ],
)
def test_rules_of_choice(rule: str, want: list[int], tmp_path: Path) -> None:
    several(tmp_path)
    (row,) = read_dicom_tree(tmp_path, series=rule).rows
    assert [int(Path(file.path).name) for file in row.scans] == want
    assert [file.role for file in row.scans] == ["primary"] + ["secondary"] * (len(want) - 1)
    assert row.scans[0].notes[0][0] == "several_series"
    assert "4 series" in row.scans[0].notes[0][1]
    assert ("several_series", f"4 series, {len(want)} kept ({rule.partition(':')[0]})") in read_scan(row.scans[0]).notes


def test_rules_that_choose_nothing_or_are_none(tmp_path: Path) -> None:
    several(tmp_path)
    (refused,) = read_dicom_tree(tmp_path, series="regex:no such").refused
    assert refused.reason == "no series of it is chosen by the rule"
    (row,) = read_dicom_tree(tmp_path, modalities=("PT",)).rows
    assert [file.modality for file in row.scans] == ["PT"]
    for bad in ("best", "regex:("):
        with pytest.raises(DataError, match="--series"):
            parse_rule(bad)


@pytest.mark.parametrize(
    ("kernel", "soft"),
    [("B31f", True), ("['Br40d', '3']", True), ("B70f", False), ("I70f", False), ("STANDARD", True), ("LUNG", False),
     ("BONEPLUS", False), ("FC08", True), ("FC51", False), ("B", True), ("D", False), ("", None), ("CHST", None)],
)  # fmt: skip
def test_soft_kernels(kernel: str, soft: bool | None) -> None:
    assert soft_kernel(kernel) is soft
