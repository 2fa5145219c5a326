"""One of our commands as its user starts it: a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence


def run_module(name: str, words: Sequence[str]) -> str:
    """`python -m name words`; what it printed. Ends this process with the last lines of an error where it fails."""
    done = subprocess.run([sys.executable, "-m", name, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout + done.stderr
