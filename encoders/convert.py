"""Other people's checkpoints as releases: `python -m encoders.convert merlin:FILE [--text FOLDER] --out DIR`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from encoders.errors import ReleaseError

# kind -> module with `convert(file, text, out, overwrite) -> list of lines to print`
KINDS = {"merlin": "encoders.convert_merlin"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m encoders.convert",
        description="Turn a published checkpoint into a folder that open_clip (or timm) loads.",
    )
    add = parser.add_argument
    add("source", metavar="KIND:FILE", help=f"checkpoint, read without executing it; kinds: {', '.join(KINDS)}")
    add(
        "--text", metavar="FOLDER",
        help="config.json and tokenizer of its text tower, whose weights are in the checkpoint (or a hub's name); none "
        "for a checkpoint of an image tower alone, as Merlin's five-year disease model",
    )  # fmt: skip
    add("--out", required=True, metavar="DIR", help="folder to write")
    add("--overwrite", action="store_true", help="replace an earlier release in DIR")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 1 with the reason on stderr."""
    parser = _parser()
    args = parser.parse_args(argv)
    kind, colon, file = args.source.partition(":")
    if not colon or kind not in KINDS:
        parser.error(f"'{args.source}' is not KIND:FILE with a kind of {', '.join(KINDS)}")
    try:
        lines = importlib.import_module(KINDS[kind]).convert(file, args.text, args.out, args.overwrite)
    except ReleaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(*lines, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
