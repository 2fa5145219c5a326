"""Clinical-Longformer's architecture as a text tower, at small width: windows, padding, texts as Merlin writes them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

import encoders
from data_shards.batch import Batch, TextBatch
from data_shards.preprocess import View
from encoders.dual import DualEncoder, build_dual
from encoders.release import main, write_release
from encoders.tokenize import HFTokenizer, pack
from pretrain.passes import text_units, whole

transformers = pytest.importorskip("transformers", reason="needs the extra `hf`")
CONTEXT, WINDOW = 48, 8
REPORT = "Cyst (1.5cm) in segment IV/VIII, NO effusion."


@pytest.fixture(scope="module")
def longformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a two-layer Longformer, windows of 8 tokens, and a byte-level tokenizer."""
    from tokenizers import ByteLevelBPETokenizer

    folder = tmp_path_factory.mktemp("hub") / "tiny-longformer"
    folder.mkdir()
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([REPORT.lower()], vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.save_model(str(folder))
    cfg = transformers.LongformerConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        attention_window=[WINDOW, WINDOW], max_position_embeddings=CONTEXT + 2, type_vocab_size=1,
        pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(5)
    transformers.LongformerModel(cfg).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


@pytest.fixture
def dual(longformer: Path, model_cfg: Callable[..., dict[str, Any]]) -> DualEncoder:
    text = {"hf_model_name": str(longformer), "hf_tokenizer_name": str(longformer), "hf_proj_type": "linear"}
    text |= {"hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": CONTEXT}
    text |= {"tokenizer_kwargs": {"wordpunct": True}}
    torch.manual_seed(0)
    return build_dual({**model_cfg("resnet10t"), "text_cfg": text}).eval()


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


def test_buckets_give_what_each_text_gives_by_itself(
    dual: DualEncoder, longformer: Path, texts: tuple[str, ...]
) -> None:
    """Lengths below, at and above the window; every bucket is padded to windows of its own."""
    tokenizer = HFTokenizer(str(longformer), CONTEXT)
    tokens, lengths = pack(texts, tokenizer)
    assert min(lengths) <= WINDOW < max(lengths) == CONTEXT
    found = dual.encode_units(tokens, lengths)
    tower = transformers.AutoModel.from_pretrained(longformer).eval()
    for text, row in zip(texts, found, strict=True):
        ids = torch.tensor([tokenizer(text)])
        states = tower(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state  # as Merlin calls it
        assert relative(row, dual.clip.text.proj(states[:, 0])[0]) < 1e-5
    padded = open_clip.tokenizer.HFTokenizer(str(longformer), context_length=CONTEXT)(list(texts))
    assert relative(found, dual.clip.encode_text(padded)) < 1e-5


def test_gradients_reach_the_tower(dual: DualEncoder, longformer: Path, texts: tuple[str, ...]) -> None:
    dual.encode_units(*pack(texts, HFTokenizer(str(longformer), CONTEXT))).square().sum().backward()
    for name, parameter in dual.clip.text.transformer.named_parameters():
        if "_global" not in name:  # no token has global attention
            reached = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
            assert reached or name.endswith("key.bias"), name


def test_a_batch_without_texts_gives_no_row_and_gradients_of_zero(dual: DualEncoder) -> None:
    """The stand-in text is one token, which must not be this tokenizer's padding: of no token the mean is NaN."""
    text = {**dual.model_cfg["text_cfg"], "hf_pooler_type": "mean_pooler"}
    dual = build_dual({**dual.model_cfg, "text_cfg": text}).eval()
    nobody = TextBatch.of([[], []], lambda text: [0])
    images = torch.zeros(2, 3, 32, 32)
    two = Batch(0, torch.arange(2), ["a", "b"], torch.arange(2), images, torch.zeros(2, 0), (), nobody)
    assert dual.pad_id == 1
    rows = text_units(dual, whole(two), frozenset({"units"}))["units"].values
    assert rows.shape == (0, 24)
    rows.sum().backward()
    gradient = dual.clip.text.proj.weight.grad
    assert gradient is not None and torch.equal(gradient, torch.zeros_like(gradient))


def test_words_and_punctuation_apart_as_nltk_has_them(longformer: Path) -> None:
    nltk = pytest.importorskip("nltk.tokenize")
    merlins, plain = HFTokenizer(str(longformer), CONTEXT, wordpunct=True), HFTokenizer(str(longformer), CONTEXT)
    for text in (REPORT, "a--b ... c_d É.é\n\n x", "L4-5: n/a?!", "3.2 x 1.0"):
        assert merlins(text) == plain(" ".join(nltk.wordpunct_tokenize(text.lower())))
    assert merlins(REPORT) != plain(REPORT)


def test_tokenizers_that_give_other_ids_have_another_identity(longformer: Path, tmp_path: Path) -> None:
    one = HFTokenizer(str(longformer), CONTEXT)
    before = one.identity()
    assert one(REPORT) and one.identity() == before == HFTokenizer(str(longformer), 8).identity()
    assert HFTokenizer(str(longformer), CONTEXT, wordpunct=True).identity() != before
    shutil.copytree(longformer, tmp_path / "edited")
    file = tmp_path / "edited" / "tokenizer.json"
    said = json.loads(file.read_text())
    said["model"]["merges"].pop()
    file.write_text(json.dumps(said))
    edited = HFTokenizer(str(tmp_path / "edited"), CONTEXT)
    assert edited.identity() != before and edited(REPORT.lower()) != one(REPORT.lower())


def test_the_release_reads_texts_as_in_training(
    dual: DualEncoder, longformer: Path, tmp_path: Path, planar: Any, texts: tuple[str, ...]
) -> None:
    """By encoders.load, and by plain open_clip once encoders is imported, without the folder it was made from."""
    copy = shutil.copytree(longformer, tmp_path / "hub")
    cfg = {**dual.model_cfg, "text_cfg": {**dual.model_cfg["text_cfg"], "hf_model_name": str(copy)}}
    said = (*texts, REPORT)
    expected = dual.encode_units(*pack(said, HFTokenizer(str(longformer), CONTEXT, wordpunct=True)))
    write_release(tmp_path / "made", dual.clip.state_dict(), cfg, planar, View("centre"))
    shutil.rmtree(copy)
    loaded = encoders.load(str(tmp_path / "made"))
    assert relative(loaded.model.encode_units(*pack(said, loaded.tokenizer)), expected) < 1e-6
    assert main(["--relocate", str(tmp_path / "made")]) == 0
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'made'}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'made'}")(list(said))
    assert relative(model.eval().encode_text(tokens), expected) < 1e-5


@pytest.mark.parametrize("imports", ["import encoders, open_clip", "import open_clip, encoders"])
def test_open_clip_knows_the_tower_in_either_order(imports: str) -> None:
    check = f"{imports}; assert 'longformer' in open_clip.hf_model.arch_dict"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
