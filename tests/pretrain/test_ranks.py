"""Several ranks train like one, stop like one, and go on like one. Real processes throughout."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pretrain.two_ranks import ranks_and_one

# Studies of plugins/two_ranks.py with one patient (1, 3) or one text of a kind; studies 2 to 4 are on the other rank.
RELATED = {"report": [(0, 1), (1, 3), (2, 4)], "sentence": [(0, 2), (0, 4), (1, 3), (2, 4)]}
TWO = {"train__devices": 2}
PATIENCE = 500  # seconds; only ever waited for where something hangs


def children(parent: int) -> list[int]:
    """Processes that `parent` has started, oldest first."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                found.append(int(entry.name))
    return sorted(found)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"ended too early, with code {process.poll()}:\n{process.communicate()[0]}")
        time.sleep(0.02)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        said = process.communicate(timeout=PATIENCE)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        for rank in children(process.pid):
            os.kill(rank, signal.SIGKILL)
        pytest.fail("it hangs")
    return process.returncode, said


def test_two_ranks_have_the_gradients_of_one_process(tiny: Any, tmp_path: Path) -> None:
    """3 and 5 texts, 2 and 3 studies, a sentence and a patient that both ranks have; through the whole model."""
    first, second, one = ranks_and_one("two_ranks", tiny.recipe, tmp_path)
    for a, b, whole in zip(first, second, one, strict=True):
        # Where tokens stay on their rank, each has the loss of its own images, times the number of ranks.
        torch.testing.assert_close((a["loss"] + b["loss"]) / 2, whole["loss"])
        assert a["gradients"].keys() == whole["gradients"].keys()
        for name, gradient in whole["gradients"].items():
            assert torch.equal(a["gradients"][name], b["gradients"][name])
            # Sums of other orders; where centring cancels terms of size 1, what stays is their rounding.
            rounding = 1e-4 + 2e-5 * float(gradient.abs().max())
            torch.testing.assert_close(a["gradients"][name], gradient, rtol=1e-3, atol=rounding, msg=name)
        for kind, pairs in RELATED.items():
            want = torch.eye(5, dtype=torch.bool)
            for i, j in pairs:
                want[i, j] = want[j, i] = True
            for ranks in (a, b, whole):
                assert torch.equal(ranks["related"][kind], want)


@pytest.fixture(scope="module")
def recipe(make_fit: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, task_file: Path) -> Any:
    """Everything that can differ between ranks is on: token dropout, jitter, accumulation, averages, centring."""
    return make_fit(
        tmp_path_factory.mktemp("ranks"),
        objectives=[{"name": "trouble:Trouble"}, {"name": "sentence"}, {"name": "contrastive", "weight": 0.5}],
        model={"centred": True},
        optim={"accumulate": 2, "ema_decay": 0.5},
        train={"steps": 12, "batch_size": 2},
        evaluate={"task": str(task_file), "every_steps": 5, "final": False},
        checkpoint={"every_steps": 3},
    )


@pytest.fixture(scope="module")
def whole(recipe: Any) -> Any:
    """Two ranks that nothing disturbs."""
    code, said = finish(recipe.start("whole", **TWO))
    assert code == 0, said
    return recipe


@pytest.mark.full
@pytest.mark.parametrize(("number", "who"), [(signal.SIGTERM, 0), (signal.SIGTERM, 1), (signal.SIGINT, None)])
def test_a_signal_to_one_rank_stops_all_and_they_go_on_bit_for_bit(
    whole: Any, equal: Any, number: signal.Signals, who: int | None
) -> None:
    """To rank 0, to rank 1, or (None) to the command that started them."""
    name = f"{number.name}-{who}"
    process = whole.start(name, **TWO, data__workers=1 if who == 0 else 0)
    wait_for(lambda: (whole.folder(name) / "checkpoints" / "step-00000003").exists(), process)
    ranks = children(process.pid)
    assert len(ranks) == 2
    os.kill(process.pid if who is None else ranks[who], number)
    code, said = finish(process)
    assert code == 143, said
    assert said.count("stopped after step") == 1
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    steps = int(whole.checkpoint(name).name.removeprefix("step-"))
    assert 3 <= steps < 12 and f"stopped after step {steps};" in said

    code, said = finish(whole.process(["--resume", str(whole.folder(name))]))
    assert code == 0, said
    assert equal(whole.weights(name), whole.weights("whole"))
    assert whole.metrics(name) == whole.metrics("whole")


@pytest.mark.full
def test_a_run_of_two_ranks_goes_on_in_one_where_the_batch_is_the_same(whole: Any) -> None:
    same = {"model__image__token_dropout": 0.0}  # each rank draws its own
    code, said = finish(whole.start("wide", **TWO, **same))
    assert code == 0, said
    process = whole.start("narrow", **TWO, **same)
    wait_for(lambda: (whole.folder("narrow") / "checkpoints" / "step-00000003").exists(), process)
    os.kill(children(process.pid)[0], signal.SIGTERM)
    assert finish(process)[0] == 143
    recipe = whole.folder("narrow") / "recipe.yaml"
    text = recipe.read_text()
    recipe.write_text(text.replace("devices: 2", "devices: 1"))
    code, said = finish(whole.process(["--resume", str(whole.folder("narrow"))]))
    assert code == 1 and "train.batch_size x train.devices 2 x 2 = 4 -> 2 x 1 = 2" in said
    recipe.write_text(text.replace("devices: 2", "devices: 1").replace("batch_size: 2", "batch_size: 4"))
    code, said = finish(whole.process(["--resume", str(whole.folder("narrow"))]))
    assert code == 0, said
    assert "resumed on 1 rank instead of 2: the global batch is still 4, so the same samples follow, 4 a rank" in said
    assert_close(whole.metrics("narrow"), whole.metrics("wide"), 1e-3)


