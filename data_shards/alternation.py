"""Every other batch about one part of the body: the whole report, then one anatomical section of every report, and so
on (Merlin, arXiv 2406.06512, "report splitting"; how Merlin draws the section is not published).

Batch 0 has the whole reports. The section of an odd batch is drawn from Philox(seed, batch), so it is the same on every
rank, for any number of workers and after any restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data_shards.errors import DamagedError, DataError
from data_shards.order import ALTERNATE
from data_shards.report import ANATOMY, anatomical_sections
from data_shards.shards import Shards
from data_shards.units import findings_of

SAMPLE = 256  # reports that are read to know how many have which section
LEAST = 4  # studies of a global batch, on average, that have the section: a text is compared with those of others


@dataclass(frozen=True)
class Alternation:
    """Which section a batch is about. `shares`: what part of the studies has each section that may be drawn."""

    seed: int
    shares: Mapping[str, float]

    @classmethod
    def measured(cls, shards: Shards, rows: np.ndarray, seed: int, global_batch: int) -> Alternation:
        """Sections that a global batch has LEAST times or more on average, or the most frequent ones where none is so
        frequent, by how many of SAMPLE reports, evenly spread over `rows`, have them.

        Raises DataError where no report has any section.
        """
        spread = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).round().astype(np.int64))
        counts, read = dict.fromkeys(ANATOMY, 0), 0
        for row in np.asarray(rows)[spread]:
            try:
                texts = shards.json(int(row))["texts"]
            except DamagedError:  # whoever draws it will say so
                continue
            read += 1
            for section, text in anatomical_sections(findings_of(texts)).items():
                if section in counts:
                    counts[section] += bool(text)
        shares = {section: n / read for section, n in counts.items() if n}
        if not shares:
            raise DataError(
                f"none of {read} reports has an anatomical section",
                "every other batch would have no text",
                "set data.units.alternate to null, or build the shards from reports with findings",
            )
        least = min(LEAST / global_batch, max(shares.values()))
        return cls(seed, {section: share for section, share in shares.items() if share >= least})

    def section(self, batch: int) -> str | None:
        """The section that batch is about, drawn by how frequent it is; None: it has the whole reports."""
        if batch % 2 == 0:
            return None
        names, weights = list(self.shares), np.array(list(self.shares.values()))
        draw = np.random.Generator(np.random.Philox([self.seed, batch, 0, ALTERNATE]))
        return names[int(draw.choice(len(names), p=weights / weights.sum()))]
