"""Packed text towers give the numbers of open_clip's padded ones; foreign towers run as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.attention import Packing
from encoders.dual import DualEncoder, build_dual
from encoders.text import encode_foreign, is_packable
from encoders.tokenize import BPE, HFTokenizer, pack

LONG = " ".join(f"nodule {i} in the right upper lobe ," for i in range(30))


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs.float()).norm().detach() / theirs.float().norm().detach())


@pytest.fixture
def dual(make_dual: Callable[..., DualEncoder]) -> DualEncoder:
    return make_dual()


def both(dual: DualEncoder, texts: tuple[str, ...], context: int = 48) -> tuple[Tensor, Tensor]:
    """Features by our packed tower and by open_clip's, of its own padded tokens."""
    packed = dual.encode_units(*pack(texts, BPE(context)))
    return packed, dual.clip.encode_text(open_clip.SimpleTokenizer(context_length=context)(list(texts)))


def test_packed_equals_padded(dual: DualEncoder, texts: tuple[str, ...]) -> None:
    assert is_packable(dual.clip.text)
    packed, padded = both(dual, (*texts, LONG))
    assert relative(packed, padded) < 1e-6


def test_packed_equals_padded_in_bf16(model_cfg: Callable[..., dict[str, Any]], texts: tuple[str, ...]) -> None:
    """The quickstart's text tower. Both roads round at other places; neither may be further from fp32."""
    torch.manual_seed(0)
    cfg = model_cfg("resnet10t", width=192, heads=4, layers=4)
    dual = build_dual({**cfg, "embed_dim": 256}).eval()
    with torch.no_grad():
        exact = F.normalize(both(dual, (*texts, LONG))[0], dim=-1)
        with torch.autocast("cpu", torch.bfloat16):
            packed, padded = (F.normalize(x.float(), dim=-1) for x in both(dual, (*texts, LONG)))
    assert float((packed - padded).abs().max()) < 2e-3
    assert relative(packed, exact) < 1.25 * relative(padded, exact)


