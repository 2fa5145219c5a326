"""Gradients of convolutions over few planes, in bf16 on a CPU."""

from __future__ import annotations

import pytest
import timm
import torch

import encoders  # noqa: F401  # registers the tower
from encoders.conv3d import Conv3d


def _gradient(conv: torch.nn.Module, x: torch.Tensor, low: bool, name: str = "weight") -> torch.Tensor:
    conv.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        conv(x).float().square().sum().backward()
    weight = conv.get_parameter(name)
    assert weight.grad is not None
    return weight.grad.clone()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "size"),
    [(3, (1, 5, 5)), (3, (2, 5, 5)), (3, (3, 5, 5)), (5, (2, 5, 5)), (5, (4, 5, 5)), (7, (4, 5, 5)), (7, (8, 2, 2))],
)
def test_small_maps_have_the_gradient_of_fp32(kernel: int, size: tuple[int, int, int], bias: bool) -> None:
    """torch's own is off by hundreds of times at 2 planes under a kernel of 3 (measured on AVX-512)."""
    torch.manual_seed(0)
    conv = Conv3d(16, 32, kernel, padding=kernel // 2, bias=bias)
    x = torch.randn(4, 16, *size)
    with torch.no_grad():  # exact in bf16, so that the two differ by what they sum alone
        for one in (x, *conv.parameters()):
            one.copy_(one.bfloat16().float())
    right = _gradient(conv, x, low=False)
    for _ in range(3):  # what lies beside the memory differs from time to time
        torch.testing.assert_close(_gradient(conv, x, low=True), right, rtol=0.02, atol=0.02 * float(right.abs().max()))


def test_output_has_the_type_that_autocast_asks_for() -> None:
    conv, x = Conv3d(2, 3, 3, padding=1), torch.randn(1, 2, 2, 4, 4)
    assert conv(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
    whole = conv.bfloat16()
    assert whole(x.bfloat16()).dtype == torch.bfloat16


def test_a_resnet_on_a_small_view_has_the_gradient_of_fp32() -> None:
    """The last stage of a ResNet sees two planes of a view of 32."""
    torch.manual_seed(0)
    tower = timm.create_model("i3d_resnet26.i-32x32x32_c-1_w-16_n-group", num_classes=0)
    torch.nn.init.ones_(tower.get_parameter("layer4.1.bn3.weight"))  # or the block's branch would have no gradient
    x = torch.randn(4, 1, 32, 32, 32)
    right, found = (_gradient(tower, x, low, "layer4.1.conv2.weight") for low in (False, True))
    assert float((found - right).norm() / right.norm()) < 0.25
