"""Near-identical images among real radiographs and real CT, which look alike whoever the patient is."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import zoom

from data_shards.schema import Scan, Study, Texts
from data_shards.shard_set import ShardSet, ShardWriter
from data_shards.volume import read_volume
from eval_zero_shot.audit.duplicates import Found, Named, exact, perceptual
from eval_zero_shot.audit.facts import facts_of

from .conftest import hashed


def named(folder: Path, scans: Sequence[tuple[str, Scan]], kind: str) -> Named:
    """Shards of (patient, scan), read back as the audit reads them."""
    with ShardWriter(folder) as writer:
        for i, (patient, scan) in enumerate(scans):
            writer.write(Study(hashed(folder.name, i), hashed(patient), "test", (scan,), Texts("A scan.")))
    shards = ShardSet.open(folder)
    rows = range(len(shards))
    keys, patients = tuple(map(shards.key, rows)), np.asarray([shards.patient(row) for row in rows])
    return Named(facts_of(shards, rows, kind, None, folder.name), keys, patients)


def caught(folder: Path, scans: Sequence[tuple[str, Scan]], copy: Callable[[Scan], Scan], kind: str) -> Found:
    """Half of the patients in test, half in training: nothing is said. Then every tenth test scan copied: all are."""
    patients = sorted({patient for patient, _ in scans})
    first = set(patients[: len(patients) // 2])
    test = [one for one in scans if one[0] in first]
    train = [one for one in scans if one[0] not in first]
    tested = named(folder / "test", test, kind)
    clean = perceptual(tested, named(folder / "train", train, kind))
    assert clean.check.severity == "ok" and not clean.pairs, clean.check.says
    planted = [(f"copy {i}", copy(scan)) for i, (_, scan) in enumerate(test[::10])]
    leaking = named(folder / "leaking", [*train, *planted], kind)
    assert not exact(tested, leaking).pairs
    found = perceptual(tested, leaking)
    assert found.check.severity == "fail", found.check.says
    assert [(p.test, p.train - len(train)) for p in found.pairs] == [(10 * i, i) for i in range(len(planted))]
    return found


@pytest.mark.full
def test_re_encoded_radiographs_are_told_from_other_patients(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "hannover_cxr"
    with (root / "pairs.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    scans = [
        (
            row["patient"],
            Scan(image=(root / "images" / row["image"]).read_bytes(), ext="jpg", modality="DX", unit="arbitrary"),
        )
        for row in rows
    ]

    def copy(scan: Scan) -> Scan:
        out = io.BytesIO()
        image = Image.open(io.BytesIO(scan.image or b"")).convert("L").resize((224, 224), Image.Resampling.BICUBIC)
        image.save(out, "JPEG", quality=50)
        return Scan(image=out.getvalue(), ext="jpg", modality="DX", unit="arbitrary")

    caught(tmp_path, scans, copy, "image")


@pytest.mark.full
def test_resampled_ct_is_told_from_other_patients(shared_data: Path, tmp_path: Path) -> None:
    files = sorted((shared_data / "openkbp_ct" / "ct").glob("*.nii.gz"))[:80]
    scans = [(file.name, read_volume(file, "CT")) for file in files]

    def copy(scan: Scan) -> Scan:
        array = zoom(np.asarray(scan.array, np.float32), (0.7, 0.6, 0.6), order=1).astype(np.int16)
        assert scan.spacing_mm is not None
        z, y, x = scan.spacing_mm
        return Scan(array=array, spacing_mm=(z / 0.7, y / 0.6, x / 0.6))

    caught(tmp_path, scans, copy, "volume")
