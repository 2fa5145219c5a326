"""Public real scans as shard sets: `python -m benchmarks.real_data --data ROOT [--out shards]`.

ROOT holds `openkbp_ct`, `ibsi_sts_ct`, `misc_ct` and `hannover_cxr` (CTs and radiographs with tables, see the README
beside them). Writes `shards/ct`: OpenKBP's 170 training and 33 validation CTs (the latter as split `test`), the other
CTs in training without labels; and `shards/xray`: Hannover, split by patient. Texts are templated from measured facts.
Then:

    python -m pretrain.fit --config ct3d_real.yaml
    python -m pretrain.fit --config xray2d.yaml
    python -m benchmarks.real_baseline shards/ct --labels lungs,shoulders,brain_most,fat_abundant,metal_marked
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

CT_LABELS = ("lungs", "shoulders", "brain_most", "fat_abundant", "fat_little", "metal_marked")
XRAY_LABELS = ("posteroanterior", "intensive_care")


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def ct_table(root: Path) -> Iterable[dict[str, str]]:
    """id, image, patient, split, report and labels (1, 0, empty for unknown)."""
    for row in _rows(root / "openkbp_ct" / "pairs.csv"):
        brain = row["brain"]
        yield {
            "id": f"openkbp-{row['volume']}",
            "image": f"openkbp_ct/ct/{row['volume']}.nii.gz",
            "patient": f"openkbp-{row['volume']}",
            "split": "train" if row["split"] == "train" else "test",
            "report": row["findings_visible"],
            "lungs": str(int(row["lungs"] == "included")),
            "shoulders": str(int(row["shoulders"] == "included")),
            "brain_most": "" if brain == "unknown" else str(int(brain == "most")),
            "fat_abundant": str(int(row["fat"] == "abundant")),
            "fat_little": str(int(row["fat"] == "little")),
            "metal_marked": str(int(row["metal"] == "marked")),
        }
    for row in _rows(root / "ibsi_sts_ct" / "pairs.csv"):
        yield _unlabelled("ibsi_sts_ct", row["volume"], row["volume"], row["findings"])
    for row in _rows(root / "misc_ct" / "volumes.csv"):
        # Crops of one patient, by the collection's own word, share a patient.
        patient = next((p for p in ("ts_example_ct", "ts_aorta_cta") if row["volume"].startswith(p)), row["volume"])
        patient = "ts_aorta_cta" if row["volume"] == "ts_pulmonary_cta" else patient
        yield _unlabelled("misc_ct", row["volume"], patient, row["description"].split(" (")[0] + ".")


def _unlabelled(folder: str, volume: str, patient: str, report: str) -> dict[str, str]:
    named = {"id": f"{folder}-{volume}", "image": f"{folder}/ct/{volume}.nii.gz", "patient": f"{folder}-{patient}"}
    return {**named, "split": "train", "report": report, **dict.fromkeys(CT_LABELS, "")}


def xray_table(root: Path) -> Iterable[dict[str, str]]:
    """A sentence a fact; laboratory values, which no radiograph shows, are left out."""
    for row in _rows(root / "hannover_cxr" / "pairs.csv"):
        view = {"pa": "Posteroanterior", "ap": "Anteroposterior"}[row["projection"]]
        ward = "treated in intensive care" if row["in_icu"] == "True" else "not in intensive care"
        sex = {"m": " The patient is male.", "f": " The patient is female."}.get(row["sex"], "")
        yield {
            "id": row["image"],
            "image": f"hannover_cxr/images/{row['image']}",
            "patient": row["patient"],
            "report": f"{view} chest radiograph. The patient is {ward}.{sex}",
            "posteroanterior": str(int(row["projection"] == "pa")),
            "intensive_care": str(int(row["in_icu"] == "True")),
        }


def build_set(out: Path, rows: Iterable[dict[str, str]], labels: Sequence[str], words: Sequence[str]) -> int:
    """Shards of a table by the project's own command; its exit code."""
    from data_shards.build import main as build

    every = list(rows)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.csv"
        with file.open("w", newline="", encoding="utf-8") as opened:
            writer = csv.DictWriter(opened, list(every[0]))
            writer.writeheader()
            writer.writerows(every)
        arguments = ["--source", str(file), "--source-name", out.name, "--out", str(out), "--id-column", "id"]
        return build([*arguments, "--label-columns", ",".join(labels), *words])


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or the code of the build that failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_data", description="Public real scans as shard sets."
    )
    add = parser.add_argument
    add("--data", required=True, type=Path, metavar="ROOT", help="folder of the four collections")
    add("--out", default=Path("shards"), type=Path, metavar="DIR", help="where ct/ and xray/ go (default: shards)")
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: all cores)")
    args = parser.parse_args(argv)
    sets = (
        ("ct", ct_table, CT_LABELS, ["--split-column", "split"]),
        ("xray", xray_table, XRAY_LABELS, ["--test-fraction", "0.4", "--val-fraction", "0"]),
    )
    for name, table, labels, more in sets:
        words = ["--root", str(args.data), "--text-columns", "report", "--workers", str(args.workers), *more]
        if code := build_set(args.out / name, table(args.data), labels, words):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
