"""Check shard sets byte by byte, and what they share: `python -m data_shards.check DIR [DIR ...]`.

Damage: sha256 of each shard, tar header and crc32 of each member, counts, strange files. Leakage: the same image or the
same patient in two splits, of one set or of several. Either gives exit code 1; duplicates within a split are only said.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from data_shards.overlap import overlap
from data_shards.progress import track
from data_shards.shard_set import ShardSet
from data_shards.verify import Fingerprint, Verified, verify

SHOWN = 20  # findings of a kind on the screen; --json has all


def check(wheres: Sequence[str | os.PathLike[str]], deep: bool = False) -> dict[str, Any]:
    """Verify each set and compare them.

    Returns {"ok", "sets": [{"set", "error", "manifest_sha256", "samples", "shards", "damage": [{"shard", "key",
    "what"}]}], "duplicate_images", "duplicate_reports", "patients"}: the last three are lists of {"between_splits",
    "samples": [{"set", "split", "key"}]}. `ok`: nothing is damaged and nothing leaks between splits.
    """
    sets: list[dict[str, Any]] = []
    opened: list[tuple[int, ShardSet, list[Fingerprint]]] = []
    for number, where in enumerate(wheres, 1):
        entry: dict[str, Any] = {"set": number, "error": None, "damage": []}
        sets.append(entry)
        found = Verified()
        try:
            shards = ShardSet.open(where, verify="always", damaged="count", reads="ranged")
            entry |= {"manifest_sha256": shards.manifest_hash, "samples": len(shards)}
            entry["shards"] = len(shards.manifest["shards"])
            for _ in track(verify(shards, deep, found), len(shards), f"set {number}", "samples"):
                pass
            opened.append((number, shards, found.samples))
        except DataError as error:
            entry["error"] = str(error)
        except FileNotFoundError:
            entry["error"] = "a shard went away while the set was checked"
        except OSError as error:  # its text shows the path
            entry["error"] = f"the files cannot be read ({error.strerror or type(error).__name__})"
        entry["damage"] = [vars(damage) for damage in found.damage]
    shared = overlap(opened)
    whole = not shared.leaks() and not any(entry["error"] or entry["damage"] for entry in sets)
    return {
        "ok": whole,
        "sets": sets,
        "duplicate_images": [group.to_json() for group in shared.images],
        "duplicate_reports": [group.to_json() for group in shared.reports],
        "patients": [group.to_json() for group in shared.patients],
    }


def lines(report: dict[str, Any]) -> list[str]:
    """What `check` found, for a reader. Sets go by number, samples by hashed key."""
    many = len(report["sets"]) > 1
    out = []
    for entry in report["sets"]:
        before = f"set {entry['set']}: " if many else ""
        out += _some([f"{before}{damage['what']}" for damage in entry["damage"]])
        if entry["error"]:
            out.append(f"{before}error: {entry['error']}")
            continue
        state = f"{len(entry['damage'])} problems" if entry["damage"] else "whole, every member matches its checksum"
        out.append(f"{before}{entry['samples']} samples in {entry['shards']} shards: {state}")
    for kind, name in (("duplicate_images", "an image"), ("duplicate_reports", "a report")):
        for between, where in ((True, "between splits"), (False, "within a split")):
            groups = [g for g in report[kind] if g["between_splits"] == between]
            samples = sum(len(group["samples"]) for group in groups)
            if groups:
                word = "LEAKAGE" if between and name == "an image" else "note"
                out.append(f"{word}: {samples} samples share {name} {where}")
                out += _some([_group(group, many) for group in groups])
    for between, where in ((True, "in several splits"), (False, "in several sets, in the same split")):
        groups = [g for g in report["patients"] if g["between_splits"] == between]
        if groups:
            out.append(f"{'LEAKAGE' if between else 'note'}: {len(groups)} patients are {where}")
            out += _some([_group(group, many) for group in groups])
    if many:
        out.append("patients are compared by salted hash: sets built with different salts cannot be seen to share one")
    return out


def _group(group: dict[str, Any], many: bool) -> str:
    where = (lambda place: f"set {place['set']} ") if many else (lambda place: "")
    named = [f"{where(p)}{p['split']} {p['key']}" for p in group["samples"]]
    return "  " + " = ".join(named[:SHOWN]) + (f" and {len(named) - SHOWN} more" if len(named) > SHOWN else "")


def _some(said: list[str]) -> list[str]:
    rest = len(said) - SHOWN
    return [*said[:SHOWN], f"  ... and {rest} more (--json FILE has all)"] if rest > 0 else said


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 for whole sets that leak nothing between splits, 1 after listing what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m data_shards.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("where", metavar="DIR", nargs="+", help="shard set: a folder with manifest.json, or its URL")
    parser.add_argument("--deep", action="store_true", help="decode every volume and image; duplicates by voxels")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything found, for machines")
    args = parser.parse_args(argv)
    report = check(args.where, args.deep)
    if args.json is not None:
        aside = args.json.with_name(f".{args.json.name}.{os.getpid()}.tmp")
        aside.write_text(json.dumps(report, indent=1) + "\n")
        os.replace(aside, args.json)
    print("\n".join(lines(report)))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
