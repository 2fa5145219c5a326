"""A frozen text tower read once: embeddings of every text that training will see, kept in a file.

A study's texts take K forms (`model.text.cached`; data_shards.units, `variants`), so all of them can be encoded before
training, in a fixed order. Training then looks vectors up by their tokens and runs the projection alone, which goes on
being trained.

Legend: M distinct texts, U units, C width of the text tower.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_shards.progress import counting
from data_shards.report import ANATOMY
from data_shards.units import tokens_identity
from encoders.dual import DualEncoder
from encoders.tokenize import HFTokenizer
from pretrain import build, launch, runs, studies
from pretrain.passes import Part, Rows
from pretrain.schema import Recipe

TOKENS = 16_384  # encoded at once
FORMAT = 1
PROJECTIONS = ("text_projection", "proj.")  # go on being trained
BEAT, QUIET = 10.0, 600.0  # seconds between signs of life of rank 0, and without one after which others give up


class TextCache:
    """Features of texts before the projection, float32 [M, C], by the identity of their tokens, int64 [M] ascending."""

    def __init__(self, identity_M: Tensor, pooled_MC: Tensor) -> None:
        self.identity_M, self.pooled_MC = identity_M, pooled_MC

    def look_up(self, visit64_U: Tensor) -> Tensor:
        """[U, C] on the device of `visit64_U`.

        Raises:
            RuntimeError: a text that was not encoded.
        """
        wanted = visit64_U.cpu()
        at = torch.searchsorted(self.identity_M, wanted).clamp(max=len(self.identity_M) - 1)
        if not torch.equal(self.identity_M[at], wanted):
            raise RuntimeError(
                "a text of this batch is not among those that were encoded before training\n"
                "  why: the tower is not run any more\n"
                "  fix: delete the folder texts in data.cache and resume; please report it, for this should not happen"
            )
        return self.pooled_MC[at].to(visit64_U.device)

    def text_units(self, dual: DualEncoder, part: Part, fields: frozenset[str]) -> dict[str, Rows]:
        """The pass `text:units` out of the cache."""
        visits = part.texts.visit64_U
        number = torch.arange(part.units.start, part.units.stop, device=visits.device)
        return {"units": Rows(dual.project_units(self.look_up(visits)), number)}


def text_cache(
    recipe: Recipe, dual: DualEncoder, data: studies.Data, tokenize: Any, resumed: Mapping[str, Tensor] | None = None
) -> TextCache | None:
    """The cache of a run, made the first time; None where the recipe asks for none. Rank 0 makes it, others wait.

    resumed: weights of the dual encoder of the checkpoint that the run goes on from.

    Raises:
        RuntimeError: rank 0 gives no sign of life any more, and the cache is not there.
    """
    if recipe.model.text is None or recipe.model.text.cached is None:
        return None
    if resumed is not None:  # the trainer puts all of them back later; these texts were encoded by this tower
        weights = {name.removeprefix("text."): w for name, w in resumed.items() if name.startswith("text.")}
        dual.clip.text.load_state_dict(weights)
    stream = build.training_stream(recipe, data, tokenize, 0, 1, 0)
    folder = recipe.cache_dir / "texts"
    path = folder / f"{_identity(recipe, dual, stream.state_dict(), tokenize)}.safetensors"
    if launch.rank() == 0 and not path.is_file():
        with _signs_of_life(path):
            _write(path, *_encode(dual, _distinct(recipe, data, stream.samples, tokenize)))
    _wait(path)
    from safetensors.torch import load_file

    kept = load_file(path)
    return TextCache(kept["identity"], kept["pooled"])


@contextlib.contextmanager
def _signs_of_life(path: Path) -> Iterator[None]:
    """Touches a file beside `path` while the block runs: no process group is there yet, and encoding may take hours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sign, done = path.with_suffix(".working"), threading.Event()

    def beat() -> None:
        while not done.is_set():
            sign.touch()
            done.wait(BEAT)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        sign.unlink(missing_ok=True)


