"""Shards to batches: order by arithmetic, so any number of workers, any restart and any number of ranks agree.

Position p of the endless sequence is row perm(seed, p // n)[p % n]. Step s of rank r takes the positions
s*G + r*B ... s*G + r*B + B - 1 (B samples a rank, G = B * world). Crop and text choices of a sample are drawn from a
Philox generator keyed by (seed, epoch, row). The state is a few integers and two hashes.
"""

from __future__ import annotations

import atexit
import hashlib
import signal
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from data_shards.batch import Batch, TextBatch
from data_shards.errors import DataError
from data_shards.preprocess import Geometry, PlanarGeometry, View, apply_planar, apply_view
from data_shards.shard_set import ShardSet
from data_shards.units import Tokenize, Unit, UnitPolicy, hash64, study_units

STATE_VERSION = 1
PREFETCH_BYTES = 512 << 20  # images that workers may hold ready, all together
_LIVE: weakref.WeakSet[Any] = weakref.WeakSet()  # passes with workers


@dataclass
class Samples:
    """Turns rows into tensors: everything about a sample that does not depend on its place in the order."""

    shards: ShardSet
    geometry: Geometry | PlanarGeometry
    view: View
    tokenize: Tokenize
    units: UnitPolicy
    label_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._labels = self.shards.labels(self.label_names) if self.label_names else np.empty((len(self.shards), 0))
        self._patient = np.array([hash64(self.shards.patient(r)) for r in range(len(self.shards))], np.int64)

    @property
    def image_shape(self) -> tuple[int, ...]:
        size = self.geometry.size if isinstance(self.geometry, PlanarGeometry) else self.view.size
        return (self.geometry.channels, *size)

    def batch(self, step: int, rows: Sequence[int], seeds: Sequence[tuple[int, int] | None]) -> Batch:
        """Rows -> Batch. `seeds`: (seed, epoch) per row, or None for no randomness at all."""
        images = _empty((len(rows), *self.image_shape))
        units = [self._one(row, seed, images[i].numpy()) for i, (row, seed) in enumerate(zip(rows, seeds, strict=True))]
        where = np.asarray(rows, np.int64)
        return Batch(
            step,
            torch.from_numpy(where),
            [self.shards.key(int(r)) for r in rows],
            torch.from_numpy(self._patient[where]),
            images,
            torch.from_numpy(self._labels[where].astype(np.float32)),
            self.label_names,
            TextBatch.of(units, self.tokenize),
        )

    def _one(self, row: int, seed: tuple[int, int] | None, out: np.ndarray) -> list[Unit]:
        image_rng = text_rng = None
        if seed is not None:  # one generator for pixels, one for words: a change to one leaves the other alone
            image_rng, text_rng = (np.random.Generator(np.random.Philox([*seed, row, use])) for use in (0, 1))
        info = self.shards.json(row)
        which = next((i for i, s in enumerate(info["scans"]) if s.get("role") == "primary"), 0)
        source, meta = self.shards.scan(row, which, info)
        key = self.shards.key(row)
        planar = isinstance(source, bytes)
        if planar != isinstance(self.geometry, PlanarGeometry):
            raise DataError(
                f"sample {key} is {'an image' if planar else 'a volume'}, the geometry is for the other kind",
                "no encoder reads both",
                'set data.geometry.kind to "volume" or "image"',
            )
        try:
            if isinstance(self.geometry, PlanarGeometry):
                out[...] = apply_planar(source, self.geometry, self.view, image_rng)
            else:
                apply_view(source, meta, self.geometry, self.view, image_rng, out)
        except DataError as error:
            raise DataError(f"sample {key}: {error.what}", error.why, error.fix) from None
        units = study_units(info["texts"], self.units, text_rng)
        if not units:
            raise DataError(
                f"sample {key} has no text of the kinds asked for ({self.units})",
                "an image without a text has no positive pair",
                "change data.units, or build the shards from rows that have these texts",
            )
        return units


