"""Samples of a published tar: members grouped by name, decoded, given to the layout; what has a flaw is left out and
counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_shards.errors import DataError
from data_shards.planar import decode_image
from data_shards.privacy import hashed
from data_shards.sources.layouts import (
    MAX_JSON,
    MAX_TEXT,
    Layout,
    Parts,
    Piece,
    decode_fields,
    decode_number,
    decode_text,
    decode_vector,
    labels_of,
)
from data_shards.sources.tar_scan import Flaw, Hash, Member, scan_tar

IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "tif", "tiff"})
LIMITS = {"txt": MAX_TEXT, "json": MAX_JSON, "cls": MAX_TEXT, "npy": MAX_TEXT}
MAX_IMAGE = 256 << 20  # bytes of an image
MAX_KEPT = 1 << 30  # bytes of words, labels and fields of one tar
NAMED = 8  # kinds of flaws of a tar that are told, and members named for each
SALT = "published"  # of keys and articles, which are public: equal on every machine, so that sets can be compared


@dataclass(frozen=True)
class Record:
    """A sample: its hashed key and patient, where its image lies, the image's true extension, and its piece."""

    key: str
    patient: str
    offset: int
    bytes: int
    crc32: int
    ext: str
    piece: Piece


@dataclass
class Scanned:
    """One tar. `flaws`: what is wrong -> the numbers of the first members it is wrong with, and how many there are;
    `lost`: how many samples or members are left out."""

    records: list[Record] = field(default_factory=list)
    flaws: dict[str, tuple[list[int], int]] = field(default_factory=dict)
    lost: int = 0
    members: Counter[str] = field(default_factory=Counter)


def read_tar(
    tar: Path,
    digest: str,
    layout: Layout,
    classes: int,
    patient_field: str | None = None,
    salt: str = "",
    decode: bool = False,
    sha256: Hash | None = None,
) -> Generator[int, None, Scanned]:
    """Yields the bytes gone through so far, returns the samples; a sample with a flaw is left out and counted.

    Args:
        digest: the tar's identity, part of the hashed keys. classes: how many have names, 0 where none has.
        patient_field: a field of the json that names the patient (or another group that must stay in one split).
        salt: the private one, of the hashes of these patients. decode: decode every image.
    Raises: DataError as `scan_tar`, for a tar with more words than memory holds, for a patient_field without a salt.
    """
    if patient_field and not salt:
        raise DataError("there is no salt for the patients", "their hashes could be undone by trying all numbers")
    found = Scanned()
    fields = (*layout.fields, *([patient_field] if patient_field else []))
    wanted = {ext for group in layout.needs for ext in group} | ({"json"} if fields else set())
    samples: dict[str, _Sample] = {}
    kept, last = 0, ""

    def keep(name: str, size: int) -> bool:
        ext = stem_and_ext(name)[1]
        return (ext in wanted and size <= LIMITS[ext]) or (decode and ext in IMAGES and size <= MAX_IMAGE)

    for member in scan_tar(tar, keep, sha256):
        if isinstance(member, Flaw):
            _note(found, member.number, member.what)
            # Where a tar breaks off between members, the sample before the break may lack some.
            spoiled = stem_and_ext(member.name)[0] or (last if member.ends else "")
            samples.setdefault(spoiled, _Sample()).spoiled = True
            continue
        yield member.offset + member.size
        stem, ext = stem_and_ext(member.name)
        found.members[shown_ext(ext)] += 1
        if stem:
            last = stem
            sample = samples.setdefault(stem, _Sample(member.number))
            kept += sample.add(member, ext, wanted, fields, decode)
            if kept > MAX_KEPT:
                raise DataError(
                    f"{tar.name} holds more than {MAX_KEPT >> 20} MiB of words and labels", fix="split it into several"
                )
    seen = classes
    for stem, sample in samples.items():
        if sample.spoiled or not sample.members or (len(sample.members) == 1 and _belongs_to_another(stem, samples)):
            continue
        try:
            piece, seen = sample.piece(layout, classes, seen)
            group = _group(sample.parts, patient_field) if patient_field else piece.group
        except DataError as error:
            _note(found, sample.number, f"sample left out, {error.what}")
            continue
        assert sample.image is not None
        key = hashed(f"{digest}/{stem.encode('utf-8', 'backslashreplace').decode()}", SALT)
        patient = hashed(group, salt if patient_field else SALT) if group else key
        where = sample.image
        found.records.append(Record(key, patient, where.offset, where.size, where.crc32, sample.ext, piece))
    return found


def _group(parts: Parts, name: str) -> str:
    value = (parts.fields or {}).get(name)
    if not isinstance(value, str | int) or not str(value).strip():
        raise DataError("its json does not name the patient in the field that was declared")
    return f"{name}/{str(value).strip()}"


def _note(found: Scanned, number: int, what: str) -> None:
    found.lost += 1
    if what in found.flaws or len(found.flaws) < NAMED:
        numbers, count = found.flaws.get(what, ([], 0))
        found.flaws[what] = [*numbers, number][:NAMED], count + 1


