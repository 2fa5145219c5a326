"""Zero-shot scores on a split that training never sees, while training goes on."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.distributed as dist

from encoders.features import rank, world_size
from eval_zero_shot.run import choose_rows, evaluate
from eval_zero_shot.tasks import Task
from pretrain.build import Data
from pretrain.module import Pretraining


class ZeroShot(L.Callback):
    """Every `evaluate.every_steps` steps the selection split is scored; `score` is its macro AUROC.

    It chooses the best checkpoint: the validation loss is an unreliable selector in this field.
    """

    def __init__(self, data: Data, task: Task, tokenize: Any, every: int, max_studies: int | None, precision: str) -> None:
        self.data, self.task, self.tokenize, self.every, self.precision = data, task, tokenize, every, precision
        self.rows = choose_rows(data.select_rows, max_studies)
        self.score: float | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Pretraining, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.score = None
        accumulate = module.recipe.optim.accumulate
        step, last = module.step_number, module.recipe.train.steps
        if module.batches_done % accumulate or not (step % self.every == 0 or step == last) or not len(self.rows):
            return
        value = 0.0
        if rank() == 0 or module.recipe.train.strategy == "fsdp2":  # sharded weights need every rank
            results = evaluate(
                module.evaluated,
                self.tokenize,
                self.data.shards,
                self.rows,
                self.data.geometry,
                self.data.eval_view,
                self.task,
                batch_size=module.recipe.train.batch_size,
                precision=self.precision,
                resamples=0,
                pools=(),
            )
            value = results.macro if results.macro is not None else float("nan")
            found = {name: r.auroc for name, r in results.per_finding.items() if r.auroc is not None}
            module.logged |= {"select/macro_auroc": value, **{f"select/{n}": float(a) for n, a in found.items()}}
        if world_size() > 1:
            shared = torch.tensor([value], device=module.device)
            dist.broadcast(shared, src=0)
            value = float(shared)
        self.score = value
