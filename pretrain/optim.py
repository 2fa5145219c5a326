"""Optimisers, their groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from pretrain.layers import layer_factors
from pretrain.schema import OptimSection

# Last parts of parameter names that hold positions, prefixes and temperatures in our towers, timm's, open_clip's and
# Hugging Face's.
NO_DECAY = ("embed", "_token", "relative_position", "rel_pos", "logit_scale", "logit_bias")
NO_DECAY_EXACT = ("query", "bias", "gamma", "temperature")  # a learned query; BERT's `query.weight` is a plain matrix


def learning_rate(step: int, steps: int, optim: OptimSection) -> float:
    """Linear warm-up over `warmup_steps`, then a cosine to `final_lr_fraction` of the peak. A pure function of the
    step, so that a resumed run needs no scheduler state."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    done = (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return optim.lr * (optim.final_lr_fraction + (1 - optim.final_lr_fraction) * cosine)


def _tower(name: str) -> str:
    """Which learning-rate factor a parameter of the module follows. `visual.proj` is open_clip's own projection, and
    `visual.head` that of a timm tower."""
    if name.startswith("dual.clip.visual.") and not name.startswith(
        ("dual.clip.visual.head.", "dual.clip.visual.proj")
    ):
        return "image"
    if name.startswith("dual.clip.text.") and "projection" not in name and ".proj." not in name:
        return "text"
    return "heads"


def undecayed(module: nn.Module) -> set[str]:
    """Names of the parameters without weight decay: norms, biases, embeddings, temperatures, and what a tower says
    itself (timm's `no_weight_decay`)."""
    names: set[str] = set()
    for prefix, part in module.named_modules():
        own = dict(part.named_parameters(recurse=False))
        whole = isinstance(part, nn.Embedding) or "Norm" in type(part).__name__
        said = {str(n) for n in part.no_weight_decay()} if hasattr(part, "no_weight_decay") else set()
        named = {n for n in own if n in NO_DECAY_EXACT or any(word in n for word in NO_DECAY)}
        plain = named | {n for n, p in own.items() if whole or p.ndim < 2}
        names |= {f"{prefix}.{name}".lstrip(".") for name in plain | said}
    return names


def freeze(module: nn.Module, optim: OptimSection) -> None:
    """Take the gradient from towers whose learning-rate multiplier is 0 (locked, LiT, arXiv 2111.07991): no graph is
    made of them either, unless something before them is trained. To be done before DDP or FSDP2 wraps the module, which
    would wait for these gradients. Their BatchNorm: `pretrain.batch_norm`."""
    for name, parameter in module.named_parameters():
        if getattr(optim.lr_multipliers, _tower(name)) == 0:
            parameter.requires_grad_(False)


def parameter_groups(module: nn.Module, optim: OptimSection) -> list[dict[str, object]]:
    """Groups: tower x layer x decay. `lr_factor` scales the scheduled rate.

    Raises:
        ValueError: nothing is left to train.
        ConfigError: `optim.layer_decay`, and a tower whose layers cannot be told apart.
    """
    groups: dict[tuple[str, float, bool], list[nn.Parameter]] = {}
    without_decay, depth = undecayed(module), _layer_factors(module, optim)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            tower = _tower(name)
            factor = depth.get(name, 1.0)
            groups.setdefault((tower, factor, name not in without_decay), []).append(parameter)
    if not groups:
        raise ValueError("no parameter is trained: every learning-rate multiplier is 0")
    return [
        {
            "params": parameters,
            "weight_decay": optim.weight_decay if decays else 0.0,
            "lr_factor": getattr(optim.lr_multipliers, tower) * factor,
            "decays": decays,
            "name": f"{tower}{'' if factor == 1 else f' x {factor:.3g}'}{'' if decays else ', no decay'}",
        }
        for (tower, factor, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def _layer_factors(module: nn.Module, optim: OptimSection) -> dict[str, float]:
    """Factors of the parameters of both towers by their names in the module; none without `layer_decay`."""
    if optim.layer_decay == 1:
        return {}
    clip: Any = module.get_submodule("dual.clip")
    return {f"dual.clip.{name}": factor for name, factor in layer_factors(clip, optim.layer_decay).items()}


def optimizers(module: nn.Module, optim: OptimSection, fused: bool) -> list[torch.optim.Optimizer]:
    """AdamW, and with `optim.muon` Muon beside it for the weight matrices that decay.

    Image and text find each other direction by direction: the strongest finding first, and each waits until the one
    before it has been learnt. Muon (Jordan et al. 2024; torch.optim.Muon) orthogonalises the update of a matrix, so all
    its directions grow at one rate. `adjust_lr_fn` scales its updates to the size of AdamW's (arXiv 2502.16982, eq. 4).
    """
    groups = parameter_groups(module, optim)
    if optim.muon is None:
        return [torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=fused)]
    matrices: list[dict[str, object]] = []
    rest: list[dict[str, object]] = []
    for group in groups:
        parameters, factor = cast(list[nn.Parameter], group["params"]), cast(float, group["lr_factor"])
        flat = [p for p in parameters if group["decays"] and p.ndim == 2]
        other = [p for p in parameters if not (group["decays"] and p.ndim == 2)]
        if flat:
            own = {"params": flat, "lr_factor": factor * optim.muon, "name": f"{group['name']}, Muon"}
            matrices.append({**group, **own})
        if other:
            rest.append({**group, "params": other})
    found: list[torch.optim.Optimizer] = []
    if rest:
        found.append(torch.optim.AdamW(rest, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=fused))
    if matrices:
        muon: Any = torch.optim.Muon
        found.append(muon(matrices, lr=optim.lr, weight_decay=optim.weight_decay, adjust_lr_fn="match_rms_adamw"))
    return found


def clipped(parameters: Sequence[nn.Parameter], bound: float) -> float:
    """Scale gradients so that their joint norm is at most `bound`; the norm before. Those within it are left alone: a
    product with one would be a pass over all of them.

    Sharded tensors and whole ones (objectives' own under FSDP2) have no norm together in torch: each kind has its own,
    and the joint one scales both.
    """
    kinds: dict[bool, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            kinds.setdefault(hasattr(parameter.grad, "full_tensor"), []).append(parameter)
    norms: list[Any] = []
    for sharded, each in kinds.items():
        own: Any = nn.utils.get_total_norm([p.grad for p in each if p.grad is not None])
        norms.append(own.full_tensor() if sharded else own)
    total = torch.linalg.vector_norm(torch.stack(norms)) if len(norms) > 1 else norms[0]
    norm = float(total)
    if norm > bound:  # not of NaN either, with which nothing is done
        for each in kinds.values():
            nn.utils.clip_grads_with_norm_(each, bound, total)
    return norm


def forget_zeros(parameters: list[nn.Parameter]) -> None:
    """Parameters that nothing reached are neither decayed nor moved by what is left of their momentum. Where ranks wait
    for them they have gradients of zero, in one process none: the same for both."""
    reached = [p for p in parameters if p.grad is not None]
    # Sums, because a rank may have no row of a sharded weight, and nothing has no greatest.
    sizes = [p.grad.detach().abs().sum() for p in reached]  # type: ignore[union-attr]
    sizes = [size.full_tensor() if hasattr(size, "full_tensor") else size for size in sizes]
    for parameter, zero in zip(reached, (torch.stack(sizes) == 0).tolist() if sizes else [], strict=True):
        if zero:
            parameter.grad = None
