"""Write a set of phantom CT studies with reports: python -m data_shards.phantom --out DIR --studies 2600 --seed 0"""

from __future__ import annotations

import argparse
import os
import sys


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_shards.phantom", description=__doc__)
    parser.add_argument("--out", required=True, help="new folder for the shard set")
    parser.add_argument(
        "--dicom", action="store_true", help="write a DICOM tree and reports.csv instead, as from a PACS"
    )
    parser.add_argument("--studies", type=int, default=2600, help="number of studies (about 1.15 a patient)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes; the bytes do not change")
    args = parser.parse_args(argv)
    if args.studies < 1 or args.seed < 0:
        parser.error("--studies must be at least 1 and --seed at least 0")

    from data_shards.errors import DataError

    from .cache import write
    from .pacs import write_pacs

    try:
        if args.dicom:
            write_pacs(args.out, args.studies, args.seed)
            return 0
        write(args.out, args.studies, args.seed, args.workers)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
