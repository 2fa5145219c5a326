"""Zero-shot classification of one model on one task, as an `Outcome`.

Legend: N cases, L findings or classes.
findings: score = positive - negative cosine; headline: macro AUROC, which needs no threshold. classes: score = cosine,
the highest is the answer; headline: balanced accuracy, since sets are of unequal classes and always naming the largest
should not look good (acc1, as CLIP states, stands beside it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.attended import HEAD, require_head
from eval_zero_shot.classify import side_vectors, unit
from eval_zero_shot.errors import EvalError
from eval_zero_shot.labels import require_labels, task_labels
from eval_zero_shot.outcome import Metric, Outcome
from eval_zero_shot.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

    from eval_zero_shot.inputs import Inputs

Array = NDArray[np.float64]
HEADLINES = {"findings": "auroc", "classes": "balanced_accuracy"}
BESIDE = {"findings": "auprc", "classes": "acc1"}  # what is also stated of the prompt sets that are not the default


@dataclass(frozen=True)
class Split:
    """Scores of one split under every prompt set, on the cases that the task can score, which are `rows`."""

    rows: NDArray
    keys: tuple[str, ...]
    patients_N: NDArray[np.str_]
    labels_NL: Array
    scores: dict[str, Array]
    left_out: int = 0

    @property
    def truth_N(self) -> NDArray[np.intp]:
        """Of kind classes: the number of the right class."""
        return np.argmax(self.labels_NL == 1, axis=1)


def score_classification(
    inputs: Inputs, rows: Sequence[int] | NDArray, task: Task, *, split: str = "test",
    threshold_rows: Sequence[int] | NDArray | None = None, threshold_split: str = "val", prompt_set: str | None = None,
    attended: bool = False, resamples: int = 1000, seed: int = 0, level: float = 0.95,
) -> Outcome:  # fmt: skip
    """Score `rows` by every prompt set of a task.

    prompt_set: which stands for the task (None: its first). threshold_rows: studies of a training-derived split: the
    thresholds of findings are fitted there, and every prompt set is scored there, so that `compare` may choose one.
    attended: score the prompt set that stands for the task by the released head too (eval_zero_shot.attended), at
    {"scores": "attended"}, with the difference to the plain cosine, which stays the headline.
    Raises EvalError where the shards lack the task's labels, no study can be scored, both splits are one, or there is
    no such head.
    """
    if attended:
        require_head(inputs)
    chosen = task.known_set(prompt_set)
    sets = (chosen, *(name for name in task.prompt_sets if name != chosen))
    require_labels(inputs.shards, task)
    if threshold_rows is not None and threshold_split in (split, "test"):
        raise EvalError(
            f"thresholds would be fitted on split '{threshold_split}'",
            why="they would fit the noise of what is scored, and every number that depends on them be too good",
            fix="name a split that came from training data (--threshold-split val)",
        )
    vectors = inputs.texts(task.texts())
    scored = _scored(inputs, rows, task, vectors, sets)
    fitted = None if threshold_rows is None else _scored(inputs, threshold_rows, task, vectors, sets)
    scale = released_scale(inputs.loaded)
    options: dict[str, Any] = {"resamples": resamples, "seed": seed, "level": level}
    found = _metrics(task, scored, fitted, chosen, scale, options)
    headline = HEADLINES[task.kind]
    for name in sets[1:]:
        found += [
            replace(metric, at={"prompts": name})
            for metric in _metrics(task, scored, None, name, None, options, brief=True)
            if metric.name in (headline, BESIDE[task.kind]) and metric.of == "" and not metric.at
        ]
    if fitted is not None:
        for name in sets:
            on_fitted = _metrics(task, fitted, None, name, None, {**options, "resamples": 0}, brief=True)
            main = next(m for m in on_fitted if m.name == headline and m.of == "" and not m.at)
            reason = main.reason if main.value is None else None  # no interval was asked for
            found.append(replace(main, at={"prompts": name, "validation": threshold_split}, reason=reason))
    by_head = _by_head(inputs, scored, task, vectors, chosen) if attended else None
    if by_head is not None:
        found += [
            replace(metric, at={"scores": HEAD})
            for metric in _metrics(task, by_head, None, chosen, None, options, brief=True)
            if metric.name in (headline, BESIDE[task.kind]) and not metric.at
        ]
    absent = [n for n in task.names if not set(task.label_of(n)) & set(inputs.shards.label_names)]
    provenance = inputs.provenance(
        rows, split, task_sha256=task.identity, prompt_set=chosen, rule=task.rule, seed=seed, resamples=resamples,
        threshold_split=threshold_split if fitted else None, logit_scale=scale,
    )  # fmt: skip
    outcome = Outcome(
        "classification", task.name, inputs.name, inputs.loaded.sha256, headline, tuple(found),
        **inputs.counted(scored.rows), classes=task.names,
        prompts={name: task.written_out(name) for name in sets}, provenance=provenance,
        notes=(
            *_absent(task, absent), *inputs.said(scored.rows),
            *_notes(task, scored, inputs.cases, fitted, found, sets, scale, split, threshold_split),
        ),
        scores=_table(task, scored, sets),
    )  # fmt: skip
    return outcome if by_head is None else _with_head(outcome, task, by_head, chosen, options)


def _by_head(inputs: Inputs, scored: Split, task: Task, vectors: Any, prompt_set: str) -> Split:
    """The cases of a split scored by the head `attended`: the mean over the prompts of a side of their own cosines (a
    prompt looks at the image by itself, so prompts are not averaged first)."""
    sides = [task.prompts(name, prompt_set) for name in task.names]
    prompts = {text: unit(vectors[text], "prompts") for of in sides for side in of for text in side}
    number = {text: u for u, text in enumerate(prompts)}
    cosine_NU = inputs.attended(scored.rows, prompts)
    each = [
        np.stack([cosine_NU[:, [number[text] for text in of[side]]].mean(axis=1) for of in sides], axis=1)
        for side in range(len(sides[0]))
    ]
    return replace(scored, scores={prompt_set: each[0] - each[1] if len(each) == 2 else each[0]})


def _with_head(outcome: Outcome, task: Task, by_head: Split, prompt_set: str, options: dict[str, Any]) -> Outcome:
    """With the scores by the head as a variant, and their difference to the plain cosine, paired by patient."""
    import pandas as pd

    from eval_zero_shot.paired import cases_of, paired_difference

    table = _table(task, by_head, [prompt_set]).assign(variant=f"scores={HEAD}")
    outcome = replace(outcome, scores=pd.concat([outcome.scores, table], ignore_index=True))
    note = (
        f"Scores {HEAD}: each prompt's cosine with what it pools from the image's tokens by the released head, the "
        "mean over a side's prompts. They stand beside the plain cosine, which is the headline."
    )
    more: list[Metric] = []
    if outcome.main.value is not None:
        pair = (cases_of(outcome, f"scores={HEAD}"), cases_of(outcome))
        found, _ = paired_difference(*pair, method="percentile", **options)
        more.append(
            Metric(
                f"{outcome.headline}_difference", found.value, found.low, found.high, at={"scores": HEAD},
                n=found.cases, level=found.level, method=None if found.low is None else found.method,
                reason=found.reason,
            )
        )  # fmt: skip
    return replace(outcome, metrics=(*outcome.metrics, *more), notes=(*outcome.notes, note))


def released_scale(loaded: Any) -> float | None:
    """exp(logit_scale) of a release: its temperature. None where it states none."""
    stated = getattr(loaded.model, "logit_scale", None)
    return None if stated is None else float(np.exp(float(stated.detach())))


def _scored(inputs: Inputs, rows: Any, task: Task, vectors: Any, sets: Sequence[str]) -> Split:
    rows = np.asarray(rows)
    labels_NL = task_labels(inputs.shards, rows, task)
    kept, left_out = np.arange(len(rows)), 0
    if task.kind == "classes":
        kept = np.flatnonzero((labels_NL == 1).sum(axis=1) == 1)
        left_out = len(rows) - len(kept)
        if not len(kept):
            raise EvalError(
                f"no study has exactly one of the classes of task {task.name}",
                why="kind classes asks which one is right",
                fix="look at label: of each class, or use kind: findings",
            )
    studies = inputs.features(rows[kept])
    images_ND = unit(studies.features_ND, "studies")
    scores = {}
    for name in sets:
        sides = side_vectors(task, vectors, name)
        scores[name] = images_ND @ (sides[0] - sides[1] if len(sides) == 2 else sides[0]).T
    labels_NL = labels_NL[kept]
    if task.kind == "classes":
        labels_NL = (labels_NL == 1).astype(np.float64)
    return Split(rows[kept], tuple(studies.keys), np.asarray(studies.patients), labels_NL, scores, left_out)


def _metrics(
    task: Task, scored: Split, fitted: Split | None, prompt_set: str, scale: float | None, options: dict[str, Any],
    brief: bool = False,
) -> list[Metric]:  # fmt: skip
    """brief: no thresholds and no groups."""
    scores, groups = scored.scores[prompt_set], {} if brief else task.groups
    if task.kind == "classes":
        from eval_zero_shot.class_metrics import class_metrics

        return class_metrics(
            scores, scored.truth_N, scored.patients_N, task.names, scale=scale, groups=groups, **options
        )
    from eval_zero_shot.finding_metrics import finding_metrics, thresholds_of

    validation = None if fitted is None else (fitted.scores[prompt_set], fitted.labels_NL)
    thresholds = {} if brief else thresholds_of(scores, scored.labels_NL, validation)
    return finding_metrics(
        scores, scored.labels_NL, scored.patients_N, task.names, thresholds, scale=scale, groups=groups, **options
    )


def _table(task: Task, scored: Split, sets: Sequence[str]) -> pd.DataFrame:
    """One row a case, class and prompt set; the variant of the set that stands for the task is empty."""
    import pandas as pd

    n, width = scored.labels_NL.shape
    parts = [
        pd.DataFrame(
            {
                "key": np.repeat(np.asarray(scored.keys), width),
                "patient": np.repeat(scored.patients_N, width),
                "variant": "" if name == sets[0] else name,
                "of": np.tile(np.asarray(task.names), n),
                "score": scored.scores[name].ravel(),
                "label": scored.labels_NL.ravel(),
            }
        )
        for name in sets
    ]
    return pd.concat(parts, ignore_index=True)


def _absent(task: Task, names: Sequence[str]) -> list[str]:
    """Said first: a mistyped label looks like a finding that nobody has."""
    if not names:
        return []
    listed = ", ".join(f"{name} ({' | '.join(task.label_of(name))})" for name in names[:6]) + ", ..." * (len(names) > 6)
    return [
        f"{len(names)} of {len(task.names)} findings are NOT scored, since the shards have no such label: {listed}. "
        "Macro means are over the others."
    ]


def _notes(
    task: Task, scored: Split, cases: str, fitted: Split | None, found: Sequence[Metric], sets: Sequence[str],
    scale: float | None, split: str, threshold_split: str,
) -> list[str]:  # fmt: skip
    headline = HEADLINES[task.kind]
    notes = [task.about] if task.about else []
    if task.kind == "findings":
        notes.append("Headline: macro AUROC, the plain mean over findings that have both classes; no threshold enters.")
        where = f" validation and prevalence were fitted on {threshold_split}." if fitted else ""
        notes.append(
            "Decisions: threshold sign is positive nearer than negative; threshold test was chosen on the scored split "
            f"itself, is optimistic, and is for comparison with papers only.{where}"
        )
        if task.threshold == "validation" and fitted is None:
            notes.append("The task asks for thresholds fitted on another split; none was given (--threshold-split).")
    else:
        notes.append("Headline: balanced accuracy, the mean of the classes' recalls; acc1 counts cases alike.")
        if scored.left_out:
            notes.append(f"{scored.left_out} {cases} have none or several of the classes and are left out.")
    if scale is None:
        notes.append("The release states no temperature: no probabilities, no calibration.")
    missing = {m.of: m.reason for m in found if m.value is None and m.of and m.name in ("auroc", "recall") and not m.at}
    if missing:
        notes.append("Not scored: " + "; ".join(f"{name} ({reason})" for name, reason in missing.items()) + ".")
    values = [m.value for m in found if m.name == headline and m.of == "" and set(m.at) <= {"prompts"} and m.value]
    if len(sets) > 1 and values:
        notes.append(
            f"{headline} over {len(sets)} prompt sets: {min(values):.3f} to {max(values):.3f} on {split}; {sets[0]} "
            "stands for the task, chosen before scoring."
        )
    for name, members in task.groups.items():
        notes.append(f"Group {name}: {', '.join(members)}.")
    return notes
