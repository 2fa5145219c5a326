from __future__ import annotations

import builtins
import gzip
import hashlib
import pickle
import re
import subprocess
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from data_shards import DataError
from data_shards.sources.tar_scan import Flaw, Member, scan_tar
from tests.data_shards.foreign_tars import BLOCK, END, header, padded, pax, raw, write_tar

LONG = "folder_" * 30 + "/" + "x" * 120 + ".txt"
GOOD = raw(b"good.txt", b"hello")


def scan(path: Path, keep: Callable[[str, int], bool] = lambda name, size: size < 1 << 20) -> list[Member | Flaw]:
    return list(scan_tar(path, keep))


def members(path: Path) -> list[Member]:
    return [m for m in scan(path) if isinstance(m, Member)]


def flaws(path: Path) -> list[Flaw]:
    return [f for f in scan(path) if isinstance(f, Flaw)]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_tarfile_writes_is_read(tmp_path: Path, form: int) -> None:
    names = ["a.txt", "b/c.jpg", "e" * 99, ("d" * 60 + "/") * 2 + "f.json"]
    if form != tarfile.USTAR_FORMAT:
        names += [LONG, "größe.txt"]
    bodies = {name: bytes([i]) * (i * 700) for i, name in enumerate(names)}
    path = write_tar(tmp_path / "x.tar", bodies.items(), form)
    found = members(path)
    with tarfile.open(path) as tar:
        want = [(info.name, info.offset_data, info.size) for info in tar]
    assert [(m.name, m.offset, m.size) for m in found] == want
    for m in found:
        body = path.read_bytes()[m.offset : m.offset + m.size]
        assert (m.body, m.crc32, m.head) == (body, zlib.crc32(body), body[:16]) and body == bodies[m.name]


@pytest.mark.full
@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "v7", "oldgnu", "posix"])
def test_what_gnu_tar_writes_is_read(tmp_path: Path, form: str) -> None:
    names = ["a.txt", "deep/er/b.json", "c.jpg"]
    if form not in ("v7", "ustar"):
        names.append(LONG)
    for i, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(f"body {i} ".encode() * 300 * i)
    path = tmp_path / "x.tar"
    subprocess.run(["tar", f"--format={form}", "-C", tmp_path / "in", "-cf", path, "."], check=True)
    found = {m.name.removeprefix("./"): m.body for m in members(path)}
    assert found == {name: (tmp_path / "in" / name).read_bytes() for name in names}
    assert not flaws(path)


def test_version_7_headers_and_signed_checksums(tmp_path: Path) -> None:
    block = bytearray(header(b"old.txt", 5, kind=b"\0", magic=b"\0" * 8))
    block[0:1] = b"\xf6"  # "ö" in Latin-1, summed as a signed byte by old tars
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(b - 256 if b > 127 else b for b in block)
    (tmp_path / "x.tar").write_bytes(
        header(b"dir/", 0, kind=b"\0", magic=b"\0" * 8) + bytes(block) + padded(b"hello") + END
    )
    (found,) = members(tmp_path / "x.tar")
    assert found.body == b"hello" and found.name.endswith("ld.txt") and not flaws(tmp_path / "x.tar")


def test_base_256_sizes_and_pax_sizes(tmp_path: Path) -> None:
    large = header(b"a.txt", b"\x80" + (5).to_bytes(11, "big")) + padded(b"hello")
    said = pax({b"size": b"5", b"path": b"b.txt"}) + header(b"short", 0) + padded(b"world")
    (tmp_path / "x.tar").write_bytes(large + said + GOOD + END)
    assert [(m.name, m.body) for m in members(tmp_path / "x.tar")] == [
        ("a.txt", b"hello"),
        ("b.txt", b"world"),
        ("good.txt", b"hello"),
    ]


