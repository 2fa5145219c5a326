"""MedMNIST archives, made up in every task and real where they lie beside the repository."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.errors import DataError
from data_shards.make_study import StudyMaker
from data_shards.reading import read_scans
from data_shards.shard_set import EncodedStudy
from data_shards.sources.base import StudyRow
from data_shards.sources.medmnist import is_medmnist, medmnist_words, read_medmnist
from data_shards.sources.npz import read_array

COUNTS = {"train": 5, "val": 2, "test": 3}


def archive(
    path: Path, shape: tuple[int, ...], labels: int, classes: int, stored: bool = False
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in COUNTS.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, *shape)).astype(np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, classes, (n, labels)).astype(np.uint8)
    (np.savez if stored else np.savez_compressed)(path, **arrays)
    return arrays


def pixels(row: StudyRow) -> np.ndarray:
    (scan,) = read_scans(row)
    assert scan.image is not None and scan.ext == "png"
    return np.asarray(Image.open(io.BytesIO(scan.image)))


@pytest.mark.parametrize("stored", [False, True])
def test_grey_images_keep_every_pixel_and_their_class(tmp_path: Path, stored: bool) -> None:
    arrays = archive(tmp_path / "pneumoniamnist.npz", (28, 28), 1, 2, stored)
    assert is_medmnist(tmp_path / "pneumoniamnist.npz")
    listing = read_medmnist(tmp_path / "pneumoniamnist.npz")
    assert [row.split for row in listing.rows] == ["train"] * 5 + ["val"] * 2 + ["test"] * 3
    places = [(split, i) for split, n in COUNTS.items() for i in range(n)]
    order = [3, 0, 9, 4, 5, 1]  # backward as well as forward
    for at in order:
        split, i = places[at]
        row = listing.rows[at]
        np.testing.assert_array_equal(pixels(row), arrays[f"{split}_images"][i])
        assert row.labels == {"pneumonia": int(arrays[f"{split}_labels"][i, 0])}
        word = "pneumonia" if row.labels["pneumonia"] else "no pneumonia"
        assert row.texts.captions[0].text == f"A chest radiograph of a child showing {word}."
        assert row.scans[0].modality == "CR"
    assert len({row.patient for row in listing.rows}) == 10
    assert "names no patients" in listing.notes[0]


def test_colour_multi_label_and_ordinal(tmp_path: Path) -> None:
    arrays = archive(tmp_path / "bloodmnist_64.npz", (64, 64, 3), 1, 8)
    rows = read_medmnist(tmp_path / "bloodmnist_64.npz").rows
    np.testing.assert_array_equal(pixels(rows[1]), arrays["train_images"][1])
    assert sum(v or 0 for v in rows[0].labels.values()) == 1 and len(rows[0].labels) == 8
    assert "melanocytic_nevus" not in rows[0].labels and "basophil" in rows[0].labels
    arrays = archive(tmp_path / "chestmnist.npz", (28, 28), 14, 2)
    rows = read_medmnist(tmp_path / "chestmnist.npz").rows
    assert list(rows[0].labels.values()) == arrays["train_labels"][0].tolist()
    for name, value in rows[0].labels.items():
        assert (name.replace("_", " ") in rows[0].texts.captions[0].text) == bool(value)
    arrays = archive(tmp_path / "retinamnist.npz", (28, 28, 3), 1, 5)
    row = read_medmnist(tmp_path / "retinamnist.npz").rows[0]
    assert row.labels == {f"grade_{g}": int(g == arrays["train_labels"][0, 0]) for g in range(5)}


def test_volumes_have_the_published_spacing_and_no_hounsfield_units(tmp_path: Path) -> None:
    arrays = archive(tmp_path / "fracturemnist3d.npz", (28, 28, 28), 1, 3)
    listing = read_medmnist(tmp_path / "fracturemnist3d.npz")
    study = StudyMaker(salt="s")(listing.rows[0])
    assert isinstance(study, EncodedStudy)
    (scan,) = read_scans(listing.rows[0])
    assert scan.unit == "arbitrary" and scan.modality == "CT" and scan.spacing_mm == pytest.approx((64 / 28,) * 3)
    assert scan.array is not None
    np.testing.assert_array_equal(scan.array * scan.slope + scan.intercept, arrays["train_images"][0])
    archive(tmp_path / "vesselmnist3d_64.npz", (8, 8, 8), 1, 2)
    nominal = read_medmnist(tmp_path / "vesselmnist3d_64.npz")
    assert nominal.rows[0].scans[0].spacing_mm == (1.0, 1.0, 1.0) and "nominal" in nominal.notes[1]


def test_every_set_says_something_different_of_each_class() -> None:
    words = medmnist_words()
    assert len(words["sets"]) == 18
    for about in words["sets"].values():
        assert len(set(about["classes"])) == len(about["classes"])
        assert about["licence"] and about["modality"].isupper()
        assert about["task"] != "binary" or set(about["positive"]) < {0, 1}


def test_what_is_no_such_set_is_refused(tmp_path: Path) -> None:
    archive(tmp_path / "Doe.npz", (28, 28), 1, 2)
    with pytest.raises(DataError, match="not named like") as told:
        read_medmnist(tmp_path / "Doe.npz")
    assert "Doe" not in str(told.value)
    assert len(read_medmnist(tmp_path / "Doe.npz", "pneumoniamnist").rows) == 10
    archive(tmp_path / "octmnist.npz", (28, 28), 1, 9)
    with pytest.raises(DataError, match="numbers from 0 to 3"):
        read_medmnist(tmp_path / "octmnist.npz")
    objects = {f"{s}_{k}": np.array([{}], object) for s in COUNTS for k in ("images", "labels")}
    np.savez(tmp_path / "breastmnist.npz", **objects)  # type: ignore[arg-type]
    with pytest.raises(DataError):
        read_medmnist(tmp_path / "breastmnist.npz")
    whole = (tmp_path / "Doe.npz").read_bytes()
    (tmp_path / "pneumoniamnist.npz").write_bytes(whole[: len(whole) // 2])
    assert not is_medmnist(tmp_path / "pneumoniamnist.npz")
    with pytest.raises(DataError):
        read_medmnist(tmp_path / "pneumoniamnist.npz")
    with pytest.raises(DataError, match="none numbered 99"):
        read_array(tmp_path / "Doe.npz", ("val_images", 99))


@pytest.mark.parametrize("name", ["pneumoniamnist", "adrenalmnist3d_64"])
def test_real_sets(shared_data: Path, name: str) -> None:
    path = shared_data / "medmnist" / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"no {name} in ../shared/data/medmnist")
    listing = read_medmnist(path)
    with np.load(path, allow_pickle=False) as real:
        assert len(listing.rows) == sum(len(real[f"{s}_labels"]) for s in COUNTS)
        last = real["val_images"][7]
    row = next(row for row in listing.rows if row.id.endswith("/val/7"))
    if name == "pneumoniamnist":
        np.testing.assert_array_equal(pixels(row), last)
    else:
        (scan,) = read_scans(row)
        assert scan.array is not None and scan.spacing_mm == (1.0, 1.0, 1.0)
        np.testing.assert_array_equal(scan.array, last)
    assert isinstance(StudyMaker(salt="s")(row), EncodedStudy)
