"""Rows to tensors: everything about a sample that does not depend on its place in the order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data_shards.alternation import Alternation
from data_shards.batch import Batch, Skipped, TextBatch
from data_shards.captions import draw_caption
from data_shards.errors import DamagedError, DataError, UndecodableError
from data_shards.order import SCANS, TEMPLATES, Draw, replacement_generator
from data_shards.preprocess import (
    AnyGeometry,
    Geometry,
    PlanarGeometry,
    SliceGeometry,
    View,
    apply_planar,
    apply_slice,
    apply_view,
    stacked,
)
from data_shards.shards import Shards
from data_shards.study_images import study_scans
from data_shards.units import Tokenize, Unit, UnitPolicy, captions_identity, hash64, section_units, study_units
from data_shards.windows import Windows
from data_shards.workers import shared_empty

Texts = tuple[list[Unit], int]  # the units of a visit, and what identifies the list of stored captions
NAMED = 5  # damaged samples that an error lists


@dataclass
class Samples:
    """Draws -> Batch. A damaged sample is an error, or with `max_damaged` above 0 replaced by another of its pool.
    `alternation` says which batches are about one anatomical section; there studies may be without a text. Without
    `units` nobody reads texts."""

    shards: Shards
    geometry: AnyGeometry
    view: View
    tokenize: Tokenize
    units: UnitPolicy | None
    label_names: tuple[str, ...] = ()
    max_damaged: int = 0
    alternation: Alternation | None = None
    windows: Windows | None = None  # volumes as values, these to be made of them where they are looked at

    def __post_init__(self) -> None:
        if self.units is not None and self.units.templates is not None:
            self.units.templates.check_labels(self.shards.label_names)
        self._labels = self.shards.labels(self.label_names) if self.label_names else np.empty((len(self.shards), 0))
        self._patient = np.array([hash64(self.shards.patient(r)) for r in range(len(self.shards))], np.int64)

    @property
    def image_shape(self) -> tuple[int, ...]:
        size = self.view.size if isinstance(self.geometry, Geometry) else self.geometry.size
        if self.windows is not None and isinstance(self.geometry, Geometry):
            return (self.geometry.scans_per_study, *size)
        return (self.geometry.channels, *size)

    @property
    def image_dtype(self) -> torch.dtype:
        return torch.float32 if self.windows is None else torch.float16

    def batch(self, step: int, draws: Sequence[Draw]) -> Batch:
        images = shared_empty((len(draws), *self.image_shape), self.image_dtype)
        rows: list[int] = []
        units: list[list[Unit]] = []
        captions: list[int] = []
        skipped: dict[int, Skipped] = {}
        section = self.alternation.section(step) if self.alternation else None
        for draw, image in zip(draws, images, strict=True):
            row, (texts, listed), lost = self._whole(draw, image.numpy(), section)
            rows.append(row)
            units.append(texts)
            captions.append(listed)
            skipped |= lost
        where = np.asarray(rows, np.int64)
        return Batch(
            step,
            torch.from_numpy(where),
            [self.shards.key(row) for row in rows],
            torch.from_numpy(self._patient[where]),
            images,
            torch.from_numpy(self._labels[where].astype(np.float32)),
            self.label_names,
            TextBatch.of(units, self.tokenize),
            tuple(skipped.values()),
            torch.tensor(captions, dtype=torch.int64),
            self.windows,
        )

    def _whole(self, draw: Draw, out: np.ndarray, section: str | None) -> tuple[int, Texts, dict[int, Skipped]]:
        """The drawn sample, or where it is damaged the first undamaged one of a sequence that depends on nothing but
        (seed, epoch, row): (row, texts, damaged rows met on the way)."""
        row, lost, spare = draw.row, dict[int, Skipped](), None
        while True:
            try:
                if row not in lost:
                    return row, self._one(row, draw.seed, out, section), lost
            except DamagedError as error:
                lost[row] = Skipped(row, self.shards.key(row), error.shard, error.what)
                if draw.seed is None or draw.pool is None or not self.max_damaged or len(lost) == len(draw.pool):
                    raise
                if len(lost) > self.max_damaged:
                    raise over_budget(lost.values(), self.max_damaged) from None
            assert draw.seed is not None and draw.pool is not None
            spare = spare or replacement_generator(draw.seed, draw.row)
            row = int(draw.pool[spare.integers(len(draw.pool))])

    def _one(self, row: int, seed: tuple[int, int] | None, out: np.ndarray, section: str | None) -> Texts:
        info, key = self.shards.json(row), self.shards.key(row)
        try:
            if isinstance(self.geometry, Geometry) and self.geometry.scans_per_study > 1:
                self._study(row, seed, info, self.geometry, out)
            else:
                self._scan(row, seed, info, out)
        except DamagedError:
            raise
        except UndecodableError as error:
            shard = self.shards.shard(row)
            raise DamagedError(f"{shard}, sample {key}: {error.what}", error.why, error.fix, shard, key) from None
        except DataError as error:
            raise DataError(f"sample {key}: {error.what}", error.why, error.fix) from None
        units, listed = self.units_of(row, seed, info, section), captions_identity(info["texts"])
        if section is None and self.units is not None and not units:
            raise DataError(
                f"sample {key} has no text of the kinds asked for ({self.units})",
                "an image without a text has no positive pair",
                "change data.units, or build the shards from rows that have these texts; in caption templates, declare "
                "`nothing`: what is said where the labels say nothing",
            )
        return units, listed

    def _scan(self, row: int, seed: tuple[int, int] | None, info: dict[str, Any], out: np.ndarray) -> None:
        """The study's primary scan."""
        which = next((i for i, s in enumerate(info["scans"]) if s.get("role") == "primary"), 0)
        source, meta = self.shards.scan(row, which, info)
        planar = isinstance(source, bytes)
        if planar != (self.geometry.source == "image"):
            raise DataError(
                f"it is {'an image' if planar else 'a volume'}, the geometry is for the other kind",
                "no encoder reads both",
                'set data.geometry.kind to "volume" (or "slice") or "image"',
            )
        image_rng = _of_pixels(seed, row)
        if isinstance(self.geometry, PlanarGeometry):
            out[...] = apply_planar(source, self.geometry, self.view, image_rng)
        elif isinstance(self.geometry, SliceGeometry):
            out[...] = apply_slice(source, meta, self.geometry, self.view, image_rng)
        else:
            apply_view(source, meta, self.geometry, self.view, image_rng, out, raw=self.windows is not None)

    def _study(
        self, row: int, seed: tuple[int, int] | None, info: dict[str, Any], geometry: Geometry, out: np.ndarray
    ) -> None:
        """The study's scans together: of more than it has room for the first, or in training a choice a visit."""
        rng = None if seed is None else np.random.Generator(np.random.Philox([*seed, row, SCANS]))
        numbers = study_scans(self.shards, row, geometry.scans_per_study, rng)
        scans = (self.shards.scan(row, i, info) for i in numbers)
        stacked(scans, geometry, self.view, lambda: _of_pixels(seed, row), out, raw=self.windows is not None)

    def units_of(
        self, row: int, seed: tuple[int, int] | None, info: dict[str, Any] | None = None, section: str | None = None
    ) -> list[Unit]:
        """The text units of one visit (seed, epoch) of a sample, or what it says of one anatomical section; none where
        it has no such text, or nobody reads any."""
        if self.units is None:
            return []
        info = self.shards.json(row) if info is None else info
        if seed is not None and self.units.variants is not None:
            seed = (seed[0], seed[1] % self.units.variants)
        # One generator for pixels, one for words: a change to one leaves the other alone.
        rng = None if seed is None else np.random.Generator(np.random.Philox([*seed, row, 1]))
        if section is not None:
            return section_units(info["texts"], section, self.units, rng)
        return study_units(info["texts"], self.units, rng, self._made(row, seed, info.get("labels") or {}))

    def _made(self, row: int, seed: tuple[int, int] | None, labels: dict[str, int | None]) -> str | None:
        """The caption made of a study's labels, chosen by (seed, epoch, key).

        Everything else of a sample is drawn by (seed, epoch, row). Within one shard set that is as good: a row is one
        key, in any process. A key also stays when studies are added and rows are numbered anew.
        """
        if self.units is None or self.units.templates is None:
            return None
        rng = None
        if seed is not None:
            key = hash64(self.shards.key(row)) % 2**64  # unsigned
            rng = np.random.Generator(np.random.Philox([*seed, key, TEMPLATES]))
        return draw_caption(labels, self.shards.modality(row), self.units.templates, rng)


def _of_pixels(seed: tuple[int, int] | None, row: int) -> np.random.Generator | None:
    return None if seed is None else np.random.Generator(np.random.Philox([*seed, row, 0]))


def over_budget(skipped: Collection[Skipped], budget: int) -> DataError:
    """More distinct samples are damaged than was declared."""
    first = list(skipped)[:NAMED]
    more = f"\n    and {len(skipped) - len(first)} more" if len(skipped) > len(first) else ""
    listed = "".join(f"\n    {s.reason}" for s in first)
    return DataError(
        f"{len(skipped)} distinct samples are damaged, and at most {budget} may be (max_damaged):{listed}{more}",
        "so many are no accident: the copy, the disk or the network is at fault, and what is left is another data set",
        "copy the shards again and run `python -m data_shards.check` on them; or raise max_damaged, in a run "
        "data.max_damaged of its recipe.yaml, and resume",
    )
