"""A recipe's image encoder trained on labels instead of reports, everything else as `pretrain.fit` does it.

Legend: B studies of a batch, N studies, L findings, D embedding width.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from data_shards.progress import track
from encoders.dual import DualEncoder
from eval_zero_shot.embedding import evaluating, study_batches
from eval_zero_shot.inputs import choose_rows
from eval_zero_shot.labels import task_labels
from eval_zero_shot.statistics import Run, bootstrap
from eval_zero_shot.tasks import Task
from pretrain import build, studies
from pretrain.centring import bias_of, centred, follow
from pretrain.memory import keep_freed_memory
from pretrain.optim import freeze, learning_rate, optimizers
from pretrain.schema import Recipe


def masked_bce(logits_BL: Tensor, labels_BL: Tensor) -> Tensor:
    """Mean binary cross-entropy over the labels that are known (not nan)."""
    known_BL = ~labels_BL.isnan()
    loss_BL = F.binary_cross_entropy_with_logits(logits_BL, labels_BL.nan_to_num(), reduction="none")
    return (loss_BL * known_BL).sum() / known_BL.sum().clamp(min=1)


class Classifier(nn.Module):
    """A linear head on the study embedding that a release would give.

    The dual encoder is kept whole and under the name it has in `pretrain.module`, so that `pretrain.optim` sorts the
    same parameters into the same groups; its text tower and its scalars rest.
    """

    def __init__(self, recipe: Recipe, dual: DualEncoder, findings: int) -> None:
        super().__init__()
        self.dual = dual
        self.head = nn.Linear(recipe.model.embed_dim, findings)
        dual.requires_grad_(False)
        dual.clip.visual.requires_grad_(True)
        self.centred = recipe.model.centred
        if self.centred:
            bias_of(dual, "image").requires_grad_(False)
        freeze(self, recipe.optim)
        self._bf16 = build.precision(recipe).startswith("bf16")
        self._mean_D: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, (D,) H, W] to logits [B, L]; in training, embeddings are centred where the recipe says so."""
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            study_BD = self.dual.encode_image(images).study_BD
        with torch.autocast(images.device.type, enabled=False):
            study_BD = study_BD.float()
            if self.training and self.centred:
                study_BD, self._mean_D = centred(study_BD)
            return self.head(study_BD)

    def after_step(self, step: int) -> None:
        """Let the projection's bias follow the mean, as `pretrain.module` does."""
        if self._mean_D is not None:
            follow(bias_of(self.dual, "image"), self._mean_D, step)


class Supervised:
    """Training and scoring of a Classifier. `findings` and their labels are those of a zero-shot task."""

    def __init__(self, recipe: Recipe, task: Task) -> None:
        cuda = torch.cuda.is_available() and recipe.train.accelerator != "cpu"
        if not cuda:
            keep_freed_memory()
        self.recipe, self.findings = recipe, task.names
        self.device = torch.device("cuda" if cuda else "cpu")
        torch.manual_seed(recipe.seed)
        self.classifier = Classifier(recipe, build.build_model(recipe), len(task.names)).to(self.device)
        self.average: AveragedModel | None = None
        if recipe.optim.ema_decay is not None:
            multi_average: Any = get_ema_multi_avg_fn(recipe.optim.ema_decay)
            self.average = AveragedModel(self.classifier, multi_avg_fn=multi_average)
        self.data = studies.build_data(recipe)
        self.labels_NL: NDArray = task_labels(self.data.shards, np.arange(len(self.data.shards)), task)

    @property
    def scored(self) -> nn.Module:
        """The weights that are scored: the moving average where the recipe has one."""
        return self.classifier if self.average is None else self.average.module

    def train(self) -> float:
        """Train, keep the weights that were best on the selection split (ties: the later), and return that score.

        Raises:
            RuntimeError: a gradient is not finite.
        """
        recipe, optim = self.recipe, self.recipe.optim
        steppers = optimizers(self.classifier, optim, fused=True)
        groups = [group for stepper in steppers for group in stepper.param_groups]
        trained = [p for group in groups for p in group["params"]]
        bound = float("inf") if optim.clip_norm is None else optim.clip_norm
        labels_NL = torch.from_numpy(self.labels_NL).float()
        stream = build.training_stream(recipe, self.data, build.tokenizer(recipe), 0, 1, 0)
        best, weights = -2.0, self.scored.state_dict()
        self.classifier.train()
        for number, batch in enumerate(track(stream, len(stream), "supervised", "batches"), 1):
            logits_BL = self.classifier(batch.images_BCDHW.to(self.device))
            loss = masked_bce(logits_BL, labels_NL[batch.rows_B].to(self.device))
            (loss / optim.accumulate).backward()
            if number % optim.accumulate:
                continue
            step = number // optim.accumulate
            nn.utils.clip_grad_norm_(trained, bound, error_if_nonfinite=True)
            rate = learning_rate(step - 1, recipe.train.steps, optim)
            for group in groups:
                group["lr"] = rate * group["lr_factor"]
            for stepper in steppers:
                stepper.step()
                stepper.zero_grad(set_to_none=True)
            self.classifier.after_step(step - 1)
            if self.average is not None:
                self.average.update_parameters(self.classifier)
            if step % recipe.evaluate.every_steps == 0 or step == recipe.train.steps:
                score = self.select()
                if score >= best:
                    best, weights = score, copy.deepcopy(self.scored.state_dict())
        self.scored.load_state_dict(weights)
        return best

    def select(self) -> float:
        """Macro AUROC of the studies that choose the checkpoint in `pretrain.fit`; -1 where none has both classes."""
        run = self.score(choose_rows(self.data.select_rows, self.recipe.evaluate.max_studies))[1]
        aurocs_L = bootstrap([run], 0, 0)[0][0]
        return -1.0 if np.isnan(aurocs_L).all() else float(np.nanmean(aurocs_L))

    def score(self, rows: NDArray) -> tuple[tuple[str, ...], Run]:
        """Keys of some studies and their logits, read as evaluation reads them."""
        keys: list[str] = []
        patients: list[str] = []
        logits = []
        data, size = self.data, self.recipe.train.batch_size
        with evaluating(self.scored):
            for batch in study_batches(data.shards, rows, data.geometry, data.eval_view, size):
                logits.append(self.scored(torch.from_numpy(batch.images).to(self.device)).cpu().numpy())
                keys += batch.keys
                patients += batch.patients
        return tuple(keys), Run.of(np.concatenate(logits), self.labels_NL[rows], patients)
