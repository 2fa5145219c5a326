"""InfoNCE by tiles against open_clip's ClipLoss: `python -m benchmarks.tiled_loss`.

Forward and backward at B = 16,384 and D = 512, fp32, every image with its own text, each run in a process of its own,
interleaved; medians. Memory is the rise of the resident set's peak over that with the inputs allocated, the gradients
of the inputs (which any loss must return) taken off. A small batch goes first, so that threads and buffers of the
matrix library are there. Values and gradients are compared as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.machine import clear_peak, machine, peak_rise

SCALE = 14.3  # exp of open_clip's initial logit scale


def loss_of(way: str, images_BD: Any, texts_BD: Any, scale: Any) -> Any:
    """The symmetric loss by one of the two ways."""
    import torch

    if way == "clip":
        from open_clip.loss import ClipLoss

        return ClipLoss()(images_BD, texts_BD, scale)
    from pretrain.pairs import Pairs
    from pretrain.tiled_loss import nce

    number = torch.arange(len(images_BD))
    to_text, to_image = nce(images_BD, texts_BD, scale, Pairs.of(number, number, number, len(images_BD)))
    return (to_text + to_image) / 2


def once(way: str, batch: int, width: int, threads: int) -> dict[str, float]:
    """Seconds, bytes and check sums of one forward and backward pass in this process."""
    import torch
    import torch.nn.functional as F

    from pretrain.memory import keep_freed_memory

    torch.set_num_threads(threads)
    keep_freed_memory()  # as in training
    generator = torch.Generator().manual_seed(0)

    def inputs(rows: int) -> list[Any]:
        made = [F.normalize(torch.randn(rows, width, generator=generator), dim=1).requires_grad_() for _ in range(2)]
        return [*made, torch.tensor(SCALE, requires_grad=True)]

    images, texts, scale = inputs(batch)
    loss_of(way, *inputs(64)).backward()
    before, start, cpu = clear_peak(), time.perf_counter(), time.process_time()
    loss = loss_of(way, images, texts, scale)
    loss.backward()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    rise = peak_rise(before) - sum(x.grad.nbytes for x in (images, texts))
    norms = [float(x.grad.norm()) for x in (images, texts, scale)]
    found = {"seconds": seconds, "cpu": cpu, "rise": rise, "loss": float(loss.detach())}
    return found | {f"norm{i}": n for i, n in enumerate(norms)}


def main(argv: list[str] | None = None) -> int:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiled_loss", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="runs of each, interleaved (default: 5)")
    parser.add_argument("--batch", type=int, default=16384, metavar="B", help="images and texts (default: 16384)")
    parser.add_argument("--width", type=int, default=512, metavar="D", help="features (default: 512)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="torch threads (default: 2)")
    parser.add_argument("--way", choices=("ours", "clip"), help="one run in this process, as JSON")
    args = parser.parse_args(argv)
    if args.way:
        print(json.dumps(once(args.way, args.batch, args.width, args.threads)))
        return 0
    print(f"{machine()}; {args.threads} used; B = {args.batch}, D = {args.width}, {args.repeats} interleaved runs")
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "clip": []}
    for repeat in range(args.repeats):
        for way in sorted(runs, reverse=bool(repeat % 2)):
            command = [sys.executable, "-m", "benchmarks.tiled_loss", "--way", way]
            command += ["--batch", str(args.batch), "--width", str(args.width), "--threads", str(args.threads)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs[way].append(json.loads(said))
    middle = {way: {k: statistics.median(r[k] for r in found) for k in found[0]} for way, found in runs.items()}
    for way, found in middle.items():
        print(
            f"  {way:5} {found['seconds']:7.2f} s, {found['cpu']:7.2f} s of processors, "
            f"rise {found['rise'] / 2**20:8.1f} MiB, loss {found['loss']:.6f}"
        )
    ours, clip = middle["ours"], middle["clip"]
    for clock in ("seconds", "cpu"):
        ratios = sorted(a[clock] / b[clock] for a, b in zip(runs["ours"], runs["clip"], strict=True))
        print(f"  {clock}, ours / ClipLoss: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    print(f"  rise, ours / ClipLoss: 1/{clip['rise'] / ours['rise']:.0f}")
    apart = max(abs(ours[k] / clip[k] - 1) for k in ours if k.startswith(("loss", "norm")))
    print(f"  largest relative difference of the loss and of the norms of gradients: {apart:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
