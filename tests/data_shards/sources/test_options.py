"""From a command line to studies: the options of tables, presets and archives."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.errors import DataError
from data_shards.sources.options import Opened, add_choice_options, add_preset_options, add_table_options, open_known

SHIPPED = Path(__file__).resolve().parents[3] / "data_shards" / "sources"


def opened(source: Path, *words: str) -> Opened:
    parser = argparse.ArgumentParser()
    add_preset_options(parser)
    add_table_options(parser)
    add_choice_options(parser)
    found = open_known(source, parser.parse_args(words))
    assert found is not None
    return found


@pytest.fixture
def table(tmp_path: Path) -> Path:
    lines = ["id,image,side,patient,split,site,report,effusion,age"]
    for i in range(20):
        noise = np.random.default_rng(i).integers(0, 255, (9, 8)).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
        split = ("train", "test")[i % 2]
        lines.append(f"s{i},{i}.png,{i}.png,p{i},{split},{'ab'[i % 2]},Report {i}.,{int(i < 4)},{20 + i}")
    path = tmp_path / "t.csv"
    path.write_text("\n".join(lines))
    return path


def test_which_split(table: Path) -> None:
    def splits(*words: str) -> list[str]:
        return [row.split for row in opened(table, *words).listing.rows]

    by_column = ["train", "test"] * 10
    assert splits() == splits("--split-by", "column") == splits("--split-column", "split") == by_column
    drawn = splits("--split-by", "patient", "--val-fraction", "0.5")
    assert set(drawn) == {"train", "val"} and drawn != by_column
    by_site = splits("--group-column", "site", "--val-fraction", "0.5")
    assert len(set(by_site[::2])) == 1 and len(set(by_site[1::2])) == 1
    ids = table.parent / "ids.txt"
    ids.write_text("\n".join(f"s{i}" for i in range(20)))
    assert splits("--split-file", f"dev={ids}") == ["val"] * 20
    for words in (
        ["--split-by", "column", "--group-column", "site"],
        ["--split-column", "site", "--group-column", "site"],
    ):
        with pytest.raises(DataError):
            opened(table, *words)


def test_which_studies_and_images(table: Path) -> None:
    found = opened(table, "--where", "age >= 24", "--cap", "effusion=3", "--label-columns", "effusion")
    train = [row for row in found.listing.rows if row.split == "train"]
    assert len(train) == 3 and len(found.listing.rows) == 3 + 8 and all(int(r.id[1:]) >= 4 for r in found.listing.rows)
    assert any("keeps 16 of 20 rows" in note for note in found.listing.notes)
    both = opened(table, "--image-columns", "image,side", "--image-roles", "primary,lateral").listing.rows[0]
    assert [scan.role for scan in both.scans] == ["primary", "lateral"]
    with pytest.raises(DataError, match="both given"):
        opened(table, "--image-columns", "image,side", "--image-template", "{id}.png")
    balanced = opened(table, "--balance", "effusion", "--label-columns", "effusion").listing
    assert sum(r.labels["effusion"] == 1 for r in balanced.rows if r.split == "train") == 2


def test_labels_by_list_file_and_star(table: Path) -> None:
    def labels(*words: str) -> list[dict[str, int | None]]:
        return [row.labels for row in opened(table, *words).listing.rows[:5]]

    lines = table.read_text().splitlines()
    table.write_text("\n".join([f"{lines[0]},008.5", *(f"{line},{i % 3 - 1}" for i, line in enumerate(lines[1:]))]))
    named = labels("--label-columns", "effusion,008.5,site=a")
    assert named[:2] == [{"effusion": 1, "008.5": None, "site_a": 1}, {"effusion": 1, "008.5": 0, "site_a": 0}]
    listed = table.parent / "labels.txt"
    listed.write_text("effusion\n008.5\n\nsite=a\n")
    assert labels("--label-columns", f"@{listed}") == named
    others = ["--meta-columns", "age", "--image-columns", "image,side", "--group-column", "site"]
    assert [set(row) for row in labels("--label-columns", "*", *others)] == [{"effusion", "008.5"}] * 5
    for words, said in (
        (["*"], r"label column 'side' is neither 1, 0, -1 nor blank"),
        (["@gone.txt"], "'gone.txt' cannot be read"),
        (["effusion,site=a,site a"], "two of --label-columns are of the label 'site_a'"),
        (["*", "--meta-columns", "site,effusion,age,008.5", "--image-columns", "image,side"], "every column is named"),
    ):
        with pytest.raises(DataError, match=said):
            opened(table, "--label-columns", *words)


def test_archives_presets_and_folders(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"{s}_images": rng.integers(0, 255, (6, 28, 28)).astype(np.uint8) for s in ("train", "val", "test")}
    arrays |= {f"{s}_labels": (np.arange(6) % 2).astype(np.uint8)[:, None] for s in ("train", "val", "test")}
    np.savez(tmp_path / "pneumoniamnist_28.npz", **arrays)  # type: ignore[arg-type]
    found = opened(tmp_path / "pneumoniamnist_28.npz", "--cap", "pneumonia=1", "--where", "modality = 'CR'")
    assert (found.licence, found.name, len(found.listing.rows)) == ("CC-BY-4.0", "pneumoniamnist", 2 + 12)
    assert open_known(tmp_path, argparse.Namespace(preset=None)) is None
    with pytest.raises(DataError, match="lacks"):
        opened(tmp_path, "--preset", "merlin")
    with pytest.raises(DataError, match="does not exist"):
        opened(tmp_path / "gone")


def test_scans_of_a_preset(tmp_path: Path) -> None:
    from tests.data_shards.sources.test_presets import ct_rate

    ct_rate(tmp_path, fixed=True)
    for words, scans in (([], 2), (["--scans", "all"], 2), (["--scans", "first"], 1)):
        found = opened(
            tmp_path, "--preset", "ct-rate", "--where", "manufacturer = 'Philips' and lung_nodule = 1", *words
        )
        assert {len(row.scans) for row in found.listing.rows} == {scans}
    assert (found.modality, found.licence, found.name) == ("CT", "CC-BY-NC-SA-4.0", "CT-RATE")


def test_an_installed_package_holds_the_yaml_files() -> None:
    """setup.cfg gives every package its *.yaml: a folder that is none would stay behind."""
    assert tomllib.loads((SHIPPED.parents[1] / "pyproject.toml").read_text())["build-system"]
    assert "* = *.yaml" in (SHIPPED.parents[1] / "setup.cfg").read_text()
    found = list(SHIPPED.rglob("*.yaml"))
    assert len(found) == 5 and all((path.parent / "__init__.py").is_file() for path in found)
