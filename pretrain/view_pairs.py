"""What objectives that compare views of an image share: which pass they read, and the heads they compare in.

Legend: v views of each of B studies, n = v·B rows, C trunk width, D projection width.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from encoders.dual import DualEncoder
from pretrain import crops, views
from pretrain.objectives.base import Objective
from pretrain.passes import Pass, Rows
from pretrain.schema_objectives import PairOptions


class OfViews(Objective):
    """An objective whose options (PairOptions) say which views it compares, by the tower's features of each."""

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return (f"{(crops if self.options.views == 'crops' else views).NAME}.trunk",)

    def passes(self) -> Mapping[str, tuple[Pass, tuple[str, ...]]]:
        crop = self.options.views == "crops"
        return crops.offered(self.options.crops) if crop else views.offered(self.options)


def width_of(dual: DualEncoder, options: PairOptions, objective: str) -> int:
    """Width of the field `trunk`. Raises ConfigError where the tower has none, or does not take the small crops."""
    if options.views == "crops":
        crops.try_small(views.trunk_of(dual, objective), options.crops, objective)
    return views.width_of(dual, objective)


def compared(rows: Rows, head: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Projections of every pair of views that is compared: [B, D] each, of all ranks; the head's statistics (BatchNorm)
    are those of one view of all studies."""
    of_views = [head(view.float()) for view in crops.by_view(rows)]
    return [(of_views[s], of_views[t]) for s, t in crops.pairs_of_views(len(of_views))]


def projector(width: int, hidden: int, dim: int, layers: int) -> nn.Sequential:
    """A perceptron with BatchNorm and ReLU after every layer but the last."""
    inside: list[nn.Module] = []
    for number in range(layers - 1):
        inside += [
            nn.Linear(hidden if number else width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(),
        ]  # fmt: skip
    return nn.Sequential(*inside, nn.Linear(hidden if layers > 1 else width, dim))
