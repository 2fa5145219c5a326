"""Studies for the page: the sentences a model matched, where it looked, and the cases it got most wrong."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.classify import side_vectors
from eval_zero_shot.embedding import embed_batches, embed_texts, study_batches
from eval_zero_shot.inputs import choose_rows
from eval_zero_shot.outcome import Outcome
from eval_zero_shot.report.curves import hardest, ranked
from eval_zero_shot.report.focus import attention, contributions, mean_tokens, similarity
from eval_zero_shot.report.maps import ATTENTION, SHARE, SIMILARITY, as_int8, peak_of
from eval_zero_shot.report.pictures import (
    model_input,
    on_picture,
    one_view,
    picture,
    png,
    slice_of,
    thumbnail,
)

if TYPE_CHECKING:
    from encoders.loading import Loaded
    from eval_zero_shot.tasks import Task

GALLERY, MATCHES, FINDINGS, ORDINARY, THUMBNAILS = 6, 4, 8, 32, 96


@dataclass(frozen=True)
class Shown:
    """Studies that a page may show: those of one model's outcome on one task (`model`, `task.name`)."""

    model: str
    loaded: Loaded
    shards: Any
    rows: NDArray
    task: Task


def gallery(shown: Shown, seed: int = 0) -> list[dict[str, Any]]:
    """A fixed choice of studies with the sentences nearest to them among all sentences of the rows' reports."""
    from data_shards.report import sentences

    loaded, shards = shown.loaded, shown.shards
    chosen = choose_rows(shown.rows, GALLERY, seed)
    own: dict[int, set[str]] = {}
    every: dict[str, None] = {}
    for row in shown.rows:
        texts = shards.json(int(row))["texts"]
        found = sentences("\n".join(str(texts.get(k) or "") for k in ("findings", "impression")).strip())
        found = found or sentences(str(texts.get("report") or ""))
        found = found or [c["text"] for c in texts.get("captions") or () if c["text"].strip()]
        own[int(row)] = set(found)
        every.update(dict.fromkeys(found))
    if not every:
        return []
    vectors = embed_texts(loaded.model, loaded.tokenizer, every)  # type: ignore[arg-type]
    names, text_UD = list(vectors), np.stack(list(vectors.values()))
    batches = study_batches(shards, chosen, loaded.geometry, loaded.view)
    images_ND = embed_batches(loaded.model, batches).features_ND
    cases = []
    for row, image in zip(chosen, images_ND, strict=True):
        cosine_U = text_UD @ image
        nearest = np.argsort(-cosine_U, kind="stable")[:MATCHES]
        seen = picture(shards, int(row), loaded)
        middle = seen.grey.shape[1] // 2
        slices = [(name, png(slice_of(seen, i, "axial", middle))) for i, name in enumerate(seen.names)]
        matches = [(names[u], float(cosine_U[u]), names[u] in own[int(row)]) for u in nearest]
        height, width = seen.grey.shape[2] * seen.spacing_mm[1], seen.grey.shape[3] * seen.spacing_mm[2]
        cases.append({"key": shards.key(int(row)), "slices": slices, "matches": matches, "aspect": width / height})
    return cases


