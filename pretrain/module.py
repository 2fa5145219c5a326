"""The training step: passes computed once, objectives summed, nothing non-finite into the weights.

Legend: B studies of this rank's batch.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any, cast

import lightning as L
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from encoders.dual import DualEncoder, DualFeatures
from encoders.features import gather_rows, gather_text, rank, world_size
from pretrain.centring import bias_of, centred, follow
from pretrain.objectives.base import GlobalBatch, Objective
from pretrain.optim import freeze, learning_rate, optimizers
from pretrain.schema import Recipe

MAX_LOGIT_SCALE = math.log(100.0)
MIX = 0x9E3779B97F4A7C15  # odd constant that spreads (seed, batch, rank) over 64 bits


class NonFiniteError(RuntimeError):
    """Too many updates were refused because the loss or the gradient was not finite."""


class Pretraining(L.LightningModule):
    """A dual encoder and its objectives.

    Manual optimisation, because gradient caching (a later objective family) needs several backward passes a step.
    Randomness (dropout, token dropout) is seeded from (seed, batch number, rank) at every batch, so a resumed run
    continues bit for bit without any generator state in the checkpoint.

    Args:
        recipe: the experiment.
        dual: the model.
        objectives: in the order of the recipe.
    """

    def __init__(self, recipe: Recipe, dual: DualEncoder, objectives: list[Objective]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.recipe = recipe
        self.dual = dual
        self.objectives = nn.ModuleList(objectives)
        self.names = _distinct([section.name for section in recipe.objectives])
        self.weights = [section.weight for section in recipe.objectives]
        reads = {read for objective in objectives for read in objective.reads}
        dual.clip.logit_scale.requires_grad_("logit_scale" in reads)
        if dual.clip.logit_bias is not None:
            dual.clip.logit_bias.requires_grad_("logit_bias" in reads)
        for bias in self._biases():
            bias.requires_grad_(False)
        freeze(self, recipe.optim)
        self.ema = None
        if recipe.optim.ema_decay is not None:
            self.ema = AveragedModel(dual, multi_avg_fn=get_ema_multi_avg_fn(recipe.optim.ema_decay))
            self.ema.requires_grad_(False)
        self.batches_done = 0
        self.refused = 0
        self.logged: dict[str, float] = {}
        self._finite = True
        self._keys: list[str] = []  # studies of the batches accumulated so far
        self._statistics: dict[str, Tensor] = {}  # running statistics after the last good update

    @property
    def step_number(self) -> int:
        """Optimiser steps done, refused ones included."""
        return self.batches_done // self.recipe.optim.accumulate

    @property
    def step_finished(self) -> bool:
        """Whether the last batch completed an optimiser step; half an accumulated step is no place to stop or save."""
        return self.batches_done % self.recipe.optim.accumulate == 0

    @property
    def is_sharded(self) -> bool:
        return self.recipe.train.strategy == "fsdp2" and world_size() > 1

    @property
    def evaluated(self) -> DualEncoder:
        """The weights that are scored and released: the moving average where there is one."""
        return self.dual if self.ema is None else cast(DualEncoder, self.ema.module)

    def configure_model(self) -> None:
        if self.is_sharded:
            from pretrain.sharding import shard

            shard(self, self.device_mesh)  # type: ignore[arg-type]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return optimizers(self, self.recipe.optim, fused=not self.is_sharded)

    @property
    def all_optimizers(self) -> list[torch.optim.Optimizer]:
        """One, or two with Muon, as the trainer holds them."""
        found = self.optimizers(use_pl_optimizer=False)
        return cast(list[torch.optim.Optimizer], found if isinstance(found, list) else [found])

    def compute(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the global batch and what to log."""
        features = self.dual(batch.images_BCDHW, batch.texts)
        with torch.autocast(self.device.type, enabled=False):  # similarities and sums in fp32
            shared, self._means = global_batch(features, batch.patient_B, self.recipe.model.centred)
            total = torch.zeros((), device=self.device)
            logs: dict[str, Tensor] = {}
            for name, weight, objective in zip(self.names, self.weights, self.objectives, strict=True):
                loss, extra = objective(shared)
                total = total + weight * loss
                logs |= {f"loss/{name}": loss.detach(), **{f"{name}/{k}": v for k, v in extra.items()}}
        logs |= {"loss": total.detach(), "logit_scale": features.logit_scale.detach().exp()}
        return total, logs

    def training_step(self, batch: Any, batch_idx: int) -> None:
        accumulate = self.recipe.optim.accumulate
        if self.batches_done % accumulate == 0:
            self._keys = []
            self._statistics = {name: buffer.clone() for name, buffer in self._running()}
        self._keys += batch.keys
        torch.manual_seed(_mixed(self.recipe.seed, self.batches_done, rank()))
        loss, logs = self.compute(batch)
        last = (self.batches_done + 1) % accumulate == 0
        with _no_sync(self.trainer, enabled=not last):
            self.manual_backward(loss / accumulate)
        self._finite &= bool(torch.isfinite(loss))
        self.logged = {name: float(value) for name, value in logs.items()}
        if last:
            self._update()
        self.batches_done += 1

    def _update(self) -> None:
        groups = [group for optimizer in self.all_optimizers for group in optimizer.param_groups]
        parameters = [p for group in groups for p in group["params"]]
        if self.is_sharded:
            from pretrain.sharding import reduce_replicated

            reduce_replicated(self)
        bound = self.recipe.optim.clip_norm
        total: Any = nn.utils.clip_grad_norm_(parameters, math.inf if bound is None else bound)
        norm = float(total.full_tensor() if hasattr(total, "full_tensor") else total)
        finite = _all_agree(self._finite and math.isfinite(norm), self.device)
        self._finite = True
        step = self.step_number
        rate = learning_rate(step, self.recipe.train.steps, self.recipe.optim)
        self.logged |= {"grad_norm": norm, "lr": rate, "refused": float(self.refused)}
        if finite:
            for group in groups:
                group["lr"] = rate * group["lr_factor"]
            for optimizer in self.all_optimizers:
                optimizer.step()
            with torch.no_grad():
                self.dual.clip.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
            for bias, mean in zip(self._biases(), self._means, strict=False):
                follow(bias, mean, step)
            if self.ema is not None:
                self.ema.update_parameters(self.dual)
            for objective in self.objectives:
                cast(Objective, objective).after_step(self)
        else:
            self._refuse(step + 1)
        for optimizer in self.all_optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _biases(self) -> list[nn.Parameter]:
        """The biases that hold the running means. Looked up each time: FSDP2 puts other parameters in their place."""
        return [bias_of(self.dual, tower) for tower in ("image", "text")] if self.recipe.model.centred else []

    def _running(self) -> list[tuple[str, Tensor]]:
        """Buffers that a forward pass may change, by name."""
        modules = {"dual": self.dual, "objectives": self.objectives}
        return [(f"{top}.{name}", buffer) for top, m in modules.items() for name, buffer in m.named_buffers()]

    def _refuse(self, step: int) -> None:
        with torch.no_grad():  # the forward pass has moved running statistics (BatchNorm) already
            for name, buffer in self._running():
                buffer.copy_(self._statistics[name])
        self.refused += 1
        self.logged["refused"] = float(self.refused)
        what = f"step {step}: loss or gradient is not finite; the update was refused, weights are unchanged"
        keys = ", ".join(self._keys)
        limit = self.recipe.train.max_nonfinite
        if self.recipe.train.nonfinite == "stop" or self.refused > limit:
            raise NonFiniteError(
                f"{what} ({self.refused} refused in all)\n"
                "  why: NaN in the weights cannot be undone, and a run that skips many steps no longer trains\n"
                f"  fix: look at these studies, lower optim.lr or use train.precision fp32: {keys}"
            )
        print(f"warning: {what}. Studies of this batch: {keys}", file=sys.stderr, flush=True)


