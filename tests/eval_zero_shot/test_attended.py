"""Scores and maps by a released head `attended`: against its arithmetic written out, beside a cosine that stays."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import encoders
from data_shards.shard_set import ShardSet, ShardWriter
from eval_zero_shot import classify, run
from eval_zero_shot.classification import score_classification
from eval_zero_shot.errors import EvalError
from eval_zero_shot.feature_cache import FeatureCache
from eval_zero_shot.inputs import Inputs
from eval_zero_shot.outcome import Outcome, read_results
from eval_zero_shot.paired import cases_of, paired_difference
from eval_zero_shot.report import write_report
from eval_zero_shot.report.cases import Shown
from eval_zero_shot.report.focus import attention
from eval_zero_shot.report.pictures import model_input
from eval_zero_shot.report.wording import verdict
from eval_zero_shot.tasks import Task

from .conftest import TASK, study
from .toy_release import write_toy_release

VARIANT, AT = "scores=attended", {"scores": "attended"}
SEVERAL = Task.model_validate(
    {
        "name": "several",
        "classes": {
            "bright": {"positive": ["bright scan", "bright"], "negative": ["dark scan", "dark", "no bright scan"]},
            "dark": {"positive": ["dark scan"], "negative": ["bright scan"]},
        },
    }
)
KINDS = Task.model_validate(
    {
        "name": "kinds", "kind": "classes", "prompt_sets": {"main": ["a {} scan", "{}"]},
        "classes": {"bright": {}, "dark": {}},
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_release(tmp_path_factory.mktemp("release") / "toy", attended=True)


@pytest.fixture
def inputs(release: Path, toy_folder: Path) -> Inputs:
    return Inputs("toy", encoders.load(str(release)), ShardSet.open(toy_folder), None)


def tokens_of(inputs: Inputs, row: int) -> np.ndarray:
    with torch.no_grad():
        image = torch.from_numpy(model_input(inputs.shards, row, inputs.loaded))[None]
        return inputs.loaded.model.encode_image(image, tokens=True).tokens_SND[0].double().numpy()


def spelt_out(inputs: Inputs, row: int, text_D: np.ndarray) -> tuple[float, np.ndarray]:
    """(cosine of the text with what it pools, its attention on every token), with no line of the head's own."""
    w = {name: value.double().numpy() for name, value in inputs.loaded.heads["attended"].state_dict().items()}
    x = tokens_of(inputs, row)
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * w["norm.weight"] + w["norm.bias"]
    query, pooled, seen = w["query.weight"] @ text_D + w["query.bias"], [], []
    for part in (slice(0, 4), slice(4, 8)):  # two heads of a width of 8
        logits = np.append((x @ w["key.weight"].T)[:, part] @ query[part] / 2, 0.0)  # and an empty token
        share = np.exp(logits) / np.exp(logits).sum()
        pooled.append(share[:-1] @ (x @ w["value.weight"].T)[:, part])
        seen.append(share[:-1])
    v = w["out.weight"] @ np.concatenate(pooled) + w["out.bias"]
    return float(v @ text_D / np.linalg.norm(v)), np.mean(seen, axis=0)


def by_head(outcome: Outcome, row_key: str, of: str) -> float:
    assert outcome.scores is not None
    table = outcome.scores[(outcome.scores["variant"] == VARIANT) & (outcome.scores["of"] == of)]
    return float(table.set_index("key")["score"][row_key])


@pytest.mark.parametrize("task", [SEVERAL, KINDS], ids=["findings", "classes"])
def test_scores_are_means_of_each_prompts_own_cosine(inputs: Inputs, task: Task) -> None:
    rows = inputs.rows("test")
    found = score_classification(inputs, rows, task, attended=True, resamples=20)
    plain = score_classification(inputs, rows, task, resamples=20)
    texts = {text: vector.astype(float) for text, vector in inputs.texts(task.texts()).items()}
    for row in (0, 5):
        for name in task.names:
            sides = [np.mean([spelt_out(inputs, row, texts[t])[0] for t in side]) for side in task.prompts(name)]
            expected = sides[0] - sides[1] if len(sides) == 2 else sides[0]
            assert by_head(found, inputs.shards.key(row), name) == pytest.approx(expected, abs=1e-5)
    assert found.main == plain.main and found.headline == plain.headline
    assert [m for m in found.metrics if "scores" not in m.at] == list(plain.metrics), "the cosine stays as it was"
    pair = cases_of(found, VARIANT), cases_of(found)
    other = found.metric(found.headline, **AT)
    assert other is not None and other.value == pytest.approx(pair[0].value(np.ones((1, len(pair[0].keys))))[0])
    difference, _ = paired_difference(*pair, resamples=20, method="percentile")
    assert found.metric(f"{found.headline}_difference", **AT).value == pytest.approx(difference.value)
    if task is SEVERAL:
        assert found.metric("auroc", "bright", **AT).low is not None


