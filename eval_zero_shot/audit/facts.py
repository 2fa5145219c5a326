"""Everything the audit needs of a set of studies besides a model's features: each study is read once, and the facts are
kept beside the feature cache under what determines them (data, rows, code).

Legend: N studies, S scans, W words of 64 bits, B border numbers, A acquisition numbers, T distinct texts.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CODE = ("eval_zero_shot/audit/hashes.py", "eval_zero_shot/audit/borders.py", "eval_zero_shot/audit/facts.py")
PACKAGES = ("numpy", "pillow", "scipy", "blosc2")
NO_TEXT = np.uint64(0)
Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Facts:
    """Of the studies of some rows, in their order.

    study_S: which study a scan is of. exact_S2: exact hash, zeros for a scan of one value. bits_SW: perceptual bits;
    clear_S: whether they mean anything (a scan of the model's kind, with contrast). border_NB, acquisition_NA: of the
    first scan of that kind, the latter with how many there are. report_N: hash of the whole report (0: none), words_N
    its length. whole_T, sentence_T: sorted hashes of distinct captions, reports and sections, and of the sentences in
    them; whole_count_T, sentence_count_T: in how many studies.
    """

    study_S: NDArray[np.int64]
    exact_S2: Words
    bits_SW: Words
    clear_S: NDArray[np.bool_]
    border_NB: NDArray[np.float32]
    acquisition_NA: NDArray[np.float32]
    report_N: Words
    words_N: NDArray[np.int64]
    whole_T: Words
    whole_count_T: NDArray[np.int64]
    sentence_T: Words
    sentence_count_T: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.report_N)


def plain_text(text: str) -> str:
    """A text without what prompts and captions differ in by habit: case, runs of spaces, the final full stop."""
    return " ".join(text.casefold().split()).rstrip(" .")


def text_hash(text: str) -> np.uint64:
    """64 bits of BLAKE2b; never 0."""
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    return np.uint64(number or 1)


def facts_of(shards: Any, rows: Sequence[int] | NDArray, kind: str, folder: Path | None, label: str) -> Facts:
    """Facts of rows of a shard set, out of `folder` where they are known, kept there otherwise (None: not kept).

    kind: "image" or "volume", of the scans that the model reads. label: what the progress bar calls the set.
    Raises DataError for a study that cannot be read or decoded.
    """
    path = None if folder is None else folder / f"{_identity(shards, rows, kind)}.safetensors"
    found = None if path is None else _load(path)
    if found is None:
        found = _read(shards, rows, kind, label)
        if path is not None:
            _keep(found, path)
    return found


def _read(shards: Any, rows: Sequence[int] | NDArray, kind: str, label: str) -> Facts:
    from data_shards.progress import track
    from data_shards.verify import normalised
    from eval_zero_shot.audit.borders import acquisition_facts, border_features
    from eval_zero_shot.audit.hashes import WORDS, exact_hash, perceptual_bits, pixels_of
    from eval_zero_shot.embedding import study_texts

    study, exact, bits, clear, border, acquisition, report, words = ([] for _ in range(8))
    whole: Counter[np.uint64] = Counter()
    sentence: Counter[np.uint64] = Counter()
    for n, row in enumerate(track((int(r) for r in rows), len(rows), label)):
        info = shards.json(row)
        count = 0
        for i in range(len(info["scans"])):
            source, meta = shards.scan(row, i, info)
            pixels = pixels_of(source, meta)
            own = isinstance(source, bytes) == (kind == "image")
            seen = perceptual_bits(pixels) if own else None
            study.append(n)
            exact.append(np.frombuffer(exact_hash(pixels.stored), dtype=np.uint64))
            bits.append(np.zeros(WORDS[kind], np.uint64) if seen is None else seen)
            clear.append(seen is not None)
            if i == 0 or (own and not count):  # of the first scan that the model reads, where there is one
                edges, facts = border_features(pixels), acquisition_facts(pixels, source, meta)
            count += own
        border.append(edges)
        acquisition.append(np.append(facts, np.float32(math.log1p(count))))
        told = normalised(study_texts({**info["texts"], "captions": ()}))
        report.append(text_hash(told) if told else NO_TEXT)
        words.append(len(told.split()))
        wholes, sentences = _texts(info["texts"])
        whole.update(wholes)
        sentence.update(sentences)
    return Facts(
        np.asarray(study, np.int64), np.stack(exact), np.stack(bits), np.asarray(clear, np.bool_),
        np.stack(border), np.stack(acquisition), np.asarray(report, np.uint64), np.asarray(words, np.int64),
        *_counted(whole), *_counted(sentence),
    )  # fmt: skip


def _texts(texts: dict[str, Any]) -> tuple[set[np.uint64], set[np.uint64]]:
    """Hashes of one study's whole texts, and of the sentences in them."""
    from data_shards.report.sentences import sentences

    parts = [texts.get(name) or "" for name in ("report", "findings", "impression")]
    parts += [caption["text"] for caption in texts.get("captions") or ()]
    said = {part for part in parts if part.strip()}
    return (
        {text_hash(plain_text(part)) for part in said},
        {text_hash(plain_text(one)) for part in said for one in sentences(part)},
    )


def _counted(counts: Counter[np.uint64]) -> tuple[Words, NDArray[np.int64]]:
    hashes = np.asarray(sorted(counts), dtype=np.uint64)
    return hashes, np.asarray([counts[h] for h in hashes], dtype=np.int64)


@lru_cache(maxsize=1)
def _code() -> str:
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256(json.dumps([version(name) for name in PACKAGES]).encode())
    for name in CODE:
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


def _identity(shards: Any, rows: Sequence[int] | NDArray, kind: str) -> str:
    rows_sha = hashlib.sha256(np.asarray(rows, dtype=np.int64).tobytes()).hexdigest()
    return hashlib.sha256(json.dumps([shards.manifest_hash, rows_sha, kind, _code()]).encode()).hexdigest()


def _load(path: Path) -> Facts | None:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return Facts(**load_file(path))
    except (SafetensorError, OSError, TypeError):  # not there, damaged, or other fields
        return None


def _keep(found: Facts, path: Path) -> None:
    from safetensors.numpy import save_file

    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({f.name: np.ascontiguousarray(getattr(found, f.name)) for f in fields(Facts)}, aside)
        os.replace(aside, path)
    except OSError as error:  # an hour of reading is not lost for want of a cache
        print(f"warning: hashes could not be kept ({type(error).__name__}): use --cache", file=sys.stderr)
    finally:
        aside.unlink(missing_ok=True)


def joined(parts: Sequence[Facts]) -> Facts:
    """Facts of several sets as one, studies numbered through."""
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0, *(len(p) for p in parts)])

    def stacked(name: str) -> Any:
        return np.concatenate([getattr(p, name) for p in parts])

    plain = {f.name: stacked(f.name) for f in fields(Facts) if not f.name.endswith("_T")}
    plain["study_S"] = np.concatenate([p.study_S + start for p, start in zip(parts, starts, strict=False)])
    for kind in ("whole", "sentence"):
        hashes, where = np.unique(stacked(f"{kind}_T"), return_inverse=True)
        counts = np.bincount(where, weights=stacked(f"{kind}_count_T"), minlength=len(hashes)).astype(np.int64)
        plain |= {f"{kind}_T": hashes, f"{kind}_count_T": counts}
    return Facts(**plain)
