"""FSDP2 (torch.distributed.fsdp.fully_shard): weights, gradients and optimiser state spread over ranks."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from encoders.voxvit import Block
from pretrain.module import Pretraining


def shard(module: Pretraining, mesh: DeviceMesh) -> None:
    """Shard the dual encoder in place: a unit for each transformer block of our image tower, one for the rest.

    FSDP2 takes no scalars, so the temperature and the objectives' own parameters stay whole on every rank
    (`reduce_replicated` averages their gradients).
    """
    mesh = mesh["data_parallel"] if mesh.mesh_dim_names and "data_parallel" in mesh.mesh_dim_names else mesh
    scalars = {p for p in module.dual.parameters() if p.ndim == 0}
    for block in (m for m in module.dual.modules() if isinstance(m, Block)):
        fully_shard(block, mesh=mesh)
    fully_shard(module.dual, mesh=mesh, ignored_params=scalars)
    for name in ("encode_image", "encode_text"):  # evaluators call these, not forward
        register_fsdp_forward_method(module.dual, name)


def reduce_replicated(module: nn.Module) -> None:
    """Average the gradients of the parameters that are not sharded."""
    from torch.distributed.tensor import DTensor

    for parameter in module.parameters():
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
