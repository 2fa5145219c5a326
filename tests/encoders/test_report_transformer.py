"""TriBERT: what it reads, who sees whom, packed as padded, three levels, and its way into a release and back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor

import encoders
from encoders.dual import DualEncoder
from encoders.heads import describe_head
from encoders.release import write_release
from encoders.report_layout import CLS, Marks, lay_out
from encoders.report_transformer import ReportTransformer
from encoders.tokenize import BPE, HFTokenizer

START, END = 49406, 49407
REPORTS = (
    ("no pleural effusion .", "the liver is enlarged ."),
    ("normal",),
    ("3.2 cm cyst in segment VII , unchanged .", "atelectasis .", "the heart is large ."),
    ("small left pleural effusion with adjacent atelectasis of the lower lobe ; heart size is normal .", "no mass ."),
)


def transformer(**changed: Any) -> ReportTransformer:
    """Small, seeded, every weight away from zero."""
    sizes: dict[str, Any] = {
        "vocab_size": 49408, "width": 24, "heads": 3, "layers": 2, "feedforward": 40, "embed_dim": 16,
        "max_sentences": 5, "max_tokens": 60, "fusion_layers": 2, "image_width": 20,
    }  # fmt: skip
    torch.manual_seed(0)
    made = ReportTransformer(**sizes | changed).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    made.marks = BPE(48).marks()
    return made


@pytest.fixture
def reader() -> ReportTransformer:
    return transformer()


def ids(reports: Any = REPORTS) -> list[list[list[int]]]:
    tokenize = BPE(48)
    return [[tokenize(sentence) for sentence in report] for report in reports]


def test_a_report_is_cls_its_sentence_tokens_and_its_words() -> None:
    marks = Marks(np.arange(10) >= 8, np.zeros(10, bool), np.isin(np.arange(10), (1, 2, 3, 4)))  # 5, 6, 7 end no word
    laid = lay_out([[[8, 5, 1, 2, 9], [8, 9], [6, 7, 3]], [[8]], [[4]]], marks, 4, 20)
    assert laid.lengths == (9, 3) and laid.source_R.tolist() == [0, 2]
    cls = 10 + CLS
    assert laid.ids_T.tolist() == [cls, cls + 1, cls + 2, 5, 1, 2, 6, 7, 3, cls, cls + 1, 4]
    assert laid.place_T.tolist() == [0, -1, -2, 1, 1, 1, 2, 2, 2, 0, -1, 1]
    assert laid.position_T.tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6, 0, 0, 1]
    assert laid.sentence_T.tolist() == [-1, -1, -1, 0, 0, 0, 1, 1, 1, -1, -1, 2]
    assert laid.word_T.tolist() == [-1, -1, -1, 0, 0, 1, 2, 2, 2, -1, -1, 3]
    assert laid.sentence_report_S.tolist() == [0, 0, 1]
    assert laid.word_report_W.tolist() == [0, 0, 0, 1] and laid.word_sentence_W.tolist() == [0, 0, 1, 2]
    assert laid.report_T.tolist() == [0] * 9 + [1] * 3


@pytest.mark.parametrize(
    ("sentences", "tokens", "want"),
    [(1, 99, [0, -1, 1, 1]), (9, 6, [0, -1, -2, 1, 1, 2]), (9, 5, [0, -1, 1, 1]), (9, 3, [0, -1, 1])],
)
def test_a_long_report_loses_its_end(sentences: int, tokens: int, want: list[int]) -> None:
    plain = Marks(*(np.zeros(10, bool) for _ in range(3)))
    laid = lay_out([[[1, 2], [3, 4, 5]]], plain, sentences, tokens)
    assert laid.place_T.tolist() == want and len(laid.place_T) <= tokens
    assert len(laid.sentence_report_S) == -min(want)


def test_words_of_the_tokenizer_are_those_of_the_text() -> None:
    text = "bronchiectasis in segment VII, 3.2cm"
    laid = transformer().lay_out([[BPE(48)(text)]])
    pieces = laid.ids_T[laid.word_T >= 0]
    words = [open_clip.tokenizer.SimpleTokenizer().decode(pieces[laid.word_T[laid.word_T >= 0] == w].tolist())
             for w in range(len(laid.word_report_W))]  # fmt: skip
    assert [word.strip() for word in words] == ["bronchiectasis", "in", "segment", "vii", ",", "3", ".", "2", "cm"]
    assert len(pieces) > len(words), "one of them is of several pieces"


def test_words_of_a_hugging_face_tokenizer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "effu", "##sion", "no", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    tokenizer = HFTokenizer(str(tmp_path), 32)
    marks = tokenizer.marks()
    laid = lay_out([[tokenizer("No effusion. xyz")]], marks, 5, 50)
    assert laid.ids_T[laid.word_T >= 0].tolist() == [7, 5, 6, 8, 1]
    assert laid.word_T.tolist() == [-1, -1, 0, 1, 1, 2, 3]


def test_a_sentence_token_sees_its_own_sentence_alone() -> None:
    reader = transformer(layers=1)
    first = ids([["no pleural effusion .", "the liver is enlarged ."]])[0]
    other = [START, *(piece + 1 for piece in first[1][1:-1]), END]
    before, after = (reader.lay_out([[first[0], second]]) for second in (first[1], other))
    a, b = reader.read(before), reader.read(after)
    assert torch.equal(a[before.place_T == -1], b[before.place_T == -1])
    for place in (0, -2, 1, 2):  # [CLS], the other sentence's token, the words of both
        assert not torch.isclose(a[before.place_T == place], b[before.place_T == place]).all(1).any(), place


def reference(reader: ReportTransformer, laid: Any, image: Tensor | None = None) -> Tensor:
    """One report through the layers in float64, every pair of tokens asked in a loop; with an image [N, F] through
    the fusion layers as well."""
    reader, place = copy.deepcopy(reader).double(), laid.place_T.tolist()
    x = reader.tokens(laid.ids_T) + reader.positions(laid.position_T) + reader.sentence_types(laid.place_T.abs())

    def attention(q: Tensor, k: Tensor, v: Tensor, seen: Callable[[int, int], bool]) -> Tensor:
        out = torch.zeros_like(q)
        for i in range(len(q)):
            keys = [j for j in range(len(k)) if seen(i, j)]
            for h in range(3):
                part = slice(8 * h, 8 * h + 8)
                weight = torch.softmax(torch.stack([q[i, part] @ k[j, part] for j in keys]) / 8**0.5, 0)
                out[i, part] = sum(w * v[j, part] for w, j in zip(weight, keys, strict=True))
        return out

    def seen(i: int, j: int) -> bool:
        return place[i] >= 0 or place[j] == 0 or abs(place[j]) == -place[i]

    def through(layer: Any, x: Tensor, memory: Tensor | None) -> Tensor:
        x = x + layer.out(attention(*layer.qkv(layer.self_norm(x)).chunk(3, 1), seen))
        if memory is not None:
            q, (k, v) = layer.q(layer.cross_norm(x)), layer.kv(memory).chunk(2, 1)
            x = x + layer.cross_out(attention(q, k, v, lambda i, j: True))
        return x + layer.mlp(layer.mlp_norm(x))

    for layer in reader.layers:
        x = through(layer, x, None)
    x = reader.norm(x)
    if image is None:
        return x
    for layer in reader.fusion:
        x = through(layer, x, reader.image_in(image.double()))
    return reader.fusion_norm(x)


@torch.no_grad()
def test_packed_is_padded_is_each_alone_is_the_loop(reader: ReportTransformer) -> None:
    laid = reader.lay_out(ids())
    packed = reader.read(laid)
    for number, report in enumerate(ids()):
        alone = reader.lay_out([report])
        mine = packed[laid.report_T == number]
        torch.testing.assert_close(mine, reader.read(alone), rtol=0, atol=1e-6)
        torch.testing.assert_close(mine, reference(reader, alone).float(), rtol=0, atol=2e-6)


@torch.no_grad()
def test_levels_are_cls_the_mean_of_a_sentences_words_and_the_sum_of_a_words_pieces(reader: ReportTransformer) -> None:
    laid = reader.lay_out(ids())
    states = reader.read(laid)
    found = reader.levels(states, laid, ("report", "sentences", "words"))
    for row, length in enumerate(laid.lengths):
        begin = sum(laid.lengths[:row])
        torch.testing.assert_close(found["report"][row], reader.projections["report"](states[begin]))
        assert length == (laid.report_T == row).sum()
    words = [sum(states[t] for t in range(len(states)) if laid.word_T[t] == n) for n in range(len(found["words"]))]
    number = 0
    for row, report in enumerate(REPORTS):
        for i in range(len(report)):
            [own] = [states[t] for t in range(len(states)) if laid.report_T[t] == row and laid.place_T[t] == -1 - i]
            said = [word for word, of in zip(words, laid.word_sentence_W.tolist(), strict=True) if of == number]
            want = reader.projections["sentences"]((own + sum(said)) / (1 + len(said)))
            torch.testing.assert_close(found["sentences"][number], want, atol=1e-5, rtol=1e-5)
            number += 1
    for word, given in zip(words, found["words"], strict=True):
        torch.testing.assert_close(given, reader.projections["words"](word), atol=1e-5, rtol=1e-5)
    assert number == len(found["sentences"])


@torch.no_grad()
def test_fusion_layers_look_at_the_image_they_are_given(reader: ReportTransformer) -> None:
    laid, images, of = reader.lay_out(ids()), torch.randn(3, 7, 20), torch.tensor([2, 0, 2, 1])
    fused = reader.fuse(reader.read(laid), laid.place_T, laid.lengths, images, of)
    logits = reader.match(reader.read(laid), laid.place_T, laid.lengths, images, of)
    for number, report in enumerate(ids()):
        want = reference(reader, reader.lay_out([report]), images[of[number]])
        torch.testing.assert_close(fused[laid.report_T == number], want.float(), rtol=0, atol=5e-6)
        torch.testing.assert_close(logits[number], reader.matched(want[0].float())[0], rtol=0, atol=5e-6)


def test_recomputed_activations_give_the_same_gradient(reader: ReportTransformer) -> None:
    laid, gradients = reader.lay_out(ids()), []
    for again in (False, True):
        reader.grad_checkpointing = again
        reader.zero_grad()
        reader.match(
            reader.read(laid), laid.place_T, laid.lengths, torch.ones(1, 2, 20), torch.zeros(4).long()
        ).sum().backward()
        gradients.append({n: p.grad for n, p in reader.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 30
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@torch.no_grad()
def test_a_release_has_it_beside_a_dual_encoder_that_plain_open_clip_loads(
    tmp_path: Path, make_dual: Callable[..., DualEncoder], geometry: Any, view: Any, reader: ReportTransformer
) -> None:
    dual = make_dual()
    reader.keep(("report", "words"), fusion=True, matching=True, vocabulary=False)
    weights = {f"report.{key}": value for key, value in reader.state_dict().items()}
    folder = write_release(tmp_path / "r", dual.clip.state_dict(), dual.model_cfg, geometry, view,
                           heads={"report": describe_head(reader)}, head_weights=weights)  # fmt: skip
    release = encoders.load(folder)
    again = release.heads["report"]
    assert isinstance(again, ReportTransformer) and not again.training and release.tokenizer is not None
    mine, theirs = (one.encode(REPORTS, release.tokenizer) for one in (reader, again))
    assert theirs.report_RD is not None and theirs.report_RD.shape == (4, 16) and theirs.words_WD is not None
    assert mine.report_RD is not None and torch.equal(theirs.report_RD, mine.report_RD)
    assert mine.words_WD is not None and torch.equal(theirs.words_WD, mine.words_WD)
    assert theirs.sentences_SD is None, "nothing trained it"
    assert theirs.sentence_report_S.tolist() == [0, 0, 1, 2, 2, 2, 3, 3]
    assert again.predict is None and again.matched is not None
    plain = open_clip.create_model(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["no mass ."])
    assert torch.equal(plain.eval().encode_text(tokens), dual.clip.eval().encode_text(tokens))


def test_reports_without_a_word_are_refused(reader: ReportTransformer) -> None:
    with pytest.raises(ValueError, match="a report has no word"):
        reader.encode([["No mass."], []], BPE(48))


def test_without_fusion_layers_it_looks_at_no_image() -> None:
    reader = transformer(fusion_layers=0, image_width=0)
    laid = reader.lay_out(ids())
    with pytest.raises(ValueError, match="fusion_layers: 0"):
        reader.fuse(reader.read(laid), laid.place_T, laid.lengths, torch.ones(1, 2, 20), torch.zeros(4).long())
    assert reader.matched is None and reader.options["fusion_layers"] == 0


def test_sentence_tokens_begin_as_cls() -> None:
    weight = ReportTransformer(10, 8, 2, 1, 8, 4, 3, 9, 0, 0).tokens.weight
    assert torch.equal(weight[12:], weight[11].expand(3, 8)) and len(weight) == 15
