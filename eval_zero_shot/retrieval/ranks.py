"""Ranks of both directions from one pass over blocks of the similarity matrix, which is never held.

Legend: I images, T texts, U distinct texts, S pairs of a study and a distinct text of it, P pairs of an image and a
distinct text of its study, Q queries.
A study may have several images and several texts. Two ways to count a hit, never mixed:

    strict           the study's own
    identical_texts  any study's with the same text: an image with any copy of one of its texts, a text with the images
                     of every study that has this text
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval_zero_shot.errors import EvalError
from eval_zero_shot.retrieval.blocks import COLUMNS, ROWS, Vectors, blocks_on, doubt, spans
from eval_zero_shot.retrieval.ties import TIE, Ranks

Ties = Literal["identical_texts", "strict"]
Direction = Literal["text_to_image", "image_to_text"]
DIRECTIONS: tuple[Direction, ...] = ("text_to_image", "image_to_text")
TIES: tuple[Ties, ...] = ("identical_texts", "strict")
_CHUNK = 256  # queries whose near items are looked at together


class _Tally:
    """Items above and tied with the threshold of each query, added up over blocks."""

    def __init__(self, queries: Vectors, items: Vectors, of_query_Q: NDArray, threshold_Q: NDArray, axis: int) -> None:
        """of_query_Q: row of `queries` of each. axis 1: queries are rows of the blocks, 0: columns."""
        self.queries, self.items, self.of_query_Q, self.axis = queries, items, of_query_Q, axis
        self.threshold_Q = threshold_Q
        band = doubt(queries.array.shape[1])
        self.low_Q, self.high_Q = ((threshold_Q + s * band).astype(np.float32) for s in (-1, 1))
        self.above_Q, self.tied_Q = (np.zeros(len(threshold_Q), dtype=np.int64) for _ in range(2))

    def add(self, kernel: Any, block: Any, at: slice, items: slice, weights: NDArray | None) -> None:
        """A block of similarities of the queries `at` with the items `items`, which weigh `weights` (None: 1)."""
        low, high = self.low_Q[at], self.high_Q[at]
        above = kernel.above(block, high, self.axis, weights)
        unsure = np.flatnonzero(kernel.above(block, low, self.axis, weights) != above)
        self.above_Q[at] += above
        for part in spans(len(unsure), _CHUNK):
            self._decide(kernel, block, unsure[part], at, items, weights)

    def _decide(
        self, kernel: Any, block: Any, which: NDArray, at: slice, items: slice, weights: NDArray | None
    ) -> None:
        lines = kernel.lines(block, which, self.axis)
        near = (lines > self.low_Q[at][which][:, None]) & (lines <= self.high_Q[at][which][:, None])
        q, item = np.nonzero(near)
        if len(q) > near.size // 64:  # features that collapsed, all alike: as one product
            mine = self.queries.take(self.of_query_Q[at][which]).astype(np.float64)
            cosine = (mine @ self.items.take(items).astype(np.float64).T)[q, item]
        else:
            cosine = self.queries.dots(self.items, self.of_query_Q[at][which[q]], item + items.start)
        difference = cosine - self.threshold_Q[at][which[q]]
        weight = np.ones(len(item)) if weights is None else weights[item].astype(np.float64)
        for total, found in ((self.above_Q, difference > TIE), (self.tied_Q, np.abs(difference) <= TIE)):
            counted = np.bincount(q[found], weights=weight[found], minlength=len(which))
            total[at.start + which] += counted.astype(np.int64)


@dataclass(frozen=True)
class _Pairs:
    """Who belongs to whom. *_S: distinct (study, text) pairs in the order of texts; *_P: (image, pair) incidences."""

    text_S: NDArray
    copies_S: NDArray
    studies_U: NDArray
    pair_T: NDArray
    image_P: NDArray
    pair_P: NDArray


def _pairs(study_I: NDArray, study_T: NDArray, text_T: NDArray, texts: int) -> _Pairs:
    key_T = text_T * (max(study_I.max(initial=0), study_T.max(initial=0)) + 1) + study_T
    _, first_S, pair_T, copies_S = np.unique(key_T, return_index=True, return_inverse=True, return_counts=True)
    text_S, study_S = text_T[first_S], study_T[first_S]
    by_study = np.argsort(study_S, kind="stable")
    start_I, end_I = (np.searchsorted(study_S[by_study], study_I, side=side) for side in ("left", "right"))
    counts_I = end_I - start_I
    alone = int((counts_I == 0).sum()) + int((~np.isin(study_T, study_I)).sum())
    if alone:
        raise EvalError(
            f"{alone} images or texts belong to a study without the other",
            why="a query without a right answer cannot be scored",
            fix="leave these studies out",
        )
    image_P = np.repeat(np.arange(len(study_I)), counts_I)
    offset_P = np.arange(len(image_P)) - np.repeat(np.cumsum(counts_I) - counts_I, counts_I)
    pair_P = by_study[np.repeat(start_I, counts_I) + offset_P]
    return _Pairs(text_S, copies_S, np.bincount(text_S, minlength=texts), pair_T.reshape(-1), image_P, pair_P)


def _best(values_P: NDArray, group_P: NDArray, groups: int) -> NDArray[np.float64]:
    best = np.full(groups, -np.inf)
    np.maximum.at(best, group_P, values_P)
    return best


def _tied_weight(values_P: NDArray, best_G: NDArray, group_P: NDArray, weight_P: NDArray) -> NDArray[np.int64]:
    tied = np.abs(values_P - best_G[group_P]) <= TIE
    return np.bincount(group_P[tied], weights=weight_P[tied], minlength=len(best_G)).astype(np.int64)


def rank_both(
    image_ID: ArrayLike,
    text_TD: ArrayLike,
    text_hash_T: ArrayLike,
    study_I: ArrayLike | None = None,
    study_T: ArrayLike | None = None,
    *,
    device: str = "cpu",
    watch: Callable[[Iterable[slice], int], Iterable[slice]] = lambda blocks, total: blocks,
) -> dict[tuple[Direction, Ties], Ranks]:
    """Ranks of every query in both directions and under both ways to count a hit.

    image_ID, text_TD: features of any scale, read by blocks and not copied. text_hash_T: identity of each text; copies
    share the vector of the first one. study_I, study_T: which study each belongs to (None: image i and text i are of
    study i). Every image is a query among all texts and every text one among all images. watch: of the blocks of texts,
    for progress. The memory taken beyond the features is some 60 MB and 200 bytes a query, whatever N.

    Raises EvalError on features that are zero or not finite, on lengths that differ, and on a study with one side.
    """
    images = Vectors(image_ID, "images")
    identity_T = np.asarray(text_hash_T)
    n_images, n_texts = len(images), len(identity_T)
    study_I = np.arange(n_images) if study_I is None else np.asarray(study_I)
    study_T = np.arange(n_texts) if study_T is None else np.asarray(study_T)
    _, first_U, text_T, copies_U = np.unique(identity_T, return_index=True, return_inverse=True, return_counts=True)
    texts = Vectors(text_TD, "texts", first_U)
    if len(study_I) != n_images or len(study_T) != n_texts or images.array.shape[1:] != texts.array.shape[1:]:
        raise EvalError(
            f"images {images.array.shape}, texts {texts.array.shape}, {n_texts} hashes and studies of {len(study_I)} "
            f"images and {len(study_T)} texts do not fit together",
            why="an image would be matched with another study's text",
            fix="give one vector, one hash and one study for each, from the same model",
        )
    text_T = text_T.reshape(-1)
    everyone = np.unique(np.concatenate([study_I, study_T]), return_inverse=True)[1].reshape(-1)
    pairs = _pairs(everyone[:n_images], everyone[n_images:], text_T, len(first_U))
    text_P = pairs.text_S[pairs.pair_P]
    own_P = images.dots(texts, pairs.image_P, text_P)
    best_I = _best(own_P, pairs.image_P, n_images)
    best_U = _best(own_P, text_P, len(first_U))
    best_S = _best(own_P, pairs.pair_P, len(pairs.text_S))
    shared_S = np.flatnonzero(pairs.studies_U[pairs.text_S] > 1)  # else strict and tie-aware thresholds are the same

    of_image = _Tally(images, texts, np.arange(n_images), best_I, 1)
    of_text = _Tally(texts, images, np.arange(len(first_U)), best_U, 0)
    of_pair = _Tally(texts, images, pairs.text_S[shared_S], best_S[shared_S], 0)
    kernel = blocks_on(device)
    heavy_U = copies_U.astype(np.float32) if copies_U.max(initial=1) > 1 else None
    for columns in watch(spans(len(first_U), COLUMNS), -(-len(first_U) // COLUMNS)):
        text_CD = kernel.load(texts.take(columns))
        weights = None if heavy_U is None else heavy_U[columns]
        strict = np.searchsorted(of_pair.of_query_Q, (columns.start, columns.stop))
        for rows in spans(n_images, ROWS):
            block = kernel.similarities(kernel.load(images.take(rows)), text_CD)
            of_image.add(kernel, block, rows, columns, weights)
            of_text.add(kernel, block, columns, rows, None)
            for part in spans(int(strict[1] - strict[0]), COLUMNS):
                at = slice(int(strict[0]) + part.start, int(strict[0]) + part.stop)
                copied = kernel.columns(block, of_pair.of_query_Q[at] - columns.start)
                of_pair.add(kernel, copied, at, rows, None)

    above_S, tied_S = of_text.above_Q[pairs.text_S], of_text.tied_Q[pairs.text_S]
    above_S[shared_S], tied_S[shared_S] = of_pair.above_Q, of_pair.tied_Q
    ones_P = np.ones(len(own_P))

    def image_ranks(weight_P: NDArray) -> Ranks:
        relevant_I = _tied_weight(own_P, best_I, pairs.image_P, weight_P)
        copies_I = np.bincount(pairs.image_P, weights=weight_P, minlength=n_images).astype(np.int64)
        return Ranks(of_image.above_Q, of_image.tied_Q, relevant_I, copies_I, n_texts)

    relevant_U, relevant_S = (
        _tied_weight(own_P, best, group, ones_P) for best, group in ((best_U, text_P), (best_S, pairs.pair_P))
    )
    images_U, images_S = np.bincount(text_P), np.bincount(pairs.pair_P)
    pair_T = pairs.pair_T
    return {
        ("image_to_text", "identical_texts"): image_ranks(copies_U[text_P].astype(float)),
        ("image_to_text", "strict"): image_ranks(pairs.copies_S[pairs.pair_P].astype(float)),
        ("text_to_image", "identical_texts"): Ranks(
            of_text.above_Q[text_T], of_text.tied_Q[text_T], relevant_U[text_T], images_U[text_T], n_images
        ),
        ("text_to_image", "strict"): Ranks(
            above_S[pair_T], tied_S[pair_T], relevant_S[pair_T], images_S[pair_T], n_images
        ),
    }


def on_stderr(blocks: Iterable[slice], total: int) -> Iterable[slice]:
    """`watch` that shows rate and time left."""
    from data_shards.progress import track

    return track(blocks, total, "ranking", "blocks")
