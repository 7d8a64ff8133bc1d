"""Several processes, started by torchrun: which one is this, do they agree, and FSDP2's shards. Without torchrun there
is one process, of rank 0, and these functions return what they were given."""

import contextlib
import os
import sys
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
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere if rank() else sys.stdout):
            yield
            distributed.barrier()                                            # rank 0 may still write
    finally:
        distributed.destroy_process_group()


def rank():
    """The number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size():
    """The number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def all_gather(value):
    """[the value of each process]: the same list everywhere, so all processes decide alike."""
    values = [value] * world_size()
    if len(values) > 1:
        distributed.all_gather_object(values, value)
    return values


def check_shared(path, found, things=""):
    """Raises ValueError unless all processes have found the same at a path."""
    if len(set(all_gather(found))) > 1:
        raise ValueError(f"{path}: not all processes see the same{things} there; want a folder that all hosts share")


def shard(model, units, bf16):
    """FSDP2: each process keeps a part of every tensor, and gathers a unit when it is that unit's turn. units(network)
    lists the groups of modules to gather together. What is in no group is gathered with the network."""
    precision = MixedPrecisionPolicy(torch.bfloat16 if bf16 else None, torch.float32, cast_forward_inputs=False)
    warnings.filterwarnings("ignore", message=".*returned a view tensor")    # harmless: no view is changed in place
    model.to(memory_format=torch.contiguous_format)                          # FSDP2 accepts no other layout
    for network in model.values() if isinstance(model, nn.ModuleDict) else [model]:      # a ModuleDict is never called
        for unit in (*units(network), network):
            fully_shard(unit, mp_policy=precision)


def local_shard(x):
    """The part of a tensor that this process holds: all of it, unless FSDP2 sharded it."""
    return x.to_local() if isinstance(x, DTensor) else x


def shard_like(p, full):
    """The part of a full tensor that belongs to this process if it is sharded like parameter p. A scalar never is."""
    sharded = isinstance(p, DTensor) and full.dim() > 0
    return distribute_tensor(full, p.device_mesh, p.placements).to_local() if sharded else full


def gather_like(p, x):
    """The full tensor, on rank 0's CPU, of which each process holds a part x, sharded like p; None on other ranks."""
    if isinstance(p, DTensor) and x.dim():
        x = DTensor.from_local(x, p.device_mesh, p.placements, shape=p.shape, stride=p.stride()).full_tensor()
    return x.detach().cpu().contiguous() if rank() == 0 else None
