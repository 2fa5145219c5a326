"""Features of altered test studies: shuffled, with corners or border blanked, blank, and their average. Each study is
read once for all of these.

Legend: C channels, D,H,W voxels of a crop (an image has no D), N studies, F features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.inputs import Inputs

CORNER, FRAME = 8, 16  # a blanked corner is a side's 1/8, the frame's width 1/16
SHUFFLED, CORNERS, FRAMED, BLANK, AVERAGE = "shuffled", "corners blanked", "frame blanked", "blank", "average"
PER_STUDY = (SHUFFLED, CORNERS, FRAMED)
Crop = NDArray[np.float32]


def blank_values(geometry: Any) -> NDArray[np.float32]:
    """What an input holds where there is nothing, [C]: a black image, or the padding of volumes."""
    if geometry.kind == "slice":
        air = geometry.pad_hu if geometry.windows_in == "unit" else -np.inf
        low, high = np.broadcast_to(geometry.windows, (3, 2)).T
        grey = np.clip((air - low) / (high - low), 0, 1)
        return ((grey - geometry.mean) / geometry.std).astype(np.float32)
    if geometry.kind == "image":
        return (-np.asarray(geometry.mean) / np.asarray(geometry.std)).astype(np.float32)
    if geometry.windows_in != "unit":
        return np.full(geometry.channels, -1.0, np.float32)
    low, high = np.asarray(geometry.windows, dtype=np.float64).T
    each = np.clip((geometry.pad_hu - low) / (high - low) * 2 - 1, -1, 1).astype(np.float32)
    return np.tile(each, geometry.scans_per_study)


def shuffled(crop: Crop, key: str, seed: int) -> Crop:
    """The voxels of a crop in another order, all channels alike; drawn from the study's key and the seed."""
    number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
    order = np.random.Generator(np.random.Philox([seed, number])).permutation(crop[0].size)
    return crop.reshape(len(crop), -1)[:, order].reshape(crop.shape)


def corners_blanked(crop: Crop, blank_C: NDArray[np.float32]) -> Crop:
    """The four corners of the plane, through all slices, set to blank."""
    out = crop.copy()
    h, w = (max(1, round(side / CORNER)) for side in crop.shape[-2:])
    for rows in (slice(h), slice(-h, None)):
        for columns in (slice(w), slice(-w, None)):
            out[..., rows, columns] = _per_channel(blank_C, crop)
    return out


def frame_blanked(crop: Crop, blank_C: NDArray[np.float32]) -> Crop:
    """A strip along each side of the plane, through all slices, set to blank."""
    h, w = (max(1, round(side / FRAME)) for side in crop.shape[-2:])
    out = np.broadcast_to(_per_channel(blank_C, crop), crop.shape).copy()
    out[..., h:-h, w:-w] = crop[..., h:-h, w:-w]
    return out


def with_absent(changed: Crop, crop: Crop, geometry: Any) -> Crop:
    """A changed crop in which the scans that a study lacks are still absent."""
    if getattr(geometry, "scans_per_study", 1) > 1:
        changed[crop.reshape(len(crop), -1).max(1) <= -1] = -1
    return changed


def _per_channel(blank_C: NDArray[np.float32], crop: Crop) -> NDArray[np.float32]:
    return blank_C.reshape(-1, *[1] * (crop.ndim - 1))


def altered_features(inputs: Inputs, rows: Sequence[int] | NDArray, seed: int) -> dict[str, NDArray[np.float32]]:
    """Unit vectors by alteration: [N, F] in the order of rows for PER_STUDY, [1, F] for BLANK and AVERAGE (of all crops
    of all studies). Kept in the cache of features."""
    from eval_zero_shot.embedding import StudyFeatures, embed_batches
    from eval_zero_shot.feature_cache import identity_of
    from eval_zero_shot.release import image_encoder

    loaded = inputs.loaded

    def made() -> StudyFeatures:
        return embed_batches(
            image_encoder(loaded), _batches(inputs, rows, seed), batch_size=inputs.batch_size,
            precision=inputs.precision, total=len(rows) * len(PER_STUDY) + 2, progress=True,
        )  # fmt: skip

    if inputs.cache is None:
        found = made()
    else:
        identity = identity_of(loaded, inputs.shards, rows, inputs.precision)
        found = inputs.cache.get_or_make({**identity, "altered": [*PER_STUDY, CORNER, FRAME, seed]}, made)
    place = {key: i for i, key in enumerate(found.keys)}
    keys = [inputs.shards.key(int(row)) for row in rows]
    out = {name: found.features_ND[[place[f"{name}/{key}"] for key in keys]] for name in PER_STUDY}
    return out | {name: found.features_ND[[place[name]]] for name in (BLANK, AVERAGE)}


def _batches(inputs: Inputs, rows: Sequence[int] | NDArray, seed: int) -> Iterator[Any]:
    from eval_zero_shot.embedding import StudyBatch, study_batches

    blank_C = blank_values(inputs.loaded.geometry)
    total: Any = 0.0
    crops = 0
    batches = study_batches(inputs.shards, rows, inputs.loaded.geometry, inputs.loaded.view, inputs.batch_size)
    for batch in batches:
        total, crops = total + batch.images.sum(axis=0, dtype=np.float64), crops + len(batch.images)
        changed = {
            SHUFFLED: [shuffled(crop, key, seed) for crop, key in zip(batch.images, batch.keys, strict=True)],
            CORNERS: [corners_blanked(crop, blank_C) for crop in batch.images],
            FRAMED: [frame_blanked(crop, blank_C) for crop in batch.images],
        }
        for name, images in changed.items():
            pairs = zip(images, batch.images, strict=True)
            stack = np.stack([with_absent(image, crop, inputs.loaded.geometry) for image, crop in pairs])
            yield replace(batch, keys=tuple(f"{name}/{key}" for key in batch.keys), images=stack)
    average = (total / crops).astype(np.float32)
    blank = np.broadcast_to(_per_channel(blank_C, average), average.shape)
    yield StudyBatch((BLANK, AVERAGE), ("", ""), np.stack([blank, average]).astype(np.float32))
