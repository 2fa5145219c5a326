"""Builds in processes that SIGKILL themselves: `python -m tests.data_shards.killed COUNT FIRST STEP ARG...`.

A step is what changes the disk: a rename, a sync, a removal, a new folder, or a study written to a shard. For each N
from FIRST by STEP, a child is killed just before its N-th step, the next one is killed at half of it, and the third
goes on to the end; its exit code is printed after N. Ends after COUNT moments, or when a build has less than N steps.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_shards.build import main
from data_shards.build_folder import work_folder
from data_shards.shard_write import ShardFile

STEPS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir")


def run(arguments: list[str], moment: int) -> int:
    """Run a build in a child that is killed before step `moment`; its exit code, -9 where it was killed."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = moment

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                Path(f"{arguments[3]}.children").write_text(Path(f"/proc/self/task/{os.getpid()}/children").read_text())
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return step

    if moment:
        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        ShardFile.add = counted(ShardFile.add)  # type: ignore[method-assign]
    os._exit(main(arguments))


def moments(count: int, first: int, step: int, arguments: list[str]) -> None:
    out = Path(arguments[3])
    for moment in range(first, first + count * step, step):
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(work_folder(out), ignore_errors=True)
        if run(arguments, moment) != -signal.SIGKILL:
            break
        again = run(arguments, 1 + moment // 2)
        assert again in (0, -signal.SIGKILL), again
        code = run(arguments, 0) if again else 0
        shutil.copytree(out, out.with_name(f"{out.name}-{moment}"))
        print("moment", moment, code, out.with_name(f".{out.name}.building").exists(), flush=True)


if __name__ == "__main__":
    assert sys.argv[4] == "--source" and sys.argv[6] == "--out"
    import blosc2  # noqa: F401 - once, not in every child
    import nibabel  # noqa: F401

    moments(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
