"""Layers in which nothing is learnt: what they gave in a first pass over some input is what they give in a second.

Gradient caching (pretrain.grad_cache) sends every part of a batch through the encoders twice. A layer that computes
through `once` is asked for the first time only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token

from torch import Tensor


class Twice:
    """A context of two passes over one input: `with twice: first()`, later `with twice: second()`. What `once` made in
    the first is handed out in the second, in the same order, and let go."""

    def __init__(self) -> None:
        self._made: deque[Tensor] = deque()
        self._passes = 0
        self._before: Token[Twice | None] | None = None

    def __enter__(self) -> None:
        self._passes += 1
        self._before = _CURRENT.set(self)

    def __exit__(self, kind: object, *error: object) -> None:
        assert self._before is not None
        _CURRENT.reset(self._before)
        if kind is None and self._passes > 1 and self._made:
            raise RuntimeError(
                "the first pass over a part asked layers that the second did not: what they gave is mixed up"
            )

    @property
    def kept_bytes(self) -> int:
        """Of what waits for the second pass."""
        return sum(made.numel() * made.element_size() for made in self._made)

    def take(self, make: Callable[[], Tensor]) -> Tensor:
        if self._passes > 1:
            return self._made.popleft()
        self._made.append(made := make())
        return made


_CURRENT: ContextVar[Twice | None] = ContextVar("twice", default=None)


@contextmanager
def apart() -> Iterator[None]:
    """Inside it layers compute, whatever pass it is: a teacher runs in the first alone."""
    before = _CURRENT.set(None)
    try:
        yield
    finally:
        _CURRENT.reset(before)


def once(make: Callable[[], Tensor]) -> Tensor:
    """What `make` gives, or gave at this place of the first of two passes (`Twice`). It has no gradient."""
    twice = _CURRENT.get()
    return make() if twice is None else twice.take(make)
