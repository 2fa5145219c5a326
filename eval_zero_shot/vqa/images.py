"""Features of the images that questions are about: files in a folder, or studies of a shard set; and of a blank image.

Shapes: S images, D embedding, C channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.geometry import AIR_HU
from data_shards.progress import track
from eval_zero_shot.embedding import StudyBatch, embed_batches
from eval_zero_shot.inputs import Inputs


@dataclass(frozen=True)
class ImageFeatures:
    """features_SD: unit vectors. number: row of an image by the name items give it; what is not there is missing.
    unreadable: how many of the missing are there but cannot be read. sha256: of the files' bytes, None of studies of
    shards, whose manifest says the same."""

    features_SD: NDArray[np.float32]
    number: dict[str, int]
    unreadable: int = 0
    sha256: str | None = None


def image_features(
    inputs: Inputs, wanted: Sequence[str], folder: Path | None, forms: Sequence[str] = ("{}",)
) -> ImageFeatures:
    """Every image encoded once. folder None: `wanted` are keys of `inputs.shards`. forms: how a name becomes a file
    below the folder, tried in order."""
    if folder is None:
        row_of = {inputs.shards.key(row): row for row in range(len(inputs.shards))}
        there = [name for name in wanted if name in row_of]
        if not there:
            return _nothing()
        features = inputs.features([row_of[name] for name in there]).features_ND
        return ImageFeatures(features, {name: i for i, name in enumerate(there)})
    files = {}
    for name in wanted:
        candidates = (folder / form.format(name) for form in forms)
        file = next((path for path in candidates if path.exists()), None)
        if file is not None:
            files[name] = file
    unreadable: list[str] = []
    batches = list_batches(inputs, files, unreadable)
    first = next(batches, None)
    if first is None:
        return _nothing(len(unreadable))

    def every() -> Iterator[StudyBatch]:
        yield first
        yield from batches

    found = embed_batches(inputs.loaded.model, every(), batch_size=inputs.batch_size, precision=inputs.precision)
    number = {name: i for i, name in enumerate(found.keys)}
    return ImageFeatures(found.features_ND, number, len(unreadable), _sha256({name: files[name] for name in number}))


def _sha256(images: dict[str, Path]) -> str:
    """Of the bytes of every image, by the name that items give it; of a series, of its files in the order of names."""
    digest = hashlib.sha256()
    for name, path in sorted(images.items()):
        for file in sorted(path.iterdir()) if path.is_dir() else (path,):
            with file.open("rb") as opened:
                digest.update(f"{name}\0{hashlib.file_digest(opened, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()


def list_batches(inputs: Inputs, files: dict[str, Path], unreadable: list[str]) -> Iterator[StudyBatch]:
    """Crops of readable files, about a batch at a time; names of the others are added to `unreadable`."""
    from data_shards.errors import DataError

    keys: list[str] = []
    crops: list[NDArray[np.float32]] = []
    for name, file in track(files.items(), len(files), "images", "images"):
        try:
            images = inputs.loaded.preprocess.crops(file).numpy()
        except (DataError, OSError):
            unreadable.append(name)
            continue
        keys += [name] * len(images)
        crops.append(images)
        if len(keys) >= inputs.batch_size:
            yield StudyBatch(tuple(keys), tuple(keys), np.concatenate(crops))
            keys, crops = [], []
    if keys:
        yield StudyBatch(tuple(keys), tuple(keys), np.concatenate(crops))


def blank_feature(inputs: Inputs) -> NDArray[np.float32]:
    """Unit vector [D] of an image of zeros, or a volume of air of the view's size, through the same preprocessing."""
    loaded = inputs.loaded
    blank = blank_crops(loaded)
    batch = StudyBatch(("blank",) * len(blank), ("blank",) * len(blank), blank)
    found = embed_batches(loaded.model, iter([batch]), batch_size=inputs.batch_size, precision=inputs.precision)
    return found.features_ND[0]


def blank_crops(loaded: Any) -> NDArray[np.float32]:
    """[crops, C, (D,) H, W] of a blank image."""
    if loaded.geometry.kind == "image":
        return loaded.preprocess.crops(np.zeros((*loaded.geometry.size, 3), np.uint8)).numpy()
    if loaded.geometry.kind == "slice":
        return loaded.preprocess.crops(np.full((64, 64, 64), AIR_HU, np.int16), (1.0, 1.0, 1.0)).numpy()
    air = np.full(loaded.view.size, AIR_HU, np.int16)
    return loaded.preprocess.crops(air, loaded.geometry.spacing_mm or (1.0, 1.0, 1.0)).numpy()


def _nothing(unreadable: int = 0) -> ImageFeatures:
    return ImageFeatures(np.empty((0, 0), np.float32), {}, unreadable)
