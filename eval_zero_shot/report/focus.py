"""Where the model looked: what each token adds to a finding's score, against an ordinary study.

Legend: N tokens (a leading CLS token included), C width, D embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


def mean_tokens(dual: Any, batches: Iterable[NDArray[np.float32]]) -> Tensor | None:
    """Mean tokens of some studies, place by place; None for towers that do not give their tokens."""
    import torch

    from eval_zero_shot.embedding import evaluating

    trunk = getattr(dual.clip.visual, "trunk", None)
    if trunk is None:
        return None
    total: Tensor | None = None
    count = 0
    with evaluating(dual) as device:
        for images in batches:
            tokens = trunk.forward_features(torch.from_numpy(images).to(device))
            total = tokens.sum(0) if total is None else total + tokens.sum(0)
            count += len(images)
    return None if total is None else total / count


def contributions(
    dual: Any, image: NDArray[np.float32], direction_D: NDArray[np.float64], ordinary: Tensor
) -> NDArray[np.float64] | None:
    """Contribution of each token to the cosine of the study with `direction_D`, on the token grid ((D,) H, W).

    Gradient of the released score times (token - the same place in ordinary studies, `mean_tokens`). Where tokens are
    averaged this is the token-text similarity, up to one factor; where each place has its own weights (`o-grid`) it is
    that place's share. No head was trained for it. None for towers whose tokens have no grid.
    """
    import torch

    from eval_zero_shot.embedding import evaluating

    visual = dual.clip.visual
    with evaluating(dual) as device, torch.enable_grad():
        x = torch.from_numpy(image)[None].to(device)
        grid = dual.encode_image(x, tokens=True).grid
        tokens = visual.trunk.forward_features(x).detach().requires_grad_()
        study = visual.head(visual.trunk.forward_head(tokens, pre_logits=True))
        score = torch.nn.functional.normalize(study, dim=-1)[0] @ torch.from_numpy(direction_D).to(study)
        (gradient,) = torch.autograd.grad(score, tokens)
    if grid is None:
        return None
    share = (gradient * (tokens - ordinary)).detach().double().cpu().numpy()[0]
    if share.ndim == 3:  # a convolutional trunk: C, H, W
        return share.sum(0)
    return share.sum(-1)[-math.prod(grid) :].reshape(grid)
