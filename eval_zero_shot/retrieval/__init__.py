"""Retrieval between images and texts, and between volumes: ranks without an N x N matrix, pools, intervals."""

from __future__ import annotations

from typing import Literal

Pool = int | Literal["full"]
# What papers report, unless others are asked for: R@1 and R@8 in pools (Merlin), R@5 to R@100 among all (CT-RATE).
POOLS: tuple[Pool, ...] = (32, 64, 128, "full")
KS = (1, 5, 8, 10, 50, 100)
