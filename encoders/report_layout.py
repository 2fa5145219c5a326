"""A report as the sequence that TriBERT reads: `[CLS] [SEN_1] … [SEN_n]`, then the pieces of sentence 1 … n.

Legend: R reports, S sentences, W words, T tokens of all reports, V entries of the tokenizer's vocabulary.

A token's `place` says what it is and what it may see: 0 for [CLS], -i for [SEN_i], +i for a piece of sentence i.
Ids past the tokenizer's own: V is [MASK], V + 1 is [CLS], V + 1 + i is [SEN_i].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MASK, CLS = 0, 1  # past V


@dataclass(frozen=True)
class Marks:
    """What a tokenizer's ids say of words, each bool [V]: `special` ids are no text (start, end, padding); a piece
    begins a word where it is in `begins`, where the piece before it is in `ends`, or where it is a sentence's first."""

    special: np.ndarray
    begins: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True)
class Reports:
    """Reports one after another, without padding.

    `lengths` has the tokens of each report; `source_R` its number among those that were given (one without a sentence
    has no row here). `ids_T`, `place_T` (see above), `position_T`; `sentence_T` and `word_T` are rows of S and W, -1
    for [CLS] and [SEN_i]. `sentence_report_S`, `word_report_W`: rows of R; `word_sentence_W`: rows of S.
    """

    lengths: tuple[int, ...]
    source_R: Tensor
    ids_T: Tensor
    place_T: Tensor
    position_T: Tensor
    sentence_T: Tensor
    word_T: Tensor
    sentence_report_S: Tensor
    word_report_W: Tensor
    word_sentence_W: Tensor

    @property
    def report_T(self) -> Tensor:
        """Row of R of every token."""
        lengths = torch.tensor(self.lengths, device=self.ids_T.device)
        return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)


def lay_out(
    reports: Sequence[Sequence[Sequence[int]]], marks: Marks, max_sentences: int, max_tokens: int,
    device: torch.device | str = "cpu", lone: bool = False,
) -> Reports:  # fmt: skip
    """Reports, given as sentences of token ids, to one packed sequence each.

    Special ids are left out. A report is cut after `max_sentences` sentences or `max_tokens` tokens; the last sentence
    may lose its end. Positions count a report's pieces from 1; [CLS] and [SEN_i] stand at 0 and are told apart by their
    embeddings. lone: a report without a sentence is [CLS] alone instead of nothing.
    """
    size = len(marks.special)
    found = [(n, kept) for n, r in enumerate(reports) if (kept := _cut(r, marks, max_sentences, max_tokens)) or lone]
    ids, place, position, sentence, word = ([] for _ in range(5))
    sentence_report: list[int] = []
    word_report, word_sentence = [], []
    words = 0
    for row, (_, pieces_of) in enumerate(found):
        many = len(pieces_of)
        counts = [len(p) for p in pieces_of]
        numbers = np.repeat(np.arange(many), counts)
        pieces = np.concatenate([*pieces_of, np.empty(0, np.int64)])
        begins = marks.begins[pieces]
        begins[1:] |= marks.ends[pieces[:-1]] | (numbers[1:] != numbers[:-1])
        begins[:1] = True
        ids.append(np.concatenate([size + CLS + np.arange(many + 1), pieces]))
        place.append(np.concatenate([-np.arange(many + 1), numbers + 1]))
        position.append(np.concatenate([np.zeros(many + 1, np.int64), 1 + np.arange(len(pieces))]))
        none = np.full(many + 1, -1)
        sentence.append(np.concatenate([none, len(sentence_report) + numbers]))
        word.append(np.concatenate([none, words - 1 + np.cumsum(begins)]))
        word_sentence.append(len(sentence_report) + numbers[begins])
        word_report.append(np.full(begins.sum(), row))
        words += int(begins.sum())
        sentence_report += [row] * many

    def tensor(parts: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)).to(device)

    return Reports(
        tuple(len(i) for i in ids), tensor([np.array([n for n, _ in found])]), tensor(ids), tensor(place),
        tensor(position), tensor(sentence), tensor(word), tensor([np.array(sentence_report)]), tensor(word_report),
        tensor(word_sentence),
    )  # fmt: skip


def _cut(report: Sequence[Sequence[int]], marks: Marks, max_sentences: int, max_tokens: int) -> list[np.ndarray]:
    """The pieces of each sentence that has any and a place."""
    kept: list[np.ndarray] = []
    left = max_tokens - 1
    for sentence in report:
        pieces = np.asarray(sentence, np.int64)
        pieces = pieces[~marks.special[pieces]]
        if len(kept) == max_sentences or left < 2:
            break
        if len(pieces):
            kept.append(pieces[: left - 1])
            left -= 1 + len(kept[-1])
    return kept
