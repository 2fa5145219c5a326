"""MedMNIST archives (.npz), 2D and 3D: each item a study with labels by name and captions from templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data_shards.errors import DataError
from data_shards.schema import Caption, Texts
from data_shards.sources.base import Listing, ScanFile, StudyRow
from data_shards.sources.npz import DAMAGED, array_shape

SPLITS = ("train", "val", "test")
WORDS = Path(__file__).with_name("medmnist.yaml")


def is_medmnist(path: Path) -> bool:
    """Whether a .npz has the arrays of a MedMNIST set: train_images, train_labels, val_…, test_…"""
    if path.suffix.lower() != ".npz":
        return False
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")} <= set(archive.files)
    except DAMAGED:
        return False


def medmnist_words() -> dict[str, Any]:
    """The YAML of all sets: captions, and per set its view, modality, task, licence and classes."""
    import yaml

    return yaml.safe_load(WORDS.read_text(encoding="utf-8"))


def read_medmnist(path: Path, name: str | None = None) -> Listing:
    """Every item of the three splits as a study, in the order train, val, test.

    Args:
        path: such as pneumoniamnist.npz or adrenalmnist3d_64.npz; the file's name tells the set.
        name: of the set, where the file is named otherwise.
    Labels: of two classes one label; else one per class, 1 or 0. meta: `class` (the number, not for multi-label) and
    `set`. Raises: DataError for a file that is no such set, labels that its set has not, pickled objects.
    """
    words = medmnist_words()
    known = words["sets"]
    name = name.lower() if name else set_name(path)
    if name not in known:
        raise DataError(
            "the file is not named like a MedMNIST set",
            "nobody could tell what its label numbers mean",
            f"say which it is; known are {', '.join(sorted(known))}",
        )
    about = known[name]
    rows: list[StudyRow] = []
    spacing: tuple[float, float, float] | None = None
    for split in SPLITS:
        shape, dtype = array_shape(path, f"{split}_images")
        labels = _labels(path, split, shape[0], about)
        if dtype != np.uint8:
            raise DataError(f"the images are {dtype}, not uint8", fix="give the archive as MedMNIST publishes it")
        is_volume = len(shape) == 4 and shape[-1] != 3
        spacing = _spacing(about, shape[1]) if is_volume else None
        for i, label in enumerate(labels):
            scan = ScanFile(str(path), item=(f"{split}_images", i), modality=about["modality"], spacing_mm=spacing)
            row_id = f"{name}/{split}/{i}"
            meta: dict[str, Any] = {"set": name}
            if about["task"] != "multi-label":
                meta["class"] = int(label[0])
            texts = Texts(captions=_captions(words, about, label))
            named = _named(about, label)
            rows.append(StudyRow(len(rows) + 1, row_id, (scan,), row_id, split, texts, named, meta))
    notes = ["MedMNIST names no patients: every item counts as a patient of its own, also several of one person"]
    if spacing is not None and not (about.get("extent_mm") or {}).get(shape[1]):
        notes.append("its voxel spacing is not published: 1 mm is nominal")
    return Listing(rows, notes=tuple(notes))


def licence_of(name: str) -> str:
    """SPDX licence of a set, "" for a name that is none."""
    return medmnist_words()["sets"].get(name, {}).get("licence", "")


def set_name(path: Path) -> str:
    """ "pneumoniamnist_224.npz" -> "pneumoniamnist"."""
    return path.name.split(".", 1)[0].split("_", 1)[0].lower()


def _labels(path: Path, split: str, items: int, about: dict[str, Any]) -> np.ndarray:
    """(items, 1) class numbers, or (items, classes) of 0 and 1."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            labels = archive[f"{split}_labels"]
    except DAMAGED as error:
        raise DataError(f"the labels cannot be read ({type(error).__name__})", fix="download it again") from None
    classes, many = len(about["classes"]), about["task"] == "multi-label"
    most = 1 if many else classes - 1
    shape = (items, classes if many else 1)
    if (
        labels.shape != shape
        or labels.dtype.kind not in "iub"
        or (labels.size and (labels.min() < 0 or labels.max() > most))
    ):
        raise DataError(
            f"the {split} labels are not {shape[0]} x {shape[1]} numbers from 0 to {most}",
            "images would be taught the wrong words",
            "check that the file is the set its name says",
        )
    return labels


def _spacing(about: dict[str, Any], voxels: int) -> tuple[float, float, float]:
    extent = (about.get("extent_mm") or {}).get(voxels, voxels)
    return (extent / voxels, extent / voxels, extent / voxels)


def _label_name(words: str) -> str:
    """ "a melanocytic nevus" -> "melanocytic_nevus"."""
    kept = "".join(c if c.isalnum() or c == "-" else " " for c in words.lower()).split()
    return "_".join(kept[1:] if kept[0] in ("a", "an", "the") else kept)


def _named(about: dict[str, Any], label: np.ndarray) -> dict[str, int | None]:
    if about["task"] == "binary":
        ((number, name),) = about["positive"].items()
        return {name: int(label[0] == number)}
    names = about.get("labels") or [_label_name(words) for words in about["classes"]]
    if about["task"] == "multi-label":
        return {name: int(value) for name, value in zip(names, label, strict=True)}
    return {name: int(i == label[0]) for i, name in enumerate(names)}


def _captions(words: dict[str, Any], about: dict[str, Any], label: np.ndarray) -> tuple[Caption, ...]:
    classes = about["classes"]
    found = [classes[i] for i in np.flatnonzero(label)] if about["task"] == "multi-label" else [classes[int(label[0])]]
    said = words["many"].join(found) or about["none"]
    view = about["view"]
    # An abbreviation, CT or MR, keeps its capitals.
    small = view[0].lower() + view[1:] if view[1:2] == " " or view[1:2].islower() else view
    captions = []
    for template in words["captions"]:
        text = template.format(view=view, view_small=small, words=said)
        captions.append(Caption(text[0].upper() + text[1:]))
    return tuple(captions)
