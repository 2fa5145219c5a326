"""Radiographs in a DICOM tree: images, one by one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import uid

from data_shards import DataError
from data_shards.reading import read_scan
from data_shards.sources.dicom_tree import read_dicom_tree
from data_shards.volume import read_image
from tests.data_shards.dicom_files import dataset, save, study


def test_radiographs_are_images_of_a_study(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 4000, (30, 40)).astype("<u2")
    said: dict[str, Any] = {"Modality": "DX", "ImagePositionPatient": None, "BitsStored": 12, "HighBit": 11}

    def image(n: int, view: str | None, **more: Any) -> Any:
        about = study(1, SeriesInstanceUID=f"1.2.1.{n}", SeriesNumber=n, ViewPosition=view, PixelData=grey.tobytes())
        return dataset(grey, **{**about, **said, **more})

    save([image(1, "LL"), image(2, "PA", PhotometricInterpretation="MONOCHROME1")], tmp_path / "a", uid.JPEGLosslessSV1)
    save([image(3, "PA", PresentationIntentType="FOR PROCESSING"), image(4, "AP", BurnedInAnnotation="YES")], tmp_path)
    listing = read_dicom_tree(tmp_path, series="all")
    (row,) = listing.rows
    assert set(listing.notes) == {
        "left out: 1 series (1 files): raw detector image (for processing)",
        "left out: 1 series (1 files): words are burned into the pixels, perhaps a name",
    }
    frontal, lateral = (read_scan(file) for file in row.scans)
    assert [file.role for file in row.scans] == ["primary", "secondary"]
    assert (frontal.ext, frontal.modality, frontal.unit) == ("png", "DX", "arbitrary")
    assert frontal.image is not None and lateral.image is not None
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(lateral.image))), grey)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(frontal.image))), grey.max() - grey)
    slice_ = next(save([dataset(grey)], tmp_path / "ct").iterdir())
    with pytest.raises(DataError, match=r"one image is read here(.|\n)*not of modality CR, DX, MG"):
        read_image(slice_)
