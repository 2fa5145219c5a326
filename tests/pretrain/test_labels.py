"""The objective `labels`: its loss against plain Python, who gets its gradient, which labels it learns, its release."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import encoders
from data_shards.shard_set import ShardSet
from data_shards.stream import UnitPolicy, ordered_pass
from pretrain import build
from pretrain.config import load_recipe
from pretrain.errors import ConfigError
from pretrain.module import Pretraining
from pretrain.objectives.base import Surroundings
from pretrain.objectives.labels import Labels, Targets
from pretrain.passes import Rows, whole
from pretrain.schema_objectives import LabelsOptions
from tests.pretrain.test_grad_cache import batch

NAN = float("nan")
TREE = "child,parent\na,ab\nb,ab;root\nab,root\nc,other\n"
# Training studies: a is present in 2 of 6 known, b in 1 of 4, c in none of 3.
TRAIN = torch.tensor([[1, 0, 0], [1, NAN, 0], [0, 1, 0], [0, 0, NAN], [0, 0, NAN], [0, NAN, NAN]], dtype=torch.float32)


@pytest.fixture
def tree(tmp_path: Path) -> str:
    path = tmp_path / "tree.csv"
    path.write_text(TREE)
    return str(path)


@pytest.fixture
def attached(tiny: Any) -> Callable[..., Labels]:
    recipe = load_recipe(tiny.recipe)
    torch.manual_seed(0)
    dual = build.build_model(recipe)

    def make(have: tuple[str, ...] = ("a", "b", "c"), train: Tensor = TRAIN, **options: Any) -> Labels:
        objective = Labels(LabelsOptions(**options))
        objective.attach(Surroundings(dual, have, lambda: train))
        return objective

    return make


def spelt_out(logits: Tensor, wanted: list[list[float]], weights: list[float]) -> tuple[float, int]:
    """Sum over known pairs and their number, in Python's double precision."""
    total, known = 0.0, 0
    for row, targets in zip(logits.tolist(), wanted, strict=True):
        for z, y, w in zip(row, targets, weights, strict=True):
            if y == y:
                p = 1 / (1 + math.exp(-z))
                total += -w * y * math.log(p) - (1 - y) * math.log(1 - p)
                known += 1
    return total, known


def test_positives_go_up_and_absence_stays_where_it_is() -> None:
    below = {"ab": ["a", "b"], "root": ["a", "b"], "b": ["a"]}
    targets = Targets(("a", "b"), ("b", "root", "a"), below)
    nothing, some = NAN, torch.tensor
    labels = some([[1, 0], [nothing, 1], [0, nothing], [0, 0], [nothing, nothing], [1, nothing]])
    # root has no label of its own: absent where a and b are, unknown where one of them is and none is present.
    wanted = some([[1, 1, 1], [1, 1, nothing], [nothing, nothing, 0], [0, 0, 0], [nothing] * 3, [1, 1, 1]])
    torch.testing.assert_close(targets(labels), wanted, equal_nan=True)


@pytest.mark.parametrize("weight", [None, 1.5, 10.0])
def test_the_loss_in_double_precision(attached: Any, tree: str, weight: float | None) -> None:
    objective = attached(hierarchy=tree, pos_weight=weight)
    assert objective.head.labels == ("a", "b", "ab", "root"), "c and what is above it are present in no study"
    whole_batch = batch(7)
    labels = torch.tensor([[1, 0, 0], [0, NAN, 1], [NAN, 1, NAN], [0, 0, 0], [NAN] * 3, [NAN, 0, 1], [0, 1, 0]])
    whole_batch.labels_BL = labels
    n = NAN
    wanted = [[1, 0, 1, 1], [0, n, n, n], [n, 1, 1, 1], [0, 0, 0, 0], [n] * 4, [n, 0, n, n], [0, 1, 1, 1]]
    part = whole(whole_batch)
    torch.manual_seed(1)
    trunk = torch.randn(7, objective.head.in_features)
    loss, logged = objective.each({"image:global.trunk": Rows(trunk, part.study_b)}, part)
    # a: 2 present, 4 absent; b: 1, 3; ab and root: 3 present, 2 absent in all that is known of them
    bound = 1.0 if weight is None else weight
    weights = [min(bound, max(1.0, x)) for x in (4 / 2, 3 / 1, 2 / 3, 2 / 3)]
    expected, known = spelt_out(objective.head(trunk).double(), wanted, weights)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(objective.terms(whole_batch)) == known == 17
    assert 0 <= float(logged["accuracy"]) <= known


def module_of(tiny: Any, *words: str) -> Pretraining:
    recipe = load_recipe(tiny.recipe, ["model.image.token_dropout=0.5", 'objectives=[{"name": "labels"}]', *words])
    torch.manual_seed(0)
    dual, objectives = build.build_model(recipe), build.build_objectives(recipe)
    for objective in objectives:
        objective.attach(Surroundings(dual, ("a", "b", "c"), lambda: torch.ones(1, 3)))
    return Pretraining(recipe, dual, objectives).train()


