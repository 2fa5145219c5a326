"""From a row of a source to a study ready for the tar: read, de-identified, checked, compressed; in any process."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace

from data_shards.engine import Rejection
from data_shards.errors import DataError
from data_shards.privacy import hashed
from data_shards.schema import Caption, Scan, Study, Texts
from data_shards.shard_write import EncodedStudy, encode_study
from data_shards.silence import silent
from data_shards.sources.base import StudyRow

NO_TEXT = "the study has no text"
UNEXPECTED = "reading failed"


@dataclass(frozen=True)
class StudyMaker:
    """Makes studies of rows; sent to worker processes as it is.

    modality, file_spacing_mm (z, y, x): for files that do not say. spacing_mm: volumes are resampled to it (None: each
    keeps its own). accept: codes of data_shards.quality that do not refuse a volume. dtype: of volumes that are not in
    HU. mask_texts: identifiers in texts are replaced by marks (data_shards.deidentify).
    allow_no_text: a study without a text is made all the same, and its row of the index says so.
    """

    salt: str
    modality: str | None = None
    file_spacing_mm: tuple[float, float, float] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    accept: tuple[str, ...] = ()
    dtype: str = "int16"
    licence: str = ""
    source: str = ""
    mask_texts: bool = True
    allow_no_text: bool = False

    def __call__(self, row: StudyRow) -> EncodedStudy | Rejection:
        """Never raises: what is wrong with a study comes back as a Rejection, without its words, names or paths."""
        try:
            with silent():
                return self._make(row)
        except DataError as error:
            return self.rejected(row, error.what)
        except Exception as error:  # a reader's own failure: its message may hold a path, so only its kind is kept
            return self.rejected(row, f"{UNEXPECTED} ({type(error).__name__})")

    def rejected(self, row: StudyRow, reason: str) -> Rejection:
        """The rejection of a row."""
        return self.refused(row.line, row.id, reason)

    def refused(self, line: int, study: str, reason: str) -> Rejection:
        """The rejection of a study that has no row."""
        return Rejection(line, self.key(study), reason)

    def wordless(self, row: StudyRow) -> bool:
        """Whether the row is refused for want of a text: nobody said that its labels or its image are enough."""
        return row.texts.empty and not self.allow_no_text

    def key(self, study: str) -> str:
        """The key of a study's id."""
        return hashed(f"study/{study}", self.salt)

    def patient(self, patient: str) -> str:
        """The hash of a patient's id."""
        return hashed(f"patient/{patient}", self.salt)

    def _make(self, row: StudyRow) -> EncodedStudy:
        from data_shards.reading import read_scans

        if self.wordless(row):
            raise DataError(NO_TEXT)
        refuse_identifiers(row)
        found = read_scans(row, self.modality, self.file_spacing_mm, self.accept, self.dtype)
        scans = tuple(self._prepared(scan) for scan in found)
        texts = Texts() if row.texts.empty else row.texts
        texts, masked = masked_texts(texts, row.known) if self.mask_texts else (texts, Counter())
        key, patient = self.key(row.id), self.patient(row.patient)
        licence = row.licence or self.licence
        study = Study(key, patient, row.split, scans, texts, row.labels, self.source, licence, row.meta)
        return replace(encode_study(study), masked=dict(masked))

    def _prepared(self, scan: Scan) -> Scan:
        if scan.image is not None:
            from data_shards.image_metadata import stripped

            image, ext = stripped(scan.image, scan.ext)
            return replace(scan, image=image, ext=ext)
        if self.spacing_mm is not None:
            from data_shards.resample import resampled

            return resampled(scan, self.spacing_mm)
        return scan


def masked_texts(texts: Texts, known: tuple[str, ...]) -> tuple[Texts, Counter[str]]:
    """The texts with identifiers replaced by marks, and how many of each kind; `known` are the study's own."""
    from dataclasses import asdict

    from data_shards.deidentify import deidentify

    counts: Counter[str] = Counter()

    def masked(text: str) -> str:
        text, found = deidentify(text, known)
        counts.update({kind: n for kind, n in asdict(found).items() if n})
        return text

    captions = tuple(Caption(masked(caption.text), caption.weight) for caption in texts.captions)
    return Texts(masked(texts.report), masked(texts.findings), masked(texts.impression), captions), counts


def refuse_identifiers(row: StudyRow) -> None:
    """Raise DataError where a column that is kept as it is repeats what identifies the patient: one of row.known
    anywhere in it, or nothing but the id or the patient, however short (p7, which row.known has not). A number below
    1000 may as well be an age; a whole column of them is refused by data_shards.sources.table."""
    alone = {word.strip().lower() for word in (row.id, row.patient) if len(word) > 3 or not word.strip().isdecimal()}
    for name, value in row.meta.items():
        text = str(value)
        within = (re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in row.known)
        if text.strip().lower() in alone or any(within):
            raise DataError(
                f"the kept column {name!r} repeats an identifier of the study",
                "it would reach whoever gets the shards",
                "leave it out of --meta-columns",
            )