def test_the_whole_file_is_hashed_and_only_what_is_kept_is_held(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.bin", b"\1" * (3 << 20)), ("b.txt", b"hello")])
    sha256 = hashlib.sha256()
    found = list(scan_tar(path, lambda name, size: name == "b.txt", sha256))
    assert [m.body for m in found if isinstance(m, Member)] == [None, b"hello"]
    assert sha256.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("import builtins; builtins.executed = True",)


# What it is -> (bytes before a good member, what is said of them)
REFUSED_MEMBERS = {
    "dots": (raw(b"../../etc/x.txt", b"x"), "leads out"),
    "dots inside": (raw(b"a/../../x.txt", b"x"), "leads out"),
    "backslashes": (raw(b"..\\x.txt", b"x"), "leads out"),
    "absolute": (raw(b"/etc/passwd.txt", b"x"), "absolute"),
    "absolute by prefix": (pax({b"path": b"/etc/x.txt"}) + raw(b"x", b"x"), "absolute"),
    "drive": (raw(b"C:\\x.txt", b"x"), "absolute"),
    "symlink": (header(b"a.jpg", kind=b"2"), "symbolic link"),
    "hard link": (header(b"a.jpg", kind=b"1"), "hard link"),
    "device": (header(b"a.jpg", kind=b"3"), "device"),
    "block device": (header(b"a.jpg", kind=b"4"), "device"),
    "pipe": (header(b"a.jpg", kind=b"6"), "pipe"),
    "gnu sparse": (raw(b"a.jpg", b"x" * 600, kind=b"S"), "sparse"),
    "pax sparse": (pax({b"GNU.sparse.major": b"1"}) + raw(b"a.jpg", b"x"), "sparse"),
    "multi-volume": (raw(b"a.jpg", b"x", kind=b"M"), "another volume"),
    "unknown type": (raw(b"a.jpg", b"x", kind=b"Z"), "no known type"),
    "control characters": (raw(b"a\x1b[2J.txt", b"x"), "control characters"),
    "newline": (raw(b"a\nb.txt", b"x"), "control characters"),
    "no name": (raw(b"", b"x"), "no name"),
    "pickle": (raw(b"a.pkl", pickle.dumps(Evil())), r"execute \(.pkl\)"),
    "pyd": (raw(b"a.pyd", pickle.dumps(Evil())), r"execute \(.pyd\)"),
    "pickle in capitals": (raw(b"a.PICKLE", pickle.dumps(Evil())), "execute"),
    "pth": (raw(b"a.image.pth", b"x"), "execute"),
    "zip bomb": (raw(b"a.json.gz", gzip.compress(b"0" * (10 << 20))), "archive within"),
    "folder leading out": (header(b"../x/", kind=b"5"), "leads out"),
}


@pytest.mark.parametrize("case", REFUSED_MEMBERS)
def test_a_hostile_member_is_a_flaw_and_the_rest_is_read(tmp_path: Path, case: str) -> None:
    body, said = REFUSED_MEMBERS[case]
    path = tmp_path / "x.tar"
    path.write_bytes(GOOD + body + raw(b"after.txt", b"there") + END)
    (flaw,) = flaws(path)
    assert flaw.number == 2 and not flaw.ends
    assert re.search(said, flaw.what)
    assert [(m.name, m.body) for m in members(path)] == [("good.txt", b"hello"), ("after.txt", b"there")]
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar"] and not hasattr(builtins, "executed")


REFUSED_CHAINS = {
    "size beyond the file": (header(b"a.jpg", 1 << 30), "the file ends within it"),
    "absurd size": (header(b"a.jpg", b"\x80" + b"\x7f" * 11), "the file ends within it"),
    "negative size": (header(b"a.jpg", b"\xff" * 12), "negative"),
    "size that is none": (header(b"a.jpg", b"00000000x00\0"), "none"),
    "pax size huge": (pax({b"size": b"9" * 17}) + raw(b"a.jpg", b"x"), "the file ends within it"),
    "pax size absurd": (pax({b"size": b"9" * 500}) + raw(b"a.jpg", b"x"), "no number"),
    "pax size negative": (pax({b"size": b"-1"}) + raw(b"a.jpg", b"x"), "no number"),
    "pax global size": (pax({b"size": b"0"}, b"g") + raw(b"a.jpg", b"x"), "global"),
    "pax malformed": (raw(b"pax", b"999 path=x\n", kind=b"x") + raw(b"a.jpg", b"x"), "malformed"),
    "pax whose second record has no length": (raw(b"pax", b"12 path=abc\nxxxxxxxxxxxx", kind=b"x"), "malformed"),
    "pax that is too short to go on": (raw(b"pax", b"6 a=b\nzz", kind=b"x"), "malformed"),
    "pax without a newline": (raw(b"pax", b"8 path=x", kind=b"x") + raw(b"a.jpg", b"x"), "malformed"),
    "pax header of a gigabyte": (header(b"pax", 1 << 30, kind=b"x"), "claims 1073741824 bytes"),
    "long name of a gigabyte": (header(b"././@LongLink", 1 << 30, kind=b"L"), "claims"),
    "long name": (raw(b"././@LongLink", b"n" * 5000, kind=b"L") + raw(b"a", b"x"), "5000 bytes"),
    "headers without end": (pax({b"comment": b"x"}) * 20 + raw(b"a.jpg", b"x"), "too many"),
    "header for nothing": (pax({b"path": b"x"}), "belongs to no member"),
    "folder with a payload": (raw(b"d/", b"hidden" * 200, kind=b"5"), "folder with a payload"),
    "flipped header byte": (b"B" + raw(b"a.jpg", b"x")[1:], "checksum"),
}


@pytest.mark.parametrize("case", REFUSED_CHAINS)
def test_a_broken_chain_ends_and_says_where(tmp_path: Path, case: str) -> None:
    body, said = REFUSED_CHAINS[case]
    path = tmp_path / "x.tar"
    path.write_bytes(GOOD + body + END)
    (flaw,) = flaws(path)
    assert flaw.number == 2 and flaw.ends and said in flaw.what
    assert [m.name for m in members(path)] == ["good.txt"]


def test_truncation_anywhere_is_seen(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.txt", b"x" * 1000), ("b.txt", b"y" * 1000)], tarfile.USTAR_FORMAT)
    body = path.read_bytes()
    for end in (512, 700, 1536, 1600, 2048, 2500, 3072):  # in data, at a border, in a header, before the end's mark
        path.write_bytes(body[:end])
        found = scan(path)
        last = found[-1]
        assert isinstance(last, Flaw) and last.ends, end
        assert len(found) - 1 == (end >= 1536) + (end >= 3072)
    path.write_bytes(body[: 3072 + BLOCK])  # one block of zeros still marks the end
    assert len(scan(path)) == 2 and not flaws(path)


def test_a_second_tar_behind_the_first_is_not_lost_in_silence(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(GOOD + END + GOOD + END)
    (flaw,) = flaws(tmp_path / "x.tar")
    assert flaw.ends and "behind the end" in flaw.what


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (gzip.compress(GOOD + END), r"x\.tar is compressed \(gzip\)[^$]*fix: unpack it to a plain .tar first: gunzip"),
        (b"BZh91AY&SY" + b"x" * 600, "bzip2"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 600, "zstd"),
        (b"PK\3\4" + b"x" * 600, "zip"),
        (b"", "empty"),
        (b"hello", "is not a tar"),
        (b"x" * 2000, "is not a tar"),
    ],
    ids=["gzip", "bzip2", "zstd", "zip", "empty", "short text", "long text"],
)
def test_what_is_no_plain_tar_is_refused(tmp_path: Path, body: bytes, said: str) -> None:
    (tmp_path / "x.tar").write_bytes(body)
    with pytest.raises(DataError, match=said):
        scan(tmp_path / "x.tar")


def test_memory_does_not_follow_what_a_header_claims(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with path.open("wb") as file:  # 200 MB of zeros that take no room on disk
        file.write(header(b"big.jpg", 200 << 20))
        file.seek(BLOCK + (200 << 20))
        file.write(GOOD + END)
    tracemalloc.start()
    try:
        assert len(scan(path)) == 2
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_webdataset_and_tarfile_agree_on_what_is_there(tmp_path: Path) -> None:
    import webdataset

    samples = [(f"{i:03d}.{ext}", f"{i}{ext}".encode()) for i in range(5) for ext in ("jpg", "txt")]
    path = write_tar(tmp_path / "x.tar", samples)
    theirs = [
        (f"{s['__key__']}.{ext}", s[ext])
        for s in webdataset.WebDataset(str(path), shardshuffle=False)
        for ext in ("jpg", "txt")
    ]
    assert [(m.name, m.body) for m in members(path)] == theirs
    with tarfile.open(path) as tar:
        assert tar.getnames() == [m.name for m in members(path)]
