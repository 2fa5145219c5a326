"""Solvers of others, behind the same function: optional packages, on the CPU, one graph or one batch at a time."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain.errors import ConfigError
from pretrain.matching.frank_wolfe import assign
from pretrain.matching.problem import Problem


def package(name: str) -> Any:
    """Import an optional solver.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"solver {name} is not installed",
            why="graphs would not be matched",
            fix="pip install 'voxclip[matching]', or use solver: search, which needs nothing",
        ) from error


class MgmModels:
    """Problems as pylibmgm's models, built once. The package is under the GPL.

    Raises:
        ConfigError: it is not installed.
    """

    def __init__(self, problem: Problem) -> None:
        lib, n = package("pylibmgm"), problem.nodes
        self.device, self.vertex = problem.vertex_GNN.device, problem.vertex_GNN.double().cpu().numpy()
        self.models = []
        symmetric = problem.symmetric_GXX().cpu().numpy()
        for vertex_NN, symmetric_XX in zip(self.vertex, symmetric, strict=True):
            first, second = np.nonzero(np.triu(symmetric_XX, 1))
            model = lib.GmModel(lib.Graph(0, n), lib.Graph(1, n), n * n, len(first))
            for x, weight in enumerate((-vertex_NN).ravel().tolist()):
                model.add_assignment(*divmod(x, n), weight)
            weights = (-symmetric_XX[first, second]).tolist()
            for x, y, weight in zip(first.tolist(), second.tolist(), weights, strict=True):
                model.add_edge(x, y, weight)
            self.models.append(model)

    def solve(self) -> Tensor:
        """Permutations [G, N], one graph after another."""
        solver = package("pylibmgm.solver")
        labels = (np.array(solver.solve_gm(model).labeling()) for model in self.models)
        found = [_completed(label_N, vertex_NN) for label_N, vertex_NN in zip(labels, self.vertex, strict=True)]
        return torch.from_numpy(np.stack(found)).to(self.device)


def libmgm(problem: Problem) -> Tensor:
    """Fusion moves (Hutschenreiter et al., ICCV 2021) by pylibmgm: near the optimum, tens of times slower than ours.
    Permutations [G, N]."""
    return MgmModels(problem).solve()


def _completed(label_N: np.ndarray, vertex_NN: np.ndarray) -> np.ndarray:
    """libmgm may leave nodes without a partner (-1): these get one of those that are left, by the vertices."""
    free = label_N < 0
    left = np.setdiff1d(np.arange(len(label_N)), label_N[~free])
    if len(left):
        label_N[free] = left[assign(torch.from_numpy(vertex_NN[free][:, left])[None])[0].numpy()]
    return label_N.astype(np.int64)


def pygmtools(problem: Problem) -> Tensor:
    """RRWM (Cho et al., ECCV 2010) and the Hungarian method by pygmtools, in a batch. Permutations [G, N]."""
    gm, n = package("pygmtools"), problem.nodes
    affinity_GXX = 0.5 * problem.symmetric_GXX()
    affinity_GXX.diagonal(dim1=1, dim2=2).add_(problem.vertex_GNN.float().flatten(1))
    # RRWM walks along affinities, which must not be negative; pairs (i, a) are numbered a first there.
    turned = affinity_GXX.view(len(problem), n, n, n, n).permute(0, 2, 1, 4, 3).reshape_as(affinity_GXX)
    nodes = torch.full((len(problem),), n)
    soft = gm.rrwm(turned.clamp(min=0.0).cpu().double(), nodes, nodes, backend="pytorch")
    return assign(soft).to(problem.vertex_GNN.device)
