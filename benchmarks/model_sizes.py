"""Parameters, operations and projected hours of every recipe for volumes: `python -m benchmarks.model_sizes`.

From the real modules on the meta device, so nothing is computed: parameters are counted, operations by torch's
FlopCounterMode (a multiplication and an addition are two). `forward` is what a user of the release pays: the image
tower over one whole volume. `training` is what a step pays for one study: both towers forward and backward with the
recipe's token dropout, TOKENS text tokens, the forward pass that `train.chunk` repeats of all parts but the last, what
checkpointing repeats, the decoder of masked_image and the teacher of distillation. Other objectives are not counted,
and neither is reading.

Hours are EPOCHS epochs over CT-RATE's training scans at an assumed share of the peak; the arithmetic is printed. On
an H200 `ct3d_base` reached 24 %, `ct3d_large` 32 % (benchmarks.recipe_step).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

TOKENS = 600  # of a study: its report and a dozen sentences
SCANS, EPOCHS = 24_128, 20  # CT-RATE, part train
PEAK = 989e12  # FLOP/s of an H100 SXM, dense bf16, data sheet
# TFLOP of one forward pass that follow from others' released code, and what they are of. None of them published one.
DERIVED = {
    "merlin": "1.33 (Merlin, I3D-152 at 224x224x160, its channel three times)",
    "ct3d_base": "0.57 (HLIP, ViT-B by slices, without its patch embedding; 0.74 with full attention)",
}


@dataclass(frozen=True)
class Sizes:
    """Parameters of both towers, and FLOP a study."""

    tower: str
    image: int
    text: int
    forward: float
    training: float


def flop(call: Callable[[], Any]) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def volume_recipes() -> list[str]:
    """Packaged recipes for volumes."""
    import yaml

    from pretrain.config import find, packaged

    kinds = {name: yaml.safe_load(find(name)[0])["data"]["geometry"]["kind"] for name in packaged()}
    return [name for name, kind in kinds.items() if kind == "volume"]


def measure(name: str, overrides: Sequence[str] = ()) -> Sizes:
    """Of a recipe."""
    import torch

    from encoders.dual import build_dual
    from encoders.stem import Standardise
    from pretrain.build import model_cfg
    from pretrain.config import load_recipe

    elsewhere = ["data.source={kind: phantom, studies: 40, seed: 0}", "evaluate.task=null"]  # neither need be here
    recipe = load_recipe(name, [*elsewhere, *overrides])
    with torch.device("meta"):
        dual = build_dual(model_cfg(recipe))
        geometry: Any = recipe.data.geometry
        channels = geometry.scans_per_study * len(geometry.windows)
        image = torch.empty(1, channels, *recipe.data.eval_view.size)
        tokens = torch.zeros(TOKENS, dtype=torch.long)
    for module in dual.modules():
        if isinstance(module, Standardise):
            module.known = torch.tensor(True)  # it would look at a first batch
    visual, lengths = dual.clip.visual, (TOKENS // 3,) * 3
    dual.eval()
    with torch.no_grad():
        forward = flop(lambda: visual(image))
        plain_text = flop(lambda: dual.encode_units(tokens, lengths))
    dual.train()
    dual.clip.set_grad_checkpointing(recipe.model.image.grad_checkpointing)
    if recipe.model.image.token_dropout:
        visual.trunk.token_dropout = recipe.model.image.token_dropout
    with torch.no_grad():
        again = flop(lambda: visual(image)) + plain_text
    training = flop(lambda: visual(image).sum().backward())
    training += flop(lambda: dual.encode_units(tokens, lengths).sum().backward())
    if recipe.train.chunk is not None:
        parts = -(-recipe.train.batch_size // recipe.train.chunk)
        training += again * (parts - 1) / parts  # the last one goes through once
    names = {objective.name for objective in recipe.objectives}
    if "distillation" in names:
        training += forward
    if "masked_image" in names:
        training += _decoder(recipe, dual, image)
    return Sizes(
        recipe.model.image.name,
        sum(p.numel() for p in visual.parameters()),
        sum(p.numel() for p in dual.clip.text.parameters()),
        forward,
        training,
    )


def _decoder(recipe: Any, dual: Any, image: Any) -> float:
    """Forward and backward of masked_image's decoder."""
    import torch

    from pretrain.build import build_objectives
    from pretrain.objectives.base import Surroundings
    from pretrain.objectives.masked_image import MaskedImage

    one = next(o for o in build_objectives(recipe) if isinstance(o, MaskedImage))
    grid = dual.clip.visual.trunk.token_grid(image.shape[2:])
    with torch.device("meta"):
        one.attach(Surroundings(dual, ()))
        found = dual.encode_image(image, tokens=True, kept=True)
        places = grid[0] * grid[1] * grid[2]
        dropped = torch.zeros(1, places - found.kept_SN.shape[1], dtype=torch.long)
    tokens = found.tokens_SND.detach().requires_grad_()
    return flop(lambda: one.decoder(tokens, found.kept_SN, dropped, grid).sum().backward())


def hours(training: float, share: float, gpus: int) -> float:
    """Of EPOCHS epochs at a share of the peak."""
    return SCANS * EPOCHS * training / (PEAK * share * gpus) / 3600


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.model_sizes", description="Parameters, operations and hours of recipes for volumes."
    )
    add = parser.add_argument
    add("recipes", nargs="*", help="names or files (default: every packaged recipe for volumes)")
    add("--share", type=float, default=0.35, help="of the peak that training reaches, assumed (default: 0.35)")
    args = parser.parse_args(argv)
    names = args.recipes or volume_recipes()
    print(
        f"Hours: {EPOCHS} epochs of {SCANS:,} scans, H100 at {args.share:.0%} of {PEAK / 1e12:.0f} TFLOP/s (assumed)\n"
    )
    print("| recipe | image tower | image M | text M | forward TFLOP | theirs (derived) | training | 1 H100 | 8 H100 |")
    print("|---|---|---|---|---|---|---|---|---|")
    every: dict[str, Sizes] = {}
    for name in names:
        every[name] = found = measure(name)
        stem = name.removesuffix(".yaml")
        row = [
            stem, found.tower, f"{found.image / 1e6:.1f}", f"{found.text / 1e6:.1f}", f"{found.forward / 1e12:.3g}",
            DERIVED.get(stem, "–"), f"{found.training / 1e12:.3g}",
            *(f"{hours(found.training, args.share, gpus):.2f} h" for gpus in (1, 8)),
        ]  # fmt: skip
        print("| " + " | ".join(row) + " |", flush=True)
    name, costly = max(every.items(), key=lambda item: item[1].training)
    print(
        f"\n{name}: {SCANS:,} scans x {EPOCHS} epochs x {costly.training / 1e12:.3g} TFLOP = "
        f"{SCANS * EPOCHS * costly.training / 1e18:.2f} EFLOP;\n"
        f"/ ({PEAK / 1e12:.0f} TFLOP/s x {args.share:.0%}) / 3600 s = {hours(costly.training, args.share, 1):.2f} h, "
        "on 8 an eighth of it. Reading is not counted."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
