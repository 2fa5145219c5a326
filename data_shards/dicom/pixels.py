"""Pixel data of DICOM objects, decoded by the codecs this project chose: none of them is under the GPL.

Tried in this order, as far as each knows the transfer syntax: python-gdcm (JPEG, JPEG lossless, JPEG-LS, JPEG 2000),
pyjpegls (JPEG-LS), pillow (8-bit JPEG, JPEG 2000), pydicom itself (RLE, and everything uncompressed).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data_shards.dicom.header import quiet
from data_shards.errors import DataError

DECODERS = ("gdcm", "pyjpegls", "pillow", "pydicom")  # never pylibjpeg: its JPEG decoder is under the GPL

_IN_THE_EXTRA = (
    "JPEGLossless", "JPEGLosslessSV1", "JPEGLSLossless", "JPEGLSNearLossless", "JPEG2000Lossless", "JPEG2000",
    "JPEGBaseline8Bit",
)  # fmt: skip


def decoders_for(syntax: str) -> tuple[str, ...]:
    """Which of our decoders are installed and know a compressed transfer syntax (its UID), in the order tried."""
    from pydicom.pixels import get_decoder

    try:
        return tuple(name for name in DECODERS if name in get_decoder(syntax).available_plugins)
    except NotImplementedError:  # a syntax that pydicom does not know
        return ()


def decode(item: Any, index: int = 0) -> np.ndarray:
    """One frame's stored values, rows x columns integers. Raises: DataError where no codec reads it."""
    from pydicom.pixels import get_decoder

    syntax = getattr(getattr(item, "file_meta", None), "TransferSyntaxUID", None) or _guessed(item)
    names = decoders_for(syntax) if syntax.is_encapsulated else ("",)
    failure = "no codec for it is installed"
    for name in names:
        try:
            with quiet():
                array, _ = get_decoder(syntax).as_array(item, index=index, raw=True, decoding_plugin=name)
        except Exception as error:  # codecs raise whatever they like
            failure = type(error).__name__
            continue
        return array
    if syntax.keyword in _IN_THE_EXTRA and not {"gdcm", "pyjpegls"} & set(names):
        fix = "pip install 'voxclip[dicom]' (python-gdcm and pyjpegls), or decompress the series first"
    else:
        fix = "copy or export the series again, or decompress it first (gdcmconv --raw)"
    raise DataError(
        f"a slice's pixel data cannot be decoded ({syntax.name}: {failure})", "the volume would have holes", fix
    )


def lossy_words(item: Any) -> str:
    """How an object was compressed with loss, "" where it was not."""
    from pydicom.uid import JPEG2000, UID, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

    syntax = UID(getattr(getattr(item, "file_meta", None), "TransferSyntaxUID", ""))
    ratio = item.get("LossyImageCompressionRatio")
    told = str(item.get("LossyImageCompression") or "") == "01"
    # The JPEG 2000 syntax may also hold lossless streams: there only the header's word counts.
    if not told and syntax not in (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless):
        return ""
    by = f" ({syntax.name})" if syntax in (JPEG2000, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless) else ""
    at = f", ratio {ratio}" if isinstance(ratio, float | str) else ""
    return f"compressed with loss{by}{at}"


def _guessed(item: Any) -> Any:
    """The syntax of a data set without file meta information, as pydicom found it while reading."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    implicit, little = item.original_encoding
    guessed = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    if item.get("file_meta") is None and not hasattr(item, "file_meta"):
        from pydicom.dataset import FileMetaDataset

        item.file_meta = FileMetaDataset()
    item.file_meta.TransferSyntaxUID = guessed
    return guessed
