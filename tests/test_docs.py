"""Every code block of docs/ runs, page by page, and the sbatch template does what the page says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.test_readme import blocks, run

REPO = Path(__file__).resolve().parents[1]
PAGES = sorted((REPO / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_are_well_formed_and_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    blocks(text)
    for link in (part.partition(")")[0] for part in text.split("](")[1:]):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_every_objective_is_in_the_table_with_its_options() -> None:
    from pretrain.schema_objectives import OBJECTIVE_OPTIONS, ViewOptions

    lines = (REPO / "docs" / "objectives.md").read_text(encoding="utf-8").splitlines()
    rows = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
    assert rows.keys() == OBJECTIVE_OPTIONS.keys()
    for name, options in OBJECTIVE_OPTIONS.items():
        told = set(options.model_fields) - set(ViewOptions.model_fields)
        assert not [key for key in told if f"`{key}`" not in rows[name]], name


@pytest.mark.full
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_run(page: Path, tmp_path: Path) -> None:
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.mark != "skip":
            run(block, tmp_path)


def template() -> str:
    """The sbatch script of docs/cluster.md."""
    found = blocks((REPO / "docs" / "cluster.md").read_text(encoding="utf-8"))
    (script,) = [block.code for block in found if "#SBATCH" in block.code]
    return script


def test_the_template_is_bash_and_signals_the_ranks_in_time(tmp_path: Path) -> None:
    subprocess.run(["bash", "-n"], input=template(), text=True, check=True)
    wanted = next(line for line in template().splitlines() if line.startswith("#SBATCH --signal="))
    assert wanted.split()[1] == "--signal=USR1@120", "to the ranks, whose handler pretrain.callbacks.preemption sets"


# What srun does, as far as a rank can tell: one process a task, the variables of a step, its exit code the highest.
SRUN = """#!/usr/bin/env bash
while [ "${1#--}" != "$1" ]; do shift; done
export SLURM_STEP_NUM_TASKS=$SLURM_NTASKS SLURM_NODEID=0
pids=()
for rank in $(seq 0 $((SLURM_NTASKS - 1))); do
  SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & pids+=($!)
done
echo "${pids[@]}" > ranks
code=0
for pid in "${pids[@]}"; do wait "$pid"; status=$?; [ $status -gt $code ] && code=$status; done
exit $code
"""


@pytest.mark.full
def test_the_template_requeues_and_resumes(tmp_path: Path) -> None:
    tools, venv = tmp_path / "bin", tmp_path / ".venv" / "bin"
    for file, text in (
        (tools / "srun", SRUN),
        (tools / "scontrol", '#!/usr/bin/env bash\necho "$@" >> requeued\n'),
        (venv / "python", f'#!/usr/bin/env bash\nexec "{sys.executable}" "$@"\n'),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    script = tmp_path / "voxclip.sbatch"
    script.write_text(template())
    environment = dict(os.environ, PATH=f"{tools}:{os.environ['PATH']}", PYTHONPATH=str(REPO), SLURM_PROCID="0")
    environment |= {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "voxclip", "SLURM_CPUS_PER_TASK": "1"}
    environment |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"}
    words = ["--config", "ct3d.yaml", "--smoke", "--data.cache", "cache", "--evaluate.task", "null"]
    words += ["--train.steps", "2000", "--checkpoint.every_steps", "2000"]
    metrics = tmp_path / "runs" / "voxclip-4711" / "metrics.csv"

    def job() -> subprocess.Popen[bytes]:
        return subprocess.Popen(["bash", script, *words], cwd=tmp_path, env=environment)

    def steps() -> list[int]:
        lines = metrics.read_text().splitlines()[1:] if metrics.is_file() else []
        return [int(line.partition(",")[0]) for line in lines]

    for restart in (1, 2):
        before, first = max(steps(), default=0), job()
        while max(steps(), default=0) <= before:
            assert first.poll() is None, "the job ended by itself"
            time.sleep(0.1)
        for pid in (tmp_path / "ranks").read_text().split():
            os.kill(int(pid), signal.SIGUSR1)
        assert first.wait(timeout=300) == 143
        assert (tmp_path / "requeued").read_text().split("\n") == ["requeue 4711"] * restart + [""]
        assert (tmp_path / "runs" / "voxclip-4711" / "checkpoints" / "last").exists()
    assert len(list((tmp_path / "runs").iterdir())) == 1, "the second start went on with the run of the first"