@pytest.mark.full
def test_killed_ranks_go_on_bit_for_bit(whole: Any, equal: Any) -> None:
    process = whole.start("killed", **TWO)
    wait_for(lambda: (whole.folder("killed") / "checkpoints" / "step-00000006").exists(), process)
    for victim in (process.pid, *children(process.pid)):
        os.kill(victim, signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL
    assert not (whole.folder("killed") / "release").exists()
    code, said = finish(whole.process(["--resume", str(whole.folder("killed"))]))
    assert code == 0, said
    assert equal(whole.weights("killed"), whole.weights("whole"))
    assert whole.metrics("killed") == whole.metrics("whole")


@pytest.mark.full
def test_ranks_stop_when_their_launcher_is_killed(whole: Any) -> None:
    """Otherwise they would train on, and write where the resumed run writes."""
    process = whole.start("orphans", **TWO)
    wait_for(lambda: (whole.folder("orphans") / "checkpoints" / "step-00000003").exists(), process)
    ranks = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while any(alive(rank) for rank in ranks):
        assert time.monotonic() < deadline, "the ranks live on"
        time.sleep(0.05)
    assert not (whole.folder("orphans") / "release").exists()


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.full
def test_two_ranks_train_like_one_with_twice_the_batch(whole: Any, plugins: None) -> None:
    same = {"model__image__token_dropout": 0.0, "evaluate__every_steps": 1, "train__steps": 6}
    code, said = finish(whole.start("ddp", **TWO, **same))
    assert code == 0, said
    assert whole("alone", **same, train__batch_size=4) == 0
    assert_close(whole.metrics("ddp"), whole.metrics("alone"), 1e-3)


@pytest.mark.full
def test_sharded_weights_train_like_whole_ones(whole: Any, equal: Any) -> None:
    from encoders import load

    same = {"model__image__token_dropout": 0.0, "evaluate__every_steps": 1, "train__steps": 6}
    if not whole.folder("ddp").exists():
        assert finish(whole.start("ddp", **TWO, **same))[0] == 0
    code, said = finish(whole.start("fsdp2", **TWO, **same, train__strategy="fsdp2"))
    assert code == 0, said
    # Adam divides by the gradient's size, so rounding of small gradients grows from step to step.
    assert_close(whole.metrics("fsdp2"), whole.metrics("ddp"), 1e-5, steps=3)
    assert_close(whole.metrics("fsdp2"), whole.metrics("ddp"), 1e-4)
    for name, value in whole.weights("ddp").items():
        torch.testing.assert_close(whole.weights("fsdp2")[name], value, rtol=1e-3, atol=2e-5, msg=name)
    released = load(whole.folder("fsdp2") / "release")
    assert released.model.encode_image(torch.zeros(1, 1, 16, 32, 32)).study_BD.shape == (1, 16)


@pytest.mark.full
def test_sharded_weights_are_resumed_bit_for_bit(whole: Any, equal: Any) -> None:
    sharded = {**TWO, "train__strategy": "fsdp2"}
    code, said = finish(whole.start("sharded", **sharded))
    assert code == 0, said
    process = whole.start("sharded-stopped", **sharded)
    wait_for(lambda: (whole.folder("sharded-stopped") / "checkpoints" / "step-00000003").exists(), process)
    os.kill(children(process.pid)[1], signal.SIGTERM)
    assert finish(process)[0] == 143
    code, said = finish(whole.process(["--resume", str(whole.folder("sharded-stopped"))]))
    assert code == 0, said
    assert equal(whole.weights("sharded-stopped"), whole.weights("sharded"))
    assert whole.metrics("sharded-stopped") == whole.metrics("sharded")


@pytest.mark.full
def test_a_loss_that_is_not_finite_on_one_rank_is_refused_by_all(whole: Any) -> None:
    trouble = {"TROUBLE": '{"nan_at": [3], "only_rank": 1}'}
    code, said = finish(whole.start("nan", trouble, **TWO, train__steps=3))
    assert code == 0, said
    assert said.count("warning: step 2: loss or gradient is not finite") == 2  # each rank names its studies
    assert [row for row in whole.metrics("nan") if ",refused," in row][-1] == "3,refused,1"
    code, said = finish(whole.start("stop", trouble, **TWO, train__nonfinite="stop"))
    assert code == 1
    assert said.count("error: step 2: loss or gradient is not finite") == 2


def assert_close(ours: list[str], theirs: list[str], tolerance: float, steps: int = 99) -> None:
    """metrics.csv, row by row, of the first steps."""
    assert len(ours) == len(theirs) > 50
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        (*where, x), (*place, y) = a.split(","), b.split(",")
        assert where == place
        # A text that both ranks read is two texts there and one text here.
        if int(where[0]) <= steps and not where[1].startswith(("select/", "text/")):
            assert float(x) == pytest.approx(float(y), rel=tolerance), where
