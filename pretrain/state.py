"""A run's state out of a module and back into it: the same road for one process, DDP and FSDP2."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from pretrain.checkpoint import ENCODERS, HEADS, CheckpointError
from pretrain.module import Pretraining
from pretrain.objectives.base import Objective

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
REPORT = "report."  # the report transformer's weights among the heads


def collect(module: Pretraining, stream: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Encoder weights, released heads and trainer state. Every rank must call it: sharded weights are brought
    together."""
    encoders = _weights(module.evaluated.clip)
    heads: dict[str, Tensor] = {}
    if module.evaluated.report is not None:
        heads |= _prefixed(_weights(module.evaluated.report))
    for objective in module.objectives:
        for name, head in cast(Objective, objective).released().items():
            heads |= {f"{name}.{key}": value for key, value in _whole(head).items()}
    trainer = {
        "batches_done": module.batches_done,
        "refused": module.refused,
        "stream": {**stream, "step": module.batches_done},  # what was trained on, not what loaders have read ahead
        "objectives": _whole(module.objectives),
        "optimizer": _moments(module),
    }
    if module.ema is not None:  # then encoders.safetensors holds the average, and the trained weights go here
        trainer["trained"] = _weights(module.dual.clip)
        if module.dual.report is not None:
            trainer["trained_report"] = _weights(module.dual.report)
        trainer["averaged"] = int(module.ema.n_averaged)
    return encoders, heads, trainer


def trained_weights(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Weights of the dual encoder as training goes on from them: beside a moving average, not the average."""
    return state["trained"] if "trained" in state else load_file(folder / ENCODERS)


def restore(module: Pretraining, folder: Path, state: dict[str, Any]) -> None:
    """Put a checkpoint back, bit for bit. `state` is its `read_trainer`.

    Raises:
        CheckpointError: damaged, or of another model or other objectives than this recipe builds.
    """
    try:
        set_model_state_dict(module.dual.clip, trained_weights(folder, state), options=WHOLE)
        if module.ema is not None:
            set_model_state_dict(module.evaluated.clip, load_file(folder / ENCODERS), options=WHOLE)  # type: ignore[arg-type]
            module.ema.n_averaged.fill_(state["averaged"])
        if module.dual.report is not None:
            released: dict[str, Any] = {
                key.removeprefix(REPORT): value
                for key, value in load_file(folder / HEADS).items()
                if key.startswith(REPORT)
            }
            set_model_state_dict(module.dual.report, state.get("trained_report", released), options=WHOLE)
            if module.ema is not None and module.evaluated.report is not None:
                set_model_state_dict(module.evaluated.report, released, options=WHOLE)
        module.objectives.load_state_dict(state["objectives"])
        _set_moments(module, state["optimizer"])
    except (KeyError, RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{folder.name} does not fit this run: {error}\n"
            "  why: weights of another model or optimiser would be mixed with these\n"
            "  fix: resume with the code version and recipe that wrote it"
        ) from error
    module.batches_done, module.refused = state["batches_done"], state["refused"]


def _prefixed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{REPORT}{key}": value for key, value in weights.items()}


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Of a module that may be sharded."""
    return cast(dict[str, Tensor], get_model_state_dict(module, options=WHOLE))


def _whole(module: nn.Module) -> dict[str, Tensor]:
    """Of a module that never is (torch's function for both fails on modules that hold scalars alone)."""
    return {name: value.detach().cpu() for name, value in module.state_dict().items()}


def _moments(module: Pretraining) -> dict[str, Any]:
    optimizers = module.all_optimizers
    if not any(o.state for o in optimizers):  # every step was refused so far; torch would invent moments
        return {}
    return cast(dict[str, Any], get_optimizer_state_dict(module, optimizers, options=WHOLE))


def _set_moments(module: Pretraining, saved: dict[str, Any]) -> None:
    if not saved:
        return
    optimizers = module.all_optimizers
    set_optimizer_state_dict(module, optimizers, saved, options=StateDictOptions(full_state_dict=True, strict=False))
    for name, parameter in module.named_parameters():
        if name not in saved["state"]:  # no gradient has reached it yet; torch has given it moments of zero
            for optimizer in optimizers:
                optimizer.state.pop(parameter, None)
