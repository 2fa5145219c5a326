"""One scan or the scans of a study, in whatever form a user has them, to what the encoder was trained on: the
arithmetic of the training stream itself."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_shards.preprocess import (
    SEVERAL,
    AnyGeometry,
    Geometry,
    PlanarGeometry,
    View,
    crops_of,
    percentiles_of,
    stacked,
)
from data_shards.volume import read_image, read_volume
from encoders.errors import ReleaseError


@dataclass(frozen=True)
class Preprocess:
    """`preprocess(x)` -> float32 tensor C,D,H,W (volumes) or C,H,W (images, slices): the view of x, picklable.

    Volumes and slices of them: a NIfTI or .npy path, a folder with one DICOM series, a `data_shards` Scan, or an array
    D,H,W in HU that grows toward the head, the front and the patient's right, with `spacing_mm` (z, y, x).
    A release that reads several scans of a study together (`geometry.scans_per_study`) takes a list of them in the
    order in which they are stored, as many as there are up to that number, or one alone.
    Images: a path, encoded bytes, a PIL image, a Scan, or an array H,W or H,W,3.
    """

    geometry: AnyGeometry
    view: View

    def __call__(self, x: Any, spacing_mm: Sequence[float] | None = None, modality: str | None = None) -> Tensor:
        """Raises:
        DataError: the file is no such scan (4D, two slices, NaN, unreadable ...), or its spacing is unknown.
        ReleaseError: a kind of input this release does not take.
        """
        if self.view.kind in SEVERAL:
            raise ReleaseError(
                f"this view ({self.view.kind}) gives several crops",
                "one of them would stand for the scan",
                "use .crops(x)",
            )
        return self.crops(x, spacing_mm, modality)[0]

    def crops(self, x: Any, spacing_mm: Sequence[float] | None = None, modality: str | None = None) -> Tensor:
        """[crops, C, ...]: every crop of the view, one unless it is of kind "sliding" or "multi". Raises the same."""
        if isinstance(self.geometry, PlanarGeometry):
            return torch.from_numpy(crops_of(_encoded(x, modality), {}, self.geometry, self.view))
        several = self.geometry.scans_per_study > 1 and isinstance(x, list | tuple)
        scans = [_volume(one, spacing_mm, modality) for one in (x if several else [x])]
        for array, meta in scans:
            if self.geometry.windows_in == "percentile" and "percentiles" not in meta:  # a bare array
                meta["percentiles"] = percentiles_of(array, "arbitrary")
        if isinstance(self.geometry, Geometry) and self.geometry.scans_per_study > 1:
            return torch.from_numpy(stacked(scans, self.geometry, self.view)[None])
        return torch.from_numpy(crops_of(*scans[0], self.geometry, self.view))


def _volume(x: Any, spacing_mm: Sequence[float] | None, modality: str | None) -> tuple[np.ndarray, dict[str, Any]]:
    if isinstance(x, str | os.PathLike):
        x = read_volume(x, modality, spacing_mm)
    if getattr(x, "array", None) is not None and hasattr(x, "to_json"):  # a Scan
        return x.array, x.to_json()
    if isinstance(x, Tensor):
        x = x.numpy(force=True)
    if not isinstance(x, np.ndarray) or x.ndim != 3 or x.dtype.kind not in "iuf":
        raise _refused(x, "volumes: a NIfTI or .npy path, a DICOM folder, a Scan, or a numeric array D,H,W")
    if not np.isfinite(x).all():
        raise ReleaseError(
            "the volume holds NaN or infinite voxels",
            "its features would be NaN",
            "fill what lies outside the scan with -1024 HU",
        )
    return x, {"spacing_mm": None if spacing_mm is None else [float(s) for s in spacing_mm]}


def _encoded(x: Any, modality: str | None) -> bytes:
    from PIL import Image

    if isinstance(x, str | os.PathLike):
        x = read_image(x, modality)
    if isinstance(x, bytes):
        return x
    if isinstance(getattr(x, "image", None), bytes):  # a Scan
        return x.image
    if isinstance(x, np.ndarray) and x.dtype in (np.uint8, np.uint16) and x.shape[2:] in ((), (3,)):
        x = Image.fromarray(x)
    if not isinstance(x, Image.Image):
        raise _refused(x, "images: a path, bytes, a PIL image, a Scan, or an 8- or 16-bit array H,W or H,W,3")
    encoded = io.BytesIO()
    x.save(encoded, "TIFF")  # without loss, and it knows every mode of PIL
    return encoded.getvalue()


def _refused(x: Any, takes: str) -> ReleaseError:
    given = f"an array of shape {x.shape} and type {x.dtype}" if isinstance(x, np.ndarray) else type(x).__name__
    return ReleaseError(
        f"{given} cannot be preprocessed here", "the encoder was trained on another kind of input", f"it takes {takes}"
    )