def told(flaws: Mapping[str, tuple[Sequence[int], int]]) -> list[str]:
    """ "members 3, 9: it is a symbolic link": a line for each kind of flaw, most frequent first."""
    lines = []
    for what, (numbers, count) in sorted(flaws.items(), key=lambda item: -item[1][1]):
        more = f" and {count - len(numbers)} more" if count > len(numbers) else ""
        lines.append(f"member{'s' * (count > 1)} {', '.join(map(str, numbers))}{more}: {what}")
    return lines


@dataclass
class _Sample:
    number: int = 0  # of its first member
    image: Member | None = None
    ext: str = ""
    parts: Parts = field(default_factory=Parts)
    members: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    spoiled: bool = False  # by a flaw that was told already

    def add(self, member: Member, ext: str, wanted: set[str], fields: Sequence[str], decode: bool) -> int:
        """Takes a member in; about the bytes of memory that it keeps."""
        role = "image" if ext in IMAGES else ext
        if role != "image" and ext not in wanted:
            return 0
        if role in self.members:
            self.problems.append("it has two images" if role == "image" else f"it has two members .{ext}")
            return 0
        self.members.add(role)
        if role != "image":
            self.parts = with_member(self.parts, ext, member, fields, self.problems)
            return self._kept(ext, member)
        self.ext = image_ext(member.head)
        self.image = replace(member, body=None) if decode else member
        if not self.ext:
            self.problems.append("its image is neither JPEG, PNG, WebP nor TIFF")
        elif member.size > MAX_IMAGE:
            self.problems.append(f"its image has {member.size} bytes, at most {MAX_IMAGE} are read")
        elif decode:
            try:
                decode_image(member.body or b"")
            except DataError as error:
                self.problems.append(error.what)
        return 0

    def _kept(self, ext: str, member: Member) -> int:
        if ext == "npy":
            return 8 * member.size if self.parts.vector is not None else 0  # a pointer for each label
        if ext == "json":
            return len(json.dumps(self.parts.fields)) if self.parts.fields else 0
        return member.size if ext == "txt" and self.parts.text is not None else 0

    def piece(self, layout: Layout, named: int, seen: int) -> tuple[Piece, int]:
        """What it means, and the number of classes seen so far. Raises DataError for a sample that cannot be used."""
        if self.problems:
            raise DataError(self.problems[0])
        if self.image is None:
            raise DataError("it has no image")
        missing = [group for group in layout.needs if not self.members & set(group)]
        if missing:
            raise DataError(f"it has no .{' or .'.join(missing[0])}")
        piece = layout.read(self.parts)
        if any(len(text.encode()) > MAX_TEXT for text in (piece.report, *(text for text, _ in piece.captions))):
            raise DataError(f"its text has more than {MAX_TEXT} bytes")
        if piece.labels is None:
            if not piece.captions and not piece.report:
                raise DataError("it has no text")
        elif isinstance(piece.labels, int) and not named:
            seen = max(seen, piece.labels + 1)
        else:
            seen = seen or (0 if isinstance(piece.labels, int) else len(piece.labels))
            labels_of(piece, seen)
        return piece, seen


def image_ext(head: bytes) -> str:
    """The true extension of an image by its first bytes: UniMed-CLIP keeps PNGs under the name .jpg. "" for others."""
    if head.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return "tif" if head[:4] in (b"II*\0", b"MM\0*") else ""


def with_member(parts: Parts, ext: str, member: Member, fields: Sequence[str], problems: list[str]) -> Parts:
    """The parts with one more member; what is wrong with it goes to `problems`."""
    decoders: dict[str, Callable[[bytes], Parts]] = {
        "txt": lambda body: Parts(decode_text(body), parts.fields, parts.number, parts.vector),
        "json": lambda body: Parts(parts.text, decode_fields(body, fields), parts.number, parts.vector),
        "cls": lambda body: Parts(parts.text, parts.fields, decode_number(body), parts.vector),
        "npy": lambda body: Parts(parts.text, parts.fields, parts.number, decode_vector(body)),
    }
    if ext not in decoders:
        return parts
    if member.body is None:
        problems.append(f"its .{ext} has {member.size} bytes, at most {LIMITS[ext]} are read")
        return parts
    try:
        return decoders[ext](member.body)
    except DataError as error:
        problems.append(error.what)
        return parts


def stem_and_ext(name: str) -> tuple[str, str]:
    """ "a/b.jpg" -> ("a/b", "jpg"). Hidden files and those without an extension belong to no sample: ("", "")."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, dot, ext = base.rpartition(".")
    if not dot or not stem or base.startswith((".", "__")):
        return "", ""
    return f"{folder}/{stem}", ext.lower()


def shown_ext(ext: str) -> str:
    """An extension that may be told; a name with a dot in it may end in anything."""
    return ext if ext.isascii() and ext.isalnum() and len(ext) <= 8 else "others"


def _belongs_to_another(stem: str, samples: dict[str, _Sample]) -> bool:
    """ "a.seg.png", alone of its name, beside "a.jpg" is a further member of sample "a", which no layout reads."""
    folder, _, base = stem.rpartition("/")
    return "." in base and f"{folder}/{base.split('.', 1)[0]}" in samples
