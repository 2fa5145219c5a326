"""Graph matching as a quadratic assignment: which node of one graph is which of another.

    maximise  Σ_i V[i, p(i)] + Σ_{(i,j) in E, (a,b) in E'} A[ij, ab] · [p(i) = a and p(j) = b]   over permutations p

Legend: G graphs, N nodes of each, E and E' directed edges, x = (i, a) one of N² pairs of nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """`vertex_GNN` affinities of nodes; `edges_GE2` of the first graphs, `others_GE2` of the second, as pairs of nodes;
    `edge_GEE` affinities of edges of the first with edges of the second. All without gradient.

    Edges may repeat and may come in both directions: their affinities add up. An edge from a node to itself counts
    nothing, and neither does one that no permutation can use.
    """

    vertex_GNN: Tensor
    edges_GE2: Tensor
    others_GE2: Tensor
    edge_GEE: Tensor

    def __len__(self) -> int:
        return len(self.vertex_GNN)

    @property
    def nodes(self) -> int:
        return self.vertex_GNN.shape[1]

    def part(self, graphs: slice) -> Problem:
        every = (self.vertex_GNN, self.edges_GE2, self.others_GE2, self.edge_GEE)
        return Problem(*(one[graphs] for one in every))

    def pairs_GEE(self) -> tuple[Tensor, Tensor]:
        """Where each edge affinity stands: numbers of the pairs (i, a) and (j, b), both [G, E, E']."""
        n = self.nodes
        (i, j), (a, b) = (one.unbind(-1) for one in (self.edges_GE2, self.others_GE2))
        return (i * n)[:, :, None] + a[:, None], (j * n)[:, :, None] + b[:, None]

    def symmetric_GXX(self) -> Tensor:
        """K + Kᵀ of the edge term xᵀKx, [G, N², N²] fp32; zero between pairs that exclude each other."""
        graphs, cells = len(self), self.nodes**2
        first, second = self.pairs_GEE()
        graph = (torch.arange(graphs, device=first.device) * cells * cells)[:, None, None]
        out = self.vertex_GNN.new_zeros(graphs * cells * cells, dtype=torch.float32)
        mine, theirs = (one[..., 0] != one[..., 1] for one in (self.edges_GE2, self.others_GE2))
        weight = (self.edge_GEE.float() * mine[:, :, None] * theirs[:, None]).reshape(-1)
        out.scatter_add_(0, (graph + first * cells + second).reshape(-1), weight)
        out.scatter_add_(0, (graph + second * cells + first).reshape(-1), weight)
        return out.view(graphs, cells, cells)

    def objective(self, perm_GN: Tensor) -> Tensor:
        """What the permutations reach, [G]."""
        vertex = self.vertex_GNN.gather(2, perm_GN[..., None])[..., 0].sum(1)
        return vertex + (self.edge_GEE * self.matched_GEE(perm_GN)).sum((1, 2))

    def matched_GEE(self, perm_GN: Tensor) -> Tensor:
        """Which edges go to which: 1.0 where (i, j) becomes (a, b), an edge of one node to itself left out."""
        at = perm_GN.gather(1, self.edges_GE2.flatten(1)).view_as(self.edges_GE2)
        real = (self.edges_GE2[..., 0] != self.edges_GE2[..., 1])[:, :, None]
        return ((at[:, :, None] == self.others_GE2[:, None]).all(-1) & real).to(self.edge_GEE.dtype)
