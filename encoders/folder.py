"""A release folder as a whole: written aside and renamed, every file listed with its hash, nothing else tolerated.

open_clip and timm take the first weights file they can find, and go on with random weights when there is none. So a
folder says in `release.json` what belongs to it, and what does not belong is refused before anything is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from encoders.errors import ReleaseError

LISTING = "release.json"
SCHEMA_VERSION = 1
WEIGHTS = {"clip": "open_clip_model.safetensors", "timm": "model.safetensors"}
CONFIG = {"clip": "open_clip_config.json", "timm": "config.json"}
HEADS, HEADS_SPEC, CARD = "heads.safetensors", "heads.json", "README.md"
_MAKE = "make the folder again: python -m encoders.release --run RUN --out DIR"


@dataclass(frozen=True)
class Listing:
    """What `release.json` says. `kind` is "clip" (dual encoder, for open_clip) or "timm" (image tower, for timm);
    `sha256` is that of `release.json` itself and so identifies the whole release."""

    kind: str
    files: dict[str, dict[str, Any]]
    sha256: str


@contextmanager
def written_aside(out: str | os.PathLike[str], kind: str, overwrite: bool) -> Iterator[Path]:
    """A folder beside `out` to write a release into; it is sealed and takes the name `out` when the block ends well.

    Raises:
        ReleaseError: `out` exists and `overwrite` is not set, or it holds what no release wrote; the disk is full.
    """
    target = Path(out).expanduser().resolve()
    _check_target(target, overwrite)
    aside = target.with_name(f".{target.name}.writing-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        yield aside
        seal(aside, kind)
        for file in (aside, *aside.rglob("*")):
            _flush(file)
        _swap(aside, target)
    except OSError as error:
        raise ReleaseError(
            f"the release could not be written ({error.strerror or type(error).__name__})",
            "half a release would load as something that nobody trained",
            "free space or choose another --out; what was there before is untouched",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def seal(folder: Path, kind: str) -> None:
    """Write `release.json`: every file of the folder with its bytes and sha256, itself left out."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
        for name in sorted(_contents(folder) - {LISTING})
    }
    body = {"schema_version": SCHEMA_VERSION, "kind": kind, "files": files}
    (folder / LISTING).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def inspect(folder: str | os.PathLike[str], verify: bool = True) -> Listing:
    """Check a release folder and return its listing. With `verify=False` hashes are not computed, all else is checked.

    Raises:
        ReleaseError: no folder, no listing, a listed file missing or changed, no weights, or a stray file.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ReleaseError(f"no release folder at '{folder}'", "there is nothing to load", "check the path")
    listing = _read_listing(root)
    missing = sorted(name for name in listing.files if not (root / name).is_file())
    if WEIGHTS[listing.kind] in {*missing, *({WEIGHTS[listing.kind]} - set(listing.files))}:
        raise ReleaseError(
            f"the release has no weights: {WEIGHTS[listing.kind]} is missing",
            "open_clip would answer with a warning and a model of random weights",
            f"copy the file again, or {_MAKE}",
        )
    if missing:
        raise ReleaseError(
            f"the release lacks files it lists: {', '.join(missing)}",
            "the model would be built from what is left, or read otherwise than it was trained",
            f"copy the folder again, or {_MAKE}",
        )
    stray = sorted(_contents(root) - set(listing.files) - {LISTING})
    if stray:
        raise ReleaseError(
            f"stray files in the release: {', '.join(stray)}",
            "open_clip and timm take weights by file name, so a stray file may be loaded in place of the model",
            "move them out of the folder",
        )
    changed = [n for n, entry in listing.files.items() if (root / n).stat().st_size != entry.get("bytes")]
    if verify and not changed:
        changed = [n for n, entry in listing.files.items() if _sha256(root / n) != entry.get("sha256")]
    if changed:
        raise ReleaseError(
            f"files of the release are not what was released: {', '.join(sorted(changed))}",
            "the scores of this release were measured on other bytes",
            f"copy the folder again, or {_MAKE}",
        )
    return listing


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a release. Raises ReleaseError when it is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReleaseError(
            f"{path.name} is not readable JSON ({type(error).__name__})", "nothing says what the weights mean", _MAKE
        ) from error
    if not isinstance(data, dict):
        raise ReleaseError(f"{path.name} is not a JSON object", "nothing says what the weights mean", _MAKE)
    return data


def _read_listing(root: Path) -> Listing:
    path = root / LISTING
    if not path.is_file():
        raise ReleaseError(
            f"'{root.name}' has no {LISTING}: it is not a release of this project",
            "nothing says which files belong to it or how volumes have to be prepared",
            f"load it with open_clip or timm, or {_MAKE}",
        )
    data = read_json(path)
    if data.get("schema_version") != SCHEMA_VERSION:
        raise ReleaseError(
            f"{LISTING} has schema version {data.get('schema_version')}, this program reads {SCHEMA_VERSION}",
            "its fields would be misread",
            "install the version of this package that wrote it",
        )
    files = data.get("files")
    if data.get("kind") not in WEIGHTS or not isinstance(files, dict) or not all(map(_is_inside, files)):
        raise ReleaseError(f"{LISTING} is damaged", "nothing says which files belong to the release", _MAKE)
    return Listing(data["kind"], files, _sha256(path))


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _contents(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}


def _check_target(target: Path, overwrite: bool) -> None:
    """Only an empty folder, or with `overwrite` an earlier release and nothing else, may be replaced."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise ReleaseError(
            f"'{target.name}' exists",
            "a release somebody uses would change under them",
            "choose another --out, or --overwrite",
        )
    known = set(_read_listing(target).files) | {LISTING} if (target / LISTING).is_file() else set()
    foreign = sorted(_contents(target) - known) if target.is_dir() else [target.name]
    if foreign:
        raise ReleaseError(
            f"'{target.name}' holds what no release wrote: {', '.join(foreign[:8])}",
            "overwriting would delete it",
            "move it away or choose another --out",
        )


def _swap(aside: Path, target: Path) -> None:
    if target.exists():
        old = target.with_name(f".{target.name}.old-{os.getpid()}")
        target.rename(old)
        try:
            aside.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old)
    else:
        aside.rename(target)
    _flush(target.parent)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
