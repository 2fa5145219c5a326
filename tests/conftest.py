"""Fixtures of all tests. Real data is used where it lies beside the repository; its absence is stated, not hidden."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported anywhere: tiny tensors, and float sums that do not depend on the number of cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

REPO = Path(__file__).resolve().parents[1]
SHARED = REPO.parent / "shared" / "data"


@pytest.fixture(scope="session")
def repo() -> Path:
    """Root of the repository."""
    return REPO


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real scans; the test is skipped where there is none."""
    if not SHARED.is_dir():
        pytest.skip("no real data in ../shared/data")
    return SHARED
