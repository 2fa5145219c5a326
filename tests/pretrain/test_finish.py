"""`finish`: base, adapted and merged weights at the end of a run, measured on its own domain and on others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import encoders
from data_shards.shard_set import ShardSet
from encoders.interpolate import mix
from eval_zero_shot.classification import score_classification
from eval_zero_shot.inputs import Inputs
from eval_zero_shot.outcome import Outcome, read_results
from eval_zero_shot.paired import cases_of, paired_difference
from eval_zero_shot.tasks import load_task
from pretrain.config import ConfigError, load_recipe, smoke

WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def other_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("other") / "elsewhere.yaml"
    path.write_text('name: elsewhere\nclasses:\n  nodule: {positive: ["A nodule."], negative: ["No nodule."]}\n')
    return path


@pytest.fixture(scope="module")
def runs(
    make_fit: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, task_file: Path, other_task: Path,
    more_shards: Path,
) -> Any:  # fmt: skip
    """A first run, whose release the others adapt; "adapted" is held against other studies, which choose nothing."""
    made = make_fit(tmp_path_factory.mktemp("finish"), evaluate={"task": str(task_file), "final": True})
    assert made("first", train__steps=3, evaluate__final=False) == 0
    assert made("adapted", **adapting(made, more_shards, other_task)) == 0
    return made


def adapting(runs: Any, held: Path, task: Path, **more: Any) -> dict[str, Any]:
    finish = {
        "interpolate_with": "base", "alphas": [0.25, 0.5], "resamples": 100,
        "held_out": [{"task": str(task), "data": str(held), **more}],
    }  # fmt: skip
    return {"model__init": str(runs.folder("first") / "release"), "optim__lr": 1e-2, "finish": finish}


def interpolated(folder: Path) -> dict[str, Outcome]:
    return {o.task: o for o in read_results(folder / "results") if o.protocol == "interpolation"}


def test_a_run_keeps_both_ends_and_releases_what_validation_chose(runs: Any, equal: Any) -> None:
    folder = runs.folder("adapted")
    base, tuned, merged = (load_file(folder / name / WEIGHTS) for name in ("base", "adapted", "release"))
    assert equal(base, load_file(runs.folder("first") / "release" / WEIGHTS))
    assert equal(tuned, runs.weights("adapted", "best"))
    found = interpolated(folder)
    own = found["made_up"]
    (alpha,) = {float(o.provenance["alpha"]) for o in found.values()}
    on_validation = {m.at["alpha"]: m.value for m in own.metrics if m.at.get("split") == "val" and not m.of}
    assert set(on_validation) == {0, 0.25, 0.5, 1}
    best = max(on_validation.values())
    assert alpha == min(a for a, value in on_validation.items() if value == best)
    assert equal(merged, {name: mix(base[name], value, alpha) for name, value in tuned.items()})
    assert encoders.load(folder / "release").config["provenance"]["merged"]["alpha"] == alpha


def test_every_domain_is_measured_at_base_adapted_and_merged(
    runs: Any, shards: Path, more_shards: Path, task_file: Path, other_task: Path
) -> None:
    """The numbers are those of the three releases when each is scored by itself."""
    folder = runs.folder("adapted")
    found = interpolated(folder)
    assert [(name, o.provenance["held_out"]) for name, o in found.items()] == [("made_up", False), ("elsewhere", True)]
    for outcome, studies, task in zip(found.values(), (shards, more_shards), (task_file, other_task), strict=True):
        opened = ShardSet.open(studies)
        alone = {}
        for name in ("base", "adapted", "release"):
            inputs = Inputs(name, encoders.load(folder / name), opened, None)
            alone[name] = score_classification(inputs, opened.rows("test"), load_task(str(task)), resamples=100)
        at = {m.at["alpha"]: m.value for m in outcome.metrics if m.at.get("split") == "test" and not m.of}
        assert at[0] == alone["base"].main.value and at[1] == alone["adapted"].main.value
        assert outcome.main.value == alone["release"].main.value
        forgotten = outcome.metric("auroc_gain", "base")
        expected, _ = paired_difference(
            cases_of(alone["adapted"]), cases_of(alone["base"]), resamples=100, method="percentile"
        )
        assert forgotten is not None
        assert (forgotten.value, forgotten.low, forgotten.high) == (expected.value, expected.low, expected.high)
    held = found["elsewhere"]
    assert {m.at["split"] for m in held.metrics if "split" in m.at} == {"test"}, (
        "held out: it has no part in the choice"
    )


def test_the_report_is_in_the_results_on_the_page_and_printed(
    runs: Any, more_shards: Path, other_task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs.folder("adapted")
    protocols = [o.protocol for o in read_results(folder / "results")]
    assert protocols == ["classification", "retrieval", "interpolation", "interpolation"]
    page = (folder / "report.html").read_text()
    assert "Weight interpolation" in page and "elsewhere" in page
    assert runs("again", **adapting(runs, more_shards, other_task), train__steps=3) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "forgetting: a = " in said and "held out" in said and "Adapting lost on " in said
    assert f"of {runs.folder('again') / 'base'}" in said


def test_a_held_out_domain_may_have_a_part_in_the_choice(runs: Any, more_shards: Path, other_task: Path) -> None:
    changes = adapting(runs, more_shards, other_task, select="val", name="far")
    assert runs("both", **changes, train__steps=3) == 0
    found = interpolated(runs.folder("both"))
    swept = [
        {m.at["alpha"]: m.value for m in o.metrics if m.at.get("split") == "val" and not m.of} for o in found.values()
    ]
    assert list(found) == ["made_up", "far"] and not any(o.provenance["held_out"] for o in found.values())
    mean = {a: (swept[0][a] + swept[1][a]) / 2 for a in swept[0]}
    best = max(mean.values())
    assert found["far"].provenance["alpha"] == min(a for a, value in mean.items() if value >= best - 1e-12)


def test_without_a_task_retrieval_is_the_measure(runs: Any) -> None:
    changes = {"finish": {"interpolate_with": "base", "alphas": [0.5], "resamples": 50}, "evaluate__task": None}
    assert runs("texts", **changes, model__init=str(runs.folder("first") / "release"), train__steps=3) == 0
    folder = runs.folder("texts")
    (outcome,) = read_results(folder / "results")
    assert (outcome.protocol, outcome.task, outcome.headline) == ("interpolation", "retrieval", "recall_at_1_in_full")
    assert "Weight interpolation" in (folder / "report.html").read_text()


def test_a_stopped_run_finishes_as_if_never_stopped(
    make_fit: Callable[..., Any], runs: Any, trouble: Callable[..., None], task_file: Path, more_shards: Path,
    other_task: Path, tmp_path: Path, equal: Any, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    again = make_fit(
        tmp_path, evaluate={"task": str(task_file)},
        objectives=[{"name": "trouble:Trouble"}, {"name": "sentence"}, {"name": "contrastive"}],
    )  # fmt: skip
    changes = adapting(runs, more_shards, other_task) | {"train__steps": 6}
    assert again("whole", **changes) == 0
    trouble(signal_at=3)
    assert again("stopped", **changes) == 143
    kept = again.folder("stopped") / "base"
    assert equal(load_file(kept / WEIGHTS), load_file(again.folder("whole") / "base" / WEIGHTS))
    assert not (again.folder("stopped") / "release").exists()
    trouble()
    aside = tmp_path / "aside"
    shutil.move(kept, aside)
    assert again.resume("stopped") == 1
    assert "there is nothing to interpolate with, and its checkpoints hold later weights" in capsys.readouterr().err
    shutil.move(aside, kept)
    assert again.resume("stopped") == 0
    for name in ("adapted", "release"):
        one, other = (load_file(again.folder(run) / name / WEIGHTS) for run in ("whole", "stopped"))
        assert equal(one, other)
    values = [{t: o.main.value for t, o in interpolated(again.folder(run)).items()} for run in ("whole", "stopped")]
    assert values[0] == values[1]
    shutil.rmtree(again.folder("stopped") / "release")
    assert again.resume("stopped") == 0, "a finished run is merged and scored again"
    assert equal(load_file(again.folder("stopped") / "release" / WEIGHTS),
                 load_file(again.folder("whole") / "release" / WEIGHTS))  # fmt: skip


def test_a_run_from_random_weights_may_ask_for_its_start(tiny: Any, equal: Any, task_file: Path) -> None:
    """What --smoke does, which loads no weights."""
    changes = {"finish": {"interpolate_with": "start", "alphas": [0.5], "resamples": 0}, "optim__warmup_steps": 0}
    assert tiny("run", **changes, train__steps=1, evaluate__task=str(task_file)) == 0
    base, tuned = (load_file(tiny.folder("run") / name / WEIGHTS) for name in ("base", "adapted"))
    assert equal(tuned, tiny.weights("run")) and not equal(base, tuned)
    assert float(max((tuned[name] - value).abs().max() for name, value in base.items())) < 1.1e-3, "one step away"
    assert all(torch.isfinite(value).all() for value in base.values())


def test_what_cannot_be_finished_is_refused_before_anything_is_read(tiny: Any, tmp_path: Path) -> None:
    twice = {"task": "phantom", "data": str(tmp_path), "select": "test"}
    finish = {
        "interpolate_with": "base",
        "held_out": [twice, {"task": "phantm", "data": str(tmp_path / "nowhere")}, {**twice, "select": None}],
    }
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(tiny.recipe), [f"finish={json.dumps(finish)}"])
    said = str(caught.value)
    assert "nothing to interpolate with" in said and "no folder or tar" in said and "did you mean phantom?" in said
    assert "select and split are both 'test'" in said and "two tasks are called 'phantom'" in said
    with pytest.raises(ConfigError, match="alpha is chosen by how images meet texts"):
        load_recipe(str(tiny.recipe), ["finish={interpolate_with: start}", "model.text=null"])


@pytest.mark.parametrize(
    ("held", "words"),
    [({"split": "nobody"}, "no study in split 'nobody'"), ({"task": "ubench_modality"}, "the shards have no label")],
)
def test_what_could_not_be_scored_at_the_end_is_refused_before_training(
    tiny: Any, task_file: Path, more_shards: Path, held: dict[str, str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"task": str(task_file), "name": "far", "data": str(more_shards), **held}
    finish = {"interpolate_with": "start", "held_out": [one]}
    assert tiny("run", finish=finish, evaluate__task=str(task_file)) == 1
    assert words in capsys.readouterr().err
    assert not tiny.folder("run").exists()


def test_a_smoke_run_finishes_too_but_tries_one_alpha(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").touch()  # a folder that stands for a release
    asked = f'finish={{"interpolate_with": "base", "held_out": [{{"data": "{tmp_path}", "task": "phantom"}}]}}'
    recipe = load_recipe(str(tiny.recipe), [asked, f"model.init={tmp_path}"])
    small = smoke(recipe).finish
    assert small is not None and recipe.finish is not None
    assert (small.interpolate_with, small.alphas, small.max_studies) == ("base", (0.5,), 8)
    assert small.held_out == recipe.finish.held_out


@pytest.mark.full
def test_ranks_wait_while_the_first_one_merges(runs: Any, more_shards: Path, other_task: Path) -> None:
    changes = adapting(runs, more_shards, other_task) | {"train__steps": 3, "train__devices": 2, "train__batch_size": 2}
    assert runs("ranks", **changes) == 0
    assert list(interpolated(runs.folder("ranks"))) == ["made_up", "elsewhere"]
    assert {p.name for p in runs.folder("ranks").iterdir()} >= {"base", "adapted", "release", "results", "report.html"}
