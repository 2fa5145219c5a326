"""What the page is made of: curves, the hardest errors, sentences, and maps on the token grid."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import auc, roc_auc_score

from encoders.dual import build_dual
from eval_zero_shot.outcome import Metric, Outcome
from eval_zero_shot.report import parts
from eval_zero_shot.report.curves import (
    counts,
    finding_curves,
    findings,
    hardest,
    reliability,
    roc,
    wilson,
)  # fmt: skip
from eval_zero_shot.report.figures import recall_plot
from eval_zero_shot.report.focus import contributions, mean_tokens, similarity
from eval_zero_shot.report.tables import differences, finding_table, metric_table, overview
from eval_zero_shot.report.wording import audit_verdict, verdict

from .outcomes import audit, classification, retrieval, suite, vqa


def test_a_thinned_roc_keeps_its_area() -> None:
    rng = np.random.default_rng(0)
    label = (rng.random(3000) < 0.2).astype(float)
    label[:100] = np.nan
    score = np.nan_to_num(label) + rng.normal(size=3000)
    curve = roc(score, label, points=60)
    assert curve is not None and len(curve[0]) <= 60
    assert (curve[0][0], curve[1][0], curve[0][-1], curve[1][-1]) == (0.0, 0.0, 1.0, 1.0)
    known = ~np.isnan(label)
    assert auc(*curve) == pytest.approx(roc_auc_score(label[known], score[known]), abs=2e-3)
    assert roc(score[:100], label[:100]) is None and roc([1.0, 2.0], [1.0, 1.0]) is None


def test_reliability_has_every_case_once_and_ties_in_one_bin() -> None:
    rng = np.random.default_rng(0)
    probability = rng.random(4000)
    label = (rng.random(4000) < probability).astype(float)
    bins = reliability(probability, label)
    assert len(bins) == 10 and sum(b[4] for b in bins) == 4000
    assert all(low < share < high for _, share, low, high, _ in bins)
    tied = reliability([0.5] * 30 + [0.9] * 10, [0.0] * 30 + [1.0] * 10)
    assert [(b[0], b[1], b[4]) for b in tied] == [(0.5, 0.0, 30), (0.9, 1.0, 10)]
    for hits, n in ((0, 7), (3, 7), (7, 7), (40, 900)):
        span = binomtest(hits, n).proportion_ci(method="wilson")
        assert wilson(hits, n) == pytest.approx((span.low, span.high), abs=1e-6)
    assert reliability([], []) == []


def test_calibration_is_of_probabilities_alone() -> None:
    for model, probable in (("ours-ct3d", True), ("CT-CLIP", False)):
        curves = finding_curves(classification(model, classes=("a", "b"), n=200))
        assert list(curves) == ["a", "b"]
        assert (curves["a"]["probability"], curves["a"]["error"]) == (probable, 0.07 if probable else None)
    outcome = classification("CT-CLIP", classes=("a",), n=200)
    scaled = dataclasses.replace(outcome, provenance={"logit_scale": 50.0})
    part = findings(outcome)["a"]
    known = part[part["label"].notna()]
    expected = reliability(1 / (1 + np.exp(-50 * known["score"])), known["label"])
    assert finding_curves(scaled)["a"]["bins"] == expected and finding_curves(scaled)["a"]["probability"]
    by_class = dataclasses.replace(scaled, headline="balanced_accuracy")  # one of several: not both sides of one
    assert not finding_curves(by_class)["a"]["probability"]
    n = counts(findings(outcome)["a"])
    assert n.positive + n.negative + n.unknown == 200 and n.unknown > 0 and n.fewest_patients <= 100


def test_the_hardest_errors() -> None:
    part = pd.DataFrame(
        {
            "key": list("abcdef"), "patient": list("abcdef"), "variant": "", "of": "x",
            "score": [0.9, 0.1, 0.8, 0.2, 0.5, 0.99], "label": [1.0, 1.0, 0.0, 0.0, 0.0, np.nan],
        }
    )  # fmt: skip
    errors = hardest(part, most=2)
    assert errors["negatives"] == [("c", 0.8, 0.5), ("e", 0.5, 0.5)]  # above b, below a
    assert errors["positives"] == [("b", 0.1, 1.0)], "a is above every negative: no error"
    assert hardest(part[part["label"] == 1]) == {"negatives": [], "positives": []}


def finding(value: float, low: float, high: float, name: str) -> Metric:
    return Metric("auroc", value, low, high, of=name, n=50, method="logit")


def scored(metrics: list[Metric], macro: float | None, positives: dict[str, int]) -> Outcome:
    """A classification of 50 patients, `positives` of them with each finding."""
    tables = [
        pd.DataFrame(
            {
                "key": [f"{i}" for i in range(50)], "patient": [f"{i}" for i in range(50)], "variant": "", "of": name,
                "score": 0.0, "label": (np.arange(50) < n).astype(float),
            }
        )
        for name, n in positives.items()
    ]  # fmt: skip
    whole = Metric("auroc", macro, *((0.9, 0.96) if macro else (None, None)))
    return Outcome(
        "classification", "toy", "m", "", "auroc", (whole, *metrics), 50, 50, 45, tuple(positives),
        scores=pd.concat(tables) if tables else None,
    )  # fmt: skip


def test_a_verdict_is_in_words() -> None:
    both = [finding(0.9, 0.4, 0.99, "left_stone"), finding(0.97, 0.95, 0.98, "cyst")]
    said = " ".join(verdict([scored(both, 0.935, {"left_stone": 9, "cyst": 25})]))
    for part in ("50 studies of 45 patients", "0.935", "good", "Weakest: left stone", "chance: left stone", "Too few"):
        assert part in said
    low = " ".join(verdict([scored([finding(0.1, 0.05, 0.2, "cyst")], 0.1, {"cyst": 25})]))
    assert "Below chance (are labels or prompts swapped?): cyst" in low and "Not told from chance" not in low
    assert "nothing can be said" in " ".join(verdict([scored([], None, {})]))


def test_a_verdict_on_several_models() -> None:
    outcomes, comparisons = suite()
    said = " ".join(verdict(outcomes, comparisons))
    for part in (
        "3 models on 6 tasks",
        "ct_rate_18 (classification): ours-ct3d is first",
        "wins 4, ties 2 and loses 0",
    ):
        assert part in said


def test_the_audit_comes_in_words_worst_first() -> None:
    heads, lines = audit_verdict([classification("a", classes=("x",), n=40)])
    assert heads[0][1].startswith("No audit was run") and lines[0][0] == "NOT CHECKED"
    notes = (
        "Do not report this.",
        "OK same image: fine.",
        "NOT CHECKED captions: none given.",
        "FAIL same patient: 3.",
    )
    heads, lines = audit_verdict([audit("a", notes)])
    assert heads == [("FAIL", "Do not report this.")]
    assert lines == [
        ("FAIL", "same patient: 3."), ("NOT CHECKED", "captions: none given."), ("OK", "same image: fine."),
    ]  # fmt: skip
    heads, lines = audit_verdict([audit("a", ("OK: fine.",)), audit("b", ("WARN: hm.", "OK: fine."))])
    assert heads[1] == ("WARN", "b, ct_rate_18: No check failed, but 1 warning should be looked at.")
    assert lines == [("WARN", "b, ct_rate_18: hm."), ("OK", "fine.")]
    heads, _ = audit_verdict([audit("a", ("OK: fine.",)), classification("b", classes=("x",), n=40)])
    assert heads[1] == ("NOT CHECKED", "No audit was run of b.")
    assert audit_verdict([audit("a", ("OK: fine.",))])[0] == [("OK", "Nothing was found against these scores.")]
    assert audit_verdict([audit("a", ())])[0] == [("NOT CHECKED", "Nothing could be checked.")]


def test_a_verdict_of_several_models_is_a_line_each_and_checks_are_folded() -> None:
    notes = ("Bad.", "FAIL same patient: 3 of {}.", "WARN sex: {}.", "OK same image: fine.")
    several = [
        dataclasses.replace(audit(model, tuple(n.format(model) for n in notes)), task=task)
        for model in "abcd" for task in ("chest", "head")
    ]  # fmt: skip
    heads, lines = audit_verdict(several)
    assert [said for _, said in heads] == [f"{model}, chest, head: Bad." for model in "abcd"] and len(lines) == 9
    _, _, page = parts.audit(several)
    shown = re.sub("<details>.*?</details>", "", page)
    assert all(f"{model}, chest, head: Bad." in shown for model in "abcd") and shown.count("<li>") == 4
    assert page.count("3 of a.") == 1 and "<details open" not in page
    assert "<summary>Failed (4)</summary>" in page and "<summary>Passed (1)</summary>" in page
    _, _, page = parts.audit(several[:1])
    assert "<details open><summary>Failed (1)</summary>" in page


def test_marks_are_of_default_prompts_and_the_others_are_told() -> None:
    outcomes, comparisons = suite()
    first = {**comparisons[0], "prompts": "default", "chosen": ["", ""], "spread": [None, None]}
    chosen = {
        **first,
        "prompts": "validation",
        "chosen": ["main", "short"],
        "spread": [[0.7, 0.8], None],
        "mark": "loss",
    }
    table = overview(outcomes, [first, chosen], {}, "CT-CLIP")
    assert "▲ win" in table and "▼ loss" not in table and "1 / 0 / 0" in table
    listed = differences([first, chosen])
    assert "main against short" in listed and "over all sets 0.700–0.800" in listed and "▼ loss" in listed
    assert "wins 1, ties 0 and loses 0" in " ".join(verdict(outcomes, [first, chosen]))


def test_tables_leave_no_metric_out() -> None:
    for outcome in (vqa("a"), retrieval("a")):
        table = metric_table([outcome], "t", beside=("chance",))
        for metric in outcome.metrics:
            assert f"{metric.value:.3f}" in table
    one = classification("a", classes=("x", "y"), n=60)
    table = finding_table(one)
    assert "F1 (threshold validation)" in table and "threshold test" not in table
    assert all(f"{m.value:.3f}" in metric_table([one], "t") for m in one.metrics)
    assert "unknown" in table and "(too few cases)" in table


VISION = {"timm_pool": "", "timm_proj": "linear"}
TEXT = {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


def test_the_plot_of_recalls_leaves_no_pool_out() -> None:
    """With more bars than it has room for: the smallest k of every pool."""
    pools, ks = (32, 64, 128, "full"), (1, 5, 8, 10, 50, 100)
    metrics = [
        Metric("recall", 0.5, of=of, at={"k": k, "pool": pool, "ties": "identical_texts"})
        for of in ("text_to_image", "image_to_text") for pool in pools for k in ks
    ]  # fmt: skip
    figure = recall_plot([dataclasses.replace(retrieval("one"), metrics=tuple(metrics))], "black")
    assert figure is not None
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert sorted(labels) == sorted(
        f"{of}, R@{k} of {pool}" for of in ("text to image", "image to text") for pool in pools for k in (1, 5, 8)
    )


def dual(vision: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return build_dual(
        {"embed_dim": 8, "custom_text": True, "vision_cfg": {**VISION, **vision}, "text_cfg": TEXT}
    ).eval()


def ours(pool: str) -> Any:
    return dual({"timm_model_name": f"voxvit_tiny.p-2x4x4_i-4x8x8_c-1_o-{pool}_l-2", "image_size": 8})


def volumes(name: str) -> Any:
    return dual({"timm_model_name": name, "image_size": 8})


def timm(name: str) -> Any:
    return dual({"timm_model_name": name, "timm_model_pretrained": False, "image_size": 160})


def native() -> Any:
    """open_clip's own vision transformer."""
    torch.manual_seed(0)
    vision = {"image_size": 160, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16}
    return build_dual({"embed_dim": 8, "custom_text": True, "vision_cfg": vision, "text_cfg": TEXT}).eval()


