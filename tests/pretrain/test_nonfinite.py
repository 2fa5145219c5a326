"""A loss or gradient that is not finite never reaches the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_shards.shard_set import ShardSet


def test_a_refused_update_changes_nothing(
    troubled: Any, trouble: Callable[..., None], task_file: Path, equal: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {"evaluate__task": str(task_file), "evaluate__every_steps": 1, "checkpoint__keep_top": 9}
    for kind in ("loss", "gradient"):
        trouble(nan_at=[3], nan=kind)
        assert troubled(kind, train__steps=4, optim__ema_decay=0.5, **kept) == 0
        said = capsys.readouterr().err
        assert said.count("warning: step 3: loss or gradient is not finite") == 1
        folders = [troubled.checkpoint(kind, f"step-0000000{step}") for step in (2, 3)]
        before, after = (torch.load(folder / "trainer.ckpt", weights_only=True) for folder in folders)
        assert equal(before["trained"], after["trained"])
        assert equal(troubled.weights(kind, "step-00000002"), troubled.weights(kind, "step-00000003"))
        assert equal(before["objectives"], after["objectives"])
        for name, moments in before["optimizer"]["state"].items():
            assert equal(moments, after["optimizer"]["state"][name])
        assert (before["refused"], after["refused"], after["batches_done"]) == (0, 1, 3)
        assert not equal(troubled.weights(kind, "step-00000003"), troubled.weights(kind, "step-00000004"))
        assert "3,refused,1" in troubled.metrics(kind)


def test_the_studies_of_a_refused_step_are_named_by_key(
    troubled: Any, trouble: Callable[..., None], shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trouble(nan_at=[1])  # the first of the two batches of step 1
    assert troubled("run", optim__accumulate=2, train__steps=3) == 0
    line = next(line for line in capsys.readouterr().err.splitlines() if "Studies of this batch: " in line)
    keys = line.partition("Studies of this batch: ")[2].split(", ")
    known = set(ShardSet.open(shards).index.column("key").to_pylist())
    assert len(keys) == 8 and set(keys) <= known


def test_stop_ends_the_run_with_what_it_had(
    troubled: Any, trouble: Callable[..., None], equal: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert troubled("whole", train__steps=3) == 0
    trouble(nan_at=[4])
    assert troubled("run", train__steps=5, train__nonfinite="stop", checkpoint__every_steps=3) == 1
    said = capsys.readouterr().err
    assert "error: step 4: loss or gradient is not finite" in said
    assert "why:" in said and "lower optim.lr" in said and "study" in said
    assert troubled.checkpoint("run").name == "step-00000003"
    assert not (troubled.folder("run") / "release").exists()


def test_too_many_refused_updates_end_the_run(
    troubled: Any, trouble: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    trouble(nan_at=[1, 3, 4, 5])
    assert troubled("run", train__max_nonfinite=2) == 1
    said = capsys.readouterr().err
    assert said.count("warning: step") == 2
    assert "error: step 4: " in said and "(3 refused in all)" in said


def test_running_statistics_of_a_refused_step_are_put_back(
    make_fit: Any,
    tmp_path: Path,
    plugins: None,
    trouble: Callable[..., None],
    radiograph_data: dict[str, Any],
    equal: Any,
) -> None:  # fmt: skip
    """BatchNorm moves its statistics in the forward pass, before anybody knows that the loss is not finite."""
    runs = make_fit(
        tmp_path,
        data=radiograph_data,
        model={"image": {"name": "test_resnet", "image_size": 32}},
        objectives=[{"name": "trouble:Trouble"}, {"name": "contrastive"}],
    )
    assert runs("two", train__steps=2, optim__warmup_steps=0) == 0
    trouble(nan_at=[3])
    assert runs("three", train__steps=3, optim__warmup_steps=0, checkpoint__every_steps=1) == 0
    trained = runs.weights("three")
    statistics = [name for name in trained if "running_" in name]
    assert statistics and int(trained[next(n for n in trained if "num_batches_tracked" in n)]) == 2
    assert all(torch.equal(trained[n], runs.weights("two")[n]) for n in statistics)
    assert np.isfinite(trained[statistics[0]].numpy()).all()
