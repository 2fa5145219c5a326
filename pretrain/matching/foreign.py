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


def libmgm(problem: Problem) -> Tensor:
    """Fusion moves (Hutschenreiter et al., ICCV 2021) by pylibmgm, one graph after another: near the optimum, tens of
    times slower than ours. The package is under the GPL. Permutations [G, N]."""
    lib, n = package("pylibmgm"), problem.nodes
    solver = package("pylibmgm.solver")
    symmetric = problem.symmetric_GXX().cpu().numpy()
    # libmgm may leave nodes without a partner, which costs nothing; above 0 a match always pays.
    vertex = problem.vertex_GNN.double().cpu().numpy()
    found = []
    for vertex_NN, symmetric_XX in zip(vertex, symmetric, strict=True):
        first, second = np.nonzero(np.triu(symmetric_XX, 1))
        model = lib.GmModel(lib.Graph(0, n), lib.Graph(1, n), n * n, len(first))
        for i in range(n):
            for a in range(n):
                model.add_assignment(i, a, -float(vertex_NN[i, a]))
        weights = (-symmetric_XX[first, second]).tolist()
        for x, y, weight in zip(first.tolist(), second.tolist(), weights, strict=True):
            model.add_edge(x, y, weight)
        found.append(_completed(np.array(solver.solve_gm(model).labeling()), vertex_NN))
    return torch.from_numpy(np.stack(found)).to(problem.vertex_GNN.device)


def _completed(label_N: np.ndarray, vertex_NN: np.ndarray) -> np.ndarray:
    """Nodes without a partner (-1) get one of those that are left, by the vertices."""
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
