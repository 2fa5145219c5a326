"""Other people's WebDataset tars, read where they lie as if they were a shard set."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from isal.isal_zlib import crc32

from data_shards.errors import DamagedError, DataError
from data_shards.foreign.index import Sidecar, patient_salt
from data_shards.foreign.scan import Asked, scan
from data_shards.schema import IMAGE_EXTS, Scan, Study
from data_shards.shard_set import GONE_ERRNO, refused
from data_shards.shards import rows_of_split
from data_shards.sources.base import Listing, ScanFile, StudyRow
from data_shards.sources.layouts import LAYOUTS, Piece, labels_of, texts_of
from data_shards.sources.published import Beside, beside, find_tars
from data_shards.sources.tar_samples import NAMED, told
from data_shards.sources.values import drawn_split
from data_shards.storage import OpenFiles

CACHE = "~/.cache/voxclip/foreign"
DAMAGED = "training would go on with silently wrong pixels or words"


class ForeignShards:
    """Tars of somebody else's layout, with the interface of a ShardSet (data_shards.shards.Shards).

    Open with `ForeignShards.open(...)`. Every image is read by its place and checked by its crc32. Keys are hashes of
    (the tar's content identity, the sample's name); the tars are never written, their index lies in the cache folder.
    Picklable; files are opened lazily in each process. `textless`: rows (int64) whose labels name no class that is
    present; they are scored like any other, and a training leaves them out (`data_shards.opening.with_text`).
    """

    def __init__(
        self,
        tars: Sequence[Path],
        sidecars: Sequence[Sidecar],
        around: Sequence[Beside],
        splits: Sequence[str | None],
        fractions: tuple[float, float],
        modality: str | None,
    ) -> None:
        self.tars, self.sidecars, self._modality = list(tars), list(sidecars), modality
        self.layout: str = sidecars[0].about["layout"]
        self.reason: str = sidecars[0].about["reason"]
        self.problems = [f"{t.name}, {flaw}" for t, s in zip(tars, sidecars) for flaw in told(s.about["flaws"])]
        self.textless = np.flatnonzero(np.concatenate([s.textless for s in sidecars])).astype(np.int64)
        if len(self.textless):
            self.problems.append(f"{len(self.textless)} samples have labels of which none is present, so no text")
        self.lost: int = sum(s.about["lost"] for s in sidecars)
        self._templates = around[0].templates
        self.label_names = _class_names(around, sidecars)
        self._first = np.cumsum([0, *(len(s) for s in sidecars)])
        self._key = np.concatenate([s.key for s in sidecars])
        self._patient = np.concatenate([s.patient for s in sidecars])
        drawn = _drawn(self._patient, *fractions)
        given = np.repeat([s or "" for s in splits], [len(s) for s in sidecars])
        self._split = np.where(given == "", drawn, given)
        self._open = OpenFiles()
        self.manifest = self._manifest()
        content = [s.about["content"] for s in sidecars]
        identity = [self.layout, content, self.label_names, self._templates, self._split.tolist(), modality]
        self.manifest_hash = hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    @classmethod
    def open(
        cls,
        where: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        layout: str = "auto",
        cache: str | os.PathLike[str] = CACHE,
        split: str | None = None,
        val_fraction: float = 0.0,
        test_fraction: float = 0.0,
        modality: str | None = None,
        patient_field: str | None = None,
        max_damaged: int = 0,
        verify: bool = False,
        workers: int = 0,
    ) -> ForeignShards:
        """Open tars after scanning each of them once; later opens read the index in `cache` only.

        Args:
            where: a folder (and those in it), a .tar, a pattern such as "train/*.tar", or a list of these.
            layout: "auto", "unimed", "biomedica", "clip_benchmark" or "img2dataset".
            split: the split of all samples; without it the layout's own (CLIP_benchmark's folders), else "train".
            val_fraction, test_fraction: without a split, shares drawn by the hash of the patient, article or sample.
            modality: DICOM code of all images; without it what the layout tells, else "OT" (other).
            patient_field: field of the json that names the patient, or whatever must not be in two splits; hashed with
                the private salt, $VOXCLIP_SALT or a file beside the cache folder.
            max_damaged: samples, or members that belong to none, that may be left out; more are an error.
            workers: processes that scan, a tar each; 0 scans in this one.
            verify: compare sha256 of all bytes with that of the first scan, and decode every image while scanning.
        Raises: DataError: no tars, no known layout, more flaws than declared, two tars that are the same, a shard
            missing that nshards.txt counts, a cache folder that cannot be written.
        """
        if layout not in ("auto", *LAYOUTS):
            raise DataError(f"there is no layout {layout!r}", fix=f"use auto or one of {sorted(LAYOUTS)}")
        if min(val_fraction, test_fraction, max_damaged, workers) < 0 or val_fraction + test_fraction >= 1:
            raise DataError(
                "fractions, max_damaged and workers cannot be negative, and the fractions must leave something"
            )
        tars = find_tars(where)
        around = [beside(tar) for tar in tars]
        folder = Path(cache).expanduser()
        salt = patient_salt(folder) if patient_field else ""
        sidecars = scan(tars, around, Asked(layout, patient_field, verify, folder, salt), workers)
        own = [one.split if sidecars[0].about["layout"] == "clip_benchmark" else "" for one in around]
        splits = [split or place or None for place in own]
        shards = cls(tars, sidecars, around, splits, (val_fraction, test_fraction), modality)
        shards._check(around, max_damaged, folder=isinstance(where, str | os.PathLike) and Path(where).is_dir())
        return shards

    def __len__(self) -> int:
        return len(self._key)

    def rows(self, split: str | None = None) -> np.ndarray:
        """Row numbers (int64) of a split, or of all samples. Raises DataError for a split with no sample."""
        known = f"these tars have the splits {self.manifest['splits']}; see split, val_fraction and test_fraction"
        return rows_of_split(self._split, split, known)

    def key(self, row: int) -> str:
        return self._key[row].decode()

    def patient(self, row: int) -> str:
        """Hash of the patient or article where the layout tells it, else the sample's own key."""
        return self._patient[row].decode()

    def shard(self, row: int) -> str:
        """Name of the tar that holds the sample."""
        return self.tars[self._place(row)[0]].name

    def modality(self, row: int) -> str:
        """As DICOM writes it: what was asked for, else what the layout tells, else OT (other)."""
        part, at = self._place(row)
        return self._modality or self.sidecars[part].modality(at)

    def labels(self, names: tuple[str, ...] | None = None) -> np.ndarray:
        """Labels of all rows, float32 (rows, names): 1, 0, or NaN for unknown. Raises DataError for a strange name."""
        chosen = self.label_names if names is None else tuple(names)
        if strange := [n for n in chosen if n not in self.label_names]:
            raise DataError(f"no label {strange} in these tars", fix=f"they have {list(self.label_names)}")
        out = np.full((len(self), len(chosen)), np.nan, np.float32)
        if not chosen:
            return out
        number = {name: i for i, name in enumerate(self.label_names)}
        columns = [number[name] for name in chosen]
        for row in range(len(self)):
            values = labels_of(self._piece(row), len(self.label_names))
            out[row] = [np.nan if (v := values[column]) is None else v for column in columns]
        return out

    def members(self, row: int) -> list[str]:
        """As a shard set's: KEY.00.EXT with the image's true extension, and KEY.json (made from the listed members)."""
        return [f"{self.key(row)}.00.{self._ext(row)}", f"{self.key(row)}.json"]

    def member(self, row: int, name: str) -> bytes:
        """The image's bytes, checked by crc32, or the json. Raises DataError for another name."""
        image, words = self.members(row)
        if name in (image, image.partition(".")[2]):
            return self._read(row)
        if name in (words, "json"):
            return json.dumps(self.json(row), ensure_ascii=False, separators=(",", ":")).encode()
        raise DataError(f"sample {self.key(row)} has no member {name!r}", fix=f"it has {self.members(row)}")

    def json(self, row: int) -> dict[str, Any]:
        """The sample's json (see contract 1)."""
        return self._study(row).to_json()

    def scan(self, row: int, i: int = 0, info: dict[str, Any] | None = None) -> tuple[bytes, dict[str, Any]]:
        """(bytes of the image, its entry of the json). Raises DamagedError where its crc32 does not match."""
        if i:
            raise DataError(f"sample {self.key(row)} has 1 scan, none numbered {i}")
        return self._read(row), (info or self.json(row))["scans"][0]

    def listing(self) -> Listing:
        """The samples as studies to build a shard set of our own from. Ids and patients are hashes already."""
        rows = []
        for row in range(len(self)):
            study, (part, at) = self._study(row), self._place(row)
            side, (image,) = self.sidecars[part], study.scans
            place, crc32 = (int(side.offset[at]), int(side.bytes[at])), int(side.crc32[at])
            rows.append(
                StudyRow(
                    row + 1,
                    study.key,
                    (ScanFile(str(self.tars[part]), at=place, ext=image.ext, crc32=crc32, modality=image.modality),),
                    study.patient,
                    study.split,
                    study.texts,
                    study.labels,
                    study.meta,
                    licence=study.licence,
                )
            )
        return Listing(rows, notes=tuple(self.problems))

    def _study(self, row: int) -> Study:
        """A study whose scan has no pixels yet."""
        piece, names = self._piece(row), self.label_names
        return Study(
            self.key(row),
            self.patient(row),
            str(self._split[row]),
            (Scan(image=b"", ext=self._ext(row), modality=self._modality or piece.modality, unit="arbitrary"),),
            texts_of(piece, names, self._templates),
            dict(zip(names, labels_of(piece, len(names)), strict=True)),
            self.layout,
            piece.licence,
            piece.meta,
        )

    def _place(self, row: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._first, row, "right")) - 1
        return part, int(row) - int(self._first[part])

    def _piece(self, row: int) -> Piece:
        part, at = self._place(row)
        return self.sidecars[part].piece(at)

    def _ext(self, row: int) -> str:
        part, at = self._place(row)
        return IMAGE_EXTS[self.sidecars[part].ext[at]]

    def _read(self, row: int) -> bytes:
        part, at = self._place(row)
        side, name = self.sidecars[part], self.tars[part].name
        size = int(side.bytes[at])
        try:
            file = self._open.file(self.tars[part])
            data = os.pread(file.fd, size, int(side.offset[at]))
        except OSError as error:
            if error.errno not in GONE_ERRNO:
                raise refused(name, error) from None
            raise DamagedError(
                f"{name} cannot be read ({error.strerror})",
                "its samples would be missing from training",
                "restore it from where it was copied",
                name,
                self.key(row),
            ) from None
        if len(data) != size or crc32(data) != side.crc32[at]:
            state = f"ends after {len(data)} of {size} bytes" if len(data) != size else "does not match its crc32"
            raise DamagedError(
                f"{name}, sample {self.key(row)}: the image {state}",
                DAMAGED,
                f"copy {name} again; if it was changed on purpose, open it again",
                name,
                self.key(row),
            )
        return data

    def _manifest(self) -> dict[str, Any]:
        licences: Counter[str] = Counter()
        for side in self.sidecars:
            licences.update(side.about["licences"])
        return {
            "layout": self.layout,
            "samples": len(self),
            "patients": len(np.unique(self._patient)),
            "splits": dict(sorted(Counter(self._split.tolist()).items())),
            "label_names": list(self.label_names),
            "licences": dict(licences.most_common()),
            "captions": sum(side.about["captions"] for side in self.sidecars),
            "shards": [
                {"name": tar.name, "bytes": side.about["bytes"], "samples": len(side)}
                for tar, side in zip(self.tars, self.sidecars, strict=True)
            ],
        }

    def _check(self, around: Sequence[Beside], max_damaged: int, folder: bool) -> None:
        """Raises DataError for a set that lacks something, or has more flaws than were declared."""
        counted = Counter(tar.parent for tar in self.tars)
        for tar, one in zip(self.tars, around, strict=True):
            if folder and one.shards is not None and counted[tar.parent] != one.shards:
                raise DataError(
                    f"nshards.txt counts {one.shards} tars, and there are {counted[tar.parent]} in its folder",
                    "samples would be missing in silence",
                    "copy the missing ones, or list the tars you want one by one",
                )
        if self.lost > max_damaged:
            listed = "".join(f"\n    {problem}" for problem in self.problems[:NAMED])
            raise DataError(
                f"{self.lost} samples or members cannot be used, at most {max_damaged} may be left out:{listed}",
                "what is left out may be of one kind, and results would be biased in silence",
                "copy the tars again, or take them from their source; to do without these, declare it: "
                f"max_damaged={self.lost} (--max-damaged {self.lost})",
            )
        if not len(self):
            raise DataError("there is no sample in these tars", fix="check what they hold: tar -tf FILE.tar")
        if len(np.unique(self._key)) != len(self):
            raise DataError(
                "two of the tars are the same file", "its samples would be trained on twice", "leave one of them out"
            )


def _class_names(around: Sequence[Beside], sidecars: Sequence[Sidecar]) -> tuple[str, ...]:
    if sidecars[0].about["layout"] != "clip_benchmark":
        return ()
    if len({(one.classes, one.templates) for one in around}) > 1:
        raise DataError(
            "the tars are of sets with different class names or templates",
            "one number would stand for two classes",
            "open each set alone, and mix them in the stream",
        )
    seen = max(side.about["classes"] for side in sidecars)
    return around[0].classes or tuple(f"class {i}" for i in range(seen))


def _drawn(patients: np.ndarray, val: float, test: float) -> np.ndarray:
    distinct, which = np.unique(patients, return_inverse=True)
    return np.array([drawn_split(patient.decode(), val, test) for patient in distinct.tolist()], str)[which]
