"""Logits of labels from the image tower's features before the projection: linear, one a label.

Legend: B studies, C trunk width, K labels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from encoders.heads import register_head


@register_head("labels")
class LabelHead(nn.Linear):
    """Trunk features [B, C] (`encode_image(..., trunk=True).trunk_SC`) to logits [B, K] in the order of `labels`.

    Args:
        width: C. labels: their names.
    """

    def __init__(self, width: int, labels: Sequence[str]) -> None:
        super().__init__(width, len(labels))
        self.labels = tuple(labels)
        self.options = {"width": width, "labels": list(labels)}
