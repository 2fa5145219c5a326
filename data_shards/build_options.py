"""The command line of the build: options in groups, and examples to start from."""

from __future__ import annotations

import argparse

from data_shards.sources.choose import add_tar_options
from data_shards.sources.dicom_options import add_dicom_options
from data_shards.sources.options import add_choice_options, add_preset_options, add_table_options

# Options that do not change what is built, only how: a build is gone on with whatever they are.
NOT_CONTENT = {
    "private_keys",
    "out",
    "source",
    "root",
    "reports",
    "workers",
    "engine",
    "resume",
    "max_rejects",
    "dry_run",
}

EPILOG = """example: chest CTs with reports
  reads.csv:  id,image,patient,split,findings,impression,effusion
              s1,ct/s1.nii.gz,p7,train,"Small left effusion.","Effusion.",1
  python -m data_shards.build --source reads.csv --out shards --workers 8 \\
      --text-columns findings,impression --label-columns effusion
example: what would be built, and what is wrong with it, in seconds
  python -m data_shards.build --source reads.csv --out shards --text-columns findings,impression --dry-run
example: a DICOM export with a table of reports, joined by accession number, at one spacing
  python -m data_shards.build --source export/ --reports reports.xlsx --out shards \\
      --text-columns findings,impression --spacing 3 1.5 1.5
example: X-rays, patients split by the program, several labels made from one column
  python -m data_shards.build --source xr.csv --out shards --image-template "png/{file}.png" \\
      --text-columns report --label-columns "view=pa,view=lateral" --val-fraction 0.1 --test-fraction 0.1
example: a published collection (python -m data_shards.sources lists them)
  python -m data_shards.build --preset ct-rate --source CT-RATE --out shards/ct-rate --workers 16

Killed, or out of disk? The same command goes on from the last finished shard and ends with the same bytes.
Labels, in any case: present 1, 1.0, true, yes, y, present, positive, pos;
  absent 0, 0.0, false, no, n, absent, negative, neg;
  unknown blank, -1, -1.0, nan, na, n/a, null, none, unknown, uncertain: never trained or scored as absent.
  For COL=VALUE, VALUE is present, blank and the unknown words except none and -1 are unknown, all else is absent.
Splits, in any case: train, val, test; training is train; validation, valid and dev are val; testing is test.
  Other names are kept, and used where a recipe's data.splits names them.
Identifiers leave only as salted hashes. The salt is $VOXCLIP_SALT, or is made once beside the output folder
(.voxclip-salt): keep it private, do not hand it on with the shards. Names, dates, numbers and addresses in texts are
replaced by marks; image files lose EXIF, comments and tags.
A study that cannot be used is listed in OUT/rejected.csv by line and hashed key, and the rest goes on; with more than
--max-rejects of them OUT is not made, and what was done is kept for the next start. Which study a key is,
--private-keys writes into a file of your own.
"""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_shards.build",
        usage="%(prog)s --source PATH --out DIR [options]",
        description="Build a shard set: from a table (csv, tsv, jsonl, parquet, xlsx) of NIfTI, DICOM folders, .npy, "
        "PNG, JPEG, WebP or TIFF; from a folder with such a table; from a folder of DICOM files; from published "
        "WebDataset tars or MedMNIST .npz; from a known collection (--preset).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--source", required=True, metavar="PATH", help="table, folder, .tar, pattern of tars, or .npz")
    add("--out", required=True, metavar="DIR", help="shard set to make; must not exist yet")
    run = parser.add_argument_group("how it is built").add_argument
    run("--workers", type=int, default=0, metavar="N", help="processes; the bytes are the same for any number")
    run("--engine", choices=("local", "ray"), default="local", help="ray: on the Ray cluster of $RAY_ADDRESS")
    run("--resume", action="store_true", help="also succeed where the build is finished already (for job scripts)")
    run("--max-rejects", type=int, default=0, metavar="N", help="unusable studies to tolerate (default: 0)")
    run(
        "--private-keys",
        metavar="FILE",
        help="also write which study each key of rejected.csv and the shards is (CSV: key, line, id, patient); for you "
        "alone, never hand it on",
    )
    run("--dry-run", action="store_true", help="tell what would be built, read a few studies, write nothing")
    run("--max-samples", type=int, default=256, metavar="N", help="studies in a shard (default: 256)")
    what = parser.add_argument_group("what is stored").add_argument
    what(
        "--spacing",
        type=_mm,
        nargs=3,
        metavar=("Z", "Y", "X"),
        help="resample volumes to this, mm (default: their own)",
    )
    what(
        "--file-spacing", type=_mm, nargs=3, metavar=("Z", "Y", "X"), help="voxel spacing in mm where files do not say"
    )
    what("--modality", metavar="M", help="DICOM code: CT, MR, ... (default: CT for volumes, CR for images)")
    what("--accept", default="", metavar="CODES", help="take volumes in spite of this (missing_slices, eight_bit, ...)")
    what(
        "--dtype", choices=("int16", "float16"), default="int16", help="of volumes that are not in HU (default: int16)"
    )
    what("--keep-text-as-is", action="store_true", help="do not mask identifiers: the texts are de-identified already")
    what("--source-name", default="", metavar="NAME", help="name of the collection, kept with each sample")
    what("--licence", default="", metavar="ID", help="licence, kept with each sample (e.g. CC-BY-4.0)")
    add_table_options(parser)
    add_dicom_options(parser)
    add_tar_options(parser)
    add_preset_options(parser)
    add_choice_options(parser)
    args = parser.parse_args(argv)
    for name in ("workers", "max_rejects"):
        if getattr(args, name) < 0:
            parser.error(f"--{name.replace('_', '-')} cannot be negative")
    if not (args.val_fraction >= 0 and args.test_fraction >= 0 and args.val_fraction + args.test_fraction < 1):
        parser.error("--val-fraction and --test-fraction are shares from 0 to below 1 that leave something to train on")
    if args.max_samples < 1:
        parser.error("--max-samples must be 1 or more")
    return args


def _mm(value: str) -> float:
    number = float(value)
    if not 0 < number < 1000:
        raise argparse.ArgumentTypeError("millimetres are above 0")
    return number
