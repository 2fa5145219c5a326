"""The training step: passes computed once, objectives summed, nothing non-finite into the weights.

Legend: B studies of this rank's batch.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from data_shards.batch import Batch
from encoders.dual import DualEncoder
from encoders.features import rank, world_size
from pretrain import grad_cache
from pretrain.centring import bias_of, follow
from pretrain.grad_cache import touch
from pretrain.objectives.base import Objective
from pretrain.optim import clipped, forget_zeros, freeze, learning_rate, optimizers
from pretrain.passes import Part, Pass, split, whole
from pretrain.ranks import all_agree, mean_of_all, no_sync
from pretrain.reports import keep_read
from pretrain.schema import Recipe
from pretrain.terms import Terms
from pretrain.text_tokens import Tokens, tokens_of
from pretrain.token_dropout import set_token_dropout

MAX_LOGIT_SCALE = math.log(100.0)
MIX = 0x9E3779B97F4A7C15  # odd constant that spreads (seed, batch, rank) over 64 bits


class NonFiniteError(RuntimeError):
    """Too many updates were refused because the loss or the gradient was not finite."""


class Pretraining(Terms):
    """The training step of a dual encoder and its objectives.

    Manual optimisation, because gradient caching (pretrain.grad_cache) needs several backward passes a step.
    Randomness (dropout, token dropout) is seeded from (seed, batch number, rank) at every batch, so a resumed run
    continues bit for bit without any generator state in the checkpoint.
    """

    def __init__(
        self, recipe: Recipe, dual: DualEncoder, objectives: list[Objective], passes: Mapping[str, Pass] | None = None
    ) -> None:
        super().__init__(recipe, dual, objectives, passes)
        self.automatic_optimization = False
        reads = {read for objective in objectives for read in objective.reads}
        if dual.report is not None:
            keep_read(dual.report, reads)
        dual.clip.logit_scale.requires_grad_("logit_scale" in reads)
        if dual.clip.logit_bias is not None:
            dual.clip.logit_bias.requires_grad_("logit_bias" in reads)
        for bias in self._biases().values():
            bias.requires_grad_(False)
        freeze(self, recipe.optim)
        self.ema = None
        if recipe.optim.ema_decay is not None:
            self.ema = AveragedModel(dual, multi_avg_fn=get_ema_multi_avg_fn(recipe.optim.ema_decay))
            self.ema.requires_grad_(False)
        self.refused = 0
        self.tokens: Tokens | None = None  # of the last batch; None where the text tower reads none
        self._reads_texts = not passes and any(read.startswith("text:units.") for read in reads)
        self._finite = True
        self._keys: list[str] = []  # studies of the batches accumulated so far
        self._statistics: dict[str, Tensor] = {}  # running statistics after the last good update

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

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        accumulate = self.recipe.optim.accumulate
        dropped = set_token_dropout(self.dual, self.recipe, self.step_number)
        if self.batches_done % accumulate == 0:
            self._keys = []
            self._statistics = {name: buffer.clone() for name, buffer in self._running()}
        self._keys += batch.keys
        last = (self.batches_done + 1) % accumulate == 0
        loss = self._backward(batch, last)
        self._finite &= bool(torch.isfinite(loss))
        self.logged["loss"] = mean_of_all(float(loss), self.device)
        if dropped is not None:
            self.logged["token_dropout"] = dropped
        if (text := self.recipe.model.text) is not None:
            self.logged["logit_scale"] = float(self.dual.logit_scale.detach().exp())
            if self._reads_texts:
                self.tokens = tokens_of(self.dual, self._parts(batch), text.context_length).over_ranks(self.device)
                self.logged |= self.tokens.shares()
        if last:
            self._update()
        self.batches_done += 1

    def _backward(self, batch: Batch, last: bool) -> Tensor:
        """Accumulate the gradients of a batch; its loss, without graph. `last`: ranks exchange gradients."""
        seed, parts = _mixed(self.recipe.seed, self.batches_done, rank()), self._parts(batch)
        if len(parts) > 1:
            self._begin(batch)
            self._prepare(parts, seed)
            waited_for = [] if self.is_sharded else self._trained()
            loss = grad_cache.backward(
                parts, self.encode, self,
                self.manual_backward, 1.0 / self.recipe.optim.accumulate,
                lambda: no_sync(self.trainer, enabled=True), waited_for if last else None, seed, self._cached(),
            )  # fmt: skip
            self._forget()
            return loss
        torch.manual_seed(seed)
        loss = self.compute(batch)
        # DDP waits for every parameter; what rests, and what a batch lacks (a report, labels), leave some untouched.
        waited = touch(self._trained() if last and world_size() > 1 and not self.is_sharded else ())
        with no_sync(self.trainer, enabled=not last):
            self.manual_backward(loss / self.recipe.optim.accumulate + waited.to(loss.device))
        self._forget()
        return loss.detach()

    def _parts(self, batch: Batch) -> list[Part]:
        """What is encoded at once: all of the batch, or with `train.chunk` its parts."""
        chunk = self.recipe.train.chunk
        return [whole(batch)] if chunk is None or chunk >= len(batch) else split(batch, chunk)

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    def _update(self) -> None:
        groups = [group for optimizer in self.all_optimizers for group in optimizer.param_groups]
        parameters = [p for group in groups for p in group["params"]]
        if self.is_sharded:
            from pretrain.sharding import reduce_replicated

            reduce_replicated(self)
        if self.is_resting:
            forget_zeros(parameters)
        bound = self.recipe.optim.clip_norm
        norm = clipped(parameters, math.inf if bound is None else bound)
        finite = all_agree(self._finite and math.isfinite(norm), self.device)
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
            for tower, bias in self._biases().items():
                if tower in self._means:
                    follow(bias, self._means[tower], step)
            if self.ema is not None:
                self.ema.update_parameters(self.dual)
            for objective in self.objectives:
                cast(Objective, objective).after_step(self)
        else:
            self._refuse(step + 1)
        for optimizer in self.all_optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _biases(self) -> dict[str, nn.Parameter]:
        """The biases that hold the running means, by tower. Looked up each time: FSDP2 puts other parameters in their
        place."""
        return {tower: bias_of(self.dual, tower) for tower in ("image", "text")} if self.recipe.model.centred else {}

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


def _mixed(seed: int, batch: int, rank: int) -> int:
    value = ((seed * 1_000_003 + batch) * 65_537 + rank + 1) * MIX
    return (value ^ (value >> 31)) & 0x7FFFFFFFFFFFFFFF
