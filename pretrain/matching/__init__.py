"""One function that matches graphs, whoever does it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pretrain.matching import foreign
from pretrain.matching.exhaustive import MOST, exhaustive
from pretrain.matching.frank_wolfe import assign, search
from pretrain.matching.problem import Problem

__all__ = ["SOLVERS", "Problem", "assign", "solve"]
SOLVERS: dict[str, Callable[[Problem], Tensor]] = {"pylibmgm": foreign.libmgm, "pygmtools": foreign.pygmtools}
PATHS = 2  # .99 of the oracle, and twenty times as fast (benchmarks/RESULTS.md)


@torch.no_grad()
def solve(problem: Problem, solver: str = "search", paths: int = PATHS) -> Tensor:
    """Permutations [G, N]: node i of a first graph is node `p[i]` of the second.

    Args:
        solver: "search" (ours: graphs of up to 6 nodes exactly, larger ones nearly), or an optional package:
            "pylibmgm" or "pygmtools".
        paths: of ours; more are slower and better.

    Raises:
        ConfigError: a solver that is not installed.
    """
    if problem.nodes == 1 or not len(problem):
        return torch.zeros(problem.vertex_GNN.shape[:2], dtype=torch.long, device=problem.vertex_GNN.device)
    if solver != "search":
        return SOLVERS[solver](problem)
    return exhaustive(problem) if problem.nodes <= MOST else search(problem, paths)
