"""What other people's WebDataset samples mean: which words, labels, licence and patient their members give.

A layout is a declaration and a small function from a sample's decoded members to a `Piece`. The facts are from the
writers of each: UniMed-CLIP (arXiv 2412.10372, its scripts that prepare the tars), BIOMEDICA (arXiv 2501.07171, its
serialisation), CLIP_benchmark (its webdataset builder), img2dataset (its writer).
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_shards.errors import DataError
from data_shards.schema import Caption, Texts

MAX_TEXT = 1 << 20  # bytes of a text, a class number or a label vector
MAX_JSON = 16 << 20  # bytes; BIOMEDICA's hold whole articles. Python needs up to 20 times that for a hostile one
MAX_CLASSES = 100_000  # a label each: a number of nine digits would take all memory
MAX_WORD, MAX_WORDS = 1000, 100  # characters of a value of a listed field, and values of one that is a list
NO_CAPTION = frozenset({"", "no caption found", "nan", "none"})


@dataclass(frozen=True)
class Parts:
    """The members of one sample beside its image: None where it has none. `fields`: the listed fields of its json."""

    text: str | None = None
    fields: dict[str, Any] | None = None
    number: int | None = None
    vector: tuple[int | None, ...] | None = None


@dataclass(frozen=True)
class Piece:
    """What a layout makes of a sample. `labels`: for the first classes 1, 0 or None (unknown), or the number of the one
    class that is present. `group`: what the patient's hash is made from, empty where nothing is known."""

    captions: tuple[tuple[str, float], ...] = ()
    report: str = ""
    labels: tuple[int | None, ...] | int | None = None
    group: str = ""
    licence: str = ""
    modality: str = "OT"
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """needs: groups of members, one of each group must be there besides the image. fields: what is read of the json,
    and nothing else of it. suits: (extensions of a sample, its parts) -> why this may be the layout, or nothing."""

    name: str
    needs: tuple[tuple[str, ...], ...]
    read: Callable[[Parts], Piece]
    suits: Callable[[frozenset[str], Parts], str]
    fields: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Join:
    """One of UniMed-CLIP's separators: how many captions its own loader takes, of which modality the part is, how
    often the separator occurs at least, and what the pieces are."""

    separator: str
    take: int
    modality: str
    kind: str = "same"  # all alike | "first": the first is the original | "last": the last is the report
    at_least: int = 1


# In the order in which UniMed-CLIP's loader looks for them. "_dr_" alone may stand in an ordinary text.
JOINS = (
    _Join("_radimagenet_", 10, "OT"),
    _Join("_chexpert_", 10, "CR"),
    _Join("_openi_", 4, "CR", "first"),
    _Join("_chestxray8_", 10, "CR"),
    _Join("_all_retina_merged_", 10, "OP"),
    _Join("_medicat_", 2, "OT", "first"),
    _Join("_mimiccxr_", 10, "CR", "last"),
    _Join("_dr_", 15, "OP", at_least=2),
)
_ABSENT = ("nothingpresent", "noreportpresent")


def joined_by(text: str) -> _Join | None:
    """Which of UniMed-CLIP's separators a text has."""
    return next((join for join in JOINS if text.count(join.separator) >= join.at_least), None)


def unimed(parts: Parts) -> Piece:
    """Several captions in one text. Where one is the original (Open-i, MedICaT) or a report (MIMIC-CXR) it is drawn
    half of the time; UniMed-CLIP's own loader draws it always, or for MedICaT half of the time."""
    text = parts.text or ""
    join = joined_by(text)
    if join is None:
        return Piece(_weighed([text]))
    pieces = [piece.strip() for piece in text.split(join.separator)]
    if join.kind == "last":
        report = pieces.pop() if pieces[-1].lower().rstrip(".") not in _ABSENT else ""
        rest = _without_absent(pieces)[: join.take]
        first = [report] if report else []
        return Piece(_weighed(rest, first), report, modality=join.modality)
    if join.kind == "first":
        kept = _without_absent(pieces)[: join.take]
        return Piece(_weighed(kept[1:], kept[:1]), modality=join.modality)
    return Piece(_weighed(_without_absent(pieces)[: join.take]), modality=join.modality)


def _without_absent(pieces: Iterable[str]) -> list[str]:
    return [p for p in pieces if p and p.lower().rstrip(".") not in _ABSENT]


