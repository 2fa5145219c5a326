"""Prompts that are, word for word, texts of the training set: a zero-shot score of them is a memory test.

UniMed-CLIP's 40 knee-MRI prompts are all among RadImageNet's captions once case and the final full stop are set aside.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval_zero_shot.audit.facts import Facts, plain_text, text_hash
from eval_zero_shot.audit.verdict import Check

NAME = "prompts in training texts"


def prompts_in_training(prompts: Sequence[str], train: Facts) -> Check:
    """How many prompts are a whole caption or report of training, and how many a sentence of one."""
    if not len(train.whole_T):
        return Check(NAME, "not checked", "no training study has a text.")
    hashes = np.asarray([text_hash(plain_text(prompt)) for prompt in prompts], dtype=np.uint64)
    whole, sentence = np.isin(hashes, train.whole_T), np.isin(hashes, train.sentence_T)
    studies = int(train.whole_count_T[np.isin(train.whole_T, hashes)].sum())
    k, n = int(whole.sum()), len(prompts)
    says = f"{k} of {n} prompts are a whole caption or report of training, case, spaces and full stop aside"
    says += f" (of {studies} studies)" if k else ""
    says += f"; {int((sentence & ~whole).sum())} more are a sentence of one."
    return Check(NAME, "warn" if k else "ok", says, k / n, 0.0, n)
