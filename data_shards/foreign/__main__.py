"""What other people's tars hold: `python -m data_shards.foreign TARS`."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from data_shards.errors import DataError
from data_shards.foreign.shards import CACHE, ForeignShards
from data_shards.sources.layouts import LAYOUTS
from data_shards.sources.published import told_members
from data_shards.sources.tar_samples import NAMED


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m data_shards.foreign",
        description="Scan published WebDataset tars (UniMed-CLIP, BIOMEDICA, CLIP_benchmark, img2dataset), say what "
        "they hold, and keep an index of them in the cache folder. Nothing is unpacked; their folder is not written.",
    )
    add = parser.add_argument
    add("tars", nargs="+", metavar="TARS", help="folders with tars, or tars")
    add("--layout", choices=("auto", *LAYOUTS), default="auto", help="how samples are read (default: auto)")
    add("--cache", default=CACHE, metavar="DIR", help=f"where the index lies (default: {CACHE})")
    add("--patient-field", metavar="NAME", help="field of the json that names the patient or another group")
    add("--max-damaged", type=int, default=0, metavar="N", help="samples that may be left out (default: 0)")
    add("--workers", type=int, default=0, metavar="N", help="processes that scan, a tar each (default: this one)")
    add("--verify", action="store_true", help="sha256 of every byte, and decode every image")
    args = parser.parse_args(argv)
    try:
        where = args.tars[0] if len(args.tars) == 1 else args.tars
        shards = ForeignShards.open(
            where,
            args.layout,
            args.cache,
            patient_field=args.patient_field,
            max_damaged=args.max_damaged,
            verify=args.verify,
            workers=args.workers,
        )
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _tell(shards)
    return 0


def _tell(shards: ForeignShards) -> None:
    from rich.console import Console
    from rich.table import Table

    manifest = shards.manifest
    members: Counter[str] = Counter()
    for side in shards.sidecars:
        members.update(side.about["members"])
    few = list(manifest["licences"].items())[:8]
    rows = {
        "layout": f"{shards.layout}: {shards.reason}",
        "tars": f"{len(shards.tars)}, {sum(s['bytes'] for s in manifest['shards']) / 1e6:.1f} MB",
        "samples": f"{len(shards)} of {manifest['patients']} patients, articles or samples of their own",
        "splits": ", ".join(f"{name} {count}" for name, count in manifest["splits"].items()),
        "members": told_members(members),
        "captions": f"{manifest['captions'] / max(len(shards), 1):.1f} a sample"
        if manifest["captions"]
        else "from templates and class names",
        "classes": ", ".join(shards.label_names[:8]) + (", ..." if len(shards.label_names) > 8 else "") or "none",
        "licences": ", ".join(f"{name or 'not said'} {count}" for name, count in few),
        "problems": "\n".join([f"{shards.lost} left out", *shards.problems[:NAMED]]) if shards.problems else "none",
    }
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name, value)
    Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