def test_contributions_add_up_to_the_score_of_a_linear_tower() -> None:
    """With mean pooling the embedding is linear in the tokens: shares sum to gradient times (study - ordinary)."""
    model = ours("mean")
    rng = np.random.default_rng(0)
    images = rng.normal(size=(5, 1, 4, 8, 8)).astype(np.float32)
    direction = rng.normal(size=8)
    ordinary = mean_tokens(model, [images[:3], images[3:]])
    assert ordinary is not None
    share = contributions(model, images[0], direction, ordinary)
    assert share is not None and share.shape == (2, 2, 2)
    with torch.no_grad():
        x = torch.from_numpy(images)
        own, mean = model.encode_image(x).study_BD[0].double(), model.encode_image(x).study_BD.mean(0)
    unit, text = own / own.norm(), torch.from_numpy(direction)
    along = (text - (unit @ text) * unit) / own.norm()  # gradient of the cosine
    assert share.sum() == pytest.approx(float(along @ (own - mean.double())), abs=1e-5)


def test_a_token_is_as_similar_as_a_study_made_of_it() -> None:
    model = ours("mean")
    rng = np.random.default_rng(0)
    image, direction = rng.normal(size=(1, 4, 8, 8)).astype(np.float32), rng.normal(size=8)
    found = similarity(model, image, direction)
    assert found is not None and found.shape == (2, 2, 2)
    visual = model.clip.visual
    with torch.no_grad():
        tokens = visual.trunk.forward_features(torch.from_numpy(image)[None])
        third = visual.head(tokens[0, 3]).double()
    assert found[0, 1, 1] == pytest.approx(float(third / third.norm() @ torch.from_numpy(direction)), abs=1e-6)


