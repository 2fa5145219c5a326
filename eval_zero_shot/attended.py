"""Scores by the released head `attended` (objective `attended`; FLAIR, arXiv 2412.03561): every text pools the tokens
of an image by itself, and the score is its cosine with what it found.

Legend: B crops, N cases, U texts, D joint width. Tokens are far too many to keep; the cosines [N, U] are kept instead.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_shards.progress import counting
from eval_zero_shot.embedding import StudyFeatures, autocast, evaluating, study_batches
from eval_zero_shot.errors import EvalError

if TYPE_CHECKING:
    from eval_zero_shot.inputs import Inputs

HEAD = "attended"


def has_head(loaded: Any) -> bool:
    """Whether a model was released with the head."""
    return HEAD in getattr(loaded, "heads", {})


def require_head(inputs: Inputs) -> None:
    """Raises EvalError where the model has no such head."""
    if not has_head(inputs.loaded):
        raise EvalError(
            f"{inputs.name} was released without a head '{HEAD}'",
            why="there is nothing by which a text could look at its images",
            fix=f"train it with objective '{HEAD}' (docs/objectives.md), or leave out --attended",
        )


def attended_cosines(
    inputs: Inputs, shards: Any, rows: Sequence[int] | NDArray, texts: Mapping[str, NDArray]
) -> NDArray[np.float64]:
    """[N, U]: of each of `rows` of `shards` and each text, the cosine of the text with what it pools from the tokens;
    of several crops the mean. texts: text -> its unit vector. Kept in the cache of features."""
    from eval_zero_shot.feature_cache import identity_of

    rows = np.asarray(rows)

    def made() -> StudyFeatures:
        return _cosines(inputs, shards, rows, np.stack(list(texts.values())))

    if inputs.cache is None:
        return made().features_ND.astype(np.float64)
    asked = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
    identity = {**identity_of(inputs.loaded, shards, rows, inputs.precision), HEAD: asked}
    return inputs.cache.get_or_make(identity, made).features_ND.astype(np.float64)


def _cosines(inputs: Inputs, shards: Any, rows: NDArray, text_UD: NDArray) -> StudyFeatures:
    import torch
    import torch.nn.functional as F

    loaded, size = inputs.loaded, inputs.batch_size
    head = loaded.heads[HEAD]
    place = {shards.key(int(row)): i for i, row in enumerate(rows)}
    total_NU, crops_N = np.zeros((len(rows), len(text_UD))), np.zeros(len(rows))
    patients = [""] * len(rows)
    batches = study_batches(shards, rows, loaded.geometry, loaded.view, size)
    with evaluating(loaded.model) as device, counting(len(rows), f"encoding for {HEAD}") as advance:
        texts = torch.from_numpy(text_UD).float().to(device)
        for batch in batches:
            at = np.array([place[key] for key in batch.keys])
            for start in range(0, len(batch.images), size):
                images = torch.from_numpy(batch.images[start : start + size]).to(device)
                with autocast(device, inputs.precision):
                    tokens = loaded.model.encode_image(images, tokens=True).tokens_SND
                with autocast(device, "fp32"):
                    pooled_BUD = F.normalize(head(tokens.float(), texts), dim=-1)
                    cosine_BU = torch.einsum("bud,ud->bu", pooled_BUD, texts)
                np.add.at(total_NU, at[start : start + size], cosine_BU.double().cpu().numpy())
            np.add.at(crops_N, at, 1)
            for i, patient in zip(at, batch.patients, strict=True):
                patients[i] = patient
            advance(len(set(batch.keys)))
    mean_NU = (total_NU / crops_N[:, None]).astype(np.float32)
    if not np.isfinite(mean_NU).all():
        raise EvalError(
            f"cosines by head '{HEAD}' are not finite",
            why="any AUROC of them would be noise",
            fix="look at the training run: a non-finite weight",
        )
    return StudyFeatures(tuple(place), np.asarray(patients, dtype=str), mean_NU)
