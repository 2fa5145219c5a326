"""Our graph matching against pylibmgm, the oracle: `python -m benchmarks.graph_matching`.

The hard case: groups of 16 embeddings of width 128 in four clusters, two views with noise of three deviations, five
neighbours each (every view its own edges, or one set for both); affinities of nodes 0.8 times their cosine, of edges
the cosine of their directions. Every solver gets the same graphs on one thread. The objective is told relative to the
oracle's, graph by graph; times are processor seconds, medians of `--repeats` passes over all graphs that take turns,
and of ours they hold everything from affinities to permutations. Of the oracle two: its solver alone, and with the
model built from Python.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import machine
from pretrain.matching import Problem, assign, solve
from pretrain.matching.affinities import Graphs, nearest
from pretrain.matching.foreign import MgmModels, package
from pretrain.matching.frank_wolfe import search

PATHS = (1, 2, 3, 4, 8, 16)


def hard_case(graphs: int, shared: bool, seed: int, sigma: float = 3.0, clusters: int = 4) -> Problem:
    """Noisy views of clustered embeddings."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(graphs, clusters, 128, generator=draw)[:, torch.arange(16) % clusters]
    base = centres + 0.5 * torch.randn(graphs, 16, 128, generator=draw)
    s, t = (base + sigma * torch.randn(base.shape, generator=draw) for _ in range(2))
    views = [Graphs(z, nearest((s + t) / 2 if shared else z, 5)) for z in (s, t)]
    vertex = 0.8 * F.normalize(s, dim=-1) @ F.normalize(t, dim=-1).mT
    edge = views[0].directions() @ views[1].directions().mT
    return Problem(vertex, views[0].edges_GE2, views[1].edges_GE2, edge)


def solvers(with_pygmtools: bool) -> dict[str, Callable[[Problem], Tensor]]:
    found: dict[str, Callable[[Problem], Tensor]] = {"assignment on nodes alone": lambda p: assign(p.vertex_GNN)}
    found["ours, 1 path, no swaps"] = lambda p: search(p, 1, swaps=0)
    for paths in PATHS:
        found[f"ours, {paths} path{'s' * (paths > 1)}"] = lambda p, paths=paths: solve(p, paths=paths)  # type: ignore[misc]
    if with_pygmtools:
        found["RRWM (pygmtools)"] = lambda p: solve(p, "pygmtools")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.graph_matching", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--graphs", type=int, default=200, metavar="N", help="of a batch (default: 200)")
    add("--repeats", type=int, default=5, metavar="N", help="passes over them (default: 5)")
    add("--seed", type=int, default=0, metavar="N", help="default: 0")
    add("--pygmtools", action="store_true", help="RRWM of pygmtools as well")
    args = parser.parse_args(argv)
    package("pylibmgm")
    torch.set_num_threads(1)
    print(machine())
    for shared in (False, True):
        problem = hard_case(args.graphs, shared, args.seed)
        told = solvers(args.pygmtools)
        seconds: dict[str, list[float]] = {name: [] for name in (*told, "solver", "with its model")}
        reached: dict[str, Tensor] = {}
        for _ in range(args.repeats):
            for name, one in told.items():
                began = time.process_time()
                found = one(problem)
                seconds[name].append(time.process_time() - began)
                reached[name] = problem.objective(found)
            began = time.process_time()
            models = MgmModels(problem)
            between = time.process_time()
            found = models.solve()
            seconds["solver"].append(time.process_time() - between)
            seconds["with its model"].append(time.process_time() - began)
            best = problem.objective(found)
        print(f"\n{args.graphs} graphs, {'one edge set' if shared else 'each view its own edges'}, "
              f"{args.repeats} passes\n| solver | objective / oracle | at least the oracle's | ms a graph | graphs/s "
              "| times the oracle's speed |\n|---|---|---|---|---|---|")  # fmt: skip
        oracle = statistics.median(seconds["solver"])
        for name in told:
            share, median = reached[name] / best, statistics.median(seconds[name])
            equal = float((share > 1 - 1e-5).float().mean())
            print(_row(name, f"{float(share.mean()):.3f}", f"{equal:.2f}", median / args.graphs, oracle / median))
        for name in ("solver", "with its model"):
            median = statistics.median(seconds[name])
            print(_row(f"pylibmgm, {name}", "1", "1", median / args.graphs, oracle / median))
    return 0


def _row(name: str, share: str, equal: str, seconds: float, speed: float) -> str:
    return f"| {name} | {share} | {equal} | {1000 * seconds:.3f} | {1 / seconds:,.0f} | {speed:.1f} |"


if __name__ == "__main__":
    sys.exit(main())
