"""The attention seam of our towers: packed sequences in, packed sequences out.

Legend: T tokens of all sequences, H heads, D head width, B sequences of one bucket, L its padded length.

Sequences of different length stand one after another (`qkv_T3HD`, bounds in `Packing`). Backends:
  sdpa     torch's scaled_dot_product_attention, or in bf16 on a CPU encoders.cpu_attention; ragged input goes through
           right-padded length buckets. Any device.
  varlen   torch.nn.attention.varlen (torch >= 2.10, CUDA, fp16/bf16).
  xformers memory_efficient_attention with a block-diagonal mask (CUDA, extra `gpu`).
Slicing sequence by sequence is a trap: each slice's backward writes a gradient of the whole tensor
(measured in benchmarks/packed_text.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from encoders import cpu_attention

BACKENDS = ("auto", "sdpa", "varlen", "xformers")
GROWTH = 1.3  # a bucket's longest sequence may be this much longer than its shortest: at most 30 % padding


class Bucket(NamedTuple):
    """Sequences of similar length, padded on the right to the longest: a block of B x L slots.

    tokens: index of every token among all. slots: its place in the block, flattened. units: which sequences these are,
    [B]. longest: L. lengths: [B].
    """

    tokens: Tensor
    slots: Tensor
    units: Tensor
    longest: int
    lengths: Tensor

    @property
    def inside(self) -> Tensor:
        """Which slots hold tokens, bool [B, L]."""
        return torch.arange(self.longest, device=self.lengths.device) < self.lengths[:, None]


@dataclass
class Packing:
    """Bounds of packed sequences: `lengths[i]` tokens each, in order.

    Raises:
        ValueError: a sequence without tokens (attention over nothing is NaN).
    """

    lengths: tuple[int, ...]
    device: torch.device | str = "cpu"
    _buckets: list[Bucket] | None = field(default=None, init=False, repr=False, compare=False)
    _places: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False, compare=False)

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
    def buckets(self) -> list[Bucket]:
        """Groups of similar length."""
        if self._buckets is None:
            self._buckets = [self._bucket(members) for members in _groups(self.lengths)]
        return self._buckets

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """Tokens of all buckets, and the slot of each where the buckets' blocks stand one after another,
        int64 [T] each."""
        if self._places is None:
            sizes = [len(bucket.units) * bucket.longest for bucket in self.buckets]
            starts = [end - size for end, size in zip(_running(sizes), sizes, strict=True)]
            slots = [bucket.slots + start for bucket, start in zip(self.buckets, starts, strict=True)]
            self._places = torch.cat([bucket.tokens for bucket in self.buckets]), torch.cat(slots)
        return self._places

    def _bucket(self, members: list[int]) -> Bucket:
        lengths = torch.tensor([self.lengths[m] for m in members])
        ends = _running(self.lengths)
        starts = torch.tensor([ends[m] - self.lengths[m] for m in members])
        longest = int(lengths.max())
        inside = torch.arange(longest)[None, :] < lengths[:, None]
        tokens = (starts[:, None] + torch.arange(longest)[None, :])[inside]
        slots = torch.arange(len(members) * longest).view(len(members), longest)[inside]
        device = self.device
        units = torch.tensor(members)
        return Bucket(tokens.to(device), slots.to(device), units.to(device), longest, lengths.to(device))


def _running(lengths: Sequence[int]) -> list[int]:
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


def moved(x: Tensor, source: Tensor, target: Tensor, rows: int) -> Tensor:
    """Rows `source` of x to rows `target` of [rows, ...], zero elsewhere; no index may occur twice."""
    return _Move.apply(x, source, target, rows)


def unpack(x: Tensor, packing: Packing) -> list[tuple[Tensor, Bucket]]:
    """Packed rows [T, ...] to right-padded blocks [B, L, ...], one per bucket."""
    buckets = packing.buckets
    sizes = [len(bucket.units) * bucket.longest for bucket in buckets]
    blocks = moved(x, *packing.places, sum(sizes)).split(sizes)  # one move: autograd adds up none of the blocks
    return [(one.unflatten(0, (-1, bucket.longest)), bucket) for one, bucket in zip(blocks, buckets, strict=True)]


def repack(blocks: list[tuple[Tensor, Bucket]], packing: Packing) -> Tensor:
    """The blocks of `unpack`, [B, L, ...] each, in its order, back to rows [T, ...]."""
    tokens, slots = packing.places
    return moved(torch.cat([block.flatten(0, 1) for block, _ in blocks]), slots, tokens, packing.total)


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
    if backend != "sdpa":
        q, k, v = qkv_T3HD.unbind(1)
        return (_varlen if backend == "varlen" else _xformers)(q, k, v, packing.lengths, packing, causal)
    if packing.is_uniform:
        block = qkv_T3HD.view(len(packing.lengths), packing.lengths[0], *qkv_T3HD.shape[1:])
        return _dense(block, causal, None).reshape(qkv_T3HD.shape[0], *qkv_T3HD.shape[2:])
    # Under a causal mask right padding is never seen by a real token; without one the padded keys must be hidden.
    done = [
        (_dense(block, causal, None if causal else bucket.inside[:, None, None, :]), bucket)
        for block, bucket in unpack(qkv_T3HD, packing)
    ]
    return repack(done, packing)


def attend_from(q_UHD: Tensor, kv_T2HD: Tensor, packing: Packing, backend: str = "auto") -> Tensor:
    """One query of each packed sequence over all its tokens: [U, H, D], [T, 2, H, D] to [U, H, D].

    Raises:
        ValueError: the backend cannot run here.
    """
    backend = resolve_backend(backend, kv_T2HD, packing)
    if backend != "sdpa":
        k, v = kv_T2HD.unbind(1)
        return (_varlen if backend == "varlen" else _xformers)(q_UHD, k, v, (1,) * len(q_UHD), packing, False)
    if packing.is_uniform:
        k, v = kv_T2HD.view(len(packing.lengths), packing.lengths[0], *kv_T2HD.shape[1:]).unbind(2)
        return dense(q_UHD[:, None], k, v)[:, 0]
    out = []
    for block, bucket in unpack(kv_T2HD, packing):
        k, v = block.unbind(2)
        out.append(dense(q_UHD[bucket.units][:, None], k, v, bucket.inside[:, None, None, :])[:, 0])
    order = torch.cat([bucket.units for bucket in packing.buckets])
    return torch.cat(out)[torch.argsort(order)]


def _dense(qkv_BL3HD: Tensor, causal: bool, mask: Tensor | None) -> Tensor:
    q, k, v = qkv_BL3HD.unbind(2)
    return dense(q, k, v, mask, causal)


def dense(q_BQHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Attention over padded sequences, [B, Q, H, D]. mask: bool, broadcast to [B, H, Q, L], True where a query sees a
    key; no query may see none."""
    q, k, v = (x.transpose(1, 2) for x in (q_BQHD, k_BLHD, v_BLHD))
    if not cpu_attention.is_faster(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).transpose(1, 2)
    batch, heads, queries, _ = q.shape
    if causal:
        mask = torch.ones(queries, queries, dtype=torch.bool).tril()
    if mask is not None:
        mask = mask.expand(batch, heads, queries, k.shape[2]).flatten(0, 1)
    done = cpu_attention.attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), mask)
    return done.unflatten(0, (batch, heads)).transpose(1, 2)


def _varlen(q: Tensor, k: Tensor, v: Tensor, queries: tuple[int, ...], packing: Packing, causal: bool) -> Tensor:
    from torch.nn.attention import varlen

    varlen_attn: Any = varlen.varlen_attn
    bounds, longest = packing.cu_seqlens, max(packing.lengths)
    asked = torch.tensor((0, *_running(queries)), dtype=torch.int32, device=bounds.device)
    # torch 2.10 says causality by `is_causal`, later releases by a window whose right side is 0.
    try:
        return varlen_attn(q, k, v, asked, bounds, max(queries), longest, window_size=(-1, 0 if causal else -1))
    except TypeError:
        return varlen_attn(q, k, v, asked, bounds, max(queries), longest, is_causal=causal)


def _xformers(q: Tensor, k: Tensor, v: Tensor, queries: tuple[int, ...], packing: Packing, causal: bool) -> Tensor:
    from xformers.ops import fmha, memory_efficient_attention

    mask = fmha.attn_bias.BlockDiagonalMask.from_seqlens(list(queries), list(packing.lengths), device=q.device)
    if causal:
        mask = mask.make_causal()
    return memory_efficient_attention(*(x[None] for x in (q, k, v)), attn_bias=mask)[0]
