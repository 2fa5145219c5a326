"""How each protocol of a suite is asked: from an entry of the file to outcomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_zero_shot.errors import EvalError
from eval_zero_shot.outcome import Outcome
from eval_zero_shot.suite_file import Audit, Classification, Probe, Retrieval, Vqa

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from eval_zero_shot.inputs import Inputs


def classification(inputs: Inputs, entry: Classification) -> Sequence[Outcome]:
    from eval_zero_shot.classification import score_classification
    from eval_zero_shot.tasks import load_task

    held = None if entry.threshold_split == entry.split else entry.threshold_split
    return [
        score_classification(
            inputs, inputs.rows(entry.split, entry.max_studies), load_task(entry.task), split=entry.split,
            threshold_rows=_known_rows(inputs, held) if held else None, threshold_split=held or "",
            prompt_set=entry.prompt_set, resamples=entry.resamples, seed=entry.seed,
        )
    ]  # fmt: skip


def retrieval(inputs: Inputs, entry: Retrieval) -> Sequence[Outcome]:
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


def probe(inputs: Inputs, entry: Probe) -> Sequence[Outcome]:
    from eval_zero_shot.probe.material import draws_of, rows_of
    from eval_zero_shot.probe.protocol import score_probe
    from eval_zero_shot.probe.split import question
    from eval_zero_shot.tasks import load_task

    task = load_task(entry.task) if entry.task else None
    asked = question(entry.labels, inputs.shards.label_names, task)
    rows = rows_of(inputs, entry.train_split, entry.validation_split, entry.split, entry.max_studies)
    draws = draws_of(inputs, rows, asked, entry.draws, entry.shots, entry.fractions, entry.draws_count, entry.seed)
    return [
        score_probe(
            inputs, rows, asked, split=entry.split, task=task, draws=draws, knn=entry.knn, resamples=entry.resamples,
            seed=entry.seed,
        )
    ]  # fmt: skip


def vqa(inputs: Inputs, entry: Vqa) -> Sequence[Outcome]:
    from eval_zero_shot.vqa.protocol import score_vqa
    from eval_zero_shot.vqa.read import read_items

    return [
        score_vqa(
            inputs, read_items(Path(entry.items), entry.mapping), _images(inputs, entry),
            task=Path(entry.items).stem, template=entry.template, max_missing=entry.max_missing,
            resamples=entry.resamples, seed=entry.seed,
        )
    ]  # fmt: skip


def _images(inputs: Inputs, entry: Vqa) -> Path | None:
    """The folder of the images: named, else that of the items where they are no studies of shards."""
    if entry.images:
        return Path(entry.images)
    return Path(entry.items).parent if inputs.shards is None else None


def audit(inputs: Inputs, entry: Audit) -> Sequence[Outcome]:
    from eval_zero_shot.audit.protocol import score_audit, training_set
    from eval_zero_shot.tasks import load_task

    training = [
        training_set(inputs.open_shards(where), entry.train_split, entry.max_train, entry.seed) for where in entry.train
    ]
    found = score_audit(
        inputs, inputs.rows(entry.split, entry.max_studies), load_task(entry.task), training, split=entry.split,
        resamples=entry.resamples, seed=entry.seed,
    )  # fmt: skip
    return [found.outcome]


PROTOCOLS: dict[str, Callable[[Any, Any], Sequence[Outcome]]] = {
    "classification": classification,
    "retrieval": retrieval,
    "probe": probe,
    "vqa": vqa,
    "audit": audit,
}


def _known_rows(inputs: Inputs, split: str) -> NDArray | None:
    """Rows of a split that may not be there."""
    return inputs.rows(split) if inputs.shards.manifest["splits"].get(split) else None
