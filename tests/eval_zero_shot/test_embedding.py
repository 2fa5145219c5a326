"""Embedding: everything once, in order, normalised, and the model as it was."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from data_shards.preprocess import View, apply_view
from data_shards.shard_set import ShardSet
from eval_zero_shot import EvalError
from eval_zero_shot.embedding import PackedTexts, embed_images, embed_texts, evaluating, pack_texts, study_texts

from .conftest import GEOMETRY, VIEW, ToyEncoder, tokenize


def states() -> list[object]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


def test_training_state_is_left_as_it_was(toy_shards: ShardSet, toy_encoder: ToyEncoder) -> None:
    toy_encoder.train()
    toy_encoder.frozen.eval()  # one module kept in eval mode by a recipe
    weights = {k: v.clone() for k, v in toy_encoder.state_dict().items()}
    modes, before = [m.training for m in toy_encoder.modules()], states()
    embed_images(toy_encoder, toy_shards, toy_shards.rows("test"), GEOMETRY, VIEW)
    embed_texts(toy_encoder, tokenize, ["bright scan"])
    assert [m.training for m in toy_encoder.modules()] == modes
    assert states() == before
    for name, value in toy_encoder.state_dict().items():
        assert torch.equal(value, weights[name]), name
    toy_encoder.encode_image(torch.ones(2, 1, 4, 8, 8)).study_BD.sum()
    assert torch.is_grad_enabled()


def test_training_state_is_restored_after_a_failure(toy_encoder: ToyEncoder) -> None:
    def fail() -> None:
        with evaluating(toy_encoder):
            assert not toy_encoder.training
            assert not torch.is_grad_enabled()
            torch.rand(3), np.random.rand(), random.random()  # a model that draws while it encodes
            raise RuntimeError("stop")

    toy_encoder.train()
    before = states()
    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert toy_encoder.training
    assert states() == before


def test_tables_cached_while_evaluating_can_be_trained_through() -> None:
    class Caching(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.cache = torch.nn.Parameter(torch.ones(2)), None

        def encode_text(self, batch: PackedTexts) -> object:
            if self.cache is None:
                self.cache = torch.ones(2) * 3
            rows = torch.stack([self.weight * self.cache] * len(batch.lengths))
            return type("Features", (), {"units_UD": rows})

    model = Caching()
    embed_texts(model, tokenize, ["scan"])
    model.encode_text(pack_texts(["scan"], tokenize)).units_UD.sum().backward()
    assert model.weight.grad is not None


def test_images_are_read_once_in_order_and_normalised(toy_shards: ShardSet, toy_encoder: ToyEncoder) -> None:
    rows = toy_shards.rows("test")[::-1]
    out = embed_images(toy_encoder, toy_shards, rows, GEOMETRY, VIEW, batch_size=5)
    assert toy_encoder.images_seen == len(rows)
    assert out.keys == tuple(toy_shards.key(int(row)) for row in rows)
    assert out.patients.tolist() == [toy_shards.patient(int(row)) for row in rows]
    assert out.features_ND.dtype == np.float32
    assert np.allclose(np.linalg.norm(out.features_ND, axis=1), 1)
    source, scan = toy_shards.scan(int(rows[3]))
    toy_encoder.eval()
    expected = toy_encoder.encode_image(torch.from_numpy(apply_view(source, scan, GEOMETRY, VIEW))[None]).study_BD[0]
    assert np.allclose(out.features_ND[3], (expected / expected.norm()).numpy(), atol=1e-6)


def test_batch_size_changes_nothing(toy_shards: ShardSet, toy_encoder: ToyEncoder) -> None:
    rows = toy_shards.rows("test")
    one, many = (embed_images(toy_encoder, toy_shards, rows, GEOMETRY, VIEW, batch_size=b) for b in (1, 24))
    assert np.allclose(one.features_ND, many.features_ND, atol=1e-6)


def test_distinct_texts_are_encoded_once(toy_encoder: ToyEncoder) -> None:
    texts = ["bright scan", "dark scan", "bright scan", "no scan"]
    out = embed_texts(toy_encoder, tokenize, texts, batch_size=2)
    assert list(out) == ["bright scan", "dark scan", "no scan"]
    assert len(toy_encoder.texts_seen) == len(set(toy_encoder.texts_seen)) == 3
    assert np.allclose([np.linalg.norm(v) for v in out.values()], 1)
    assert np.allclose(out["bright scan"], embed_texts(toy_encoder, tokenize, ["bright scan"])["bright scan"])


def test_packing_holds_every_token_and_no_padding() -> None:
    packed = pack_texts(["bright scan", "no", "dark scan scan"], tokenize)
    assert packed.tokens_T.tolist() == [0, 3, 2, 1, 3, 3]
    assert packed.lengths == [2, 1, 3]
    assert packed.cu_seqlens_U1.tolist() == [0, 2, 3, 6]
    assert packed.pair_sample_P.tolist() == packed.pair_unit_P.tolist() == [0, 1, 2]


def test_text_without_tokens_is_refused() -> None:
    with pytest.raises(EvalError, match=r"texts number \[1\] have no tokens"):
        pack_texts(["scan", "  "], tokenize)


def test_random_view_is_refused(toy_shards: ShardSet, toy_encoder: ToyEncoder) -> None:
    with pytest.raises(EvalError, match="random view"):
        embed_images(toy_encoder, toy_shards, [0], GEOMETRY, View("random", (4, 8, 8)))


def test_volume_for_an_image_encoder_is_refused(toy_shards: ShardSet, toy_encoder: ToyEncoder) -> None:
    from data_shards.preprocess import PlanarGeometry

    with pytest.raises(EvalError, match="is a volume, but the geometry is for kind 'image'"):
        embed_images(toy_encoder, toy_shards, [0], PlanarGeometry(), View("centre"))


def test_poisoned_weights_are_named_not_scored(toy_shards: ShardSet, toy_encoder: ToyEncoder) -> None:
    toy_encoder.norm.running_mean[0] = float("nan")
    with pytest.raises(EvalError, match="not finite"):
        embed_images(toy_encoder, toy_shards, [0, 1], GEOMETRY, VIEW)


def test_bf16_is_close_and_fp32_ignores_an_outer_autocast() -> None:
    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.linear = torch.nn.Embedding(64, 16), torch.nn.Linear(16, 16)

        def encode_text(self, batch: PackedTexts) -> object:
            parts = torch.split(self.table(batch.tokens_T), batch.lengths)
            return type("Features", (), {"units_UD": self.linear(torch.stack([p.mean(0) for p in parts]))})

    torch.manual_seed(0)
    model, texts = Linear(), ["bright scan", "dark scan"]
    exact, low = (embed_texts(model, tokenize, texts, precision=p) for p in ("fp32", "bf16"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = embed_texts(model, tokenize, texts, precision="fp32")
    for text in texts:
        assert np.array_equal(exact[text], inside[text])
        assert not np.array_equal(exact[text], low[text])
        assert np.allclose(exact[text], low[text], atol=0.02)
    with pytest.raises(EvalError, match="unknown precision"):
        embed_texts(model, tokenize, texts, precision="fp8")  # type: ignore[arg-type]


def test_report_of_a_study() -> None:
    assert study_texts({"report": " all ", "findings": "x"}) == "all"
    assert study_texts({"report": "", "findings": "a", "impression": "b"}) == "a\nb"
    captions = [{"text": "light", "weight": 0.5}, {"text": "heavy", "weight": 2.0}, {"text": " ", "weight": 3.0}]
    assert study_texts({"report": "", "captions": captions}) == "heavy"
    assert study_texts({"report": None}) == ""
