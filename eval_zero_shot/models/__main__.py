"""Which models can be scored, and whether one can.

python -m eval_zero_shot.models [--check MODEL]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from eval_zero_shot.inputs import run_command
from eval_zero_shot.models import KINDS

if TYPE_CHECKING:
    from encoders.loading import Loaded


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m eval_zero_shot.models",
        description="The kinds of models that --model understands beside release folders; with --check, one model.",
    )
    add = parser.add_argument
    add("--check", metavar="MODEL", help="load it and print what it takes: a release folder or KIND:...")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    return run_command(parser, argv, _do)


def _do(args: argparse.Namespace) -> None:
    if not args.check:
        print("FOLDER\n    a release (python -m encoders.release)")
        for name, kind in KINDS.items():
            print(f"{name}:{kind.form}\n    {kind.about}")
        return
    from eval_zero_shot.release import load_release, model_name

    print(f"{'name':14}{model_name(args.check)}")
    for name, value in described(load_release(args.check, args.device)).items():
        print(f"{name:14}{value}")


def described(loaded: Loaded) -> dict[str, str]:
    """What the model takes and is, a line each."""
    geometry, size = loaded.geometry, loaded.view.size
    if geometry.kind == "image":
        size, how = geometry.size, f"{geometry.mode}, {geometry.interpolation}, {geometry.resize_mode}; "  # type: ignore[union-attr]
        how += f"mean {geometry.mean}, std {geometry.std}"  # type: ignore[union-attr]
    elif geometry.kind == "slice":
        size, how = geometry.size, f"{geometry.plane} slices, windows {geometry.windows}; "  # type: ignore[union-attr]
        how += f"mean {geometry.mean}, std {geometry.std}"  # type: ignore[union-attr]
    else:
        spacing = geometry.spacing_mm  # type: ignore[union-attr]
        how = f"spacing {'as stored' if spacing is None else f'{spacing} mm'}, windows {geometry.windows}"  # type: ignore[union-attr]
    told = loaded.config
    text_cfg = told.get("model_cfg", {}).get("text_cfg", {})
    context = told.get("text_context") or text_cfg.get("context_length") or "not told"
    parameters = sum(p.numel() for p in loaded.model.parameters())
    return {
        "input": f"{geometry.kind}, {geometry.channels} x {' x '.join(map(str, size))}",
        "view": loaded.view.kind,
        "preprocessing": how,
        "text": "none: an image tower alone" if loaded.tokenizer is None else f"{context} tokens at most",
        "parameters": f"{told.get('told', {}).get('parameters', parameters):,}",
        "sha256": loaded.sha256,
    }


if __name__ == "__main__":
    sys.exit(main())
