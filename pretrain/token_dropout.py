"""How many patch tokens a step drops: a share of them, and none in a short finish.

A tower that has only ever seen half of its tokens is asked about all of them when it is used. FLIP (arXiv 2212.00794,
§3.2, "unmasked tuning") closes the gap with a short epoch on whole images at the end.
"""

from __future__ import annotations

from encoders.dual import DualEncoder
from pretrain.schema import Recipe


def token_dropout(recipe: Recipe, step: int) -> float:
    """Share of tokens dropped in step `step`: 0 in the last `token_dropout_finish` of the run. It depends on the step
    alone, so a resumed run drops as the one that was never stopped."""
    image, steps = recipe.model.image, recipe.train.steps
    return 0.0 if step >= steps - round(image.token_dropout_finish * steps) else image.token_dropout


def set_token_dropout(dual: DualEncoder, recipe: Recipe, step: int) -> float | None:
    """Set it in the image tower; None where the recipe drops none."""
    if not recipe.model.image.token_dropout:
        return None
    share = token_dropout(recipe, step)
    dual.clip.visual.trunk.token_dropout = share
    return share
