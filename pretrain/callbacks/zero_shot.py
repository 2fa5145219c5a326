"""Zero-shot scores on a split that training never sees, while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
import torch.distributed as dist

from encoders.dual import DualEncoder
from encoders.features import rank, world_size
from pretrain.module import Pretraining

MACRO = "macro_auroc"
Scorer = Callable[[DualEncoder], Mapping[str, float]]


class ZeroShot(L.Callback):
    """Every `every` steps, and after the last, `scorer` scores the selection split; `score` is its macro AUROC.

    It chooses the best checkpoint: the validation loss is an unreliable selector in this field.
    """

    def __init__(self, scorer: Scorer, every: int) -> None:
        self.scorer, self.every = scorer, every
        self.score: float | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Pretraining, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.score = None
        step = module.step_number
        if not module.step_finished or not (step % self.every == 0 or step == module.recipe.train.steps):
            return
        value = 0.0
        if rank() == 0 or module.is_sharded:  # sharded weights need every rank
            scores = self.scorer(module.evaluated)
            value = scores[MACRO]
            module.logged |= {f"select/{name}": score for name, score in scores.items()}
        if world_size() > 1:
            shared = torch.tensor([value], device=module.device)
            dist.broadcast(shared, src=0)
            value = float(shared)
        self.score = value
