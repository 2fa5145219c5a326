"""Draws follow from data and seed, keep patients together, and say where there are too few."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eval_zero_shot import EvalError
from eval_zero_shot.probe.draws import Labelled, make_draws, read_draws
from eval_zero_shot.probe.split import Question

LABELS = Question("labels", ("common", "rare"))
CLASSES = Question("organ", ("liver", "spleen", "lung"), exclusive=True)


def labelled(n: int = 600, seed: int = 0) -> Labelled:
    """Three studies a patient; "rare" is positive in about 1 of 60 and unknown in a fifth."""
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.random(n) < 0.4, rng.random(n) < 1 / 60], axis=1).astype(float)
    labels[rng.random(n) < 0.2, 1] = np.nan
    names = ([f"{name}{i // step:05d}" for i in range(n)] for name, step in (("k", 1), ("p", 3)))
    return Labelled(*(np.array(x) for x in names), labels)


def in_classes(n: int = 90) -> Labelled:
    one_hot = np.eye(3)[np.arange(n) % 3]
    one_hot[::10] = np.nan
    return Labelled(np.array([f"k{i}" for i in range(n)]), np.array([f"p{i // 2}" for i in range(n)]), one_hot)


def test_the_order_of_rows_does_not_matter_and_the_seed_does() -> None:
    data = labelled()
    shuffle = np.random.default_rng(1).permutation(len(data.keys_N))
    again = Labelled(data.keys_N[shuffle], data.patients_N[shuffle], data.labels_NL[shuffle])
    how = {"shots": (1, 4), "fractions": (0.01, 0.1), "draws": 3}
    first = make_draws(data, data, LABELS, "sha", **how)
    assert first.sha256 == make_draws(again, again, LABELS, "sha", **how).sha256
    assert first.sha256 != make_draws(data, data, LABELS, "sha", seed=1, **how).sha256


def test_shots_are_k_patients_of_each_class_and_grow() -> None:
    data = in_classes()
    draws = make_draws(data, None, CLASSES, "sha", shots=(1, 2, 8), draws=5)
    row_of = {key: i for i, key in enumerate(data.keys_N)}
    for d in range(5):
        for j, name in enumerate(CLASSES.names):
            keys = draws.shots[8][d][name]
            rows = [row_of[key] for key in keys]
            assert len(keys) == 8 and (data.labels_NL[rows, j] == 1).all()
            assert len(set(data.patients_N[rows])) == 8
            assert draws.shots[2][d][name] == keys[:2] and draws.shots[1][d][name] == keys[:1]
    assert len({tuple(draw["liver"]) for draw in draws.shots[8]}) == 5


def test_labels_have_their_own_positives_and_negatives_and_few_are_few() -> None:
    data = labelled()
    draws = make_draws(data, data, LABELS, "sha", shots=(16,), draws=2)
    positive = int((data.labels_NL[:, 1] == 1).sum())
    assert 0 < positive < 16
    assert {cell: len(keys) for cell, keys in draws.shots[16][0].items()} == {
        "common=1": 16, "common=0": 16, "rare=1": positive, "rare=0": 16,
    }  # fmt: skip
    assert {len(keys) for keys in draws.validation[16][0].values()} == {4}


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_a_fraction_holds_whole_patients_every_class_and_about_its_share(fraction: float) -> None:
    data = labelled()
    draws = make_draws(data, None, LABELS, "sha", fractions=[fraction], draws=3)
    for keys in draws.fractions[fraction]:
        inside = np.isin(data.keys_N, keys)
        assert not set(data.patients_N[inside]) & set(data.patients_N[~inside])
        for j in range(2):
            for side in (0, 1):
                assert (data.labels_NL[inside, j] == side).any()
        assert fraction * 600 <= inside.sum() <= max(fraction * 600 + 6, 12)
        share = (data.labels_NL[inside, 0] == 1).mean()
        assert fraction < 0.1 or abs(share - 0.4) < 0.15
    assert len({tuple(keys) for keys in draws.fractions[fraction]}) == 3


def test_a_file_is_for_its_data_and_labels(tmp_path: Path) -> None:
    data = in_classes()
    draws = make_draws(data, data, CLASSES, "sha", shots=(1,), fractions=(0.1,), draws=1)
    path = tmp_path / "draws.json"
    path.write_text(draws.text)
    again = read_draws(path, CLASSES, "sha")
    assert again == draws and again.sha256 == draws.sha256
    with pytest.raises(EvalError, match="another data"):
        read_draws(path, CLASSES, "other")
    with pytest.raises(EvalError, match="another labels, kind"):
        read_draws(path, LABELS, "sha")
    path.write_text(json.dumps({"version": 1}))
    with pytest.raises(EvalError, match="cannot be read"):
        read_draws(path, CLASSES, "sha")


@pytest.mark.parametrize("how", [{"shots": (0,)}, {"fractions": (1.5,)}, {"draws": 0}])
def test_draws_of_nothing_are_refused(how: dict) -> None:
    with pytest.raises(EvalError, match="draws"):
        make_draws(in_classes(), None, CLASSES, "sha", **how)
