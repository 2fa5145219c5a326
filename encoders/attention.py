"""The attention seam of our towers: packed sequences in, packed sequences out.

Legend: T tokens of all sequences, H heads, D head width, B sequences of one bucket, L its padded length.

Sequences of different length stand one after another (`qkv_T3HD`, bounds in `Packing`). Backends:
  sdpa     torch's scaled_dot_product_attention; ragged input goes through right-padded length buckets. Any device.
  varlen   torch.nn.attention.varlen (torch >= 2.10, CUDA, fp16/bf16).
  xformers memory_efficient_attention with a block-diagonal mask (CUDA, extra `gpu`).
Slicing sequence by sequence is a trap: each slice's backward writes a gradient of the whole tensor
(measured in benchmarks/packed_text.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BACKENDS = ("auto", "sdpa", "varlen", "xformers")
GROWTH = 1.3  # a bucket's longest sequence may be this much longer than its shortest: at most 30 % padding


@dataclass
class Packing:
    """Bounds of packed sequences: `lengths[i]` tokens each, in order.

    Raises:
        ValueError: a sequence without tokens (attention over nothing is NaN).
    """

    lengths: tuple[int, ...]
    device: torch.device | str = "cpu"
    _buckets: list[tuple[Tensor, Tensor, int, int, Tensor]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError("a packing needs at least one sequence and one token in each")

    @classmethod
    def uniform(cls, sequences: int, length: int, device: torch.device | str = "cpu") -> Packing:
        return cls((length,) * sequences, device)

    @property
    def total(self) -> int:
        return sum(self.lengths)

    @property
    def is_uniform(self) -> bool:
        return min(self.lengths) == max(self.lengths)

    @property
    def cu_seqlens(self) -> Tensor:
        """int32 [sequences + 1], on `device`."""
        return torch.tensor((0, *_running(self.lengths)), dtype=torch.int32, device=self.device)

    @property
    def last(self) -> Tensor:
        """Index of every sequence's last token, int64 [sequences]."""
        return torch.tensor(_running(self.lengths), device=self.device) - 1

    @property
    def positions(self) -> Tensor:
        """Position of every token inside its own sequence, int64 [T]."""
        lengths = torch.tensor(self.lengths)
        starts = torch.tensor(_running(self.lengths)) - lengths
        return (torch.arange(self.total) - torch.repeat_interleave(starts, lengths)).to(self.device)

    @property
    def buckets(self) -> list[tuple[Tensor, Tensor, int, int, Tensor]]:
        """(token index, slot in the padded [B*L] block, B, L, lengths [B]) for each group of similar length."""
        if self._buckets is None:
            self._buckets = [self._bucket(members) for members in _groups(self.lengths)]
        return self._buckets

    def _bucket(self, members: list[int]) -> tuple[Tensor, Tensor, int, int, Tensor]:
        lengths = torch.tensor([self.lengths[m] for m in members])
        ends = _running(self.lengths)
        starts = torch.tensor([ends[m] - self.lengths[m] for m in members])
        longest = int(lengths.max())
        inside = torch.arange(longest)[None, :] < lengths[:, None]
        tokens = (starts[:, None] + torch.arange(longest)[None, :])[inside]
        slots = torch.arange(len(members) * longest).view(len(members), longest)[inside]
        return tokens.to(self.device), slots.to(self.device), len(members), longest, lengths.to(self.device)


def _running(lengths: tuple[int, ...]) -> list[int]:
    total, out = 0, []
    for length in lengths:
        total += length
        out.append(total)
    return out


def _groups(lengths: tuple[int, ...]) -> list[list[int]]:
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    groups: list[list[int]] = []
    for i in order:
        if groups and lengths[i] <= max(GROWTH * lengths[groups[-1][0]], lengths[groups[-1][0]] + 2):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def bucketed_tokens(lengths: tuple[int, ...]) -> int:
    """Tokens of all buckets, the padding to each one's longest sequence included."""
    return sum(len(members) * lengths[members[-1]] for members in _groups(lengths))


class _Move(torch.autograd.Function):
    """Rows `source` of x to rows `target` of a zero block. Both index sets are free of repeats, so the backward pass is
    a plain move as well; torch's own index backward must add up and is several times slower on CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, target: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(source, target)
        ctx.rows = x.shape[0]
        return x.new_zeros(rows, *x.shape[1:]).index_copy_(0, target, x.index_select(0, source))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        grad = grads[0]
        source, target = ctx.saved_tensors
        out = grad.new_zeros(ctx.rows, *grad.shape[1:])
        return out.index_copy_(0, source, grad.index_select(0, target)), None, None, None


def unpack(x: Tensor, packing: Packing) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Packed rows [T, ...] to right-padded blocks: a list of (block [B, L, ...], token index, slot) per bucket."""
    out = []
    for tokens, slots, count, longest, _ in packing.buckets:
        block = _Move.apply(x, tokens, slots, count * longest)
        out.append((block.view(count, longest, *x.shape[1:]), tokens, slots))
    return out


