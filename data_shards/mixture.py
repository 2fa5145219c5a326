"""How several sources share a stream: declared weights to exact shares, in whole numbers.

The shares are those of largest remainders (Hamilton's apportionment): of N samples a source with share w gets w N
rounded down or up, and the ones with the largest remainders are rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from data_shards.errors import DataError

Mix = Literal["weights", "proportional", "uniform", "temperature"]
Batches = Literal["mixed", "homogeneous", "stratified"]
By = Literal["source", "modality"]
RAREST = 1 << 20  # a share below one in so many is refused: no run would notice that source


@dataclass(frozen=True)
class Mixture:
    """What to draw from which source, and what a batch is made of.

    Args:
        weights: one finite number above 0 a source, by name or in order of the sources; for `mix` "weights".
        mix: "weights"; "proportional" to the studies of a source; "uniform"; "temperature": studies^(1/temperature),
            between the two (arXiv 1907.05019, eq. in section 4.2).
        temperature: for `mix` "temperature"; 1 is proportional, large is uniform.
        batches: "mixed": a batch holds what the weights bring. "homogeneous": a global batch (all ranks together) is of
            one group, drawn by the weights. "stratified": every global batch holds every group at its share.
        by: what a group is: a "source", or a "modality" over all sources.

    Raises DataError for weights or a temperature that the mix does not use, lacks or cannot use.
    """

    weights: Mapping[str, float] | Sequence[float] | None = None
    mix: Mix = "weights"
    temperature: float | None = None
    batches: Batches = "mixed"
    by: By = "source"

    def __post_init__(self) -> None:
        for name, value, known in (("mix", self.mix, Mix), ("batches", self.batches, Batches), ("by", self.by, By)):
            if value not in get_args(known):
                raise DataError(f"{name} is {value!r}", fix=f"use one of {', '.join(get_args(known))}")
        if self.by == "modality" and self.batches == "mixed":
            raise DataError(
                'by "modality" says what a group is, and mixed batches have no groups',
                "it would be ignored in silence",
                'use batches "homogeneous" or "stratified", or leave `by` out',
            )
        for name, wanted, given in (
            ("weights", self.mix == "weights", self.weights is not None),
            ("temperature", self.mix == "temperature", self.temperature is not None),
        ):
            if wanted != given:
                raise DataError(
                    f"mix {self.mix!r} {'needs' if wanted else 'does not read'} {name}",
                    "" if wanted else "what is written there would be ignored in silence",
                    f"give {name}, or choose another mix" if wanted else f'leave {name} out, or use mix "{name}"',
                )
        if self.temperature is not None and not (math.isfinite(self.temperature) and self.temperature > 0):
            raise DataError(f"temperature is {self.temperature}", fix="use a finite number above 0")

    def shares(self, names: Sequence[str], sizes: Sequence[int]) -> tuple[int, ...]:
        """Whole numbers in the proportions of the weights, for sources of these names and sizes (studies).

        Raises DataError: an empty source, a source without a weight, a weight without a source, a weight that is not a
        finite number above 0, or a share that no run would notice.
        """
        for name, size in zip(names, sizes, strict=True):
            if size < 1:
                raise DataError(
                    f"source {name!r} has no study to draw",
                    "the mixture would not be the declared one",
                    "take it out of the mixture, or name a split that it has",
                )
        whole = whole_numbers([exact(value) for value in self._raw(names, sizes)])
        refuse_rare(names, whole)
        return whole

    def _raw(self, names: Sequence[str], sizes: Sequence[int]) -> list[float]:
        if self.mix == "uniform":
            return [1.0] * len(names)
        if self.mix in ("proportional", "temperature"):
            return [float(size) ** (1 / (self.temperature or 1.0)) for size in sizes]
        given = self.weights
        assert given is not None
        if isinstance(given, Mapping):
            without, strange = [n for n in names if n not in given], [n for n in given if n not in names]
            if without or strange:
                wrong = [f"no weight for {', '.join(without)}"] * bool(without)
                wrong += [f"a weight for {', '.join(strange)}, which is no source"] * bool(strange)
                raise DataError(
                    "weights and sources do not match: " + "; ".join(wrong),
                    "the mixture would not be the declared one",
                    f"give one weight to each of {', '.join(names)}",
                )
            values = [given[name] for name in names]
        else:
            if len(given) != len(names):
                raise DataError(
                    f"{len(given)} weights for {len(names)} sources ({', '.join(names)})",
                    "the mixture would not be the declared one",
                    "give one weight a source, in their order",
                )
            values = list(given)
        for name, value in zip(names, values, strict=True):
            if not (math.isfinite(value) and value > 0):
                raise DataError(
                    f"the weight of source {name!r} is {value}",
                    "nothing can be drawn that often",
                    "give a finite number above 0, or take the source out",
                )
        return values


def exact(value: float) -> Fraction:
    """The number as people write it, to 12 digits: 0.1 is 1/10, and the last bit of a power does not depend on the
    machine."""
    return Fraction(f"{value:.12g}")


def whole_numbers(values: Sequence[Fraction]) -> tuple[int, ...]:
    """The smallest whole numbers in the same proportions."""
    common = math.lcm(*(v.denominator for v in values))
    numbers = [int(v * common) for v in values]
    divisor = math.gcd(*numbers)
    return tuple(n // divisor for n in numbers)


def refuse_rare(names: Sequence[str], shares: Sequence[int]) -> None:
    """Raise DataError for a share below one in RAREST."""
    for name, share in zip(names, shares, strict=True):
        if share * RAREST < sum(shares):
            raise DataError(
                f"{name!r} has a share of {share / sum(shares):.1e}",
                f"less than one sample in {RAREST} is one that no run would notice",
                "give it more weight, or leave it out",
            )


def largest_remainder(shares: Sequence[int], total: int) -> list[int]:
    """`total` split in the proportions of `shares` by largest remainders, the earlier first where they are equal."""
    whole = sum(shares)
    counts = [total * share // whole for share in shares]
    left = total - sum(counts)
    for i in sorted(range(len(shares)), key=lambda i: (-(total * shares[i] % whole), i))[:left]:
        counts[i] += 1
    return counts
