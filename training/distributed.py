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


def all_reduce(number, device, operation):
    """A number combined over all processes, so that all of them decide alike. operation: "mean" or "min"."""
    if world_size() == 1:
        return number
    x = torch.tensor(number / world_size() if operation == "mean" else number, dtype=torch.float64, device=device)
    distributed.all_reduce(x, distributed.ReduceOp.SUM if operation == "mean" else distributed.ReduceOp.MIN)
    return x.item()


def check_shared(path, number, device, things=""):
    """Raises ValueError unless all processes have found the same number at a path: then its least is its largest."""
    if all_reduce(number, device, "min") != -all_reduce(-number, device, "min"):
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


def sharded_like(p, x):
    """The DTensor whose local shard is x, sharded like parameter p; x itself if p is no DTensor."""
    if not isinstance(p, DTensor) or not x.dim():
        return x.detach()
    return DTensor.from_local(x, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())


def copy_into(x, full):
    """Copies a full tensor into x, or this process's part of it if x is sharded."""
    x.copy_(distribute_tensor(full, x.device_mesh, x.placements) if isinstance(x, DTensor) else full)


def gather(x):
    """The full tensor on rank 0's CPU; None on the other ranks."""
    x = x.full_tensor() if isinstance(x, DTensor) else x
    return x.cpu().contiguous() if rank() == 0 else None
