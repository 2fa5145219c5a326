"""Studies and texts to vectors: each image once, each distinct text once, and the model is left as it was.

Features of studies are the projected ones, of unit length, which texts are compared with; or the trunk's, before the
projection, as they are, which heads of labels and downstream models take (Merlin's 2048).

Legend: B studies of a batch, N studies, U texts, T tokens, C channels, D depth (of a volume) or embedding width.
`model` is anything with `encode_image(images_BCDHW) -> .study_BD` and `encode_text(PackedTexts) -> .units_UD`;
`tokenizer` is `text -> list of token ids` without padding (encoders.tokenize).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_shards.progress import counting
from eval_zero_shot.classify import unit
from eval_zero_shot.errors import EvalError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Precision = Literal["fp32", "bf16", "auto"]
Features = Literal["projected", "trunk"]
Tokenize = Callable[[str], Sequence[int]]
SENTENCE = 2  # index in data_shards.schema.UNIT_KINDS; encoders carry it along and do not read it


@dataclass(frozen=True)
class PackedTexts:
    """Texts without padding, in the form `encode_text` takes (data_shards.stream.TextBatch has the same fields)."""

    tokens_T: Tensor
    cu_seqlens_U1: Tensor
    lengths: list[int]
    kind_U: Tensor
    hash64_U: Tensor
    pair_sample_P: Tensor
    pair_unit_P: Tensor


@dataclass(frozen=True)
class StudyBatch:
    """Crops of consecutive studies ready for the encoder, [B, C, (D,) H, W] float32, with the study of each."""

    keys: tuple[str, ...]
    patients: tuple[str, ...]
    images: NDArray[np.float32]


@dataclass(frozen=True)
class StudyFeatures:
    """Vectors of studies, float32 [N, D], with the key and the hashed patient of each row."""

    keys: tuple[str, ...]
    patients: NDArray[np.str_]
    features_ND: NDArray[np.float32]


@contextmanager
def evaluating(model: Any) -> Iterator[torch.device]:
    """Eval mode without gradients; afterwards every submodule's mode and every random state are as they were.

    Yields the model's device. Modes are kept one by one, since a recipe may have frozen some modules in eval mode.
    no_grad, not inference_mode: a table cached by the model on its first call would be an inference tensor, and the
    next training step through it would fail.
    """
    import torch

    modes = [(m, m.training) for m in model.modules()] if isinstance(model, torch.nn.Module) else []
    device = _device(model)
    python, numpy_state, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        if modes:
            model.eval()
        with torch.no_grad():
            yield device
    finally:
        for module, mode in modes:
            module.training = mode
        random.setstate(python)
        np.random.set_state(numpy_state)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def arithmetic(model: Any, precision: Precision) -> tuple[str, str]:
    """("fp32" or "bf16", type of the device) in which a model encodes: "auto" is bf16 on a GPU that has it.

    Raises EvalError for another precision.
    """
    return _resolved(_device(model), precision), _device(model).type


def _device(model: Any) -> torch.device:
    import torch

    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, torch.nn.Module) else []
    return tensors[0].device if tensors else torch.device("cpu")


def _resolved(device: torch.device, precision: Precision) -> str:
    import torch

    if precision not in ("fp32", "bf16", "auto"):
        raise EvalError(f"unknown precision {precision!r}", why="no such arithmetic", fix="use fp32, bf16 or auto")
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())
    return "bf16" if bf16 else "fp32"


def autocast(device: torch.device, precision: Precision) -> Any:
    """The context in which a model on `device` encodes. Raises EvalError for another precision."""
    import torch

    # Said explicitly either way, so that an autocast the caller is inside cannot leak into an fp32 evaluation.
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=_resolved(device, precision) == "bf16")


def pack_texts(texts: Sequence[str], tokenizer: Tokenize, device: torch.device | str = "cpu") -> PackedTexts:
    """Tokenise and pack; text u belongs to sample u. Raises EvalError naming the position of a text without tokens."""
    import torch

    ids = [[int(i) for i in tokenizer(text)] for text in texts]
    if not all(ids):
        empty = [u for u, tokens in enumerate(ids) if not tokens]
        raise EvalError(
            f"texts number {empty[:5]} have no tokens", why="nothing can be pooled from them", fix="leave them out"
        )
    lengths = [len(tokens) for tokens in ids]
    digests = (hashlib.blake2b(" ".join(t.split()).encode(), digest_size=8).digest() for t in texts)
    number = torch.arange(len(texts), device=device)
    return PackedTexts(
        tokens_T=torch.tensor([i for tokens in ids for i in tokens], dtype=torch.int64, device=device),
        cu_seqlens_U1=torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32, device=device),
        lengths=lengths,
        kind_U=torch.full((len(texts),), SENTENCE, dtype=torch.int8, device=device),
        hash64_U=torch.tensor([int.from_bytes(d, "little", signed=True) for d in digests], device=device),
        pair_sample_P=number,
        pair_unit_P=number,
    )


def embed_texts(
    model: Any, tokenizer: Tokenize, texts: Iterable[str], *, batch_size: int = 256, precision: Precision = "fp32"
) -> dict[str, NDArray[np.float32]]:
    """Unit vector [D] of every distinct text, each encoded once. Raises EvalError on features that are not finite."""
    distinct = list(dict.fromkeys(texts))
    out: dict[str, NDArray[np.float32]] = {}
    with evaluating(model) as device:
        for start in range(0, len(distinct), batch_size):
            part = distinct[start : start + batch_size]
            with autocast(device, precision):
                units_UD = model.encode_text(pack_texts(part, tokenizer, device)).units_UD
            vectors = unit(units_UD.float().cpu().numpy(), "texts").astype(np.float32)
            out.update(zip(part, vectors, strict=True))
    return out


def study_batches(
    shards: Any, rows: Sequence[int] | NDArray, geometry: Any, view: Any, batch_size: int = 8
) -> Iterator[StudyBatch]:
    """Read studies of a `data_shards` ShardSet through a geometry and a deterministic view, in the order of `rows`.

    The first scan of a study is taken (other choices: eval_zero_shot.cases), or where the geometry puts several
    together the first of these. A view of several crops gives a batch a study.

    Raises EvalError when scans and geometry are of different kinds (volume, image).
    """
    from data_shards.preprocess import SEVERAL, crops_of
    from data_shards.study_images import study_view

    planar = geometry.kind == "image"
    batch_size = 1 if view.kind in SEVERAL else batch_size
    for start in range(0, len(rows), batch_size):
        part = [int(row) for row in rows[start : start + batch_size]]
        crops = []
        for row in part:
            if getattr(geometry, "scans_per_study", 1) > 1:
                crops.append(study_view(shards, row, geometry, view)[None])
                continue
            source, scan = shards.scan(row, 0)
            if isinstance(source, bytes) != planar:
                found = "a planar image" if isinstance(source, bytes) else "a volume"
                raise EvalError(
                    f"study {shards.key(row)} is {found}, but the geometry is for kind {geometry.kind!r}",
                    why="the encoder was trained on the other kind",
                    fix="evaluate this release on shards of its own kind",
                )
            crops.append(crops_of(source, scan, geometry, view))
        each = [row for row, of_row in zip(part, crops, strict=True) for _ in of_row]
        keys, patients = (tuple(name(row) for row in each) for name in (shards.key, shards.patient))
        yield StudyBatch(keys, patients, np.concatenate(crops))


def embed_batches(
    model: Any,
    batches: Iterable[StudyBatch],
    *,
    batch_size: int = 8,
    precision: Precision = "fp32",
    total: int = 0,
    progress: bool = False,
    features: Features = "projected",
) -> StudyFeatures:
    """Encode batches as they come, at most `batch_size` crops at once: one row a study, the mean of its crops, where
    projected of unit length again.

    Raises EvalError on features that are not finite, that the tower does not give, or when no study comes.
    """
    import torch

    keys: list[str] = []
    patients: list[str] = []
    found: list[NDArray] = []
    with evaluating(model) as device, counting(total, "encoding") if progress else nullcontext(_silent) as advance:
        for batch in batches:
            for start in range(0, len(batch.images), batch_size):  # sliding crops of a large CT are dozens
                images = torch.from_numpy(batch.images[start : start + batch_size])
                with autocast(device, precision):
                    vectors_BD = _encoded(model, images.to(device), features)
                found.append(_checked(vectors_BD.float().cpu().numpy(), features))
            keys += batch.keys
            patients += batch.patients
            advance(len(set(batch.keys)))
    if not found:
        raise EvalError("no study to evaluate", why="the split is empty", fix="name a split that the shard set has")
    return mean_by_key(StudyFeatures(tuple(keys), np.asarray(patients, dtype=str), np.concatenate(found)), features)


def _encoded(model: Any, images: Tensor, features: Features) -> Tensor:
    if features == "projected":
        return model.encode_image(images).study_BD
    try:
        return model.encode_image(images, trunk=True).trunk_SC
    except ValueError as error:
        raise EvalError(
            f"this model gives no features before its projection: {error}",
            why="there is nothing else to take in their place",
            fix="take the projected features, or a release folder",
        ) from None


def _checked(vectors_ND: NDArray, features: Features) -> NDArray[np.float32]:
    """Of unit length, or as they are. Raises EvalError on what is not finite."""
    if features == "projected":
        return unit(vectors_ND, "studies").astype(np.float32)
    bad_N = ~np.isfinite(vectors_ND).all(axis=1)
    if bad_N.any():
        raise EvalError(
            f"studies: {int(bad_N.sum())} of {len(bad_N)} feature vectors are not finite",
            why="any AUROC of them would be noise",
            fix="look at the training run: a non-finite weight, or an encoder that returns nothing for these inputs",
        )
    return vectors_ND.astype(np.float32)


def _silent(n: int) -> None:
    """The progress of a pass that shows none: an evaluation while training, whose own line says it."""


def mean_by_key(found: StudyFeatures, features: Features = "projected") -> StudyFeatures:
    """Vectors of one key (crops, scans) to their mean, where projected of unit length again, in the order in which keys
    came.

    Raises EvalError where unit vectors cancel.
    """
    if len(set(found.keys)) == len(found.keys):
        return found
    keys, first, inverse = np.unique(np.asarray(found.keys), return_index=True, return_inverse=True)
    sums = np.zeros((len(keys), found.features_ND.shape[1]))
    np.add.at(sums, inverse, found.features_ND)
    order = np.argsort(first)
    means = sums[order] / np.bincount(inverse)[order, None]
    names = tuple(str(k) for k in keys[order])
    return StudyFeatures(names, found.patients[first[order]], _checked(means, features))


def embed_images(
    model: Any,
    shards: Any,
    rows: Sequence[int] | NDArray,
    geometry: Any,
    view: Any,
    *,
    batch_size: int = 8,
    precision: Precision = "fp32",
    progress: bool = False,
    features: Features = "projected",
) -> StudyFeatures:
    """Vector of every study in `rows` of a ShardSet, each read and encoded once, in that order.

    Raises EvalError on a random view (no two runs would agree), on a wrong kind of scan and on features that are not
    finite or that the tower does not give.
    """
    if getattr(view, "kind", None) == "random":
        raise EvalError(
            "a random view cannot be evaluated", why="each run would see other crops", fix="use a centre view"
        )
    if view.merge == "max" and view.kind in ("sliding", "multi"):
        raise EvalError(
            "features of crops cannot be merged by their maximum", why="it is defined for scores", fix="use merge mean"
        )
    batches = study_batches(shards, rows, geometry, view, batch_size)
    return embed_batches(
        model, batches, batch_size=batch_size, precision=precision, total=len(rows), progress=progress,
        features=features,
    )  # fmt: skip


def study_texts(texts: Mapping[str, Any]) -> str:
    """The whole report of a study's `texts`: as given, else its findings and impression, else its heaviest caption,
    else nothing."""
    report = str(texts.get("report") or "").strip()
    if report:
        return report
    sections = "\n".join(part for key in ("findings", "impression") if (part := str(texts.get(key) or "").strip()))
    captions = sorted(texts.get("captions") or (), key=lambda c: -c["weight"])  # the first of equal ones
    return sections or next((c["text"].strip() for c in captions if c["text"].strip()), "")
