"""The whole audit of one model on one task: leakage, decontaminated scores, controls, and a verdict in words."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.audit import altered, assignment, controls, duplicates, shortcuts
from eval_zero_shot.audit.controls import Case, Control
from eval_zero_shot.audit.duplicates import FEWEST, Found, Named, Pair
from eval_zero_shot.audit.facts import Facts, facts_of, joined
from eval_zero_shot.audit.neighbours import neighbours
from eval_zero_shot.audit.prompts import prompts_in_training
from eval_zero_shot.audit.scoring import Scored, scored_of
from eval_zero_shot.audit.verdict import Check, sentences
from eval_zero_shot.errors import EvalError
from eval_zero_shot.inputs import Inputs, choose_rows
from eval_zero_shot.outcome import Metric, Outcome
from eval_zero_shot.tasks import Task

DECIDING = ("identical images", "near-identical images", "patients", "all of training")
LEAKS = ("exact", "perceptual", "patient")  # what takes a study out of the decontaminated part
FEWEST_OF_CLASS = 5
LEAK_CHECKS = (
    "identical images", "near-identical images", "patients", "embedding neighbours", "identical reports",
    "prompts in training texts", "decontaminated scores",
)  # fmt: skip


@dataclass(frozen=True)
class Training:
    """One training set: its shards, its rows, and how many of the split they were chosen from."""

    shards: Any
    rows: NDArray
    of: int


@dataclass(frozen=True)
class Audit:
    """outcome: the verdict (notes), metrics and per-case scores. pairs: a row for each test study and kind of match,
    columns kind, test_key, train_set, train_key, value, threshold, matches. checks: the verdict, check by check."""

    outcome: Outcome
    checks: tuple[Check, ...]
    pairs: tuple[dict[str, Any], ...]


def training_set(shards: Any, split: str, most: int | None = None, seed: int = 0) -> Training:
    """Studies of a split, or a fixed choice of `most` of them. Raises DataError where the split has no study."""
    rows = shards.rows(split)
    return Training(shards, choose_rows(rows, most, seed), len(rows))


def score_audit(
    inputs: Inputs,
    rows: Sequence[int] | NDArray,
    task: Task,
    training: Sequence[Training] = (),
    *,
    split: str = "test",
    resamples: int = 1000,
    seed: int = 0,
) -> Audit:
    """Audit a model's scores of a task on rows of its shards.

    training: the sets it was trained on; without any, leakage is said not to have been checked.
    Raises EvalError as the classification protocol, DataError for studies that cannot be read.
    """
    rows = np.asarray(rows)
    if resamples < 1:
        raise EvalError(f"--resamples {resamples}", why="no check could tell chance from fact", fix="1000 is usual")
    kind = inputs.loaded.geometry.source
    folder = None if inputs.cache is None else inputs.cache.folder / "audit"
    studies = inputs.features(rows)
    scored = scored_of(inputs, rows, task, studies.patients)
    labels_NL, rare = _without_rare(scored)
    case = Case(scored.scores(studies.features_ND), labels_NL, studies.patients, resamples, seed)
    test = Named(facts_of(inputs.shards, rows, kind, folder, "test studies"), studies.keys, studies.patients)
    found = _leakage(inputs, test, studies.features_ND, scored, training, kind, folder, seed)
    leaking = np.zeros(len(rows), np.bool_)
    for leak in found:
        if leak.pairs and leak.pairs[0].kind in LEAKS:
            leaking |= leak.hits(len(rows))
    several, variants = _controls(inputs, rows, case, scored, test.facts, seed)
    if training:
        unseen = [f.check.name for f in found if f.check.name in DECIDING and f.check.severity == "not checked"]
        several.append(controls.decontaminated(case, leaking, unseen))
    checks = tuple([f.check for f in found] + [c.check for c in several] + rare)
    metrics = [m for c in several for m in c.metrics]
    metrics += [_metric(check) for check in checks]
    outcome = Outcome(
        protocol="audit",
        task=task.name,
        model=inputs.name,
        model_sha256=inputs.loaded.sha256,
        headline="auroc",
        metrics=tuple(metrics),
        studies=len(rows),
        scans=len(test.facts.study_S),
        patients=len(np.unique(studies.patients)),
        classes=scored.names,
        prompts=task.model_dump(mode="json")["classes"],
        provenance=inputs.provenance(
            rows, split, seed=seed, task_sha256=task.identity,
            train=[
                {"data_sha256": t.shards.manifest_hash, "studies": len(t.rows), "of": t.of,
                 "rows_sha256": hashlib.sha256(np.asarray(t.rows, np.int64).tobytes()).hexdigest()}
                for t in training
            ],
        ),
        notes=sentences(checks),
        scores=_table(studies.keys, case, scored, variants, found),
    )  # fmt: skip
    return Audit(outcome, checks, _rows(found, studies.keys, training))


def _without_rare(scored: Scored) -> tuple[NDArray[np.float64], list[Check]]:
    """Labels with those of findings that have too few patients of a class unknown (most resamples would lose them, and
    with them every interval of a macro mean), and what is said of it."""
    labels_NL = scored.labels_NL.copy()
    rare = []
    for j, name in enumerate(scored.names):
        people = [len(np.unique(scored.patients_N[labels_NL[:, j] == side])) for side in (1, 0)]
        if min(people) < FEWEST_OF_CLASS:
            labels_NL[:, j] = np.nan
            rare.append(name)
    if not rare:
        return labels_NL, []
    says = f"{', '.join(rare)}: fewer than {FEWEST_OF_CLASS} patients with or without it; left out of every macro mean."
    return labels_NL, [Check("rare findings", "not checked", says, float(len(rare)), float(FEWEST_OF_CLASS))]


def _leakage(
    inputs: Inputs,
    test: Named,
    test_ND: NDArray[np.float32],
    scored: Scored,
    training: Sequence[Training],
    kind: str,
    folder: Path | None,
    seed: int,
) -> list[Found]:
    if not training:
        return [Found(Check(name, "not checked", "no training set was named (--train).")) for name in LEAK_CHECKS]
    parts, features = [], []
    for number, part in enumerate(training, 1):
        label = f"training set {number}" if len(training) > 1 else "training studies"
        facts = facts_of(part.shards, part.rows, kind, folder, label)
        keys, patients = (tuple(name(int(r)) for r in part.rows) for name in (part.shards.key, part.shards.patient))
        parts.append(Named(facts, keys, np.asarray(patients, dtype=str)))
        features.append(replace(inputs, shards=part.shards).features(part.rows).features_ND)
    train = Named(
        joined([p.facts for p in parts]),
        tuple(key for p in parts for key in p.keys),
        np.concatenate([p.patients for p in parts]),
    )
    identical = duplicates.exact(test, train)
    salts, evidence = _salts(inputs.shards, test, training, parts)
    found = [
        identical,
        duplicates.perceptual(test, train, seed),
        duplicates.patients(test, train, salts, evidence),
        neighbours(test_ND, np.concatenate(features), test.patients, train.patients, seed),
        duplicates.reports(test, train),
        Found(prompts_in_training(scored.prompts(), train.facts)),
    ]
    looked, whole = sum(len(t.rows) for t in training), sum(t.of for t in training)
    if looked < whole:
        says = f"only {looked} of {whole} training studies were compared (--max-train); the others may leak."
        found.append(Found(Check("all of training", "not checked", says)))
    return found


def _salts(
    shards: Any, test: Named, training: Sequence[Training], parts: Sequence[Named]
) -> tuple[duplicates.Salts, str]:
    """Of several training sets, what is known of the least comparable."""
    worst: tuple[duplicates.Salts, str] = ("same", "")
    order = ("same", "different", "unknown")
    for part, named in zip(training, parts, strict=True):
        same_set = part.shards.manifest_hash == shards.manifest_hash
        found = duplicates.salts_of(test, named, same_set, duplicates.exact(test, named).pairs)
        if not worst[1] or order.index(found[0]) > order.index(worst[0]):
            worst = found
    return worst


def _controls(
    inputs: Inputs, rows: NDArray, case: Case, scored: Scored, facts: Facts, seed: int
) -> tuple[list[Control], dict[str, NDArray[np.float64]]]:
    features = altered.altered_features(inputs, rows, seed)
    scores = {name: scored.scores(features_NF) for name, features_NF in features.items()}
    blanked = {name: scores[name] for name in (altered.CORNERS, altered.FRAMED)}
    kinds = [
        f"{inputs.shards.modality(int(row))} {inputs.shards.members(int(row))[0].rpartition('.')[2]}" for row in rows
    ]
    facts_NK = shortcuts.with_kinds(facts.acquisition_NA, kinds)
    probes = 2 * len(scored.names)
    found = [
        controls.better_than_chance(case),
        assignment.inverted(case, scored.names),
        assignment.permuted_names(case, scored.names),
        assignment.shuffled_names(case, scored.names),
        controls.text_prior(case, scores[altered.BLANK], scores[altered.AVERAGE]),
        controls.shuffled_voxels(case, scores[altered.SHUFFLED]),
        controls.blanked_border(case, blanked),
        shortcuts.shortcut(shortcuts.BORDER, case, scored.names, facts.border_NB, blanked, probes),
        shortcuts.shortcut(shortcuts.ACQUISITION, case, scored.names, facts_NK, {}, probes),
    ]
    people = len(np.unique(case.patients_N))
    if people < FEWEST or np.isnan(case.labels_NL).all():
        says = f"{people} test patients cannot tell chance from fact (at least {FEWEST} are needed)."
        if people >= FEWEST:
            says = "no finding has enough patients with and without it."
        found = [replace(c, check=Check(c.check.name, "not checked", says)) for c in found]
    return found, {name: scores[name] for name in altered.PER_STUDY}


def _metric(check: Check) -> Metric:
    """A check as a number that other programs can read."""
    at: dict[str, Any] = {"severity": check.severity}
    if check.threshold is not None:
        at["threshold"] = check.threshold
    reason = None if check.value is not None else "not checked"
    return Metric("check", check.value, of=check.name, at=at, n=check.n, reason=reason)


def _table(
    keys: Sequence[str], case: Case, scored: Scored, variants: dict[str, NDArray[np.float64]], found: list[Found]
) -> Any:
    """Per-case rows: scores as they are and altered, then 1 or 0 for each kind of match with training."""
    import pandas as pd

    blocks = []
    for variant, scores_NL in {"": case.scores_NL, **variants}.items():
        for j, name in enumerate(scored.names):
            block = {"key": keys, "patient": case.patients_N, "variant": variant, "of": name}
            blocks.append(pd.DataFrame({**block, "score": scores_NL[:, j], "label": scored.labels_NL[:, j]}))
    for leak in found:
        if leak.pairs:
            block = {"key": keys, "patient": case.patients_N, "variant": "match", "of": leak.pairs[0].kind}
            blocks.append(pd.DataFrame({**block, "score": leak.hits(len(keys)).astype(float), "label": np.nan}))
    return pd.concat(blocks, ignore_index=True)


def _rows(found: list[Found], keys: Sequence[str], training: Sequence[Training]) -> tuple[dict[str, Any], ...]:
    starts = np.cumsum([0, *(len(t.rows) for t in training)])

    def named(pair: Pair) -> dict[str, Any]:
        part = int(np.searchsorted(starts, pair.train, "right")) - 1
        row = int(training[part].rows[pair.train - starts[part]])
        return {
            "kind": pair.kind,
            "test_key": keys[pair.test],
            "train_set": part + 1,
            "train_key": training[part].shards.key(row),
            "value": round(pair.value, 6),
            "threshold": round(pair.threshold, 6),
            "matches": pair.matches,
        }

    return tuple(named(pair) for leak in found for pair in sorted(leak.pairs, key=lambda p: p.test))
