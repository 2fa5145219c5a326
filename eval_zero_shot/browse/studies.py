"""What the browse page asks of a model and its studies: a ranking by a typed text, slices, and a map on the token grid.

Legend: N studies, D embedding width. Studies are known by their place 0..N-1 and by nothing else.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.embedding import study_batches, study_texts
from eval_zero_shot.inputs import Inputs, choose_rows
from eval_zero_shot.report.maps import as_int8, peak_of
from eval_zero_shot.report.pictures import (
    PLANES,
    Picture,
    model_input,
    on_picture,
    one_view,
    picture,
    png_bytes,
    slice_of,
)

PICTURES, SLICES, TEXTS, MAPS, ORDINARY = 4, 768, 256, 64, 8


class Studies:
    """The studies `rows` of a shard set under one model. Safe for threads: one at a time reaches model and shards."""

    def __init__(self, inputs: Inputs, rows: Sequence[int] | NDArray) -> None:
        self.inputs, self.rows = inputs, np.asarray(rows)
        self.features_ND = inputs.features(self.rows).features_ND
        self._lock = threading.RLock()
        self._ordinary: Any = None
        self._picture = lru_cache(PICTURES)(self._read)
        self._slice = lru_cache(SLICES)(self._draw)
        self._text = lru_cache(TEXTS)(self._embed)
        self._map = lru_cache(MAPS)(self._explain)

    def __len__(self) -> int:
        return len(self.rows)

    def rank(self, text: str, minus: str = "", lowest: bool = False) -> list[tuple[int, float]]:
        """(study, score), the highest first or the lowest: cosine with `text`, less the cosine with `minus` if any."""
        score_N = self.features_ND @ self._direction(text, minus)
        order = np.argsort(score_N if lowest else -score_N, kind="stable")
        return [(int(i), float(score_N[i])) for i in order]

    def about(self, study: int) -> dict[str, Any]:
        """Size (D, H, W), spacing in mm, windows, known labels and report of a study."""
        with self._lock:
            shown, row = self._picture(study), int(self.rows[study])
            shards = self.inputs.shards
            labels = dict(shards.json(row).get("labels") or {})
            return {
                "key": shards.key(row),
                "size": list(shown.grey.shape[1:]),
                "spacing": list(shown.spacing_mm),
                "windows": list(shown.names),
                "labels": {name: int(value) for name, value in labels.items() if value is not None},
                "report": study_texts(shards.json(row)["texts"]),
            }

    def png(self, study: int, plane: str, window: int, place: int) -> bytes:
        """One slice. Raises IndexError where there is no such study, window or slice."""
        if not (0 <= study < len(self) and plane in PLANES):
            raise IndexError("study or plane")
        return self._slice(study, plane, window, place)

    def map(self, study: int, text: str, minus: str = "") -> dict[str, Any]:
        """{"name", "says", "grid", "values" (int8, base64), "peak"} of a text in a study, by the released head
        `attended` where there is one; name None where the tower has no tokens that could be drawn."""
        return self._map(study, text, minus)

    def _direction(self, text: str, minus: str) -> NDArray[np.float32]:
        with self._lock:
            return self._text(text) - self._text(minus) if minus else self._text(text)

    def _embed(self, text: str) -> NDArray[np.float32]:
        return self.inputs.texts([text])[text]

    def _read(self, study: int) -> Picture:
        return picture(self.inputs.shards, int(self.rows[study]), self.inputs.loaded)

    def _draw(self, study: int, plane: str, window: int, place: int) -> bytes:
        with self._lock:
            shown = self._picture(study)
        if not 0 <= window < len(shown.names):
            raise IndexError("window")
        return png_bytes(slice_of(shown, window, plane, place), optimize=False)

    def _explain(self, study: int, text: str, minus: str) -> dict[str, Any]:
        from eval_zero_shot.report.focus import attention, contributions, similarity
        from eval_zero_shot.report.maps import ATTENTION, SAYS, SHARE, SIMILARITY

        loaded, shards = self.inputs.loaded, self.inputs.shards
        with self._lock:
            direction = self._direction(text, minus).astype(np.float64)
            image = model_input(shards, int(self.rows[study]), loaded)
            both = [np.asarray(self._text(one), np.float64) for one in (text, minus) if one]
            name, found = ATTENTION, attention(loaded, image, *both)
            if found is None:
                name, found = SIMILARITY, similarity(loaded.model, image, direction)
            if found is not None:
                found = on_picture(found, loaded)
                found = found - np.median(found)
            elif (ordinary := self._mean_tokens()) is not None:
                name, found = SHARE, contributions(loaded.model, image, direction, ordinary)
                found = None if found is None else on_picture(found, loaded)
            if found is None:
                return {"name": None}
            grey = self._picture(study).grey[-1]
        return {
            "name": name,
            "says": SAYS[name],
            "grid": list(found.shape),
            "values": base64.b64encode(as_int8(found, grey)).decode(),
            "peak": peak_of(found, grey),
        }

    def _mean_tokens(self) -> Any:
        """Of a fixed choice of studies, computed when first asked for."""
        if self._ordinary is None:
            from eval_zero_shot.report.focus import mean_tokens

            loaded, few = self.inputs.loaded, choose_rows(self.rows, ORDINARY)
            batches = study_batches(self.inputs.shards, few, loaded.geometry, one_view(loaded))
            self._ordinary = mean_tokens(loaded.model, (batch.images for batch in batches))
        return self._ordinary