def global_batch(features: DualFeatures, patient_B: Tensor, centre: bool) -> tuple[GlobalBatch, tuple[Tensor, Tensor]]:
    """This rank's features to those of the whole batch, unit length, fp32, duplicate texts merged.

    With `centre` the mean of the global batch is subtracted before (pretrain.centring); the means are returned as well.
    """
    images = gather_rows(features.image.study_BD.float())[0]
    text = gather_text(replace(features.text, units_UD=features.text.units_UD.float()), len(patient_B))
    units = text.units_UD
    (images_centred, image_mean), (units_centred, text_mean) = centred(images), centred(units)
    if centre:
        images, units = images_centred, units_centred
    patients, _ = gather_rows(patient_B)
    shared = GlobalBatch(
        F.normalize(images, dim=-1),
        replace(text, units_UD=F.normalize(units, dim=-1)),
        patients,
        features.logit_scale,
        features.logit_bias,
    )
    return shared, (image_mean, text_mean)


def _distinct(names: list[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name}{i}" for i, name in enumerate(names)]


def _mixed(seed: int, batch: int, rank: int) -> int:
    value = ((seed * 1_000_003 + batch) * 65_537 + rank + 1) * MIX
    return (value ^ (value >> 31)) & 0x7FFFFFFFFFFFFFFF


def _all_agree(value: bool, device: torch.device) -> bool:
    """True where it is true on every rank."""
    if world_size() == 1:
        return value
    flag = torch.tensor([int(value)], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag)


def _no_sync(trainer: L.Trainer, enabled: bool) -> Any:
    """Gradients of all but the last accumulated batch stay on their rank."""
    import contextlib

    block = getattr(trainer.strategy, "block_backward_sync", None)
    return block() if enabled and block is not None else contextlib.nullcontext()
