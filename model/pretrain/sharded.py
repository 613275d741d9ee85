"""Weights, gradients and optimiser shared out among processes (FSDP2), for networks that one GPU cannot hold.

A state is then a folder that every process writes its part of (torch.distributed.checkpoint); any number of
processes can read it back.
Source: arXiv 2304.11277 (FSDP); torch's ``fully_shard`` is its second version.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_parts
from torch.distributed.checkpoint.state_dict_saver import save as save_parts
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from model.errors import first_line, unwritten
from model.network import MAE

Optimisers = list[torch.optim.Optimizer]


def shard(network: MAE, device: torch.device) -> None:
    """Leave each process its share of every parameter; blocks are put together one by one as they are needed.

    They are moved to the device one by one too, so that the whole network needs to fit into the host's memory only.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in (*network.blocks, *network.decoder_blocks):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def is_sharded(network: MAE) -> bool:
    """Whether ``shard`` was called on it."""
    return isinstance(network, FSDPModule)


def own(parameter: Tensor) -> Tensor:
    """This process's share of a parameter; all of it where it is not shared out."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def hold_back(network: MAE, held_back: bool) -> None:
    """Keep gradients to oneself (all parts of a batch but the last), or share them with the next backward pass."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(not held_back)


def part(network: MAE) -> None:
    """Give up what a forward pass put together; after one without a backward pass the outermost weights still are."""
    if isinstance(network, FSDPModule):
        network.reshard()


def whole(network: MAE) -> MAE:
    """The network put together, in the first process's memory; every process calls this."""
    if not isinstance(network, FSDPModule):
        return network
    weights = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    result = MAE(network.config)
    if weights:  # the others get none
        result.load_state_dict(weights)
    return result


def save(folder: Path, network: MAE, optimisers: Optimisers) -> None:
    """Write this process's part of weights and optimisers; every process calls this.

    Raises:
        CheckpointError: One of them cannot write.
    """
    try:
        save_parts(_state(network, optimisers), checkpoint_id=str(folder))
    except CheckpointException as error:  # of every process, where one could not write
        causes = {first_line(cause) for cause, _ in error.failures.values()}
        raise unwritten(f"{folder} cannot be written ({', '.join(sorted(causes))}).") from error


def load(folder: Path, network: MAE, optimisers: Optimisers) -> None:
    """Read what ``save`` wrote, however many processes wrote it."""
    state = _state(network, optimisers)
    with warnings.catch_warnings():
        # One process alone is what is wanted, where it is so.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load_parts(state, checkpoint_id=str(folder))
    set_state_dict(
        network, optimisers, model_state_dict=state["network"], optim_state_dict=state["optimisers"]
    )


def _state(network: MAE, optimisers: Optimisers) -> dict[str, Any]:
    weights, moments = get_state_dict(network, optimisers)
    return {"network": weights, "optimisers": moments}
