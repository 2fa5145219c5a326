"""What losses of each coupling (pretrain.objectives.base) may read, and which of it ranks gather."""

from __future__ import annotations

from pretrain.gathering import POOLED, UNITS
from pretrain.objectives.base import Objective
from pretrain.passes import SHARED

PART_BY_PART = ("image", "pair")  # compare images of a part with the texts of all


def is_text(read: str) -> bool:
    return read.startswith(("text:", "report:"))


def is_image(read: str) -> bool:
    return read.startswith("image:")


def gathered_of(batch: frozenset[str], by_part: frozenset[str]) -> frozenset[str]:
    """Of the fields that losses of coupling `batch`, and of `image` and `pair`, read those of all ranks: an image's own
    are read by its rank, but for pooled ones."""
    return batch | {read for read in by_part if not is_image(read) or read == POOLED}


def refuse_reads(objective: Objective) -> None:
    """Raises ValueError for an objective of coupling `image` or `pair` that reads more than images and texts, or of
    coupling `pair` that does not read both."""
    if objective.coupling not in PART_BY_PART:
        return
    who = f"objective {type(objective).__name__} of coupling `{objective.coupling}`"
    if objective.coupling == "pair":
        for kind, reads_it in (("text", is_text), ("image", is_image)):
            if not any(map(reads_it, objective.reads)):
                raise ValueError(
                    f"{who} reads no {kind}\n"
                    "  why: it scores images against texts\n"
                    "  fix: read fields of both, or use another coupling"
                )
    allowed = ("image:", "report:units.")
    if other := [r for r in objective.reads if not (r.startswith(allowed) or r == UNITS or r in SHARED)]:
        raise ValueError(
            f"{who} reads {', '.join(other)}\n"
            "  why: with train.chunk the gradient would not find its way back there\n"
            "  fix: read fields of images, text:units.units and report:units, or use coupling `batch`"
        )
