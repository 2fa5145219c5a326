"""Statistics that a stem takes of voxels, of a batch in parts: of all of it, made once, and a teacher's apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from encoders.stem import Extremes, Standardise
from pretrain.errors import ConfigError
from tests.pretrain.test_grad_cache import batch, cached, fixed_seed, in_one_graph, module_of, same_gradient

assert fixed_seed


def test_statistics_of_blocks_are_made_once_a_step(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is learnt in them, so the second pass takes those of the first, of volumes and of drawn views."""
    words = [
        "model.image.name=voxvit_tiny.p-8x16x16_i-16x32x32_c-1_s-extremes_l-1", "model.image.token_dropout=0.5",
        'objectives=[{"name": "contrastive"}, {"name": "simclr", "dim": 8}, {"name": "attended", "heads": 2}]',
        "train.chunk=3",
    ]  # fmt: skip
    module, whole = module_of(tiny, words), batch()
    cached(module, whole)  # the first step standardises by what it sees
    seen: list[int] = []
    computed = Extremes._computed

    def counted(stem: Extremes, x: Tensor) -> Tensor:
        seen.append(len(x))
        return computed(stem, x)

    monkeypatch.setattr(Extremes, "_computed", counted)
    for objectives in (words[2], 'objectives=[{"name": "attended", "heads": 2}]'):  # they are kept, and counted
        with pytest.raises(ConfigError, match="mostly statistics of blocks"):
            cached(module_of(tiny, [*words[:2], objectives, "train.chunk=3", "train.cache_gib=1e-5"]), whole)
    seen.clear()
    want_loss, want = in_one_graph(module, whole, 3)
    assert sum(seen) == 3 * 7
    seen.clear()
    loss, got = cached(module, whole)
    assert sum(seen) == 3 * 7
    torch.testing.assert_close(loss, want_loss, rtol=1e-5, atol=1e-6)
    same_gradient(got, want)


@pytest.mark.parametrize("beside", ['{"name": "byol", "dim": 8, "hidden": 8}', '{"name": "distillation", "width": 8}'])
def test_statistics_of_a_teacher_are_its_own(tiny: Any, beside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks in the first pass alone, at other views."""
    words = [
        "model.image.name=voxvit_tiny.p-8x16x16_i-16x32x32_c-1_s-extremes_l-1", "model.image.token_dropout=0.5",
        f'objectives=[{{"name": "contrastive"}}, {beside}, {{"name": "simclr", "dim": 8}}]', "train.chunk=3",
    ]  # fmt: skip
    whole, found = batch(), []
    for _ in range(2):
        found.append(cached(module_of(tiny, words), whole))
        monkeypatch.setattr("encoders.stem.once", lambda make: make())
    (loss, gradients), (want_loss, want) = found
    assert torch.equal(loss, want_loss) and gradients.keys() == want.keys()
    assert all(torch.equal(gradients[name], want[name]) for name in want)


def test_a_stem_takes_its_statistics_from_the_whole_first_batch(tiny: Any) -> None:
    """Volumes of other contrast than the first part's; dropped tokens are another choice in parts, so none are."""
    words = ["model.image.name=voxvit_tiny.p-8x16x16_i-16x32x32_c-1_s-extremes_l-1", "model.image.token_dropout=0.0"]
    whole, found, statistics = batch(), {}, []
    whole.images_BCDHW.mul_(torch.linspace(0.2, 3.0, 7).view(7, 1, 1, 1, 1))
    for chunk in ("null", "3", "1"):
        module = module_of(tiny, [*words, f"train.chunk={chunk}"])
        for layer in module.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        found[chunk] = cached(module, whole)[1]
        [stem] = [layer for layer in module.modules() if isinstance(layer, Standardise)]
        assert bool(stem.known)
        statistics.append(torch.cat([stem.mean_C, stem.inverse_C]))
        stem.known.fill_(False)  # as after a refused update: the next batch is measured, again all of it
        cached(module, whole)
        torch.testing.assert_close(torch.cat([stem.mean_C, stem.inverse_C]), statistics[-1], rtol=0, atol=0)
    for chunk, seen in (("3", statistics[1]), ("1", statistics[2])):
        torch.testing.assert_close(seen, statistics[0], rtol=1e-6, atol=1e-7)
        same_gradient(found[chunk], found["null"])
