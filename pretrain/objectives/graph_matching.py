"""Which image is which in another view, told by whole groups of images (LVM-Med, arXiv 2306.11925, §3).

The global batch is cut into groups of N images, and each group seen in two views s and t gives two graphs. Nodes are
z = h(pooled feature of the tower), edges the k nearest neighbours of each; layers of a graph convolution (Kipf and
Welling, arXiv 1609.02907, eq. 2) make ẑ of z. With v a permutation matrix (v_ia = 1: image i in s is image a in t)

    c_ia     = α cos(ẑ_i^s, ẑ_a^t) + (1 - α) local(i, a)                                     nodes
    c_ia,jb  = cos(ẑ_i^s - ẑ_j^s, ẑ_a^t - ẑ_b^t)   for (i,j) in E^s, (a,b) in E^t              edges
    <c, v>   = Σ c_ia v_ia + Σ c_ia,jb v_ia v_jb,   ṽ = argmax_v <c + ε, v>,  ε Gumbel noise times a temperature

and v* is the identity. With `gradient: fenchel_young` (Berthet et al., arXiv 2002.08676, eq. 8)

    L = (1/N) E_ε[ <c + ε, ṽ> - <c + ε, v*> ],      dL/dc = (1/N) (E_ε[ṽ] - v*)

and with `imle`, as published (arXiv 2106.01798), L is the Hamming distance of ṽ and v*, and its gradient that of

    dL/dc = (1/λN) (ṽ - v'),    v' = argmax_v <c + ε - λ dL/dṽ, v>,   dL/dṽ = 1 - 2 v*,  the same ε in both

With the published λ = 80 the second problem is so far moved that v' is the identity: both differ by a factor then.
local(i, a) is the mean cosine of the `matches` closest pairs of a map cell p of one view and a cell of the other, of
both directions and two kinds: the cell nearest to p in the image, and the cell nearest in features.

Repaired: one edge set for both views (with two the identity is often not the best matching), noise with a temperature
(unit noise hides cosines), one solve, no image dropped: a batch is spread evenly over groups. Every rank sees the same
groups and draws noise of its own: the gradient, a mean over ranks, is that of as many more samples.

Legend: B studies, G groups of N, E edges of a graph, F width, C channels of a tower, P cells of a map, R gathered rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.crops import by_view, offered, pairs_of_views, try_small
from pretrain.matching import Problem, assign, solve
from pretrain.matching.affinities import Graphs, gumbel, local_affinity, nearest
from pretrain.matching.affinities import propagated as spread
from pretrain.objectives.base import GlobalBatch, Objective, Surroundings
from pretrain.passes import Pass
from pretrain.schema_objectives import GraphMatchingOptions
from pretrain.views import trunk_of, width_of

TRUNK, MAPS, PLACES = "image:crops.trunk", "image:crops.maps", "image:crops.places"


class GraphMatching(Objective):
    """Second-order matching of the views of groups of images."""

    Options = GraphMatchingOptions

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return (TRUNK, MAPS, PLACES) if self.options.alpha < 1 else (TRUNK,)

    def passes(self) -> Mapping[str, tuple[Pass, tuple[str, ...]]]:
        return offered(self.options.crops)

    def attach(self, around: Surroundings) -> None:
        told, width = self.options, width_of(around.dual, "graph_matching")
        try_small(trunk_of(around.dual, "graph_matching"), told.crops, "graph_matching")
        hidden = told.hidden or width
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, told.dim))
        self.layers = nn.ModuleList(nn.Linear(told.dim, told.dim, bias=False) for _ in range(told.layers))

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        read = {name: by_view(batch.rows[name]) for name in self.reads}
        z_VBF = self.head(read[TRUNK].to(self._dtype))
        sums: dict[str, Tensor] = {}
        pairs, studies = pairs_of_views(len(z_VBF)), z_VBF.shape[1]
        for s, t in pairs:
            for first, size, count in group_sizes(studies, self.options.group):
                rows = slice(first, first + size * count)
                cut = [one[rows].reshape(count, size, -1) for one in (z_VBF[s], z_VBF[t])]
                local = self._local(read, s, t, rows, count)
                for name, value in self._of_groups(cut[0], cut[1], local).items():
                    sums[name] = sums.get(name, z_VBF.new_zeros(())) + value / (len(pairs) * studies)
        return sums.pop("loss"), {name: value.detach() for name, value in sums.items()}

    @property
    def _dtype(self) -> torch.dtype:
        """Of its own weights; features may be narrower."""
        return next(self.parameters()).dtype

    def _local(self, read: Mapping[str, Tensor], s: int, t: int, rows: slice, count: int) -> Tensor | None:
        if self.options.alpha == 1:
            return None
        s_map, t_map, s_place, t_place = (  # cut, then widened: never a copy of all maps
            read[name][view][rows].to(self._dtype).unflatten(0, (count, -1))
            for name in (MAPS, PLACES)
            for view in (s, t)
        )
        return local_affinity(s_map, t_map, s_place, t_place, self.options.matches)

    def _of_groups(self, s_GNF: Tensor, t_GNF: Tensor, local_GNN: Tensor | None) -> dict[str, Tensor]:
        """Sums over the images of groups of one size: the loss, and what is logged."""
        problem, told = self.problem(s_GNF, t_GNF, local_GNN), self.options
        found = [self._perturbed(problem) for _ in range(told.samples)]
        return {name: torch.stack([one[name] for one in found]).mean() for name in found[0]}

    def problem(self, s_GNF: Tensor, t_GNF: Tensor, local_GNN: Tensor | None) -> Problem:
        """Graphs and affinities of the embeddings of two views, with gradient."""
        told, n = self.options, s_GNF.shape[1]
        mean = F.normalize(s_GNF.detach(), dim=-1) + F.normalize(t_GNF.detach(), dim=-1)
        shared = told.edges == "shared"
        edges = [nearest(one.detach(), told.neighbours) for one in ((mean, mean) if shared else (s_GNF, t_GNF))]
        graphs = [Graphs(spread(z, pairs, self.layers), pairs) for z, pairs in zip((s_GNF, t_GNF), edges, strict=True)]
        s, t = graphs
        c_GNN = F.normalize(s.nodes_GNF, dim=-1) @ F.normalize(t.nodes_GNF, dim=-1).mT
        if local_GNN is not None:
            c_GNN = told.alpha * c_GNN + (1 - told.alpha) * local_GNN
        first = told.order == "first" or n == 1
        c_GEE = c_GNN.new_zeros(len(c_GNN), 0, 0) if first else s.directions() @ t.directions().mT
        pairs_s, pairs_t = (one.edges_GE2[:, :0] if first else one.edges_GE2 for one in graphs)
        return Problem(c_GNN, pairs_s, pairs_t, c_GEE)

    def _perturbed(self, problem: Problem) -> dict[str, Tensor]:
        told, n = self.options, problem.nodes
        both = (problem.vertex_GNN, problem.edge_GEE)
        vertex, edge = (c + told.temperature * gumbel(c) for c in both) if told.temperature else both
        noisy = Problem(vertex, problem.edges_GE2, problem.others_GE2, edge)
        identity = torch.arange(n, device=vertex.device).expand(len(problem), n)
        solution = self._solve(noisy)
        wrong = (solution != identity).float().sum()
        if told.gradient == "fenchel_young":
            loss = (noisy.objective(solution) - noisy.objective(identity)).sum()
        else:
            moved = vertex.detach() - told.strength * (1.0 - 2.0 * torch.eye(n, device=vertex.device))
            second = self._solve(Problem(moved, problem.edges_GE2, problem.others_GE2, edge))
            slope = (noisy.objective(solution) - noisy.objective(second)).sum() / told.strength
            loss = 2.0 * wrong + slope - slope.detach()  # a wrong node is a 1 missing and a 1 too many
        return {"loss": loss, "matched": len(problem) * n - wrong}

    def _solve(self, problem: Problem) -> Tensor:
        if self.options.order == "first":
            return assign(problem.vertex_GNN)
        detached: Any = (problem.vertex_GNN, problem.edges_GE2, problem.others_GE2, problem.edge_GEE)
        return solve(Problem(*(one.detach() for one in detached)), self.options.solver, self.options.paths)


def group_sizes(studies: int, group: int) -> list[tuple[int, int, int]]:
    """Consecutive studies to as few groups as hold them, as even as can be: (first study, size, how many groups of
    that size), two sizes at most."""
    groups = -(-studies // group)
    size, larger = divmod(studies, groups)
    found = [(0, size + 1, larger), (larger * (size + 1), size, groups - larger)]
    return [one for one in found if one[2]]
