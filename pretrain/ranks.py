"""What ranks agree on, and when they exchange gradients."""

from __future__ import annotations

import contextlib
from typing import Any

import lightning as L
import torch
import torch.distributed as dist

from encoders.features import world_size


def all_agree(value: bool, device: torch.device) -> bool:
    """True where it is true on every rank."""
    if world_size() == 1:
        return value
    flag = torch.tensor([int(value)], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag)


def mean_of_all(value: float, device: torch.device) -> float:
    """The mean over ranks."""
    if world_size() == 1:
        return value
    total = torch.tensor([value], device=device)
    dist.all_reduce(total)
    return float(total) / world_size()


def no_sync(trainer: L.Trainer, enabled: bool) -> Any:
    """A context in which gradients stay on their rank, where `enabled`: those of all but the last accumulated batch."""
    block = getattr(trainer.strategy, "block_backward_sync", None)
    return block() if enabled and block is not None else contextlib.nullcontext()
