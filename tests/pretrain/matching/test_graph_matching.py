"""Objective `graph_matching`: against loops over every permutation in double precision, in parts, and over ranks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.matching import Problem
from pretrain.matching.affinities import local_affinity, nearest, propagated
from pretrain.objectives.base import GlobalBatch, Surroundings
from pretrain.objectives.graph_matching import MAPS, PLACES, TRUNK, GraphMatching, group_sizes
from pretrain.passes import Rows
from pretrain.schema_objectives import GraphMatchingOptions
from tests.pretrain.test_views import Tower

STUDIES, CELLS, WIDTH = 9, 4, 6
OPTIONS = GraphMatchingOptions(group=5, neighbours=2, dim=5, matches=3, temperature=0.0)


def objective(**changes: Any) -> GraphMatching:
    torch.manual_seed(0)
    one = GraphMatching(OPTIONS.model_copy(update=changes))
    one.attach(Surroundings(Tower(width=WIDTH, stride=(4, 4)), ()))  # type: ignore[arg-type]
    return one.double()


def read(views: int = 2, seed: int = 1, studies: int = STUDIES) -> dict[str, Tensor]:
    """Fields [views * studies, ...], all first views, then all second ones."""
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(1, studies, WIDTH, generator=draw, dtype=torch.float64)
    n = views * studies
    trunk = (base + torch.randn(views, studies, WIDTH, generator=draw, dtype=torch.float64)).reshape(n, WIDTH)
    maps = trunk[:, None] + torch.randn(n, CELLS, WIDTH, generator=draw, dtype=torch.float64)
    places = torch.rand(n, CELLS, 2, generator=draw, dtype=torch.float64)
    return {TRUNK: trunk.requires_grad_(), MAPS: maps.requires_grad_(), PLACES: places}


def global_batch(fields: dict[str, Tensor], views: int = 2) -> GlobalBatch:
    studies = len(fields[TRUNK]) // views
    owner = torch.arange(studies).repeat(views)
    rows = {}
    for name, values in fields.items():
        rows[name] = Rows(values, owner)
    one = torch.tensor(1.0)
    return GlobalBatch(None, None, torch.arange(studies), one, None, torch.zeros(studies, 0), (), rows)


def cosine(a: list[float], b: list[float]) -> float:
    size = math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / size if size else 0.0


def minus(a: list[float], b: list[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def spelt_out_edges(z: list[list[float]], k: int) -> list[tuple[int, int]]:
    found = []
    for i in range(len(z)):
        near = sorted((j for j in range(len(z)) if j != i), key=lambda j: -cosine(z[i], z[j]))
        found += [(i, j) for j in near[:k]]
    return found


def spelt_out_propagation(z: list[list[float]], edges: list[tuple[int, int]], layers: Any) -> list[list[float]]:
    n = len(z)
    joined = [[float(i == j or (i, j) in edges or (j, i) in edges) for j in range(n)] for i in range(n)]
    degree = [sum(row) for row in joined]
    for number, layer in enumerate(layers):
        weight = layer.weight.tolist()
        mapped = [[sum(w * v for w, v in zip(row, z[i], strict=True)) for row in weight] for i in range(n)]
        z = [
            [
                sum(joined[i][j] / math.sqrt(degree[i] * degree[j]) * mapped[j][f] for j in range(n))
                for f in range(len(weight))
            ]
            for i in range(n)
        ]
        if number < len(layers) - 1:
            z = [[max(v, 0.0) for v in row] for row in z]
    return z


def spelt_out_local(fields: dict[str, Tensor], i: int, a: int, s: int, t: int, matches: int) -> float:
    def one_way(p: int, q: int) -> float:
        maps, places = fields[MAPS].tolist(), fields[PLACES].tolist()
        total = 0.0
        for distance in (
            lambda c, d: math.dist(places[p][c], places[q][d]),
            lambda c, d: math.dist(maps[p][c], maps[q][d]),
        ):
            closest = sorted(min((distance(c, d), c, d) for d in range(CELLS)) for c in range(CELLS))[:matches]
            total += 0.5 * sum(cosine(maps[p][c], maps[q][d]) for _, c, d in closest) / len(closest)
        return total

    first, second = s * STUDIES + i, t * STUDIES + a
    return 0.5 * (one_way(first, second) + one_way(second, first))


def spelt_out(one: GraphMatching, fields: dict[str, Tensor], s: int = 0, t: int = 1) -> tuple[float, float, float]:
    """Fenchel-Young loss, Hamming distance, share matched: the best of all permutations, group by group."""
    told = one.options
    z = one.head(fields[TRUNK]).detach().tolist()
    loss, hamming = 0.0, 0.0
    for first, last in ((0, 5), (5, 9)):
        group = range(first, last)
        n = last - first
        views = [[z[view * STUDIES + i] for i in group] for view in (s, t)]
        unit = [[[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in view] for view in views]
        mean = [[x + y for x, y in zip(a, b, strict=True)] for a, b in zip(*unit, strict=True)]
        own = told.edges == "own"
        edges = [spelt_out_edges(view if own else mean, min(told.neighbours, (n - 1) // 2)) for view in views]
        nodes = [spelt_out_propagation(view, e, one.layers) for view, e in zip(views, edges, strict=True)]

        def value(p: tuple[int, ...], first: int = first, n: int = n, nodes: Any = nodes, edges: Any = edges) -> float:
            total = 0.0
            for i in range(n):
                c = cosine(nodes[0][i], nodes[1][p[i]])
                local = spelt_out_local(fields, first + i, first + p[i], s, t, told.matches) if told.alpha < 1 else 0.0
                total += told.alpha * c + (1 - told.alpha) * local
            if told.order == "second":
                for i, j in edges[0]:
                    if (p[i], p[j]) in edges[1]:
                        total += cosine(minus(nodes[0][i], nodes[0][j]), minus(nodes[1][p[i]], nodes[1][p[j]]))
            return total

        identity = tuple(range(n))
        best = max(itertools.permutations(range(n)), key=value)
        loss += value(best) - value(identity)
        hamming += 2 * sum(a != b for a, b in zip(best, identity, strict=True))
    return loss / STUDIES, hamming / STUDIES, 1 - hamming / 2 / STUDIES


@pytest.mark.parametrize(
    "changes",
    [{}, {"alpha": 1.0}, {"order": "first"}, {"edges": "own"}, {"layers": 0}, {"alpha": 0.0, "order": "first"},
     {"neighbours": 9}, {"gradient": "imle"}],
)  # fmt: skip
def test_the_loss_is_what_the_identity_falls_short_of_the_best_permutation(changes: dict[str, Any]) -> None:
    """Nine studies as groups of five and four; sums over every permutation, in Python's doubles."""
    one, fields = objective(**changes), read()
    loss, logs = one(global_batch({name: fields[name] for name in one.reads}))
    want, hamming, matched = spelt_out(one, fields)
    assert want > 1e-3  # the identity is not the best already
    assert loss.item() == pytest.approx(hamming if one.options.gradient == "imle" else want, rel=1e-5)
    assert logs["matched"].item() == pytest.approx(matched, abs=1e-6)
    loss.backward()
    for name in one.reads:
        if name == MAPS or (name == TRUNK and one.options.alpha > 0):
            assert fields[name].grad is not None and fields[name].grad.abs().max() > 0, name
    every = [p for p in one.parameters() if p.requires_grad]
    if one.options.alpha > 0:
        assert every and all(p.grad is not None and p.grad.abs().max() > 0 for p in every)