class _Steps(Dataset):
    """Step number -> Batch, in whichever process."""

    def __init__(self, samples: Samples, plan: Any) -> None:
        self.samples, self.plan = samples, plan

    def __getitem__(self, step: int) -> Batch | DataError:
        rows, seeds = self.plan(step)
        try:
            return self.samples.batch(step, rows, seeds)
        except DataError as error:
            return error  # raised by the reader: torch would wrap it in a worker's traceback


class Order:
    """The arithmetic of the training order: step -> this rank's rows and their (seed, epoch)."""

    def __init__(self, rows: np.ndarray, seed: int, batch_size: int, rank: int, world: int) -> None:
        self.rows, self.seed, self.batch, self.rank, self.world = rows, seed, batch_size, rank, world

    def __call__(self, step: int) -> tuple[list[int], list[tuple[int, int]]]:
        first = step * self.batch * self.world + self.rank * self.batch
        rows, seeds = [], []
        for position in range(first, first + self.batch):
            epoch, place = divmod(position, len(self.rows))
            rows.append(int(self.rows[_permutation(self.seed, epoch, len(self.rows))[place]]))
            seeds.append((self.seed, epoch))
        return rows, seeds


class _Slices:
    """Plan of one ordered pass: rows in the order given, no randomness, a shorter last batch."""

    def __init__(self, rows: np.ndarray, batch_size: int) -> None:
        self.rows, self.batch = rows, batch_size

    def __call__(self, step: int) -> tuple[list[int], list[None]]:
        rows = [int(r) for r in self.rows[step * self.batch : (step + 1) * self.batch]]
        return rows, [None] * len(rows)


