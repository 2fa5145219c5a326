"""What a file became: `python -m data_shards.inspect FILE|DIR|SHARDS` tells it and draws it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.errors import DataError
from data_shards.sources.records import TABLE_SUFFIXES

if TYPE_CHECKING:
    from data_shards.sources.dicom_choice import Series

EPILOG = """examples:
  python -m data_shards.inspect ct/s1.nii.gz                   a NIfTI: how it is read, whether it would be refused
  python -m data_shards.inspect pacs/study7 --series thinnest  a folder of DICOM: its series, and the one that is kept
  python -m data_shards.inspect shards --study 3f2a            one study of a shard set; without --study: at a glance
  python -m data_shards.inspect a.nii --geometry ct3d.yaml     also what a recipe's geometry makes of it

Drawn: the middle axial, coronal and sagittal slice with the patient's right on the left, in a lung and a soft-tissue
window (other modalities: percentiles), and the histogram. Neither text nor picture holds names, numbers or report text.
The exit code is 1 for a scan that data_shards.build would refuse.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Inspect one file, folder or shard set. Returns 0, or 1 for what cannot be read or would be refused."""
    args = _parser().parse_args(argv)
    path, out = Path(args.path), Path(args.out)
    try:
        if (path / "manifest.json").is_file():
            return _shards(path, args.study, out, args.geometry)
        if args.study:
            raise DataError("--study is for shard sets", fix="give the folder that data_shards.build made")
        if not path.exists():
            raise DataError("there is nothing at this path", fix="check it")
        _refuse_no_scan(path)
        return _file(path, out, args)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _refuse_no_scan(path: Path) -> None:
    """Raise DataError for what is looked at by another command."""
    if path.suffix == ".tar" or (path.is_dir() and any(next(path.glob(p), None) for p in ("*.tar", "*/*.tar"))):
        raise DataError("these are tars, not scans", fix="python -m data_shards.foreign tells what they hold")
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        fix = "give one scan of it; python -m data_shards.build --dry-run tells what the whole table becomes"
        raise DataError("this is a table, not a scan", fix=fix)


def _file(path: Path, out: Path, args: argparse.Namespace) -> int:
    from data_shards.inspect import draw
    from data_shards.inspect import scan as words
    from data_shards.reading import read_scan
    from data_shards.sources.base import ScanFile
    from data_shards.volume import is_volume, read_grid, scan_of_grid

    folder, files, modality = path, tuple[str, ...](), args.modality
    dicom = path.is_dir() or _is_dicom(path)
    if dicom:
        folder, files, found = _chosen(path, args.series)
        modality = modality or found
    grid_rows: list[tuple[str, str]] = []
    if is_volume(folder) and folder.suffix.lower() != ".npy" and (folder.is_dir() or not dicom):
        grid = read_grid(folder, files, accept=words.ALL_FATAL)
        grid_rows = words.rows_of_grid(grid)
        scan = scan_of_grid(grid, modality, slope=args.slope, intercept=args.intercept, accept=words.ALL_FATAL)
    else:
        file = ScanFile(str(folder), slope=args.slope, intercept=args.intercept)
        scan = read_scan(file, modality, args.file_spacing, accept=words.ALL_FATAL)
    meta, notes = scan.to_json(), words.rows_of_notes(scan.notes)
    if scan.image is not None:
        _print("radiograph" if dicom else "image", words.rows_of_scan(meta) + _geometry_rows(args.geometry, None, meta))
        draw.draw_image(scan.image, out)
        print(f"drawn: {out}")
        return 0
    rows = grid_rows + words.rows_of_scan(meta) + _geometry_rows(args.geometry, meta["shape"], meta)
    _print("DICOM series" if dicom else "volume", rows + notes)
    assert scan.array is not None
    draw.draw_volume(scan.array, meta, out, [f"{kind}: {told}" for kind, told in notes][:3])
    print(f"drawn: {out}")
    refused = [code for code, _ in scan.notes if words.FATAL[code]]
    if refused:
        print(f"data_shards.build would refuse it: {', '.join(refused)}", file=sys.stderr)
    return 1 if refused else 0


def _is_dicom(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _chosen(path: Path, rule_name: str) -> tuple[Path, tuple[str, ...], str]:
    """Tell the series below a folder (or in one file) and which is kept: (folder, its files, modality); of a
    radiograph, its file."""
    from data_shards.sources.dicom_choice import parse_rule, series_of
    from data_shards.sources.dicom_index import read_header, read_headers

    rule = parse_rule(rule_name)
    root = path if path.is_dir() else path.parent
    if path.is_dir():
        headers, strangers = read_headers(root)
    else:
        header = read_header(root, path.name)
        headers, strangers = [header] if header else [], 0
    studies = sorted({header.study for header in headers})
    first = [header for header in headers if header.study == studies[0]] if studies else []
    found, left_out = series_of(first)
    kept = rule.choose(found)
    if len(studies) > 1:
        print(f"{len(studies)} studies: the first is shown; give the folder of one study to see another")
    if strangers:
        print(f"{strangers} files are not DICOM")
    _print_series(found, kept)
    for reason, count in left_out:
        print(f"left out: a series of {count} files: {reason}")
    if not kept:
        raise DataError(
            "no series of the study is a scan that the rule chooses",
            "there is nothing to draw",
            "see above why, or name another --series",
        )
    if not kept[0].slices:  # a radiograph
        return root / kept[0].files[0], (), kept[0].modality
    return root, kept[0].files, kept[0].modality


def _shards(path: Path, key: str, out: Path, geometry: str | None) -> int:
    from data_shards.inspect import draw
    from data_shards.inspect import scan as words
    from data_shards.inspect import shards as at_a_glance
    from data_shards.shard_set import ShardSet

    shards = ShardSet.open(path)
    if not key:
        _print("shard set", at_a_glance.rows_of_set(shards))
        print(f"drawn: {at_a_glance.sheet(shards, out)} studies in {out}")
        return 0
    row = at_a_glance.row_of(shards, key)
    info = shards.json(row)
    lengths = {name: len(text) for name, text in info["texts"].items() if isinstance(text, str) and text}
    study = [("split", info["split"]), ("licence", info["licence"] or "not said")]
    study += [("text", ", ".join(f"{name} of {n} characters" for name, n in lengths.items()) or "captions only")]
    study += [(f"label {name}", _LABEL[value]) for name, value in info["labels"].items()]
    _print(f"study {shards.key(row)}", study)
    for i, meta in enumerate(info["scans"]):
        rows = words.rows_of_scan(meta) + _geometry_rows(geometry, meta["shape"], meta)
        _print(f"scan {i}", rows + words.rows_of_notes(meta.get("notes", ())))
    source, meta = shards.scan(row, 0, info)
    if isinstance(source, bytes):
        draw.draw_image(source, out)
    else:
        draw.draw_volume(source[:], meta, out)
    print(f"drawn: scan 0 in {out}")
    return 0


_LABEL = {1: "present", 0: "absent", None: "unknown"}


def _geometry_rows(path: str | None, shape: Any, meta: dict[str, Any]) -> list[tuple[str, str]]:
    from data_shards.inspect.scan import rows_of_geometry

    return rows_of_geometry(shape, meta, Path(path)) if path else []


def _print(title: str, rows: Sequence[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(escape(name), escape(value), style="red" if name == "REFUSED" else "")
    Console().print(table)


def _print_series(found: Sequence[Series], kept: Sequence[Series]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{len(found)} series that are volumes or radiographs", title_justify="left")
    for name in ("", "modality", "slices", "step, mm", "files", "plane", "kernel"):
        table.add_column(name)
    for series in found:
        role = "secondary" if series in kept[1:] else "primary" if series in kept else ""
        kernel = {True: "soft", False: "sharp", None: ""}[series.soft]
        plane = "axial" if series.axial else series.view or "other"
        table.add_row(
            role, series.modality, str(series.slices), f"{series.step_mm:g}", str(len(series.files)), plane, kernel
        )
    Console().print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_shards.inspect",
        description="Tell and draw what a file, a folder of DICOM or a shard set holds.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("path", metavar="FILE|DIR|SHARDS", help="NIfTI, .npy, image, DICOM file or folder, or a shard set")
    add("--out", default="inspect.png", metavar="PNG", help="where to draw (default: inspect.png)")
    add("--study", default="", metavar="KEY", help="of a shard set: the study whose key begins so")
    add("--series", default="primary", metavar="RULE", help="of DICOM: primary, largest, thinnest or regex:PATTERN")
    add("--modality", metavar="M", help="DICOM code, where the file does not say (default: CT for volumes)")
    add(
        "--file-spacing",
        type=float,
        nargs=3,
        metavar=("Z", "Y", "X"),
        help="voxel spacing in mm where files do not say",
    )
    add("--slope", type=float, metavar="S", help="instead of the file's slope")
    add("--intercept", type=float, metavar="I", help="instead of the file's intercept")
    add("--geometry", metavar="FILE", help="recipe, release config or JSON: also tell what it makes of the scan")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
