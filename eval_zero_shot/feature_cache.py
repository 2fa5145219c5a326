"""Features of studies, kept by what determines them: weights, preprocessing, data, rows, kind, precision and code.

A stale cache gives the scores of another model. Here nothing can go stale: a change to any of these is another file.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from eval_zero_shot.embedding import Features, Precision, StudyFeatures, arithmetic, embed_images
from eval_zero_shot.release import image_encoder

DEFAULT = Path("~/.cache/voxclip/features")
# What stands between a stored scan and its features.
CODE = (
    "encoders/**/*.py",
    "data_shards/**/*.py",
    *(f"eval_zero_shot/{f}.py" for f in ("embedding", "cases", "classify", "release", "models/**/*", "audit/altered")),
    "eval_zero_shot/attended.py",
)
PACKAGES = ("torch", "timm", "open_clip_torch", "numpy", "pillow", "blosc2")


@lru_cache(maxsize=1)
def code_sha256() -> str:
    """Of the source files that turn a stored scan into features, and the versions of the packages they stand on."""
    root, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for file in sorted({f for pattern in CODE for f in root.glob(pattern)}):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    digest.update(json.dumps([version(name) for name in PACKAGES]).encode())
    return digest.hexdigest()


class FeatureCache:
    """A folder of features. `identity` is plain JSON; two identities that differ in anything never share a file."""

    def __init__(self, folder: str | os.PathLike[str] = DEFAULT) -> None:
        self.folder = Path(folder).expanduser()

    def path(self, identity: dict[str, Any]) -> Path:
        whole = json.dumps({**identity, "code": code_sha256()}, sort_keys=True)
        return self.folder / f"{hashlib.sha256(whole.encode()).hexdigest()}.safetensors"

    def get(self, identity: dict[str, Any]) -> StudyFeatures | None:
        """The features, or None where they are not there or the file is damaged."""
        from safetensors import SafetensorError, safe_open

        path = self.path(identity)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "numpy") as file:
                names, features = json.loads(file.metadata()["studies"]), file.get_tensor("features_ND")
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            return None
        keys, patients = ([str(row[i]) for row in names] for i in (0, 1))
        if len(keys) != len(features):
            return None
        return StudyFeatures(tuple(keys), np.asarray(patients, dtype=str), features)

    def get_or_make(self, identity: dict[str, Any], make: Callable[[], StudyFeatures]) -> StudyFeatures:
        """The features, made and kept where they are not there yet."""
        from safetensors import SafetensorError

        found = self.get(identity)
        if found is None:
            found = make()
            try:
                self.put(identity, found)
            except (OSError, SafetensorError) as error:  # hours of encoding are not lost for want of a cache
                print(f"warning: features could not be kept ({type(error).__name__}): use --cache", file=sys.stderr)
        return found

    def put(self, identity: dict[str, Any], found: StudyFeatures) -> Path:
        """Written aside, then renamed."""
        from safetensors.numpy import save_file

        path = self.path(identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        names = [[key, str(patient)] for key, patient in zip(found.keys, found.patients, strict=True)]
        try:
            save_file(
                {"features_ND": np.ascontiguousarray(found.features_ND)}, aside, metadata={"studies": json.dumps(names)}
            )
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        return path


def identity_of(
    loaded: Any, shards: Any, rows: Any, precision: Precision, features: Features = "projected"
) -> dict[str, Any]:
    """What determines the features of some rows of a shard set under a release: of the precision, what it is on the
    device that the release was loaded on."""
    return {
        "release": loaded.sha256,
        "geometry": loaded.geometry.identity,
        "view": loaded.view.identity,
        "data": shards.manifest_hash,
        "rows": hashlib.sha256(np.asarray(rows, dtype=np.int64).tobytes()).hexdigest(),
        "precision": " ".join(arithmetic(loaded.model, precision)),
        "features": features,
    }


def features_of(
    loaded: Any, shards: Any, rows: Any, precision: Precision, cache: FeatureCache | None, batch_size: int = 8,
    features: Features = "projected",
) -> StudyFeatures:  # fmt: skip
    """Features of rows of a shard set under a release, as its own preprocessing shows them; encoded once, then kept
    (cache None: encoded and not kept)."""
    identity = identity_of(loaded, shards, rows, precision, features)

    def made() -> StudyFeatures:
        return embed_images(
            image_encoder(loaded), shards, rows, loaded.geometry, loaded.view,
            batch_size=batch_size, precision=precision, progress=True, features=features,
        )  # fmt: skip

    return made() if cache is None else cache.get_or_make(identity, made)