class Stream:
    """The training stream: an iterable of `steps - start_step` batches with a state of a few integers.

    Args:
        rows: row numbers of the shard set to train on (for instance `shards.rows("train")`).
        tokenize: text -> token ids including start and end, already truncated.
        batch_size: samples per rank. steps: batches of the whole run. start_step: batches already consumed.
        workers: processes that decode; 0 decodes in this one. The batches are the same.
    `wait_seconds`: time spent waiting for data since the last `iter()`. `step`: batches consumed so far.
    """

    def __init__(
        self,
        shards: ShardSet,
        rows: np.ndarray,
        geometry: Geometry | PlanarGeometry,
        view: View,
        tokenize: Tokenize,
        units: UnitPolicy,
        batch_size: int,
        seed: int,
        steps: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        start_step: int = 0,
        label_names: Sequence[str] = (),
        pin_memory: bool = False,
    ) -> None:
        rows = np.asarray(rows, np.int64)
        if not len(rows) or batch_size < 1 or steps < 0 or not 0 <= rank < world or seed < 0 or workers < 0:
            raise DataError("a stream needs rows, batch_size >= 1, steps, seed and workers >= 0, and 0 <= rank < world")
        self.samples = Samples(shards, geometry, view, tokenize, units, tuple(label_names))
        self.order = Order(rows, seed, batch_size, rank, world)
        self.steps, self.start_step, self.workers, self.pin_memory = steps, start_step, workers, pin_memory
        self.step, self.wait_seconds = start_step, 0.0
        self._identity = {
            "version": STATE_VERSION,
            "seed": seed,
            "global_batch": batch_size * world,
            "manifest": shards.manifest_hash,
            "rows_hash": hashlib.blake2b(rows.tobytes(), digest_size=16).hexdigest(),
        }

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step)

    def __iter__(self) -> Iterator[Batch]:
        self.step, self.wait_seconds = self.start_step, 0.0
        batches = _load(_Steps(self.samples, self.order), range(self.step, self.steps), self.workers, self.pin_memory)
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.wait_seconds += time.perf_counter() - began
            if batch is None:
                return
            self.step = batch.step + 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """{version, seed, global_batch, step, manifest, rows_hash}: the batches consumed, and of which sequence."""
        return {**self._identity, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after `state["step"]` batches. Raises DataError for the state of another sequence of batches."""
        meaning = {
            "version": "the stream's state has another format",
            "seed": "the order was drawn from another seed",
            "global_batch": "the batch size (per rank x ranks x accumulation) differs",
            "manifest": "the shards are not the ones it was trained on",
            "rows_hash": "other samples of the shards are selected",
        }
        wrong = [
            f"{why} ({name}: {state.get(name)!r} saved, {self._identity[name]!r} now)"
            for name, why in meaning.items()
            if state.get(name) != self._identity[name]
        ]
        if wrong:
            raise DataError(
                "this stream cannot go on from that state: " + "; ".join(wrong),
                "some samples would be seen twice and others never",
                "resume with the settings of the run, or start a new run from its weights",
            )
        self.start_step = self.step = int(state["step"])


def ordered_pass(
    shards: ShardSet,
    rows: np.ndarray,
    geometry: Geometry | PlanarGeometry,
    view: View,
    tokenize: Tokenize,
    units: UnitPolicy,
    batch_size: int,
    workers: int = 0,
    label_names: Sequence[str] = (),
) -> Iterator[Batch]:
    """Every row once, in the order given, nothing random: for embedding and evaluation. The last batch may be short."""
    if view.kind == "random":
        raise DataError("an ordered pass is for evaluation, and the view is random", fix='use view kind "centre"')
    samples = Samples(shards, geometry, view, tokenize, units, tuple(label_names))
    rows = np.asarray(rows, np.int64)
    steps = range(-(-len(rows) // batch_size))
    return _load(_Steps(samples, _Slices(rows, batch_size)), steps, workers, False)


def _load(dataset: _Steps, steps: range, workers: int, pin_memory: bool) -> Iterator[Batch]:
    workers = min(workers, len(steps))
    if workers == 0:
        return map(_whole, map(dataset.__getitem__, steps))
    batch_bytes = 4 * int(np.prod(dataset.samples.image_shape)) * len(dataset.plan(steps[0])[0])
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        collate_fn=_same,
        worker_init_fn=_start_worker,
        prefetch_factor=int(np.clip(PREFETCH_BYTES // (batch_bytes * workers), 1, 4)),
        persistent_workers=False,
        pin_memory=pin_memory,
        # fork shares the index for free; but a process that has started CUDA must not be forked.
        multiprocessing_context="spawn" if torch.cuda.is_initialized() else "fork",
    )
    return _from_workers(loader)


def _from_workers(loader: DataLoader) -> Iterator[Batch]:
    """Batches as they come; however the pass ends, its workers end with it."""
    batches = iter(loader)
    _LIVE.add(batches)
    try:
        for batch in batches:
            yield _whole(batch)
    finally:
        del batches  # an error's traceback keeps this frame, and would keep the workers


def _end_workers() -> None:
    """At exit multiprocessing asks workers to go with SIGTERM, which ours leave to the trainer, and waits for ever."""
    for batches in list(_LIVE):
        batches._shutdown_workers()


def _empty(shape: tuple[int, ...]) -> torch.Tensor:
    """float32 memory; in a worker it is shared memory from the start, which saves copying every batch once."""
    if get_worker_info() is None:
        return torch.empty(shape)
    count = int(np.prod(shape))
    storage = torch.UntypedStorage._new_shared(4 * count)  # as torch's own default_collate does
    return torch.empty(0).set_(storage, 0, shape, torch.empty(shape, device="meta").stride())


def _whole(batch: Batch | DataError) -> Batch:
    if isinstance(batch, DataError):
        raise batch
    return batch


def _same(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    # A scheduler or a Ctrl-C signals every process of the job. The trainer answers by finishing its step, for which it
    # needs its workers; they leave when it does.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


atexit.register(_end_workers)  # after multiprocessing was imported, hence before its own


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox([seed, epoch])).permutation(n)
