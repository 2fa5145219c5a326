"""Encoder calls by name: every objective says what it reads, each call is made once, and all share what it gives.

An objective reads fields such as `image:global.pooled`: before the dot the pass, after it what is taken of it. A pass
is a function `(dual, part, fields) -> {field: Rows}`. Known ones:

    image:global   the images as they come: `pooled` [B, D] in the joint space, `trunk` [B, C] before the projection,
                   `tokens` [B, N, C] the image tower's patch tokens
    text:units     the distinct texts: `units` [U, D] in the joint space

More are an objective's own (`Objective.passes`).

Legend: B studies of this rank's batch, U its distinct units, N patch tokens, C trunk width, D joint width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from data_shards.batch import Batch, TextBatch
from encoders.dual import DualEncoder


@dataclass(frozen=True)
class Rows:
    """`values` [n, ...] with gradient; `owner` [n] says whose each row is: the number of a study in this rank's batch,
    of the pass `text:units` that of a unit."""

    values: Tensor
    owner: Tensor


@dataclass(frozen=True)
class Part:
    """Consecutive studies and units of a rank's batch. `batch` is the whole; studies `studies`, units `units`."""

    batch: Batch
    studies: slice
    units: slice

    @property
    def images(self) -> Tensor:
        """[b, C, (D,) H, W]"""
        return self.batch.images_BCDHW[self.studies]

    @property
    def study_b(self) -> Tensor:
        """Numbers of the part's studies in the batch, [b]."""
        return torch.arange(self.studies.start, self.studies.stop, device=self.batch.images_BCDHW.device)

    @property
    def texts(self) -> TextBatch:
        """The part's units. Pairs stay those of the whole batch: they are read once, there."""
        whole, first, last = self.batch.texts, self.units.start, self.units.stop
        bounds = whole.cu_seqlens_U1[first : last + 1]
        begin, end = (sum(whole.lengths[:n]) for n in (first, last))
        return TextBatch(
            whole.tokens_T[begin:end], bounds - bounds[0], whole.lengths[first:last], whole.kind_U[first:last],
            whole.hash64_U[first:last], whole.pair_sample_P, whole.pair_unit_P,
        )  # fmt: skip


Pass = Callable[[DualEncoder, Part, frozenset[str]], Mapping[str, Rows]]


def whole(batch: Batch) -> Part:
    """All of a batch in one part."""
    return Part(batch, slice(0, len(batch)), slice(0, len(batch.texts.lengths)))


def split(batch: Batch, chunk: int) -> list[Part]:
    """Parts of at most `chunk` studies, as even as can be, each with its share of the units."""
    count = -(-len(batch) // chunk)
    studies, units = (_spans(n, count) for n in (len(batch), len(batch.texts.lengths)))
    return [Part(batch, s, u) for s, u in zip(studies, units, strict=True)]


def _spans(n: int, count: int) -> Iterator[slice]:
    bounds = [n * i // count for i in range(count + 1)]
    return (slice(a, b) for a, b in pairwise(bounds))


def image_global(dual: DualEncoder, part: Part, fields: frozenset[str]) -> dict[str, Rows]:
    found = dual(part.images, None, tokens="tokens" in fields, trunk="trunk" in fields).image
    named = {"pooled": found.study_BD, "trunk": found.trunk_SC, "tokens": found.tokens_SND}
    return {field: Rows(named[field], part.study_b) for field in fields}


def text_units(dual: DualEncoder, part: Part, fields: frozenset[str]) -> dict[str, Rows]:
    device = part.batch.images_BCDHW.device
    number = torch.arange(part.units.start, part.units.stop, device=device)
    if part.units.start < part.units.stop:
        return {"units": Rows(dual(None, part.texts).text.units_UD, number)}
    # No row, but with a graph: other ranks may have texts, and DDP and FSDP2 wait for all that take part in a pass.
    return {"units": Rows(dual(None, _nobodys(part, dual.pad_id)).text.units_UD[:0], number)}


def _nobodys(part: Part, pad_id: int) -> TextBatch:
    """A text of one token, which must not be padding: of no token some towers make NaN, also in the gradient."""
    told = part.batch.texts
    token = torch.full((1,), int(pad_id == 0)).to(told.tokens_T)
    none = told.pair_unit_P[:0]
    bounds, kind, identity = (torch.arange(2).to(told.cu_seqlens_U1), torch.zeros(1).to(told.kind_U), none.new_zeros(1))
    return TextBatch(token, bounds, [1], kind, identity, none, none)


KNOWN: dict[str, Pass] = {"image:global": image_global, "text:units": text_units}
FIELDS = {"image:global": ("pooled", "trunk", "tokens"), "text:units": ("units",)}


class Encoders:
    """The passes that a list of objectives needs, each called once a part.

    Raises:
        ValueError: an objective reads a pass or field that nobody offers, or two objectives offer one name.
    """

    def __init__(self, objectives: Iterable[Any]) -> None:
        self.passes = dict(KNOWN)
        fields = {name: set(offered) for name, offered in FIELDS.items()}
        reads: set[str] = set()
        for objective in objectives:
            for name, (call, offered) in objective.passes().items():
                if name in self.passes:
                    raise ValueError(f"the pass '{name}' is offered twice")
                self.passes[name], fields[name] = call, set(offered)
            reads |= set(objective.reads)
        for read in sorted(reads - SHARED):
            name, _, field = read.partition(".")
            if field not in fields.get(name, ()):
                known = ", ".join(f"{n}.{f}" for n, every in fields.items() for f in sorted(every))
                raise ValueError(f"an objective reads '{read}', which nobody offers; there are {known}")
        self.wanted = _by_pass(reads)

    def __call__(self, dual: DualEncoder, part: Part, reads: Iterable[str] | None = None) -> dict[str, Rows]:
        """Every field that is read, by its whole name; of these `reads` alone, where some objectives rest."""
        found: dict[str, Rows] = {}
        for name, fields in (self.wanted if reads is None else _by_pass(reads)).items():
            given = self.passes[name](dual, part, fields)
            found |= {f"{name}.{field}": given[field] for field in fields if field in given}
        return found


def _by_pass(reads: Iterable[str]) -> dict[str, frozenset[str]]:
    wanted: dict[str, frozenset[str]] = {}
    for read in sorted(set(reads) - SHARED):
        name, _, field = read.partition(".")
        wanted[name] = wanted.get(name, frozenset()) | {field}
    return wanted


SHARED = frozenset({"labels", "logit_scale", "logit_bias"})  # what an objective may read that no pass makes
