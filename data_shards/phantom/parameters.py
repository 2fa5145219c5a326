"""What one phantom study is: labels, anatomy and acquisition, drawn before anything is rendered.

Every component draws from its own Philox stream, keyed by (seed, number, component). A positive finding therefore never
shifts the numbers that anything else sees: an image with and without a lesion differs in the lesion only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

FINDINGS: tuple[str, ...] = (
    "nodule_left", "nodule_right", "effusion_left", "effusion_right", "cardiomegaly", "emphysema",
    "aortic_calcification", "hepatic_cyst", "hepatic_steatosis", "splenomegaly",
    "renal_stone_left", "renal_stone_right", "hydronephrosis", "ascites",
)  # fmt: skip
PHASES = ("none", "arterial", "portal")
PREVALENCE = 0.34  # of each finding, outside the healthy share
HEALTHY = 0.08  # patients in whom nothing is present: the source of identical "normal" reports
REDRAWN = 0.3  # chance that a finding is drawn again for a patient's second study

# Patients come in blocks of 20 with 23 studies: three of the twenty have two. Splits are dealt inside a block, so every
# share of a shard set holds all splits in the same proportion, whatever its size.
_BLOCK_PATIENTS, _BLOCK_STUDIES, _PAIRED = 20, 23, 3

_STREAMS = (
    "labels", "body", "organs", "acquisition", "noise", "texture", "vessels", "bowel", "words", "redraw", "attenuation",
    *FINDINGS,
)  # fmt: skip
_STREAM_NUMBER = {name: number for number, name in enumerate(_STREAMS)}


def stream(seed: int, number: int, component: str) -> np.random.Generator:
    """The random stream of one component of study (or patient) `number`."""
    key = np.array([seed, number * 64 + _STREAM_NUMBER[component]], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def bell(rng: np.random.Generator) -> float:
    """Roughly normal, mean 0, standard deviation 1, bounded by ±3; sums only, hence the same bits on every CPU."""
    return float((rng.random() + rng.random() + rng.random() - 1.5) * 2.0)


def between(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def patient_of(index: int) -> tuple[int, int, str]:
    """Study number -> (patient number, 0 for the patient's first study or 1, split)."""
    block, place = divmod(index, _BLOCK_STUDIES)
    if place < 2 * _PAIRED:
        slot, visit = divmod(place, 2)
    else:
        slot, visit = place - _PAIRED, 0
    test = (1 if block % 4 == 1 else 3, 9, 15)
    val = (4, 7) if block % 3 == 0 else (4,)
    split = "test" if slot in test else "val" if slot in val else "train"
    return block * _BLOCK_PATIENTS + slot, visit, split


@dataclass(frozen=True)
class Parameters:
    """One study before rendering. Lengths in mm, attenuation in HU."""

    index: int
    seed: int
    patient: int
    split: str
    truth: dict[str, int]  # all findings, present 1 or absent 0
    healthy: bool
    nuisance: dict[str, float]  # drawn without looking at `truth`
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    phase: str
    body: dict[str, float]

    def rng(self, component: str) -> np.random.Generator:
        return stream(self.seed, self.index, component)


def _labels(seed: int, patient: int, component: str) -> dict[str, int]:
    rng = stream(seed, patient, component)
    draws = [float(rng.random()) for _ in FINDINGS]
    return {name: int(draw < PREVALENCE) for name, draw in zip(FINDINGS, draws)}


def sample_parameters(index: int, seed: int) -> Parameters:
    """Labels and nuisances of study `index`, without rendering it (about 0.2 ms)."""
    patient, visit, split = patient_of(index)
    # Patients have their own numbers; an offset keeps their streams apart from those of studies.
    owner = patient + (1 << 40)
    truth = _labels(seed, owner, "labels")
    redraw = stream(seed, index, "redraw")
    again, fresh = [redraw.random(len(FINDINGS)) for _ in range(2)]
    healthy = float(stream(seed, owner, "redraw").random()) < HEALTHY
    if visit:
        truth = {
            name: int(fresh[i] < PREVALENCE) if again[i] < REDRAWN else truth[name] for i, name in enumerate(FINDINGS)
        }
    if healthy:
        truth = dict.fromkeys(FINDINGS, 0)

    rng = stream(seed, owner, "body")
    body = {
        "size": 1.0 + 0.045 * bell(rng),
        "width": 1.0 + 0.04 * bell(rng),
        "depth": 1.0 + 0.05 * bell(rng),
        "length": 1.0 + 0.035 * bell(rng),
        "fat": 7.0 + 30.0 * float(rng.random()) * float(rng.random()) + 6.0 * float(rng.random()),
        "belly": between(rng, 0.0, 1.0),
        "bone": between(rng, 0.8, 1.2),
    }
    rng = stream(seed, index, "acquisition")
    dz, dxy = round(between(rng, 6.5, 8.5), 2), round(between(rng, 4.0, 5.5), 2)
    extent = (between(rng, 385, 430), between(rng, 285, 335), between(rng, 355, 415))
    low, high = (48, 56, 72), (64, 84, 96)
    d, h, w = (int(min(max(round(e / s), lo), hi)) for e, s, lo, hi in zip(extent, (dz, dxy, dxy), low, high))
    phase = PHASES[(0, 1, 2, 2, 2)[int(rng.random() * 5)]]
    nuisance = {
        "noise_hu": between(rng, 9.0, 15.0),
        "shift_z": 9.0 * bell(rng),
        "shift_y": 6.0 * bell(rng),
        "shift_x": 5.0 * bell(rng),
        "turn": 0.022 * bell(rng),  # tangent of half the rotation about the long axis: within ±7.5 degrees
        "table": float(rng.random() < 0.8),
        "inspiration": bell(rng),
        "atelectasis_left": float(rng.random() < 0.4) * between(rng, 6.0, 15.0),
        "atelectasis_right": float(rng.random() < 0.4) * between(rng, 6.0, 15.0),
        "gas": between(rng, 0.0, 1.0),
        "lung_hu": -848.0 + 20.0 * bell(rng),
    }
    spacing = (dz, dxy, dxy)
    return Parameters(index, seed, patient, split, truth, healthy, nuisance, (d, h, w), spacing, phase, body)


def nuisance_vector(p: Parameters) -> dict[str, Any]:
    """Everything about a study that its findings must not be readable from."""
    phases = {f"phase_{name}": float(p.phase == name) for name in PHASES[1:]}
    grid = {
        f"{what}_{axis}": float(v)
        for what, vs in (("shape", p.shape), ("spacing", p.spacing_mm[:2]))
        for axis, v in zip("zyx", vs)
    }
    fov = {f"fov_{axis}": s * d for axis, s, d in zip("zyx", p.shape, p.spacing_mm)}
    body = {f"body_{k}": v for k, v in p.body.items()}
    return {**p.nuisance, **phases, **grid, **fov, **body}