@pytest.mark.parametrize(
    ("model", "grid", "alike"),
    [
        pytest.param(lambda: ours("attn"), (2, 2, 2), True, id="attention pooling"),
        pytest.param(lambda: ours("grid"), (2, 2, 2), False, id="weights of each place"),
        pytest.param(lambda: ours("cls"), (2, 2, 2), False, id="cls"),
        pytest.param(lambda: timm("test_vit"), (10, 10), False, id="timm, cls"),
        pytest.param(lambda: native(), (10, 10), False, id="open_clip's own"),
        pytest.param(lambda: timm("test_resnet"), (5, 5), True, id="timm, convolutions"),
        pytest.param(lambda: volumes("i3d_resnet26.i-4x8x8_c-1_w-8"), (1, 1, 1), True, id="convolutions, volumes"),
    ],
)  # fmt: skip
def test_maps_of_every_kind_of_tower(model: Any, grid: tuple[int, ...], alike: bool) -> None:
    """Contributions where tokens have a grid, never all zero; similarity only where tokens can be compared."""
    built = model()
    rng = np.random.default_rng(0)
    shape = (4, 1, 4, 8, 8) if len(grid) == 3 else (4, 3, 160, 160)
    images, direction = rng.normal(size=shape).astype(np.float32), rng.normal(size=8)
    ordinary = mean_tokens(built, [images])
    assert ordinary is not None
    share = contributions(built, images[0], direction, ordinary)
    assert share is not None and share.shape == grid and np.abs(share).max() > 0
    found = similarity(built, images[0], direction)
    assert (found is not None) is alike
    assert found is None or found.shape == grid


def test_a_tower_without_tokens_has_no_map() -> None:
    class Plain(torch.nn.Module):
        pass

    assert mean_tokens(Plain(), [np.zeros((1, 1, 4, 8, 8), np.float32)]) is None
    assert similarity(Plain(), np.zeros((1, 4, 8, 8), np.float32), np.zeros(8)) is None