def test_the_gradient_reaches_trunk_and_head_and_nothing_else(tiny: Any) -> None:
    module = module_of(tiny)
    module.compute(batch()).backward()
    reached = {n for n, p in module.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {"objectives.0.head.weight", "objectives.0.head.bias"} <= reached
    trunk = {n for n, _ in module.named_parameters() if n.startswith("dual.clip.visual.trunk.")}
    assert {n for n in trunk if n.endswith("weight")} <= reached
    assert not {n for n in reached if n.startswith(("dual.clip.text", "dual.clip.visual.head", "dual.clip.logit"))}


def test_in_parts_it_is_the_same(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown labels are spread unevenly over the parts, and token dropout is off: parts draw their own."""
    monkeypatch.setattr("pretrain.module.no_sync", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(Pretraining, "trainer", None)
    found = []
    for chunk in ("null", "3", "1"):
        module = module_of(tiny, f"train.chunk={chunk}", "model.image.token_dropout=0.0")
        monkeypatch.setattr(module, "manual_backward", lambda loss, **how: loss.backward(**how))
        loss = module._backward(batch(), last=True)
        found.append((loss, {n: p.grad for n, p in module.named_parameters() if p.grad is not None}))
    (want_loss, want), *others = found
    for loss, got in others:
        torch.testing.assert_close(loss, want_loss)
        assert want["objectives.0.head.weight"].abs().max() > 0
        for name, gradient in want.items():
            torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_names_from_a_list_and_from_a_file(attached: Any, tree: str, tmp_path: Path) -> None:
    assert attached(names=("b", "a", "b")).head.labels == ("b", "a")
    (tmp_path / "names.txt").write_text("root\n\n a \n")
    assert attached(names=str(tmp_path / "names.txt"), hierarchy=tree).head.labels == ("root", "a")
    assert attached().head.options["labels"] == ["a", "b"]


def test_rare_labels_are_left_out_and_said_so(attached: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert attached(min_positives=2).head.labels == ("a",)
    assert "2 of 3 are present in fewer than 2 training studies" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "said"),
    [
        ({"min_positives": 3}, "none of 3 labels is present in 3 training studies"),
        ({"names": ("a", "cc")}, "1 of 2 are no labels of the shards.*: cc"),
        ({"names": ("root",)}, "no labels of the shards"),
    ],
)
def test_what_cannot_be_learnt_is_refused(attached: Any, make: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        attached(**make)


def test_a_hierarchy_of_other_codes_is_refused(attached: Any, tree: str) -> None:
    with pytest.raises(ConfigError, match="none of its codes is a label of the shards"):
        attached(("x", "y", "z"), hierarchy=tree)
    with pytest.raises(ConfigError, match="the shard set has no labels"):
        attached(())


def test_as_many_labels_as_merlin_has(attached: Any, tmp_path: Path) -> None:
    """1,692 phecodes three levels deep; most of them unknown in most studies."""
    codes = [f"{i // 100}.{i % 100:02d}" for i in range(1692)]
    rows = "".join(f"{code},{code[:-1]}\n{code[:-1]},{code.partition('.')[0]}\n" for code in codes)
    (tmp_path / "phecodes.csv").write_text("child,parent\n" + rows)
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.choice([0, 1, NAN], (40, 1692), p=[0.45, 0.05, 0.5]).astype(np.float32))
    objective = attached(tuple(codes), labels, hierarchy=str(tmp_path / "phecodes.csv"))
    names = objective.head.labels
    targets = objective.targets(labels)
    for name in ("16.9", "3"):  # of ten codes and of a hundred
        columns = [i for i, code in enumerate(codes) if code.startswith(name if "." in name else f"{name}.")]
        expected = (labels[:, columns] == 1).any(1)
        assert torch.equal(targets[:, names.index(name)] == 1, expected)
    assert len(names) == objective.head.out_features > 1500


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    known = ~np.isnan(labels)
    return float(roc_auc_score(labels[known], scores[known]))


def test_the_released_head_scores_studies(make_fit: Any, tmp_path: Path, shards: Path) -> None:
    """A label that is seen in the scans (a bright ball) is learnt; who loads the release gets it by name."""
    objectives = [{"name": "contrastive"}, {"name": "labels", "names": ["nodule"], "weight": 4.0}]
    runs = make_fit(tmp_path, objectives=objectives, train={"steps": 30})
    tower = "voxvit_tiny.p-8x8x8_i-16x32x32_c-1_s-extremes_o-grid_l-0"
    assert runs("run", model__image={"name": tower}, optim__lr=5e-3) == 0
    said = " ".join(runs.metrics("run"))
    assert "loss/labels" in said and "labels/accuracy" in said
    release = encoders.load(str(runs.folder("run") / "release"))
    head = release.heads["labels"]
    assert head.labels == ("nodule",)
    opened = ShardSet.open(shards)
    rows = np.concatenate([opened.rows(split) for split in ("val", "test")])
    scores = []
    for part in ordered_pass(opened, rows, release.geometry, release.view, release.tokenizer, UnitPolicy(), 4):
        with torch.no_grad():
            scores.append(head(release.model.encode_image(part.images_BCDHW, trunk=True).trunk_SC))
    assert auroc(torch.cat(scores)[:, 0].numpy(), opened.labels(("nodule",))[rows, 0]) > 0.9
