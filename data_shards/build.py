"""Build a shard set from a table of studies: `python -m data_shards.build --source table.csv --out DIR`."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_shards.errors import DataError
from data_shards.privacy import hashed, resolve_salt
from data_shards.progress import track
from data_shards.reading import read_scans
from data_shards.schema import Study
from data_shards.shard_set import EncodedStudy, ShardWriter, encode_study
from data_shards.shard_write import REJECTED
from data_shards.sources.base import StudyRow
from data_shards.sources.table import ImageColumn, TableSpec, parse_labels, parse_texts, read_header, read_table

AHEAD = 4  # studies in flight per worker
LISTED = 50  # rejects found beyond the limit before the build stops
EPILOG = """example: chest CTs with reports
  reads.csv:  id,image,patient,split,findings,impression,effusion
              s1,ct/s1.nii.gz,p7,train,"Small left effusion.","Effusion.",1
  python -m data_shards.build --source reads.csv --out shards \\
      --text-columns findings,impression --label-columns effusion
example: X-rays, patients split by the program, several labels made from one column
  python -m data_shards.build --source xr.csv --out shards --image-template "png/{file}.png" \\
      --text-columns report --label-columns "view=pa,view=lateral" --val-fraction 0.1 --test-fraction 0.1

Labels, in any case: present 1, 1.0, true, yes, y, present, positive, pos;
  absent 0, 0.0, false, no, n, absent, negative, neg;
  unknown blank, -1, -1.0, nan, na, n/a, null, none, unknown, uncertain: never trained or scored as absent.
  For COL=VALUE, VALUE is present, blank and the unknown words except none and -1 are unknown, all else is absent.
Splits, in any case: train, val, test; training is train; validation, valid and dev are val; testing is test.
  Other names are kept, and used where a recipe's data.splits names them.
Identifiers leave only as salted hashes. The salt is $VOXCLIP_SALT, or is made once beside the output folder
(.voxclip-salt): keep it private, do not hand it on with the shards.
A study that cannot be used is listed in OUT/rejected.csv by line and hashed key; more than --max-rejects of them
and nothing is built. A study has one image; a folder named by the image column is read as one DICOM series.
"""


@dataclass(frozen=True)
class Rejection:
    line: int
    key: str
    reason: str


def main(argv: Sequence[str] | None = None) -> int:
    """Build a shard set. Returns 0, or 1 after telling what is wrong on stderr."""
    args = _parser().parse_args(argv)
    try:
        return _build(args)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _build(args: argparse.Namespace) -> int:
    table, out = Path(args.source), Path(args.out)
    rows = read_table(table, _spec(args, table)).rows
    salt = resolve_salt(out)
    make = partial(
        make_study,
        salt=salt,
        modality=args.modality,
        spacing_mm=args.spacing,
        licence=args.licence,
        source=args.source_name,
    )
    rejected: list[Rejection] = []
    with ShardWriter(out, max_samples=args.max_samples) as writer:
        for result in track(_run(make, rows, args.workers), len(rows), "building"):
            if isinstance(result, Rejection):
                rejected.append(result)
                if len(rejected) > args.max_rejects + LISTED:
                    break
            elif len(rejected) <= args.max_rejects:
                writer.write(result)
        if len(rejected) > args.max_rejects or len(rejected) == len(rows):
            writer.abort()
            _write_rejected(out, rejected)
            reasons = "\n".join(f"    line {r.line}: {r.reason}" for r in rejected[:8])
            raise DataError(
                f"{len(rejected)} studies cannot be used, {args.max_rejects} are allowed; nothing was built\n{reasons}",
                "left-out studies may be the sick ones, and results would be biased in silence",
                f"repair them (OUT/{REJECTED} lists them), or leave them out with --max-rejects {len(rejected)}",
            )
        writer.close()
    if rejected:
        _write_rejected(out, rejected)
    _tell(out, rejected)
    return 0


def make_study(
    row: StudyRow,
    salt: str,
    modality: str | None = None,
    spacing_mm: Sequence[float] | None = None,
    licence: str = "",
    source: str = "",
) -> EncodedStudy | Rejection:
    """Read, check and compress one row's study; what is wrong with it comes back as a Rejection."""
    key = hashed(f"study/{row.id}", salt)
    try:
        scans = read_scans(row, modality, spacing_mm)
        patient = hashed(f"patient/{row.patient}", salt)
        return encode_study(
            Study(key, patient, row.split, scans, row.texts, row.labels, source, row.licence or licence, row.meta)
        )
    except DataError as error:
        return Rejection(row.line, key, error.what)
    except Exception as error:  # a reader's own failure: its message may hold a path, so only its kind is kept
        return Rejection(row.line, key, f"reading failed ({type(error).__name__})")


