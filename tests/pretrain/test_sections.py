"""Training with batches about one section: studies, ranks and steps without a text, and what resumes."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pretrain import build
from pretrain.config import load_recipe
from pretrain.module import Pretraining
from pretrain.objectives.base import NoUnits
from tests.pretrain.plugins.two_ranks_sections import batch
from tests.pretrain.test_ranks import TWO, finish
from tests.pretrain.two_ranks import ranks_and_one

OBJECTIVES = [{"name": "contrastive", "units": ["report", "section"]}, {"name": "labels", "weight": 0.5}]


@pytest.fixture
def merlin(make_fit: Callable[..., Any], tmp_path: Path) -> Any:
    """Reports in one step, a section in the next."""
    runs = make_fit(tmp_path, objectives=OBJECTIVES)
    recipe = yaml.safe_load(runs.recipe.read_text())
    recipe["data"]["units"] = {"report": True, "report_text": "findings", "alternate": "anatomy"}
    runs.recipe.write_text(yaml.safe_dump(recipe))
    return runs


def test_two_ranks_have_the_gradients_of_one_where_texts_are_missing(tiny: Any, tmp_path: Path) -> None:
    first, second, one = ranks_and_one("two_ranks_sections", tiny.recipe, tmp_path)
    assert len(one) == 6
    for number, (a, b, alone) in enumerate(zip(first, second, one, strict=True)):
        # DDP waits for every parameter on every rank, whoever has texts.
        assert a["unreached"] == b["unreached"] == alone["unreached"] == []
        assert a["means"] == alone["means"] == (["image"] if number in (2, 3) else ["image", "text"])
        torch.testing.assert_close(a["loss"], alone["loss"])
        text = alone["gradients"]["dual.clip.text.token_embedding.weight"].abs().max()
        assert (text == 0) == (number in (2, 3)), "nobody has a text: nothing is learnt of texts"
        for name, gradient in alone["gradients"].items():
            assert torch.isfinite(gradient).all()
            # Sums of thousands of fp32 terms in another order, where a small entry may be what is left of large ones.
            bound = max(5e-5 * float(gradient.abs().max()), 1e-4)
            torch.testing.assert_close(a["gradients"][name], gradient, rtol=0, atol=bound, msg=name)


def test_a_batch_of_another_kind_counts_nothing_only_where_batches_alternate(tiny: Any) -> None:
    recipe = load_recipe(tiny.recipe, ['objectives=[{"name": "contrastive"}]'])
    torch.manual_seed(0)
    module = Pretraining(recipe, build.build_model(recipe), build.build_objectives(recipe))
    with pytest.raises(NoUnits, match="no text unit of kind report"):
        module.compute(batch(0, slice(0, 5)))


def test_sections_are_trained_and_resumed_bit_for_bit(merlin: Any, equal: Any, plugins: None, monkeypatch: Any) -> None:
    recipe = yaml.safe_load(merlin.recipe.read_text())
    recipe["objectives"] = [{"name": "trouble:Trouble"}, *OBJECTIVES]
    merlin.recipe.write_text(yaml.safe_dump(recipe))
    monkeypatch.setenv("TROUBLE", '{"logs": 0}')
    assert merlin("whole") == 0
    monkeypatch.setenv("TROUBLE", f'{{"signal_at": 5, "signal": {int(signal.SIGTERM)}}}')
    assert merlin("stopped", data__workers=2) == 143
    monkeypatch.setenv("TROUBLE", '{"logs": 0}')
    assert merlin.resume("stopped") == 0
    assert equal(merlin.weights("stopped"), merlin.weights("whole"))
    assert merlin.metrics("stopped") == merlin.metrics("whole")


def test_with_parts_a_run_goes_through_and_learns_from_both(merlin: Any) -> None:
    assert merlin("parts", train__chunk=2, train__steps=4) == 0
    rows = [row.split(",") for row in merlin.metrics("parts")]
    assert {"loss/contrastive", "loss/labels"} <= {row[1] for row in rows}
    assert all(float(row[2]) == float(row[2]) for row in rows[1:])


@pytest.mark.full
def test_two_ranks_train_on_sections_like_one(merlin: Any) -> None:
    same = {"model__image__token_dropout": 0.0, "train__steps": 6}
    code, said = finish(merlin.start("two", **TWO, **same, train__batch_size=2))
    assert code == 0, said
    assert merlin("one", **same, train__batch_size=4) == 0
    for name, value in merlin.weights("one").items():
        torch.testing.assert_close(merlin.weights("two")[name], value, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.full
def test_sharded_weights_train_in_stages_and_on_sections_like_whole_ones(merlin: Any) -> None:
    same = {"model__image__token_dropout": 0.0, "train__steps": 6}
    staged = [{**OBJECTIVES[0], "schedule": [[0.34, 1.0]]}, OBJECTIVES[1]]  # the text tower rests for two steps
    for name, strategy in (("ddp", "ddp"), ("fsdp2", "fsdp2")):
        code, said = finish(merlin.start(name, **TWO, **same, train__strategy=strategy, objectives=staged))
        assert code == 0, said
    for name, value in merlin.weights("ddp").items():
        torch.testing.assert_close(merlin.weights("fsdp2")[name], value, rtol=1e-3, atol=2e-5, msg=name)
