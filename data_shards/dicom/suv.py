"""Standardised uptake value by body weight (SUVbw) of PET, from the header, where it says all that is needed.

Follows the vendor-neutral pseudo-code of QIBA (Quantitative Imaging Biomarkers Alliance, SUV technical note, "happy
path"): SUV = activity [Bq/ml] * weight [g] / dose decayed to the time to which the images are decay-corrected [Bq].
"""

from __future__ import annotations

import datetime
from typing import Any

_DAY_S = 86400.0


def suv_factor(item: Any) -> tuple[float | None, str]:
    """What stored values in the header's units are to be multiplied by, or None and why not, in words."""
    units = str(item.get("Units") or "")
    if units == "GML":
        kind = str(item.get("SUVType") or "BW")
        return (1.0, "") if kind == "BW" else (None, f"its values are SUV of another kind ({kind})")
    if units != "BQML":
        return None, f"its values are in {units or 'unknown units'}, not in Bq/ml"
    corrected = {str(c) for c in item.get("CorrectedImage") or ()}
    if not {"ATTN", "DECY"} <= corrected:
        return None, "it is not corrected for attenuation and decay"
    try:
        weight = float(item["PatientWeight"].value)
        drug = item["RadiopharmaceuticalInformationSequence"].value[0]
        dose, half_life = float(drug["RadionuclideTotalDose"].value), float(drug["RadionuclideHalfLife"].value)
    except (KeyError, IndexError, TypeError, ValueError):
        return None, "weight, dose or half-life is not in the header"
    if not (0.5 < weight < 400 and dose > 1e5 and half_life > 0):
        return None, "weight, dose (in Bq) or half-life is not plausible"
    how = str(item.get("DecayCorrection") or "")
    if how == "ADMIN":  # already corrected back to the injection
        return weight * 1000 / dose, ""
    if how != "START":
        return None, "it does not say to which time decay is corrected"
    waited = _seconds_since_injection(item, drug)
    if waited is None:
        return None, "the times of injection and scan are not in the header, or contradict each other"
    return weight * 1000 / (dose * 2.0 ** (-waited / half_life)), ""


def _seconds_since_injection(item: Any, drug: Any) -> float | None:
    # The series time is the scan's start, unless post-processing set it later than the acquisition (QIBA).
    scan = _when(item.get("SeriesDate"), item.get("SeriesTime"))
    acquired = _when(item.get("AcquisitionDate"), item.get("AcquisitionTime"))
    if scan is None or (acquired is not None and scan > acquired):
        scan = acquired
    if scan is None:
        return None
    whole = str(drug.get("RadiopharmaceuticalStartDateTime") or "")
    if whole:
        injected = _when(whole[:8], whole[8:].split("+")[0].split("-")[0])
    else:
        injected = _when(scan.strftime("%Y%m%d"), drug.get("RadiopharmaceuticalStartTime"))
    if injected is None:
        return None
    waited = (scan - injected).total_seconds()
    if waited < 0 and not whole:
        waited += _DAY_S  # injected before midnight
    return waited if 0 <= waited < 2 * _DAY_S else None


def _when(date: Any, time: Any) -> datetime.datetime | None:
    day, clock = str(date or ""), str(time or "")
    seconds = clock[4:] or "0"
    try:
        at = datetime.datetime.strptime(day + clock[:4].ljust(4, "0"), "%Y%m%d%H%M")
        return at + datetime.timedelta(seconds=float(seconds)) if clock else None
    except ValueError:
        return None
