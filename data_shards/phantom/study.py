"""One phantom study: voxels, report and labels of one number, the same on every machine and in any order."""

from __future__ import annotations

from data_shards.privacy import hashed
from data_shards.schema import Scan, Study, Texts

from .parameters import Parameters, sample_parameters
from .render import render
from .wording import write_report

SALT = "phantom"  # nobody to protect: a fixed salt keeps shard sets equal between machines


def generate(index: int, seed: int) -> Study:
    """Study `index` of the phantom set `seed`.

    The scan is int16 HU, D,H,W (up, front, right), at most 64x96x96. `labels` holds what the report mentions (1 or 0)
    and None for what it does not; `meta["truth"]` holds all findings.
    """
    p = sample_parameters(index, seed)
    hu_DHW, scene = render(p)
    words = write_report(p, scene.sizes, scene.sides)
    return Study(
        key=f"phantom-{seed}-{index:07d}",
        patient=patient_hash(p),
        split=p.split,
        scans=(Scan(array=hu_DHW, modality="CT", spacing_mm=p.spacing_mm, unit="HU", phase=p.phase),),
        texts=Texts(report=words.report, findings=words.findings, impression=words.impression),
        labels=dict(words.labels),
        source="phantom",
        licence="CC0-1.0",
        meta={
            "truth": dict(p.truth),
            "fov_mm": [round(n * s, 1) for n, s in zip(p.shape, p.spacing_mm)],
            "noise_hu": round(p.nuisance["noise_hu"], 1),
        },
    )


def patient_hash(p: Parameters) -> str:
    return hashed(f"phantom-{p.seed}-{p.patient}", SALT)
