"""TriBERT: one bidirectional transformer that reads whole reports and answers on three levels (VELVET-Med, arXiv
2508.12108), with layers that look at an image for matching and masked language modelling.

A report is `[CLS] [SEN_1] … [SEN_n]`, then its words (encoders.report_layout). [SEN_i] sees [CLS] and its own sentence,
everything else sees everything. So in one layer a [SEN_i] knows of no other sentence; over several it does, through
[CLS] and the words, which have read the whole report. Out come: a word, the sum of its pieces; a sentence, the mean of
[SEN_i] and its words; the report, [CLS]; each through a projection of its own into the joint space.

The layers normalise first (pre-LN) and end in a norm, where BERT normalises last: nothing published is loaded into
them, and from scratch they train at any depth.

Legend: R reports, S sentences, W words, T tokens of all reports, P reports beside an image each, M masked tokens,
V vocabulary, C width, H heads, D joint width, I images, N tokens of an image, F their width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from encoders.attention import Packing
from encoders.heads import register_head
from encoders.report_attention import attend_images, attend_sentences, sentence_masks
from encoders.report_layout import CLS, Marks, Reports, lay_out
from encoders.tokenize import Tokenize

LEVELS = ("report", "sentences", "words")


@dataclass(frozen=True)
class ReportFeatures:
    """What a report transformer says of some reports; a level it was not trained for is None.

    `report_RD` one row a report; `sentences_SD` with `sentence_report_S`, the report of each; `words_WD` with
    `word_report_W` and `word_sentence_W`, a row of `sentences_SD`.
    """

    report_RD: Tensor | None
    sentences_SD: Tensor | None
    sentence_report_S: Tensor
    words_WD: Tensor | None
    word_report_W: Tensor
    word_sentence_W: Tensor


@register_head("report_transformer")
class ReportTransformer(nn.Module):
    """Reads reports; released as the head `report`.

    Args:
        vocab_size: ids of the tokenizer. width, heads, layers, feedforward: of the transformer (the paper: 768, 6, 12,
            3072). embed_dim: D. max_sentences, max_tokens: what is read of a report (the paper: 50, 512).
        fusion_layers: layers with cross-attention (the paper: 6). image_width: F.
        dropout: after attention and feed-forward.
        levels, matching, vocabulary: which projections, whether the matching score, and whether the prediction of
            masked tokens is there; `keep` drops what no objective trains.
    """

    def __init__(
        self, vocab_size: int, width: int, heads: int, layers: int, feedforward: int, embed_dim: int,
        max_sentences: int, max_tokens: int, fusion_layers: int, image_width: int, dropout: float = 0.0,
        levels: Sequence[str] = LEVELS, matching: bool = True, vocabulary: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.special: Tensor
        self.options: dict[str, Any] = {
            key: value for key, value in locals().items() if key not in ("self", "__class__")
        }
        self.options["levels"] = list(levels)
        self.vocab_size, self.max_sentences, self.max_tokens = vocab_size, max_sentences, max_tokens
        self.grad_checkpointing = False
        for name in ("special", "begins", "ends"):
            self.register_buffer(name, torch.zeros(vocab_size, dtype=torch.bool))
        # One table for the tokenizer's ids, [MASK], [CLS] and every [SEN_i].
        self.tokens = nn.Embedding(vocab_size + CLS + 1 + max_sentences, width)
        self.positions = nn.Embedding(max_tokens, width)
        self.sentence_types = nn.Embedding(max_sentences + 1, width)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(width, heads, feedforward, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.projections = nn.ModuleDict({level: nn.Linear(width, embed_dim) for level in levels})
        fused = fusion_layers > 0
        self.image_in = nn.Sequential(nn.Linear(image_width, width), nn.LayerNorm(width)) if fused else None
        self.fusion = nn.ModuleList(Layer(width, heads, feedforward, dropout, True) for _ in range(fusion_layers))
        self.fusion_norm = nn.LayerNorm(width) if fused else None
        self.matched = nn.Linear(width, 1) if matching and fused else None
        self.predict = Predict(width, vocab_size) if vocabulary else None
        for module in self.modules():  # BERT's
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        with torch.no_grad():  # a [SEN_i] begins as [CLS]
            self.tokens.weight[vocab_size + CLS + 1 :] = self.tokens.weight[vocab_size + CLS].clone()

    def keep(self, levels: Collection[str], fusion: bool, matching: bool, vocabulary: bool) -> None:
        """Drop what nothing trains, so that a release holds no random weights."""
        kept = [level for level in LEVELS if level in levels and level in self.projections]
        self.projections = nn.ModuleDict({level: self.projections[level] for level in kept})
        if not fusion:
            self.image_in = self.fusion_norm = self.matched = None
            self.fusion = nn.ModuleList()
        self.matched = self.matched if matching else None
        self.predict = self.predict if vocabulary else None
        self.options |= {"levels": kept, "fusion_layers": len(self.fusion)}
        self.options |= {"matching": self.matched is not None, "vocabulary": self.predict is not None}

    @property
    def marks(self) -> Marks:
        special, begins, ends = (b.cpu().numpy() for b in (self.special, self.begins, self.ends))  # type: ignore[operator]
        return Marks(special, begins, ends)

    @marks.setter
    def marks(self, marks: Marks) -> None:
        for name in ("special", "begins", "ends"):
            getattr(self, name).copy_(torch.from_numpy(np.asarray(getattr(marks, name))))

    def lay_out(self, reports: Sequence[Sequence[Sequence[int]]], lone: bool = False) -> Reports:
        """Reports as sentences of token ids to what `read` takes (encoders.report_layout.lay_out)."""
        device = self.tokens.weight.device
        return lay_out(reports, self.marks, self.max_sentences, self.max_tokens, device, lone)

    def read(self, reports: Reports, ids_T: Tensor | None = None) -> Tensor:
        """Every token's state [T, C]. ids_T: other ids than the reports' own, masked ones."""
        ids = reports.ids_T if ids_T is None else ids_T
        x = self.tokens(ids) + self.positions(reports.position_T) + self.sentence_types(reports.place_T.abs())
        packing = Packing(reports.lengths, x.device)
        return self.norm(self._through(self.layers, self.dropout(x), packing, reports.place_T))

    def levels(self, states_TC: Tensor, reports: Reports, wanted: Collection[str]) -> dict[str, Tensor]:
        """Of `report` [R, D], `sentences` [S, D] and `words` [W, D] those that are wanted.

        Raises:
            KeyError: a level that was not trained.
        """
        found = {}
        if "report" in wanted:
            found["report"] = states_TC[reports.ids_T == self.vocab_size + CLS]
        pieces = reports.word_T >= 0
        of_pieces = states_TC[pieces]
        if "sentences" in wanted:
            many = len(reports.sentence_report_S)
            words_S = torch.bincount(reports.word_sentence_W, minlength=many).to(of_pieces.dtype)
            told_SC = _summed(of_pieces, reports.sentence_T[pieces], many) + states_TC[reports.place_T < 0]
            found["sentences"] = told_SC / (1 + words_S)[:, None]
        if "words" in wanted:
            found["words"] = _summed(of_pieces, reports.word_T[pieces], len(reports.word_report_W))
        return {level: self.projections[level](x) for level, x in found.items()}

    def fuse(
        self, states_TC: Tensor, place_T: Tensor, lengths: Sequence[int], image_INF: Tensor, image_P: Tensor
    ) -> Tensor:
        """States of P reports of `lengths` tokens, each beside image `image_P[p]`, through the fusion layers: [T, C].

        Raises:
            ValueError: this transformer has no such layers.
        """
        if self.image_in is None or self.fusion_norm is None:
            raise ValueError("this report transformer has no layers that look at an image (fusion_layers: 0)")
        packing = Packing(tuple(lengths), states_TC.device)
        image = self.image_in(image_INF)
        return self.fusion_norm(self._through(self.fusion, states_TC, packing, place_T, image, image_P))

    def match(
        self, states_TC: Tensor, place_T: Tensor, lengths: Sequence[int], image_INF: Tensor, image_P: Tensor
    ) -> Tensor:
        """Logits [P] of reports and images belonging together; arguments as of `fuse`."""
        assert self.matched is not None, "no matching score was trained"
        fused = self.fuse(states_TC, place_T, lengths, image_INF, image_P)
        return self.matched(fused[place_T == 0])[:, 0]

    def predict_masked(
        self, states_TC: Tensor, masked_M: Tensor, place_T: Tensor, lengths: Sequence[int],
        image_INF: Tensor | None = None, image_P: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Logits [M, V] of the tokens at rows `masked_M`; with images after the fusion layers."""
        assert self.predict is not None, "no prediction of tokens was trained"
        if image_INF is not None and image_P is not None:
            states_TC = self.fuse(states_TC, place_T, lengths, image_INF, image_P)
        return self.predict(states_TC[masked_M], self.tokens.weight)

    def encode(self, reports: Sequence[Sequence[str]], tokenize: Tokenize) -> ReportFeatures:
        """Reports, each a list of its sentences, to features on every trained level. `tokenize`: the release's own.

        Raises:
            ValueError: a report without a word.
        """
        laid = self.lay_out([[tokenize(sentence) for sentence in report] for report in reports])
        if len(laid.lengths) < len(reports):
            raise ValueError("a report has no word\n  why: it would have no features\n  fix: leave it out")
        found = self.levels(self.read(laid), laid, list(self.projections))
        report, sentences, words = (found.get(level) for level in LEVELS)
        return ReportFeatures(
            report, sentences, laid.sentence_report_S, words, laid.word_report_W, laid.word_sentence_W
        )

    def _through(self, layers: nn.ModuleList, x: Tensor, packing: Packing, place_T: Tensor, *image: Tensor) -> Tensor:
        masks = sentence_masks(place_T, packing)
        for layer in layers:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, packing, masks, *image, use_reentrant=False)
            else:
                x = layer(x, packing, masks, *image)
        return x


