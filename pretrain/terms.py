"""The losses of a step: which count, what they read of the encoders, and their sum.

Legend: B studies of this rank's batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import cast

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_shards.batch import Batch
from encoders.dual import DualEncoder
from encoders.features import world_size
from encoders.stem import measure
from pretrain import grad_cache
from pretrain.gathering import UNITS, Scalars, global_batch
from pretrain.grad_cache import touch
from pretrain.objectives.base import COUPLINGS, GlobalBatch, NoUnits, Objective
from pretrain.passes import SHARED, Encoders, Part, Pass, Rows, whole
from pretrain.schema import Recipe


def _of_images(read: str) -> bool:
    """Whether a loss of coupling `image` may read a field."""
    return read.startswith("image:") or read == UNITS or read in SHARED


def _gathered(batch: frozenset[str], image: frozenset[str]) -> frozenset[str]:
    """Of the fields that losses of these couplings read those of all ranks: an image's own are read by its rank."""
    return batch | {read for read in image if not read.startswith("image:")}


class Terms(L.LightningModule):
    """A dual encoder, its objectives, and what they come to for a batch, whole or in parts (pretrain.grad_cache).

    Args:
        recipe: the experiment.
        dual: the model.
        objectives: in the order of the recipe.
        passes: other ways to make passes (pretrain.text_cache).
    Raises:
        ValueError: an objective of coupling `image` that reads more than images and texts.
    """

    def __init__(
        self, recipe: Recipe, dual: DualEncoder, objectives: list[Objective], passes: Mapping[str, Pass] | None = None
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.dual = dual
        self.objectives = nn.ModuleList(objectives)
        self.names = _distinct([section.name for section in recipe.objectives])
        self.sections = recipe.objectives
        for objective in objectives:
            if objective.coupling == "image" and (other := [r for r in objective.reads if not _of_images(r)]):
                raise ValueError(
                    f"objective {type(objective).__name__} of coupling `image` reads {', '.join(other)}\n"
                    "  why: with train.chunk the gradient would not find its way back there\n"
                    "  fix: read fields of images and text:units.units, or use coupling `batch`"
                )
        self.encoders = Encoders(objectives, passes)
        self.batches_done = 0
        self.logged: dict[str, float] = {}
        self._began_in_parts = False
        self._batch: Batch | None = None  # at hand
        self._shared: GlobalBatch | None = None  # of it, for losses of coupling `image`
        self._told: Tensor | None = None  # features of its texts, where what those find for them is to be given back

    @property
    def step_number(self) -> int:
        """Optimiser steps done, refused ones included."""
        return self.batches_done // self.recipe.optim.accumulate

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

            def look(number: int) -> None:
                grad_cache.seeded(parts, number, self.encode, seed, rounds)
                parts[number].forget()

            with torch.no_grad():
                measure(self.dual, [partial(look, number) for number in range(len(parts))])
            torch.clear_autocast_cache()  # casts of weights without a graph

    def _refuse_too_much(self, part: Part) -> None:
        """By a part without dropped tokens that every objective reads: the dearest step to come."""
        every = cast(list[Objective], list(self.objectives))
        batch, image = (frozenset(r for o in every if o.coupling == c for r in o.reads) for c in ("batch", "image"))
        kept = _gathered(batch, image)
        modes = {module: module.training for module in self.dual.modules()}
        self.dual.eval()  # no token is dropped
        with torch.no_grad():
            rows = self.encoders(self.dual, part, kept)
        part.forget()
        for module, mode in modes.items():
            module.training = mode
        torch.clear_autocast_cache()  # casts of weights without a graph
        found = {name: one for name, one in rows.items() if name in kept}
        grad_cache.refuse_too_much(found, part, self.recipe.train.cache_gib)


def _distinct(names: list[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name}{i}" for i, name in enumerate(names)]
