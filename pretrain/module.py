"""The training step: passes computed once, objectives summed, nothing non-finite into the weights.

Legend: B studies of this rank's batch.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import cast

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from data_shards.batch import Batch
from encoders.dual import DualEncoder
from encoders.features import rank, world_size
from encoders.stem import measure
from pretrain import grad_cache
from pretrain.centring import bias_of, follow
from pretrain.gathering import UNITS, Scalars, global_batch
from pretrain.grad_cache import touch
from pretrain.objectives.base import COUPLINGS, GlobalBatch, NoUnits, Objective
from pretrain.optim import clipped, forget_zeros, freeze, learning_rate, optimizers
from pretrain.passes import SHARED, Encoders, Part, Pass, Rows, split, whole
from pretrain.ranks import all_agree, no_sync
from pretrain.reports import keep_read
from pretrain.schema import Recipe
from pretrain.text_tokens import Tokens, tokens_of
from pretrain.token_dropout import set_token_dropout

MAX_LOGIT_SCALE = math.log(100.0)
MIX = 0x9E3779B97F4A7C15  # odd constant that spreads (seed, batch, rank) over 64 bits


class NonFiniteError(RuntimeError):
    """Too many updates were refused because the loss or the gradient was not finite."""


def _of_images(read: str) -> bool:
    """Whether a loss of coupling `image` may read a field."""
    return read.startswith("image:") or read == UNITS or read in SHARED


def _gathered(batch: frozenset[str], image: frozenset[str]) -> frozenset[str]:
    """Of the fields that losses of these couplings read those of all ranks: an image's own are read by its rank."""
    return batch | {read for read in image if not read.startswith("image:")}