def looked(shown: Shown, outcome: Outcome) -> list[dict[str, Any]]:
    """For the best and the worst findings, the study with the finding that scored highest, with maps on the token grid:
    first the attention of the prompts where the release has a head for it, what tokens add to the score against the
    mean of ORDINARY studies, and the tokens' similarity with the prompts where they can be compared with texts."""
    loaded, shards, task = shown.loaded, shown.shards, shown.task
    aurocs = {m.of: m.value for m in outcome.metrics if m.name == "auroc" and not m.at and m.value is not None}
    scored = ranked(outcome)
    shown_names = sorted((n for n in task.names if n in aurocs and n in scored), key=lambda n: -aurocs[n])
    if len(shown_names) > FINDINGS:
        shown_names = shown_names[: FINDINGS // 2] + shown_names[-(FINDINGS // 2) :]
    vectors = embed_texts(loaded.model, loaded.tokenizer, task.texts())  # type: ignore[arg-type]
    sides = side_vectors(task, vectors)
    if len(sides) == 2:
        directions_LD = sides[0] - sides[1]
    else:  # one class of several is right: against the mean of the others
        directions_LD = (sides[0] * len(task.names) - sides[0].sum(0)) / (len(task.names) - 1)
    row_of = {shards.key(int(row)): int(row) for row in shown.rows}
    reference = choose_rows(shown.rows, ORDINARY)
    ordinary = mean_tokens(
        loaded.model, (batch.images for batch in study_batches(shards, reference, loaded.geometry, one_view(loaded)))
    )
    if ordinary is None:
        return []
    cases = []
    for name in shown_names:
        part = scored[name][(scored[name]["label"] == 1) & scored[name]["key"].isin(list(row_of))]
        if not len(part):
            continue
        row = row_of[str(part.sort_values(["score", "key"], ascending=[False, True])["key"].iloc[0])]
        image, j = model_input(shards, row, loaded), task.names.index(name)
        direction = directions_LD[j]
        share = contributions(loaded.model, image, direction, ordinary)
        if share is None:
            return []
        negative = sides[1][j] if len(sides) == 2 else None
        found = {
            ATTENTION: attention(loaded, image, sides[0][j], negative),
            SHARE: share,
            SIMILARITY: similarity(loaded.model, image, direction),
        }
        seen = picture(shards, row, loaded)
        # Of the scan that is drawn: tokens of scans that a study lacks are no part of what is ordinary in it.
        drawn = {kind: on_picture(values, loaded) for kind, values in found.items() if values is not None}
        drawn = {kind: grid if kind == SHARE else grid - np.median(grid) for kind, grid in drawn.items()}
        maps = [
            {"name": kind, "values": base64.b64encode(as_int8(values, seen.grey[-1])).decode()}
            for kind, values in drawn.items()
        ]
        first = next(iter(drawn.values()))  # the map that the page opens with
        cases.append(
            {
                "model": shown.model,
                "finding": name.replace("_", " "),
                "prompt": task.prompts(name)[0][0],
                "auroc": aurocs[name],
                "size": list(seen.grey.shape[1:]),
                "spacing": list(seen.spacing_mm),
                "windows": [
                    {"name": n, "image": png(np.ascontiguousarray(g.reshape(-1, g.shape[-1])))}
                    for n, g in zip(seen.names, seen.grey, strict=True)
                ],
                "grid": list(first.shape),
                "maps": maps,
                "peak": peak_of(first, seen.grey[-1]),
                "ordinary": len(reference),
            }
        )
    return cases


def hardest_errors(outcome: Outcome) -> list[dict[str, Any]]:
    """[{"finding", "negatives", "positives"}] of every finding with both sides, as `curves.hardest` has them."""
    found = []
    for name, part in ranked(outcome).items():
        errors = hardest(part)
        if errors["negatives"] or errors["positives"]:
            found.append({"finding": name, **errors})
    return found


def thumbnails(shown: Shown, errors: Sequence[dict[str, Any]], most: int = THUMBNAILS) -> dict[str, str]:
    """key -> JPEG of the middle slice, of at most `most` studies: the worst of every finding first."""
    row_of = {shown.shards.key(int(row)): int(row) for row in shown.rows}
    sides = [side for e in errors for side in (e["negatives"], e["positives"])]
    longest = max((len(side) for side in sides), default=0)
    wanted = [side[i][0] for i in range(longest) for side in sides if i < len(side) and side[i][0] in row_of]
    chosen = list(dict.fromkeys(wanted))[:most]
    return {key: thumbnail(picture(shown.shards, row_of[key], shown.loaded)) for key in chosen}
