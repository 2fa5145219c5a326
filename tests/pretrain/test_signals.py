"""A run in a process of its own: killed, asked to stop with all its workers, watched on a terminal."""

from __future__ import annotations

import os
import pty
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 500  # seconds; only ever waited for where something hangs
STEPS = 30


@pytest.fixture(scope="module")
def runs(make_fit: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, task_file: Path) -> Any:
    """Thirty steps, a checkpoint every third, and one of them undisturbed."""
    made = make_fit(
        tmp_path_factory.mktemp("signals"),
        model={"centred": True},
        optim={"ema_decay": 0.9},
        train={"steps": STEPS},
        evaluate={"task": str(task_file), "every_steps": 10},
        checkpoint={"every_steps": 3},
    )
    assert made("whole") == 0
    return made


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        said = process.communicate(timeout=PATIENCE)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("it hangs")
    return process.returncode, said or ""


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"ended too early, with code {process.poll()}")
        time.sleep(0.01)


@pytest.mark.full
def test_a_run_killed_twice_goes_on_bit_for_bit(runs: Any, equal: Any) -> None:
    rng = random.Random(1)
    folder = runs.folder("killed")
    process = runs.start("killed", data__workers=2)
    for step in (6, 15):
        wait_for(folder / "checkpoints" / f"step-{step:08d}", process)
        time.sleep(rng.uniform(0.0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        assert finish(process)[0] == -signal.SIGKILL
        assert not (folder / "release").exists()
        process = runs.process(["--resume", str(folder)])
    code, said = finish(process)
    assert code == 0, said
    assert equal(runs.weights("killed"), runs.weights("whole"))
    assert runs.metrics("killed") == runs.metrics("whole")


@pytest.mark.full
def test_a_signal_to_every_process_of_a_run_on_a_terminal(runs: Any, equal: Any, plugins: None) -> None:
    """As schedulers and Ctrl-C send it: the workers get it too, and must not take the checkpoint with them."""
    folder, screen = runs.folder("terminal"), bytearray()
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pretrain.fit", *runs.argv("terminal", data__workers=2)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "120", "LINES": "30"},
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    os.close(theirs)
    reader = threading.Thread(target=_read, args=(ours, screen))
    reader.start()
    wait_for(folder / "checkpoints" / "step-00000012", process)  # type: ignore[arg-type]
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(PATIENCE) == 143
    reader.join()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.decode())
    bars = [line for line in re.split(r"[\r\n]+", shown) if line.startswith("train ")]
    assert re.search(r"\b(\d+)/30\b.*loss \d+\.\d{3}.*volumes/s.*data wait +\d+%.*ETA \d+:\d\d", bars[-1]), bars[-1]
    assert "zero-shot AUROC 0." in bars[-1]
    assert "Traceback" not in shown and "killed by signal" not in shown
    assert "stopped after step" in shown

    assert runs.resume("terminal") == 0
    assert equal(runs.weights("terminal"), runs.weights("whole"))
    assert runs.metrics("terminal") == runs.metrics("whole")


def _read(terminal: int, screen: bytearray) -> None:
    while True:
        try:
            data = os.read(terminal, 4096)
        except OSError:  # the other end is closed
            data = b""
        if not data:
            os.close(terminal)
            return
        screen += data
