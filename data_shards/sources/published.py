"""Published WebDataset tars: where they lie, what belongs to them, and which layout they have."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import DataError
from data_shards.sources.layouts import LAYOUTS, MAX_TEXT, RECOGNISED_BY, Layout, Parts, decode_text, plain
from data_shards.sources.tar_samples import IMAGES, LIMITS, shown_ext, stem_and_ext, with_member
from data_shards.sources.tar_scan import Flaw, scan_tar

PEEKED = 64  # samples looked at to recognise a layout
ENDS = 1 << 16  # bytes at either end of a tar that its identity is made from


@dataclass(frozen=True)
class Beside:
    """What lies beside a tar and belongs to its layout (CLIP_benchmark's class names, templates and kind)."""

    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    clip_benchmark: str = ""  # the file that shows it
    img2dataset: str = ""
    split: str = ""
    shards: int | None = None


def find_tars(where: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The tars of a folder and the folders in it, of a pattern such as "train/*.tar", or of a list of these; "2.tar"
    comes before "10.tar". Raises DataError: there is none, some are compressed, it is a shard set of our own."""
    found: dict[Path, None] = {}
    for one in [where] if isinstance(where, str | os.PathLike) else where:
        place = Path(one)
        if (place / "manifest.json").is_file() and (place / "index.parquet").is_file():
            raise DataError(
                "this folder is a shard set of VoxCLIP, not somebody else's tars",
                "its labels, splits and checks would be lost",
                "open it as a shard set (data_shards.shard_set.ShardSet, or data.source.kind: shards)",
            )
        if place.is_dir():
            _refuse_compressed(place)
            tars = [path for path in place.rglob("*.tar") if path.is_file()]
        elif place.is_file():
            tars = [place]
        else:
            tars = [path for path in place.parent.glob(place.name) if path.is_file()]
        found |= dict.fromkeys(sorted((path.absolute() for path in tars), key=_natural))
    if not found:
        raise DataError(
            "there is no .tar there", fix='give a folder with tars, a .tar, or a pattern in quotes ("*.tar")'
        )
    return list(found)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    return [(0, int(p), "") if _is_number(p) else (1, 0, p) for p in re.split(r"([0-9]+)", str(path)) if p]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()  # isdigit alone holds for "²", which int() refuses


def _refuse_compressed(folder: Path) -> None:
    packed = [p for pattern in ("*.tar.*", "*.tgz") for p in folder.rglob(pattern) if not p.name.endswith(".tar")]
    packed = [p for p in packed if p.suffix in (".gz", ".tgz", ".bz2", ".xz", ".zst")]
    if packed:
        raise DataError(
            f"{len(packed)} tars in this folder are compressed ({packed[0].suffix})",
            "members are read from their places, which a compressed file does not have",
            "unpack them to plain .tar first (gunzip FILE.tar.gz); images inside are compressed already",
        )


def beside(tar: Path) -> Beside:
    """Reads the small files of a published layout in the tar's folder and the one above it."""
    folder, above = tar.parent, tar.parent.parent

    def lines(name: str) -> tuple[Path | None, tuple[str, ...]]:
        for place in (folder / name, above / name):
            if place.is_file():
                with place.open("rb") as file:
                    text = decode_text(file.read(MAX_TEXT))
                return place, tuple(word for line in text.splitlines() if (word := plain(line)))
        return None, ()

    named, classes = lines("classnames.txt")
    _, templates = lines("zeroshot_classification_templates.txt")
    kind, _ = lines("dataset_type.txt")
    counted, shards = lines("nshards.txt") if (folder / "nshards.txt").is_file() else (None, ())
    shown = next((p.name for p in (counted, named, kind) if p is not None), "")
    of_split = any(p is not None and p.parent == above for p in (named, kind)) or counted is not None
    stats = folder / f"{tar.stem}_stats.json"
    return Beside(
        _distinct(classes),
        templates,
        shown,
        next((p.name for p in (tar.with_suffix(".parquet"), stats) if p.is_file()), ""),
        folder.name.lower() if shown and of_split else "",
        int(shards[0]) if shards and _is_number(shards[0]) and len(shards[0]) < 9 else None,
    )


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """ImageNet has two classes "crane": the second is then called by its number too."""
    seen = Counter(names)
    return tuple(name if seen[name] == 1 else f"{name} (class {i})" for i, name in enumerate(names))


def recognise(tar: Path, around: Beside) -> tuple[Layout, str]:
    """The layout of a tar and why. Raises DataError with the members that were found where none fits."""
    samples: dict[str, tuple[set[str], Parts]] = {}
    members: Counter[str] = Counter()
    for member in scan_tar(tar, lambda name, size: size <= LIMITS.get(stem_and_ext(name)[1], 0)):
        if isinstance(member, Flaw):
            continue
        stem, ext = stem_and_ext(member.name)
        if stem not in samples and len(samples) == PEEKED:
            break
        members[ext] += 1
        extensions, parts = samples.setdefault(stem, (set(), Parts()))
        extensions.add(ext)
        samples[stem] = extensions, with_member(parts, ext, member, RECOGNISED_BY, [])
    whole = [(frozenset(e), p) for e, p in samples.values() if e & IMAGES]
    if around.clip_benchmark and any(e & {"cls", "npy", "txt"} for e, _ in whole):
        return LAYOUTS["clip_benchmark"], f"{around.clip_benchmark} lies beside"
    for layout in LAYOUTS.values():
        reasons = Counter(why for e, p in whole if (why := layout.suits(e, p)))
        if whole and 2 * reasons.total() >= len(whole):
            if layout.name == "unimed" and around.img2dataset:
                return LAYOUTS["img2dataset"], f"{around.img2dataset} lies beside"
            return layout, f"{reasons.most_common(1)[0][0]} (in {reasons.total()} of {len(whole)} samples)"
    raise DataError(
        f"{tar.name} has none of the known layouts; its first samples have {told_members(members)}",
        "which member is the image, the text or the label would be a guess",
        "name one with layout= or --layout (unimed: image + txt; biomedica: image + txt + json; clip_benchmark: image "
        "+ cls, npy or txt; img2dataset: image + txt or json), or build shards from a table of these files",
    )


def told_members(members: Counter[str]) -> str:
    """ "3 .jpg, 3 .txt"; what is no plain extension is not repeated."""
    shown: Counter[str] = Counter()
    for ext, count in members.items():
        shown[shown_ext(ext)] += count
    return ", ".join(f"{n} {ext if ext == 'others' else '.' + ext}" for ext, n in shown.most_common(12)) or "no members"


def ends_of(tar: Path) -> tuple[int, int, str]:
    """(bytes, mtime in ns, sha256 of the size, the first and the last 64 KiB): a tar's identity, without its path."""
    try:
        with tar.open("rb") as file:
            state = os.fstat(file.fileno())
            digest = hashlib.sha256(str(state.st_size).encode() + b"\0" + file.read(ENDS))
            file.seek(max(0, state.st_size - ENDS))
            digest.update(file.read(ENDS))
    except OSError as error:
        raise DataError(f"{tar.name} cannot be read ({error.strerror})", fix="check the file") from None
    return state.st_size, state.st_mtime_ns, digest.hexdigest()
