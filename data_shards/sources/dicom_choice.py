"""Headers to series, and which series of a study is the one to train on."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from data_shards.dicom.header import RADIOGRAPHS
from data_shards.errors import DataError
from data_shards.schema import MIN_SLICES
from data_shards.sources.dicom_index import Header

RULES = ("primary", "all", "largest", "thinnest")
MODALITIES = ("CT", "MR", "PT", "NM", *RADIOGRAPHS)  # in this order where a study has several
_VIEWS = ("PA", "AP", "")
_NEAR = 0.9  # series with 90 % of the slices, or within 10 % of the distance, count as alike
_SOFT_NAMES = ("STANDARD", "STND", "SOFT", "SMOOTH")
_SHARP_NAMES = ("LUNG", "BONE", "EDGE", "DETAIL", "SHARP")


@dataclass(frozen=True)
class Series:
    """One volume: files that share series, size, direction and, where places repeat, time point. Or one radiograph:
    one file, no slices."""

    uid: str
    number: int
    modality: str
    description: str
    kernel: str
    files: tuple[str, ...]
    slices: int
    step_mm: float
    axial: bool
    view: str = ""

    @property
    def soft(self) -> bool | None:
        return soft_kernel(self.kernel)


@dataclass(frozen=True)
class Rule:
    """Which series are kept, best first. pattern: of `regex:PATTERN`, searched in the series' description."""

    name: str
    pattern: re.Pattern[str] | None = None

    def choose(self, series: Sequence[Series]) -> list[Series]:
        """primary: the best by `rank`. all: everything, the best first. largest: most slices. thinnest: least distance.
        regex: all whose description matches, the best first."""
        if self.pattern is not None:
            matching = [s for s in series if self.pattern.search(s.description)]
            return rank(matching)
        if self.name == "largest":
            return sorted(rank(series), key=lambda s: -s.slices)[:1]
        if self.name == "thinnest":
            return sorted(rank(series), key=lambda s: s.step_mm if s.slices else math.inf)[:1]
        return rank(series) if self.name == "all" else rank(series)[:1]


def parse_rule(value: str) -> Rule:
    """ "primary", "all", "largest", "thinnest" or "regex:PATTERN". Raises: DataError for any other word."""
    if value.startswith("regex:"):
        try:
            return Rule("regex", re.compile(value.removeprefix("regex:"), re.IGNORECASE))
        except re.error as error:
            raise DataError(f"--series: the pattern is no regular expression ({error})") from None
    if value not in RULES:
        raise DataError(f"--series {value!r} is unknown", fix=f"use one of {RULES}, or regex:PATTERN")
    return Rule(value)


def rank(series: Sequence[Series]) -> list[Series]:
    """Best first: CT before MR, PET and others; axial; most slices (90 % of the most count as many); thinnest (within
    10 % alike); soft kernel before unknown before sharp; radiographs: PA, AP, unknown, others; then series number and
    UID, so that the order is fixed."""
    if not series:
        return []
    kinds = {m: i for i, m in enumerate(MODALITIES)}
    best = min(kinds.get(s.modality, len(kinds)) for s in series)
    peers = [s for s in series if kinds.get(s.modality, len(kinds)) == best]
    most = max(s.slices for s in peers)
    many = [s for s in peers if s.slices >= _NEAR * most]
    thin = min(s.step_mm for s in many)

    def key(s: Series) -> tuple[object, ...]:
        few = 0 if s.slices >= _NEAR * most else most - s.slices
        thick = 0.0 if s.step_mm * _NEAR <= thin else s.step_mm
        kernel = {True: 0, None: 1, False: 2}[s.soft]
        view = _VIEWS.index(s.view) if s.view in _VIEWS else len(_VIEWS)
        return (kinds.get(s.modality, len(kinds)), not s.axial, few, thick, kernel, view, s.number, s.uid, s.files)

    return sorted(series, key=key)


