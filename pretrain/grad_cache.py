"""Gradients of a large batch in the memory of a small one (GradCache, arXiv 2101.06983).

1. Every part of the batch goes through the encoders without a graph; what losses of the whole batch read is kept. The
   last part keeps its graph as well: it need not go through again.
2. Losses of coupling `batch` are computed on what was kept, and their gradient with respect to it.
3. Every part goes through the encoders again, with a graph, and gets its share of that gradient; losses of coupling
   `sample` and `image` are computed here.
4. Losses of coupling `image` compare the images of a part with the texts of all. Where there are any, what the texts'
   features get of them is known only now, and the texts' own second pass comes after the images'.

Losses of coupling `pair` read what each image and each text come to, however many places of the image that took: texts
go first in 1, the images of a part are scored against all of them, and of the part only its scores are kept.

Layers in which nothing is learnt (encoders.unlearnt) are asked in the first pass only.

Random choices (dropout, token dropout) of a part are drawn from a seed of its own, the same in 1 and 3: the gradient is
that of one pass over the parts, to rounding.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from encoders.features import world_size
from encoders.unlearnt import Twice
from pretrain.errors import ConfigError
from pretrain.passes import Part, Rows

Encode = Callable[[Part, frozenset[str]], dict[str, Rows]]
GIB = 1024**3


class Losses(Protocol):
    """The losses of a step. `of_batch` and `of_part` return a scalar that may be propagated, and log on the way."""

    def of_texts(self, rows: Mapping[str, Rows]) -> None:
        """Take the texts of the batch, which `scores` compares images with, before anything else is known of it."""

    def scores(self, rows: Mapping[str, Rows]) -> dict[str, Rows]:
        """Of the images in `rows` against all texts, by the name of their loss. Draws nothing."""

    def of_batch(self, rows: Mapping[str, Rows], apart: bool) -> Tensor:
        """apart: what `of_part` finds for the features of texts waits for `give_back`."""

    def of_part(self, rows: Mapping[str, Rows], part: Part) -> Tensor | None: ...

    def give_back(self) -> None:
        """Propagate to the kept features of texts what `of_part` and `scores` found for them."""


@dataclass(frozen=True)
class Reads:
    """Fields of the encoders: `kept`, read by losses of the whole batch; `first`, of the passes that go through the
    encoders again at once; `second`, those of texts where they wait for losses of couplings `image` and `pair`.
    `scores`: names of what the latter make of images and texts, kept as well."""

    kept: frozenset[str]
    first: frozenset[str]
    second: frozenset[str] = field(default_factory=frozenset)
    scores: frozenset[str] = field(default_factory=frozenset)

    def own(self, round_: int) -> frozenset[str]:
        """What is kept of this round and whose gradient is handed on in it."""
        return self.second & self.kept if round_ else (self.first - self.second) & self.kept | self.scores

    @property
    def rounds(self) -> tuple[frozenset[str], ...]:
        return (self.first, self.second) if self.second else (self.first,)


def backward(
    parts: Sequence[Part], encode: Encode, losses: Losses, propagate: Callable[..., None], scale: float,
    unsynchronised: Callable[[], contextlib.AbstractContextManager[Any]], parameters: Sequence[nn.Parameter] | None,
    seed: int, reads: Reads,
) -> Tensor:  # fmt: skip
    """Accumulate the gradient of a batch into the parameters and return its loss.

    Args:
        encode: the passes of a part that some fields need; draws from torch's default generator.
        propagate: the backward pass of a scalar. scale: of the loss, where several batches are accumulated.
        unsynchronised: inside it ranks do not exchange gradients. parameters: the last backward pass is outside, and
            touches every one of them, which DDP waits for; None: the last one is inside as well.
        seed: of this batch on this rank.
    """
    twice = [[Twice() for _ in reads.rounds] for _ in parts[:-1]]
    kept = _first_pass(parts, encode, losses, seed, reads, twice)
    with unsynchronised():
        loss = losses.of_batch(kept.rows, apart=bool(reads.second))
        if loss.requires_grad:
            propagate(loss * scale, retain_graph=bool(reads.second))
    total, last = loss.detach(), len(parts) - 1
    del loss  # and its graph
    steps = [(round_, number) for round_ in range(len(reads.rounds)) for number in (last, *range(last))]
    for round_, number in steps:
        if (round_, number) == (1, last):
            losses.give_back()
        part, exchange = parts[number], parameters if (round_, number) == steps[-1] else None
        if number == last:
            rows = kept.alive.pop(0)
        else:
            with twice[number][round_]:
                rows = seeded(parts, number, encode, seed, reads.rounds, round_)
        if round_ == 0 and reads.scores:
            rows |= losses.scores(rows)
        share = touch(exchange or ())
        for name in sorted(reads.own(round_) & kept.rows.keys() & rows.keys()):  # one order of sums in every process
            values, gradient = rows[name].values, kept.rows[name].values.grad
            if gradient is not None and values.requires_grad:
                begin, end = kept.bounds[name][number : number + 2]
                share = share + (values * gradient[begin:end].to(values.dtype)).float().sum()
        own = None
        if round_ == 0:
            torch.manual_seed(seed + len(reads.rounds) * len(parts) + number)  # losses have dropout too
            own = losses.of_part(rows, part)
        if own is not None:
            share, total = share + own * scale, total + own.detach()
        part.forget()  # before the backward pass, which needs the most memory
        with unsynchronised() if exchange is None else contextlib.nullcontext():
            if share.requires_grad:
                propagate(share)
    return total


def refuse_too_much(rows: Mapping[str, Rows], part: Part, limit_gib: float, unlearnt: int = 0) -> None:
    """Predict what is kept of a batch from the fields of one of its parts: features and their gradients, over
    several ranks those of all beside, and the bytes of its `unlearnt` statistics (encoders.unlearnt).

    Raises:
        ConfigError: more than the limit.
    """
    studies = part.studies.stop - part.studies.start
    copies = 2 * (1 + (world_size() if world_size() > 1 else 0))
    bytes_of = {name: copies * one.values.numel() * one.values.element_size() for name, one in rows.items()}
    if unlearnt:  # those of the last part are not kept
        bytes_of["statistics of blocks"] = unlearnt * (len(part.batch) - studies) // len(part.batch)
    predicted = sum(bytes_of.values()) / studies * len(part.batch) / GIB
    if predicted > limit_gib:
        most = max(bytes_of, key=lambda name: bytes_of[name])
        raise ConfigError(
            f"train.chunk: features of {len(part.batch)} studies and their gradients would take {predicted:.3g} GiB, "
            f"mostly {most}; train.cache_gib is {limit_gib:g}",
            why="a batch is cut into parts to save memory, and what is kept of them would fill it",
            fix="a smaller batch, objectives that read less than tokens, or a larger train.cache_gib",
        )


def seeded(
    parts: Sequence[Part], number: int, encode: Encode, seed: int, rounds: Sequence[frozenset[str]], round_: int = 0
) -> dict[str, Rows]:
    """Fields of one round of part `number`, with the random choices that are its own."""
    torch.manual_seed(seed + round_ * len(parts) + number)
    return encode(parts[number], rounds[round_])


def touch(parameters: Iterable[nn.Parameter]) -> Tensor:
    """0, with a gradient of zero for each parameter: DDP waits for all of them."""
    return sum((p.reshape(-1)[0] * 0.0 for p in parameters), torch.zeros(()))


def nothing(parameters: Iterable[nn.Parameter], features: Iterable[Tensor]) -> Tensor:
    """0, with a gradient of zero for each parameter that is trained and all features that have one."""
    own = touch(p for p in parameters if p.requires_grad)
    return sum((0.0 * values.float().sum() for values in features if values.requires_grad), own)


@dataclass(frozen=True)
class _Kept:
    """`rows` of all parts, leaves of a graph; those of part n lie between `bounds` n and n + 1. `alive`: of the last
    part, for each round, what the encoders gave, with its graph."""

    rows: dict[str, Rows]
    bounds: dict[str, list[int]]
    alive: list[dict[str, Rows]]


def _first_pass(
    parts: Sequence[Part], encode: Encode, losses: Losses, seed: int, reads: Reads, twice: Sequence[Sequence[Twice]]
) -> _Kept:
    pieces: dict[str, list[Rows]] = {}
    alive: list[dict[str, Rows]] = [{} for _ in reads.rounds]
    for round_ in reversed(range(len(reads.rounds))):  # texts first: images are scored against them
        for number in range(len(parts)):
            last = number == len(parts) - 1
            if last:
                # Autocast may remember casts of weights made without a graph; no gradient would pass through them.
                torch.clear_autocast_cache()
                rows = alive[round_] = seeded(parts, number, encode, seed, reads.rounds, round_)
            else:
                with torch.no_grad(), twice[number][round_]:
                    rows = seeded(parts, number, encode, seed, reads.rounds, round_)
            with torch.no_grad():
                rows = rows | (losses.scores(rows) if round_ == 0 and reads.scores else {})
            for name in sorted(reads.own(round_) & rows.keys()):  # ranks gather in one order
                pieces.setdefault(name, []).append(rows[name])
            if not last:
                parts[number].forget()
        if round_ and reads.scores:
            losses.of_texts({name: _joined(each) for name, each in pieces.items()})
    kept = {name: _joined(each) for name, each in pieces.items()}
    bounds = {name: [0, *itertools.accumulate(len(p.values) for p in each)] for name, each in pieces.items()}
    return _Kept(kept, bounds, alive)


def _joined(pieces: Sequence[Rows]) -> Rows:
    """Rows of several parts, leaves of a graph."""
    values = torch.cat([p.values.detach() for p in pieces])
    values.requires_grad_(values.is_floating_point())
    return Rows(values, torch.cat([p.owner for p in pieces]), pieces[0].grid)
