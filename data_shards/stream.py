"""Shards to batches: order by arithmetic, so any number of workers, any restart and any number of ranks agree.

What position p of the endless sequence is, `data_shards.order` computes; global batch s of G samples takes the
positions s*G ... s*G + G - 1, rank r of it the samples r*B ... r*B + B - 1 (B samples a rank, G = B * world). Crop and
text choices of a sample are drawn from a Philox generator keyed by (seed, epoch, row). The state is a few integers,
two hashes and the mixture in words.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from data_shards.alternation import Alternation
from data_shards.batch import Batch, Skipped
from data_shards.errors import DataError
from data_shards.mixture import Mixture
from data_shards.order import Draw, Layout, Order
from data_shards.preprocess import AnyGeometry, View
from data_shards.room import Room, fitting, told
from data_shards.samples import Samples, over_budget
from data_shards.shards import Shards
from data_shards.union import ShardUnion
from data_shards.units import Tokenize, UnitPolicy
from data_shards.windows import Windows
from data_shards.workers import load

__all__ = ["Mixture", "ShardUnion", "Stream", "UnitPolicy", "ordered_pass"]
STATE_VERSION = 1


class _Steps(Dataset):
    """Step number -> Batch, in whichever process."""

    def __init__(self, samples: Samples, plan: Callable[[int], list[Draw]]) -> None:
        self.samples, self.plan = samples, plan

    def __getitem__(self, step: int) -> Batch | DataError:
        try:
            return self.samples.batch(step, self.plan(step))
        except DataError as error:
            return error  # raised by `load`


class _Slices:
    """Plan of one ordered pass: rows in the order given, no randomness, a shorter last batch."""

    def __init__(self, rows: np.ndarray, batch_size: int) -> None:
        self.rows, self.batch = rows, batch_size

    def __call__(self, step: int) -> list[Draw]:
        return [Draw(int(r)) for r in self.rows[step * self.batch : (step + 1) * self.batch]]


class Stream:
    """The training stream: an iterable of `steps - start_step` batches with a state of a few integers.

    Args:
        shards: a shard set, or a ShardUnion of several.
        rows: row numbers to train on (for instance `shards.rows("train")`).
        tokenize: text -> token ids including start and end, already truncated.
        units: which texts; None for none at all, and then studies need not have any.
        batch_size: samples per rank. steps: batches of the whole run. start_step: batches already consumed.
        workers: processes that decode; 0 decodes in this one. The batches are the same.
        mixture: weights of the sources of a union, and what a batch is made of. None: all rows in one order.
        max_damaged: distinct damaged samples (`DamagedError`) that this rank may skip in this start of a run. Each is
            replaced by another of its source, the same one for any number of workers and after any restart, told on
            stderr and counted; one more raises DataError. 0: the first one raises.
        pin_memory: of batches that workers made.
        raw: volumes come as values where float16 can tell their windows (data_shards.windows), and `Batch.images` makes
            the windows wherever they are then: of W windows 1/2W of the bytes on the way to a GPU.
    `wait_seconds`: time spent waiting for data since the last `iter()`. `step`: batches consumed so far.
    `damaged`: what was skipped, by row.
    """

    def __init__(
        self,
        shards: Shards,
        rows: np.ndarray,
        geometry: AnyGeometry,
        view: View,
        tokenize: Tokenize,
        units: UnitPolicy | None,
        batch_size: int,
        seed: int,
        steps: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        start_step: int = 0,
        label_names: Sequence[str] = (),
        pin_memory: bool = False,
        mixture: Mixture | None = None,
        max_damaged: int = 0,
        raw: bool = False,
    ) -> None:
        rows = np.asarray(rows, np.int64)
        if not len(rows) or batch_size < 1 or steps < 0 or not 0 <= rank < world or seed < 0 or workers < 0:
            raise DataError("a stream needs rows, batch_size >= 1, steps, seed and workers >= 0, and 0 <= rank < world")
        if max_damaged < 0:
            raise DataError(f"max_damaged is {max_damaged}", fix="use 0 or more")
        alternation = None
        if units is not None and units.alternate:
            alternation = Alternation.measured(shards, rows, seed, batch_size * world)
        windows = Windows.of(geometry) if raw else None
        self.samples = Samples(
            shards, geometry, view, tokenize, units, tuple(label_names), max_damaged, alternation, windows
        )
        layout = Layout.plain(rows)
        if mixture is not None:
            layout = Layout.of(mixture, rows, self.source_names, self._source_R, *self._modalities)
        self.order = Order(layout, seed, batch_size, rank, world)
        self.steps, self.start_step, self.workers, self.pin_memory = steps, start_step, workers, pin_memory
        self.step, self.wait_seconds = start_step, 0.0
        self._room = Room.measured(pin_memory)  # now: other ranks have not filled it yet
        self.damaged: dict[int, Skipped] = {}
        self._identity = {
            "version": STATE_VERSION,
            "seed": seed,
            "global_batch": batch_size * world,
            "manifest": shards.manifest_hash,
            "rows_hash": hashlib.blake2b(rows.tobytes(), digest_size=16).hexdigest(),
            "mixture": layout.label,
        }

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step)

    def __iter__(self) -> Iterator[Batch]:
        self.step, self.wait_seconds = self.start_step, 0.0
        batch_bytes = self.samples.image_dtype.itemsize * int(np.prod(self.samples.image_shape)) * self.order.batch
        dataset = _Steps(self.samples, self.order)
        asked = min(self.workers, len(self))
        workers = fitting(asked, batch_bytes, self.order.world, self._room)
        if workers.number < asked and self.order.rank == 0 and self._room is not None:
            print(
                f"note: {workers.number} instead of {asked} workers (data.workers): each holds a batch of "
                f"{told(batch_bytes)}, and {self._room.said(self.order.world)}",
                file=sys.stderr,
                flush=True,
            )
        batches = load(dataset, range(self.step, self.steps), workers, self.pin_memory)
        with contextlib.closing(batches):
            while True:
                began = time.perf_counter()
                batch = next(batches, None)
                self.wait_seconds += time.perf_counter() - began
                if batch is None:
                    return
                for lost in batch.skipped:
                    self._skip(lost)
                self.step = batch.step + 1
                yield batch

    def _skip(self, lost: Skipped) -> None:
        if lost.row in self.damaged:
            return
        self.damaged[lost.row] = lost
        budget = self.samples.max_damaged
        if len(self.damaged) > budget:
            raise over_budget(self.damaged.values(), budget)
        told = f"warning: damaged sample left out, {len(self.damaged)} of at most {budget}: {lost.reason}"
        print(f"{told}; another of its source stands in", file=sys.stderr, flush=True)

    @property
    def source_names(self) -> tuple[str, ...]:
        shards = self.samples.shards
        return shards.names if isinstance(shards, ShardUnion) else ("all",)

    @cached_property
    def _source_R(self) -> np.ndarray:
        shards = self.samples.shards
        return shards.source_R if isinstance(shards, ShardUnion) else np.zeros(len(shards), np.int64)

    @cached_property
    def _modalities(self) -> tuple[tuple[str, ...], np.ndarray]:
        """Their names, and the number of each row's."""
        every = [self.samples.shards.modality(row) for row in range(len(self.samples.shards))]
        names, number_R = np.unique(every, return_inverse=True)
        return tuple(str(name) for name in names), number_R

    def realised(self, step: int | None = None) -> dict[str, dict[str, int]]:
        """Samples of the first `step` batches (those consumed, by default) of all ranks together, by "source" and by
        "modality": computed from the order, so the same after a restart. Stand-ins count for what they stand in for."""
        steps = self.step if step is None else step
        found = {}
        for what, (names, class_R) in (
            ("source", (self.source_names, self._source_R)),
            ("modality", self._modalities),
        ):
            counts = self.order.count(steps, class_R, len(names))
            found[what] = {name: int(n) for name, n in zip(names, counts, strict=True)}
        return found

    def state_dict(self) -> dict[str, Any]:
        """{version, seed, global_batch, manifest, rows_hash, mixture, world, step}: batches consumed, of which
        sequence, by how many ranks."""
        return {**self._identity, "world": self.order.world, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after `state["step"]` batches. With another number of ranks and the same global batch the same samples
        follow, dealt anew to the ranks, and rank 0 says so. Raises DataError for the state of another sequence."""
        meaning = {
            "version": "the stream's state has another format",
            "seed": "the order was drawn from another seed",
            "global_batch": f"the batch size differs, {self.order.batch} x {self.order.world} ranks",
            "manifest": "the shards are not the ones it was trained on",
            "rows_hash": "other samples of the shards are selected",
            "mixture": "the mixture differs",
        }
        wrong = [
            f"{why} ({name}: {state.get(name)!r} saved, {self._identity[name]!r} now)"
            for name, why in meaning.items()
            if state.get(name) != self._identity[name]
        ]
        ranks, batch, size = self.order.world, self.order.batch, self.order.size
        if wrong:
            fix = "resume with the settings of the run, or start a new run from its weights"
            if state.get("global_batch") not in (None, size):
                fix += "; " + _divided(int(state["global_batch"]), ranks)
            raise DataError(
                "this stream cannot go on from that state: " + "; ".join(wrong),
                "some samples would be seen twice and others never",
                fix,
            )
        if state.get("world", ranks) != ranks and self.order.rank == 0:
            print(
                f"resumed on {ranks} rank{'s' * (ranks > 1)} instead of {state['world']}: the global batch is still "
                f"{size}, so the same samples follow, {batch} a rank",
                file=sys.stderr,
                flush=True,
            )
        self.start_step = self.step = int(state["step"])


def _divided(size: int, ranks: int) -> str:
    if size % ranks:
        return f"a batch of {size} samples cannot be dealt to {ranks} ranks: use a number of ranks that divides it"
    return f"on {ranks} rank{'s' * (ranks > 1)} that is a batch size of {size // ranks} per rank"


def ordered_pass(
    shards: Shards,
    rows: np.ndarray,
    geometry: AnyGeometry,
    view: View,
    tokenize: Tokenize,
    units: UnitPolicy,
    batch_size: int,
    workers: int = 0,
    label_names: Sequence[str] = (),
) -> Iterator[Batch]:
    """Every row once, in the order given, nothing random: for embedding and evaluation. The last batch may be short.

    Nothing is skipped: a damaged sample raises DamagedError, because a score of fewer studies is another score.
    """
    if view.kind == "random":
        raise DataError("an ordered pass is for evaluation, and the view is random", fix='use view kind "centre"')
    samples = Samples(shards, geometry, view, tokenize, units, tuple(label_names))
    rows = np.asarray(rows, np.int64)
    steps = range(-(-len(rows) // batch_size))
    batch_bytes = 4 * int(np.prod(samples.image_shape)) * batch_size
    fitted = fitting(min(workers, len(steps)), batch_bytes, 1, Room.measured(False))
    return load(_Steps(samples, _Slices(rows, batch_size)), steps, fitted)
