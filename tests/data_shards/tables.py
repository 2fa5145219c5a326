"""Tables of made-up volumes for tests of the build."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel
import numpy as np

from data_shards.build import main


def write_table(folder: Path, rows: list[dict[str, str]], make_files: bool = True) -> Path:
    """Volumes for the rows that name one, then the CSV."""
    for i, row in enumerate(rows):
        if make_files and row.get("image", "").endswith(".nii.gz"):
            array = np.random.default_rng(i).integers(-1000, 1000, (8, 7, 6)).astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), folder / row["image"])
    path = folder / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows(n: int = 5) -> list[dict[str, str]]:
    return [
        {
            "id": f"Doe-{i}",
            "image": f"Doe-{i}.nii.gz",
            "patient": f"Jane Doe {i}",
            "split": ("train", "validation")[i % 2],
            "report": f"Nodule number {i}. No effusion.",
            "nodule": ("1", "0", "-1", "", "yes")[i % 5],
            "fat": ("little", "", "much")[i % 3],
        }
        for i in range(n)
    ]


def build(source: Path, *more: str, out: str = "out") -> int:
    return main(["--source", str(source), "--out", str(source.parent / out), *more])
