"""Members of published tars that are damaged, hostile, too large, or no samples at all."""

from __future__ import annotations

import builtins
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_shards import DataError
from data_shards.foreign import ForeignShards
from data_shards.sources import tar_samples
from data_shards.sources.layouts import JOINS, MAX_TEXT, decode_fields, decode_number, decode_vector
from tests.data_shards import foreign_tars as tars


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", ["npy", "json", "txt"])
def test_everything_kept_of_a_tar_is_bounded(
    tmp_path: Path, cache: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_samples, "MAX_KEPT", 64 << 10)
    words = b"c " * 20000
    body = {
        "npy": tars.npy(np.zeros(5000, np.int8)),
        "json": json.dumps({"caption": words.decode()}).encode(),
        "txt": words,
    }
    members = [m for i in range(2) for m in ((f"{i}.jpg", tars.picture(i)), (f"{i}.{kind}", body[kind]))]
    path = tars.write_tar(tmp_path / "x.tar", members)
    with pytest.raises(DataError, match=r"x\.tar holds more than 0 MiB of words and labels"):
        ForeignShards.open(path, "clip_benchmark" if kind == "npy" else "img2dataset", cache=cache)


def test_a_caption_longer_than_a_text_may_be_is_a_flaw(tmp_path: Path, cache: Path) -> None:
    body = json.dumps({"caption": "c" * (MAX_TEXT + 1)}).encode()
    members = [("0.jpg", tars.picture(0)), ("0.json", body), ("1.jpg", tars.picture(1)), ("1.txt", b"film")]
    path = tars.write_tar(tmp_path / "x.tar", members)
    with pytest.raises(DataError, match="member 1: sample left out, its text has more than 1048576 bytes"):
        ForeignShards.open(path, "img2dataset", cache=cache)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("import builtins; builtins.executed = True",)


HUGE = tars.npy(np.zeros(4, np.int64)).replace(b"(4,), ", b"(4000000000000,), ").replace(b" " * 12 + b"\n", b"\n")
BAD_SAMPLES: dict[str, tuple[str, bytes, str]] = {
    "json nested too deeply": ("json", b'{"key":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "RecursionError"),
    "json that is none": ("json", b"{", "JSONDecodeError"),
    "json that is a list": ("json", b"[1]", "not an object"),
    "json with an endless number": ("json", b'{"key": ' + b"9" * 10_000 + b"}", "ValueError"),
    "json with half a character": ("json", rb'{"caption": "\ud800", "status": "s"}', "UnicodeEncodeError"),
    "json not UTF-8": ("json", b'{"caption": "\xff"}', "UnicodeDecodeError"),
    "text not UTF-8": ("txt", b"gr\xfc\xdfe", "not UTF-8"),
    "text too long": ("txt", b"a" * ((1 << 20) + 1), "has 1048577 bytes"),
    "text empty": ("txt", b" \n", "has no text"),
    "npy of objects": ("npy", tars.npy(np.array([Evil()], object), allow_pickle=True), "Python objects"),
    "npy of a matrix": ("npy", tars.npy(np.zeros((2, 2))), "not one row"),
    "npy that claims more than there is": ("npy", HUGE, "cannot be read|not one row"),
    "npy that is none": ("npy", b"\x93NUMPY\x01\x00\xff\xff{", "cannot be read"),
    "npy whose header breaks the tokenizer": (
        "npy",
        b"\x93NUMPY\x01\x00\x08\x00{'a': ((1L",
        "TokenError|cannot be read",
    ),
    "npy with other values": ("npy", tars.npy(np.array([3, 1, 0])), "other than 0, 1"),
    "npy of other length": ("npy", tars.npy(np.array([0, 1])), "2 labels for 3 classes"),
    "cls that is a word": ("cls", b"cat", "not the number of a class"),
    "cls out of range": ("cls", b"7", "no name: there are 2"),
    "cls negative": ("cls", b"-1", "not the number"),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_a_bad_member_costs_its_sample(tmp_path: Path, cache: Path, case: str) -> None:
    ext, body, said = BAD_SAMPLES[case]
    if ext in ("cls", "npy"):
        folder = tars.clip_benchmark(tmp_path / "in", ext) / "train"
        (folder / "nshards.txt").unlink()
        good = {"cls": b"1", "npy": tars.npy(np.array([0, 1, 1]))}[ext]
    else:
        folder, good = tmp_path / "in", b'{"caption": "film", "status": "s", "key": "1"}' if ext == "json" else b"film"
    members = [
        ("good.jpg", tars.picture(0)),
        (f"good.{ext}", good),
        ("Jane.jpg", tars.picture(1)),
        (f"Jane.{ext}", body),
    ]
    path = tars.write_tar(folder / "x.tar", members)
    with pytest.raises(DataError, match=rf"x\.tar, member 3: sample left out, its? [^$]*({said})") as caught:
        ForeignShards.open([path], cache=cache)
    assert "Jane" not in str(caught.value)
    shards = ForeignShards.open([path], cache=cache, max_damaged=1)
    assert (len(shards), shards.lost) == (1, 1) and not hasattr(builtins, "executed")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("a.jpg", b"\x80\x04pickle"), ("a.txt", b"x")], "neither JPEG, PNG, WebP nor TIFF"),
        ([("a.txt", b"x")], "no image"),
        ([("a.jpg", None)], r"no \.txt"),
        ([("a.jpg", None), ("a.jpg", None), ("a.txt", b"x")], "two images"),
        ([("a.jpg", None), ("a.png", None), ("a.txt", b"x")], "two images"),
        ([("a.jpg", None), ("a.txt", b"x"), ("a.txt", b"y")], r"two members \.txt"),
        ([("a.jpg", None), ("a.txt", b"x"), ("a.pkl", b"x")], "execute"),
    ],
)
def test_a_sample_must_be_whole_and_plain(
    tmp_path: Path, cache: Path, members: list[tuple[str, bytes | None]], said: str
) -> None:
    good = [("g.jpg", tars.picture(0)), ("g.txt", b"words"), ("h.jpg", tars.picture(2)), ("h.txt", b"others")]
    path = tars.write_tar(tmp_path / "x.tar", [*good, *((n, tars.picture(1) if b is None else b) for n, b in members)])
    with pytest.raises(DataError, match=said):
        ForeignShards.open(path, layout="unimed", cache=cache)
    shards = ForeignShards.open(path, layout="unimed", cache=cache, max_damaged=1)
    assert [tars.captions(shards, r)[0][0] for r in shards.rows()] == ["words", "others"]


