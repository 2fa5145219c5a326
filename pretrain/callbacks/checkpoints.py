"""When a checkpoint is written, and which are kept: `last`, `best` and the best `keep_top`."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed as dist

from encoders.features import rank, world_size
from pretrain import checkpoint
from pretrain.callbacks.preemption import Preemption
from pretrain.callbacks.zero_shot import ZeroShot
from pretrain.module import Pretraining
from pretrain.state import collect

SCORES = "scores.json"


class Checkpoints(L.Callback):
    """Writes a checkpoint every `every` steps, at every score, at the end, and when the run is asked to stop.

    A periodic checkpoint that cannot be written is a loud warning, because the weights in memory are still good and the
    next one may succeed; one that ends the run is an error.

    Args:
        root: RUN/checkpoints.
        model_json: what a release needs beside the weights (`model.json`).
        recipe_text: the resolved recipe.
    """

    def __init__(
        self,
        root: Path,
        every: int,
        keep_top: int,
        model_json: dict[str, Any],
        recipe_text: str,
        zero_shot: ZeroShot | None,
        preemption: Preemption,
    ) -> None:
        self.root, self.every, self.keep_top = root, every, keep_top
        self.model_json, self.recipe_text = model_json, recipe_text
        self.zero_shot, self.preemption = zero_shot, preemption
        self.scores: dict[int, float] = {}
        if (root / SCORES).is_file():
            self.scores = {int(k): v for k, v in json.loads((root / SCORES).read_text()).items()}

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Pretraining, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not module.step_finished:
            return
        step = module.step_number
        score = self.zero_shot.score if self.zero_shot is not None else None
        final = bool(self.preemption.requested) or step == module.recipe.train.steps
        if final or score is not None or step % self.every == 0:
            stream: Any = trainer.train_dataloader
            self.save(module, stream.state_dict(), score, must=final)

    def save(self, module: Pretraining, stream: dict[str, Any], score: float | None, must: bool) -> None:
        """Write the checkpoint of the step just done. Every rank must call it.

        Raises:
            CheckpointError: it could not be written and `must` is set.
        """
        encoders, heads, trainer = collect(module, stream)
        failure = None
        if rank() == 0:
            try:
                self._write(module.step_number, encoders, heads, trainer, score)
            except checkpoint.CheckpointError as error:
                failure = str(error)
        if world_size() > 1:
            told = [failure]
            dist.broadcast_object_list(told, src=0)
            failure = told[0]
        if failure and must:
            raise checkpoint.CheckpointError(failure)
        if failure and rank() == 0:
            print(f"WARNING: {failure}\n  training goes on", file=sys.stderr, flush=True)

    def _write(self, step: int, encoders: Any, heads: Any, trainer: Any, score: float | None) -> None:
        if score is not None and math.isfinite(score):
            self.scores[step] = score
        model = {**self.model_json, "step": step, "score": self.scores.get(step)}
        folder = checkpoint.write(self.root, step, encoders, heads, model, self.recipe_text, trainer)
        try:
            checkpoint.link(self.root, "last", folder)
            written = {s: v for s, v in self.scores.items() if (self.root / checkpoint.folder_name(s)).is_dir()}
            # Ties go to the later step: it has seen more.
            ranked = sorted(written, key=lambda s: (written[s], s), reverse=True)
            best = ranked[0] if ranked else step
            checkpoint.link(self.root, "best", self.root / checkpoint.folder_name(best))
            temporary = self.root / f"{checkpoint.ASIDE}{SCORES}"
            temporary.write_text(json.dumps(self.scores, indent=1))
            temporary.replace(self.root / SCORES)
        except OSError as error:
            raise checkpoint.CheckpointError(f"links of step {step} could not be written: {error.strerror}") from error
        checkpoint.prune(self.root, {checkpoint.folder_name(s) for s in ranked[: self.keep_top]})
