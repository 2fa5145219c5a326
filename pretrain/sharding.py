"""FSDP2 (torch.distributed.fsdp.fully_shard): weights, gradients and optimiser state spread over ranks."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from encoders.block import Block
from encoders.dual import DualEncoder
from encoders.report_transformer import Layer
from encoders.resnet3d import Bottleneck
from pretrain.module import Pretraining


def shard(module: Pretraining, mesh: DeviceMesh) -> None:
    """Shard the dual encoder in place, and its moving average where there is one: a unit for each block of our image
    towers and each layer of the report transformer, one for the rest.

    FSDP2 takes no scalars, so the temperature and the objectives' own parameters stay whole on every rank
    (`reduce_replicated` averages their gradients).
    """
    mesh = mesh["data_parallel"] if mesh.mesh_dim_names and "data_parallel" in mesh.mesh_dim_names else mesh
    for dual in {module.dual, module.evaluated}:
        _shard(dual, mesh)


def _shard(dual: DualEncoder, mesh: DeviceMesh) -> None:
    scalars = {p for p in dual.parameters() if p.ndim == 0}
    # Put away after every forward, the outermost unit too: between steps the average is updated and the weights are
    # saved shard by shard, and an evaluation is a forward without the backward that would put them away.
    for block in (m for m in dual.modules() if isinstance(m, Block | Bottleneck | Layer)):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(dual, mesh=mesh, ignored_params=scalars, reshard_after_forward=True)
    # Evaluators and caches call these past forward, and what training asks of the report transformer is none of them.
    called = ("encode_image", "encode_text", "project_units", "read_reports", "match_reports", "predict_masked")
    for name in called:
        register_fsdp_forward_method(dual, name)


def reduce_replicated(module: nn.Module) -> None:
    """Average the gradients of the parameters that are not sharded."""
    from torch.distributed.tensor import DTensor

    for parameter in module.parameters():
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
