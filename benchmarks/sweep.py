"""Comparisons of recipes over seeds: every run a process, cached, resumable.

    python -m benchmarks.sweep NAME [--out DIR] [--parallel N] [--rates LR LR LR] [--key.sub VALUE ...]

A run's folder is named after arm, seed and a hash of its resolved recipe and of the code. A finished one is not
repeated, one that was stopped goes on, and one of other code or another recipe is left alone. Where a comparison has a
budget in seconds, steps are timed first (benchmarks.budget), and of two arms the one with more steps runs again with
as many as the other. Numbers come from the per-study scores that each run leaves (benchmarks.sweep_summary).

Runs keep their releases and training states, 150 to 300 MB each: a comparison of systems leaves up to 12 GB. What
summaries and probes read are `results`, `tensorboard`, `release` and the scores in `checkpoints`; the folders
`checkpoints/step-*` may go once all is done.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from benchmarks.arms import Sweep
from benchmarks.budget import step_budget
from benchmarks.comparisons import SWEEPS
from pretrain.config import dump, load_recipe, split_argv
from pretrain.errors import ConfigError

REPO = Path(__file__).resolve().parents[1]
PACKAGES = ("data_shards", "encoders", "pretrain", "eval_zero_shot")
STOPPED = 143


@dataclass(frozen=True)
class Job:
    """One run: `arm` with `seed` at learning rate `rate` (None: the recipe's), in folder `root/name`."""

    arm: str
    seed: int
    rate: float | None
    config: str
    overrides: tuple[str, ...]
    smoke: bool
    root: Path
    name: str

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @property
    def done(self) -> bool:
        """The last thing a run writes are its results, whole or not at all."""
        return (self.folder / "results" / "results.json").is_file()

    @property
    def command(self) -> list[str]:
        fit = [sys.executable, "-m", "pretrain.fit"]
        if (self.folder / "recipe.yaml").is_file():
            return [*fit, "--resume", str(self.folder)]
        words = [word for item in self.overrides for word in ("--" + item.partition("=")[0], item.partition("=")[2])]
        words += ["--output.root", str(self.root), "--output.run", self.name]
        return [*fit, "--config", self.config, *(["--smoke"] if self.smoke else []), *words]


def code_hash(root: Path = REPO) -> str:
    """sha256 of what the four packages do: syntax trees without comments and docstrings, and their data files."""
    sha = hashlib.sha256()
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*")):
            if file.suffix not in (".py", ".yaml", ".txt") or not file.is_file():
                continue
            text = file.read_text(encoding="utf-8")
            sha.update(f"{file.relative_to(root)}\0{_bare(text) if file.suffix == '.py' else text}\0".encode())
    return sha.hexdigest()


def _bare(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                node.body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    return ast.dump(tree)


def make_job(
    sweep: Sweep, arm: str, seed: int, rate: float | None, extra: Sequence[str], smoke: bool, root: Path, code: str,
    steps: int | None = None,
) -> Job:  # fmt: skip
    """Name a run after what determines it. The arm's own overrides come after those of all arms: they make it that arm.

    Raises:
        ConfigError: the recipe or an override is wrong.
    """
    rates = () if rate is None else (f"optim.lr={rate!r}",)
    config = sweep.arms[arm].config
    overrides = (*sweep.common, *extra, *sweep.arms[arm].overrides, *rates, f"seed={seed}")
    recipe = load_recipe(config, overrides, smoke=smoke)
    if steps is not None:
        warmup = min(recipe.optim.warmup_steps, steps // 6)  # or short runs would never reach their rate
        overrides = (*overrides, f"train.steps={steps}", f"optim.warmup_steps={warmup}")
        recipe = load_recipe(config, overrides, smoke=smoke)
    identity = hashlib.sha256(f"{dump(recipe)}\0{code}".encode()).hexdigest()[:10]
    label = ("" if rate is None else f"-lr{rate:g}") + ("" if steps is None else f"-{steps}")
    return Job(arm, seed, rate, config, overrides, smoke, root, f"{arm}{label}-s{seed}-{identity}")


class Runner:
    """Runs jobs, some at a time. A signal is handed on to them: they save, and the next call goes on from there."""

    def __init__(self, parallel: int, code: str) -> None:
        self.parallel, self.code = parallel, code
        self.threads = max(1, cores() // parallel)
        self.stopped = False
        self._running: list[tuple[Job, subprocess.Popen[bytes], float]] = []

    def run(self, jobs: Sequence[Job]) -> list[Job]:
        """Bring every job to its end; returns those that failed.

        Raises:
            ConfigError: the code was edited meanwhile: later runs would be of another program under the same name.
        """
        once = {job.name: job for job in jobs}  # arms "at the steps of" two others may be the same
        waiting = [job for job in once.values() if not job.done]
        print(f"{len(once) - len(waiting)} of {len(once)} runs are done already", flush=True)
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        failed: list[Job] = []
        total = len(waiting)
        try:
            while self._running or (waiting and not self.stopped):
                while waiting and len(self._running) < self.parallel and not self.stopped:
                    self._start(waiting.pop(0))
                failed += self._collect(total, len(waiting))
                time.sleep(0.2)
        finally:
            for _, process, _ in self._running:
                process.terminate()
            for _, process, _ in self._running:
                process.wait()
            for number, handler in before.items():
                signal.signal(number, handler)
        return failed

    def _start(self, job: Job) -> None:
        if code_hash() != self.code:
            raise ConfigError(
                "the code was edited while the sweep ran",
                why="runs of two programs would be averaged",
                fix="start the sweep again; runs of the old code are left alone",
            )
        logs = job.root / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        with (logs / f"{job.name}.log").open("ab") as log:
            # A session of its own: Ctrl-C reaches it once, through `_stop`.
            process = subprocess.Popen(job.command, stdout=log, stderr=log, env=environment, start_new_session=True)
        print(f"{'goes on' if '--resume' in job.command else 'starts'}: {job.name}", flush=True)
        self._running.append((job, process, time.monotonic()))

    def _collect(self, total: int, waiting: int) -> list[Job]:
        failed = []
        for item in list(self._running):
            job, process, began = item
            if process.poll() is None:
                continue
            self._running.remove(item)
            ok = process.returncode == 0 and job.done
            if not ok and not self.stopped:
                failed.append(job)
            count = total - waiting - len(self._running)
            state = "done" if ok else "stopped" if self.stopped else f"FAILED ({process.returncode}), see its log"
            print(f"[{count}/{total}] {job.name}: {state} after {time.monotonic() - began:.0f} s", flush=True)
        return failed

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        for _, process, _ in self._running:
            process.terminate()


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def validation_score(job: Job) -> float:
    """The best macro AUROC a run had on the selection split; -1 where no finding has both classes.

    Raises:
        ConfigError: it has no such scores: a rate would be chosen without them.
    """
    file = job.folder / "checkpoints" / "scores.json"
    if not file.is_file():
        raise ConfigError(
            f"{job.name} has no checkpoints/scores.json: its studies have no split to choose by, or it was deleted",
            why="a learning rate would be chosen without its score",
            fix="give one rate (--rates), or delete the run's folder, and it is trained again",
        )
    return max(json.loads(file.read_text()).values(), default=-1.0)


def sweep_runs(sweep: Sweep, args: argparse.Namespace, extra: Sequence[str]) -> dict[str, list[Job]] | int:
    """All runs of a sweep by arm, or the exit code where they did not come to their end.

    With several learning rates, seed 0 of every arm is trained at each, and the rate with the best score on the
    selection split serves that arm's other seeds. Test studies have no part in the choice.
    """
    code, root = code_hash(), Path(args.out)
    runner = Runner(args.parallel, code)
    seconds = None if args.smoke or args.steps else sweep.seconds
    budget: dict[str, int | None] = dict.fromkeys(sweep.arms, args.steps)

    def job(arm: str, seed: int, rate: float | None, steps: int | None = None) -> Job:
        return make_job(sweep, arm, seed, rate, extra, args.smoke, root, code, steps or budget[arm])

    def go(arms: dict[str, list[Job]]) -> int:
        turns = itertools.zip_longest(*arms.values())  # arms take turns, seed by seed
        failed = runner.run([j for seed in turns for j in seed if j is not None])
        if runner.stopped:
            print("stopped; the same command goes on")
            return STOPPED
        if failed:
            print(f"error: {len(failed)} runs failed: {', '.join(j.name for j in failed)}", file=sys.stderr)
        return int(bool(failed))

    systems = [arm for arm, its in sweep.arms.items() if its.like is None]
    if seconds is not None:
        budget |= step_budget({arm: job(arm, 0, None) for arm in systems}, seconds, root, code)
    sweep = sweep.only(args.arms or list(sweep.arms))
    systems = [arm for arm in systems if arm in sweep.arms]
    rates = {arm: args.rates or list(sweep.arms[arm].rates or sweep.rates) or [None] for arm in systems}
    trials = {arm: [job(arm, 0, rate) for rate in rates[arm]] for arm in systems}
    if any(len(some) > 1 for some in rates.values()) and (status := go(trials)):
        return status
    rate_of = {arm: max(jobs, key=validation_score).rate if jobs[1:] else jobs[0].rate for arm, jobs in trials.items()}
    for arm, its in sweep.arms.items():
        if its.like is not None:
            budget[arm], rate_of[arm] = budget[its.like], rate_of[its.like]
    arms = {
        arm: [job(arm, s, rate_of[arm]) for s in range(min(args.seeds, its.seeds or args.seeds))]
        for arm, its in sweep.arms.items()
    }
    if status := go(arms):
        return status
    for pair in sweep.differences if seconds is not None else ():
        fewer, more = sorted(pair, key=lambda arm: budget[arm] or 0)
        if budget[fewer] != budget[more]:
            both = min(len(arms[fewer]), len(arms[more]))
            again = [job(more, s, rate_of[more], budget[fewer]) for s in range(both)]
            arms[at_steps_of(more, fewer)] = again
    return go(arms) or arms


def at_steps_of(arm: str, other: str) -> str:
    """Name of an arm that was run once more, for as many steps as another had."""
    return f"{arm} at the steps of {other}"


def differences_of(sweep: Sweep, arms: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of a sweep that were run, and those at equal steps."""
    pairs = [pair for pair in sweep.differences if set(pair) <= set(arms)]
    for a, b in sweep.differences:
        pairs += [(x, y) for x, y in ((at_steps_of(a, b), b), (a, at_steps_of(b, a))) if {x, y} <= set(arms)]
    return pairs


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, 1 with the reason on stderr, or 143 when stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep", description=(__doc__ or "").splitlines()[0], allow_abbrev=False,
        epilog="Further --key.sub VALUE change the recipe of every arm.",
    )  # fmt: skip
    add = parser.add_argument
    add("name", choices=sorted(SWEEPS), metavar="NAME", help=", ".join(SWEEPS))
    add("--out", metavar="DIR", help="folder of the runs and of summary.json (default: runs/sweeps/NAME)")
    add("--parallel", type=int, default=1, metavar="N", help="runs at a time; the cores are shared out (default: 1)")
    add("--arms", nargs="+", metavar="ARM", help="these arms alone, with the steps that were timed beside all others")
    add("--seeds", type=int, metavar="N", help="seeds of each arm (default: the comparison's own)")
    add("--steps", type=int, metavar="N", help="optimiser steps of every arm (default: the budget's, or the recipe's)")
    add(
        "--rates",
        type=float,
        nargs="+",
        metavar="LR",
        help="learning rates each arm chooses from, on seed 0 (default: the comparison's own)",
    )
    add("--smoke", action="store_true", help="two steps on a handful of studies: does everything work?")
    args, rest = parser.parse_known_args(argv)
    sweep = SWEEPS[args.name]
    args.out, args.seeds = args.out or f"runs/sweeps/{args.name}", args.seeds or sweep.seeds
    unknown = sorted(set(args.arms or ()) - set(sweep.arms))
    if unknown:
        parser.error(f"--arms: {', '.join(unknown)} is none of {', '.join(sweep.arms)}")
    if args.parallel < 1 or args.seeds < 1:
        parser.error("--parallel and --seeds must be at least 1")
    try:
        extra = split_argv(rest).overrides
        runs = sweep_runs(sweep, args, extra)
        if isinstance(runs, int):
            return runs
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    from benchmarks.sweep_summary import markdown, summarise, write

    folders = {arm: [j.folder for j in jobs] for arm, jobs in runs.items()}
    summary = summarise(folders, differences_of(sweep, list(runs)), systems=sweep.systems)
    print(markdown(summary))
    print(f"wrote {write(Path(args.out), summary)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
