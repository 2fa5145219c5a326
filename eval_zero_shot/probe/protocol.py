"""Probes of one model on one shard set: all training labels, fractions of them, few shots, neighbours, a text start.

Features are the model's projected, unit-length image features, or those of its trunk (`Inputs.vectors`); but for the
neighbours' cosine they are z-scored with mean and spread of the whole training split, which needs no label.

Legend: N studies, D features, L labels or classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.errors import EvalError
from eval_zero_shot.outcome import Metric, Outcome, Value
from eval_zero_shot.probe.draws import Cells, Draws, cells_of
from eval_zero_shot.probe.fitting import FIXED, Fitted, fit_and_score, probe
from eval_zero_shot.probe.knn import nearest_share
from eval_zero_shot.probe.measures import NOT_LEARNT, UNSEEN, Values, measure, values
from eval_zero_shot.probe.split import Question, Split, require_apart, scaling
from eval_zero_shot.probe.text_start import start_at, zero_shot_directions

if TYPE_CHECKING:
    import pandas as pd

    from eval_zero_shot.inputs import Inputs
    from eval_zero_shot.tasks import Task

ShotStrength = Literal["fixed", "validation"]
Array = NDArray[np.float64]
FEATURES = {  # of Inputs.vectors
    "projected": "projected, unit-length image features",
    "trunk": "image features of the trunk, before the projection",
}


@dataclass(frozen=True)
class Rows:
    """Rows of the shard set to learn from, to choose C on (None: folds by patient) and to score."""

    train: NDArray
    validation: NDArray | None
    test: NDArray


class _Bench:
    """The studies of one question, scaled, and every score that was given to the test ones."""

    def __init__(self, inputs: Inputs, rows: Rows, asked: Question, seed: int, resamples: int, level: float) -> None:
        self.asked = asked
        self.how: dict[str, Any] = {"seed": seed, "resamples": resamples, "level": level}
        every_NL = asked.labels(inputs.shards)
        self.keys: dict[str, NDArray] = {}

        def split(name: str, rows_N: NDArray) -> Split:
            found = inputs.features(rows_N)
            self.keys[name] = np.asarray(found.keys, dtype=str)
            return Split(found.features_ND.astype(np.float64), every_NL[rows_N], found.patients)

        held = rows.validation
        self.train, self.test = split("train", rows.train), split("test", rows.test)
        self.validation = None if held is None or not len(held) else split("validation", held)
        require_apart(
            train=self.train.patients_N,
            validation=None if self.validation is None else self.validation.patients_N,
            test=self.test.patients_N,
        )
        scale = self.mean_D, self.spread_D = scaling(self.train)
        self.scaled, self.scored_ND = self.train.scaled(*scale), self.test.scaled(*scale).features_ND
        self.held = None if self.validation is None else self.validation.scaled(*scale)
        cuda = str(next(inputs.loaded.model.parameters()).device).startswith("cuda")
        self.device = "cuda" if cuda else "cpu"
        self.frames: list[pd.DataFrame] = []

    def learnt(self) -> NDArray[np.bool_]:
        y = self.train.labels_NL
        return (y == 1).any(0) if self.asked.exclusive else (y == 1).any(0) & (y == 0).any(0)

    def metrics(self, scores_NL: Array, base_L: Array, at: Mapping[str, Value], variant: str) -> list[Metric]:
        self.keep(scores_NL, variant)
        found = measure(
            scores_NL, self.test.labels_NL, self.test.patients_N, self.asked.names, self.asked.exclusive, base_L,
            **self.how,
        )  # fmt: skip
        return [replace(metric, at=dict(at)) for metric in found]

    def values(self, scores_NL: Array, base_L: Array, variant: str) -> Values:
        self.keep(scores_NL, variant)
        ones = np.ones((1, len(self.test)))
        return values(scores_NL, self.test.labels_NL, self.asked.names, self.asked.exclusive, base_L, ones)

    def keep(self, scores_NL: Array, variant: str) -> None:
        import pandas as pd

        for j, name in enumerate(self.asked.names):
            scores_N = scores_NL[:, j]
            if np.isnan(scores_N).all() and not self.asked.exclusive:
                continue
            table = {"key": self.keys["test"], "patient": self.test.patients_N, "variant": variant, "of": name}
            table |= {"score": np.where(np.isnan(scores_N), UNSEEN, scores_N), "label": self.test.labels_NL[:, j]}
            self.frames.append(pd.DataFrame(table))


def score_probe(
    inputs: Inputs, rows: Rows, asked: Question, *, split: str = "test", task: Task | None = None,
    draws: Draws | None = None, shot_strength: ShotStrength = "fixed", knn: int = 20, finer: bool = False,
    resamples: int = 1000, seed: int = 0, level: float = 0.95, progress: bool = False,
) -> Outcome:  # fmt: skip
    """Every probe that is asked for.

    at of a metric: {} the probe on all training labels, C chosen, refitted on train and validation; {"knn": k};
    {"start": "text"} (task is given); {"fraction": f} and {"shots": k} (draws are given), with "start" where from text:
    the mean over draws, low and high the lowest and highest draw. `train_studies` says how many a draw had.

    Raises:
        EvalError: splits share patients; no label has both classes in training; the task has no prompts for a label, or
            features of the trunk are to start from it; a fit does not reach its optimum.
    """
    if task is not None and inputs.vectors == "trunk":
        raise EvalError(
            "--task with --features trunk",
            why="prompts lie in the space of the projected features, so there is no zero-shot classifier to start from",
            fix="name the labels alone (--labels), or take the projected features",
        )
    bench = _Bench(inputs, rows, asked, seed, resamples, level)
    if bench.learnt().sum() < (2 if asked.exclusive else 1):
        raise EvalError(
            "no label has both classes among the training studies" if not asked.exclusive else "training has one class",
            why="there is nothing to tell apart",
            fix="choose other labels (--labels) or another training split (--train-split)",
        )
    start = None
    if task is not None:
        start = start_at(zero_shot_directions(inputs, task, asked), bench.mean_D, bench.spread_D)
    how: dict[str, Any] = {"device": bench.device, "finer": finer}
    main = probe(bench.scaled, bench.held, bench.scored_ND, asked.exclusive, **how)
    found = bench.metrics(main.logits_NL, main.base_L, {}, "")
    learnt_from = bench.scaled.with_(bench.held)
    found.append(Metric("train_studies", float((~np.isnan(learnt_from.labels_NL)).any(1).sum()), n=len(bench.test)))
    found.append(Metric("strength", main.strength, n=len(bench.test)))
    notes = [
        f"Features: {FEATURES[inputs.vectors]}, z-scored on the training split (neighbours: unit length).",
        f"C = {main.strength:g}, chosen on: {main.chosen_on}.",
    ]
    if start is not None:
        text = probe(bench.scaled, bench.held, bench.scored_ND, asked.exclusive, start=start, **how)
        found += bench.metrics(text.logits_NL, text.base_L, {"start": "text"}, "start=text")
        notes.append(f"Text-initialised: C = {text.strength:g}, chosen on: {text.chosen_on}.")
    if knn:
        together = bench.train.with_(bench.validation)
        share_NL = nearest_share(together.features_ND, together.labels_NL, bench.test.features_ND, knn)
        share_NL[:, ~bench.learnt()] = np.nan
        base_L = np.nanmean(together.labels_NL, axis=0)
        found += bench.metrics(share_NL, base_L, {"knn": knn}, f"knn={knn}")
    if draws is not None:
        few, said = _few(bench, draws, start, shot_strength, progress)
        found += few
        notes += said
    import pandas as pd

    left_out = [n for n, ok in zip(asked.names, bench.learnt(), strict=True) if not ok]
    if left_out:
        notes.append(f"Not learnt, a class is missing in training: {', '.join(left_out)}.")
    return Outcome(
        "probe", task.name if task is not None and not asked.exclusive else asked.name, inputs.name,
        inputs.loaded.sha256, "balanced_accuracy" if asked.exclusive else "auroc", tuple(found),
        **inputs.counted(rows.test), classes=asked.names, prompts={} if task is None else {"texts": list(task.texts())},
        provenance=inputs.provenance(
            rows.test, split, seed=seed, task_sha256=asked.identity if task is None else task.identity,
            train_rows_sha256=inputs.provenance(rows.train, "train")["rows_sha256"],
            validation_rows_sha256=None if rows.validation is None
            else inputs.provenance(rows.validation, "validation")["rows_sha256"], finer=finer,
            features=inputs.vectors, draws_sha256=None if draws is None else draws.sha256,
        ),
        notes=(*inputs.said(rows.test), *notes), scores=pd.concat(bench.frames, ignore_index=True),
    )  # fmt: skip


@dataclass(frozen=True)
class _Draw:
    """One draw: what it is of, its place in the results, and the labels it may learn from [train, L]."""

    at: dict[str, Value]
    number: int
    labels_NL: Array
    short: dict[str, str]  # label -> why it is left out

    @property
    def variant(self) -> str:
        (name, value), *_ = self.at.items()
        return f"{name}={value},draw={self.number}"


def _drawn(bench: _Bench, draws: Draws) -> Iterator[_Draw]:
    full_NL = bench.train.labels_NL
    row_of = {key: i for i, key in enumerate(bench.keys["train"].tolist())}
    for fraction, lists in sorted(draws.fractions.items()):
        for d, keys in enumerate(lists):
            labels = np.full_like(full_NL, np.nan)
            rows = _rows(row_of, keys)
            labels[rows] = full_NL[rows]
            yield _Draw({"fraction": fraction}, d, labels, {})
    for k, cells in sorted(draws.shots.items()):
        for d, draw in enumerate(cells):
            yield _Draw({"shots": k}, d, *_of_cells(bench.asked, draw, row_of, len(full_NL), k))


def _rows(row_of: Mapping[str, int], keys: Sequence[str]) -> list[int]:
    absent = sum(key not in row_of for key in keys)
    if absent:
        raise EvalError(
            f"{absent} drawn studies are not in the training split", why="other studies would be learnt from",
            fix="draw from the split that is trained on (--train-split)",
        )  # fmt: skip
    return [row_of[key] for key in keys]


def _of_cells(asked: Question, draw: Cells, row_of: Mapping[str, int], n: int, k: int) -> tuple[Array, dict[str, str]]:
    """Labels of the drawn studies, nan elsewhere, and the labels that have fewer than k patients of a class."""
    labels_NL, short = np.full((n, len(asked.names)), np.nan), {}
    for cell, column, value in cells_of(asked):
        rows = _rows(row_of, draw.get(cell, []))
        if len(rows) < k:
            short[asked.names[column]] = f"{k} shots need {k} patients with {cell}; training has {len(rows)}"
        if asked.exclusive:
            labels_NL[rows] = 0
        labels_NL[rows, column] = value
    for name in short:
        labels_NL[:, asked.names.index(name)] = np.nan
    if short and asked.exclusive:  # one class short: the task of all classes cannot be posed
        return np.full_like(labels_NL, np.nan), dict.fromkeys(asked.names, "; ".join(short.values()))
    return labels_NL, short


def _few(bench: _Bench, draws: Draws, start: Any, how: ShotStrength, progress: bool) -> tuple[list[Metric], list[str]]:
    """Mean, lowest and highest value over the draws of every fraction and number of shots."""
    from data_shards.progress import track

    every = list(_drawn(bench, draws))
    starts: dict[str, Any] = {"": None, "text": start} if start is not None else {"": None}
    gathered: dict[tuple[tuple[str, Value], ...], list[tuple[Values, int, dict[str, str]]]] = {}
    notes: dict[str, None] = {}
    for draw in track(every, len(every), "few labels", "draws") if progress and every else every:
        keep = ~np.isnan(draw.labels_NL).all(1)
        part = Split(bench.scaled.features_ND[keep], draw.labels_NL[keep], bench.scaled.patients_N[keep])
        for name, begin in starts.items():
            at = draw.at | ({"start": name} if name else {})
            fitted = _fit_few(bench, draws, draw, part, begin, how)
            variant = draw.variant + (f",start={name}" if name else "")
            got = bench.values(fitted.logits_NL, fitted.base_L, variant)
            gathered.setdefault(tuple(at.items()), []).append((got, len(part), draw.short))
            where = "shots" if "shots" in draw.at else "fractions"
            notes[f"C of {where}: {fitted.chosen_on}."] = None
        for label, reason in draw.short.items():
            notes[f"{draw.variant.partition(',')[0]}: {label} is left out, also of the mean: {reason}."] = None
    found = []
    for key, results in gathered.items():
        at, short = dict(key), results[0][2]
        method = f"range of {len(results)} draws"
        for metric, of in results[0][0]:
            each = np.array([got[metric, of][0] for got, *_ in results])
            if np.isnan(each).any():
                reason = short.get(of) or ("; ".join(dict.fromkeys(short.values())) if not of else "")
                found.append(Metric(metric, None, of=of, at=at, n=len(bench.test), reason=reason or NOT_LEARNT))
            else:
                mean, low, high = float(each.mean()), float(each.min()), float(each.max())
                found.append(Metric(metric, mean, low, high, of, at, len(bench.test), method=method))
        sizes = [size for _, size, _ in results]
        found.append(
            Metric(
                "train_studies", float(np.mean(sizes)), min(sizes), max(sizes), "", at, len(bench.test), method=method
            )
        )
    return found, list(notes)


def _fit_few(bench: _Bench, draws: Draws, draw: _Draw, part: Split, start: Any, how: ShotStrength) -> Fitted:
    """Fractions choose C on folds of their own studies. Shots take C = 1, or choose it on min(k, 4) shots of the
    validation split. The whole validation split is never looked at: who has few labels does not have it."""
    more = {"start": start, "device": bench.device}
    exclusive = bench.asked.exclusive
    if not len(part):
        nothing = fit_and_score(part, bench.scored_ND, exclusive, [FIXED])[0]
        return Fitted(nothing, FIXED, f"nothing: fixed, C = {FIXED:g}", np.zeros(nothing.shape[1]))
    if "fraction" in draw.at:
        return probe(part, None, bench.scored_ND, exclusive, **more)
    cells = draws.validation.get(int(draw.at["shots"]), [])
    held = None
    if how == "validation" and bench.held is not None and draw.number < len(cells):
        row_of = {key: i for i, key in enumerate(bench.keys["validation"].tolist())}
        labels_NL, _ = _of_cells(bench.asked, cells[draw.number], row_of, len(bench.held), 1)
        keep = ~np.isnan(labels_NL).all(1)
        held = Split(bench.held.features_ND[keep], labels_NL[keep], bench.held.patients_N[keep]) if keep.any() else None
    if held is None:
        return probe(part, None, bench.scored_ND, exclusive, strength=FIXED, **more)
    fitted = probe(part, held, bench.scored_ND, exclusive, refit=False, **more)
    return replace(fitted, chosen_on=f"min(k, 4) shots of the validation split ({fitted.chosen_on})")
