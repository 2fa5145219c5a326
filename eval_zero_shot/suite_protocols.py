"""How each protocol of a suite is asked: from an entry of the file to outcomes, and to files in its cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_zero_shot.errors import EvalError, LeftOut
from eval_zero_shot.outcome import Outcome
from eval_zero_shot.suite_file import Audit, Classification, Interpolation, Probe, Retrieval, Vqa, images_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from eval_zero_shot.inputs import Inputs
    from eval_zero_shot.suite import Cell


def classification(inputs: Inputs, entry: Classification, cell: Cell) -> Sequence[Outcome]:
    from eval_zero_shot.attended import has_head
    from eval_zero_shot.classification import score_classification
    from eval_zero_shot.tasks import load_task

    held = None if entry.threshold_split == entry.split else entry.threshold_split
    return [
        score_classification(
            inputs, inputs.rows(entry.split, entry.max_studies), load_task(entry.task), split=entry.split,
            threshold_rows=_known_rows(inputs, held) if held else None, threshold_split=held or "",
            prompt_set=entry.prompt_set, attended=entry.attended and has_head(inputs.loaded),
            resamples=entry.resamples, seed=entry.seed,
        )
    ]  # fmt: skip


def retrieval(inputs: Inputs, entry: Retrieval, cell: Cell) -> Sequence[Outcome]:
    """Of every kind of text that the studies have. Raises EvalError where they have none of them."""
    from eval_zero_shot.retrieval.protocol import score_retrieval, score_volumes

    rows = inputs.rows(entry.split, entry.max_studies)
    found: list[Outcome] = []
    missing: list[EvalError] = []
    for text in entry.texts:
        try:
            found.append(
                score_retrieval(
                    inputs, rows, split=entry.split, text=text, pools=entry.pools, ks=entry.ks, repeats=entry.repeats,
                    short_pool=entry.short_pool, resamples=entry.resamples, seed=entry.seed,
                )
            )  # fmt: skip
        except EvalError as error:
            missing.append(error)
    if entry.volumes:
        found.append(score_volumes(inputs, rows, split=entry.split, resamples=entry.resamples, seed=entry.seed))
    if not found:
        raise missing[0]
    return [replace(one, notes=(*one.notes, *(str(e).splitlines()[0] for e in missing))) for one in found]


def probe(inputs: Inputs, entry: Probe, cell: Cell) -> Sequence[Outcome]:
    from eval_zero_shot.probe.material import draws_of, rows_of
    from eval_zero_shot.probe.protocol import score_probe
    from eval_zero_shot.probe.split import question
    from eval_zero_shot.tasks import load_task

    task = load_task(entry.task) if entry.task else None
    inputs = replace(inputs, vectors=entry.features)
    asked = question(entry.labels, inputs.shards.label_names, task)
    rows = rows_of(inputs, entry.train_split, entry.validation_split, entry.split, entry.max_studies)
    draws = draws_of(inputs, rows, asked, entry.draws, entry.shots, entry.fractions, entry.draws_count, entry.seed)
    return [
        score_probe(
            inputs, rows, asked, split=entry.split, task=task, draws=draws, knn=entry.knn, resamples=entry.resamples,
            seed=entry.seed,
        )
    ]  # fmt: skip


def vqa(inputs: Inputs, entry: Vqa, cell: Cell) -> Sequence[Outcome]:
    from eval_zero_shot.vqa.protocol import score_vqa
    from eval_zero_shot.vqa.read import read_items

    return [
        score_vqa(
            inputs, read_items(Path(entry.items), entry.mapping), images_of(entry, inputs),
            task=Path(entry.items).stem, template=entry.template, max_missing=entry.max_missing,
            resamples=entry.resamples, seed=entry.seed,
        )
    ]  # fmt: skip


def audit(inputs: Inputs, entry: Audit, cell: Cell) -> Sequence[Outcome]:
    from eval_zero_shot.audit.pairs import write_pairs
    from eval_zero_shot.audit.protocol import score_audit, training_set
    from eval_zero_shot.tasks import load_task

    training = [
        training_set(inputs.open_shards(where), entry.train_split, entry.max_train, entry.seed) for where in entry.train
    ]
    found = score_audit(
        inputs, inputs.rows(entry.split, entry.max_studies), load_task(entry.task), training, split=entry.split,
        resamples=entry.resamples, seed=entry.seed,
    )  # fmt: skip
    write_pairs(cell.folder, found.pairs)
    return [found.outcome]


def interpolation(inputs: Inputs, entry: Interpolation, cell: Cell) -> Sequence[Outcome]:
    """Raises LeftOut for the base itself, and for what is no release."""
    from encoders.folder import inspect
    from encoders.interpolate import Pair
    from eval_zero_shot.interpolation import merge
    from eval_zero_shot.interpolation_outcomes import of_one
    from eval_zero_shot.models import split_spec
    from eval_zero_shot.release import model_name
    from eval_zero_shot.tasks import load_task

    if inspect(entry.base, verify=False).sha256 == inputs.loaded.sha256:
        raise LeftOut("it is the base, and between a model and itself there is nothing")
    if split_spec(cell.model) is not None:
        raise LeftOut("it is no release, and only releases are interpolated")
    rows = {split: inputs.rows(split, entry.max_studies) for split in (entry.validation_split, entry.split)}
    merged = merge(
        Pair(entry.base, cell.model), inputs, rows, [load_task(name) for name in entry.tasks], cell.folder / "release",
        alphas=entry.alphas, validation=entry.validation_split, test=entry.split, resamples=entry.resamples,
        seed=entry.seed,
    )  # fmt: skip
    keys = [inputs.shards.key(int(row)) for row in rows[entry.validation_split]]
    return of_one(merged, keys, inputs.name, model_name(entry.base), cell.place("release"))


PROTOCOLS: dict[str, Callable[[Any, Any, Any], Sequence[Outcome]]] = {
    "classification": classification,
    "retrieval": retrieval,
    "probe": probe,
    "vqa": vqa,
    "audit": audit,
    "interpolation": interpolation,
}


def _known_rows(inputs: Inputs, split: str) -> NDArray | None:
    """Rows of a split that may not be there."""
    return inputs.rows(split) if inputs.shards.manifest["splits"].get(split) else None
