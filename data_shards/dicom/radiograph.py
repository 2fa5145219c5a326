"""A projection radiograph in DICOM to a PNG of the same depth: bright bones, no presentation window."""

from __future__ import annotations

import io

import numpy as np

from data_shards.dicom.header import not_a_radiograph, quiet, text_of
from data_shards.dicom.pixels import decode
from data_shards.errors import DataError


def png_of(data: bytes) -> tuple[bytes, str]:
    """The bytes of a DICOM file -> (PNG of 8 or 16 bits, modality).

    Stored values as they are, from 0 on; MONOCHROME1 is inverted, so that air is dark in every image. Windows of the
    header are not applied: geometries scale deep images by their percentiles.
    Raises: DataError for what is no single grey radiograph, raw detector images, annotations burned into the pixels,
    and pixel data that cannot be decoded.
    """
    import pydicom
    from PIL import Image

    try:
        with quiet():
            item = pydicom.dcmread(io.BytesIO(data))
    except Exception as error:  # a damaged file raises anything
        raise DataError(
            f"the DICOM file is damaged ({type(error).__name__})", "half an image would be shown", "copy it again"
        ) from None
    if "PixelData" not in item:
        raise DataError("the DICOM file is cut off, or holds no image", "there is nothing to see", "copy it again")
    if why_not := not_a_radiograph(item):
        raise DataError(
            f"one image is read here, and this DICOM is not one: {why_not}", fix="give a folder for volumes"
        )
    stored = decode(item).astype(np.int64)
    stored -= min(0, int(stored.min()))
    if text_of(item, "PhotometricInterpretation") == "MONOCHROME1":
        stored = stored.max() - stored
    deep = stored.max() > np.iinfo(np.uint8).max
    out = io.BytesIO()
    Image.fromarray(stored.astype(np.uint16 if deep else np.uint8)).save(out, "PNG")
    return out.getvalue(), text_of(item, "Modality") or "CR"
