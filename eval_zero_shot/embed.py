"""Features of a shard set, or of a folder of scans, as a Parquet table.

python -m eval_zero_shot.embed --model DIR --input FOLDER_OR_SHARDS --out features.parquet
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_shards.opening import add_tar_options, holds_studies, open_studies
from eval_zero_shot.cases import EveryScan, Scans, add_scans, scans_of
from eval_zero_shot.embedding import Features, StudyBatch, StudyFeatures, embed_batches, embed_images
from eval_zero_shot.errors import EvalError
from eval_zero_shot.inputs import add_features
from eval_zero_shot.release import image_encoder, load_release
from eval_zero_shot.scans import VIEW_HELP, VIEWS, find_scans, with_view

if TYPE_CHECKING:
    from encoders.loading import Loaded


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m eval_zero_shot.embed",
        description="Features of studies under a release: one row a study or scan, the mean of its crops.",
    )
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="release folder")
    add("--input", required=True, metavar="PATH", help="shard set (folder or URL), published .tar, or folder of scans")
    add("--out", required=True, type=Path, metavar="FILE", help="Parquet file: key, patient or file, features")
    add("--split", metavar="NAME", help="of a shard set (default: every study)")
    add_scans(parser)
    add_features(parser)
    add("--view", choices=VIEWS, default="own", help=VIEW_HELP)
    add(
        "--overlap",
        type=float,
        default=0.25,
        help="of sliding crops (default: 0.25)",
    )
    add("--batch-size", type=int, default=8, metavar="N", help="crops encoded together (default: 8)")
    add("--precision", choices=("fp32", "bf16", "auto"), default="fp32", help="arithmetic (default: fp32)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add_tar_options(parser)
    args = parser.parse_args(argv)
    from data_shards.errors import DataError
    from encoders.errors import ReleaseError

    try:
        if args.batch_size < 1:
            raise EvalError(f"--batch-size {args.batch_size}", why="nothing would be encoded", fix="1 or more")
        if not 0 <= args.overlap < 1:
            raise EvalError(f"--overlap {args.overlap}", why="crops would not advance", fix="at least 0 and below 1")
        loaded = with_view(load_release(args.model, args.device), args.view, args.overlap)
        scans = scans_of(args.scans, loaded.geometry)
        if holds_studies(args.input):
            name, found = _of_shards(args, loaded, scans)
        else:
            name, found = _of_folder(args, loaded)
        write_features(args.out, found, name, loaded, scans, args.features)
    except (EvalError, DataError, ReleaseError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    count, width = found.features_ND.shape
    rows = "scans" if scans == "every" else "studies"
    print(f"wrote {args.out}: {count} {rows}, {width} numbers each")
    return 0


def _of_shards(args: argparse.Namespace, loaded: Loaded, scans: Scans) -> tuple[str, StudyFeatures]:
    shards = open_studies(args.input, args)
    rows = shards.rows(args.split) if args.split else np.arange(len(shards))

    def embed(cases: Any, rows: NDArray) -> StudyFeatures:
        return embed_images(
            image_encoder(loaded), cases, rows, loaded.geometry, loaded.view,
            batch_size=args.batch_size, precision=args.precision, progress=True, features=args.features,
        )  # fmt: skip

    if scans in ("first", "together"):
        return "patient", embed(shards, rows)
    every = EveryScan(shards, loaded.geometry.source)
    if scans == "every":
        return "patient", embed(every, every.of(rows))
    return "patient", every.means(rows, lambda scans: embed(every, scans), args.features)


def _of_folder(args: argparse.Namespace, loaded: Loaded) -> tuple[str, StudyFeatures]:
    """Keys are hashes of the files' names inside the folder, which stand beside them in the table."""
    if args.split:
        raise EvalError("--split is for shard sets", why="a folder has no splits", fix="leave it out")
    if args.scans is not None:
        why = "a folder has no studies: every scan in it has a row of its own"
        raise EvalError("--scans is for shard sets", why=why, fix="leave it out")
    from data_shards.preprocess import SEVERAL

    place = Path(args.input)
    scans, left_out = find_scans(place, loaded.geometry.source == "image")
    if left_out:
        print(f"left out: {left_out} DICOM series that are no volumes (localizers and the like)", file=sys.stderr)
    root = place if place.is_dir() else place.parent
    names = [str(scan.relative_to(root)) or "." for scan in scans]

    for number, name in enumerate(names, 1):
        if not name.isprintable():
            raise EvalError(
                f"the file name of scan {number} of {len(scans)} (in the order of their names) is not UTF-8 text",
                why="its row of the table could not be named",
                fix="rename the file",
            )

    def crops(number: int) -> NDArray[np.float32]:
        try:
            return loaded.preprocess.crops(scans[number]).numpy()
        except ValueError as error:  # which scan is told by its number, without its name
            raise EvalError(
                f"scan {number + 1} of {len(scans)} (in the order of their names) cannot be read: {_reason(error)}",
                why="the table would lack it in silence",
                fix="repair it or take it out of the folder",
            ) from None

    def batches() -> Iterator[StudyBatch]:
        together = 1 if loaded.view.kind in SEVERAL else args.batch_size
        for start in range(0, len(scans), together):
            group = range(start, min(start + together, len(scans)))
            images = [crops(number) for number in group]
            each = tuple(names[i] for i, of_scan in zip(group, images, strict=True) for _ in of_scan)
            yield StudyBatch(each, each, np.concatenate(images))

    found = embed_batches(
        image_encoder(loaded), batches(), batch_size=args.batch_size, precision=args.precision, total=len(scans),
        progress=True, features=args.features,
    )  # fmt: skip
    return "file", found


def _reason(error: ValueError) -> str:
    """What is wrong, alone: the error it becomes part of has a why and a fix of its own."""
    from data_shards.errors import DataError
    from encoders.errors import ReleaseError

    if isinstance(error, DataError):
        return error.what
    if isinstance(error, ReleaseError):
        return str(error).partition("\n  why: ")[0]
    return f"reading failed ({type(error).__name__})"  # a reader's own message may hold a path


def write_features(
    out: Path, found: StudyFeatures, name: str, loaded: Loaded, scans: Scans, features: Features = "projected"
) -> None:
    """`key`, `name` ("patient": hashed, or "file") and `features` (a list of D float32), written aside, then renamed.

    The file's metadata says which release, preprocessing, kind of features and choice of scans made it.
    """
    import hashlib

    import pyarrow as pa
    import pyarrow.parquet as pq

    keys = found.keys if name == "patient" else [hashlib.sha256(key.encode()).hexdigest()[:16] for key in found.keys]
    width = found.features_ND.shape[1]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(found.features_ND.ravel(), pa.float32()), width)
    table = pa.table({"key": list(keys), name: [str(p) for p in found.patients], "features": vectors})
    about = {"release": loaded.sha256, "geometry": loaded.geometry.identity, "view": loaded.view.identity}
    about["features"] = features
    about |= {"scan_choice": scans} if name == "patient" else {}
    table = table.replace_schema_metadata({f"voxclip.{k}": str(v) for k, v in about.items()})
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, aside)
        os.replace(aside, out)
    finally:
        aside.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
