"""Local contrast in blocks against loops: `python -m benchmarks.local_contrast`.

Forward and backward of the local loss of 32 images and reports (pretrain.objectives.hierarchical), fp32, each run in a
process of its own, interleaved; medians. Sizes: `recipe`, of a recipe for two cores; `sentences` and `words`, those of
VELVET-Med: about 20 sentences and 6³ cells, about 150 words and 12³ cells, 512 wide. Ways:

  ours      pretrain.local_similarity
  loop      each pair by itself: `pair(images[i], texts[r])`
  careful   the same, tensors split once: indexing in the loop makes a gradient of all images for each pair
  reports   a loop over reports, all images at once, as VELVET-Med's own code does

Memory is the rise of the resident set's peak over that with the inputs allocated, their gradients taken off. Time is
that of a second pass: the first one's memory is at hand, as in training.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.machine import clear_peak, machine, peak_rise


class Size(NamedTuple):
    """Units of a report on average (from half to one and a half of it), cells of an image, features."""

    units: int
    cells: int
    width: int


SIZES = {"recipe": Size(8, 72, 128), "sentences": Size(20, 216, 512), "words": Size(150, 1728, 512)}
BATCH = 32


def pair(cells_VD: Any, units_TD: Any) -> Any:
    """Similarity of one image and one report, temperatures 4 and 5."""
    import torch.nn.functional as F

    share_TV = (units_TD @ cells_VD.T).softmax(0)
    seen_TD = (4 * share_TV).softmax(1) @ cells_VD
    return (5 * F.cosine_similarity(seen_TD, units_TD)).logsumexp(0)


def loop(cells_SVD: Any, units_TD: Any, lengths: list[int]) -> Any:
    import torch

    bounds = list(itertools.pairwise(itertools.accumulate(lengths, initial=0)))
    rows = [[pair(cells_SVD[i], units_TD[a:b]) for a, b in bounds] for i in range(len(cells_SVD))]
    return torch.stack([torch.stack(row) for row in rows])


def careful(cells_SVD: Any, units_TD: Any, lengths: list[int]) -> Any:
    import torch

    texts = units_TD.split(lengths)
    return torch.stack([torch.stack([pair(cells, text) for text in texts]) for cells in cells_SVD.unbind()])


def reports(cells_SVD: Any, units_TD: Any, lengths: list[int]) -> Any:
    import torch
    import torch.nn.functional as F

    columns = []
    for text_TD in units_TD.split(lengths):
        share_STV = (cells_SVD @ text_TD.T).softmax(2).transpose(1, 2)
        seen_STD = (4 * share_STV).softmax(2) @ cells_SVD
        columns.append((5 * F.cosine_similarity(seen_STD, text_TD[None], dim=2)).logsumexp(1))
    return torch.stack(columns, 1)


def ours(cells_SVD: Any, units_TD: Any, lengths: list[int]) -> Any:
    from pretrain.local_similarity import local_similarity

    return local_similarity(cells_SVD, units_TD, lengths)


WAYS: dict[str, Callable[[Any, Any, list[int]], Any]] = {
    "ours": ours,
    "loop": loop,
    "careful": careful,
    "reports": reports,
}


def once(way: str, size: Size, threads: int) -> dict[str, float]:
    """Seconds, bytes, the loss and norms of gradients of one forward and backward pass in this process."""
    import torch
    import torch.nn.functional as F

    from pretrain.memory import keep_freed_memory

    torch.set_num_threads(threads)
    keep_freed_memory()  # as in training

    def run(shape: Size, trim: bool = True) -> dict[str, float]:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(shape.units // 2, shape.units * 3 // 2 + 1, (BATCH,), generator=generator)
        lengths: list[int] = drawn.tolist()
        cells = torch.randn(BATCH, shape.cells, shape.width, generator=generator)
        units = torch.randn(sum(lengths), shape.width, generator=generator)
        inputs = [F.normalize(x, dim=-1).requires_grad_() for x in (cells, units)]
        del cells, units
        before = clear_peak() if trim else 0
        start, cpu = time.perf_counter(), time.process_time()
        logits = 10 * WAYS[way](inputs[0], inputs[1], lengths)
        target = torch.arange(BATCH)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        loss.backward()
        clocks = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
        rise = peak_rise(before) - sum(x.grad.nbytes for x in inputs if x.grad is not None)
        return {**clocks, "rise": rise, "loss": float(loss.detach())}

    run(Size(8, 64, 64))  # threads and buffers of the matrix library
    rise = run(size)["rise"]
    return run(size, trim=False) | {"rise": rise}


def main(argv: list[str] | None = None) -> int:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.local_contrast", description=__doc__)
    add = parser.add_argument
    add("--sizes", nargs="*", choices=SIZES, default=["recipe", "sentences"], help="(default: recipe sentences)")
    add("--ways", nargs="*", choices=WAYS, default=list(WAYS), help="(default: all)")
    add("--repeats", type=int, default=5, metavar="N", help="runs of each, interleaved (default: 5)")
    add("--threads", type=int, default=1, metavar="N", help="torch threads (default: 1)")
    add("--once", action="store_true", help="the first way at the first size in this process, as JSON")
    args = parser.parse_args(argv)
    if args.once:
        print(json.dumps(once(args.ways[0], SIZES[args.sizes[0]], args.threads)))
        return 0
    print(f"{machine()}; {args.threads} used; {BATCH} images and reports, fp32, {args.repeats} interleaved runs")
    for name in args.sizes:
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in args.ways}
        for repeat, way in itertools.product(range(args.repeats), args.ways):
            command = [sys.executable, "-m", "benchmarks.local_contrast", "--once", "--sizes", name, "--ways", way]
            command += ["--threads", str(args.threads)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs[way].append(json.loads(said))
            print(f"  run {repeat}: {way} {runs[way][-1]['seconds']:.2f} s", file=sys.stderr)
        print(f"{name}: about {SIZES[name].units} units, {SIZES[name].cells} cells, {SIZES[name].width} wide")
        first = runs[args.ways[0]]
        for way, found in runs.items():
            middle = {key: statistics.median(r[key] for r in found) for key in found[0]}
            wall, cpu = (
                statistics.median(a[key] / b[key] for a, b in zip(found, first, strict=True))
                for key in ("seconds", "cpu")
            )
            print(
                f"  {way:8} {middle['seconds']:8.3f} s, {middle['cpu']:8.3f} s of processors, {wall:6.1f} x, by "
                f"processors {cpu:6.1f} x; rise {middle['rise'] / 2**20:7.1f} MiB; loss {middle['loss']:.6f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