BIOMEDICA_FIELDS = {
    "image_panel_type": "panel_type",
    "image_panel_subtype": "panel_subtype",
    "image_primary_label": "concept",
    "image_secondary_label": "subconcept",
    "image_hash": "image_hash",
    "article_accession_id": "article",
    "article_journal": "journal",
    "article_date": "date",
    "article_mesh_terms": "mesh_terms",
    "article_keywords": "keywords",
}


def biomedica(parts: Parts) -> Piece:
    """A figure and its caption; the article stands for the patient, so that no article is in two splits."""
    fields = parts.fields or {}
    meta = {ours: value for theirs, ours in BIOMEDICA_FIELDS.items() if (value := words(fields.get(theirs)))}
    microscopy = [str(c).lower() for c in meta.get("concept", ())] == ["microscopy"]
    article = meta.get("article", "")
    return Piece(
        _weighed([parts.text or ""]),
        group=f"article/{article}" if article else "",
        licence=str(words(fields.get("article_license")) or ""),
        modality="GM" if microscopy else "OT",
        meta=meta,
    )


LICENCES = ("license", "licence", "LICENSE")
SIZES = ("width", "height", "original_width", "original_height")


def img2dataset(parts: Parts) -> Piece:
    """A picture from the web and its caption. Of its metadata only sizes and licence stay: an address, a file name or
    Exif data may say who the patient is."""
    fields = parts.fields or {}
    said = parts.text if parts.text is not None else fields.get("caption")
    meta = {name: fields[name] for name in SIZES if isinstance(fields.get(name), int) and 0 < fields[name] < 1 << 31}
    licence = next((str(v) for name in LICENCES if isinstance(v := words(fields.get(name)), str) and v), "")
    return Piece(_weighed([said if isinstance(said, str) else ""]), licence=licence, meta=meta)


def clip_benchmark(parts: Parts) -> Piece:
    """A class number, a vector of labels, or captions line by line (its retrieval sets)."""
    if parts.number is not None:
        return Piece(labels=parts.number)
    if parts.vector is not None:
        return Piece(labels=parts.vector)
    return Piece(_weighed((parts.text or "").splitlines()))


def _weighed(alike: Sequence[str], first: Sequence[str] = ()) -> tuple[tuple[str, float], ...]:
    """Captions of weight 1; `first` one weighs as much as all others together, so that it is the heaviest."""
    others = [t for t in dict.fromkeys(t.strip() for t in alike) if t.lower() not in NO_CAPTION and t not in first]
    heavy = [(t, float(max(len(others), 1))) for t in (t.strip() for t in first) if t.lower() not in NO_CAPTION]
    return (*heavy, *((text, 1.0) for text in others))


def words(value: Any) -> str | list[str]:
    """A text, or the texts of a list, printable and cut to a length that a field of metadata has; "" for anything
    else."""
    if isinstance(value, list):
        return [text for v in value[:MAX_WORDS] if (text := plain(v))]
    return plain(value)


def plain(value: Any) -> str:
    """One line of text without what could command a terminal; "" for anything but text."""
    if not isinstance(value, str):
        return ""
    return "".join(c if c.isprintable() else " " for c in value[:MAX_WORD]).strip()


def _suits_biomedica(extensions: frozenset[str], parts: Parts) -> str:
    found = [
        n for n in ("image_panel_type", "image_primary_label", "article_accession_id") if n in (parts.fields or {})
    ]
    return f"their json has {', '.join(found)}" if len(found) >= 2 else ""


def _suits_img2dataset(extensions: frozenset[str], parts: Parts) -> str:
    found = [n for n in ("url", "key", "status", "original_width", "caption") if n in (parts.fields or {})]
    return f"their json has {', '.join(found)}" if len(found) >= 2 else ""


def _suits_clip_benchmark(extensions: frozenset[str], parts: Parts) -> str:
    found = [e for e in ("cls", "npy") if e in extensions]
    return f"they have .{found[0]} and no .json" if found and "json" not in extensions else ""


