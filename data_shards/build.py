"""Build a shard set from whatever a lab has: `python -m data_shards.build --source PATH --out DIR`."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data_shards.build_options import NOT_CONTENT, parse
from data_shards.errors import DataError
from data_shards.silence import quiet

REFUSED, FAILED, INTERRUPTED = 1, 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Build a shard set. Returns 0; 1 after telling on stderr what is wrong; 130 where it was interrupted."""
    args = parse(None if argv is None else list(argv))
    try:
        with quiet():
            return _build(args)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last finished shard", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        print(f"error: {_of_system(error)}", file=sys.stderr)
        return FAILED
    except Exception as error:  # a fault of ours: its message may hold a name or a path, so only the places are told
        places = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)]
        print(f"error: {type(error).__name__} in the program, at {' > '.join(places[-6:])}", file=sys.stderr)
        return FAILED


def _build(args: argparse.Namespace) -> int:
    from data_shards.build_folder import BuildFolder, already_built, list_rejected, remove_work, work_folder
    from data_shards.build_run import about, build, content, make_pool
    from data_shards.make_study import NO_TEXT, StudyMaker
    from data_shards.privacy import resolve_salt
    from data_shards.private_keys import write_private_keys
    from data_shards.quality import check_accept
    from data_shards.shard_write import require_free
    from data_shards.sources.choose import open_source
    from data_shards.sources.table_spec import words

    out = Path(args.out).absolute()
    accept = tuple(words(args.accept))
    check_accept(accept)
    if not args.resume and not work_folder(out).exists():
        require_free(out)  # before hours of listing
    opened = open_source(args)
    rows = opened.listing.rows
    for note in opened.listing.notes:
        print(note)
    make = StudyMaker(
        salt="of a dry run" if args.dry_run else resolve_salt(out),
        modality=args.modality or opened.modality,
        file_spacing_mm=args.file_spacing and tuple(args.file_spacing),
        spacing_mm=args.spacing and tuple(args.spacing),
        accept=accept,
        dtype=args.dtype,
        licence=args.licence or opened.licence,
        source=args.source_name or opened.name,
        mask_texts=not args.keep_text_as_is,
        allow_no_text=args.allow_no_text,
    )
    refused = [make.refused(one.line, one.id, one.reason) for one in opened.listing.refused]
    if args.dry_run:
        from data_shards.dry_run import dry_run

        return REFUSED if dry_run(rows, refused, make, args.max_rejects) else 0
    if args.private_keys:
        write_private_keys(Path(args.private_keys), out, make, rows, opened.listing.refused)
    options = {name: value for name, value in sorted(vars(args).items()) if name not in NOT_CONTENT}
    source = Path(args.source)
    root = Path(args.root or (source if source.is_dir() else source.parent))
    identity = content(options, rows, make.salt, root)
    if already_built(out, identity, args.resume):
        remove_work(out)  # of a start that was killed behind its last rename
        print("built already: nothing to do")
        return 0
    wordless = [make.rejected(row, NO_TEXT) for row in rows if make.wordless(row)]
    if rows and len(wordless) == len(rows):
        raise DataError(
            "no study has a text",
            "there would be nothing to learn from",
            "name the column with --text-columns; for a folder of DICOM name the table with --reports; where captions "
            "are to be made of labels, or images are all you want, say --allow-no-text",
        )
    if len(refused) + len(wordless) > args.max_rejects:
        list_rejected([*refused, *wordless], out)
        raise _too_many([*refused, *wordless], args.max_rejects, "nothing was read")
    with BuildFolder(out, about(options, make.salt)) as folder:
        pool = partial(make_pool, args.engine, make, args.workers)
        built = build(rows, make, folder, args.max_samples, pool, refused, args.max_rejects)
        if len(built.rejected) > args.max_rejects or not len(built.catalogue):
            list_rejected(built.rejected, out)
            state = "all" if built.whole else "the first"
            kept = f"{state} {len(built.catalogue.shards)} shards are kept in {folder.work.name} for the next start"
            raise _too_many(built.rejected, args.max_rejects, kept)
        texts: dict[str, Any] = {"deidentified": make.mask_texts}
        if make.mask_texts:
            texts["masked"] = dict(sorted(built.masked.items()))
        folder.finish(built.catalogue, built.rejected, {"texts": texts, "build": identity})
    _tell(out, len(built.rejected))
    return 0


def _too_many(rejected: Sequence[Any], allowed: int, state: str) -> DataError:
    from data_shards.shard_write import REJECTED

    reasons = "\n".join(f"    line {r.line}: {r.reason}" for r in sorted(rejected, key=lambda r: r.line)[:8])
    return DataError(
        f"{len(rejected)} studies cannot be used, {allowed} are allowed; nothing was built ({state})\n{reasons}",
        "left-out studies may be the sick ones, and results would be biased in silence",
        f"repair them (OUT/{REJECTED} lists them) and give the same command again, or leave them out: the same command "
        f"with --max-rejects {len(rejected)}; either goes on from the shards that are done",
    )


def _of_system(error: OSError) -> str:
    """An error of the system without the file it speaks of."""
    return str(
        DataError(
            f"reading or writing failed: {error.strerror or type(error).__name__}",
            fix="free space or repair access; the same command then goes on from the last finished shard",
        )
    )


def _tell(out: Path, rejected: int) -> None:
    from data_shards.shard_write import REJECTED

    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    size = sum(s["bytes"] for s in manifest["shards"]) / 1e6
    splits = ", ".join(f"{name} {count}" for name, count in manifest["splits"].items())
    shards = len(manifest["shards"])
    print(f"{manifest['samples']} studies of {manifest['patients']} patients in {shards} shards, {size:.1f} MB")
    print(f"splits: {splits}" + (f"; labels: {', '.join(manifest['label_names'])}" if manifest["label_names"] else ""))
    if manifest["texts"]["deidentified"]:
        masked = ", ".join(f"{kind} {count}" for kind, count in manifest["texts"]["masked"].items())
        print(f"identifiers masked in texts: {masked or 'none'}")
    else:
        print("texts are stored as they are (--keep-text-as-is)")
    if without := [name for name in ("val", "test") if not manifest["splits"].get(name)]:
        print(f"no study in {' and '.join(without)}: val chooses a run's checkpoint, test scores it")
        print("  draw them with --val-fraction and --test-fraction (--split-by patient where the table has splits)")
    if rejected:
        print(f"{rejected} studies were left out: see {REJECTED}")
    print(f"train on it: python -m pretrain.fit --config YOURS.yaml --data.source.kind shards --data.source.path {out}")


if __name__ == "__main__":
    raise SystemExit(main())
