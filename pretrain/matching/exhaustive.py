"""Small graphs by trying every permutation.

Legend: G graphs, N nodes, X = N² pairs of nodes, F = N! permutations.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from pretrain.matching.problem import Problem

MOST = 6  # nodes: 720 permutations


def exhaustive(problem: Problem) -> Tensor:
    """The best permutations [G, N], the first of several in lexicographic order."""
    n, device = problem.nodes, problem.vertex_GNN.device
    every_FN = torch.tensor(list(itertools.permutations(range(n))), device=device)
    x_FX = torch.zeros(len(every_FN), n * n, device=device)
    x_FX.scatter_(1, every_FN + torch.arange(n, device=device) * n, 1.0)
    linear_GF = torch.nan_to_num(problem.vertex_GNN.float()).flatten(1) @ x_FX.T
    square_GF = torch.stack([((x_FX @ one_XX) * x_FX).sum(1) for one_XX in problem.symmetric_GXX()])
    return every_FN[(linear_GF + 0.5 * torch.nan_to_num(square_GF)).argmax(1)]
