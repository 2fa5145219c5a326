"""Studies for the page: slices in windows a reader knows, the sentences a model matched, and where it looked."""

from __future__ import annotations

import base64
import dataclasses
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.classify import class_embeddings
from eval_zero_shot.embedding import embed_batches, embed_texts, study_batches
from eval_zero_shot.inputs import choose_rows
from eval_zero_shot.report.focus import contributions, mean_tokens
from eval_zero_shot.tasks import Task

if TYPE_CHECKING:
    from data_shards.geometry import View
    from encoders.loading import Loaded

WINDOWS = {"lung": (-1350.0, 150.0), "soft tissue": (-160.0, 240.0)}  # HU
GALLERY, MATCHES, FINDINGS, ORDINARY = 6, 4, 8, 32


@dataclass(frozen=True)
class Picture:
    """8-bit voxels [windows, D, H, W] as the model's view has them (D = 1 for images), and their names."""

    names: tuple[str, ...]
    grey: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]


def one_view(loaded: Loaded) -> View:
    """The release's view, or the middle where it has several crops: a page shows one."""
    from data_shards.preprocess import SEVERAL

    return dataclasses.replace(loaded.view, kind="centre") if loaded.view.kind in SEVERAL else loaded.view


def picture(shards: Any, row: int, loaded: Loaded) -> Picture:
    """A study in lung and soft-tissue windows (CT), in the model's own first window (other volumes), or as it is."""
    from data_shards.preprocess import apply_planar, apply_view

    source, meta = shards.scan(row, 0)
    geometry: Any = loaded.geometry
    if geometry.kind == "image":
        x = apply_planar(source, geometry, one_view(loaded))
        x = x * np.reshape(geometry.std, (-1, 1, 1)) + np.reshape(geometry.mean, (-1, 1, 1))
        grey = np.clip(np.rint(255 * x.mean(0)), 0, 255).astype(np.uint8)
        # Volumes are drawn with both in-plane axes turned round (RAS); an image's first row is on top already.
        return Picture(("image",), np.ascontiguousarray(grey[None, None, ::-1, ::-1]), (1.0, 1.0, 1.0))
    names = tuple(WINDOWS)
    shown = dataclasses.replace(geometry, windows=tuple(WINDOWS.values()), windows_in="unit")
    if meta.get("unit") != "HU":
        names, shown = ("first window",), dataclasses.replace(geometry, windows=geometry.windows[:1])
    seen = apply_view(source, meta, shown, one_view(loaded))
    grey = np.clip(np.rint(127.5 * (seen + 1)), 0, 255).astype(np.uint8)
    spacing = geometry.spacing_mm or meta.get("spacing_mm") or (1.0, 1.0, 1.0)
    return Picture(names, grey, tuple(float(s) for s in spacing))  # type: ignore[arg-type]


def png(grey_HW: NDArray[np.uint8]) -> str:
    """A data URI."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(grey_HW).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def axial(shown: Picture, window: int, place: int) -> str:
    """One axial slice as radiologists see it: the front above, the patient's right on the left."""
    return png(np.ascontiguousarray(shown.grey[window, place, ::-1, ::-1]))


def gallery(loaded: Loaded, shards: Any, rows: NDArray, seed: int = 0) -> list[dict[str, Any]]:
    """A fixed choice of studies with the sentences nearest to them among all sentences of `rows`' reports."""
    from data_shards.report import sentences

    chosen = choose_rows(rows, GALLERY, seed)
    own: dict[int, set[str]] = {}
    every: dict[str, None] = {}
    for row in rows:
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
        shown = picture(shards, int(row), loaded)
        middle = shown.grey.shape[1] // 2
        slices = [(name, axial(shown, i, middle)) for i, name in enumerate(shown.names)]
        matches = [(names[u], float(cosine_U[u]), names[u] in own[int(row)]) for u in nearest]
        height, width = shown.grey.shape[2] * shown.spacing_mm[1], shown.grey.shape[3] * shown.spacing_mm[2]
        cases.append({"key": shards.key(int(row)), "slices": slices, "matches": matches, "aspect": width / height})
    return cases


