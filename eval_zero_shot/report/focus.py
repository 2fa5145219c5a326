"""Where the model looked: token-text similarity where tokens can be compared with texts, and what each token adds to a
score, against an ordinary study, for the other towers too.

Legend: B studies, N tokens (leading CLS and register tokens included), C width, D embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.attended import HEAD, has_head

if TYPE_CHECKING:
    from torch import Tensor


def mean_tokens(dual: Any, batches: Iterable[NDArray[np.float32]]) -> Tensor | None:
    """Mean tokens of some studies, place by place; None for towers that do not give their tokens."""
    import torch

    from eval_zero_shot.embedding import evaluating

    visual = getattr(getattr(dual, "clip", None), "visual", None)
    total: Tensor | None = None
    count = 0
    with evaluating(dual) as device:
        for images in batches:
            seen = _forward(visual, torch.from_numpy(images).to(device), lambda tokens: tokens)
            if seen is None:
                return None
            total = seen[0].sum(0) if total is None else total + seen[0].sum(0)
            count += len(images)
    return None if total is None else total / count


def contributions(
    dual: Any, image: NDArray[np.float32], direction_D: NDArray[np.float64], ordinary: Tensor
) -> NDArray[np.float64] | None:
    """Contribution of each token to the cosine of the study with `direction_D`, on the token grid ((D,) H, W).

    Gradient of the released score times (token - the same place in ordinary studies, `mean_tokens`). Where tokens are
    averaged this is the token-text similarity, up to one factor; where each place has its own weights (`o-grid`) it is
    that place's share; where a CLS token stands for the study, tokens are those that enter the last block, the last
    place where it reads the others. No head was trained for it. None for towers whose tokens have no grid.
    """
    import torch

    from eval_zero_shot.embedding import evaluating

    visual = getattr(getattr(dual, "clip", None), "visual", None)
    with evaluating(dual) as device, torch.enable_grad():
        x = torch.from_numpy(image)[None].to(device)
        grid = _grid(dual, visual, x)
        seen = None if grid is None else _forward(visual, x, lambda tokens: tokens.detach().requires_grad_())
        if grid is None or seen is None:
            return None
        tokens, study = seen
        score = torch.nn.functional.normalize(study, dim=-1)[0] @ torch.from_numpy(direction_D).to(study)
        (gradient,) = torch.autograd.grad(score, tokens)
    share = (gradient * (tokens - ordinary)).detach().double().cpu().numpy()[0]
    if share.ndim > 2:  # a convolutional trunk, of images or volumes
        return share.sum(-1 if _channels_last(visual) else 0)
    return share.sum(-1)[-math.prod(grid) :].reshape(grid)


def similarity(dual: Any, image: NDArray[np.float32], direction_D: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Cosine of each token with `direction_D` (a text, or a text minus another), on the token grid ((D,) H, W).

    A token's embedding is that of a study made of this token alone. It is defined where the tower pools its tokens the
    same way wherever they lie (mean, maximum, attention without places). None for the others: a tower with weights of
    each place, or whose score is read from a CLS token, never compared its patch tokens with a text.
    """
    import torch

    from eval_zero_shot.embedding import evaluating

    visual = getattr(getattr(dual, "clip", None), "visual", None)
    trunk = getattr(visual, "trunk", None)
    if visual is None or trunk is None or _reads_cls(trunk) or _channels_last(visual):
        return None

    def pooled(tokens: Tensor) -> Tensor:
        return torch.nn.functional.normalize(visual.head(trunk.forward_head(tokens, pre_logits=True)).double(), dim=-1)

    with evaluating(dual) as device:
        x = torch.from_numpy(image)[None].to(device)
        grid = _grid(dual, visual, x)
        if grid is None:
            return None
        tokens = trunk.forward_features(x)
        grid_of_one = (1,) * (tokens.ndim - 2)
        if tokens.ndim > 3:
            cells, moved = tokens[0].flatten(1).T.reshape(-1, tokens.shape[1], *grid_of_one), tokens.roll(1, -1)
        else:
            n = math.prod(grid)
            first = tokens[:, : tokens.shape[1] - n]
            cells = torch.cat([first.expand(n, -1, -1), tokens[0, -n:, None]], 1)
            moved = torch.cat([first, tokens[:, -n:].roll(1, 1)], 1)
        if not torch.allclose(pooled(tokens), pooled(moved), atol=1e-4):
            return None
        cosine = pooled(cells) @ torch.from_numpy(direction_D).to(device)
    return cosine.cpu().numpy().reshape(grid)


def attention(
    loaded: Any, image: NDArray[np.float32], text_D: NDArray[np.float64], minus_D: NDArray[np.float64] | None = None
) -> NDArray[np.float64] | None:
    """Attention of a text on each token, on the token grid ((D,) H, W), by the released head `attended`
    (encoders.heads.attended): it was trained to find where an image shows a text. With another text, what the first
    has more of than it: the head knows texts and no differences between them. None without a head."""
    import torch

    from eval_zero_shot.embedding import evaluating

    if not has_head(loaded):
        return None
    head = loaded.heads[HEAD]
    with evaluating(loaded.model) as device:
        seen = loaded.model.encode_image(torch.from_numpy(image)[None].to(device), tokens=True)
        texts = torch.from_numpy(np.stack([text_D] if minus_D is None else [text_D, minus_D])).float().to(device)
        texts = torch.nn.functional.normalize(texts, dim=-1)
        maps_UN = head.maps(seen.tokens_SND.float(), texts)[0].double().cpu().numpy()
    return (maps_UN[0] if minus_D is None else maps_UN[0] - maps_UN[1]).reshape(seen.grid)


def _forward(visual: Any, x: Tensor, leaf: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor] | None:
    """(tokens [B, N, C], or of a convolution's form, embeddings [B, D]); the embeddings come from `leaf(tokens)`."""
    trunk = getattr(visual, "trunk", None)
    if trunk is not None and not _reads_cls(trunk):
        tokens = leaf(trunk.forward_features(x))
        return tokens, visual.head(trunk.forward_head(tokens, pre_logits=True))
    block = _last_block(visual)
    if block is None:
        return None
    kept: list[Tensor] = []

    def swap(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        kept.append(leaf(given[0]))
        return (kept[0], *given[1:])

    handle = block.register_forward_pre_hook(swap)
    try:
        study = visual(x)
    finally:
        handle.remove()
    study = study[0] if isinstance(study, tuple) else study
    return (kept[0], study) if kept[0].ndim == 3 and len(kept[0]) == len(x) else None


def _reads_cls(trunk: Any) -> bool:
    return getattr(trunk, "global_pool", None) == "token" or getattr(getattr(trunk, "tag", None), "pool", None) == "cls"


def _last_block(visual: Any) -> Any | None:
    """Of timm's transformers, ours and open_clip's own."""
    for owner, name in (("trunk", "blocks"), ("transformer", "resblocks")):
        blocks = getattr(getattr(visual, owner, None), name, None)
        if blocks is not None and len(blocks):
            return blocks[-1]
    return None


def _grid(dual: Any, visual: Any, x: Tensor) -> tuple[int, ...] | None:
    """Cells of the token grid, or None where the tower has none that is known."""
    if hasattr(visual, "trunk"):
        try:
            return dual.encode_image(x, tokens=True).grid
        except (AttributeError, ValueError):  # a trunk without the attributes that say where its tokens lie
            return None
    grid = getattr(visual, "grid_size", None)
    return tuple(grid) if isinstance(grid, tuple | list) else None


def _channels_last(visual: Any) -> bool:
    return getattr(getattr(visual, "trunk", None), "output_fmt", "NCHW") == "NHWC"
