"""What a step in parts costs: `train.chunk` against all studies at once. `python -m benchmarks.chunked_step`.

Forward and backward as training makes them (pretrain.module), on a batch of phantoms, bf16: the quickstart's recipe, or
with `--attended` a tower of six blocks with slice attention, token dropout 0.5, and objective `attended` beside. Whole
and in parts, interleaved, the order rotating; medians, and medians of the ratios within a turn. The second pass of all
parts but the last is the extra work: of n parts (n - 1) / n of a forward pass, a third of a step at most. Memory is
what autograd holds at any one time, at most, and what is kept between the two passes beside.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.machine import machine
from benchmarks.recipe_step import lone_module

if TYPE_CHECKING:
    from torch import Tensor

ATTENDED = (
    "model.image.name=voxvit_tiny.p-8x8x8_i-56x64x80_c-3_o-mean_a-slice3_l-6",
    "model.image.token_dropout=0.5",
    "objectives=[{name: contrastive, units: [sentence]}, {name: attended}]",
)


class Step:
    """Gradients of one batch by a recipe."""

    def __init__(self, words: list[str], batch: int) -> None:
        from pretrain import build, studies
        from pretrain.config import load_recipe

        told = [f"train.batch_size={batch}", f"data.source.studies={4 * batch}", *words]
        self.recipes = {
            chunk: load_recipe("ct3d.yaml", [*told, f"train.chunk={chunk or 'null'}"])
            for chunk in (0, *{batch // 2, batch // 4, batch // 8})
        }
        recipe = self.recipes[0]
        data = studies.build_data(recipe)
        self.module = lone_module(recipe, data, "cpu")
        self.batch = next(iter(build.training_stream(recipe, data, build.tokenizer(recipe), 0, 1, 0)))

    def __call__(self, chunk: int) -> float:
        """Seconds, in parts of `chunk` studies; 0 for all at once."""
        import torch

        from pretrain.token_dropout import set_token_dropout

        self.module.recipe = self.recipes[chunk]
        set_token_dropout(self.module.dual, self.module.recipe, 0)
        self.module.zero_grad(set_to_none=True)
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            self.module._backward(self.batch, last=True)
        return time.perf_counter() - begin

    def held(self, chunk: int) -> int:
        """Bytes that autograd saves, at most at any one time."""
        from torch.autograd.graph import saved_tensors_hooks

        now = most = 0

        class Held:
            def __init__(self, tensor: Tensor) -> None:
                nonlocal now, most
                self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
                now += self.size
                most = max(most, now)

            def __del__(self) -> None:
                nonlocal now
                now -= self.size

        with saved_tensors_hooks(Held, lambda held: held.tensor):
            self(chunk)
        return most


def main(argv: list[str] | None = None) -> int:
    summary = (__doc__ or "").partition("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chunked_step", description=summary)
    parser.add_argument("--batch", type=int, default=32, help="studies of a step (default: 32)")
    parser.add_argument("--repeats", type=int, default=7, help="turns that are counted (default: 7)")
    parser.add_argument("--attended", action="store_true", help="slice attention and objective attended")
    parser.add_argument("--cache", help="folder of the phantoms (default: the recipe's)")
    arguments = parser.parse_args(argv)
    words = [*(ATTENDED if arguments.attended else ()), *([f"data.cache={arguments.cache}"] if arguments.cache else ())]
    step = Step(words, arguments.batch)
    chunks = sorted(step.recipes)
    seconds: dict[int, list[float]] = {chunk: [] for chunk in chunks}
    for turn in range(arguments.repeats + 1):
        for i in range(len(chunks)):
            chunk = chunks[(i + turn) % len(chunks)]
            taken = step(chunk)
            if turn:
                seconds[chunk].append(taken)
            print(f"  {_said(chunk)}: {taken:.2f} s{'' if turn else ' (not counted)'}", file=sys.stderr, flush=True)
    print(f"{machine()}\n\n| parts of | s a step | ÷ all at once | autograd holds, MB |\n|---|---:|---:|---:|")
    for chunk in chunks:
        ratio = statistics.median(own / whole for own, whole in zip(seconds[chunk], seconds[0], strict=True))
        held = step.held(chunk) / 1e6
        print(f"| {_said(chunk)} | {statistics.median(seconds[chunk]):.2f} | {ratio:.2f} | {held:,.0f} |")
    return 0


def _said(chunk: int) -> str:
    return f"{chunk} studies" if chunk else "all at once"


if __name__ == "__main__":
    sys.exit(main())