def looked(
    loaded: Loaded,
    shards: Any,
    rows: NDArray,
    task: Task,
    results: dict[str, Any],
    scores: dict[tuple[str, str], float],
) -> list[dict[str, Any]]:
    """For the best and the worst findings, the study with the finding that scored highest, and the tokens behind it,
    against the mean of ORDINARY studies.

    `scores`: (key, finding) -> score of the evaluation.
    """
    from data_shards.preprocess import apply_planar, apply_view

    found = results["per_finding"]
    ranked = sorted((n for n in task.names if found[n]["auroc"] is not None), key=lambda n: -found[n]["auroc"])
    half = FINDINGS // 2
    ranked = ranked if len(ranked) <= FINDINGS else ranked[:half] + ranked[-half:]
    vectors = embed_texts(loaded.model, loaded.tokenizer, task.texts())  # type: ignore[arg-type]
    prompts = class_embeddings(task, vectors)
    row_of = {shards.key(int(row)): int(row) for row in rows}
    labels = shards.labels(tuple(n for n in ranked if n in shards.label_names))
    columns = [n for n in ranked if n in shards.label_names]
    reference = choose_rows(rows, ORDINARY)
    ordinary = mean_tokens(
        loaded.model, (batch.images for batch in study_batches(shards, reference, loaded.geometry, one_view(loaded)))
    )
    if ordinary is None:
        return []
    cases = []
    for name in ranked:
        positive = [k for k, row in row_of.items() if name in columns and labels[row, columns.index(name)] == 1]
        if not positive:
            continue
        key = max(positive, key=lambda k: scores.get((k, name), -np.inf))
        source, meta = shards.scan(row_of[key], 0)
        geometry: Any = loaded.geometry
        if geometry.kind == "image":
            image = apply_planar(source, geometry, one_view(loaded))
        else:
            image = apply_view(source, meta, geometry, one_view(loaded))
        j = task.names.index(name)
        share = contributions(loaded.model, image, prompts.positive_LD[j] - prompts.negative_LD[j], ordinary)
        if share is None:
            return []
        share = np.ascontiguousarray(share[None, ::-1, ::-1]) if share.ndim == 2 else share  # as the picture
        shown = picture(shards, row_of[key], loaded)
        scaled = np.clip(np.rint(127 * share / (np.abs(share).max() or 1.0)), -127, 127).astype(np.int8)
        cases.append(
            {
                "finding": name.replace("_", " "),
                "prompt": task.prompts(name)[0][0],
                "auroc": found[name]["auroc"],
                "size": list(shown.grey.shape[1:]),
                "spacing": list(shown.spacing_mm),
                "windows": [
                    {"name": n, "image": png(np.ascontiguousarray(g.reshape(-1, g.shape[-1])))}
                    for n, g in zip(shown.names, shown.grey, strict=True)
                ],
                "grid": list(share.shape),
                "share": base64.b64encode(scaled.tobytes()).decode(),
                "peak": [int(i) for i in np.unravel_index(int(_inside(share, shown.grey[-1]).argmax()), share.shape)],
                "ordinary": len(reference),
            }
        )
    return cases


def _inside(share: NDArray, grey: NDArray[np.uint8]) -> NDArray:
    """`share` where a token holds something but air, and nothing elsewhere: the page opens on the patient."""
    if share.shape[0] == 1 or any(n % g for n, g in zip(grey.shape, share.shape, strict=True)):
        return share
    (d, h, w), (a, b, c) = share.shape, (n // g for n, g in zip(grey.shape, share.shape, strict=True))
    filled = (grey > 0).reshape(d, a, h, b, w, c).mean((1, 3, 5)) > 0.1
    return np.where(filled, share, -np.inf) if filled.any() else share
