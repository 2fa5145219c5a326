"""Stopping on request: a signal sets a flag, all ranks agree on it at the next step, then the checkpoint is written
whole.

A handler that saves or broadcasts by itself deadlocks as soon as one rank of two gets the signal.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import Any

import lightning as L
import torch
import torch.distributed as dist

from encoders.features import world_size

STOPPED = 143  # what a process ends with on SIGTERM: schedulers must not take it for success
STOP, REQUEUE = 1, 2


class Preemption(L.Callback):
    """SIGTERM and SIGINT stop the run after the step in progress; SIGUSR1 under SLURM requeues the job as well.

    `requested` is 0, STOP or REQUEUE once all ranks have agreed. A second SIGINT ends the process at once.
    """

    def __init__(self) -> None:
        self.requested = 0
        self._seen = 0
        self._before: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may set handlers
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._stop)
        if "SLURM_JOB_ID" in os.environ:
            self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._requeue)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._seen:
            raise KeyboardInterrupt
        self._seen = max(self._seen, STOP)

    def _requeue(self, number: int, frame: FrameType | None) -> None:
        self._seen = REQUEUE

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not module.step_finished:
            return
        seen = self._seen
        if world_size() > 1:
            flag = torch.tensor([seen], device=module.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            seen = int(flag)
        if seen:
            self.requested = seen
            trainer.should_stop = True

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, module, "fit")

    def requeue(self) -> None:
        """Hand the job back to SLURM, once the checkpoint is whole. For rank 0 alone."""
        if self.requested != REQUEUE:
            return
        array = os.environ.get("SLURM_ARRAY_JOB_ID")
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
        if re.fullmatch(r"\d+(_\d+)?", job):
            try:
                failed = subprocess.run(["scontrol", "requeue", job], check=False).returncode
            except OSError as error:
                failed = error.errno or 1
            if failed:
                what = f"warning: SLURM job {job} was not requeued (scontrol: {failed}); submit it again"
                print(what, file=sys.stderr)
