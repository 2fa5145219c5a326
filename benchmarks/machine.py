"""What measured numbers depend on, in a line, and memory of this process (Linux)."""

from __future__ import annotations

import ctypes
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


def peak_rise(before: int) -> int:
    """Bytes of the largest resident set since `clear_peak`, over `before`."""
    return resident("VmHWM") - before


def resident(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def clear_peak() -> int:
    """Give freed memory back to the system, start measuring the peak; resident bytes now."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    return resident("VmRSS")