def test_features_kept_are_of_the_prompts_and_scans_that_were_asked(inputs: Inputs, tmp_path: Path) -> None:
    cached = replace(inputs, cache=FeatureCache(tmp_path))
    rows, texts = inputs.rows("test"), inputs.texts(["bright scan", "dark", "no scan"])
    fresh = inputs.attended(rows, texts)
    for _ in range(2):
        assert np.allclose(cached.attended(rows, texts), fresh, atol=1e-6)
    assert len(list(tmp_path.iterdir())) == 1
    turned = {text: texts[text] for text in reversed(texts)}
    assert np.allclose(cached.attended(rows, turned), fresh[:, ::-1], atol=1e-6)
    assert len(list(tmp_path.iterdir())) == 2


def test_of_a_study_by_the_mean_of_its_scans_it_is_the_mean_of_their_cosines(inputs: Inputs, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "two") as writer:
        for i in range(4):
            writer.write(replace(study(i), scans=tuple(study(j).scans[0] for j in range(i, i + 1 + i % 2))))
    shards = ShardSet.open(tmp_path / "two")
    texts = inputs.texts(["bright scan", "dark"])
    mean, every = (replace(inputs, shards=shards, scans=scans) for scans in ("mean", "every"))
    rows = np.array([2, 3, 0, 1])
    of = every.attended(every.rows("test"), texts)
    owner = every.studies(every.rows("test"))
    assert np.allclose(mean.attended(rows, texts), [of[owner == row].mean(axis=0) for row in rows], atol=1e-6)


def test_a_map_is_the_texts_attention_and_says_so(inputs: Inputs, toy_folder: Path, tmp_path: Path) -> None:
    texts = {text: vector.astype(float) for text, vector in inputs.texts(["bright scan", "dark scan"]).items()}
    image = model_input(inputs.shards, 3, inputs.loaded)
    one, other = (spelt_out(inputs, 3, vector)[1].reshape(2, 2, 2) for vector in texts.values())
    assert attention(inputs.loaded, image, texts["bright scan"]) == pytest.approx(one, abs=1e-5)
    assert attention(inputs.loaded, image, *texts.values()) == pytest.approx(one - other, abs=1e-5)
    rows = inputs.rows("test")
    found = score_classification(inputs, rows, TASK, attended=True, resamples=20)
    shown = [Shown("toy", inputs.loaded, inputs.shards, rows, TASK)]
    page = write_report([found], tmp_path / "x.html", title="t", studies=shown).read_text(encoding="utf-8")
    names = [m["name"] for m in json.loads(page.split('id="data">')[1].split("</script>")[0])["looked"][0]["maps"]]
    assert names == ["attention of the text", "share of the score", "token–text similarity"]
    assert "<li>Attention of the text: where the released head" in page
    assert "AUROC (scores attended)" in page
    assert any(line.startswith("By the released head “attended” the macro AUROC is") for line in verdict([found]))


def test_browse_draws_the_attention_of_what_was_typed(inputs: Inputs) -> None:
    from eval_zero_shot.browse.studies import Studies

    found = Studies(inputs, inputs.rows("test", 4)).map(0, "bright scan", "dark scan")
    assert found["name"] == "attention of the text" and "released head" in found["says"] and found["grid"] == [2, 2, 2]


def test_a_model_without_the_head_is_refused_and_in_a_suite_keeps_its_cosine(
    release: Path, toy_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    plain = write_toy_release(tmp_path / "plain", seed=1)
    (tmp_path / "toy.yaml").write_text(json.dumps(TASK.model_dump(mode="json")))
    words = ["--data", str(toy_folder), "--task", str(tmp_path / "toy.yaml"), "--device", "cpu", "--no-cache"]
    words += ["--resamples", "20", "--attended"]
    assert classify.main(["--model", str(plain), *words]) == 1
    assert "plain was released without a head 'attended'" in capsys.readouterr().err
    assert classify.main(["--model", str(release), *words]) == 0
    assert "auroc, scores attended:" in capsys.readouterr().out
    entry = {"protocol": "classification", "task": "toy.yaml", "attended": True, "resamples": 20}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({"name": "x", "data": str(toy_folder), "entries": [entry]}))
    words = ["--models", str(release), str(plain), "--suite", str(tmp_path / "suite.yaml"), "--device", "cpu"]
    assert run.main([*words, "--no-cache", "--no-cases", "--out", str(tmp_path / "out")]) == 0
    found = {o.model: o for o in read_results(tmp_path / "out")}
    assert found["toy"].metric("auroc", **AT) is not None and found["plain"].metric("auroc", **AT) is None
    assert found["plain"].main.value is not None
    of = Inputs("plain", encoders.load(str(plain)), ShardSet.open(toy_folder), None)
    with pytest.raises(EvalError, match="released without a head"):
        score_classification(of, of.rows("test"), TASK, attended=True)
