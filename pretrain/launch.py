"""Starts one process a rank on this machine and passes signals on.

Lightning's own launcher kills every process with SIGKILL as soon as one ends with a code other than 0, and 143 is what a run
that was asked to stop ends with. SLURM (`srun`) and torchrun start the ranks themselves; then this file does nothing.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from types import FrameType

STARTED_OUTSIDE = ("LOCAL_RANK", "SLURM_PROCID", "TORCHELASTIC_RUN_ID")
GRACE = 120.0  # seconds the other ranks have, once one has ended, before they are killed
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def needed(devices: int) -> bool:
    """Whether this process has to start the ranks."""
    return devices > 1 and not any(name in os.environ for name in STARTED_OUTSIDE)


def run_ranks(devices: int, argv: list[str], environment: dict[str, str]) -> int:
    """Run `python -m pretrain.fit argv` once per rank and wait; returns the first exit code that is not 0."""
    port = os.environ.get("MASTER_PORT") or str(_free_port())
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(devices), "NODE_RANK": "0"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "pretrain.fit", *argv],
            env=os.environ | environment | shared | {"LOCAL_RANK": str(r), "RANK": str(r)},
            start_new_session=True,  # a Ctrl-C in the terminal reaches the ranks once, through `forward`
        )
        for r in range(devices)
    ]

    def forward(number: int, frame: FrameType | None) -> None:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    for number in SIGNALS:
        signal.signal(number, forward)
    return _wait(ranks)


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    deadline = None
    while any(process.poll() is None for process in ranks):
        ended = [process for process in ranks if process.poll() is not None]
        if deadline is None and any(process.returncode != 0 for process in ended):
            deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            for process in ranks:
                process.kill()
        time.sleep(0.05)
    return next((p.returncode if p.returncode > 0 else 128 - p.returncode for p in ranks if p.returncode), 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
