"""A linear layer on an image tower's pooled features."""

from __future__ import annotations

from torch import Tensor, nn

from encoders.heads import register_head


@register_head("linear")
class LinearHead(nn.Module):
    """Logits [S, outputs] of the features before the projection [S, features] (`ImageFeatures.trunk_SC`)."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.options = {"features": features, "outputs": outputs}
        self.layer = nn.Linear(features, outputs)

    def forward(self, trunk_SC: Tensor) -> Tensor:
        return self.layer(trunk_SC)
