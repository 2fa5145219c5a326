"""Declared weights to exact shares: what is refused, and how the parts add up."""

from __future__ import annotations

import math
from typing import Any

import pytest

from data_shards import DataError
from data_shards.mixture import Mixture, largest_remainder

NAMES, SIZES = ("ct", "xr"), (100, 400)


@pytest.mark.parametrize(
    ("mixture", "shares"),
    [
        (Mixture({"xr": 1, "ct": 3}), (3, 1)),
        (Mixture([0.7, 0.3]), (7, 3)),
        (Mixture([1e-3, 1e-3]), (1, 1)),
        (Mixture(mix="uniform"), (1, 1)),
        (Mixture(mix="proportional"), (1, 4)),
        (Mixture(mix="temperature", temperature=2), (1, 2)),
    ],
)
def test_weights_become_whole_numbers(mixture: Mixture, shares: tuple[int, ...]) -> None:
    assert mixture.shares(NAMES, SIZES) == shares


def test_a_temperature_stands_between_proportional_and_uniform() -> None:
    a, b = Mixture(mix="temperature", temperature=3).shares(NAMES, SIZES)
    assert b / a == pytest.approx(4 ** (1 / 3))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weights": [1]}, r"1 weights for 2 sources \(ct, xr\)"),
        ({"weights": {"ct": 1}}, "no weight for xr"),
        ({"weights": {"ct": 1, "xr": 1, "mr": 1}}, "a weight for mr, which is no source"),
        ({"weights": {"ct": 1, "x": 1}}, "no weight for xr; a weight for x, which is no source"),
        ({"weights": [1, 0]}, "the weight of source 'xr' is 0"),
        ({"weights": [1, -1.0]}, "the weight of source 'xr' is -1"),
        ({"weights": [math.nan, 1]}, "the weight of source 'ct' is nan"),
        ({"weights": [math.inf, 1]}, "the weight of source 'ct' is inf"),
        ({"weights": [1, 1e-7]}, "'xr' has a share of 1.0e-07"),
        ({}, "mix 'weights' needs weights"),
        ({"mix": "uniform", "weights": [1, 1]}, "mix 'uniform' does not read weights"),
        ({"mix": "temperature"}, "needs temperature"),
        ({"mix": "proportional", "temperature": 2.0}, "does not read temperature"),
        ({"mix": "temperature", "temperature": 0.0}, "temperature is 0"),
        ({"mix": "even"}, "mix is 'even'"),
        ({"mix": "uniform", "batches": "sorted"}, "batches is 'sorted'"),
        ({"mix": "uniform", "by": "modality"}, "mixed batches have no groups"),
    ],
)
def test_a_mixture_that_cannot_be_meant_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Mixture(**settings).shares(NAMES, SIZES)


def test_a_source_without_studies_is_named() -> None:
    with pytest.raises(DataError, match="source 'xr' has no study"):
        Mixture(mix="uniform").shares(NAMES, (3, 0))


def test_parts_add_up_and_are_within_one_of_the_share() -> None:
    assert largest_remainder((3, 1), 6) == [5, 1]  # 4.5 and 1.5: the earlier of equal remainders is rounded up
    assert largest_remainder((1, 1, 1), 8) == [3, 3, 2]
    assert largest_remainder((5, 3, 1), 10**15 + 7) == [555555555555559, 333333333333336, 111111111111112]
    for total in range(200):
        counts = largest_remainder((41, 7, 2), total)
        assert sum(counts) == total
        assert all(abs(c - total * w / 50) < 1 for c, w in zip(counts, (41, 7, 2), strict=True))
