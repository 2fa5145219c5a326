"""Keeps freed memory in the process while training on a CPU.

glibc gives every block above 32 MB back to the system when it is freed, and the next step's activations are
page-faulted in again. On a virtual machine that can cost several times the arithmetic. CUDA has its own caching
allocator.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
NEVER, PAD = 2**31 - 1, 256 << 20


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to hold on to what is freed; returns whether it listened (False on other C libraries)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    return all(mallopt(*option) for option in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, PAD)))
