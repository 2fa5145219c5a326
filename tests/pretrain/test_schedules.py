"""Terms that count for a part of the run: when, what rests with them, and what is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from encoders.dual import DualEncoder
from pretrain import build
from pretrain.config import ConfigError, load_recipe
from pretrain.module import Pretraining
from pretrain.objectives.base import Surroundings
from pretrain.schema import ObjectiveSection
from tests.pretrain.recipes import RECIPE
from tests.pretrain.test_grad_cache import batch
from tests.pretrain.test_ranks import TWO, finish

STAGED = [
    {"name": "labels", "schedule": [[0.0, 1.0], [0.5, 0.25]]},
    {"name": "contrastive", "schedule": [[0.5, 1.0]]},
]


@pytest.mark.parametrize(
    ("schedule", "steps", "factors"),
    [
        (None, 3, [1, 1, 1]),
        (((0.0, 1.0), (0.3, 0.1)), 10, [1, 1, 1] + [0.1] * 7),
        (((0.3, 2.0),), 10, [0, 0, 0] + [2] * 7),
        (((0.0, 1.0), (0.25, 0.0), (0.75, 3.0)), 4, [1, 0, 0, 3]),
        (((0.0, 1.0), (0.3, 0.5), (0.4, 0.25)), 2, [1, 0.25]),  # so short a run has no step between .3 and .4
    ],
)
def test_factors(schedule: Any, steps: int, factors: list[float]) -> None:
    section = ObjectiveSection(name="x", schedule=schedule)
    assert [section.factor(step, steps) for step in range(steps)] == factors


def refused(tmp_path: Path, *overrides: str) -> str:
    path = tmp_path / "trial.yaml"
    path.write_text(RECIPE)
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path), overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("schedules", "key", "said"),
    [
        (("[[0.2, 1]]", "[[0.3, 1]]"), "objectives  ", "from 0 of the run on, every term rests"),
        (("[[0, 1], [0.4, 0]]", "[[0.6, 1]]"), "objectives  ", "from 0.4 of the run on, every term rests"),
        (("[[0, 1], [0.4, 0]]", "[[0, 1], [0.7, 0]]"), "objectives  ", "from 0.7 of the run on, every term rests"),
        (("[[0.5, 1], [0.4, 0]]", "null"), "objectives.0.schedule", "must ascend: 0.5, 0.4"),
        (("[[0, 1], [0, 2]]", "null"), "objectives.0.schedule", "must ascend"),
        (("[[0, 1], [1.0, 2]]", "null"), "objectives.0.schedule", "when the run is over"),
        (("[[0, 0], [0.4, 0]]", "null"), "objectives.0.schedule", "would never count"),
        (("[[0, -1]]", "null"), "objectives.0.schedule.0.1", "at least 0"),
        (("[[2, 1]]", "null"), "objectives.0.schedule.0.0", "at most 1"),
        (("[]", "null"), "objectives.0.schedule", "an empty list"),
        (("[[0.5]]", "null"), "objectives.0.schedule.0", "too short"),
    ],
)
def test_a_gap_and_a_schedule_that_makes_no_sense_are_refused(
    tmp_path: Path, schedules: tuple[str, str], key: str, said: str
) -> None:
    message = refused(tmp_path, *(f"objectives.{i}.schedule={s}" for i, s in enumerate(schedules)))
    assert key in message and said in message


def test_a_gap_may_be_filled_by_another_term_and_weight_0_fills_none(tmp_path: Path) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text(RECIPE)
    halves = ["objectives.0.schedule=[[0, 1], [0.4, 0]]", "objectives.1.schedule=[[0.4, 1]]"]
    assert load_recipe(str(path), halves).objectives[1].schedule == ((0.4, 1.0),)
    assert "from 0.4 of the run on" in refused(tmp_path, *halves, "objectives.1.weight=0")


@pytest.fixture
def staged(make_fit: Callable[..., Any], tmp_path: Path) -> Any:
    return make_fit(tmp_path, objectives=STAGED, train={"steps": 6})


def logged(runs: Any, name: str) -> set[str]:
    """Steps and losses of a metrics file: what is logged is what was computed."""
    rows = [row.split(",") for row in runs.metrics(name)[1:]]
    return {f"{step} {what}" for step, what, _ in rows if what.startswith("loss/")}


def test_a_staged_run_goes_through_and_computes_what_counts(staged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """For half of the run texts are not even encoded."""
    calls: list[int] = []
    whole = DualEncoder.encode_text

    def counted(self: DualEncoder, text: Any) -> Any:
        calls.append(1)
        return whole(self, text)

    monkeypatch.setattr(DualEncoder, "encode_text", counted)
    assert staged("run") == 0
    assert len(calls) == 3
    assert logged(staged, "run") == {"1 loss/labels", "6 loss/labels", "6 loss/contrastive"}


def steps_of(staged: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[dict[str, Tensor]]:
    """Weights before the first and after each of six steps, by hand."""
    recipe = load_recipe(str(staged.recipe), [*words, "optim.weight_decay=0.5", "optim.lr=0.01"])
    torch.manual_seed(0)
    dual, objectives = build.build_model(recipe), build.build_objectives(recipe)
    for objective in objectives:
        objective.attach(Surroundings(dual, ("a", "b", "c"), lambda: torch.ones(1, 3)))
    module = Pretraining(recipe, dual, objectives).train()
    optimizers = module.configure_optimizers()
    monkeypatch.setattr("pretrain.module.no_sync", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(Pretraining, "trainer", None)
    monkeypatch.setattr(Pretraining, "all_optimizers", optimizers)
    monkeypatch.setattr(module, "manual_backward", lambda loss, **how: loss.backward(**how))
    states = [{name: p.detach().clone() for name, p in module.named_parameters()}]
    for number in range(recipe.train.steps):
        module.training_step(batch(4), number)
        states.append({name: p.detach().clone() for name, p in module.named_parameters()})
    return states


@pytest.mark.parametrize("chunk", ["null", "2"])
def test_what_only_a_resting_term_reaches_stays_as_it_is(
    staged: Any, monkeypatch: pytest.MonkeyPatch, chunk: str
) -> None:
    """Before it begins, and after it has ended, when there would be momentum and decay."""
    begins = ["objectives.0.schedule=null", "objectives.1.schedule=[[0.5, 1]]", f"train.chunk={chunk}"]
    ends = ["objectives.0.schedule=null", "objectives.1.schedule=[[0, 1], [0.5, 0]]", f"train.chunk={chunk}"]
    for words, at_rest in ((begins, range(3)), (ends, range(3, 6))):
        states = steps_of(staged, monkeypatch, *words)
        for step in range(6):
            before, after = states[step], states[step + 1]
            moved = {name for name in before if not torch.equal(before[name], after[name])}
            of_text = {name for name in moved if name.startswith("dual.clip.text")}
            assert any(name.startswith("dual.clip.visual.trunk") for name in moved)
            assert "objectives.0.head.weight" in moved
            assert bool(of_text) == ("dual.clip.logit_scale" in moved) == (step not in at_rest), (words, step)


def test_an_objective_that_rests_keeps_its_own_parameters(staged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    states = steps_of(staged, monkeypatch, "objectives.1.schedule=null", "objectives.0.schedule=[[0, 1], [0.5, 0]]")
    head = [state["objectives.0.head.weight"] for state in states]
    assert [not torch.equal(a, b) for a, b in pairwise(head)] == [True] * 3 + [False] * 3


@pytest.mark.full
def test_two_ranks_are_staged_like_one(staged: Any) -> None:
    """DDP waits for every parameter; those at rest have none to give."""
    same = {"model__image__token_dropout": 0.0, "optim__weight_decay": 0.5}
    for chunk in (None, 1):
        code, said = finish(staged.start(f"two{chunk}", **TWO, **same, train__batch_size=2, train__chunk=chunk))
        assert code == 0, said
    assert staged("one", **same, train__batch_size=4) == 0
    for name, value in staged.weights("one").items():
        for chunk in (None, 1):
            torch.testing.assert_close(staged.weights(f"two{chunk}")[name], value, rtol=1e-3, atol=2e-5, msg=name)