def _wait(path: Path) -> None:
    """Until the file is there. Times of the file are compared with each other alone: clocks of machines differ."""
    sign, last, since = path.with_suffix(".working"), 0, time.monotonic()
    while not path.is_file():
        with contextlib.suppress(FileNotFoundError):
            if (touched := sign.stat().st_mtime_ns) != last:
                last, since = touched, time.monotonic()
        if time.monotonic() - since > QUIET:
            raise RuntimeError(
                f"{path} is not there, and rank 0, which makes it, gave no sign of life for {QUIET:.0f} seconds\n"
                "  why: it has failed, or writes into another folder; this rank would wait for ever\n"
                "  fix: read what rank 0 printed, and name a data.cache that all ranks share"
            )
        time.sleep(1.0)


def _distinct(recipe: Recipe, data: studies.Data, samples: Any, tokenize: Any) -> list[list[int]]:
    """Token ids of every text of every variant, each once, shortest first."""
    found: dict[int, list[int]] = {}
    variants = recipe.model.text.cached or 1 if recipe.model.text else 1
    sections = (None, *(ANATOMY if recipe.data.units.alternate else ()))
    with counting(len(data.train_rows), "reading texts") as advance:
        for row in np.asarray(data.train_rows):
            for variant in range(variants):
                for section in sections:
                    for unit in samples.units_of(int(row), (recipe.seed, variant), section=section):
                        ids = tokenize(unit.text)
                        found[tokens_identity(ids)] = ids
            advance(1)
    return sorted(found.values(), key=lambda ids: (len(ids), ids))


def _encode(dual: DualEncoder, texts: list[list[int]]) -> tuple[Tensor, Tensor]:
    was_training, device = dual.training, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    home = dual.logit_scale.device
    dual.eval().to(device)
    pooled = []
    with torch.no_grad(), counting(len(texts), "embedding texts", "texts") as advance:
        for group in _groups(texts):
            ids = torch.tensor([i for text in group for i in text], device=device)
            pooled.append(dual.pool_units(ids, [len(text) for text in group]).float().cpu())
            advance(len(group))
    dual.train(was_training).to(home)
    identity_M = torch.tensor([tokens_identity(text) for text in texts])
    order = torch.argsort(identity_M)
    return identity_M[order], torch.cat(pooled)[order]


def _groups(texts: list[list[int]]) -> Iterator[list[list[int]]]:
    group: list[list[int]] = []
    for text in texts:
        if group and (len(group) + 1) * len(text) > TOKENS:
            yield group
            group = []
        group.append(text)
    if group:
        yield group


def _identity(recipe: Recipe, dual: DualEncoder, stream: dict[str, Any], tokenize: Any) -> str:
    """Of all that determines the embeddings: the tower's weights, the texts, and how they are drawn, cut and read."""
    digest = hashlib.sha256()
    for name, value in sorted(dual.clip.text.state_dict().items()):
        if name.startswith(PROJECTIONS):
            continue
        digest.update(name.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    said = {
        "format": FORMAT,
        "text": recipe.model.text.model_dump() if recipe.model.text else None,
        "tokenizer": tokenize.identity() if isinstance(tokenize, HFTokenizer) else None,
        "units": recipe.data.units.model_dump(),
        "templates": runs.named_files(recipe).get("data.units.templates"),
        "seed": recipe.seed,
        "manifest": stream["manifest"],
        "rows": stream["rows_hash"],
        "torch": torch.__version__,
    }
    digest.update(json.dumps(said, sort_keys=True).encode())
    return digest.hexdigest()


def _write(path: Path, identity_M: Tensor, pooled_MC: Tensor) -> None:
    from safetensors.torch import save_file

    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file({"identity": identity_M.contiguous(), "pooled": pooled_MC.contiguous()}, aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
