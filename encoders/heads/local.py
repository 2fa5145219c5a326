"""Cells of an image and units of text in a space of their own, where each cell has a cosine with each unit: heat maps.

Legend: S images, N cells, C their channels, U units, T their width, D width of the space.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from encoders.heads import register_head


@register_head("local_projections")
class LocalProjections(nn.Module):
    """Linear maps of cells and units into one space (GLoRIA, ICCV 2021, §3.2).

    Args:
        cell_width, unit_width: C and T. width: D.
    """

    def __init__(self, cell_width: int, unit_width: int, width: int) -> None:
        super().__init__()
        self.options = {"cell_width": cell_width, "unit_width": unit_width, "width": width}
        self.cell = nn.Linear(cell_width, width)
        self.unit = nn.Linear(unit_width, width)

    def cells(self, cells_SNC: Tensor) -> Tensor:
        """Unit length, [S, N, D]."""
        return F.normalize(self.cell(cells_SNC.float()), dim=-1)

    def units(self, units_UT: Tensor) -> Tensor:
        """Unit length, [U, D]."""
        return F.normalize(self.unit(units_UT.float()), dim=-1)

    def forward(self, cells_SNC: Tensor, units_UT: Tensor) -> Tensor:
        """Cosine of every unit with every cell, a heat map over an image's cells a unit: [S, U, N]."""
        return self.units(units_UT) @ self.cells(cells_SNC).transpose(1, 2)
