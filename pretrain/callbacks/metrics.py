"""Numbers of the run: metrics.csv (step, name, value: one row a number, easy to pivot) and TensorBoard."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import lightning as L

from encoders.features import rank
from pretrain.module import Pretraining

HEADER = ["step", "name", "value"]


class Metrics(L.Callback):
    """Writes what the module logged every `every` steps, and always when a score was taken.

    A resumed run first drops the rows past its checkpoint, so that a step never stands there twice.
    """

    def __init__(self, folder: Path, every: int = 10) -> None:
        self.folder, self.every = folder, every

    def on_train_start(self, trainer: L.Trainer, module: Pretraining) -> None:
        if rank() != 0:
            return
        from torch.utils.tensorboard import SummaryWriter

        path = self.folder / "metrics.csv"
        rows: list[list[str]] = []
        if path.is_file():
            with path.open(newline="") as file:
                whole = (row for row in csv.reader(file) if len(row) == len(HEADER) and row != HEADER)
                rows = [row for row in whole if row[0].isdigit() and int(row[0]) <= module.step_number]
        temporary = path.with_name(".metrics.csv")
        with temporary.open("w", newline="") as file:
            csv.writer(file).writerows([HEADER, *rows])
        os.replace(temporary, path)
        self._file = path.open("a", newline="")
        self._rows = csv.writer(self._file)
        self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=module.step_number)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Pretraining, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if rank() != 0 or not module.step_finished:
            return
        step = module.step_number
        scored = any(name.startswith("select/") for name in module.logged)
        if not (scored or step % self.every == 0 or step == 1):
            return
        for name, value in module.logged.items():
            self._rows.writerow([step, name, f"{value:.6g}"])
            self._board.add_scalar(name, value, step)
        self._file.flush()

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if hasattr(self, "_file"):
            self._file.close()
            self._board.close()
