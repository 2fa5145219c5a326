"""bf16 attention of ours on a CPU: no further from float64 than torch's own kernel, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from encoders import cpu_attention
from encoders.attention import Packing, attend, attend_from, dense


def masks(length: int) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([length, 1, length // 2, 2])
    random = torch.rand(4, 1, length, length, generator=generator) < 0.5
    return {
        "none": None,
        "causal": torch.ones(length, length, dtype=torch.bool).tril(),
        "lengths": (torch.arange(length) < lengths[:, None])[:, None, None, :],
        "each": random | torch.eye(length, dtype=torch.bool),
    }


def run(function: Callable[..., Tensor], qkv: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    x = qkv.clone().requires_grad_()
    out = function(*x.unbind(2))
    (out * weight.to(out.dtype)).sum().backward()
    assert x.grad is not None
    return out.detach().double(), x.grad.double()


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("kind", ["none", "causal", "lengths", "each"])
@pytest.mark.parametrize("sharpness", [1.0, 4.0])
def test_errors_are_those_of_torchs_kernel(kind: str, sharpness: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharp attention (scores in the tens, as in trained towers) is where scores in bf16 would be ten times worse."""
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(4, 60, 3, 3, 32, generator=generator)
    qkv[:, :, :2] *= sharpness
    qkv, weight = qkv.bfloat16(), torch.randn(4, 60, 3, 32, generator=generator)
    mask = masks(60)[kind]

    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):  # as in training
            return dense(q, k, v, None if kind == "causal" else mask, kind == "causal")

    monkeypatch.setattr(cpu_attention, "has_products", lambda: True)  # on any processor, slow or not
    assert cpu_attention.is_faster(*(x.transpose(1, 2) for x in qkv.unbind(2)))
    exact = run(flash, qkv.double(), weight)
    for mine, its, right in zip(run(ours, qkv, weight), run(flash, qkv, weight), exact, strict=True):
        assert distance(mine, right) < max(1.5 * distance(its, right), 4e-3)
        assert distance(mine, right) < 1e-2


def test_padding_has_no_gradient() -> None:
    qkv = torch.randn(4, 12, 3, 2, 16).bfloat16().requires_grad_()
    mask = masks(12)["lengths"]
    dense(*qkv.unbind(2), mask)[1:2].float().sum().backward()  # a sequence of one token
    assert qkv.grad is not None
    assert qkv.grad[1, :1].any() and not qkv.grad[1, 1:, 1:].any() and not qkv.grad[0].any()


def test_others_stay_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    short = torch.randn(1, 4, 2, 8)
    half, long = short.bfloat16(), torch.randn(1, 4, cpu_attention.LONGEST + 1, 8).bfloat16()
    assert not cpu_attention.is_faster(short, short, short)
    assert not cpu_attention.is_faster(half, half, short)
    assert not cpu_attention.is_faster(half, long, long)
    assert not cpu_attention.is_faster(half.to("meta"), half.to("meta"), half.to("meta"))
    monkeypatch.setattr(cpu_attention, "has_products", lambda: False)
    assert not cpu_attention.is_faster(half, half, half)


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    x = torch.randn(2, 4, 8).bfloat16().requires_grad_()
    (grad,) = torch.autograd.grad(cpu_attention.attention(x, x, x, None).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_the_backend_is_checked_here_too() -> None:
    with pytest.raises(ValueError, match="choose one of auto"):
        attend_from(torch.randn(2, 2, 8), torch.randn(5, 2, 2, 8), Packing((2, 3)), "nonsense")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [(7, 1, 30, 12, 12, 3, 64), (5, 5, 5), (1,)])
def test_one_query_of_each_sequence(lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    qkv = torch.randn(sum(lengths), 3, 2, 16, generator=torch.Generator().manual_seed(2)).to(dtype)
    packing = Packing(lengths)
    results = []
    for one in (True, False):
        x = qkv.clone().requires_grad_()
        if one:
            out = attend_from(x[packing.last, 0], x[:, 1:], packing)
        else:
            out = attend(x, packing)[packing.last]
        out.float().square().sum().backward()
        assert x.grad is not None
        results.append((out.detach().double(), x.grad.double()))
    for ours, theirs in zip(*results, strict=True):
        assert distance(ours, theirs) < (1e-6 if dtype == torch.float32 else 1e-2)
