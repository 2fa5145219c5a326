"""The attention seam: buckets of packed sequences against one sequence at a time, and against a dense block mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.attention import Packing, attend, resolve_backend

LENGTHS = [(7, 1, 30, 12, 12, 3, 64), (5, 5, 5), (1,), (9, 8, 7, 6, 5, 4, 3, 2, 1)]


def loop(qkv_T3HD: Tensor, lengths: tuple[int, ...], causal: bool) -> Tensor:
    out = []
    for part in qkv_T3HD.split(list(lengths)):
        q, k, v = part.permute(1, 2, 0, 3)
        out.append(F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(0, 1))
    return torch.cat(out)


def dense(qkv_T3HD: Tensor, lengths: tuple[int, ...], causal: bool) -> Tensor:
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    allowed = sequence[:, None] == sequence[None]
    if causal:
        allowed &= torch.ones_like(allowed).tril()
    q, k, v = qkv_T3HD.permute(1, 2, 0, 3)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(0, 1)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("reference", [loop, dense])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_forward_and_backward_agree(
    lengths: tuple[int, ...], causal: bool, reference: object, dtype: torch.dtype, tolerance: float
) -> None:
    """With the reference in float64."""
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(sum(lengths), 3, 2, 16, generator=generator, dtype=torch.float64)
    weight = torch.randn(sum(lengths), 2, 16, generator=generator, dtype=torch.float64)
    results = []
    for function in (lambda x: attend(x.to(dtype), Packing(lengths), causal), lambda x: reference(x, lengths, causal)):  # type: ignore[operator]
        x = qkv.clone().requires_grad_()
        out = function(x)
        (out * weight).sum().backward()
        results.append((out.detach().double(), x.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_sequences_do_not_see_each_other() -> None:
    qkv = torch.randn(20, 3, 2, 8)
    changed = qkv.clone()
    changed[13:] += 5
    for causal in (True, False):
        before, after = (attend(x, Packing((6, 7, 7)), causal) for x in (qkv, changed))
        assert torch.equal(before[:13], after[:13])
        assert not torch.allclose(before[13:], after[13:])


def test_bounds() -> None:
    packing = Packing((3, 1, 4))
    assert packing.cu_seqlens.tolist() == [0, 3, 4, 8]
    assert packing.cu_seqlens.dtype == torch.int32
    assert packing.last.tolist() == [2, 3, 7]
    assert packing.positions.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]


def test_buckets_hold_every_token_once_with_little_padding() -> None:
    lengths = tuple(torch.randint(5, 257, (400,), generator=torch.Generator().manual_seed(2)).tolist())
    packing = Packing(lengths)
    tokens = torch.cat([bucket.tokens for bucket in packing.buckets])
    assert torch.equal(tokens.sort().values, torch.arange(sum(lengths)))
    computed = sum(bucket.inside.numel() for bucket in packing.buckets)
    assert computed <= 1.3 * sum(lengths)
    assert len(packing.buckets) < 20


@pytest.mark.parametrize("lengths", [(), (3, 0, 2)])
def test_a_sequence_needs_a_token(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one token"):
        Packing(lengths)


def test_wrong_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="5 tokens, the tensor 6"):
        attend(torch.randn(6, 3, 2, 8), Packing((2, 3)))


@pytest.mark.parametrize("backend", ["xformers", "varlen"])
def test_fast_kernels_are_refused_where_they_do_not_exist(backend: str) -> None:
    with pytest.raises(ValueError, match="needs CUDA and half precision"):
        attend(torch.randn(5, 3, 2, 8, dtype=torch.bfloat16), Packing((2, 3)), backend=backend)


def test_backends_by_name() -> None:
    qkv, packing = torch.randn(5, 3, 2, 8), Packing((2, 3))
    assert resolve_backend("auto", qkv, packing) == "sdpa"
    with pytest.raises(ValueError, match="choose one of auto, sdpa, varlen, xformers"):
        resolve_backend("flash", qkv, packing)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("backend", ["varlen", "xformers"])
def test_fast_kernels_agree_with_sdpa(backend: str, causal: bool) -> None:
    if backend == "xformers":
        fmha = pytest.importorskip("xformers.ops").fmha
        if not fmha.cutlass.FwOp.is_available():
            pytest.skip("xformers' kernels are built for another CUDA than this machine's")
    qkv = torch.randn(117, 3, 4, 64, device="cuda", dtype=torch.bfloat16)
    packing = Packing((7, 64, 30, 16), "cuda")
    results = []
    for name in (backend, "sdpa"):
        x = qkv.clone().requires_grad_()
        out = attend(x, packing, causal, name)
        out.float().square().sum().backward()
        results.append((out.detach(), x.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
