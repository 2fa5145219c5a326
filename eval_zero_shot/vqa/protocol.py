"""Closed questions of one model on one file of items, as an `Outcome`; the command is in `__main__`.

Shapes: N items, M options of all items one after another, S images, D embedding.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.errors import EvalError
from eval_zero_shot.inputs import VERSIONS, Inputs
from eval_zero_shot.outcome import Metric, Outcome
from eval_zero_shot.resample import clustered_means
from eval_zero_shot.vqa.answers import FEW, hits, majority_hits, position_hits
from eval_zero_shot.vqa.captions import captions_of, check_template
from eval_zero_shot.vqa.items import Item, ItemFile, items_sha256
from eval_zero_shot.vqa.mappings import MAPPINGS

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]


def score_vqa(
    inputs: Inputs,
    file: ItemFile,
    images: Path | None = None,
    *,
    task: str = "vqa",
    template: str | None = None,
    max_missing: int = 0,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Outcome:
    """Score a model on the items of a file.

    Args:
        images: folder of the image files; None: images are keys of studies in `inputs.shards`.
        template: see `eval_zero_shot.vqa.captions`.
        max_missing: images that may be missing or unreadable; their items are left out and counted.

    Raises:
        EvalError: more images are missing, a template without its gap, captions that are the same for two options.
    """
    from eval_zero_shot.vqa.images import blank_feature, image_features

    check_template(template)
    inputs.require_texts()
    published = MAPPINGS[file.mapping]
    wanted = list(dict.fromkeys(item.image for item in file.items))
    found = image_features(inputs, wanted, images, published.image)
    missing = len(wanted) - len(found.number)
    if missing > max_missing:
        raise EvalError(
            f"{missing} of {len(wanted)} images are missing or unreadable ({found.unreadable} unreadable)",
            why="an accuracy over the others would be of another test",
            fix="check --images (or --data), or allow some with --max-missing",
        )
    items = [item for item in file.items if item.image in found.number]
    if not items:
        raise EvalError("no item has its image", why="there is nothing to score", fix="check --images or --data")

    said = [captions_of(item, template) for item in items]
    captions = [sentences for sentences, _ in said]
    vectors, cut = _text_vectors(inputs, captions)
    sizes_N = np.array([len(item.options) for item in items])
    starts_N = np.r_[0, np.cumsum(sizes_N)[:-1]]
    right_N = starts_N + [item.answer for item in items]
    flat = [sentence for sentences in captions for sentence in sentences]
    texts_MD = np.stack([vectors[sentence] for sentence in flat]).astype(np.float64)
    image_M = np.repeat([found.number[item.image] for item in items], sizes_N)
    blank_D = blank_feature(inputs).astype(np.float64)
    scores_M = np.einsum("md,md->m", found.features_SD.astype(np.float64)[image_M], texts_MD)
    blank_M = np.einsum("md,d->m", texts_MD, blank_D)

    hit_N, blank_N = hits(scores_M, starts_N, right_N), hits(blank_M, starts_N, right_N)
    corrected_N = hits(scores_M - blank_M, starts_N, right_N)
    chance_N = 1 / sizes_N
    columns: list[tuple[str, str, dict[str, Any], Array]] = [
        ("accuracy", "", {}, hit_N),
        ("chance", "", {}, chance_N),
        ("majority_accuracy", "", {}, majority_hits(items)),
        ("position_accuracy", "", {}, position_hits(items)),
        ("blank_accuracy", "", {}, blank_N),
        ("image_gain", "", {}, hit_N - blank_N),
        ("corrected_accuracy", "", {}, corrected_N),
    ]
    for size in sorted(set(sizes_N.tolist())) if len(set(sizes_N.tolist())) > 1 else ():
        columns.append(("accuracy", "", {"options": size}, np.where(sizes_N == size, hit_N, np.nan)))
    categories = sorted({item.category for item in items} - {""})
    for name in categories:
        within = np.array([item.category == name for item in items])
        for metric, values in (("accuracy", hit_N), ("chance", chance_N), ("blank_accuracy", blank_N)):
            columns.append((metric, name, {}, np.where(within, values, np.nan)))
    groups = [_hashed(file.sha256, item.group) for item in items]
    intervals = clustered_means(
        np.stack([c[3] for c in columns], axis=1), groups, resamples=resamples, seed=seed, level=level
    )
    metrics = []
    for (name, of, at, values), interval in zip(columns, intervals, strict=True):
        if name == "chance":
            interval = replace(interval, low=None, high=None, reason="fixed by the number of options")
        metrics.append(Metric.of_interval(name, interval, of=of, at=at, n=int((~np.isnan(values)).sum())))

    rules = Counter(rule for _, rule in said)
    option_counts = {str(size): int(n) for size, n in sorted(Counter(sizes_N.tolist()).items())}
    best_N = np.maximum.reduceat(scores_M, starts_N)
    tied = int((np.add.reduceat((scores_M == np.repeat(best_N, sizes_N)).astype(int), starts_N) > 1).sum())
    return Outcome(
        protocol="vqa",
        task=task,
        model=inputs.name,
        model_sha256=inputs.loaded.sha256,
        headline="accuracy",
        metrics=tuple(metrics),
        studies=len({item.image for item in items}),
        scans=len({item.image for item in items}),
        patients=len(set(groups)),
        prompts={
            "mapping": file.mapping,
            "template": template or "",
            "caption_rules": dict(sorted(rules.items())),
            "option_counts": option_counts,
        },
        provenance={
            "items_sha256": items_sha256(items, captions),
            "file_sha256": file.sha256,
            "data_sha256": inputs.shards.manifest_hash if images is None else None,
            "images_sha256": found.sha256,
            "geometry_sha256": inputs.loaded.geometry.identity,
            "view_sha256": inputs.loaded.view.identity,
            "precision": inputs.arithmetic,
            "seed": seed,
            "missing_images": missing,
            "rejected_items": dict(sorted(file.rejected.items())),
            "versions": _versions(),
        },
        notes=_notes(file, items, missing, tied, cut, len(set(groups)), resamples),
        scores=_score_table(items, groups, hit_N, blank_N, corrected_N, scores_M),
    )


def _text_vectors(inputs: Inputs, captions: Sequence[Sequence[str]]) -> tuple[dict[str, NDArray[np.float32]], int]:
    """(vector of every sentence, items of which two options are the same to the text tower). Sentences are encoded in
    alphabetical order, so that the order of options changes nothing, and once where they have the same tokens, as those
    have that are cut at the context length: these tie exactly."""
    tokenize = inputs.loaded.tokenizer
    first: dict[tuple[int, ...], str] = {}
    same: dict[str, str] = {}
    for sentence in sorted({s for sentences in captions for s in sentences}):
        same[sentence] = first.setdefault(tuple(int(i) for i in tokenize(sentence)), sentence)
    vectors = inputs.texts(first.values())
    cut = sum(len({same[s] for s in sentences}) < len(sentences) for sentences in captions)
    return {sentence: vectors[kept] for sentence, kept in same.items()}, cut


def _score_table(
    items: Sequence[Item], groups: Sequence[str], hit_N: Array, blank_N: Array, corrected_N: Array, scores_M: Array
) -> pd.DataFrame:
    """Variant "": right or wrong, what comparisons use. "blank", "corrected": the same, of these controls. "options":
    the cosine of every option, label 1 for the right one."""
    import pandas as pd

    keys = [item.key for item in items]
    rows = [
        pd.DataFrame({"key": keys, "patient": groups, "variant": variant, "of": "answer", "score": v, "label": np.nan})
        for variant, v in (("", hit_N), ("blank", blank_N), ("corrected", corrected_N))
    ]
    long = [
        (item.key, group, "options", option, float(j == item.answer))
        for item, group in zip(items, groups, strict=True)
        for j, option in enumerate(item.options)
    ]
    each = pd.DataFrame(long, columns=["key", "patient", "variant", "of", "label"]).assign(score=scores_M)
    return pd.concat([*rows, each], ignore_index=True)[["key", "patient", "variant", "of", "score", "label"]]


def _notes(
    file: ItemFile, items: Sequence[Item], missing: int, tied: int, cut: int, groups: int, resamples: int
) -> tuple[str, ...]:
    notes = [
        "majority_accuracy: always the most frequent right answer of the item's category "
        f"(categories under {FEW} items pooled), 1/options where it is not offered; position_accuracy: always the most "
        "frequent place of the right answer among items with as many options. Both know the scored answers.",
        "blank_accuracy: the same model and sentences with an image of zeros (a volume of air); image_gain is "
        "accuracy - blank_accuracy (MMStar's MG); corrected_accuracy: the blank's cosine taken off every option's.",
        f"Intervals: percentiles of {resamples} draws of {groups} patients (images where the item names no patient).",
    ]
    if file.rejected:
        told = "; ".join(f"{n} {reason}" for reason, n in sorted(file.rejected.items()))
        notes.append(f"Left out of {sum(file.rejected.values()) + len(file.items)} rows: {told}.")
    if missing:
        notes.append(f"{missing} images are missing or unreadable; {len(file.items) - len(items)} items are left out.")
    if tied:
        notes.append(f"In {tied} items several options share the first place; each counts 1 / (number tied).")
    if cut:
        notes.append(f"In {cut} items two sentences are the same once cut to the text tower's context.")
    return tuple(notes)


def _hashed(salt: str, name: str) -> str:
    return hashlib.blake2b(name.encode(), key=salt[:32].encode(), digest_size=8).hexdigest()


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in VERSIONS}


def write_items(folder: Path, file: ItemFile, template: str | None) -> None:
    """`items.jsonl`: what was asked, in which sentences, with the number of options; without names of image files."""
    aside = folder / f".items.{os.getpid()}.tmp"
    try:
        with aside.open("w", encoding="utf-8", newline="\n") as out:
            for item in file.items:
                sentences, rule = captions_of(item, template)
                row = {
                    "key": item.key, "category": item.category, "question": item.question, "n_options": len(sentences),
                    "options": item.options, "answer": item.answer, "captions": sentences, "rule": rule,
                }  # fmt: skip
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
        os.replace(aside, folder / "items.jsonl")
    finally:
        aside.unlink(missing_ok=True)
