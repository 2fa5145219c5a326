"""Numbers of the run: metrics.csv (step, name, value: one row a number, easy to pivot) and TensorBoard."""

from __future__ import annotations

import csv
import io
import os
import sys
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch.distributed as dist

from encoders.features import rank, world_size
from pretrain.callbacks.zero_shot import ZeroShot
from pretrain.module import Pretraining

HEADER = ["step", "name", "value"]
DRAWN = "samples/"  # counts, written whole
SELECT = "select/"


class Metrics(L.Callback):
    """Writes what the module logged, the mean over ranks, every `every` steps, after the first and the last, and when a
    score was taken.

    A resumed run first drops the rows past its checkpoint, so that a step never stands there twice. Rows that find no
    room on the disk wait for the next ones: numbers are no reason to lose the weights that are in memory.
    """

    def __init__(self, folder: Path, every: int = 10) -> None:
        self.path, self.board_folder, self.every = folder / "metrics.csv", folder / "tensorboard", every
        self._pending = ""
        self._board: Any = None

    def on_train_start(self, trainer: L.Trainer, module: Pretraining) -> None:
        if rank() != 0:
            return
        from torch.utils.tensorboard import SummaryWriter

        rows: list[list[str]] = []
        if self.path.is_file():
            with self.path.open(newline="") as file:
                whole = (row for row in csv.reader(file) if len(row) == len(HEADER) and row != HEADER)
                rows = [row for row in whole if row[0].isdigit() and int(row[0]) <= module.step_number]
        temporary = self.path.with_name(".metrics.csv")
        temporary.write_text(_lines([HEADER, *rows]))
        os.replace(temporary, self.path)
        self._board = SummaryWriter(str(self.board_folder), purge_step=module.step_number + 1)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Pretraining, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not module.step_finished:
            return
        step = module.step_number
        scorers = cast(Any, trainer).callbacks
        scored = any(isinstance(one, ZeroShot) and one.score is not None for one in scorers)  # on every rank
        last = step == module.recipe.train.steps
        if not (scored or last or step % self.every == 0 or step == 1):
            return
        logged = over_ranks(module.logged)
        if rank() != 0:
            return
        stream: Any = trainer.train_dataloader
        numbers = logged | drawn(stream.realised(module.batches_done))
        self._pending += _lines([[str(step), name, f"{value:.10g}" if name.startswith(DRAWN) else f"{value:.6g}"]
                                 for name, value in numbers.items()])  # fmt: skip
        self._append()
        self._show(step, numbers)

    def _append(self) -> None:
        """Whole rows or none: a row cut short by a full disk would be read as another number."""
        size = self.path.stat().st_size
        try:
            with self.path.open("a", newline="") as file:
                file.write(self._pending)
            self._pending = ""
        except OSError as error:
            os.truncate(self.path, size)
            print(f"WARNING: metrics.csv could not be written ({error.strerror}); training goes on", file=sys.stderr)

    def _show(self, step: int, logged: dict[str, float]) -> None:
        if self._board is None:
            return
        try:
            for name, value in logged.items():
                self._board.add_scalar(name, value, step)
        except OSError as error:  # raised by the writer's thread, which has ended: nothing more can be written
            self._board = None
            print(f"WARNING: TensorBoard has stopped ({error.strerror}); metrics.csv goes on", file=sys.stderr)

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        board, self._board = self._board, None
        if board is not None:
            try:
                board.close()
            except OSError as error:
                print(f"WARNING: TensorBoard could not be finished ({error.strerror})", file=sys.stderr)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, module, "fit")


def over_ranks(logged: dict[str, float]) -> dict[str, float]:
    """The mean over ranks of what a step logged: of a sum over studies, each rank logs the share of its own studies.
    Scores of the selection split are left as they are."""
    if world_size() == 1:
        return logged
    every: list[dict[str, float]] = [{} for _ in range(world_size())]
    dist.all_gather_object(every, {name: value for name, value in logged.items() if not name.startswith(SELECT)})
    names = dict.fromkeys(name for one in every for name in one)
    means = {name: sum(one.get(name, 0.0) for one in every) / len(every) for name in names}
    return means | {name: value for name, value in logged.items() if name.startswith(SELECT)}


def drawn(realised: dict[str, dict[str, int]]) -> dict[str, float]:
    """Samples drawn so far by source and by modality, where there is more than one."""
    return {
        f"{DRAWN}{what}/{name}": float(count)
        for what, counts in realised.items()
        if len(counts) > 1
        for name, count in counts.items()
    }


def _lines(rows: list[list[str]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
