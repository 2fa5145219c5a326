"""One line that says how the run goes: step, loss, volumes a second, share of time spent waiting for data, time
left."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any

import lightning as L

from encoders.features import rank, world_size
from pretrain.module import Pretraining
from pretrain.text_tokens import Tokens

LINE_SECONDS = 15.0  # between lines where there is no terminal
WINDOW = 50  # steps the rates are taken over


class Progress(L.Callback):
    """A live bar on a terminal, a line every 15 s elsewhere (SLURM logs)."""

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._bar: Any = None
        self._marks: deque[tuple[float, int, float]] = deque(maxlen=WINDOW)
        self._said = 0.0
        self._score: float | None = None
        self.tokens = Tokens()  # of all ranks, since this start of the run

    def on_train_start(self, trainer: L.Trainer, module: Pretraining) -> None:
        if rank() != 0:
            return
        self._marks.append((time.monotonic(), module.step_number, 0.0))
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("train"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[state]}"),
                console=Console(stderr=True),
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task(
                "train", total=module.recipe.train.steps, completed=module.step_number, state=""
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Pretraining, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if rank() != 0:
            return
        self.tokens += module.tokens or Tokens()
        if not module.step_finished:
            return
        stream: Any = trainer.train_dataloader
        now = time.monotonic()
        self._marks.append((now, module.step_number, stream.wait_seconds))
        self._score = module.logged.get("select/macro_auroc", self._score)
        text = self._state(module)
        if self._bar is not None:
            self._bar.update(self._task, completed=module.step_number, state=text)
        elif now - self._said > LINE_SECONDS or module.step_number == module.recipe.train.steps:
            self._said = now
            print(f"step {module.step_number}/{module.recipe.train.steps}  {text}", file=sys.stderr, flush=True)

    def _state(self, module: Pretraining) -> str:
        (begin, first, waited), (end, last, waiting) = self._marks[0], self._marks[-1]
        seconds, steps = max(end - begin, 1e-9), max(last - first, 1)
        studies = module.recipe.train.batch_size * module.recipe.optim.accumulate * world_size() * steps
        left = (module.recipe.train.steps - last) * seconds / steps
        score = "" if self._score is None else f"  zero-shot AUROC {self._score:.3f}"
        return (
            f"loss {module.logged['loss']:.3f}  {studies / seconds:.1f} {self.noun}/s  "
            f"data wait {100 * (waiting - waited) / seconds:.0f}%  ETA {int(left // 60)}:{int(left % 60):02d}{score}"
        )

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, module, "fit")
