"""Several processes, started by torchrun: who am I, do we agree, and FSDP2's shards.

defines  processes, rank, world_size; all_reduce_mean, all_reduce_min, same_on_all_ranks; shard, local_shard, gather

Without torchrun there is one process of rank 0, and every function here returns what it was given.
"""

import contextlib
import os
import warnings

import torch
from torch import distributed, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


@contextlib.contextmanager
def processes(device):
    """Inside, torchrun's processes can talk to each other, each with its own GPU. Only rank 0 prints."""
    if "RANK" not in os.environ:
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))                 # from here on, "cuda" means this GPU
    distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        with open(os.devnull, "w") as nowhere:
            with contextlib.redirect_stdout(nowhere) if rank() else contextlib.nullcontext():
                yield
    finally:
        distributed.destroy_process_group()


def rank():
    """The number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size():
    """The number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def all_reduce(number, device, operation):
    """A number combined over all processes."""
    if world_size() == 1:
        return number
    x = torch.tensor(number, dtype=torch.float64, device=device)
    distributed.all_reduce(x, operation)
    return x.item()


def all_reduce_mean(number, device):
    """The mean of a number over all processes, so that all of them decide alike."""
    return all_reduce(number / world_size(), device, distributed.ReduceOp.SUM)


def all_reduce_min(number, device):
    """The least of a number over all processes."""
    return all_reduce(number, device, distributed.ReduceOp.MIN)


def same_on_all_ranks(number, device):
    """True if the number is the same in all processes."""
    least, most = all_reduce_min(number, device), -all_reduce_min(-number, device)       # each rank takes part in both
    return least == most


def wait_for_all():
    """Returns when all processes have come here: what rank 0 wrote can then be read."""
    if world_size() > 1:
        distributed.barrier()


# -------------------------------------------------------------------------------------------------------------- FSDP2

def networks(model):
    """The networks that a stage calls: the model, or each entry of a ModuleDict."""
    return list(model.values()) if isinstance(model, nn.ModuleDict) else [model]


def shard(model, units, bf16):
    """FSDP2: each process keeps a part of every tensor, and gathers a unit when it is that unit's turn.

    units(network) lists the groups of modules to gather together; what is in none is gathered with the network.
    """
    precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32,
                                     cast_forward_inputs=False)
    warnings.filterwarnings("ignore", message=".*returned a view tensor")    # harmless: no view is changed in place
    model.to(memory_format=torch.contiguous_format)                          # FSDP2 accepts no other layout
    for network in networks(model):
        for unit in units(network):
            fully_shard(unit, mp_policy=precision)
        fully_shard(network, mp_policy=precision)


def local_shard(x):
    """The part of a tensor that this process holds: all of it, unless FSDP2 sharded it."""
    return x.to_local() if isinstance(x, DTensor) else x


def as_sharded_like(p, x):
    """The DTensor whose local shard is x, sharded like parameter p; x itself if p is no DTensor."""
    if not isinstance(p, DTensor) or not x.dim():
        return x.detach()
    return DTensor.from_local(x, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())


def copy_into(x, full):
    """Copies a full tensor into x, or this process's part of it into its shard of x."""
    if isinstance(x, DTensor):
        full = distribute_tensor(full, x.device_mesh, x.placements)
    local_shard(x).copy_(local_shard(full))


def gather(x):
    """The full tensor on rank 0's CPU; None on the other ranks."""
    x = x.full_tensor() if isinstance(x, DTensor) else x
    return x.cpu().contiguous() if rank() == 0 else None
