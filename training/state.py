"""What a training step changes: weights, AdamW's moments, the running average; and its checkpoints.

defines  TrainState, checkpoints

our reading  AdamW with betas (0.9, 0.999) and weight decay 1e-2, gradients clipped to norm 1: the paper is silent.
      Forward and backward may run in bfloat16. AdamW updates float32 master weights, since a step of 2e-6 rounds to
      nothing in bfloat16. After each step the bfloat16 weights are copied from the masters.
"""

import shutil
from contextlib import contextmanager

import torch
from safetensors import SafetensorError, safe_open
from torch import distributed, nn

from sd21.files import write_tensors
from training.distributed import (
    as_sharded_like, copy_into, gather, local_shard, rank, same_on_all_ranks, shard
)


def checkpoints(out, stage):
    """The checkpoints of a stage in folder `out`, oldest first."""
    return sorted(out.glob(f"{stage}.*.checkpoint.safetensors"))


class TrainState:
    """`parameters` are the model's own, `masters` those that AdamW updates, `ema` their average, all {name: tensor}.

    In float32 the masters are the parameters. With bf16 the parameters are bfloat16 copies of them. With FSDP2 a
    parameter is a DTensor and its master is the local shard as a plain tensor: AdamW on DTensors is much slower.
    """

    def __init__(self, stage, run):
        name_of = {p: name for name, p in stage.model.named_parameters()}
        groups = [group | {"params": [name_of[p] for p in group["params"]]} for group in stage.groups]
        self.stage, self.run, self.copies = stage, run, run.bf16 and not run.fsdp        # FSDP2 makes its own copies
        if run.fsdp:
            shard(stage.model, stage.units, run.bf16)                        # replaces the tensors, keeps their names
        self.parameters = self.masters = dict(stage.model.named_parameters())
        if run.fsdp:
            self.masters = {name: local_shard(p.detach()) for name, p in self.parameters.items()}
        elif self.copies:
            self.masters = {name: p.detach().clone() for name, p in self.parameters.items()}
            stage.model.bfloat16()
            for master in self.masters.values():
                master.grad = torch.zeros_like(master)
        groups = [group | {"params": [self.masters[name] for name in group["params"]]} for group in groups]
        on_gpu = run.device == "cuda"
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=1e-2, fused=on_gpu)
        self.rates, self.grads_empty = [group["lr"] for group in groups], True
        for p in self.masters.values():                                      # AdamW makes its state at the first step.
            self.optimizer.state[p] = {                                      # Made here, a checkpoint can fill it.
                "step": torch.zeros((), device=p.device if on_gpu else "cpu"),
                "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        self.ema = {name: p.detach().clone() for name, p in self.masters.items()} if run.ema else self.masters

    # ---- a step

    def collect_gradients(self):
        """Gives the gradients of the last backward pass to the masters. From bfloat16 they are summed in float32."""
        if self.run.fsdp:
            for p, master in zip(self.parameters.values(), self.masters.values(), strict=True):
                master.grad = local_shard(p.grad)
        if self.copies:
            sums, new = [p.grad for p in self.masters.values()], [p.grad for p in self.parameters.values()]
            if self.grads_empty:
                torch._foreach_copy_(sums, new)
            else:
                torch._foreach_add_(sums, new)
            self.grads_empty = False
            for p in self.parameters.values():
                p.grad = None

    @torch.no_grad()
    def step(self, step, scale):
        """Clips the gradients, takes one step of AdamW at `scale` times the learning rates, updates the average.
        Returns the norm of the gradient before clipping."""
        for group, lr in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = lr * scale
        norm = nn.utils.get_total_norm([p.grad for p in self.masters.values() if p.grad is not None])
        if self.run.fsdp:                                                    # over the shards of all processes
            distributed.all_reduce(norm.square_())
            norm.sqrt_()
        nn.utils.clip_grads_with_norm_(self.masters.values(), 1.0, norm)
        self.optimizer.step()
        if self.copies:
            torch._foreach_copy_(list(self.parameters.values()), list(self.masters.values()))
        else:                                                                # a CUDA graph keeps its gradients' memory
            self.stage.model.zero_grad(set_to_none=not self.run.cuda_graph)
        self.grads_empty = True
        if self.ema is not self.masters:
            decay = min(self.run.ema, (1 + step) / (10 + step))              # a short memory at first, when weights
            torch._foreach_lerp_(list(self.ema.values()), list(self.masters.values()), 1 - decay)    # change fast
        return norm

    @contextmanager
    @torch.no_grad()
    def averaged(self):
        """Inside, the model computes with the averaged weights, eagerly: a compiled model would compile again."""
        averages = self.ema is not self.masters
        if averages:
            saved = {name: local_shard(p).clone() for name, p in self.parameters.items()}
            self.set_parameters(self.ema)
        with torch.compiler.set_stance("force_eager"):
            yield
        if averages:
            self.set_parameters(saved)

    def set_parameters(self, tensors):
        """Copies {name: local shard} into the model's parameters."""
        for name, p in self.parameters.items():
            local_shard(p).copy_(tensors[name])

    # ---- checkpoints

    def state_dict(self):
        """Everything that a step changes: {"model.NAME", "ema.NAME", "adam.exp_avg.NAME", ...: (D)Tensor}."""
        kinds = {"model": self.masters}
        if self.ema is not self.masters:
            kinds["ema"] = self.ema
        for key in ("step", "exp_avg", "exp_avg_sq"):
            kinds[f"adam.{key}"] = {name: self.optimizer.state[p][key] for name, p in self.masters.items()}
        return {f"{kind}.{name}": as_sharded_like(self.parameters[name], x)
                for kind, tensors in kinds.items() for name, x in tensors.items()}

    @torch.no_grad()
    def write(self, step, seconds):
        """Writes a checkpoint after `step` steps and `seconds`, atomically, then exports the averaged weights. The last
        two checkpoints are kept in case the newest cannot be read."""
        tensors = {name: gather(x) for name, x in self.state_dict().items()}
        if rank() == 0:
            path = self.run.out / f"{self.run.stage}.{step:08}.checkpoint.safetensors"
            with self.naming_the_last_checkpoint():
                write_tensors(tensors, path, {"step": str(step), "seconds": str(seconds)})
            for old in checkpoints(self.run.out, self.run.stage)[:-2]:
                old.unlink()
        self.export()

    @torch.no_grad()
    def export(self):
        """Hands the averaged weights, gathered on rank 0, to stage.save."""
        tensors = {name: gather(as_sharded_like(self.parameters[name], x)) for name, x in self.ema.items()}
        if rank() == 0:
            with self.naming_the_last_checkpoint():
                self.stage.save(tensors)

    @contextmanager
    def naming_the_last_checkpoint(self):
        """Adds the last good checkpoint to the message of an OSError."""
        try:
            yield
        except OSError as error:
            raise ValueError(f"{error}; {self.last_good()}") from None

    def last_good(self):
        """Where the next run will resume, in words."""
        good = checkpoints(self.run.out, self.run.stage)
        return f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"

    @torch.no_grad()
    def resume(self):
        """Loads the newest readable checkpoint, if there is one. Returns its (steps, seconds), else (0, 0.0)."""
        out, stage = self.run.out, self.run.stage
        if rank() == 0:
            for unfinished in out.glob(f".{stage}.*.part"):                  # of a run that was killed as it wrote
                shutil.rmtree(unfinished)
        paths = checkpoints(out, stage)
        newest = max((int(path.name.split(".")[1]) for path in paths), default=0)
        if not same_on_all_ranks(newest, self.run.device):
            raise ValueError(f"{out}: not all processes see the same checkpoints there; want a folder that all hosts "
                             "share")
        for path in reversed(paths):
            try:
                with safe_open(path, framework="pt") as file:
                    tensors = self.state_dict()
                    shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
                    if {name: list(x.shape) for name, x in tensors.items()} != shapes:
                        raise ValueError(f"{path}: is of another model, or --ema was another; move the checkpoints of "
                                         f"stage {stage} away to start anew")
                    for name, x in tensors.items():
                        copy_into(x, file.get_tensor(name).to(self.run.device))
                    step, seconds = (float(file.metadata().get(key, 0)) for key in ("step", "seconds"))
            except SafetensorError as error:
                print(f"{path}: not whole ({error}); taking the one before it")
                continue
            if self.copies:
                torch._foreach_copy_(list(self.parameters.values()), list(self.masters.values()))
            print(f"going on from {path}, step {step:.0f}")
            return int(step), seconds
        if paths:
            raise ValueError(f"{out}: no checkpoint of stage {stage} can be read; move them away to start anew")
        return 0, 0.0
