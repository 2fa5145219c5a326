"""A training step at HLIP's grid: our tower against a plain ViT. `python -m benchmarks.training_step`.

112 x 336 x 336 voxels, patches of 8 x 24 x 24, 2,744 tokens, one optimiser step (forward, backward, fused AdamW) on a
batch of noise, bf16 autocast:

  plain     timm's own Block, as many and as wide, full attention over all tokens, learned positions, CLS; with our
            patch embedding, a matrix product, so that blocks are compared
  conv      the same with a strided convolution for it, as timm and others have (only where asked for)
  ours      `voxvit_SIZE…a-slice3`: attention inside a slice (196 tokens), every third block over all of them
  ours 50%  the same with token dropout 0.5
  merlin    the inflated ResNet-152 on Merlin's own grid, one window of 160 x 224 x 224, recomputing as its recipe does
            (only where asked for: close to a minute a step on two cores)

Runs are interleaved and their order rotates, so that a machine that slows down slows all of them; medians are compared.
Operations are torch's count (FlopCounterMode) on the meta device. Memory is what autograd saves for the backward pass,
each storage once, parameters left out, in a run of its own: on CUDA the allocator's peak is printed beside it. On CUDA,
achieved TFLOP/s, their share of the dense bf16 peak, and attention by backend.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.machine import machine

if TYPE_CHECKING:
    from torch import Tensor, nn

MERLIN = "i3d_resnet152.i-160x224x224_c-1"
TAG = "p-8x24x24_i-112x336x336_c-{channels}_a-slice3"
CHOICES = ("plain", "conv", "ours", "ours 50%", "merlin")
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "4090": 165e12}  # dense bf16, data sheets


def plain_vit(size: str, tag: Any, convolution: bool = False) -> nn.Module:
    """Patch embedding, CLS, learned positions, timm's blocks, norm: the textbook's ViT over all tokens."""
    import torch
    from timm.models.vision_transformer import Block
    from torch import nn

    from encoders.stem import PatchStem
    from encoders.tag import SIZES

    width, depth, heads = SIZES[size]

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            stem = nn.Conv3d(tag.channels, width, tag.patch, tag.patch)
            self.patch_embed = stem if convolution else PatchStem(tag.channels, width, tag.patch)
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
            places = tag.tokens[0] * tag.tokens[1] * tag.tokens[2]
            self.pos_embed = nn.Parameter(torch.randn(1, 1 + places, width) * 0.02)
            blocks = depth if tag.layers is None else tag.layers
            self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(blocks)))
            self.norm = nn.LayerNorm(width, 1e-6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patch_embed(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.cls_token.expand(len(x), -1, -1).to(x.dtype), x], 1) + self.pos_embed
            return self.norm(self.blocks(x))[:, 0]

    return Plain()


def our_tower(size: str, tag: Any, dropout: float) -> nn.Module:
    from encoders.voxvit import VoxViT

    return VoxViT(tag, token_dropout=dropout).train()


def merlin_tower() -> nn.Module:
    from encoders.resnet3d import ResNet3D
    from encoders.tag_resnet3d import parse_resnet_tag

    model = ResNet3D(parse_resnet_tag(MERLIN))
    model.set_grad_checkpointing()
    return model


class Contestant(NamedTuple):
    """How a model is made, and the channels and voxels that it sees of one scan."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


def contestants(size: str, tag: Any) -> dict[str, Contestant]:
    grid = (tag.channels, *tag.grid)
    return {
        "plain": Contestant(lambda: plain_vit(size, tag), grid),
        "conv": Contestant(lambda: plain_vit(size, tag, convolution=True), grid),
        "ours": Contestant(lambda: our_tower(size, tag, 0.0), grid),
        "ours 50%": Contestant(lambda: our_tower(size, tag, 0.5), grid),
        "merlin": Contestant(merlin_tower, (1, 160, 224, 224)),
    }


class Seconds(NamedTuple):
    """Of the wall clock, and of all threads of this process, which a busy neighbour changes less."""

    wall: float
    cpu: float


class Step:
    """Forward, backward and optimiser of one model."""

    def __init__(self, model: nn.Module, device: str) -> None:
        import torch

        self.model, self.device = model.to(device).train(), device
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def loss(self, x: Tensor) -> Tensor:
        import torch

        with torch.autocast(self.device, torch.bfloat16):
            return self.model(x).float().square().mean()

    def __call__(self, x: Tensor) -> None:
        self.loss(x).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def seconds(self, x: Tensor) -> Seconds:
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter(), time.process_time()
        self(x)
        if self.device == "cuda":
            torch.cuda.synchronize()
        return Seconds(time.perf_counter() - begin[0], time.process_time() - begin[1])

    def saved_bytes(self, x: Tensor) -> int:
        """Of tensors that the graph holds when the forward pass is done."""
        from torch.autograd.graph import saved_tensors_hooks

        own = {p.untyped_storage().data_ptr() for p in self.model.parameters()} | {x.untyped_storage().data_ptr()}
        saved: dict[int, int] = {}
        kept: list[Tensor] = []  # storages live on, or an address could be given out twice

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
                kept.append(tensor)
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            self.loss(x)
        kept.clear()
        gc.collect()  # a packed tensor holds the graph that holds it
        return sum(saved.values())