def repack(rows: Tensor, tokens: Tensor, slots: Tensor, total: int) -> Tensor:
    """One block of `unpack` back: its rows [B * L, ...] to [total, ...], zero where other buckets' tokens stand."""
    return _Move.apply(rows, slots, tokens, total)


@cache
def _has(module: str) -> bool:
    import importlib.util

    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def resolve_backend(backend: str, qkv: Tensor, packing: Packing) -> str:
    """`auto` takes varlen, then xformers, for ragged half-precision CUDA input, and sdpa for everything else.

    Raises:
        ValueError: an unknown name, or a kernel that this device or precision does not have.
    """
    if backend not in BACKENDS:
        raise ValueError(f"attention backend '{backend}' is unknown; choose one of {', '.join(BACKENDS)}")
    fast = qkv.is_cuda and qkv.dtype in (torch.float16, torch.bfloat16)
    if backend == "auto":
        if not fast or packing.is_uniform:
            return "sdpa"
        return "varlen" if _has("torch.nn.attention.varlen") else "xformers" if _has("xformers.ops") else "sdpa"
    if backend != "sdpa" and not fast:
        raise ValueError(f"attention backend '{backend}' needs CUDA and half precision; use 'sdpa' or 'auto' here")
    return backend


def attend(qkv_T3HD: Tensor, packing: Packing, causal: bool = False, backend: str = "auto") -> Tensor:
    """Self-attention inside each packed sequence: [T, 3, H, D] to [T, H, D].

    Raises:
        ValueError: `packing` counts other tokens than the tensor has, or the backend cannot run here.
    """
    if qkv_T3HD.shape[0] != packing.total:
        raise ValueError(f"packing has {packing.total} tokens, the tensor {qkv_T3HD.shape[0]}")
    backend = resolve_backend(backend, qkv_T3HD, packing)
    if backend == "varlen":
        return _varlen(qkv_T3HD, packing, causal)
    if backend == "xformers":
        return _xformers(qkv_T3HD, packing, causal)
    if packing.is_uniform:
        block = qkv_T3HD.view(len(packing.lengths), packing.lengths[0], *qkv_T3HD.shape[1:])
        return _dense(block, causal, None).reshape(qkv_T3HD.shape[0], *qkv_T3HD.shape[2:])
    out = None
    for (block, tokens, slots), (_, _, _, longest, lengths) in zip(
        unpack(qkv_T3HD, packing), packing.buckets, strict=True
    ):
        # Under a causal mask right padding is never seen by a real token; without one the padded keys must be hidden.
        mask = None if causal else (torch.arange(longest, device=lengths.device) < lengths[:, None])[:, None, None, :]
        done = _dense(block, causal, mask).reshape(-1, *qkv_T3HD.shape[2:])
        rows = repack(done, tokens, slots, packing.total)
        out = rows if out is None else out + rows
    assert out is not None
    return out


def _dense(qkv_BL3HD: Tensor, causal: bool, mask: Tensor | None) -> Tensor:
    q, k, v = qkv_BL3HD.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).transpose(1, 2)


def _varlen(qkv_T3HD: Tensor, packing: Packing, causal: bool) -> Tensor:
    from torch.nn.attention import varlen

    varlen_attn: Any = varlen.varlen_attn
    q, k, v = qkv_T3HD.unbind(1)
    bounds, longest = packing.cu_seqlens, max(packing.lengths)
    # torch 2.10 says causality by `is_causal`, later releases by a window whose right side is 0.
    try:
        return varlen_attn(q, k, v, bounds, bounds, longest, longest, window_size=(-1, 0 if causal else -1))
    except TypeError:
        return varlen_attn(q, k, v, bounds, bounds, longest, longest, is_causal=causal)


def _xformers(qkv_T3HD: Tensor, packing: Packing, causal: bool) -> Tensor:
    from xformers.ops import fmha, memory_efficient_attention

    mask = fmha.attn_bias.BlockDiagonalMask.from_seqlens(list(packing.lengths), device=qkv_T3HD.device)
    if causal:
        mask = mask.make_causal()
    q, k, v = (x[None] for x in qkv_T3HD.unbind(1))
    return memory_efficient_attention(q, k, v, attn_bias=mask)[0]
