"""A training step of a packaged recipe as it ships: `python -m benchmarks.recipe_step ct3d_base merlin --device cuda`.

Towers, objectives, batch, `train.chunk`, token dropout and optimisers are the recipe's own (pretrain.module does the
step); texts are those of phantoms, images are noise of the recipe's grid that lies in memory already, so reading is not
in the time. Weights are random. Operations are those of benchmarks.model_sizes (towers, decoder and teacher; other
objectives are not counted), so the share of the peak is of useful work.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from benchmarks.machine import machine
from benchmarks.model_sizes import EPOCHS, SCANS, measure
from benchmarks.training_step import share_of_peak

if TYPE_CHECKING:
    from pretrain.module import Pretraining
    from pretrain.schema import Recipe

ELSEWHERE = (  # what need not be here
    "data.source={kind: phantom, studies: 1400, seed: 0}", "data.workers=0", "evaluate.task=null",
    "model.image.inflate=null",
)  # fmt: skip


def lone_module(recipe: Recipe, data: Any, device: str) -> Pretraining:
    """The module of a recipe without a trainer: one rank, and nobody to wait for."""
    import torch

    from pretrain import build
    from pretrain.module import Pretraining
    from pretrain.objectives.base import Surroundings

    class Alone(Pretraining):
        trainer = SimpleNamespace(strategy=None)  # type: ignore[assignment]
        own_optimizers: list[torch.optim.Optimizer]

        def manual_backward(self, loss: torch.Tensor, *args: Any, **how: Any) -> None:
            loss.backward(*args, **how)

        @property
        def all_optimizers(self) -> list[torch.optim.Optimizer]:
            return self.own_optimizers

    torch.manual_seed(0)
    dual, objectives = build.build_model(recipe), build.build_objectives(recipe)
    around = Surroundings(dual, data.shards.label_names, data.train_labels, data.train_captions, objectives)
    for objective in objectives:
        objective.attach(around)
    module = Alone(recipe, dual, objectives).train().to(device)
    module.own_optimizers = module.configure_optimizers()
    return module


def noise_batch(recipe: Recipe, data: Any, device: str) -> Any:
    """The recipe's first batch of phantoms, with noise for their images, as the stream hands them to this device."""
    import torch

    from data_shards.geometry import View
    from pretrain import build

    small = replace(data, train_view=View("resize", (4, 4, 4)))
    tokenize, cuda = build.tokenizer(recipe), device == "cuda"
    batch = next(iter(build.training_stream(recipe, small, tokenize, 0, 1, 0, labels=True, to_gpu=cuda))).to(device)
    like, reach = batch.images_BCDHW, 1 if batch.windows is None else 1000
    images = torch.empty(*like.shape[:2], *recipe.data.train_view.size, dtype=like.dtype, device=device)
    return replace(batch, images_BCDHW=images.uniform_(-reach, reach))


def main(argv: Sequence[str] | None = None) -> int:
    summary = (__doc__ or "").partition("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipe_step", description=summary)
    add = parser.add_argument
    add("recipes", nargs="+", help="names of packaged recipes for volumes, or files")
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--repeats", type=int, default=5, help="steps that are counted, after two that are not (default: 5)")
    add("--cache", help="folder of the phantoms (default: the recipe's)")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="keys of all these recipes (after them) to change")
    args = parser.parse_args(argv)

    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here: --device cpu, or check nvidia-smi and that this torch is a CUDA build")
    told = [*ELSEWHERE, *([f"data.cache={args.cache}"] if args.cache else ()), *args.set]
    recipes = {name: _recipe(parser, name, told) for name in args.recipes}

    where = f"{torch.cuda.get_device_name()}, torch {torch.__version__}" if args.device == "cuda" else machine()
    print(f"{where}, bf16 autocast, median of {args.repeats}\n")
    print("| recipe | batch, in parts of | s a step | TFLOP a study | TFLOP/s | of the peak | GiB at most |", end="")
    print(f" {EPOCHS} epochs of CT-RATE |\n|---|---|---:|---:|---:|---:|---:|---:|", flush=True)
    for name, recipe in recipes.items():
        print(_row(name, recipe, told, args.device, args.repeats, where), flush=True)
        gc.collect()  # a module is in circles
        torch.cuda.empty_cache()
    return 0


def _recipe(parser: argparse.ArgumentParser, name: str, told: list[str]) -> Recipe:
    from benchmarks.model_sizes import volume_recipes
    from pretrain.config import load_recipe
    from pretrain.errors import ConfigError

    try:
        recipe = load_recipe(name, told)
        if recipe.data.geometry.kind == "volume":
            return recipe
        problem = f"{name} is a recipe for images"
    except ConfigError as error:
        problem = str(error)
    packaged = ", ".join(each.removesuffix(".yaml") for each in volume_recipes())
    parser.error(f"{problem}\npackaged recipes for volumes: {packaged}")


def _row(name: str, recipe: Recipe, told: list[str], device: str, repeats: int, where: str) -> str:
    import torch

    from pretrain import studies

    data = studies.build_data(recipe)
    cuda, seconds = device == "cuda", list[float]()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    size = recipe.train.batch_size
    try:
        batch = noise_batch(recipe, data, device)
        module = lone_module(recipe, data, device)
        for turn in range(repeats + 2):
            begin = time.perf_counter()
            with torch.autocast(device, torch.bfloat16):
                module.training_step(batch, turn)
            if cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
            print(f"  {name}: {seconds[-1]:.2f} s, loss {module.logged['loss']:.3f}", file=sys.stderr, flush=True)
        step = statistics.median(seconds[2:])
        flop = measure(name, told).training
        rate = flop * len(batch) / step
        found = [
            f"{step:.3f}", f"{flop / 1e12:.3g}", f"{rate / 1e12:.3g}", share_of_peak(rate, where),
            f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if cuda else "–",
            f"{SCANS * EPOCHS / len(batch) * step / 3600:.2f} h",
        ]  # fmt: skip
    except torch.OutOfMemoryError as error:
        found = [f"out of memory ({str(error).partition('.')[0]})", *"–––––"]
    parts = recipe.train.chunk or size
    return f"| `{name.removesuffix('.yaml')}` | {size}, {parts} | " + " | ".join(found) + " |"


if __name__ == "__main__":
    sys.exit(main())