def operations(make: Callable[[], nn.Module], shape: Sequence[int]) -> float:
    """FLOP of forward and backward, counted on the meta device."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model, x = make().train(), torch.empty(*shape)
    with FlopCounterMode(display=False) as counter:
        model(x).square().mean().backward()
    return float(counter.get_total_flops())


def interleaved(steps: dict[str, Step], inputs: dict[str, Tensor], repeats: int) -> dict[str, Seconds]:
    """Median seconds of each, after one step that is not counted."""
    names = list(steps)
    found: dict[str, list[Seconds]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for i in range(len(names)):
            name = names[(i + turn) % len(names)]
            taken = steps[name].seconds(inputs[name])
            if turn:
                found[name].append(taken)
            print(
                f"  {name}: {taken.wall:.2f} s, {taken.cpu:.2f} s of CPU{'' if turn else ' (not counted)'}",
                file=sys.stderr,
                flush=True,
            )
    return {name: Seconds(*(statistics.median(c) for c in zip(*each, strict=True))) for name, each in found.items()}


def attention_backends(tag: Any, size: str, batch: int) -> list[str]:
    """Forward and backward of one layer's attention, by slice and over all tokens, in each backend. CUDA only."""
    import torch

    from encoders.attention import BACKENDS, Packing, attend
    from encoders.tag import SIZES

    width, _, heads = SIZES[size]
    lines = ["", "| attention | " + " | ".join(BACKENDS[1:]) + " |", "|---" * len(BACKENDS) + "|"]
    slices, places = tag.tokens[0], tag.tokens[1] * tag.tokens[2]
    for name, groups, length in (("by slice", batch * slices, places + 1), ("full", batch, slices * places + 1)):
        packing, row = Packing.uniform(groups, length, "cuda"), []
        for backend in BACKENDS[1:]:
            try:
                times = []
                for _ in range(20):
                    qkv = torch.randn(groups * length, 3, heads, width // heads, device="cuda", dtype=torch.bfloat16)
                    qkv.requires_grad_()
                    torch.cuda.synchronize()
                    begin = time.perf_counter()
                    attend(qkv, packing, backend=backend).sum().backward()
                    torch.cuda.synchronize()
                    times.append(time.perf_counter() - begin)
                row.append(f"{statistics.median(times[5:]) * 1e3:.2f} ms")
            except (ImportError, RuntimeError, ValueError) as error:
                row.append(f"– ({type(error).__name__})")
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_step", description="A training step at HLIP's grid, ours and a plain ViT."
    )
    add = parser.add_argument
    add("--size", default="base", choices=("tiny", "small", "base", "large"))
    add("--tag", help=f"geometry (default: {TAG.format(channels='N')})")
    add("--channels", type=int, default=3)
    add("--batch", type=int, default=1)
    add("--repeats", type=int, default=5)
    add("--threads", type=int, default=2)
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--models", nargs="+", default=["plain", "ours", "ours 50%"], choices=CHOICES)
    args = parser.parse_args(argv)

    import torch

    from encoders.tag import parse_tag

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tag = parse_tag(f"voxvit_{args.size}." + (args.tag or TAG.format(channels=args.channels)))
    chosen = {name: it for name, it in contestants(args.size, tag).items() if name in {"plain", *args.models}}
    inputs = {name: torch.randn(args.batch, *it.shape, device=args.device) for name, it in chosen.items()}
    steps = {name: Step(it.make(), args.device) for name, it in chosen.items()}
    saved = {name: step.saved_bytes(inputs[name]) for name, step in steps.items()}
    seconds = interleaved(steps, inputs, args.repeats)
    flop = {name: operations(it.make, (args.batch, *it.shape)) for name, it in chosen.items()}

    cuda = args.device == "cuda"
    where = torch.cuda.get_device_name() if cuda else machine()
    print(f"{tag.name}, batch {args.batch}, bf16 autocast, {args.repeats} rounds; {where}\n")
    print(
        "| model | s a step | plain ÷ it | CPU s | plain ÷ it | TFLOP a step | TFLOP/s | saved for backward, GiB |"
        + _head(cuda)
    )
    print("|---|---|---|---|---|---|---|---|" + ("---|---|" if cuda else ""))
    for name in chosen:
        own, base = seconds[name], seconds["plain"]
        rate = flop[name] / own.wall
        row = [
            name, f"{own.wall:.3f}", f"{base.wall / own.wall:.2f}", f"{own.cpu:.3f}", f"{base.cpu / own.cpu:.2f}",
            f"{flop[name] / 1e12:.2f}", f"{rate / 1e12:.2f}", f"{saved[name] / 2**30:.2f}",
        ]  # fmt: skip
        if cuda:
            row += [share_of_peak(rate, where), f"{_peak(steps[name], inputs[name]) / 2**30:.2f}"]
        print("| " + " | ".join(row) + " |")
    if cuda:
        print("\n".join(attention_backends(tag, args.size, args.batch)))
    return 0


def _head(cuda: bool) -> str:
    return " share of peak | allocated, GiB |" if cuda else ""


def share_of_peak(rate: float, name: str) -> str:
    """Of the dense bf16 peak of a GPU of that name."""
    peak = next((value for key, value in PEAKS.items() if key in name), None)
    return f"{100 * rate / peak:.0f} %" if peak else "peak unknown"


def _peak(step: Step, x: Tensor) -> int:
    import torch

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(x)
    return int(torch.cuda.max_memory_allocated()) - before


if __name__ == "__main__":
    sys.exit(main())
