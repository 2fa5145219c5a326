"""A budget in steps: T seconds over the median step time of an arm, all arms timed in turns on the same machine.

Comparing systems by the clock alone would let the noise of a shared machine decide who trains longer. So steps are
timed once, in `budget.json` beside the runs, and the runs have that many steps however long they then take.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.sweep_summary import loss_clock
from pretrain.errors import ConfigError

if TYPE_CHECKING:
    from benchmarks.sweep import Job

STEPS, ROUNDS = 11, 3  # of a timing run; the first step is not counted


def step_budget(jobs: Mapping[str, Job], seconds: float, root: Path, code: str) -> dict[str, int]:
    """Steps of each arm in `seconds` of training on all cores, at least 2.

    Measured once for a code and its recipes: the steps name the runs, so they must not change on the way.

    Raises:
        ConfigError: a timing run failed; its log says why.
    """
    file = root / "budget.json"
    names = "\0".join(job.name for job in jobs.values())
    identity = hashlib.sha256(f"{code}\0{names}".encode()).hexdigest()
    known = json.loads(file.read_text()) if file.is_file() else {}
    if known.get("identity") != identity:
        found: dict[str, list[float]] = {arm: [] for arm in jobs}
        for turn in range(ROUNDS):
            for arm, job in jobs.items():  # in turns: a machine that slows down slows all of them
                found[arm].append(_timed(job, root / "timing" / f"{identity[:10]}-{turn}-{job.name}"))
                print(f"timed: {arm}, {found[arm][-1]:.2f} s a step ({turn + 1} of {ROUNDS})", flush=True)
        known = {"identity": identity, "step_seconds": found}
        root.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(".budget.json")
        temporary.write_text(json.dumps(known, indent=1) + "\n")
        os.replace(temporary, file)
    medians = {arm: statistics.median(times) for arm, times in known["step_seconds"].items()}
    return {arm: max(2, round(seconds / median)) for arm, median in medians.items()}


def _timed(job: Job, folder: Path) -> float:
    """Mean seconds a step of a short run of a job, the first step and the scores left out."""
    if not (folder / "release").is_dir():
        shutil.rmtree(folder, ignore_errors=True)  # of one that was stopped
        folder.parent.mkdir(parents=True, exist_ok=True)
        words = [word for item in job.overrides for word in ("--" + item.partition("=")[0], item.partition("=")[2])]
        words += ["--train.steps", str(STEPS), "--optim.warmup_steps", "0", "--evaluate.task", "null"]
        words += ["--output.root", str(folder.parent), "--output.run", folder.name]
        log = folder.with_suffix(".log")
        with log.open("wb") as out:
            command = [sys.executable, "-m", "pretrain.fit", "--config", job.config, *words]
            done = subprocess.run(command, stdout=out, stderr=out, check=False)
        if done.returncode:
            raise ConfigError(
                f"timing {job.arm} ended with {done.returncode}",
                why="its steps in the budget would be a guess",
                fix=f"see {log}",
            )
    clock = loss_clock(folder)
    (first, began), (last, ended) = clock[0], clock[-1]
    return (ended - began) / (last - first)
