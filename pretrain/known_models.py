"""Names of timm and open_clip models, shipped as text so that a mistyped one is answered before torch is imported.

`python -m pretrain.known_models --write` makes the list anew from what is installed.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import json
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

_FILE = "known_models.txt"


@cache
def _read() -> tuple[str, frozenset[str]]:
    lines = resources.files("pretrain").joinpath(_FILE).read_text(encoding="utf-8").splitlines()
    return lines[0], frozenset(line for line in lines if line and not line.startswith("#"))


def _versions() -> str:
    return f"# timm {metadata.version('timm')} open_clip_torch {metadata.version('open_clip_torch')}"


def names() -> frozenset[str]:
    """timm architecture names (without the pretrained tag after the dot) and open_clip model names."""
    return _read()[1]


def is_current() -> bool:
    """Whether the list was written from the installed versions, so that a name it lacks does not exist."""
    return _read()[0] == _versions()


def is_known(name: str) -> bool:
    """Whether timm or open_clip has this model; `vit_base_patch16_224.augreg_in21k` counts by its stem."""
    return name in names() or name.partition(".")[0] in names()


def open_clip_config(name: str) -> dict[str, Any] | None:
    """The sizes of an open_clip model, as the installed package states them; None for a name that it has not."""
    package = importlib.util.find_spec("open_clip")  # found, not imported
    for root in (package.submodule_search_locations or ()) if package else ():
        file = Path(root, "model_configs", f"{name}.json")
        if file.parent == Path(root, "model_configs") and file.is_file():
            return dict(json.loads(file.read_text(encoding="utf-8")))
    return None


def suggest(name: str, also: tuple[str, ...] = ()) -> str:
    """Closest known names as "did you mean ...?", or an empty string."""
    stem = name.partition(".")[0]
    lowered = {n.lower(): n for n in sorted(names() | set(also))}
    close = difflib.get_close_matches(stem.lower(), lowered, n=3, cutoff=0.75)
    return f"did you mean {' or '.join(lowered[c] for c in close)}?" if close else ""


def installed() -> set[str]:
    """Names that the installed timm and open_clip have. Imports both: seconds."""
    import open_clip
    import timm

    # Our own encoders register themselves in timm; only foreign names belong here.
    ours = {n for n in timm.list_models() if timm.model_entrypoint(n).__module__.startswith("encoders.")}
    return set(timm.list_models()) - ours | set(open_clip.list_models())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", required=True, help=f"overwrite {_FILE}")
    parser.parse_args()
    lines = [_versions(), "# written by python -m pretrain.known_models --write", *sorted(installed())]
    Path(__file__).with_name(_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
