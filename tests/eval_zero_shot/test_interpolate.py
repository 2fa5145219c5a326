"""The WiSE-FT sweep through its command: chosen on validation, both ends shown, the merged release as it scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image

import encoders
import eval_zero_shot
from data_shards.shard_set import ShardSet, ShardWriter
from encoders.dual import build_dual
from encoders.release import write_release
from eval_zero_shot.classification import score_classification
from eval_zero_shot.inputs import Inputs
from eval_zero_shot.interpolate import main
from eval_zero_shot.interpolation import Point, choose
from eval_zero_shot.outcome import Outcome, read_results
from eval_zero_shot.paired import cases_of, paired_difference
from eval_zero_shot.tasks import load_task

from .conftest import GEOMETRY, TASK, VIEW, study

SCHEMA = Path(eval_zero_shot.__file__).with_name("results.schema.json")
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VISION = {"timm_model_name": "voxvit_tiny.p-2x4x4_i-4x8x8_c-1_l-1", "timm_pool": "", "timm_proj": "linear"}
CONFIG = {"embed_dim": 8, "custom_text": True, "vision_cfg": {**VISION, "image_size": 8}, "text_cfg": TEXT}


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("parents")
    dual = build_dual(CONFIG)
    base = write_release(folder / "base", dual.clip.state_dict(), CONFIG, GEOMETRY, VIEW)
    with torch.no_grad():
        for parameter in dual.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return base, write_release(folder / "tuned", dual.clip.state_dict(), CONFIG, GEOMETRY, VIEW)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright and dark studies, their labels partly wrong so that nothing is perfect."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    rng = np.random.default_rng(0)
    with ShardWriter(folder) as writer:
        for i in range(60):
            made = study(i, "val" if i < 20 else "test")
            writer.write(replace(made, labels={"bright": int(rng.integers(2)), "dark": int(rng.integers(2))}))
    return folder


@pytest.fixture
def tasks(tmp_path: Path) -> list[str]:
    """Two tasks: both findings, and one in other words."""
    one = {
        "name": "toy",
        "classes": {k: v for k, v in TASK.model_dump(mode="json")["classes"].items() if k != "absent_from_the_shards"},
    }
    two = {"name": "words", "classes": {"bright": {"positive": ["white"], "negative": ["black"]}}}
    files = []
    for body in (one, two):
        files.append(tmp_path / f"{body['name']}.yaml")
        files[-1].write_text(json.dumps(body))
    return [str(file) for file in files]


def words(parents: Sequence[Path], shards: Path, tasks: list[str], out: Path, *more: object) -> list[str]:
    base, tuned = map(str, parents)
    given = ["--base", base, "--tuned", tuned, "--data", str(shards), "--task", *tasks, "--out", str(out)]
    return [*given, "--device", "cpu", "--no-cache", "--resamples", "200", *map(str, more)]


def test_the_sweep_chooses_on_validation_and_shows_both_ends(
    parents: tuple[Path, Path], shards: Path, tasks: list[str], tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "merged"
    assert main(words(parents, shards, tasks, out, "--alphas", 0.3, 0.6)) == 0
    told = capsys.readouterr().out
    assert "merged − it" in told and "validation ('val')" in told
    made = {(o.task, o.model): o for o in read_results(out)}
    assert set(made) == {(task, model) for task in ("toy", "words") for model in ("base", "merged", "tuned")}

    jsonschema.validate(json.loads((out / "results.json").read_text()), json.loads(SCHEMA.read_text()))

    merged = made["toy", "merged"]
    sweep = {(m.at["alpha"], m.at["split"]): m.value for m in merged.metrics if "alpha" in m.at}
    alphas = sorted({alpha for alpha, _ in sweep})
    assert alphas == [0, 0.3, 0.6, 1], "both ends are always there"
    other = {(m.at["alpha"], m.at["split"]): m.value for m in made["words", "merged"].metrics if "alpha" in m.at}
    means = [sweep[a, "val"] + other[a, "val"] for a in alphas]
    chosen = json.loads((out / "results.json").read_text())["about"]["alpha"]
    assert chosen == alphas[int(np.argmax(means))] and len(set(means)) > 1

    # What is shown as merged is what the written release scores, by itself.
    loaded, studies = encoders.load(str(out / "release")), ShardSet.open(shards)
    assert merged.model_sha256 == loaded.sha256
    assert loaded.config["provenance"]["merged"]["alpha"] == chosen
    for task in tasks:
        alone = score_classification(Inputs("alone", loaded, studies, None), studies.rows("test"), load_task(task),
                                     resamples=200)  # fmt: skip
        found = made[load_task(task).name, "merged"].main
        assert alone.main.value == pytest.approx(found.value, abs=1e-12) and found.value == pytest.approx(
            {"toy": sweep, "words": other}[alone.task][chosen, "test"], abs=1e-12
        )
        assert alone.main.low is not None and alone.main.low == pytest.approx(found.low, abs=1e-12)

    for parent in ("base", "tuned"):
        difference = merged.metric("auroc_difference", parent)
        assert difference is not None
        assert difference.value == pytest.approx(merged.main.value - made["toy", parent].main.value)
        paired, _ = paired_difference(
            cases_of(merged), cases_of(made["toy", parent]), resamples=200, method="percentile"
        )
        assert paired.value == pytest.approx(difference.value)
        if difference.low is not None and paired.low is not None:
            assert difference.low == pytest.approx(paired.low, abs=0.02)
    assert merged.provenance["split"] == "test" and merged.provenance["validation_split"] == "val"
    with Image.open(out / "sweep.png") as picture:
        assert picture.width > 1000


def test_the_same_bytes_again_and_features_from_the_cache(
    parents: tuple[Path, Path], shards: Path, tasks: list[str], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        given = words(parents, shards, tasks[:1], tmp_path / name / "merged", "--alphas", 0.5)
        given.remove("--no-cache")
        assert main([*given, "--cache", str(tmp_path / "cache")]) == 0
    for file in ("results.json", "scores.parquet", "sweep.png", "release/release.json"):
        assert (tmp_path / "one/merged" / file).read_bytes() == (tmp_path / "two/merged" / file).read_bytes()
    assert len([f for f in (tmp_path / "cache").rglob("*") if f.is_file()]) == 3 * 2, "three models, two splits"


def test_ties_go_to_the_smaller_alpha() -> None:
    def points(*values: float) -> list[Point]:
        return [Point(i / 4, {"a": v, "b": 0.5}, {"a": 1 - v, "b": 0.5}) for i, v in enumerate(values)]

    assert choose(points(0.6, 0.7, 0.7, 0.7, 0.65)) == 0.25
    assert choose(points(0.6, 0.6, 0.6, 0.6, 0.6)) == 0.0
    assert choose(points(0.1, 0.2, 0.3, 0.4, 0.5)) == 1.0, "the test curve falls, and does not count"
    assert choose(points(0.6, 0.7, 0.7 + 1e-15, 0.6, 0.6)) == 0.25


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--split", "val"), "both 'val'"),
        (("--validation-split", "dev"), "no study in split 'dev'"),
        (("--alphas", "1.5"), "not from 0 to 1"),
    ],
)
def test_wrong_requests(
    more: tuple[str, ...], told: str, parents: tuple[Path, Path], shards: Path, tasks: list[str], tmp_path: Path,
    capsys: Any,
) -> None:  # fmt: skip
    assert main(words(parents, shards, tasks, tmp_path / "out", *more)) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_merged_is_refused_before_scoring(
    parents: tuple[Path, Path], shards: Path, tasks: list[str], tmp_path: Path, capsys: Any
) -> None:
    torch.manual_seed(2)
    config = {**CONFIG, "embed_dim": 12}
    other = write_release(tmp_path / "other", build_dual(config).clip.state_dict(), config, GEOMETRY, VIEW)
    assert main(words((parents[0], other), shards, tasks, tmp_path / "out")) == 1
    assert "the releases differ in model_cfg.embed_dim" in capsys.readouterr().err
    (tmp_path / "out" / "release").mkdir(parents=True)
    assert main(words(parents, shards, tasks, tmp_path / "out")) == 1
    assert "holds a release already" in capsys.readouterr().err


def test_a_model_with_itself_has_no_interval(
    parents: tuple[Path, Path], shards: Path, tasks: list[str], tmp_path: Path
) -> None:
    """Every point is the same: the base is chosen, and folders of one name are told apart."""
    assert main(words((parents[0], parents[0]), shards, tasks[:1], tmp_path / "m", "--alphas", 0)) == 0
    base, merged, tuned = read_results(tmp_path / "m")
    assert [o.model for o in (base, merged, tuned)] == ["base (base)", "m (merged)", "base (tuned)"]
    assert isinstance(merged, Outcome)
    difference = merged.metric("auroc_difference", "base (base)")
    assert difference is not None and difference.value == 0 and difference.low is None
    assert difference.reason == "the same weights"
