"""Objectives named by import path in tests: one that makes trouble at a chosen call, one that learns.

What trouble is made is read from the environment variable TROUBLE (JSON of `Plan`), not from the recipe, so that a
stopped and a resumed run have the same recipe.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from encoders.features import rank
from pretrain.objectives.base import GlobalBatch, Objective


class Plan(BaseModel):
    """Calls are counted from 1 in each run of a process."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nan_at: tuple[int, ...] = ()
    nan: str = "loss"  # loss: the value alone; gradient: inf in the gradient, the loss stays finite
    only_rank: int | None = None
    signal_at: int | None = None
    signal: int = int(signal.SIGTERM)
    fill_at: int | None = None
    free_at: int | None = None
    disk: str = ""
    push_scale: bool = False
    logs: int = 0  # as many numbers more in metrics.csv


class Nothing(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _InfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return torch.full_like(grad, float("inf"))


class Trouble(Objective):
    reads = ("image:global.pooled", "text:units.units", "logit_scale")
    Options = Nothing

    def __init__(self, options: Nothing) -> None:
        super().__init__(options)
        self.calls = 0
        self.plan = Plan.model_validate_json(os.environ.get("TROUBLE", "{}"))

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        self.calls += 1
        o = self.plan
        if self.calls == o.signal_at:
            os.kill(os.getpid(), o.signal)
        if self.calls == o.fill_at:
            fill(Path(o.disk) / "filler")
        if self.calls == o.free_at:
            (Path(o.disk) / "filler").unlink()
        total = batch.images_BD.sum() * 0
        if o.push_scale:
            total = total - 100 * batch.logit_scale
        if self.calls in o.nan_at and o.only_rank in (None, rank()):
            total = _InfGradient.apply(total) if o.nan == "gradient" else total + float("nan")
        return total, {f"number{i}": torch.tensor(float(i)) for i in range(o.logs)}


class Plain(Objective):
    """Somebody else's objective: cosine distance of an image to the mean of its texts, through a matrix of its own."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        width: int

    reads = ("image:global.pooled", "text:units.units")

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.map = nn.Linear(options.width, options.width, bias=False)

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        text = batch.text
        sums = torch.zeros_like(batch.images_BD).index_add(0, text.pair_sample_P, text.units_UD[text.pair_unit_P])
        return 1 - F.cosine_similarity(self.map(batch.images_BD), sums).mean(), {"width": torch.tensor(1.0)}

    def released(self) -> dict[str, nn.Module]:
        return {}


def fill(path: Path) -> None:
    """Write until there is no room."""
    block = bytes(1 << 16)
    with path.open("wb", buffering=0) as file:
        while block:
            try:
                file.write(block)
            except OSError:
                block = block[: len(block) // 2]
