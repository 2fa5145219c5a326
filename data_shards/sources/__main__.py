"""`python -m data_shards.sources [PRESET]`: the collections that are known, and what each expects on disk."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from data_shards.errors import DataError


def main(argv: Sequence[str] | None = None) -> int:
    """List the presets, or the layout of one. Returns 0, or 1 after telling what is wrong on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m data_shards.sources",
        description="Known collections and the files each expects in the folder given as --source.",
    )
    parser.add_argument("preset", nargs="?", help="one of them, or a YAML of your own (default: all, in short)")
    parser.add_argument("--yaml", action="store_true", help="print the preset itself, to copy and change")
    args = parser.parse_args(argv)
    from data_shards.sources.presets import FOLDER, layout, load_preset, preset_names

    try:
        if args.preset and args.yaml:
            load_preset(args.preset)
            print((FOLDER / f"{args.preset}.yaml").read_text(encoding="utf-8"), end="")
        elif args.preset:
            print(layout(load_preset(args.preset)))
        else:
            print("\n\n".join(layout(load_preset(name)) for name in preset_names()))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
