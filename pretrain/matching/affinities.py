"""From embeddings and feature maps to graphs: nearest neighbours, message passing, affinities, noise.

Legend: G groups, N images of each, F width, E edges of a graph, P cells of a map, C its channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NOISE_FLOOR = 1e-20


@dataclass(frozen=True)
class Graphs:
    """Nodes [G, N, F] and directed edges [G, E, 2]."""

    nodes_GNF: Tensor
    edges_GE2: Tensor

    def directions(self) -> Tensor:
        """Difference of the ends of each edge, of unit length; 0 where they are equal: [G, E, F]."""
        from_GE, to_GE = self.edges_GE2.unbind(-1)
        wide = (-1, -1, self.nodes_GNF.shape[-1])
        ends = (self.nodes_GNF.gather(1, one[..., None].expand(wide)) for one in (from_GE, to_GE))
        return F.normalize(next(ends) - next(ends), dim=-1)


@torch.no_grad()
def nearest(z_GNF: Tensor, k: int) -> Tensor:
    """Edges from every node to its k nearest others by cosine, to half of the others at most: [G, N k, 2]. In a
    complete graph message passing makes all nodes equal, and nothing could be matched or learnt."""
    groups, n = z_GNF.shape[:2]
    unit = F.normalize(z_GNF.float(), dim=-1)
    cosine = (unit @ unit.mT).masked_fill(torch.eye(n, dtype=torch.bool, device=unit.device), float("-inf"))
    to_GNK = cosine.topk(min(k, (n - 1) // 2), -1).indices
    from_GNK = torch.arange(n, device=unit.device)[None, :, None].expand_as(to_GNK)
    return torch.stack([from_GNK, to_GNK], -1).reshape(groups, -1, 2)


def propagated(z_GNF: Tensor, edges_GE2: Tensor, layers: Iterable[nn.Module]) -> Tensor:
    """H ← relu(D^-1/2 (A + I) D^-1/2 H W) a layer, A the edges in both directions; the last without relu, whose cosines
    would all be positive."""
    groups, n = z_GNF.shape[:2]
    reach = torch.eye(n, dtype=z_GNF.dtype, device=z_GNF.device).repeat(groups, 1, 1)
    graph = torch.arange(groups, device=z_GNF.device)[:, None]
    i, j = edges_GE2.unbind(-1)
    reach[graph, i, j] = reach[graph, j, i] = 1.0
    degree = reach.sum(-1).rsqrt()
    weights = degree[:, :, None] * reach * degree[:, None]
    every = list(layers)
    for number, layer in enumerate(every, 1):
        z_GNF = weights @ layer(z_GNF)
        z_GNF = F.relu(z_GNF) if number < len(every) else z_GNF
    return z_GNF


def local_affinity(s_GNPC: Tensor, t_GNPC: Tensor, s_GNP2: Tensor, t_GNP2: Tensor, matches: int) -> Tensor:
    """How well the maps of two images match cell by cell, [G, N, N] in [-1, 1].

    Every cell of one map is matched with the cell of the other that is nearest in the image (places: its coordinates),
    and with the one whose features are nearest. Of either kind the `matches` pairs of least distance are kept, in place
    or between features (VICRegL, arXiv 2210.01571, §3.2 and its code), and their mean cosine counts half. Both
    directions, their mean. One group at a time: cosines of all cells of a group are N² P² numbers.
    """
    found = []
    for group in zip(s_GNPC, t_GNPC, s_GNP2, t_GNP2, strict=True):
        s_NPC, t_NPC, s_NP2, t_NP2 = group
        there = _one_way(s_NPC, t_NPC, s_NP2, t_NP2, matches)
        found.append(0.5 * (there + _one_way(t_NPC, s_NPC, t_NP2, s_NP2, matches).T))
    return torch.stack(found)


def _one_way(s_NPC: Tensor, t_NPC: Tensor, s_NP2: Tensor, t_NP2: Tensor, matches: int) -> Tensor:
    """From every cell of the first maps: [N, N]."""
    n, cells = s_NPC.shape[:2]
    unit_s, unit_t = F.normalize(s_NPC, dim=-1).flatten(0, 1), F.normalize(t_NPC, dim=-1).flatten(0, 1)
    cosine_NPNP = (unit_s @ unit_t.T).view(n, cells, n, cells)
    with torch.no_grad():
        apart = torch.cdist(s_NP2.flatten(0, 1), t_NP2.flatten(0, 1)).view(n, cells, n, cells)
        features = torch.cdist(s_NPC.flatten(0, 1), t_NPC.flatten(0, 1)).view(n, cells, n, cells)
        kinds = [one.min(-1) for one in (apart, features)]
    means = []
    for distance_NPN, where_NPN in kinds:
        matched = cosine_NPNP.gather(3, where_NPN[..., None])[..., 0]
        kept = distance_NPN.topk(min(matches, cells), 1, largest=False).indices
        means.append(matched.gather(1, kept).mean(1))
    return 0.5 * (means[0] + means[1])


def gumbel(like: Tensor) -> Tensor:
    """Standard Gumbel noise of the shape of `like`, from torch's default generator of the CPU: one seed, one noise."""
    uniform = torch.rand(like.shape, dtype=torch.float32).clamp_(NOISE_FLOOR, 1.0 - 1e-7)
    return -torch.log(-torch.log(uniform)).to(like.device, like.dtype)
