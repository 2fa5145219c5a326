"""AdamW groups and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from pretrain.schema import OptimSection

NO_DECAY = ("embedding", "pos_embed", "cls_token", "logit_scale", "logit_bias", "query")


def learning_rate(step: int, steps: int, optim: OptimSection) -> float:
    """Linear warm-up over `warmup_steps`, then a cosine to `final_lr_fraction` of the peak. A pure function of the step, so that
    a resumed run needs no scheduler state."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    done = (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return optim.lr * (optim.final_lr_fraction + (1 - optim.final_lr_fraction) * cosine)


def _tower(name: str) -> str:
    """Which learning-rate factor a parameter of the module follows."""
    if name.startswith("dual.clip.visual.") and not name.startswith("dual.clip.visual.head."):
        return "image"
    if name.startswith("dual.clip.text.") and "projection" not in name and ".proj." not in name:
        return "text"
    return "heads"


def _decays(name: str, parameter: nn.Parameter) -> bool:
    # Norms and biases are one-dimensional; embeddings and scalars by name.
    return parameter.ndim > 1 and not any(part in name for part in NO_DECAY)


def parameter_groups(module: nn.Module, optim: OptimSection) -> list[dict[str, object]]:
    """AdamW groups: tower x decay. `lr_factor` scales the scheduled rate; a factor of 0 freezes the tower.

    Raises:
        ValueError: nothing is left to train.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        tower = _tower(name)
        if getattr(optim.lr_multipliers, tower) == 0:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            groups.setdefault((tower, _decays(name, parameter)), []).append(parameter)
    if not groups:
        raise ValueError("no parameter is trained: every learning-rate multiplier is 0")
    return [
        {
            "params": parameters,
            "weight_decay": optim.weight_decay if decays else 0.0,
            "lr_factor": getattr(optim.lr_multipliers, tower),
            "name": f"{tower}{'' if decays else ', no decay'}",
        }
        for (tower, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def adamw(module: nn.Module, optim: OptimSection, fused: bool) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameter_groups(module, optim), lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=fused
    )
