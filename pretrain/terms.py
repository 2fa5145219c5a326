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
from encoders.unlearnt import Twice
from pretrain import grad_cache
from pretrain.couplings import PART_BY_PART, gathered_of, is_image, is_text, refuse_reads
from pretrain.gathering import UNITS, Scalars, gathered, global_batch
from pretrain.grad_cache import nothing
from pretrain.objectives.base import COUPLINGS, UNIT_KINDS, GlobalBatch, NoUnits, Objective
from pretrain.passes import Encoders, Part, Pass, Rows, whole
from pretrain.schema import Recipe


class Terms(L.LightningModule):
    """A dual encoder, its objectives, and what they come to for a batch, whole or in parts (pretrain.grad_cache).

    Args:
        recipe: the experiment.
        dual: the model.
        objectives: in the order of the recipe.
        passes: other ways to make passes (pretrain.text_cache).
    Raises:
        ValueError: an objective that reads what its coupling may not (pretrain.couplings).
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
            refuse_reads(objective)
        self.encoders = Encoders(objectives, passes)
        self.batches_done = 0
        self.logged: dict[str, float] = {}
        self._began_in_parts = False
        self._batch: Batch | None = None  # at hand
        self._shared: GlobalBatch | None = None  # of it, for losses of couplings `image` and `pair`
        # Features of its texts and leaves in their place, where what those find for them is to be given back.
        self._told: list[tuple[Tensor, Tensor]] = []

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
        batch, sample, by_part = self._read(["batch"]), self._read(["sample"]), self._read(PART_BY_PART)
        second = frozenset(filter(is_text, batch | by_part)) if by_part else frozenset()
        scores = frozenset(map(_scores_of, (name for name, _, _ in self._terms_of("pair"))))
        return grad_cache.Reads(gathered_of(batch, by_part), ((batch | by_part) - second) | sample, second, scores)

    def of_texts(self, rows: Mapping[str, Rows]) -> None:
        """Take the texts of the batch for `scores`."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            self._shared = self._gather(rows)

    def scores(self, rows: Mapping[str, Rows]) -> dict[str, Rows]:
        """Of images against the texts of the global batch, for each loss of coupling `pair` that does not rest."""
        with torch.autocast(self.device.type, enabled=False):
            made = {_scores_of(name): self._scores(objective, rows) for name, _, objective in self._terms_of("pair")}
        return {name: found for name, found in made.items() if found is not None}

    def _scores(self, objective: Objective, rows: Mapping[str, Rows]) -> Rows | None:
        assert self._shared is not None, "of_texts or of_batch comes before"
        try:
            found = objective.scores(rows, self._shared)
        except NoUnits:
            if not self._may_rest(objective):
                raise
            return None
        if found.values.requires_grad or not torch.is_grad_enabled():
            return found
        # The images of this rank were compared with nothing. Other ranks' were, and exchange gradients of texts.
        features = [one.values for read in (rows, self._shared.rows) for n, one in read.items() if n in objective.reads]
        if self._shared.texts is not None and UNITS in objective.reads:
            features.append(self._shared.texts.units_UD)
        return replace(found, values=found.values + nothing(objective.parameters(), features).to(self.device))

    def of_batch(self, rows: Mapping[str, Rows], apart: bool = False) -> Tensor:
        """Weighted sum of the losses of the whole global batch (couplings `batch` and `pair`). apart: what the texts'
        features get of losses of couplings `image` and `pair` waits for `give_back`, and `rows` has the scores."""
        total, terms, pairs = torch.zeros((), device=self.device), self._terms_of("batch"), self._terms_of("pair")
        if not terms and not self._read(PART_BY_PART):
            return total
        with torch.autocast(self.device.type, enabled=False):  # similarities and sums in fp32
            self._shared = shared = self._gather(rows)
            scored = rows if apart else self.scores(rows)
            self._shared = self._by_part(shared, apart)
            for name, weight, objective in terms:
                loss, extra = self._unless_nothing(partial(objective, shared), objective, rows)
                total = total + self._weighted(name, weight, loss, extra)
            for name, weight, objective in pairs:
                if (own := scored.get(_scores_of(name))) is None:
                    loss, extra = self._nothing(objective, rows), {}
                else:
                    loss, extra = objective.of_scores(gathered(own, shared.first), shared)
                total = total + self._weighted(name, weight, loss, extra)
        return total

    def _gather(self, rows: Mapping[str, Rows]) -> GlobalBatch:
        assert self._batch is not None
        read = gathered_of(self._read(["batch"]), self._read(PART_BY_PART))
        scalars = Scalars(self.dual.logit_scale, self.dual.logit_bias)
        shared, self._means = global_batch(rows, self._batch, scalars, self.recipe.model.centred, read)
        return shared

    def _by_part(self, shared: GlobalBatch, apart: bool) -> GlobalBatch:
        """The global batch as losses of coupling `image` see it: pooled images without a gradient, and where what they
        find for texts is to be given back, leaves in place of the features of texts."""
        shared = replace(shared, image_BD=None if shared.image_BD is None else shared.image_BD.detach())
        if not apart:
            return shared

        def leaf(values: Tensor) -> Tensor:
            self._told.append((values, values.detach().requires_grad_()))
            return self._told[-1][1]

        mine = {name for name in self._read(PART_BY_PART) if is_text(name)}
        rows = {
            name: Rows(leaf(one.values), one.owner, one.grid) if name in mine and one.values.requires_grad else one
            for name, one in shared.rows.items()
        }
        texts = shared.texts
        if texts is not None and UNITS in mine:
            texts = replace(texts, units_UD=leaf(texts.units_UD))
        return replace(shared, texts=texts, rows=rows)

    def _weighted(self, name: str, weight: float, loss: Tensor, extra: Mapping[str, Tensor]) -> Tensor:
        self._log({f"loss/{name}": loss, **{f"{name}/{k}": v for k, v in extra.items()}})
        return weight * loss

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
        """Propagate to the features of texts what losses of couplings `image` and `pair` found, part by part."""
        if self._told:
            found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for _, leaf in self._told]
            torch.autograd.backward([values for values, _ in self._told], found)

    def _unless_nothing(
        self, loss: Callable[[], tuple[Tensor, dict[str, Tensor]]], objective: Objective, read: Mapping[str, Rows]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss; `_nothing` of a batch without the texts that it compares, where that may be."""
        try:
            return loss()
        except NoUnits:
            if not self._may_rest(objective):
                raise
        return self._nothing(objective, read), {}

    def _may_rest(self, objective: Objective) -> bool:
        """Whether this batch may lack what an objective compares with: where sections alternate with whole reports, a
        batch about one section has nothing else, and a whole report no section."""
        if self.recipe.data.units.alternate is None:
            return False
        assert self._shared is not None, "of_texts or of_batch comes before"
        texts, told_P3 = self._shared.texts, self._shared.told_P3
        kind = texts.kind_U if texts is not None else told_P3[:, 2] if told_P3 is not None else torch.empty(0)
        sections_alone = set(getattr(objective.options, "units", ())) == {"section"}
        return sections_alone or bool((kind == UNIT_KINDS.index("section")).all())

    def _nothing(self, objective: Objective, read: Mapping[str, Rows]) -> Tensor:
        """0, with a gradient of zero for all that the loss would have reached."""
        own = [*objective.parameters(), self.dual.clip.logit_scale, self.dual.clip.logit_bias]
        features = (one.values for name, one in read.items() if name in objective.reads)
        return nothing((p for p in own if p is not None), features).to(self.device)

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
        self._forget()  # of a step that failed
        self._batch, self.logged, self._counts, self._means = batch, {}, {}, {}
        for name, _, objective in (*self._terms_of("sample"), *self._terms_of("image")):
            count = objective.terms(batch).to(self.device, torch.float32)
            if world_size() > 1:
                dist.all_reduce(count)
            self._counts[name] = float(count) / world_size()

    def _forget(self) -> None:
        """Let go of a batch before the next one is moved to the device, and of features of all ranks."""
        self._batch = self._shared = None
        self._told = []

    def _prepare(self, parts: list[Part], seed: int) -> None:
        """Give stems that have none yet the statistics of the whole batch; before the first batch, refuse what would
        fill memory.

        Raises:
            ConfigError: more than `train.cache_gib` would be kept.
        """
        if not self._began_in_parts:
            self._refuse_too_much(parts[0])
            self._began_in_parts = True
        if any(map(is_image, self._read(COUPLINGS))):
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
        batch, by_part, all_ = (
            frozenset(r for o in every if o.coupling in couplings for r in o.reads)
            for couplings in (("batch",), PART_BY_PART, COUPLINGS)
        )
        kept = gathered_of(batch, by_part)
        modes = {module: module.training for module in self.dual.modules()}
        self.dual.eval()  # no token is dropped
        twice = Twice()
        with torch.no_grad(), twice:
            rows = self.encoders(self.dual, part, kept.union(filter(is_image, all_)))
        part.forget()
        for module, mode in modes.items():
            module.training = mode
        torch.clear_autocast_cache()  # casts of weights without a graph
        found = {name: one for name, one in rows.items() if name in kept}
        for name, objective in zip(self.names, every, strict=True):
            if objective.coupling == "pair":  # an image's scores against all texts, of one study one
                studies, texts = part.studies.stop - part.studies.start, len(part.batch) * world_size()
                scores = torch.empty(studies, texts, device="meta")
                found[_scores_of(name)] = Rows(scores, torch.empty(studies, device="meta"))
        grad_cache.refuse_too_much(found, part, self.recipe.train.cache_gib, twice.kept_bytes)


def _scores_of(name: str) -> str:
    return f"scores:{name}"


def _distinct(names: list[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name}{i}" for i, name in enumerate(names)]
