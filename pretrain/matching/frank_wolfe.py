"""Our solver: annealed Frank-Wolfe paths, then swaps; all graphs of a batch at once, on any device.

A path maximises f(x) + λ/2 |x|² over doubly stochastic x, from the centre (every match equally likely), by Frank-Wolfe
steps with exact line search. A negative λ keeps x inside, where the many are still weighed against the few, and goes to
0 on the way; f itself drives x to a corner then (as in the convex-concave relaxations of Zaslavskiy et al., PAMI 2009).
The product S x is never computed after the first: a step ends at a permutation, whose product is the sum of N rows of
S. Each path ends in the nearest permutation and is improved by the best swap of two nodes until none helps; a swap's
gain needs four entries of the gradient and two of S, and the gradient follows by four rows of S. The best path wins.

Nothing is drawn, and nothing depends on the numbering of nodes: relabelled graphs have the relabelled solution, but for
ties.

Legend: G graphs, M paths of each, B = G·M, N nodes, X = N² pairs (i, a) of nodes, S = K + Kᵀ of the problem.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pretrain.matching.problem import Problem

STEPS = 8  # of Frank-Wolfe
COOLED = 0.75  # share of them after which λ is 0
SPREAD = 4.0  # λ of the last path, in deviations of the first gradient
ROOM = {"cpu": 1 << 21, "cuda": 1 << 28}  # numbers in S at once: what a processor's cache holds, a share of a GPU
IMPROVED = 1e-5  # a smaller gain is rounding


def assign(score_GNN: Tensor) -> Tensor:
    """The permutations with the greatest sums [G, N] (Hungarian method, on the CPU)."""
    host = score_GNN.detach().float().cpu().numpy()
    host = np.nan_to_num(host, nan=-1e9, posinf=1e9, neginf=-1e9)  # a tower that has diverged is told by its loss
    found = [linear_sum_assignment(score_NN, maximize=True)[1] for score_NN in host]
    return torch.from_numpy(np.stack(found)).to(score_GNN.device)


def search(problem: Problem, paths: int, swaps: int | None = None) -> Tensor:
    """Good permutations [G, N]. swaps: at most so many a path; None: 2N."""
    graphs, n = len(problem), problem.nodes
    together = max(1, ROOM.get(problem.vertex_GNN.device.type, ROOM["cpu"]) // n**4)
    if graphs > together:
        parts = (problem.part(slice(start, start + together)) for start in range(0, graphs, together))
        return torch.cat([search(part, paths, swaps) for part in parts])
    vertex_GX = problem.vertex_GNN.float().reshape(graphs, -1)
    symmetric_GXX = problem.symmetric_GXX()
    perm_GMN = _paths(vertex_GX, symmetric_GXX, paths)
    best_GMN, value_GM = _descend(vertex_GX, symmetric_GXX, perm_GMN, 2 * n if swaps is None else swaps)
    chosen = value_GM.argmax(1)
    return best_GMN[torch.arange(graphs, device=chosen.device), chosen]


def _paths(vertex_GX: Tensor, symmetric_GXX: Tensor, paths: int) -> Tensor:
    """Where each annealed path ends, [G, M, N]."""
    graphs, cells = vertex_GX.shape
    n, rows = round(cells**0.5), symmetric_GXX.reshape(graphs * cells, cells)
    device = vertex_GX.device
    product_BX = (symmetric_GXX.sum(2) / n).repeat_interleave(paths, 0)
    vertex_BX = vertex_GX.repeat_interleave(paths, 0)
    x_BX = torch.full_like(vertex_BX, 1.0 / n)
    scale_G1 = (vertex_GX + symmetric_GXX.sum(2) / n).std(1, keepdim=True)
    strength_M = torch.linspace(0.0, SPREAD, paths, device=device) if paths > 1 else torch.tensor([SPREAD / 2])
    start_B = -(scale_G1 * strength_M.to(device)).reshape(-1)
    first_BN = (torch.arange(graphs, device=device) * cells).repeat_interleave(paths)[:, None]
    first_BN = first_BN + torch.arange(n, device=device) * n
    for step in range(STEPS):
        bend_B = start_B * max(0.0, 1.0 - step / (COOLED * STEPS))
        slope_BX = vertex_BX + product_BX + bend_B[:, None] * x_BX
        perm_BN = assign(slope_BX.view(-1, n, n))
        corner_BX = torch.zeros_like(x_BX).scatter_(1, first_BN % cells + perm_BN, 1.0)
        towards_BX = corner_BX - x_BX
        change_BX = rows[(first_BN + perm_BN).reshape(-1)].view(-1, n, cells).sum(1) - product_BX
        rise_B = (slope_BX * towards_BX).sum(1)
        bow_B = 0.5 * ((towards_BX * change_BX).sum(1) + bend_B * (towards_BX**2).sum(1))
        inside_B = (-rise_B / (2.0 * bow_B)).clamp(0.0, 1.0)
        length_B1 = torch.where(bow_B < 0, inside_B, (rise_B + bow_B > 0).float())[:, None]
        x_BX += length_B1 * towards_BX
        product_BX += length_B1 * change_BX
    return assign(x_BX.view(-1, n, n)).view(graphs, paths, n)


def _descend(vertex_GX: Tensor, symmetric_GXX: Tensor, perm_GMN: Tensor, swaps: int) -> tuple[Tensor, Tensor]:
    """Permutations that no swap of two nodes improves (or after so many swaps), and what they reach [G, M]."""
    graphs, paths, n = perm_GMN.shape
    cells, device = n * n, perm_GMN.device
    rows, flat = symmetric_GXX.reshape(graphs * cells, cells), symmetric_GXX.reshape(-1)
    perm_BN = perm_GMN.reshape(-1, n).clone()
    graph_B = torch.arange(graphs, device=device).repeat_interleave(paths)
    row_B, number_B = graph_B * cells, torch.arange(len(perm_BN), device=device)
    at_BN = torch.arange(n, device=device) * n + perm_BN
    vertex_BX = vertex_GX.repeat_interleave(paths, 0)
    slope_BX = vertex_BX + rows[(row_B[:, None] + at_BN).reshape(-1)].view(-1, n, cells).sum(1)
    value_B = 0.5 * (vertex_BX.gather(1, at_BN) + slope_BX.gather(1, at_BN)).sum(1)
    i_P, j_P = torch.triu_indices(n, n, 1, device=device)
    for _ in range(swaps if n > 1 else 0):
        to_i, to_j = perm_BN[:, i_P], perm_BN[:, j_P]
        added = i_P * n + to_j, j_P * n + to_i
        taken = i_P * n + to_i, j_P * n + to_j
        gain_BP = slope_BX.gather(1, added[0]) + slope_BX.gather(1, added[1])
        gain_BP -= slope_BX.gather(1, taken[0]) + slope_BX.gather(1, taken[1])
        for one, other in (added, taken):
            gain_BP += flat[(row_B[:, None] + one) * cells + other]
        best_B, which_B = gain_BP.max(1)
        moving = best_B > IMPROVED
        if not bool(moving.any()):
            break
        weight_B1 = moving.float()[:, None]
        for sign, both in ((1.0, added), (-1.0, taken)):
            for one in both:
                slope_BX += sign * weight_B1 * rows[row_B + one.gather(1, which_B[:, None])[:, 0]]
        i_B, j_B = i_P[which_B], j_P[which_B]
        swapped = perm_BN[number_B, j_B], perm_BN[number_B, i_B]
        perm_BN[number_B[moving], i_B[moving]] = swapped[0][moving]
        perm_BN[number_B[moving], j_B[moving]] = swapped[1][moving]
        value_B = value_B + best_B.clamp(min=0.0) * moving
    return perm_BN.view(graphs, paths, n), value_B.view(graphs, paths)
