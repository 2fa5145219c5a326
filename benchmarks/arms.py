"""What a comparison is made of: arms, each a recipe with overrides, and the differences that are reported."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Arm:
    """One system: overrides of one recipe.

    like: an arm of which this one changes one thing: it takes that arm's steps and learning rate. seeds: of this arm,
    where it has fewer than the others. rates: the learning rates it chooses from, where they are not the sweep's.
    """

    config: str
    overrides: tuple[str, ...] = ()
    like: str | None = None
    seeds: int | None = None
    rates: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Sweep:
    """Arms of one comparison.

    arms: by name. differences: pairs (a, b), a - b is reported. seeds: of each arm. common: overrides of every arm,
    which the arm's own win over. seconds: T, every arm gets T / (its median step) steps; None: the recipes' own steps.
    rates: learning rates that each arm chooses from; empty: the recipe's own. systems: the arms may see scans
    differently, as whole systems do; otherwise scores of different preprocessing are refused.
    """

    arms: dict[str, Arm]
    differences: tuple[tuple[str, str], ...]
    seeds: int = 5
    common: tuple[str, ...] = ()
    seconds: float | None = None
    rates: tuple[float, ...] = ()
    systems: bool = False

    def only(self, names: Collection[str]) -> Sweep:
        """Some of the arms, what they are ablations of, and the differences that are left."""
        names = {*names, *(like for name in names if (like := self.arms[name].like) is not None)}
        pairs = tuple(pair for pair in self.differences if set(pair) <= names)
        return replace(self, arms={name: arm for name, arm in self.arms.items() if name in names}, differences=pairs)