def _run(
    make: partial[EncodedStudy | Rejection], rows: Sequence[StudyRow], workers: int
) -> Iterator[EncodedStudy | Rejection]:
    """Results in the order of the rows, whatever worker finishes first."""
    if workers < 1:
        yield from map(make, rows)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        waiting = deque(pool.submit(make, row) for row in rows[: workers * AHEAD])
        for row in [*rows[workers * AHEAD :], *([None] * len(waiting))]:
            result = waiting.popleft().result()
            if row is not None:
                waiting.append(pool.submit(make, row))
            yield result
    except BrokenProcessPool:
        raise DataError(
            "a worker process died", "a study may need more memory than there is", "use fewer --workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _write_rejected(out: Path, rejected: Iterable[Rejection]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    aside = out / f".{REJECTED}.{os.getpid()}.tmp"
    with aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["line", "key", "reason"])
        writer.writerows((r.line, r.key, r.reason) for r in rejected)
    os.replace(aside, out / REJECTED)


def _tell(out: Path, rejected: list[Rejection]) -> None:
    import json

    manifest = json.loads((out / "manifest.json").read_text())
    size = sum(s["bytes"] for s in manifest["shards"]) / 1e6
    splits = ", ".join(f"{name} {count}" for name, count in manifest["splits"].items())
    shards = len(manifest["shards"])
    print(f"{manifest['samples']} studies of {manifest['patients']} patients in {shards} shards, {size:.1f} MB")
    print(f"splits: {splits}" + (f"; labels: {', '.join(manifest['label_names'])}" if manifest["label_names"] else ""))
    if without := [name for name in ("val", "test") if not manifest["splits"].get(name)]:
        print(f"no study in {' and '.join(without)}: val chooses a run's checkpoint, test scores it (--test-fraction)")
    if rejected:
        print(f"{len(rejected)} studies were left out: see {REJECTED}")
    print(f"train on it: python -m pretrain.fit --config YOURS.yaml --data.source.kind shards --data.source.path {out}")


def _spec(args: argparse.Namespace, table: Path) -> TableSpec:
    columns = read_header(table)
    if args.val_fraction < 0 or args.test_fraction < 0 or args.val_fraction + args.test_fraction >= 1:
        raise DataError("--val-fraction and --test-fraction must leave something to train on")
    return TableSpec(
        root=Path(args.root) if args.root else table.parent,
        images=(ImageColumn(args.image_template or "{" + args.image_column + "}"),),
        patient_column=args.patient_column,
        texts=parse_texts(args.text_columns),
        id_column=args.id_column or ("id" if "id" in columns else None),
        split_column=args.split_column or ("split" if "split" in columns else None),
        labels=parse_labels(args.label_columns),
        meta_columns=tuple(c.strip() for c in args.meta_columns.split(",") if c.strip()),
        val_fraction=args.val_fraction,
        test_fraction=args.test_fraction,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_shards.build",
        description="Build a shard set from a CSV of studies (NIfTI, DICOM folders, .npy, PNG, JPEG, WebP, TIFF).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--source", required=True, metavar="CSV", help="table with a header line; .tsv is read with tabs")
    add("--out", required=True, metavar="DIR", help="shard set to make; must not exist yet")
    add("--root", metavar="DIR", help="folder the image paths start from (default: the table's)")
    add("--image-column", default="image", metavar="COL", help="column with the image path (default: image)")
    add("--image-template", metavar="T", help='path made from columns, e.g. "ct/{volume}.nii.gz"')
    add("--id-column", metavar="COL", help="unique study id (default: column id, else the image path)")
    add(
        "--patient-column",
        default="patient",
        metavar="COL",
        help="patient id (default: patient); the study id's column where every study is another patient",
    )
    add("--split-column", metavar="COL", help="train|val|test, see below (default: split, else drawn by patient)")
    add("--val-fraction", type=float, default=0.1, metavar="F", help="without a split column (default: 0.1)")
    add("--test-fraction", type=float, default=0.0, metavar="F", help="without a split column (default: 0)")
    add(
        "--text-columns",
        default="report",
        metavar="COLS",
        help="REPORT | FINDINGS,IMPRESSION | report=COL,caption=COL (default: report)",
    )
    add("--label-columns", default="", metavar="COLS", help="0/1 columns, or COL=VALUE to make one from categories")
    add("--meta-columns", default="", metavar="COLS", help="further columns to keep in the json (no identifiers!)")
    add("--modality", metavar="M", help="DICOM code: CT, MR, ... (default: CT for volumes, CR for images)")
    add("--spacing", type=float, nargs=3, metavar=("Z", "Y", "X"), help="voxel spacing in mm where files do not say")
    add("--source-name", default="", metavar="NAME", help="name of the collection, kept with each sample")
    add("--licence", default="", metavar="ID", help="licence, kept with each sample (e.g. CC-BY-4.0)")
    add("--workers", type=int, default=0, metavar="N", help="processes; the bytes are the same for any number")
    add("--max-rejects", type=int, default=0, metavar="N", help="unusable studies to tolerate (default: 0)")
    add("--max-samples", type=int, default=256, metavar="N", help="studies in a shard (default: 256)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
