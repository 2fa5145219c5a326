"""Test studies that are also in training: the same voxels, the same picture, the same patient, the same report.

The perceptual threshold is half of the distance at which one in a hundred unrelated studies (other patients of one set)
finds its nearest neighbour, and never more than 8 % of the bits, which copies after JPEG, resizing or resampling stay
under (docs/audit.md has the measurement). Where unrelated studies of this data look alike, it shrinks with them.

Legend: N test studies, M training studies, S scans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.audit.facts import NO_TEXT, Facts
from eval_zero_shot.audit.nearest import hamming, nearest, unrelated
from eval_zero_shot.audit.verdict import Check

MOST_BITS = 0.08
RATIO = 2  # how much nearer than unrelated studies a copy has to be
TAIL = 1.0  # percent of unrelated studies whose nearest neighbour sets the scale
QUERIES = 2000
FEWEST = 20  # unrelated studies, or their tail is not known
LONG = 30  # words; shorter normal reports are written alike by everybody
Salts = Literal["same", "different", "unknown"]


@dataclass(frozen=True)
class Named:
    """Facts with the hashed names of their studies."""

    facts: Facts
    keys: tuple[str, ...]
    patients: NDArray[np.str_]


@dataclass(frozen=True)
class Pair:
    """A test study and the training study nearest to it of those that match; `matches` counts these."""

    kind: str
    test: int
    train: int
    value: float
    threshold: float
    matches: int


@dataclass(frozen=True)
class Found:
    check: Check
    pairs: tuple[Pair, ...] = ()

    def hits(self, n: int) -> NDArray[np.bool_]:
        """[N] which test studies are in a pair."""
        mask = np.zeros(n, np.bool_)
        mask[[pair.test for pair in self.pairs]] = True
        return mask


def exact(test: Named, train: Named) -> Found:
    """Scans whose stored voxels are the same, whatever key and salt their study was hashed with."""
    places: dict[bytes, list[int]] = {}
    for row, study in zip(train.facts.exact_S2, train.facts.study_S.tolist(), strict=True):
        if row.any():
            places.setdefault(row.tobytes(), []).append(study)
    pairs = {}
    for row, study in zip(test.facts.exact_S2, test.facts.study_S.tolist(), strict=True):
        if (same := places.get(row.tobytes())) and study not in pairs:
            pairs[study] = Pair("exact", study, same[0], 0.0, 0.0, len(same))
    k, n = len(pairs), len(test.keys)
    says = f"{k} of {n} test studies have a scan whose stored voxels are those of a training scan"
    says += "." if k else f" ({len(train.keys)} training studies compared)."
    check = Check("identical images", "fail" if k else "ok", says, k / n, 0.0, n)
    return Found(check, tuple(pairs.values()))


def perceptual(test: Named, train: Named, seed: int = 0) -> Found:
    """Scans that look the same at low resolution: copies in another format, size, window or resampling."""
    name = "near-identical images"
    bits = [side.facts.bits_SW[side.facts.clear_S] for side in (test, train)]
    if not all(len(b) for b in bits):
        where = "test" if not len(bits[0]) else "training"
        says = f"no {where} scan of the model's kind has enough contrast to be hashed."
        return Found(Check(name, "not checked", says))
    total = bits[0].shape[1] * 64
    both = np.unique(np.concatenate([test.patients, train.patients]), return_inverse=True)[1]
    studies = [side.facts.study_S[side.facts.clear_S] for side in (test, train)]
    patients = [both[: len(test.keys)][studies[0]], both[len(test.keys) :][studies[1]]]
    nulls = [unrelated(b, p, hamming, QUERIES, seed) for b, p in zip(bits, patients, strict=True)]
    nulls = [null[null > 0] for null in nulls]  # copies within a set are not unrelated studies
    nulls = [null for null in nulls if len(null) >= FEWEST]
    if not nulls:
        says = f"fewer than {FEWEST} patients on either side, so how alike unrelated studies look is not known."
        return Found(Check(name, "not checked", says))
    tail = min(float(np.percentile(null, TAIL)) for null in nulls)
    limit = int(min(MOST_BITS * total, tail / RATIO))
    found = nearest(bits[0], bits[1], hamming, limit=limit)
    pairs: dict[int, Pair] = {}
    for scan in np.flatnonzero(found.distance_Q <= limit):
        study, value = int(studies[0][scan]), float(found.distance_Q[scan])
        if study not in pairs or value < pairs[study].value:
            other = int(studies[1][found.index_Q[scan]])
            pairs[study] = Pair("perceptual", study, other, value, limit, int(found.within_Q[scan]))
    k, n = len(pairs), len(test.keys)
    chance = max(float((null <= limit).mean()) for null in nulls)
    expected = chance * n
    says = (
        f"{k} of {n} test studies have a training scan within {limit} of {total} bits of their perceptual hash "
        f"(unrelated studies: nearest neighbour at {tail:.0f} bits or more in 99 of 100; by chance {expected:.1f} "
        "studies would)."
    )
    if limit < int(MOST_BITS * total):
        says += " Unrelated studies look alike here, so copies that were changed more than that are not seen."
    if hidden := len(test.facts.clear_S) - len(bits[0]):
        says += f" {hidden} test scans have too little contrast to be hashed."
    severity: Any = "ok" if not k else "fail" if k > expected + 2 * np.sqrt(expected) else "warn"
    return Found(Check(name, severity, says, k / n, limit / total, n), tuple(pairs.values()))


def patients(test: Named, train: Named, salts: Salts, evidence: str) -> Found:
    """Patients in both, by hashed id: comparable only under one salt."""
    first: dict[str, int] = {}
    counts: dict[str, int] = {}
    for m, patient in enumerate(train.patients.tolist()):
        first.setdefault(patient, m)
        counts[patient] = counts.get(patient, 0) + 1
    pairs = tuple(
        Pair("patient", n, first[patient], 0.0, 0.0, counts[patient])
        for n, patient in enumerate(test.patients.tolist())
        if patient in first
    )
    total = len(test.keys)
    if pairs:
        people = len({str(test.patients[pair.test]) for pair in pairs})
        says = f"{people} patients are in test and training ({len(pairs)} of {total} test studies)."
        return Found(Check("patients", "fail", says, len(pairs) / total, 0.0, total), pairs)
    if salts == "same":
        says = f"none of {len(set(test.patients.tolist()))} test patients is in training ({evidence})."
        return Found(Check("patients", "ok", says, 0.0, 0.0, total))
    says = f"no hashed patient id is in both sets, which means nothing: {evidence}."
    return Found(Check("patients", "not checked", says))


def salts_of(test: Named, train: Named, same_set: bool, identical: Sequence[Pair]) -> tuple[Salts, str]:
    """Whether two sets hashed their patients with one salt, by what can be seen from outside, and the evidence. The
    salt itself is in neither set."""
    if same_set:
        return "same", "both splits are of one shard set"
    if set(test.patients.tolist()) & set(train.patients.tolist()) or set(test.keys) & set(train.keys):
        return "same", "both sets share hashed ids, so they were hashed with one salt"
    if identical:
        return "different", (
            "the same image has another hashed patient in each set, so they were hashed with different salts or from "
            "different ids; build both with one salt ($VOXCLIP_SALT)"
        )
    return "unknown", (
        "the sets share no hashed id at all, as sets with different salts do; build both with one salt "
        "($VOXCLIP_SALT) to compare patients"
    )


def reports(test: Named, train: Named) -> Found:
    """Reports that are the same word for word. Normal reports repeat, so what counts is more repetition across the
    sets than among the test patients themselves, in reports too long to be written twice."""
    name, told = "identical reports", np.flatnonzero(test.facts.report_N != NO_TEXT)
    if not len(told) or not (train.facts.report_N != NO_TEXT).any():
        side = "test" if not len(told) else "training"
        return Found(Check(name, "not checked", f"no {side} study has a report (captions made from labels aside)."))
    first = {int(h): m for m, h in reversed(list(enumerate(train.facts.report_N)))}
    counts = np.unique(train.facts.report_N, return_counts=True)
    often = dict(zip(counts[0].tolist(), counts[1].tolist(), strict=True))
    hashes = test.facts.report_N
    pairs = tuple(
        Pair("report", int(n), first[int(hashes[n])], 0.0, 0.0, often[int(hashes[n])])
        for n in told
        if int(hashes[n]) in first
    )
    people: dict[int, set[str]] = {}
    for n in told:
        people.setdefault(int(hashes[n]), set()).add(str(test.patients[n]))
    long = test.facts.words_N >= LONG
    across = sum(bool(long[pair.test]) for pair in pairs)
    within = sum(len(people[int(hashes[n])]) > 1 and bool(long[n]) for n in told)
    says = (
        f"{len(pairs)} of {len(told)} test reports are in training word for word, {across} of them of {LONG} words or "
        f"more; among the test patients themselves {within} such long reports repeat."
    )
    severity: Any = "warn" if across > within else "ok"
    return Found(Check(name, severity, says, len(pairs) / len(told), within / len(told), len(told)), pairs)
