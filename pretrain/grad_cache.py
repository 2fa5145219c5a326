"""Gradients of a large batch in the memory of a small one (GradCache, arXiv 2101.06983).

1. Every part of the batch goes through the encoders without a graph; what objectives read of it is kept.
2. Losses of coupling `batch` are computed on what was kept, and their gradient with respect to it.
3. Every part goes through the encoders again, with a graph, and gets its share of that gradient; losses of coupling
   `sample` are computed here.

Random choices (dropout, token dropout) of a part are drawn from a seed of its own, the same in 1 and 3: the gradient is
that of one pass over the parts, to rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pretrain.errors import ConfigError
from pretrain.passes import Part, Rows

Encode = Callable[[Part], dict[str, Rows]]
GIB = 1024**3


class Losses(Protocol):
    """The two kinds of loss of a step. Both return a scalar that may be propagated, and log on the way."""

    def of_batch(self, rows: Mapping[str, Rows]) -> Tensor: ...

    def of_part(self, rows: Mapping[str, Rows], part: Part) -> Tensor | None: ...


def backward(
    parts: Sequence[Part], encode: Encode, losses: Losses, propagate: Callable[[Tensor], None], scale: float,
    unsynchronised: Callable[[], contextlib.AbstractContextManager[Any]], parameters: Sequence[nn.Parameter] | None,
    seed: int, limit_gib: float, read: frozenset[str],
) -> Tensor:  # fmt: skip
    """Accumulate the gradient of a batch into the parameters and return its loss.

    Args:
        encode: the passes of a part; draws from torch's default generator.
        propagate: the backward pass of a scalar. scale: of the loss, where several batches are accumulated.
        unsynchronised: inside it ranks do not exchange gradients. parameters: the last backward pass is outside, and
            touches every one of them, which DDP waits for; None: the last one is inside as well.
        seed: of this batch on this rank.
        limit_gib: refused before the second part where all of them would keep more.
        read: fields that losses of the whole batch read; others are not kept.

    Raises:
        ConfigError: too much would be kept.
    """
    kept = _first_pass(parts, encode, seed, limit_gib, read)
    with unsynchronised():
        loss = losses.of_batch(kept)
        if loss.requires_grad:
            propagate(loss * scale)
    total = loss.detach()
    starts = dict.fromkeys(kept, 0)
    for number, part in enumerate(parts):
        torch.manual_seed(seed + number)
        rows = encode(part)
        exchange = parameters if number == len(parts) - 1 else None
        share = touch(exchange or ())
        for name in sorted(kept.keys() & rows.keys()):  # one order of sums in every process
            values, begin = rows[name].values, starts[name]
            starts[name] = begin + len(values)
            gradient = kept[name].values.grad
            if gradient is not None and values.requires_grad:
                share = share + (values * gradient[begin : starts[name]].to(values.dtype)).float().sum()
        own = losses.of_part(rows, part)
        if own is not None:
            share, total = share + own * scale, total + own.detach()
        with unsynchronised() if exchange is None else contextlib.nullcontext():
            if share.requires_grad:
                propagate(share)
    return total


def touch(parameters: Iterable[nn.Parameter]) -> Tensor:
    """0, with a gradient of zero for each parameter: DDP waits for all of them."""
    return sum((p.reshape(-1)[0] * 0.0 for p in parameters), torch.zeros(()))


def _first_pass(
    parts: Sequence[Part], encode: Encode, seed: int, limit_gib: float, read: frozenset[str]
) -> dict[str, Rows]:
    pieces: dict[str, list[Rows]] = {}
    with torch.no_grad():
        for number, part in enumerate(parts):
            torch.manual_seed(seed + number)
            for name, rows in encode(part).items():
                if name in read:
                    pieces.setdefault(name, []).append(rows)
            if number == 0:
                _refuse_too_much(pieces, part, limit_gib)
    # Autocast may remember casts of weights made without a graph; the second pass would have no gradient through them.
    torch.clear_autocast_cache()
    return {
        name: Rows(_leaf([p.values for p in each]), torch.cat([p.owner for p in each]), each[0].grid)
        for name, each in pieces.items()
    }


def _leaf(pieces: list[Tensor]) -> Tensor:
    values = torch.cat(pieces)
    return values.requires_grad_(values.is_floating_point())


def _refuse_too_much(pieces: Mapping[str, list[Rows]], part: Part, limit_gib: float) -> None:
    studies = part.studies.stop - part.studies.start
    bytes_of = {name: each[0].values.numel() * each[0].values.element_size() for name, each in pieces.items()}
    predicted = sum(bytes_of.values()) / studies * len(part.batch) / GIB
    if predicted > limit_gib:
        most = max(bytes_of, key=lambda name: bytes_of[name])
        raise ConfigError(
            f"train.chunk: features of {len(part.batch)} studies would take {predicted:.1f} GiB, mostly {most}; "
            f"train.cache_gib is {limit_gib:g}",
            why="a batch is cut into parts to save memory, and what is kept of them would fill it",
            fix="a smaller batch, objectives that read less than tokens, or a larger train.cache_gib",
        )