def test_gradients_are_equal(dual: DualEncoder, texts: tuple[str, ...]) -> None:
    grads = []
    for which in (0, 1):
        dual.zero_grad()
        both(dual, texts)[which].square().sum().backward()
        grads.append({n: p.grad.clone() for n, p in dual.clip.text.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        # A key's bias moves all scores of a query alike, which softmax forgets: its gradient is only rounding.
        if not name.endswith("in_proj_bias"):
            assert relative(grad, grads[1][name]) < 1e-5, name


def test_grad_checkpointing_changes_nothing(dual: DualEncoder, texts: tuple[str, ...]) -> None:
    grads = []
    for enabled in (False, True):
        dual.clip.set_grad_checkpointing(enabled)
        dual.zero_grad()
        both(dual, texts)[0].square().sum().backward()
        grads.append([p.grad.clone() for p in dual.clip.text.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("text", ["", "Normal.", "Größe 3,2 cm &amp; unchanged   ", LONG])
def test_ids_are_those_of_open_clip(text: str) -> None:
    ids = BPE(48)(text)
    padded = open_clip.SimpleTokenizer(context_length=48)([text])[0]
    assert padded[: len(ids)].tolist() == ids
    assert not padded[len(ids) :].any()
    assert ids[0] == 49406 and ids[-1] == 49407


def test_a_text_beyond_the_context_is_refused(dual: DualEncoder) -> None:
    with pytest.raises(ValueError, match="exceeds the context of 48"):
        dual.encode_units(*pack([LONG], BPE(256)))


def test_a_unit_does_not_depend_on_its_batch(dual: DualEncoder, texts: tuple[str, ...]) -> None:
    together = dual.encode_units(*pack(texts, BPE(48)))
    alone = torch.cat([dual.encode_units(*pack([text], BPE(48))) for text in texts])
    assert relative(together, alone) < 1e-6


def test_unmasked_towers_of_open_clip_see_the_context_they_expect(
    make_dual: Callable[..., DualEncoder], texts: tuple[str, ...]
) -> None:
    dual = make_dual(no_causal_mask=True)
    assert not is_packable(dual.clip.text)
    ours, theirs = both(dual, texts)
    assert relative(ours, theirs) < 1e-6


class _Sum(torch.nn.Module):
    """A tower that tells apart order, content and padding."""

    def forward(self, tokens_BL: Tensor) -> Tensor:
        place = torch.arange(1, tokens_BL.shape[1] + 1)
        return torch.stack([(tokens_BL * place * (tokens_BL != 0)).sum(1), (tokens_BL != 0).sum(1)], 1).float()


def test_foreign_towers_get_rows_back_in_order() -> None:
    lengths = tuple(torch.randint(1, 40, (60,), generator=torch.Generator().manual_seed(3)).tolist())
    tokens = torch.randint(1, 1000, (sum(lengths),), generator=torch.Generator().manual_seed(4))
    out = encode_foreign(_Sum(), tokens, Packing(lengths), pad_id=0)
    expected = torch.cat([_Sum()(part[None]) for part in tokens.split(list(lengths))])
    assert torch.equal(out, expected)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A folder with a two-layer BERT and a tokenizer of a few words."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `hf`")
    folder = tmp_path / "tiny-bert"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "small", "left", "pleural", "effusion", "cyst", "."]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    cfg = transformers.BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    torch.manual_seed(5)
    transformers.BertModel(cfg).save_pretrained(folder)
    return folder


def bert_cfg(model_cfg: Callable[..., dict[str, Any]], bert: Path, image: str) -> dict[str, Any]:
    text = {"hf_model_name": str(bert), "hf_tokenizer_name": str(bert), "hf_pooler_type": "cls_pooler"}
    return {**model_cfg(image), "text_cfg": {**text, "context_length": 48}}


def test_bert_towers(bert: Path, model_cfg: Callable[..., dict[str, Any]], texts: tuple[str, ...]) -> None:
    dual = build_dual(bert_cfg(model_cfg, bert, "resnet10t")).eval()
    ours = dual.encode_units(*pack(texts, HFTokenizer(str(bert), 48)))
    tokenizer = open_clip.tokenizer.HFTokenizer(str(bert), context_length=48)
    assert relative(ours, dual.clip.encode_text(tokenizer(list(texts)))) < 1e-5


def test_bert_releases_load_anywhere(
    bert: Path, tmp_path: Path, model_cfg: Callable[..., dict[str, Any]], texts: tuple[str, ...], planar: Any
) -> None:
    import shutil

    import encoders
    from data_shards.preprocess import View
    from encoders.release import main, write_release

    dual = build_dual(bert_cfg(model_cfg, bert, "resnet10t")).eval()
    write_release(tmp_path / "made", dual.clip.state_dict(), dual.model_cfg, planar, View("centre"))
    expected = dual.encode_units(*pack(texts, HFTokenizer(str(bert), 48)))
    images = torch.randn(2, 3, *planar.size)
    with torch.no_grad():
        seen = dual.clip.encode_image(images)
    shutil.rmtree(bert)  # as on another machine
    moved = (tmp_path / "made").rename(tmp_path / "moved")
    assert str(tmp_path) not in (moved / "open_clip_config.json").read_text()

    loaded = encoders.load(moved)
    assert relative(loaded.model.encode_units(*pack(texts, loaded.tokenizer)), expected) < 1e-6

    assert main(["--relocate", str(moved)]) == 0
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{moved}")
    tokens = open_clip.get_tokenizer(f"local-dir:{moved}")(list(texts))
    assert relative(model.eval().encode_text(tokens), expected) < 1e-5
    with torch.no_grad():
        assert torch.equal(model.encode_image(images), seen)
    assert relative(encoders.load(moved).model.encode_units(*pack(texts, loaded.tokenizer)), expected) < 1e-6