class Pretraining(L.LightningModule):
    """A dual encoder and its objectives.

    Manual optimisation, because gradient caching (pretrain.grad_cache) needs several backward passes a step.
    Randomness (dropout, token dropout) is seeded from (seed, batch number, rank) at every batch, so a resumed run
    continues bit for bit without any generator state in the checkpoint.

    Args:
        recipe: the experiment.
        dual: the model.
        objectives: in the order of the recipe.
        passes: other ways to make passes (pretrain.text_cache).
    """

    def __init__(
        self, recipe: Recipe, dual: DualEncoder, objectives: list[Objective], passes: Mapping[str, Pass] | None = None
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.recipe = recipe
        self.dual = dual
        self.objectives = nn.ModuleList(objectives)
        self.names = _distinct([section.name for section in recipe.objectives])
        self.sections = recipe.objectives
        reads = {read for objective in objectives for read in objective.reads}
        for objective in objectives:
            if objective.coupling == "image" and (other := [r for r in objective.reads if not _of_images(r)]):
                raise ValueError(
                    f"objective {type(objective).__name__} of coupling `image` reads {', '.join(other)}\n"
                    "  why: with train.chunk the gradient would not find its way back there\n"
                    "  fix: read fields of images and text:units.units, or use coupling `batch`"
                )
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
        self.batches_done = 0
        self.refused = 0
        self.logged: dict[str, float] = {}
        self.encoders = Encoders(objectives, passes)
        self.tokens: Tokens | None = None  # of the last batch; None where the text tower reads none
        self._reads_texts = not passes and any(read.startswith("text:units.") for read in reads)
        self._finite = True
        self._began_in_parts = False
        self._batch: Batch | None = None  # at hand
        self._shared: GlobalBatch | None = None  # of it, for losses of coupling `image`
        self._told: Tensor | None = None  # features of its texts, where what those find for them is to be given back
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

    @property
    def is_resting(self) -> bool:
        """Whether the schedule of some objective leaves it out of this step. Its passes are not made then, its own
        parameters and those of a tower that only it reads stay as they are."""
        terms = sum(len(self._terms_of(coupling)) for coupling in COUPLINGS)
        return terms < len(self.objectives)

    def compute(self, batch: Batch) -> Tensor:
        """Loss of the global batch, with its graph; its terms are in `logged`."""
        self._begin(batch)
        part = whole(batch)
        rows = self.encode(part)
        loss, own = self.of_batch(rows), self.of_part(rows, part)
        return loss if own is None else loss + own

    def encode(self, part: Part, reads: frozenset[str] | None = None) -> dict[str, Rows]:
        """Fields of a part: those, or all that the objectives of this step read."""
        return self.encoders(self.dual, part, self._read(COUPLINGS) if reads is None else reads)

    def _read(self, couplings: Iterable[str]) -> frozenset[str]:
        """Fields that the objectives of this step read."""
        terms = (self._terms_of(coupling) for coupling in couplings)
        return frozenset(read for every in terms for _, _, objective in every for read in objective.reads)

    def _cached(self) -> grad_cache.Reads:
        """Fields by what becomes of them where a batch is encoded in parts."""
        batch, sample, image = (self._read([coupling]) for coupling in COUPLINGS)
        second = frozenset(read for read in batch | image if read.startswith("text:")) if image else frozenset()
        return grad_cache.Reads(_gathered(batch, image), ((batch | image) - second) | sample, second)

    def of_batch(self, rows: Mapping[str, Rows], apart: bool = False) -> Tensor:
        """Weighted sum of the losses of the whole global batch (coupling `batch`). apart: what the texts' features get
        of losses of coupling `image` waits for `give_back`."""
        total, terms = torch.zeros((), device=self.device), self._terms_of("batch")
        image = self._read(["image"])
        if not terms and not image:
            return total
        scalars = Scalars(self.dual.logit_scale, self.dual.logit_bias)
        with torch.autocast(self.device.type, enabled=False):  # similarities and sums in fp32
            gathered = _gathered(self._read(["batch"]), image)
            assert self._batch is not None
            shared, self._means = global_batch(rows, self._batch, scalars, self.recipe.model.centred, gathered)
            self._shared = shared
            if apart and shared.texts is not None:
                leaf = shared.texts.units_UD.detach().requires_grad_()
                self._shared = replace(shared, texts=replace(shared.texts, units_UD=leaf))
                self._told = shared.texts.units_UD
            for name, weight, objective in terms:
                loss, extra = self._unless_nothing(partial(objective, shared), objective, rows)
                total = total + weight * loss
                self._log({f"loss/{name}": loss, **{f"{name}/{k}": v for k, v in extra.items()}})
        return total

    def of_part(self, rows: Mapping[str, Rows], part: Part) -> Tensor | None:
        """Weighted sum of the losses that are sums over studies (couplings `sample` and `image`), over the studies of a
        part."""
        terms = [*self._terms_of("sample"), *self._terms_of("image")]
        if not terms:
            return None
        total = torch.zeros((), device=self.device)
        for name, weight, objective in terms:
            if objective.coupling == "sample":
                summed, extra = objective.each(rows, part)
            else:
                assert self._shared is not None, "of_batch comes before"
                with torch.autocast(self.device.type, enabled=False):
                    summed, extra = self._unless_nothing(
                        partial(objective.of_images, rows, part, self._shared), objective, rows
                    )
            share = 1.0 / max(self._counts[name], 1.0)
            total = total + weight * share * summed
            self._log({f"loss/{name}": share * summed, **{f"{name}/{k}": share * v for k, v in extra.items()}})
        return total

    def give_back(self) -> None:
        """Propagate to the features of texts what losses of coupling `image` found for them, part by part."""
        assert self._shared is not None and self._told is not None, "of_batch comes before"
        leaf = self._shared.text.units_UD
        self._told.backward(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)

    def _unless_nothing(
        self, loss: Callable[[], tuple[Tensor, dict[str, Tensor]]], objective: Objective, read: Mapping[str, Rows]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss; of a batch without the texts that it compares, where sections alternate, 0 with a gradient of zero
        for all that it would have reached."""
        try:
            return loss()
        except NoUnits:
            if self.recipe.data.units.alternate is None:
                raise
        own = [*objective.parameters(), self.dual.clip.logit_scale, self.dual.clip.logit_bias]
        total = touch(p for p in own if p is not None and p.requires_grad).to(self.device)
        return total + sum(0.0 * one.values.float().sum() for name, one in read.items() if name in objective.reads), {}

    def _terms_of(self, coupling: str) -> list[tuple[str, float, Objective]]:
        """Name, weight and objective of the terms that count in this step."""
        step, steps = self.step_number, self.recipe.train.steps
        every = zip(self.names, self.sections, cast(list[Objective], list(self.objectives)), strict=True)
        chosen = ((name, told, told.factor(step, steps), o) for name, told, o in every if o.coupling == coupling)
        return [(name, told.weight * factor, o) for name, told, factor, o in chosen if factor]

    def _log(self, found: Mapping[str, Tensor]) -> None:
        for name, value in found.items():
            self.logged[name] = self.logged.get(name, 0.0) + float(value.detach())

    def _begin(self, batch: Batch) -> None:
        """Forget the last batch, and count the terms of each loss that is a sum over studies in the global batch, over
        the number of ranks: DDP takes the mean."""
        self._batch, self.logged, self._counts, self._means = batch, {}, {}, {}
        for name, _, objective in (*self._terms_of("sample"), *self._terms_of("image")):
            count = objective.terms(batch).to(self.device, torch.float32)
            if world_size() > 1:
                dist.all_reduce(count)
            self._counts[name] = float(count) / world_size()

    def _forget(self) -> None:
        """Let go of a batch before the next one is moved to the device, and of features of all ranks."""
        self._batch = self._shared = self._told = None

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
        self.logged["loss"] = float(loss)
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

    def _prepare(self, parts: list[Part], seed: int) -> None:
        """Give stems that have none yet the statistics of the whole batch; before the first batch, refuse what would
        fill memory.

        Raises:
            ConfigError: more than `train.cache_gib` would be kept.
        """
        if not self._began_in_parts:
            self._refuse_too_much(parts[0])
            self._began_in_parts = True
        if any(read.startswith("image:") for read in self._read(COUPLINGS)):
            rounds = self._cached().rounds
            with torch.no_grad():
                measure(
                    self.dual,
                    [partial(grad_cache.seeded, parts, n, self.encode, seed, rounds) for n in range(len(parts))],
                )
            torch.clear_autocast_cache()  # casts of weights without a graph
        for part in parts:
            part.forget()

    def _refuse_too_much(self, part: Part) -> None:
        """By a part without dropped tokens that every objective reads: the dearest step to come."""
        every = cast(list[Objective], list(self.objectives))
        batch, image = (frozenset(r for o in every if o.coupling == c for r in o.reads) for c in ("batch", "image"))
        kept = _gathered(batch, image)
        modes = {module: module.training for module in self.dual.modules()}
        self.dual.eval()  # no token is dropped
        with torch.no_grad():
            rows = self.encoders(self.dual, part, kept)
        for module, mode in modes.items():
            module.training = mode
        torch.clear_autocast_cache()  # casts of weights without a graph
        found = {name: one for name, one in rows.items() if name in kept}
        grad_cache.refuse_too_much(found, part, self.recipe.train.cache_gib)

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


def _distinct(names: list[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name}{i}" for i, name in enumerate(names)]


def _mixed(seed: int, batch: int, rank: int) -> int:
    value = ((seed * 1_000_003 + batch) * 65_537 + rank + 1) * MIX
    return (value ^ (value >> 31)) & 0x7FFFFFFFFFFFFFFF