class Layer(nn.Module):
    """Self-attention under the sentence mask, cross-attention to an image where there is one, feed-forward."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float, cross: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.self_norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        if cross:
            self.cross_norm, self.q = nn.LayerNorm(width), nn.Linear(width, width)
            self.kv, self.cross_out = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, feedforward), nn.GELU(), nn.Linear(feedforward, width))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x_TC: Tensor, packing: Packing, masks: list[Tensor], image_INC: Tensor | None = None,
        image_P: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        qkv = self.qkv(self.self_norm(x_TC)).unflatten(1, (3, self.heads, -1))
        x_TC = x_TC + self.dropout(self.out(attend_sentences(qkv, packing, masks).flatten(1)))
        if image_INC is not None and image_P is not None:
            q = self.q(self.cross_norm(x_TC)).unflatten(1, (self.heads, -1))
            kv = self.kv(image_INC).unflatten(2, (2, self.heads, -1))
            x_TC = x_TC + self.dropout(self.cross_out(attend_images(q, kv, image_P, packing).flatten(1)))
        return x_TC + self.dropout(self.mlp(self.mlp_norm(x_TC)))


class Predict(nn.Module):
    """BERT's prediction of a token: dense, GELU, norm, and the token embeddings as the last layer."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, x_MC: Tensor, embeddings_VC: Tensor) -> Tensor:
        x_MC = self.norm(nn.functional.gelu(self.dense(x_MC)))
        return nn.functional.linear(x_MC, embeddings_VC[: len(self.bias)], self.bias)


def _summed(x: Tensor, row: Tensor, many: int) -> Tensor:
    return x.new_zeros(many, x.shape[1]).index_add(0, row, x)


def image_width(visual: Any) -> int:
    """F of an image tower; 0 where it gives no patch tokens."""
    return int(getattr(getattr(visual, "trunk", None), "num_features", 0))
