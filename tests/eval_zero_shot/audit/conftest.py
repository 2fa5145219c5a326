"""Pictures with three findings, each a pattern at a place of its own, and an encoder that looks there.

Backgrounds are smooth noise. A finding is there or turned over: neither mean nor spread of intensities tells it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from data_shards.preprocess import PlanarGeometry, View
from data_shards.schema import Caption, Scan, Study, Texts
from data_shards.shard_set import ShardSet, ShardWriter
from encoders.features import ImageFeatures, TextFeatures
from eval_zero_shot import Finding, Task
from eval_zero_shot.audit.protocol import Audit, score_audit, training_set
from eval_zero_shot.inputs import Inputs

NAMES = ("alpha", "beta", "gamma")
PLACES = ((10, 14), (26, 20), (16, 34))
SIDE = 48
WORDS = {"alpha": 0, "beta": 1, "gamma": 2, "no": 3}
TASK = Task(
    name="patterns",
    classes={name: Finding(positive=(f"{name} seen",), negative=(f"no {name} seen",)) for name in NAMES},
)
GEOMETRY = PlanarGeometry(size=(SIDE, SIDE), mean=(0.0,) * 3, std=(1.0,) * 3)


def tokenize(text: str) -> list[int]:
    return [WORDS.get(word, 4) for word in text.split()]


def pattern(place: tuple[int, int]) -> np.ndarray:
    out = np.zeros((SIDE, SIDE), np.float32)
    y, x = place
    out[y : y + 6, x : x + 4], out[y : y + 6, x + 4 : x + 8] = 1, -1
    return out


class PatternEncoder(nn.Module):
    """Three matched filters. `anatomy` scales the first, `leans` adds the top left corner to it; `names` says which
    filter a name means."""

    def __init__(
        self, leans: float = 0.0, anatomy: float = 1.0, names: Sequence[int] = (0, 1, 2), blind: bool = False
    ) -> None:
        super().__init__()
        filters = torch.from_numpy(np.stack([pattern(p) for p in PLACES])) / 10
        filters[0] *= anatomy
        filters[0, :5, :5] = leans
        self.filters = nn.Parameter(torch.ones_like(filters) * 0.1 if blind else filters)
        self.names, self.seen = tuple(names), 0

    def encode_image(self, images: Tensor) -> ImageFeatures:
        self.seen += len(images)
        found = torch.einsum("bhw,fhw->bf", images.mean(1), self.filters)
        x = torch.cat([found, torch.full((len(found), 1), 2.0)], 1)
        return ImageFeatures(x, torch.arange(len(x)), x)

    def encode_text(self, batch: Any) -> TextFeatures:
        rows = []
        for tokens in torch.split(batch.tokens_T, list(batch.lengths)):
            row = torch.full((4,), 0.01)
            name = next(int(t) for t in tokens if t < 3)
            row[self.names[name]] = -1.0 if 3 in tokens else 1.0
            rows.append(row)
        return TextFeatures(torch.stack(rows), batch.kind_U, batch.hash64_U, batch.pair_sample_P, batch.pair_unit_P)


def picture(number: int, labels: Sequence[int], mark: bool = False) -> np.ndarray:
    """Grey values of a study, uint8. mark: a bright square in the corner."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.normal(0, 1, (6, 6)).astype(np.float32))
    x = 120 + 25 * np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) + rng.normal(0, 4, (SIDE, SIDE))
    for label, place in zip(labels, PLACES):
        x += (2 * label - 1) * 8 * pattern(place)
    if mark:
        x[:4, :4] = 250
    return np.clip(x, 0, 255).astype(np.uint8)


def encoded(x: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(x).save(out, form, **options)
    return out.getvalue()


def truth(number: int) -> list[int]:
    return np.random.default_rng([number, 7]).integers(0, 2, 3).tolist()


def hashed(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def study(number: int, split: str, salt: str, image: bytes | None = None, mark: bool = False, **more: Any) -> Study:
    """A study of a patient of its own, hashed with the salt."""
    labels = truth(number)
    image = encoded(picture(number, labels, mark and bool(labels[0]))) if image is None else image
    told = [name for name, label in zip(NAMES, labels) if label]
    return Study(
        key=hashed("study", number, salt),
        patient=more.pop("patient", hashed("patient", number, salt)),
        split=split,
        scans=(Scan(image=image, ext=more.pop("ext", "png"), modality="DX", unit="arbitrary"),),
        texts=more.pop("texts", Texts(captions=(Caption(f"A picture of {', '.join(told) or 'nothing'}"),))),
        labels=dict(zip(NAMES, labels)),
    )


Write = Callable[[str, Sequence[Study]], ShardSet]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(name, studies)` writes a shard set and opens it."""

    def made(name: str, studies: Sequence[Study]) -> ShardSet:
        with ShardWriter(tmp_path / name) as writer:
            for one in studies:
                writer.write(one)
        return ShardSet.open(tmp_path / name)

    return made


def inputs_of(shards: ShardSet, model: Any, cache: Any = None) -> Inputs:
    view = View("centre", ())
    loaded = SimpleNamespace(
        model=model, tokenizer=tokenize, geometry=GEOMETRY, view=view, sha256="0" * 64, kind="clip"
    )  # what inputs.open_inputs makes of a release
    return Inputs("patterns", loaded, shards, cache)


def audited(test: ShardSet, train: Sequence[ShardSet], model: Any = None, **options: Any) -> Audit:
    inputs = inputs_of(test, PatternEncoder() if model is None else model, options.pop("cache", None))
    training = [training_set(shards, "train") for shards in train]
    options = {"resamples": 200, **options}
    return score_audit(inputs, test.rows("test"), TASK, training, **options)


def severities(audit: Audit) -> dict[str, str]:
    return {check.name: check.severity for check in audit.checks}
