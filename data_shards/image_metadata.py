"""Planar images without what is written beside the pixels: EXIF, XMP, comments, names. No pixel changes.

JPEG, PNG and WebP are cut at their own boundaries and never encoded again; a TIFF, whose tags and pixels are woven
together, and anything that cannot be cut, is written anew without loss. What stays is listed, and all else goes, ICC
profiles and the orientation tag too. Neither was ever heeded: training sees pixels as they are stored
(`data_shards.planar.decode_image`), as open_clip does.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_shards.errors import DataError

_PNG = b"\x89PNG\r\n\x1a\n"
# Chunks that decoding needs, and plain numbers about colour and size with the only length they may have.
_PNG_KEPT = {b"IHDR": 13, b"PLTE": None, b"tRNS": None, b"IDAT": None, b"IEND": 0}
_PNG_NUMBERS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9}
_WEBP_KEPT = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH")
_WEBP_ALPHA = 0x10  # the only flag of VP8X that the kept chunks have
_JPEG_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_APP0, _APP14, _COM = 0xE0, 0xEE, 0xFE
_APPS = range(0xE0, 0xF0)
_SOS, _EOI = 0xDA, 0xD9


def stripped(image: bytes, ext: str) -> tuple[bytes, str]:
    """(image, extension) with nothing but the pixels and what decoding them needs.

    Raises: DataError where the pixels could not be kept exactly.
    """
    cut = {"jpg": _jpeg, "jpeg": _jpeg, "png": _png, "webp": _webp}.get(ext)
    try:
        if cut is not None:
            shorter = cut(image)
            if shorter == image or _same_pixels(shorter, image):
                return shorter, ext
    except (OSError, SyntaxError, ValueError, struct.error, IndexError):
        pass  # not laid out as the standard says, and yet decoded: written anew
    for ext, options in (("png", {}), ("tif", {"compression": "tiff_adobe_deflate"})):
        found = _written(image, ext, options)
        if found is not None and _same_pixels(found, image):
            return found, ext
    raise DataError(
        "the image cannot be separated from its metadata",
        "EXIF tags and comments may name the patient",
        "save it as PNG without metadata",
    )


def _jpeg(image: bytes) -> bytes:
    """ITU T.81 B.1: segments of marker and length; in a scan, entropy-coded bytes up to the next marker."""
    if image[:2] != b"\xff\xd8":
        raise ValueError
    kept, at = [image[:2]], 2
    while True:
        start = at
        if image[at] != 0xFF:
            raise ValueError
        while image[at] == 0xFF:  # fill bytes
            at += 1
        marker = image[at]
        at += 1
        if marker == _EOI:
            return b"".join([*kept, b"\xff\xd9"])  # what follows is a preview, a second image or a maker's note
        if marker in _JPEG_ALONE:
            kept.append(image[start:at])
            continue
        (length,) = struct.unpack_from(">H", image, at)
        body, at = image[at + 2 : at + length], at + length
        if at > len(image) or length < 2:
            raise ValueError
        if marker in _APPS or marker == _COM:
            if marker == _APP0 and body[:5] == b"JFIF\0" and len(body) >= 14:
                kept.append(b"\xff\xe0\x00\x10" + body[:12] + b"\0\0")  # without its thumbnail
            elif marker == _APP14 and body[:5] == b"Adobe" and len(body) >= 12:
                kept.append(b"\xff\xee\x00\x0e" + body[:12])  # says how colours are stored
            continue
        kept.append(bytes((0xFF, marker)) + struct.pack(">H", length) + body)
        if marker == _SOS:
            end = _scan_end(image, at)
            kept.append(image[at:end])
            at = end


def _scan_end(image: bytes, at: int) -> int:
    """Where the entropy-coded bytes end: at a marker that is neither a stuffed 0xFF nor a restart."""
    while True:
        at = image.index(b"\xff", at)
        following = image[at + 1]
        if following == 0 or following in _JPEG_ALONE:
            at += 2
        elif following == 0xFF:
            at += 1
        else:
            return at


def _png(image: bytes) -> bytes:
    if image[:8] != _PNG:
        raise ValueError
    kept, at = [_PNG], 8
    while True:
        length, kind = struct.unpack_from(">I4s", image, at)
        whole = image[at : at + 12 + length]
        if len(whole) != 12 + length or zlib.crc32(whole[4:-4]) != struct.unpack(">I", whole[-4:])[0]:
            raise ValueError
        at += 12 + length
        wanted = _PNG_KEPT.get(kind, _PNG_NUMBERS.get(kind, -1))
        if wanted is None or wanted == length:
            kept.append(whole)
        if kind == b"IEND":
            return b"".join(kept)


def _webp(image: bytes) -> bytes:
    if image[:4] != b"RIFF" or image[8:12] != b"WEBP":
        raise ValueError
    (size,) = struct.unpack_from("<I", image, 4)
    kept: list[bytes] = []
    for kind, body in _riff(image[12 : 8 + size]):
        if kind == b"VP8X":
            body = bytes((body[0] & _WEBP_ALPHA, 0, 0, 0)) + body[4:10]
        if kind in _WEBP_KEPT:
            kept.append(kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2))
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _riff(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 8 + length]
        if len(body) != length:
            raise ValueError
        yield kind, body
        at += 8 + length + length % 2


def _written(image: bytes, ext: str, options: dict[str, Any]) -> bytes | None:
    """Decoded and encoded again without loss; None where the format has no such pixels."""
    from PIL import Image

    with Image.open(io.BytesIO(image)) as opened:
        opened.load()
        plain = Image.frombytes(opened.mode, opened.size, opened.tobytes())
        if opened.mode == "P" and opened.palette is not None:
            plain.putpalette(opened.palette)
    file = io.BytesIO()
    try:
        plain.save(file, {"png": "PNG", "tif": "TIFF"}[ext], **options)
    except (OSError, ValueError, KeyError):
        return None
    return file.getvalue()


def _same_pixels(found: bytes, image: bytes) -> bool:
    from PIL import Image

    with Image.open(io.BytesIO(found)) as new, Image.open(io.BytesIO(image)) as old:
        if new.size != old.size:
            return False
        if "transparency" in old.info:
            return new.mode == old.mode and np.array_equal(
                np.asarray(new.convert("RGBA")), np.asarray(old.convert("RGBA"))
            )
        deep = old.mode.startswith(("I", "F"))
        if (deep and not new.mode.startswith(("I", "F"))) or (not deep and new.mode != old.mode):
            return False
        mode = "RGB" if old.mode == "P" else new.mode
        return np.array_equal(np.asarray(new.convert(mode)), np.asarray(old.convert(mode) if mode == "RGB" else old))