def test_the_gradient_of_an_affinity_is_solution_minus_identity() -> None:
    """Of nodes and of edges; of `imle` a λ-th of it, where the second problem has the identity as its solution."""
    vertex = torch.tensor([[[0.1, 0.9, 0.0], [0.8, 0.2, 0.0], [0.0, 0.0, 1.0]]], requires_grad=True)
    pairs = torch.tensor([[[0, 1], [1, 2]]])
    edge = torch.zeros(1, 2, 2, requires_grad=True)
    problem = Problem(vertex, pairs, pairs, edge)
    objective()._perturbed(problem)["loss"].backward()
    swapped = torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
    assert vertex.grad is not None and edge.grad is not None
    assert torch.equal(vertex.grad[0], swapped - torch.eye(3))
    assert torch.equal(edge.grad[0], -torch.eye(2))  # both edges are kept by the identity and broken by the swap
    want = vertex.grad.clone(), edge.grad.clone()
    vertex.grad = edge.grad = None
    objective(gradient="imle", strength=80.0)._perturbed(problem)["loss"].backward()
    torch.testing.assert_close((vertex.grad, edge.grad), tuple(one / 80 for one in want))
    vertex.grad = edge.grad = None
    objective(gradient="imle", strength=0.1)._perturbed(problem)["loss"].backward()
    assert vertex.grad.abs().max() == 0  # too weak: both problems have one solution, and nothing is learnt