def _suits_unimed(extensions: frozenset[str], parts: Parts) -> str:
    if "txt" not in extensions or "json" in extensions or extensions & {"cls", "npy"}:
        return ""
    join = joined_by(parts.text or "")
    return f"their texts are joined by {join.separator}" if join else "they are an image and a .txt, nothing else"


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("biomedica", (("txt",), ("json",)), biomedica, _suits_biomedica, (*BIOMEDICA_FIELDS, "article_license")),
        Layout("clip_benchmark", (("cls", "npy", "txt"),), clip_benchmark, _suits_clip_benchmark),
        Layout(
            "img2dataset",
            (("txt", "json"),),
            img2dataset,
            _suits_img2dataset,
            ("caption", *SIZES, *LICENCES),
        ),
        Layout("unimed", (("txt",),), unimed, _suits_unimed),
    )
}
RECOGNISED_BY = ("image_panel_type", "image_primary_label", "article_accession_id", "url", "key", "status", "caption")


def decode_text(body: bytes) -> str:
    """Raises DataError for what is not UTF-8."""
    try:
        return body.decode("utf-8-sig").replace("\0", "")
    except UnicodeDecodeError:
        raise DataError("its text is not UTF-8") from None


def decode_fields(body: bytes, names: Iterable[str]) -> dict[str, Any]:
    """The named fields of a json object. Raises DataError for what is none, is nested too deeply, or holds numbers or
    characters that nothing can hold."""
    try:
        found = json.loads(body.decode("utf-8-sig"))
        if not isinstance(found, dict):
            raise DataError("its json is not an object")
        kept = {name: found[name] for name in names if name in found}
        json.dumps(kept, ensure_ascii=False, allow_nan=False).encode()  # half a surrogate pair passes until here
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"its json cannot be read ({type(error).__name__})") from None
    return kept


def decode_number(body: bytes) -> int:
    """Raises DataError for anything but a class number."""
    digits = body.strip() if len(body) <= 32 else b""
    if not digits.isdigit() or int(digits) >= MAX_CLASSES:
        raise DataError(f"its .cls is not the number of a class below {MAX_CLASSES}")
    return int(digits)


def decode_vector(body: bytes) -> tuple[int | None, ...]:
    """Labels of a .npy: 1, 0, and None for -1 or NaN. Raises DataError for objects, other shapes and other values."""
    try:
        file = io.BytesIO(body)
        version = np.lib.format.read_magic(file)
        read: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject:  # a pickle, which is never loaded
            raise DataError("its .npy holds Python objects")
        if dtype.kind not in "biuf" or len(shape) != 1 or shape[0] * dtype.itemsize != len(body) - file.tell():
            raise DataError("its .npy is not one row of labels")
        if shape[0] > MAX_CLASSES:
            raise DataError(f"its .npy has labels for more than {MAX_CLASSES} classes")
        values = np.frombuffer(body, dtype, offset=file.tell()).astype(np.float64)
    except DataError:
        raise
    except Exception as error:  # numpy reads the header with Python's own tokenizer, and raises whatever that does
        raise DataError(f"its .npy cannot be read ({type(error).__name__})") from None
    unknown = np.isnan(values) | (values == -1)
    if not (unknown | (values == 0) | (values == 1)).all():
        raise DataError("its .npy has labels other than 0, 1 and -1")
    return tuple(None if u else int(v) for v, u in zip(values, unknown, strict=True))


def texts_of(piece: Piece, classes: Sequence[str], templates: Sequence[str]) -> Texts:
    """The words of contract 1: captions as published, else every template with the name of every class present."""
    if piece.captions or piece.report:
        return Texts(piece.report, captions=tuple(Caption(text, weight) for text, weight in piece.captions))
    labels = labels_of(piece, len(classes))
    names = [name for name, value in zip(classes, labels, strict=True) if value == 1]
    said = dict.fromkeys(t.replace("{c}", name).replace("{}", name) for name in names for t in templates or ("{c}",))
    return Texts(captions=tuple(Caption(text) for text in said))


def labels_of(piece: Piece, classes: int) -> list[int | None]:
    """A label for each class: 1, 0 or None. Raises DataError for a number or a vector that does not fit them."""
    if piece.labels is None:
        return [None] * classes
    if isinstance(piece.labels, int):
        if piece.labels >= classes:
            raise DataError(f"its class number {piece.labels} has no name: there are {classes}")
        return [int(i == piece.labels) for i in range(classes)]
    if len(piece.labels) != classes:
        raise DataError(f"it has {len(piece.labels)} labels for {classes} classes")
    return list(piece.labels)
