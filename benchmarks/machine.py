"""What measured numbers depend on, in a line."""

from __future__ import annotations

import os
import platform


def machine() -> str:
    """Processor, cores, torch threads, load and torch's version."""
    import torch

    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), model)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    threads = torch.get_num_threads()
    return f"{model}, {os.cpu_count()} cores, {threads} torch threads, load {load:.1f}, torch {torch.__version__}"
