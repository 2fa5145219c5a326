"""Training on volumes that come as values: the gradient is that of their windows, made once a part."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from data_shards.windows import Windows
from pretrain import build, studies
from pretrain.config import load_recipe
from tests.pretrain.test_grad_cache import batch as studies_of
from tests.pretrain.test_grad_cache import cached, fixed_seed, module_of

assert fixed_seed  # a fixture
WORDS = [
    "model.image.token_dropout=0.5", "model.image.name=voxvit_tiny.p-8x16x16_i-16x32x32_c-1_l-1",
    'objectives=[{"name": "contrastive"}, {"name": "distillation"}, {"name": "masked_image", "width": 96}]',
]  # fmt: skip


@pytest.mark.parametrize(("chunk", "made"), [("3", 5), ("null", 1)])
def test_the_gradient_is_that_of_the_windows(tiny: Any, monkeypatch: pytest.MonkeyPatch, chunk: str, made: int) -> None:
    shown = studies_of(7)
    values = torch.randint(-1200, 1200, shown.images_BCDHW.shape, generator=torch.Generator().manual_seed(0)).half()
    raw = replace(shown, images_BCDHW=values, windows=Windows(((-1000.0, 400.0),), None))
    shown = replace(shown, images_BCDHW=raw.images())
    want_loss, want = cached(module_of(tiny, [*WORDS, f"train.chunk={chunk}"]), shown)

    calls: list[int] = []

    def counted(windows: Windows, values: Tensor, make: Any = Windows.__call__) -> Tensor:
        calls.append(len(values))
        return make(windows, values)

    module = module_of(tiny, [*WORDS, f"train.chunk={chunk}"])
    module._began_in_parts = True  # the prediction before the first step looks at a part as well
    monkeypatch.setattr(Windows, "__call__", counted)
    loss, got = cached(module, raw)
    assert torch.equal(loss, want_loss) and got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert len(calls) == made, "once a part and pass, whatever looks at them; the last part goes through once"
    assert module._batch is None, "the next batch is moved to the device before this one would be freed"


def test_what_goes_to_a_gpu_comes_as_values(tiny: Any) -> None:
    recipe = load_recipe(tiny.recipe, [])
    data = studies.build_data(recipe)
    stream = build.training_stream(recipe, data, build.tokenizer(recipe), 0, 1, 0, to_gpu=True)
    assert next(iter(stream)).images_BCDHW.dtype == torch.float16 and stream.pin_memory
    here = build.training_stream(recipe, data, build.tokenizer(recipe), 0, 1, 0)
    assert next(iter(here)).images_BCDHW.dtype == torch.float32 and not here.pin_memory


@pytest.mark.parametrize("stem", ["", "_s-extremes_o-grid"])
def test_windows_of_one_part_live_at_a_time(tiny: Any, monkeypatch: pytest.MonkeyPatch, stem: str) -> None:
    """Fixed statistics of a stem are measured of all parts before the first step; and none is needed going backward."""
    name = f"model.image.name=voxvit_tiny.p-8x16x16_i-16x32x32_c-1{stem}_l-1"
    objectives = '[{"name": "contrastive"}, {"name": "distillation"}]'
    module = module_of(tiny, [name, f"objectives={objectives}", "train.chunk=3", "model.image.token_dropout=0.5"])
    values = torch.randint(-1200, 1200, (7, 1, 16, 32, 32), generator=torch.Generator().manual_seed(0)).half()
    raw = replace(studies_of(7), images_BCDHW=values, windows=Windows(((-1000.0, 400.0),), None))
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def kept(windows: Windows, values: Tensor, make: Any = Windows.__call__) -> Tensor:
        alive.append(sum(one() is not None for one in made))
        found = make(windows, values)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(Windows, "__call__", kept)
    backward: list[int] = []

    def manual_backward(loss: Tensor, **how: Any) -> None:
        backward.append(sum(one() is not None for one in made))
        loss.backward(**how)

    module.manual_backward = manual_backward  # type: ignore[method-assign,assignment]
    module._backward(raw, last=True)
    assert len(alive) == (9 if stem else 6) and set(alive) <= {0, 1}
    assert backward == [1, 0, 0, 0], "the last part's are kept from its first pass to its losses"
    assert not any(one() is not None for one in made)


@pytest.mark.parametrize(("accelerator", "gpu"), [("auto", True), ("cpu", False)])
def test_a_run_on_a_gpu_asks_for_values(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, accelerator: str, gpu: bool
) -> None:
    class Asked(Exception):
        pass

    def training_stream(*_: Any, to_gpu: bool = False, **__: Any) -> None:
        raise Asked(to_gpu)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("pretrain.training.make_trainer", lambda *_: None)  # there is no GPU to drive
    monkeypatch.setattr("pretrain.build.training_stream", training_stream)
    with pytest.raises(Asked) as asked:
        tiny("run", train__accelerator=accelerator)
    assert asked.value.args == (gpu,)
