"""Tokens that are padding: counted as the towers compute them, logged, and told at the end of a run."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from encoders.attention import GROWTH, Packing
from encoders.dual import build_dual
from encoders.text import computed_tokens, encode_foreign
from pretrain.passes import split, whole
from pretrain.text_tokens import Tokens, tokens_of
from tests.pretrain.test_grad_cache import batch

LENGTHS = (3, 4, 4, 9, 30, 31, 64, 5)


class Foreign(nn.Module):
    """A tower that remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.seen += tokens.numel()
        return tokens.sum(1, keepdim=True)


def test_a_foreign_tower_is_given_what_is_counted() -> None:
    tower = Foreign()
    encode_foreign(tower, torch.ones(sum(LENGTHS), dtype=torch.int64), Packing(LENGTHS), pad_id=0)
    assert tower.seen == computed_tokens(tower, LENGTHS)
    assert sum(LENGTHS) <= tower.seen <= GROWTH * sum(LENGTHS) + 2 * len(LENGTHS)
    assert tower.seen < len(LENGTHS) * 64 / 3, "of which most would be padding"


def test_a_packed_tower_computes_no_padding() -> None:
    vision = {"layers": 1, "width": 64, "patch_size": 16, "image_size": 32}
    text = {"context_length": 64, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    cfg = {"embed_dim": 16, "custom_text": True, "vision_cfg": vision}
    packed = build_dual({**cfg, "text_cfg": text}).clip.text
    assert computed_tokens(packed, LENGTHS) == sum(LENGTHS)
    bidirectional = build_dual({**cfg, "text_cfg": {**text, "no_causal_mask": True}}).clip.text
    assert computed_tokens(bidirectional, LENGTHS) == 64 * len(LENGTHS), "padding is part of its numbers"


@pytest.mark.parametrize("chunk", [None, 3])
def test_counts_of_a_batch_and_of_its_parts(chunk: int | None) -> None:
    made = batch()
    dual: Any = SimpleNamespace(clip=SimpleNamespace(text=Foreign()))
    parts = [whole(made)] if chunk is None else split(made, chunk)
    found = tokens_of(dual, parts, 12)
    lengths = made.texts.lengths
    assert (found.texts, found.real, found.padded) == (len(lengths), sum(lengths), 12 * len(lengths))
    assert found.cut == sum(n >= 12 for n in lengths) > 0
    assert found.computed == sum(computed_tokens(dual.clip.text, tuple(lengths[part.units])) for part in parts)
    assert found + found == Tokens(*(2 * n for n in (found.texts, found.real, found.computed, found.padded, found.cut)))


def test_a_run_logs_and_tells_it(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny("run", train__steps=3, train__chunk=2) == 0
    rows = [row.split(",") for row in tiny.metrics("run")[1:]]
    last = {name: float(value) for step, name, value in rows if step == "3" and name.startswith("text/")}
    assert last.keys() == {"text/tokens", "text/wasted", "text/wasted_if_padded", "text/cut"}
    assert last["text/wasted"] == 0 and 0.5 < last["text/wasted_if_padded"] < 1
    (told,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("text")]
    assert re.fullmatch(
        r"text     \d+\.\d tokens a text of at most 64: 0\.0 % of what was computed was padding, "
        r"[5-9]\d\.\d % if texts were padded to the context; \d\.\d % of texts were cut", told,
    )  # fmt: skip


def test_a_hugging_face_tower_is_bucketed_by_length(tiny: Any, tmp_path: Path) -> None:
    """Some padding is left, far less than to the context."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `hf`")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "there", "is", "a", "nodule", "case", "the", "."]
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    assert tiny("run", train__steps=3, model__text={"hf_name": str(folder), "context_length": 64}) == 0
    rows = [row.split(",") for row in tiny.metrics("run")[1:]]
    last = {name: float(value) for step, name, value in rows if step == "3" and name.startswith("text/")}
    assert 0 < last["text/wasted"] < 0.25 < 0.5 < last["text/wasted_if_padded"]
