"""Metadata planted in every place that image formats have for it goes, and no pixel changes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin

from data_shards.image_metadata import stripped

WORD = "MUSTERMANN-4711"


def picture(mode: str = "L", size: tuple[int, int] = (40, 31)) -> Image.Image:
    rng = np.random.default_rng(0)
    channels = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    array = rng.integers(0, 256, (size[1], size[0], channels)).astype(np.uint8)
    return Image.fromarray(array[..., 0] if channels == 1 else array, mode)


def exif() -> bytes:
    tags = Image.Exif()
    tags[0x010E], tags[0x013B], tags[0x0112] = WORD, WORD, 6  # description, artist, orientation
    return tags.tobytes()


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(mode: str = "RGB", **options: Any) -> bytes:
    plain = saved(
        picture(mode), "JPEG", quality=80, exif=exif(), comment=WORD, icc_profile=b"icc " + WORD.encode(), **options
    )
    app13 = b"Photoshop 3.0\x008BIM" + WORD.encode()
    segment = b"\xff\xed" + struct.pack(">H", len(app13) + 2) + app13
    return plain[:2] + segment + plain[2:] + WORD.encode()  # and behind the end of the image


def jfif_thumbnail() -> bytes:
    plain = saved(picture("L"), "JPEG")
    thumbnail = (WORD.encode() + bytes(3 * 3 * 3))[:27]
    body = b"JFIF\0\x01\x01\0\0\x01\0\x01\x03\x03" + thumbnail
    return plain[:2] + b"\xff\xe0" + struct.pack(">H", len(body) + 2) + body + plain[20:]


def png(image: Image.Image, **options: Any) -> bytes:
    words = PngImagePlugin.PngInfo()
    words.add_text("Patient", WORD)
    words.add_text("PatientZ", WORD * 4, zip=True)
    words.add_itxt("PatientI", WORD)
    plain = saved(
        image, "PNG", pnginfo=words, exif=exif(), icc_profile=b"icc " + WORD.encode(), dpi=(96, 96), **options
    )
    private = b"paTi" + WORD.encode()
    chunk = struct.pack(">I", len(WORD)) + private + struct.pack(">I", zlib.crc32(private))
    return plain[:-12] + chunk + plain[-12:] + WORD.encode()


def deep() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 60000, (31, 40)).astype(np.uint16))


def palette() -> Image.Image:
    return picture("RGB").quantize(64)


def tiff(image: Image.Image, **options: Any) -> bytes:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270], tags[305], tags[65000] = WORD, WORD, WORD
    return saved(image, "TIFF", tiffinfo=tags, **options)


CASES: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "baseline JPEG": (jpeg, "jpg", "jpg"),
    "grey JPEG": (lambda: jpeg("L"), "jpg", "jpg"),
    "progressive JPEG": (lambda: jpeg(progressive=True), "jpg", "jpg"),
    "CMYK JPEG with an Adobe segment": (lambda: jpeg("CMYK"), "jpeg", "jpeg"),
    "JPEG with restart markers": (lambda: jpeg(restart_marker_rows=1), "jpg", "jpg"),
    "JPEG with a thumbnail": (jfif_thumbnail, "jpg", "jpg"),
    "grey PNG": (lambda: png(picture("L")), "png", "png"),
    "RGBA PNG": (lambda: png(picture("RGBA")), "png", "png"),
    "16-bit PNG": (lambda: png(deep()), "png", "png"),
    "palette PNG with transparency": (lambda: png(palette(), transparency=3), "png", "png"),
    "lossy WebP": (lambda: saved(picture("RGB"), "WEBP", exif=exif(), icc_profile=WORD.encode()), "webp", "webp"),
    "WebP with alpha": (lambda: saved(picture("RGBA"), "WEBP", exif=exif(), xmp=WORD.encode()), "webp", "webp"),
    "lossless WebP": (lambda: saved(picture("RGB"), "WEBP", lossless=True, exif=exif()), "webp", "webp"),
    "8-bit TIFF": (lambda: tiff(picture("L")), "tif", "png"),
    "RGB TIFF": (lambda: tiff(picture("RGB"), compression="tiff_lzw"), "tif", "png"),
    "16-bit TIFF": (lambda: tiff(deep()), "tif", "png"),
    "palette TIFF": (lambda: tiff(palette()), "tif", "png"),
    "float TIFF": (lambda: tiff(Image.fromarray(np.asarray(deep()).astype(np.float32))), "tiff", "tif"),
    "32-bit TIFF": (lambda: tiff(Image.fromarray(np.asarray(deep()).astype(np.int32) * 1000)), "tiff", "tif"),
    "CMYK TIFF": (lambda: tiff(picture("CMYK")), "tiff", "tif"),
}


@pytest.mark.parametrize("case", CASES)
def test_metadata_goes_and_pixels_stay(case: str) -> None:
    import torch

    from data_shards.planar import decode_image

    make, ext, wanted = CASES[case]
    image = make()
    assert WORD.encode() in image or case == "palette PNG with transparency"
    found, kind = stripped(image, ext)
    assert kind == wanted and WORD.encode() not in found
    with Image.open(io.BytesIO(found)) as opened:
        opened.load()
        assert not opened.getexif() or kind == "tif"
        assert not {"exif", "xmp", "icc_profile", "comment", "Patient", "PatientZ", "PatientI"} & set(opened.info)
    before, after = (np.asarray(decode_image(data)) for data in (image, found))
    assert torch.equal(torch.from_numpy(before.copy()), torch.from_numpy(after.copy()))
    assert stripped(found, kind) == (found, kind) or kind == "tif"


def test_what_has_no_metadata_keeps_its_bytes() -> None:
    for image, ext in ((saved(picture("L"), "PNG"), "png"), (saved(picture("RGB"), "WEBP"), "webp")):
        assert stripped(image, ext) == (image, ext)
    image = saved(picture("RGB"), "JPEG", quality=90)
    assert stripped(image, "jpg") == (image, "jpg")


def test_the_orientation_tag_goes_and_pixels_stay_as_stored() -> None:
    """As training has always seen them: open_clip does not turn images either."""
    image = jpeg("L")
    with Image.open(io.BytesIO(image)) as old, Image.open(io.BytesIO(stripped(image, "jpg")[0])) as new:
        assert old.getexif()[0x0112] == 6 and 0x0112 not in new.getexif()
        assert old.size == new.size


def test_a_strange_layout_is_written_anew() -> None:
    """A chunk with a wrong checksum, which a decoder forgives."""
    image = png(picture("L"))
    at = image.index(b"paTi") + 10
    broken = image[:at] + b"X" + image[at + 1 :]
    found, ext = stripped(broken, "png")
    assert ext == "png" and b"paTi" not in found and b"Patient" not in found
    with Image.open(io.BytesIO(found)) as new, Image.open(io.BytesIO(image)) as old:
        np.testing.assert_array_equal(np.asarray(new), np.asarray(old))
