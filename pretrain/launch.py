"""Starts one process a rank on this machine and passes signals on.

Lightning's own launcher kills every process with SIGKILL as soon as one ends with a code other than 0, and 143 is what
a run that was asked to stop ends with. SLURM (`srun`) and torchrun start the ranks themselves; then this file only says
who is who.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from types import FrameType

GRACE = 120.0  # seconds the other ranks have, once one has ended, before they are killed
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PARENT = "VOXCLIP_LAUNCHER"  # process id of the launcher, told to its ranks
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def by_slurm() -> bool:
    """Whether `srun` started several ranks. A batch script has SLURM_PROCID and SLURM_NTASKS as well; only srun sets
    this."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def needed(devices: int) -> bool:
    """Whether this process has to start the ranks."""
    return devices > 1 and alone()


def alone() -> bool:
    """Whether no launcher started this process: it is the only one so far."""
    return not (by_slurm() or by_torchrun() or "LOCAL_RANK" in os.environ)


def rank() -> int:
    """This process's rank, before any process group exists."""
    names = ("SLURM_PROCID",) if by_slurm() and not by_torchrun() else ("RANK", "LOCAL_RANK")
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


def run_ranks(devices: int, argv: list[str], environment: dict[str, str]) -> int:
    """Run `python -m pretrain.fit argv` once per rank and wait; returns the first exit code that is not 0."""
    port = os.environ.get("MASTER_PORT") or str(_free_port())
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(devices), "NODE_RANK": "0"}
    shared[PARENT] = str(os.getpid())
    ranks: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        early.append(number)
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        for r in range(devices):
            command = [sys.executable, "-m", "pretrain.fit", *argv]
            own = {"LOCAL_RANK": str(r), "RANK": str(r)}
            # A session of their own: a Ctrl-C in the terminal reaches the ranks once, through `forward`.
            ranks.append(subprocess.Popen(command, env=os.environ | environment | shared | own, start_new_session=True))
            if early:  # asked to stop between two starts; SIGTERM, because a second SIGINT would end the rank at once
                ranks[-1].send_signal(signal.SIGTERM if early[-1] == signal.SIGINT else early[-1])
        return _wait(ranks)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow_launcher() -> None:
    """Ask the kernel to stop this rank as SIGTERM does when its launcher dies: ranks without one would train on,
    unseen, in a folder that a resumed run writes to as well."""
    parent = os.environ.get(PARENT)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != int(parent):  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)


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
