"""Worker processes that make batches, and that end with whoever asked for them."""

from __future__ import annotations

import atexit
import signal
import weakref
from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from data_shards.batch import Batch
from data_shards.errors import DataError
from data_shards.room import Workers

Passing = Generator[Batch, None, None]
_LIVE: weakref.WeakSet[Any] = weakref.WeakSet()  # passes with workers


def load(dataset: Dataset, steps: range, workers: Workers, pin_memory: bool = False) -> Passing:
    """`dataset[step]` for all steps, in order. An item that is a DataError is raised: torch would wrap it in a worker's
    traceback. Without workers nothing is pinned."""
    if workers.number == 0:
        return (_whole(dataset[step]) for step in steps)
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=steps,
        num_workers=workers.number,
        collate_fn=_same,
        worker_init_fn=_start_worker,
        prefetch_factor=workers.ahead,
        persistent_workers=False,
        pin_memory=pin_memory,
        # fork shares the index for free; but a process that has started CUDA must not be forked.
        multiprocessing_context="spawn" if torch.cuda.is_initialized() else "fork",
    )
    return _from_workers(loader)


def _from_workers(loader: DataLoader) -> Passing:
    """Batches as they come; however the pass ends, its workers end with it. Whoever may fail between two batches closes
    it: left to the garbage collector, it may be found by a thread that the workers wait for."""
    batches = iter(loader)
    _LIVE.add(batches)
    try:
        for batch in batches:
            yield _whole(batch)
    finally:
        _end(batches)


def _end(batches: Any) -> None:
    batches._shutdown_workers()
    for worker in batches._workers:
        if worker.is_alive():  # torch has tried SIGTERM, which ours leave to the trainer
            worker.kill()


def _end_workers() -> None:
    """At exit multiprocessing asks workers to go with SIGTERM, which ours leave to the trainer, and waits for ever."""
    for batches in list(_LIVE):
        _end(batches)


def shared_empty(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Memory for images; in a worker it is shared memory from the start, which saves copying every batch once."""
    if get_worker_info() is None:
        kind = np.float16 if dtype == torch.float16 else np.float32
        return torch.from_numpy(np.empty(shape, kind))  # numpy asks for large pages: half the time to fill it
    storage = torch.UntypedStorage._new_shared(dtype.itemsize * int(np.prod(shape)))  # as torch's default_collate does
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape, torch.empty(shape, device="meta").stride())


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