def test_more_samples_are_the_mean_over_noise() -> None:
    one, fields = objective(temperature=0.5, samples=3, alpha=1.0), read()
    batch = global_batch({TRUNK: fields[TRUNK]})
    torch.manual_seed(5)
    together = one(batch)[0]
    alone = objective(temperature=0.5, samples=1, alpha=1.0)
    # Groups of one size draw all their samples before those of the other size.
    losses = []
    torch.manual_seed(5)
    for first, size, count in group_sizes(STUDIES, 5):
        z = alone.head(fields[TRUNK]).view(2, STUDIES, -1)[:, first : first + size * count]
        problem = alone.problem(z[0].view(count, size, -1), z[1].view(count, size, -1), None)
        losses += [alone._perturbed(problem)["loss"].item() / 3 for _ in range(3)]
    assert together.item() == pytest.approx(sum(losses) / STUDIES, rel=1e-6)
    assert together.item() != pytest.approx(one(batch)[0].item(), rel=1e-3)


def test_with_noise_the_loss_is_still_not_negative_and_identical_views_match() -> None:
    fields = read()
    same = {name: values.detach()[:STUDIES].repeat(2, *[1] * (values.ndim - 1)) for name, values in fields.items()}
    loss, logs = objective()(global_batch(same))
    assert loss.item() == pytest.approx(0, abs=1e-6) and logs["matched"].item() == pytest.approx(1)
    noisy, _ = objective(temperature=1.0)(global_batch(fields))
    assert noisy.item() > 0


@pytest.mark.parametrize(
    ("studies", "group", "want"),
    [(32, 16, [(0, 16, 2)]), (7, 4, [(0, 4, 1), (4, 3, 1)]), (3, 16, [(0, 3, 1)]), (1, 16, [(0, 1, 1)]),
     (33, 16, [(0, 11, 3)]), (20, 16, [(0, 10, 2)]), (35, 16, [(0, 12, 2), (24, 11, 1)])],
)  # fmt: skip
def test_no_study_is_left_over(studies: int, group: int, want: list[tuple[int, int, int]]) -> None:
    assert group_sizes(studies, group) == want
    assert sum(size * count for _, size, count in want) == studies


def test_degenerate_batches_have_finite_gradients() -> None:
    """Equal features, one study twice, fewer images than neighbours, one image alone."""
    for make in (
        lambda f: torch.zeros_like(f),
        lambda f: f[:1].expand_as(f),
        lambda f: torch.cat([f[:2], f[:2], f[4:]]),
    ):
        fields = {n: make(v.detach()).clone().requires_grad_() for n, v in read().items()}
        one = objective()
        loss, _ = one(global_batch(fields))
        loss.backward()
        assert math.isfinite(loss.item()) and all(bool(torch.isfinite(p.grad).all()) for p in one.parameters())
    for studies in (1, 2):
        loss, logs = objective()(global_batch(read(studies=studies)))
        loss.backward()
        assert math.isfinite(loss.item()) and 0 <= logs["matched"] <= 1


def test_small_crops_are_matched_with_both_large_ones() -> None:
    one, fields = objective(alpha=1.0), read(views=3)
    loss = one(global_batch({TRUNK: fields[TRUNK]}, views=3))[0].item()
    want = [spelt_out(one, fields, s, t)[0] for s, t in ((0, 1), (0, 2), (1, 2))]
    assert loss == pytest.approx(sum(want) / 3, rel=1e-5)


def test_edges_leave_every_node_and_messages_do_not_cross_groups() -> None:
    z = torch.randn(3, 5, 4, dtype=torch.float64)
    edges = nearest(z, 2)
    assert edges.shape == (3, 10, 2) and (edges[..., 0] != edges[..., 1]).all()
    assert nearest(z, 99).shape == (3, 10, 2)
    layer = torch.nn.Linear(4, 4, bias=False).double()
    moved = z.clone()
    moved[0] += 1
    a, b = (propagated(one, edges, [layer, layer]) for one in (z, moved))
    assert torch.equal(a[1:], b[1:]) and not torch.equal(a[0], b[0])


def test_the_pairs_that_lie_closest_count_and_not_those_most_alike() -> None:
    """One pair at the same place whose features are opposite, and one far apart whose features point one way."""
    s_map, t_map = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[-1.0, 0.0], [0.0, 1.5]])
    s_place, t_place = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [0.6, 1.0]])
    found = local_affinity(*(one[None, None] for one in (s_map, t_map, s_place, t_place)), 1)
    assert found.item() == pytest.approx(0.5 * -1.0 + 0.5 * 1.0)  # by place -1, by features 1


def test_local_affinity_is_turned_round_with_its_views() -> None:
    maps, places = torch.randn(2, 1, 3, 4, 6), torch.rand(2, 1, 3, 4, 2)
    there = local_affinity(maps[0], maps[1], places[0], places[1], 2)
    back = local_affinity(maps[1], maps[0], places[1], places[0], 2)
    torch.testing.assert_close(there, back.mT)
    same = local_affinity(maps[0], maps[0], places[0], places[0], 4)
    torch.testing.assert_close(same.diagonal(dim1=1, dim2=2), torch.ones(1, 3))
