"""Texts to token ids without padding, by the tokenizer a release names.

open_clip pads every text to the context; packed towers need the ids alone. They are kept: reports repeat sentences.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoders.report_layout import Marks

Tokenize = Callable[[str], list[int]]
MEMORY = 100_000  # texts whose ids are kept


class BPE:
    """open_clip's byte-pair tokenizer: start-of-text, lower-cased pieces, end-of-text; truncated to `context_length`
    with the end-of-text token kept, exactly as open_clip does. Pickles as its context length alone."""

    pad_id = 0

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length
        self._ids = lru_cache(MEMORY)(self._encode)
        self._tokenizer: object = None

    def _encode(self, text: str) -> tuple[int, ...]:
        if self._tokenizer is None:
            from open_clip.tokenizer import SimpleTokenizer

            self._tokenizer = SimpleTokenizer(context_length=self.context_length)
        tokenizer = self._tokenizer
        ids = [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]  # type: ignore[attr-defined]
        if len(ids) > self.context_length:
            ids = [*ids[: self.context_length - 1], tokenizer.eot_token_id]  # type: ignore[attr-defined]
        return tuple(ids)

    def __call__(self, text: str) -> list[int]:
        return list(self._ids(text))

    def marks(self) -> Marks:
        """Which ids end a word, and which are no text."""
        self(" ")
        pieces: dict[int, str] = self._tokenizer.decoder  # type: ignore[attr-defined]
        ends = np.array([pieces[i].endswith("</w>") for i in range(len(pieces))])
        special = np.zeros(len(ends), bool)
        special[[self._tokenizer.sot_token_id, self._tokenizer.eot_token_id]] = True  # type: ignore[attr-defined]
        return Marks(special, np.zeros_like(special), ends)

    def __reduce__(self) -> tuple[type[BPE], tuple[int]]:
        return BPE, (self.context_length,)


class HFTokenizer:
    """A Hugging Face tokenizer from a local folder or by name (extra `hf`); `wordpunct`: see `hf_tokenizer`."""

    def __init__(self, name: str, context_length: int, wordpunct: bool = False) -> None:
        self.name, self.context_length, self.wordpunct = name, context_length, wordpunct
        self._ids = lru_cache(MEMORY)(self._encode)
        self._tokenizer: object = None

    @property
    def pad_id(self) -> int:
        return int(self._load().pad_token_id or 0)  # type: ignore[attr-defined]

    def _load(self) -> object:
        if self._tokenizer is None:
            self._tokenizer = hf_tokenizer(self.name, self.wordpunct)
        return self._tokenizer

    def _encode(self, text: str) -> tuple[int, ...]:
        from open_clip.tokenizer import get_clean_fn

        clean = get_clean_fn(
            "whitespace"
        )  # as open_clip's own wrapper does, so that a release reads texts as in training
        return tuple(self._load()(clean(text), truncation=True, max_length=self.context_length)["input_ids"])  # type: ignore[operator]

    def __call__(self, text: str) -> list[int]:
        return list(self._ids(text))

    def marks(self) -> Marks:
        """Which ids begin a word, by the marks of WordPiece ("##" goes on), byte-level BPE and SentencePiece (a blank
        begins), and which are no text."""
        tokenizer: Any = self._load()
        pieces = [piece or "" for piece in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]
        if any(piece.startswith("##") for piece in pieces):
            begins = np.array([not piece.startswith("##") for piece in pieces])
        else:
            begins = np.array([piece.startswith(("Ġ", "▁")) for piece in pieces])
        special = np.zeros(len(pieces), bool)
        special[[i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id]] = True
        return Marks(special, begins, np.zeros_like(special))

    def identity(self) -> str:
        """sha256 (hex) of its vocabulary and rules, without the cut: equal for tokenizers that give the same ids."""
        tokenizer: Any = self._load()
        if getattr(tokenizer, "is_fast", False):
            said = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
        else:
            said = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
        said |= {"special": tokenizer.special_tokens_map}
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()

    def __reduce__(self) -> tuple[type[HFTokenizer], tuple[str, int, bool]]:
        return HFTokenizer, (self.name, self.context_length, self.wordpunct)


def hf_tokenizer(name: str, wordpunct: bool = False) -> Any:
    """transformers' tokenizer of a folder or name.

    With `wordpunct` it lower-cases and sets words and punctuation apart by spaces, as Merlin does with nltk's
    `wordpunct_tokenize`. That is written into the tokenizer itself, so one that is saved reads texts in the same way
    wherever it is loaded, open_clip included.

    Raises:
        ValueError: `wordpunct` asked of a tokenizer that is not a fast one.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(name)
    if not wordpunct:
        return tokenizer
    from tokenizers import Regex, normalizers
    from transformers import PreTrainedTokenizerFast

    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"the tokenizer of '{name}' is not a fast one, so it cannot set words and punctuation apart")
    backend = tokenizer.backend_tokenizer
    apart = normalizers.Replace(Regex(r"(?<=\w)(?=[^\w\s])|(?<=[^\w\s])(?=\w)"), " ")
    own = [backend.normalizer] if backend.normalizer is not None else []
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), apart, *own])
    # The generic class reads all of tokenizer.json; a model's own may make its parts anew, and lose the normaliser.
    limits = {"model_max_length": tokenizer.model_max_length, "padding_side": tokenizer.padding_side}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **limits, **tokenizer.special_tokens_map)


def pack(texts: Sequence[str], tokenize: Tokenize) -> tuple[Tensor, tuple[int, ...]]:
    """Ids of all texts one after another, int64 [T], and the length of each."""
    ids = [tokenize(text) for text in texts]
    return torch.tensor([i for unit in ids for i in unit]), tuple(len(unit) for unit in ids)