def test_members_in_any_order_and_further_ones_are_one_sample(tmp_path: Path, cache: Path) -> None:
    members = [
        (f"{i}.{ext}", tars.picture(i) if "p" in ext else b"film %d" % i)
        for ext in ("txt", "seg.png", "jpg")
        for i in range(3)
    ]
    members += [("README.md", b"about"), ("._0.jpg", b"mac"), ("LICENSE", b"words"), ("a.Jane Doe", b"x")]
    shards = ForeignShards.open(tars.write_tar(tmp_path / "x.tar", members), layout="unimed", cache=cache)
    assert shards.sidecars[0].about["members"] == {"txt": 3, "png": 3, "jpg": 3, "md": 1, "others": 3}
    assert [tars.captions(shards, r)[0][0] for r in shards.rows()] == ["film 0", "film 1", "film 2"]
    assert shards.scan(1)[0] == tars.picture(1)


def test_an_image_too_large_to_hold_is_not_read(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "x.tar"
    with path.open("wb") as file:  # 300 MB of zeros that take no room on disk
        file.write(tars.header(b"0.jpg", 300 << 20) + b"\xff\xd8\xff")
        file.seek(512 + (300 << 20))
        file.write(tars.raw(b"0.txt", b"a film") + tars.raw(b"1.jpg", tars.picture(1)) + tars.raw(b"1.txt", b"a film"))
        file.write(tars.END)
    with pytest.raises(DataError, match=r"member 1: sample left out, its image has 314572800 bytes"):
        ForeignShards.open(path, cache=cache)


def test_words_of_metadata_cannot_command_a_terminal(tmp_path: Path, cache: Path) -> None:
    body = json.dumps({"caption": "c", "status": "s", "license": "CC\x1b]0;title\x07 BY\n"})
    members = [("0.jpg", tars.picture(0)), ("0.txt", b"film"), ("0.json", body.encode())]
    shards = ForeignShards.open(tars.write_tar(tmp_path / "x.tar", members), cache=cache)
    assert shards.json(0)["licence"] == "CC ]0;title  BY"


def test_verify_decodes_every_image(tmp_path: Path, cache: Path) -> None:
    half = tars.picture(1)[:-200]
    members = [("a.jpg", tars.picture(0)), ("a.txt", b"x"), ("b.jpg", half), ("b.txt", b"y")]
    path = tars.write_tar(tmp_path / "x.tar", members)
    assert len(ForeignShards.open(path, cache=cache)) == 2
    with pytest.raises(DataError, match="member 3: sample left out, the image cannot be decoded"):
        ForeignShards.open(path, cache=cache, verify=True)


def test_decoders() -> None:
    assert decode_vector(tars.npy(np.array([1, 0, np.nan, -1]))) == (1, 0, None, None)
    assert decode_fields(b'\xef\xbb\xbf{"a": 1, "b": 2}', ["a", "c"]) == {"a": 1}
    assert Counter(join.kind for join in JOINS) == {"same": 5, "first": 2, "last": 1}


@pytest.mark.parametrize("body", [b"5000000", b"999999999", b"3" + b" " * 40 + b"7", "²".encode(), b"-1"])
def test_a_class_number_that_is_none_or_would_take_all_memory(body: bytes) -> None:
    with pytest.raises(DataError, match="number of a class"):
        decode_number(body)
    assert decode_number(b" 12\n") == 12