def soft_kernel(kernel: str) -> bool | None:
    """Whether a CT reconstruction kernel is a soft one; None where its name does not tell.

    Siemens: letters and a number, soft to 49 (B31f, Br40, I30f); Canon: FC01 to FC19 and FC40 to FC49 soft; Philips:
    A to C; GE and others: words.
    """
    name = kernel.upper().strip("[]'\" ")
    if any(word in name for word in _SHARP_NAMES):
        return False
    if any(word in name for word in _SOFT_NAMES):
        return True
    if canon := re.match(r"FC(\d\d)", name):
        return int(canon[1]) <= 19 or 40 <= int(canon[1]) <= 49
    if siemens := re.match(r"[A-Z]{1,2}(\d\d)", name):
        return int(siemens[1]) < 50
    if re.fullmatch(r"[A-F]|Y[A-F]?|L", name):
        return name in ("A", "B", "C", "YA")
    return None


def series_of(headers: Iterable[Header]) -> tuple[list[Series], list[tuple[str, int]]]:
    """The volumes and radiographs of one study, and what is left out: (reason, files), one entry a series."""
    by_uid: dict[str, list[Header]] = defaultdict(list)
    left_out: dict[tuple[str, str], int] = defaultdict(int)
    found: list[Series] = []
    headers = list(headers)
    torn = {header.series: header.why_not for header in headers if header.broken}
    for header in headers:
        if "" in torn and header.series:
            left_out["a damaged file of the study may be of any of its series", header.series] += 1
        elif header.series in torn:  # without the damaged slice, the rest would pass for a shorter scan
            left_out[f"a file of it cannot be used: {torn[header.series]}", header.series] += 1
        elif header.why_not:
            left_out[header.why_not, header.series] += 1
        elif header.radiograph:
            found.append(_radiograph(header))
        else:
            by_uid[header.series].append(header)
    for uid, members in sorted(by_uid.items()):
        for group in _alike(members):
            series = _series(uid, group)
            if series.slices < MIN_SLICES:
                left_out[f"fewer than {MIN_SLICES} slices of one size and direction", uid] += len(group)
            elif series.modality == "CT" and not series.axial:
                left_out["CT that is not axial (scout or reformatted)", uid] += len(group)
            else:
                found.append(series)
    return found, [(reason, files) for (reason, _), files in sorted(left_out.items())]


def _alike(members: Sequence[Header]) -> list[list[Header]]:
    """Members of one size and direction; where places repeat, also of one time point, echo or reconstruction."""
    groups: dict[tuple[object, ...], list[Header]] = defaultdict(list)
    for header in members:
        groups[header.shape].append(header)
    out: list[list[Header]] = []
    for _, group in sorted(groups.items(), key=lambda item: [str(v) for v in item[0]]):
        out += _phases(group)
    return out


def _phases(group: list[Header]) -> list[list[Header]]:
    if _places_once(group):
        return [group]
    for i in range(len(group[0].phases)):
        parts: dict[str, list[Header]] = defaultdict(list)
        for header in group:
            parts[header.phases[i]].append(header)
        if 1 < len(parts) <= len(group) // MIN_SLICES and all(_places_once(part) for part in parts.values()):
            return [part for _, part in sorted(parts.items())]
    return [group]  # reading it says what is wrong


def _places_once(group: Sequence[Header]) -> bool:
    along = np.sort(np.concatenate([header.along for header in group]))
    return len(along) < 2 or bool(np.diff(along).min() > 0.01)


def _radiograph(header: Header) -> Series:
    return Series(
        uid=header.series,
        number=header.number,
        modality=header.modality,
        description=header.description,
        kernel="",
        files=(header.file,),
        slices=0,
        step_mm=0.0,
        axial=False,
        view=header.view,
    )


def _series(uid: str, group: Sequence[Header]) -> Series:
    first = min(group, key=lambda header: (header.number, header.file))
    along = np.unique(np.concatenate([header.along for header in group]))
    gaps = np.diff(along)
    return Series(
        uid=uid,
        number=first.number,
        modality=first.modality,
        description=first.description,
        kernel=first.kernel,
        files=tuple(sorted(header.file for header in group)),
        slices=len(along),
        step_mm=round(float(np.median(gaps)), 3) if len(gaps) else 0.0,
        axial=bool(abs(first.normal[2]) == max(abs(v) for v in first.normal)),
    )
