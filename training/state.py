"""What a training step changes: weights, AdamW's moments, the running average; and its checkpoints.

our reading  AdamW with betas (0.9, 0.999) and weight decay 1e-2, gradients clipped to norm 1: the paper is silent.
Forward and backward may run in bfloat16. AdamW updates float32 master weights, since a step of 2e-6 rounds to nothing
in bfloat16. After each step the bfloat16 weights are copied from the masters."""

import math
import shutil
from argparse import ArgumentTypeError
from contextlib import contextmanager

import torch
from safetensors import SafetensorError, safe_open
from torch import distributed, nn

from sd21.command import finite_float, natural, one_line, positive_float
from sd21.files import write_tensors
from training.distributed import check_shared, gather_like, local_shard, rank, shard, shard_like


def checkpoints(out, stage):
    """The checkpoints of a stage in folder `out`, oldest first."""
    return sorted(out.glob(f"{stage}.{'[0-9]' * 8}.checkpoint.safetensors"))


class TrainState:
    """All {name: tensor}: `parameters` are the model's own, `masters` those that AdamW updates, `ema` their average
    (the masters themselves without --ema). In float32 the masters are the parameters. With bf16 the parameters are
    bfloat16 copies of the masters. With FSDP2 a parameter is a DTensor and its master is the local shard as a plain
    tensor: AdamW on DTensors is slow."""

    def __init__(self, stage, run):
        self.stage, self.run = stage, run
        self.copies = run.bf16 and not run.fsdp                              # FSDP2 makes its own copies
        name_of = {p: name for name, p in stage.model.named_parameters()}
        if run.fsdp:
            shard(stage.model, stage.units, run.bf16)                        # replaces the tensors, keeps their names
        self.parameters = self.masters = dict(stage.model.named_parameters())
        if run.fsdp or run.bf16:
            self.masters = {name: local_shard(p.detach()) for name, p in self.parameters.items()}
        if self.copies:
            stage.model.bfloat16()                                           # the masters keep the float32 tensors
        self.ema = {name: p.detach().clone() if run.ema else p.detach() for name, p in self.masters.items()}
        groups = [group | {"params": [self.masters[name_of[p]] for p in group["params"]]} for group in stage.groups]
        on_gpu = run.device == "cuda"
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=run.weight_decay, fused=on_gpu)
        self.best, self.best_step = math.inf, 0                              # loss of the average weights (--keep best)
        for p in self.masters.values():     # AdamW would make its state at step 1; made here, resume() can fill it
            p.grad = torch.zeros_like(p) if self.copies else None            # filled by collect_gradients
            step = torch.zeros((), device=p.device if on_gpu else "cpu")
            self.optimizer.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}

    def collect_gradients(self):
        """Gives the gradients of the last backward pass to the masters. From bfloat16 they are summed in float32."""
        if self.run.fsdp:
            for name, master in self.masters.items():
                master.grad = local_shard(self.parameters[name].grad)
        if self.copies:
            sums, new = [p.grad for p in self.masters.values()], [p.grad for p in self.parameters.values()]
            if self.run.accumulate > 1:
                torch._foreach_add_(sums, new)
            else:
                torch._foreach_copy_(sums, new)
            self.stage.model.zero_grad()

    @torch.no_grad()
    def step(self, step, scale):
        """Clips the gradients, takes one step of AdamW at `scale` times the learning rates, updates the average.
        Returns the norm of the gradient before clipping."""
        for group, original in zip(self.optimizer.param_groups, self.stage.groups, strict=True):
            group["lr"] = original["lr"] * scale
        norm = nn.utils.get_total_norm([p.grad for p in self.masters.values() if p.grad is not None])
        if self.run.fsdp:                                                    # over the shards of all processes
            distributed.all_reduce(norm.square_())
            norm.sqrt_()
        nn.utils.clip_grads_with_norm_(self.masters.values(), 1.0, norm)
        self.optimizer.step()
        if self.copies:
            self.set_parameters(self.masters)
            if self.run.accumulate > 1:
                self.optimizer.zero_grad(set_to_none=False)                  # the sums of collect_gradients
        if not self.run.records():                                           # a CUDA graph writes over its gradients
            self.stage.model.zero_grad()
        if self.run.ema:
            decay = min(self.run.ema, (1 + step) / (10 + step))              # a short memory at first, when weights
            torch._foreach_lerp_(list(self.ema.values()), list(self.masters.values()), 1 - decay)    # change fast
        return norm

    def set_parameters(self, tensors):
        """Copies {name: local shard} into the model's parameters."""
        torch._foreach_copy_([local_shard(p.detach()) for p in self.parameters.values()], list(tensors.values()))

    @contextmanager
    def averaged(self):
        """Inside, the model computes with the averaged weights."""
        saved = {name: local_shard(p.detach()).clone() for name, p in self.parameters.items()}
        self.set_parameters(self.ema)
        yield
        self.set_parameters(saved)

    def state_dict(self):
        """Everything that a step changes: {"model.NAME", "ema.NAME", "adam.exp_avg.NAME", ...: (parameter, shard)}."""
        kinds = {"model": self.masters} | ({"ema": self.ema} if self.run.ema else {})
        for key in ("step", "exp_avg", "exp_avg_sq"):
            kinds[f"adam.{key}"] = {name: self.optimizer.state[p][key] for name, p in self.masters.items()}
        return {f"{kind}.{name}": (self.parameters[name], x.detach())
                for kind, tensors in kinds.items() for name, x in tensors.items()}

    def write(self, step, seconds):
        """Writes a checkpoint after `step` steps and `seconds`, atomically, then exports. OSError for a full disk. The
        last two checkpoints are kept in case the newest cannot be read."""
        tensors = {name: gather_like(p, x) for name, (p, x) in self.state_dict().items()}
        if rank() == 0:
            path = self.run.out / f"{self.run.stage}.{step:08}.checkpoint.safetensors"
            best = {"best": str(self.best), "best_step": str(self.best_step)} if self.best_step else {}
            write_tensors(tensors, path, {"step": str(step), "seconds": str(seconds)} | best)
            for old in checkpoints(self.run.out, self.run.stage)[:-2]:
                old.unlink()
        self.export(step)

    def export(self, step):
        """Hands the averaged weights after `step` steps to stage.save; with --keep best only if they are the best.
        OSError for a full disk."""
        if self.run.keep == "best" and self.best_step != step:
            return
        averages = {name: gather_like(self.parameters[name], x) for name, x in self.ema.items()}
        if rank() == 0:
            self.stage.save(averages)

    def resume(self):
        """Loads the newest readable checkpoint, if there is one. Returns its (steps, seconds), else (0, 0.0)."""
        out, stage = self.run.out, self.run.stage
        for unfinished in out.glob(f".{stage}[.-]*.part"):                   # of a run that was killed as it wrote;
            shutil.rmtree(unfinished, ignore_errors=True)                    # another process may do the same
        paths = checkpoints(out, stage)
        check_shared(out, paths[-1].name if paths else None, " checkpoints")
        for path in reversed(paths):
            try:
                with safe_open(path, framework="pt") as file:
                    metadata = file.metadata() or {}
                    step = natural(metadata.get("step", "no step"))
                    seconds = positive_float(metadata["seconds"]) if "seconds" in metadata else 0.0  # old ones lack it
                    best = finite_float(metadata.get("best", "0")), natural(metadata.get("best_step", "0"))
                    tensors = self.state_dict()
                    shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
                    if {name: list(p.shape) if x.dim() else [] for name, (p, x) in tensors.items()} != shapes:
                        raise ValueError(f"{path}: is of another model, or --ema was another; move the checkpoints of "
                                         f"stage {stage} away to start anew")
                    for name, (p, x) in tensors.items():
                        full = file.get_tensor(name)
                        if name.startswith(("adam.step", "adam.exp_avg_sq")) and not (full >= 0).all():
                            raise SafetensorError(f"{name} is negative")
                        x.copy_(shard_like(p, full.to(self.run.device)))
                    if self.copies:
                        self.set_parameters(self.masters)
                    if best[1] and self.run.keep == "best":
                        self.best, self.best_step = best
                    print(f"going on from {path}, step {step}")
                    return step, seconds
            except (SafetensorError, ArgumentTypeError) as error:
                print(one_line(f"{path}: not whole ({error}); taking the one before it"))
        if paths:
            raise ValueError(f"{out}: no checkpoint of stage {stage} can be read; move them away to start anew")
        return 0, 0.0
