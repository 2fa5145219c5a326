"""What a case is: a study by its first scan, by the mean of its scans or by these together, or every scan by itself.

A study may have several scans: reconstructions of one acquisition, views of one examination. Published protocols differ
in which of them they score (of CT-RATE's part valid all 3,039 volumes, or the first one of each of 1,564 scans), so
the choice is an option, is said in the notes of an outcome, and must be equal before two are compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_shards.schema import VOLUME_EXT
from eval_zero_shot.embedding import Features, StudyFeatures, mean_by_key
from eval_zero_shot.errors import EvalError

if TYPE_CHECKING:
    from data_shards.shards import Shards

Scans = Literal["first", "mean", "every", "together"]
SCANS: dict[Scans, str] = {
    "first": "the first scan of each study",
    "mean": "each study as the mean of its scans",
    "every": "every scan of each study",
    "together": "each study by its scans together",
}


def scans_of(asked: Scans | None, geometry: Any) -> Scans:
    """The choice that was asked of a model, or its own: `together` of one that reads several scans of a study at once
    (`geometry.scans_per_study`), `first` of the others.

    Raises EvalError for `together` of a model that reads one scan, and `first` of one that reads several.
    """
    several = getattr(geometry, "scans_per_study", 1)
    own: Scans = "together" if several > 1 else "first"
    if asked in ("first", "together") and asked != own:
        reads = f"up to {several} scans of a study together" if several > 1 else "one scan at a time"
        raise EvalError(
            f"scans: {asked} of a model that reads {reads}",
            why="its scores would not be those of the model as it was trained",
            fix=f"leave --scans (in a suite: scans) out, which is {own}, or take mean or every",
        )
    return asked or own


def add_scans(parser: argparse.ArgumentParser) -> None:
    """--scans: which scans of a study with several are scored, and as what."""
    parser.add_argument(
        "--scans", choices=tuple(SCANS),
        help="of a study with several: its first; the mean of all as one case; every one as a case of its own, with "
        "the labels, texts and patient of the study; or together, by a model that reads several at once (default: "
        "first, and together for such a model)",
    )  # fmt: skip


def _kind(member: str) -> str:
    return "volume" if member.endswith(VOLUME_EXT) else "image"


class EveryScan:
    """Studies read scan by scan: row c is scan `number_C[c]` of row `study_C[c]` of `studies`.

    Labels, texts, patient and split are the study's. The key is the study's with the scan's number behind it, which is
    the name of the scan's member in the shards (KEY.00.EXT). `manifest_hash` is another one than the studies', so what
    is kept by it (features, draws of few labels) is never taken for theirs.

    kind: "volume" or "image", what the model reads; scans of the other kind (a radiograph beside a CT), `others` in the
    whole set, are no cases. None: all of them.
    """

    def __init__(self, studies: Shards, kind: str | None = None) -> None:
        numbers_N = [
            [
                i for i, name in enumerate(studies.members(row)[:-1]) if kind in (None, _kind(name))
            ]  # the last is the json
            for row in range(len(studies))
        ]
        self.studies = studies
        self.others = sum(len(studies.members(row)) - 1 for row in range(len(studies))) - sum(map(len, numbers_N))
        self.study_C = np.repeat(np.arange(len(studies)), [len(numbers) for numbers in numbers_N])
        self._start = np.concatenate([[0], np.cumsum([len(numbers) for numbers in numbers_N], dtype=np.int64)])
        self.number_C = np.array([number for numbers in numbers_N for number in numbers], dtype=np.int64)
        self.label_names = studies.label_names
        self.manifest_hash = f"{studies.manifest_hash}/every scan"
        splits = {name: len(self.rows(name)) for name, samples in studies.manifest["splits"].items() if samples}
        self.manifest = {**studies.manifest, "splits": splits}

    def __len__(self) -> int:
        return len(self.study_C)

    def of(self, studies: Sequence[int] | NDArray) -> NDArray[np.int64]:
        """Rows of all scans of some rows of `studies`, study by study in their order."""
        each = [np.arange(self._start[row], self._start[row + 1]) for row in np.asarray(studies, dtype=np.int64)]
        return np.concatenate([np.empty(0, dtype=np.int64), *each])

    def rows(self, split: str | None = None) -> NDArray[np.int64]:
        """Rows of a split, or all. Raises DataError for a split with no study."""
        return self.of(self.studies.rows(split))

    def key(self, row: int) -> str:
        return f"{self.studies.key(int(self.study_C[row]))}.{self.number_C[row]:02d}"

    def patient(self, row: int) -> str:
        return self.studies.patient(int(self.study_C[row]))

    def labels(self, names: tuple[str, ...] | None = None) -> NDArray[np.float32]:
        """[rows, names], the studies': 1, 0, or NaN for unknown. Raises DataError for a strange name."""
        return self.studies.labels(names)[self.study_C]

    def members(self, row: int) -> list[str]:
        """Names of the scan's member and of the study's json."""
        names = self.studies.members(int(self.study_C[row]))
        return [names[self.number_C[row]], names[-1]]

    def json(self, row: int) -> dict[str, Any]:
        """The study's json with this scan alone."""
        info = self.studies.json(int(self.study_C[row]))
        return {**info, "scans": [info["scans"][self.number_C[row]]]}

    def scan(self, row: int, i: int = 0) -> tuple[Any, dict[str, Any]]:
        """(source, meta) of the row's one scan, number 0."""
        if i:
            raise IndexError(f"row {row} is one scan, and has none numbered {i}")
        return self.studies.scan(int(self.study_C[row]), int(self.number_C[row]))

    def means(
        self, studies: Sequence[int] | NDArray, embed: Callable[[NDArray[np.int64]], StudyFeatures],
        features: Features = "projected",
    ) -> StudyFeatures:  # fmt: skip
        """Of rows of `studies`, in their order: the mean of the vectors of all scans, where projected of unit length
        again.

        embed: rows of this set -> their vectors. Every scan counts alike, however many crops a view takes of it.
        """
        rows = self.of(studies)
        keys = tuple(self.studies.key(int(study)) for study in self.study_C[rows])
        return mean_by_key(replace(embed(rows), keys=keys), features)
