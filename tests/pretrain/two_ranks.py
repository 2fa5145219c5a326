"""Runs a plugin as two gloo ranks and as one process, and reads what each wrote."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

PATIENCE = 500  # seconds; only ever waited for where something hangs


def ranks_and_one(plugin: str, recipe: Path, folder: Path) -> tuple[Any, Any, Any]:
    """What ranks 0 and 1 and the one process of plugins/PLUGIN.py wrote into `folder`."""
    script, root = Path(__file__).with_name("plugins") / f"{plugin}.py", Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    parts = ("0", "1", "one")
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(recipe), str(folder), part],
            env=environment | {"PYTHONHASHSEED": str(seed)},  # sets of names have another order in each
        )
        for seed, part in enumerate(parts)
    ]
    assert [process.wait(PATIENCE) for process in processes] == [0, 0, 0]
    first, second, one = (torch.load(folder / f"{part}.pt", weights_only=True) for part in parts)
    return first, second, one
