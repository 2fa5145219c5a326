"""The k nearest by blocks, and volume to volume by both definitions, each against its formula study by study."""

from __future__ import annotations

import numpy as np
import pytest

from eval_zero_shot import EvalError
from eval_zero_shot.retrieval import top
from eval_zero_shot.retrieval.top import top_k
from eval_zero_shot.retrieval.volumes import volume_hits

NAN = float("nan")


def cosines(x: np.ndarray) -> np.ndarray:
    unit = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32).astype(np.float64)
    return unit @ unit.T


@pytest.mark.parametrize("sizes", [(1024, 4096), (9, 13)])
def test_nearest_are_those_of_a_full_sort_without_the_own_group(
    sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top, "ROWS", sizes[0])
    monkeypatch.setattr(top, "COLUMNS", sizes[1])
    rng = np.random.default_rng(0)
    x, group = rng.normal(size=(90, 5)), rng.integers(30, size=90)
    index, cosine = top_k(x, x, 7, group_Q=group, group_M=group)
    whole = cosines(x)
    whole[group[:, None] == group[None, :]] = -np.inf
    assert np.array_equal(index, np.argsort(-whole, axis=1, kind="stable")[:, :7])
    assert cosine == pytest.approx(np.take_along_axis(whole, index, axis=1), abs=1e-11)


def test_equals_come_in_the_order_of_their_index_and_what_is_missing_is_minus_one() -> None:
    ones = np.ones((5, 3))
    index, cosine = top_k(ones, ones, 6, group_Q=np.arange(5), group_M=np.arange(5))
    assert index[2].tolist() == [0, 1, 3, 4, -1, -1]
    assert np.isinf(cosine[2, 4:]).all()
    with pytest.raises(EvalError, match="k is 0"):
        top_k(ones, ones, 0)


def cohort(n: int = 40, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 3)) < 0.4).astype(float)
    return labels @ rng.normal(size=(3, 6)) + rng.normal(size=(n, 6)), labels, rng.integers(n // 2, size=n).astype(str)


@pytest.mark.parametrize("same_patient", [False, True])
def test_jaccard_is_the_mean_over_the_nearest_abnormal_studies(same_patient: bool) -> None:
    images, labels, patients = cohort()
    owners = np.arange(len(images)) if same_patient else patients
    found = volume_hits(images, labels, owners, "jaccard", (1, 5))
    whole, abnormal = cosines(images), labels.any(axis=1)
    assert 0 < (~abnormal).sum() == found.left_out["no finding"]
    for i in range(len(images)):
        if not abnormal[i]:
            assert np.isnan(found.score_NK[i]).all()
            continue
        others = [j for j in np.argsort(-whole[i]) if abnormal[j] and j != i]
        others = [j for j in others if same_patient or patients[j] != patients[i]]
        like = [(labels[i] * labels[j]).sum() / np.maximum(labels[i], labels[j]).sum() for j in others]
        assert found.score_NK[i] == pytest.approx([np.mean(like[:1]), np.mean(like[:5])])


@pytest.mark.parametrize("same_patient", [False, True])
def test_exact_labels_is_average_precision(same_patient: bool) -> None:
    images, labels, patients = cohort(seed=2)
    owners = np.arange(len(images)) if same_patient else patients
    found = volume_hits(images, labels, owners, "exact_labels", (1, 5))
    whole = cosines(images)
    for i in range(len(images)):
        others = [j for j in np.argsort(-whole[i]) if j != i and (same_patient or patients[j] != patients[i])]
        right = [bool((labels[i] == labels[j]).all()) for j in others]
        if not any(right):
            assert np.isnan(found.score_NK[i]).all()
            continue
        for column, k in enumerate((1, 5)):
            precision = [np.mean(right[: j + 1]) for j in range(k) if right[j]]
            assert found.score_NK[i, column] == pytest.approx(sum(precision) / min(k, sum(right)))


def test_the_patients_other_studies_are_not_found_unless_said() -> None:
    """Twin studies are each other's nearest and have the same labels: without the rule every score would be 1."""
    rng = np.random.default_rng(3)
    images = np.repeat(rng.normal(size=(20, 8)), 2, axis=0)
    labels = np.repeat(np.eye(20), 2, axis=0)
    patients = np.repeat(np.arange(20), 2).astype(str)
    assert np.nanmean(volume_hits(images, labels, patients, "jaccard", (1,)).score_NK) == 0.0
    assert np.nanmean(volume_hits(images, labels, np.arange(40), "jaccard", (1,)).score_NK) == 1.0
    alone = volume_hits(images, labels, patients, "exact_labels", (1,))
    assert alone.left_out == {"no other study to find": 40}
    assert np.isnan(alone.chance_K).all()


def test_random_features_score_the_chance_that_is_stated() -> None:
    gaps = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        labels = (rng.random((300, 3)) < 0.4).astype(float)
        found = volume_hits(rng.normal(size=(300, 8)), labels, np.arange(300).astype(str), "jaccard", (1, 10))
        gaps.append(np.nanmean(found.score_NK, axis=0) - found.chance_K)
    assert np.mean(gaps, axis=0) == pytest.approx([0.0, 0.0], abs=0.03)


def test_studies_with_unknown_labels_are_left_out_and_counted() -> None:
    images, labels, patients = cohort()
    labels[[3, 5], 0] = NAN
    found = volume_hits(images, labels, patients, "exact_labels", (1,))
    assert found.left_out["an unknown label"] == 2
    assert np.isnan(found.score_NK[[3, 5]]).all()
    assert found.candidates == 38
    with pytest.raises(EvalError, match="do not fit"):
        volume_hits(images, labels[:-1], patients, "jaccard")
