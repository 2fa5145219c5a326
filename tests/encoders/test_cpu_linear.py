"""Linear layers in bf16 on a CPU: no further from float64 than torch's own, and the gradients of each input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from encoders import cpu_attention, cpu_linear

# Of the kernel alone: what falls back to torch's own is tested on every processor.
kernel = pytest.mark.skipif(not cpu_attention.has_products(), reason="this processor has no products in bf16")


def inputs(rows: int = 37, width: int = 24, out: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(rows, width, generator=generator).requires_grad_(),
        torch.randn(out, width, generator=generator).requires_grad_(),
        torch.randn(out, generator=generator).requires_grad_(),
    )


def run(function: Callable[..., Tensor], *, autocast: bool) -> list[Tensor]:
    leaves = inputs()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = function(*leaves)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(weight.to(y.dtype))
    return [y.detach(), *(one.grad for one in leaves if one.grad is not None)]


@kernel
def test_errors_are_those_of_torchs_own() -> None:
    ours, theirs = run(cpu_linear.linear, autocast=True), run(F.linear, autocast=True)
    assert len(ours) == len(theirs) == 4 and ours[0].dtype == torch.bfloat16
    assert [one.dtype for one in ours[1:]] == [torch.float32] * 3
    exact = run(lambda *leaves: F.linear(*(one.double() for one in leaves)), autocast=False)
    for mine, its, true in zip(ours, theirs, exact, strict=True):
        error = (mine.double() - true).norm()
        assert 0 < error <= 1.05 * (its.double() - true).norm()


def test_other_precisions_are_torchs_own() -> None:
    for mine, its in zip(run(cpu_linear.linear, autocast=False), run(F.linear, autocast=False), strict=True):
        assert torch.equal(mine, its)


def test_a_processor_without_such_products_takes_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "has_products", lambda: False)
    for mine, its in zip(run(cpu_linear.linear, autocast=True), run(F.linear, autocast=True), strict=True):
        assert torch.equal(mine, its)


def test_precisions_are_mixed_as_torch_mixes_them() -> None:
    x, weight, bias = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        assert cpu_linear.linear(x.double(), weight.double(), bias.double()).dtype == torch.float64
    with pytest.raises(RuntimeError):
        cpu_linear.linear(x.bfloat16(), weight, bias)


@kernel
def test_frozen_weights_keep_no_activations_and_pass_the_gradient_on() -> None:
    found, saved = [], []
    for function in (cpu_linear.linear, F.linear):
        x, weight, bias = inputs()
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t),
            torch.autocast("cpu", torch.bfloat16),
        ):
            y = function(x, weight.detach(), bias.detach())
        y.float().square().sum().backward()
        assert x.grad is not None
        found.append(x.grad)
    assert (found[0] - found[1]).norm() < 0.01 * found[1].norm()
    assert x.shape not in saved


@kernel
def test_second_derivatives_are_refused() -> None:
    x, weight, bias = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        y = cpu_linear.linear(x, weight, bias)
    (grad,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
