"""Filter and balance a shard set without copying it: `python -m data_shards.select SHARDS --where "..." --out FILE`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data_shards.errors import DataError
from data_shards.opening import add_tar_options, open_studies

SHOWN = 20  # values of a column in the preview; the others are summed up
EPILOG = """examples
  python -m data_shards.select shards/ct --where "modality = 'CT' and licence in ('CC0-1.0', 'CC-BY-4.0')" --dry-run
  python -m data_shards.select shards/pmc --where "panel_type = 'single'" --cap concept=5000 --cap "concept=plot:100" \\
      --seed 1 --out selection.parquet
  python -m data_shards.select shards/xr --balance effusion --out selection.json

Columns: key, split, patient, modality, licence, source, label:NAME and meta:NAME; the last two may be written NAME.
A label is 1, 0 or unknown (null). A comparison with an unknown value is unknown, and such a sample is left out:
effusion = 0 keeps what is known to have none; add "or effusion is null" to keep the unknown.
The condition holds for every split; caps and balance thin --thin-splits only. It can read nothing but the index.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Select samples. Returns 0, or 1 after telling what is wrong on stderr."""
    args = _parser().parse_args(argv)
    try:
        return _select(args)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _select(args: argparse.Namespace) -> int:
    from data_shards.selection import Choice, index_table, parse_cap, save_selection, select_rows

    if not args.out and not args.dry_run:
        raise DataError("nothing says where the selection goes", fix="give --out FILE.parquet, or look with --dry-run")
    shards = open_studies(args.shards, args)
    table = index_table(shards)
    splits = set(shards.manifest["splits"])
    thin = tuple(sorted(splits)) if args.thin_splits == "all" else tuple(args.thin_splits.split(","))
    choice = Choice(args.where, tuple(parse_cap(cap) for cap in args.cap), args.balance, args.seed, thin)
    selected = select_rows(table, choice)
    print(preview(selected.counts))
    print(f"{len(selected.rows)} of {len(shards)} samples are selected")
    if selected.unknown:
        print(f"the condition is unknown for {selected.unknown} samples: they are left out")
    if args.dry_run:
        print("nothing is written (--dry-run)")
        return 0
    save_selection(Path(args.out), shards, choice, selected)
    print(f"{args.out} names them by key; it is good for this shard set only")
    return 0


def preview(counts: dict[str, dict[str, tuple[int, int, int]]]) -> str:
    """A table of counts per value: before, after the condition, and kept."""
    rows = [("column", "value", "before", "where", "kept")]
    for column, values in counts.items():
        listed = list(values.items())
        more = listed[SHOWN:]
        for value, (before, met, kept) in listed[:SHOWN]:
            rows.append((column, value, str(before), str(met), str(kept)))
        if more:
            sums = [str(sum(numbers[i] for _, numbers in more)) for i in range(3)]
            rows.append((column, f"{len(more)} more values", sums[0], sums[1], sums[2]))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = []
    for row in rows:
        words = [row[i].ljust(widths[i]) for i in range(2)] + [row[i].rjust(widths[i]) for i in range(2, 5)]
        lines.append("  ".join(words).rstrip())
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_shards.select",
        description="Choose samples of a shard set by a condition, caps per value and balance; nothing is copied.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("shards", metavar="SHARDS", help="folder of a shard set")
    add("--where", default="", metavar="SQL", help="condition on the columns of the index, see below (default: all)")
    add(
        "--cap",
        action="append",
        default=[],
        metavar="COLUMN=N",
        help="keep at most N samples of each value of COLUMN, or of one value with COLUMN=VALUE:N; may be repeated",
    )
    add("--balance", metavar="COLUMN", help="as many samples of each known value of COLUMN as the rarest has")
    add("--seed", type=int, default=0, metavar="S", help="which samples caps and balance take (default: 0)")
    add("--thin-splits", default="train", metavar="NAMES", help="splits that caps and balance thin, or all (train)")
    add(
        "--out",
        metavar="FILE",
        help="selection to write, .parquet or .json; a recipe names it as data.source.selection",
    )
    add("--dry-run", action="store_true", help="show the counts and write nothing")
    add_tar_options(parser)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
