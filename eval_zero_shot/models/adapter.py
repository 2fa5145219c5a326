"""What every adapter shares: the interface the protocols ask for, an identity that covers every weight, and refusals.

Legend: B studies, U texts, L tokens of a padded text, T tokens of all texts, D embedding width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from data_shards.geometry import AnyGeometry, View
from encoders.features import ImageFeatures, TextFeatures
from encoders.loading import Loaded
from encoders.preprocessing import Preprocess
from eval_zero_shot.errors import EvalError

if TYPE_CHECKING:
    from eval_zero_shot.embedding import PackedTexts

MEMORY = 100_000  # texts whose tokens are kept


class Adapter(nn.Module):
    """A foreign dual encoder. A subclass gives `images` and `texts`, and what `Loaded` needs beside it."""

    clip = SimpleNamespace(visual=None)  # the report's heat maps ask here for a tower's tokens; there are none
    pad_id = 0

    def __init__(self, logit_scale: float) -> None:
        """logit_scale: natural logarithm of the inverse temperature."""
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(float(logit_scale)), requires_grad=False)
        self.logit_bias: Tensor | None = None

    def images(self, images: Tensor) -> Tensor:
        """[B, C, (D,) H, W] as the geometry gives them, to [B, D]."""
        raise NotImplementedError

    def texts(self, ids_UL: Tensor, inside_UL: Tensor) -> Tensor:
        """Token ids padded by `pad_id` and where they are no padding, to [U, D]."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Image features alone, as timm towers give them."""
        return self.images(images)

    def encode_image(self, images: Tensor, tokens: bool = False, trunk: bool = False) -> ImageFeatures:
        """Raises ValueError when patch tokens or trunk features are asked for: a foreign tower does not give them."""
        if tokens or trunk:
            asked = "patch tokens" if tokens else "trunk features"
            raise ValueError(f"{asked} are available from release folders and timm towers of open_clip only")
        return image_features(self.images(images))

    def encode_text(self, text: PackedTexts) -> TextFeatures:
        """Features of packed texts (eval_zero_shot.embedding.pack_texts)."""
        return text_features(self.texts(*padded(text, self.pad_id)), text)


def image_features(study_BD: Tensor) -> ImageFeatures:
    """One scan a study."""
    return ImageFeatures(study_BD, torch.arange(len(study_BD), device=study_BD.device), study_BD)


def text_features(units_UD: Tensor, text: PackedTexts) -> TextFeatures:
    """With what the packed texts say about themselves."""
    return TextFeatures(units_UD, text.kind_U, text.hash64_U, text.pair_sample_P, text.pair_unit_P)


def padded(text: PackedTexts, pad_id: int) -> tuple[Tensor, Tensor]:
    """Packed ids [T] as a table [U, L] of the longest text's length, and where it holds tokens (bool [U, L])."""
    rows = torch.split(text.tokens_T, list(text.lengths))
    ids_UL = nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=pad_id)
    lengths_U = torch.tensor(text.lengths, device=ids_UL.device)
    return ids_UL, torch.arange(ids_UL.shape[1], device=ids_UL.device) < lengths_U[:, None]


def remembered(tokenize: Callable[[str], Sequence[int]]) -> Callable[[str], list[int]]:
    """text -> ids, each distinct text once: reports repeat sentences."""
    kept = lru_cache(MEMORY)(lambda text: tuple(int(i) for i in tokenize(text)))
    return lambda text: list(kept(text))


def loaded(
    model: nn.Module,
    geometry: AnyGeometry,
    view: View,
    tokenizer: Callable[[str], list[int]] | None,
    about: dict[str, Any],
    device: str,
    packages: Sequence[str] = (),
    weights_sha256: str | None = None,
) -> Loaded:
    """In eval mode on `device`, with an identity of weights, `about`, package versions and how texts are tokenised.

    Args:
        about: plain JSON that says how the weights are read (architecture, activations); part of the identity, since
            equal weights under another activation give other features. No folder names: they may be moved.
        weights_sha256: of weights that another process holds; the model's own state otherwise.
    """
    kind = "timm" if tokenizer is None else "clip"
    about = {**about, "versions": {name: _version(name) for name in packages}}
    parts = [json.dumps(about, sort_keys=True, default=str), weights_sha256 or state_sha256(model)]
    if tokenizer is not None:  # another vocabulary under the same weights reads other words
        parts.append(json.dumps([tokenizer(sentence) for sentence in READ_ALOUD]))
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    model.to(device).eval()
    return Loaded(model, Preprocess(geometry, view), tokenizer, geometry, view, about, digest, kind)


READ_ALOUD = (
    "There is a small pleural effusion on the left side; no pneumothorax, consolidation or nodule is seen.",
    "Findings: 2.5 cm hepatic cyst, mild splenomegaly, coronary artery calcification, hiatal hernia, T2-hyperintense.",
    "A histopathology image of adipose tissue, H&E stain, 40x; OCT of drusen; chest X-ray, posteroanterior view (PA).",
    "Axial CT without contrast: Emphysema, atelectasis, lymphadenopathy, gallstones, hydronephrosis, fracture of L4-5!",
)


def state_sha256(module: nn.Module) -> str:
    """Of every name, type, shape and byte of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def files_sha256(files: Sequence[Path]) -> str:
    """Of names and bytes of files."""
    digest = hashlib.sha256()
    for file in sorted(files):
        with file.open("rb") as opened:
            digest.update(f"{file.name}\0{hashlib.file_digest(opened, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


@contextmanager
def building(what: str, fix: str) -> Iterator[None]:
    """Anything a foreign factory raises becomes an EvalError. Random states are left as they were, and what a factory
    draws is the same at every call: a control that differs from run to run could not be compared, nor kept.

    Factories of other packages raise whatever they like (hub clients, unpicklers, KeyErrors of configs), and a user
    needs the same from all: which model it was, what the factory said, and what to do.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    except EvalError:
        raise
    except ImportError as error:
        raise EvalError(
            f"{what} needs a package that is not installed: {error}", why="it is optional", fix=fix
        ) from error
    except Exception as error:
        said = " ".join(str(error).split())[:400] or type(error).__name__
        raise EvalError(
            f"{what} cannot be loaded: {said}", why="part of it would stay random, or there is nothing to load", fix=fix
        ) from error
