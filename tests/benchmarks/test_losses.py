"""What benchmarks of losses time is the same loss, whichever way it is computed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks import local_contrast, tiled_loss


@pytest.mark.parametrize("way", ["loop", "careful", "reports"])
def test_ways_of_local_contrast(way: str) -> None:
    torch.manual_seed(0)
    cells, units = (F.normalize(torch.randn(n, dtype=torch.float64), dim=-1) for n in ((3, 7, 6), (9, 6)))
    found = [local_contrast.WAYS[name](cells, units, [2, 3, 4]) for name in ("ours", way)]
    assert found[0].shape == (3, 3)
    torch.testing.assert_close(*found)


def test_ways_of_infonce() -> None:
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(6, 5), dim=1) for _ in range(2))
    torch.testing.assert_close(*(tiled_loss.loss_of(way, images, texts, torch.tensor(9.0)) for way in ("ours", "clip")))
