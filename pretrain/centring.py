"""Centring: embeddings of a batch minus their mean, with the running mean kept in the released projection's bias.

Scans of one body region look alike, and so do sentences of reports to an untrained text tower: their embeddings start
as one large common vector plus a small part that differs, and a cosine sees only the former. Subtracting the mean of
the global batch before unit length is taken leaves the part that differs, and takes the common part out of the gradient
as well. On the phantoms nothing is learnt in hundreds of steps without it. Unlike BatchNorm it has no scale, and what
is released is a plain linear layer: the bias b of the projection follows -mean, so that users need no batch.

Legend: N rows (studies or text units), D embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from encoders.dual import DualEncoder

MOMENTUM = 0.9


def bias_of(dual: DualEncoder, tower: str) -> nn.Parameter:
    """The bias of the image or text projection.

    Raises:
        ValueError: the tower has none to keep the mean in.
    """
    if tower == "image":
        projection = getattr(getattr(dual.clip.visual, "head", None), "proj", None)
    else:
        projection = getattr(dual.clip.text, "text_projection", None)
    bias = getattr(projection, "bias", None)
    if not isinstance(bias, nn.Parameter):
        raise ValueError(f"the {tower} tower has no projection with a bias")
    return bias


def centred(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Rows minus their mean, and the mean [D] without gradient."""
    mean = x_ND.mean(0)
    return x_ND - mean, mean.detach()


@torch.no_grad()
def follow(bias: nn.Parameter, mean: Tensor, step: int) -> None:
    """Move `bias` toward minus the running mean. `mean` is that of features which already hold the bias."""
    share = max(1.0 - MOMENTUM, 1.0 / (step + 1))
    if type(bias.data) is not Tensor:  # FSDP2: a shard of it lies on each rank
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(bias.data, DTensor)
        mean = distribute_tensor(mean, bias.data.device_mesh, bias.data.placements)
    bias.sub_(share * mean.to(bias.dtype))
