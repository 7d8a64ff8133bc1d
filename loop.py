"""The training loop, one for every stage: Sec. 4.1 "Implementation details". What is trained on what is train.py's.

in    a Task: a model, its learning rates, how to draw a batch of step k, and the loss of a batch
out   trained weights, STAGE.csv and STAGE.png (report.py), sample pictures, and checkpoints to go on from
here  fit, Task; compile_blocks and checkpoint_blocks, two ways to trade time and memory

ours  - All randomness of step k follows from the run's seed and k. So a run that was stopped, in any way, goes on from
        its last whole checkpoint as if nothing had happened, bit for bit.
      - Under torchrun every process draws the whole batch of step k and computes its share: the steps are those of one
        process, and a checkpoint does not know how many there were. DDP keeps the model whole in each; FSDP2 gives each
        process a part of every tensor, for models that do not fit on one card.
      - bfloat16 is for the arithmetic. The weights that AdamW moves stay float32, since a step of 2e-6 is lost in the
        8 bits of a bfloat16; each step, what computes is made of them anew.
"""

import math
import os
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import distributed, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint as recompute
from tqdm import tqdm

from appearnet import Spade
from files import beside
from report import Report
from unet3d import Block, Downsample, ResnetBlock, SpatialTransformer, TemporalAttention, Upsample
from weights import write_tensors

# Since torch 2.10 Inductor fuses sums over rows with sums over columns, and can lose gradients by it, as that of a
# convolution's bias in front of a time embedding (pytorch issues 190796, 193061). Inductor reads this when first used.
os.environ.setdefault("TORCHINDUCTOR_MIX_ORDER_REDUCTION", "0")

BLOCKS = (ResnetBlock, SpatialTransformer, TemporalAttention, Downsample, Upsample, Spade)


@dataclass
class Task:
    """One stage of training, as the loop sees it."""
    name: str
    model: nn.Module                # float32, on its device
    groups: list                    # for AdamW: names, parameters and learning rates
    loss_of: Callable               # (*tensors of a batch) -> its mean loss
    draw: Callable                  # (step, generator) -> tensors of the whole batch, [b, ...] each
    names: Callable                 # (step, generator) -> names of that batch's clips
    save: Callable                  # ({name: tensor} of the averaged weights) -> None
    validate: Callable = dict       # () -> {name: loss} on clips that were kept out, of the weights as they are
    sample: Callable | None = None  # () -> a picture of what the model makes now


def fit(task, args):
    """Trains for args.steps steps or args.minutes, whichever ends first, and hands the averaged weights to task.save.

    A run that was stopped goes on; the minutes of its steps before count, up to the checkpoint. Raises ValueError, in
    one line, for flags that do not go together, a loss or gradient that is not finite, or a full disk.
    """
    if args.batch % (args.world * args.accumulate):
        raise ValueError(f"--batch {args.batch}: want a multiple of {args.world} processes x "
                         f"--accumulate {args.accumulate}")
    if args.cuda_graph and (args.world * args.accumulate > 1 or args.fsdp or args.device != "cuda"):
        raise ValueError("--cuda-graph: want one process on a GPU, and neither --accumulate nor --fsdp")
    args.out.mkdir(parents=True, exist_ok=True)
    for group in task.groups:
        count = sum(p.numel() for p in group["params"])
        print(f"{group['name']}: {len(group['params'])} tensors, {count:,} parameters, learning rate {group['lr']:g}")
    weights = Weights(task, args)
    start, seconds = weights.resume()
    if start:
        weights.publish()                                                    # what was stopped may not have come to it
    take = steps(task, weights, args, start)
    first = task.validate()
    if first and not start:
        print(f"first loss, on clips kept out: {sum(first.values()) / len(first):.4f}")
    report = Report(args.out / f"{task.name}.csv", list(first), start) if args.rank == 0 else None
    running, bad = None, torch.full((), args.steps, device=args.device)      # the first step that is not finite: none
    began, limit = time.monotonic() - seconds, 60 * (args.minutes or math.inf)
    progress = tqdm(range(start, args.steps if seconds < limit else start), initial=start, total=args.steps,
                    desc=task.name, mininterval=2, disable=args.rank > 0)
    for step in progress:
        spent = agreed((time.monotonic() - began) / limit, args) if args.minutes else 0
        left = 1 - max(step / args.steps, spent)                             # from 1 to 0
        value = take(step, min(1, (step + 1) / (args.warmup + 1), max(left, 0) / max(args.cooldown, 1e-9)))
        bad = torch.where(value.isfinite(), bad, bad.clamp(max=step))        # read now and then: a GPU is waited for
        last, after = left <= 0 or step + 1 == args.steps, step + 1
        due = last or after % args.save_every == 0
        if step % 50 == 0 or due:
            now = agreed(value.item(), args)
            wrong = int(agreed(bad.item(), args, least=True))
            if wrong < args.steps:
                clips = ", ".join(task.names(wrong, generator(wrong, args)))
                raise ValueError(f"the loss or its gradient is not finite at step {wrong}; the clips of its batch: "
                                 f"{clips}; {weights.last_good()}")
            running = now if running is None else 0.9 * running + 0.1 * now
            progress.set_postfix(loss=f"{running:.4f}")
            losses = task.validate() if due else {}
            if args.rank == 0:
                report.add(after, time.monotonic() - began, now, **losses)
        if task.sample and (last or after % args.sample_every == 0):
            with weights.averaged():
                picture = task.sample()
            if args.rank == 0:
                with beside(args.out / f"{task.name}-{after:06}.png") as part:
                    picture.save(part)
        if due:
            weights.write(after, time.monotonic() - began)
            if args.rank == 0:
                report.draw()
                tqdm.write(f"{task.name} step {after}: loss {running:.4f}")
        if last:
            break
    if args.world > 1:
        distributed.barrier()                                                # what the first one wrote can be read now


def steps(task, weights, args, start=0):
    """A function that takes the step of a number at `scale` times the learning rates: (step, scale) -> its loss, which
    is not finite either if a gradient is not.

    From here on this program does without cuDNN's attention, which is not faster in training: for 64 tokens, or 1600,
    its gradient is NaN where all scores lie near -120 (pytorch issue 196678).
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    objective = Objective(task.model, task.loss_of)
    if args.world > 1 and not args.fsdp:
        objective = DistributedDataParallel(objective, gradient_as_bucket_view=True)

    def batch(step):                                                         # this process's share of it
        return [x[args.rank::args.world] for x in task.draw(step, generator(step, args))]

    def backward(*tensors):                                                  # in --accumulate parts, one by one
        total = 0
        for part in zip(*(x.chunk(args.accumulate) for x in tensors), strict=True):
            value = objective(*part) / args.accumulate
            value.backward()
            weights.collect_gradients()
            total = total + value.detach()
        return total

    compute = replay(backward, batch(start), weights) if args.cuda_graph else backward

    def take(step, scale=1.0):
        value = compute(*batch(step))
        norm = weights.step(step, scale)
        return torch.where(norm.isfinite(), value, norm)                     # no loss is worth a gradient of NaN
    return take


def generator(step, args):
    """All randomness of a step."""
    return torch.Generator(args.device).manual_seed(args.seed * 10_000_000 + step)


class Objective(nn.Module):
    """A model and its loss as one module, so that DistributedDataParallel sees the whole step."""

    def __init__(self, model, loss_of):
        super().__init__()
        self.model, self.loss_of = model, loss_of

    def forward(self, *tensors):
        return self.loss_of(*tensors)


def agreed(number, args, least=False):
    """The mean of a number over all processes, or the least, so that all of them decide alike."""
    if args.world == 1:
        return number
    x = torch.tensor(number if least else number / args.world, dtype=torch.float64, device=args.device)
    distributed.all_reduce(x, distributed.ReduceOp.MIN if least else distributed.ReduceOp.SUM)
    return x.item()


def unanimous(number, args):
    """Is it the same number in all processes?"""
    return agreed(number, args, least=True) == -agreed(-number, args, least=True)


# --------------------------------------------------------------------------------------------------------- the weights

class Weights:
    """The weights in training: float32 `masters` that AdamW moves, their running average, and the model's own
    `parameters`, which compute: the masters themselves, or bfloat16 `copies`. With FSDP2 a parameter is a DTensor, and
    its master the part of it that lies here: AdamW need not know, and is much faster so."""

    def __init__(self, task, args):
        name_of = {p: name for name, p in task.model.named_parameters()}
        groups = [group | {"params": [name_of[p] for p in group["params"]]} for group in task.groups]
        self.task, self.args, self.copies = task, args, args.bf16 and not args.fsdp      # FSDP2 makes its own
        if args.fsdp:
            shard(task.model, args)                                          # puts new tensors under the old names
        self.parameters = self.masters = dict(task.model.named_parameters())
        if args.fsdp:
            self.masters = {name: here(p.detach()) for name, p in self.parameters.items()}
        elif self.copies:
            self.masters = {name: p.detach().clone() for name, p in self.parameters.items()}
            task.model.bfloat16()
            for master in self.masters.values():
                master.grad = torch.zeros_like(master)
        groups = [group | {"params": [self.masters[name] for name in group["params"]]} for group in groups]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=1e-2, fused=args.device == "cuda")
        self.rates, self.fresh = [group["lr"] for group in groups], True
        for p in self.masters.values():                                      # AdamW makes its state at the first step:
            self.optimizer.state[p] = {                                      # make it now, to have where to load it to
                "step": torch.zeros((), device=p.device if args.device == "cuda" else "cpu"),
                "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        self.ema = {name: p.detach().clone() for name, p in self.masters.items()} if args.ema else self.masters

    def collect_gradients(self):
        """Hands the masters what the last backward pass left in the parameters; from bfloat16 it is added up."""
        if self.args.fsdp:
            for p, master in zip(self.parameters.values(), self.masters.values(), strict=True):
                master.grad = here(p.grad)
        if not self.copies:
            return
        sums, new = [p.grad for p in self.masters.values()], [p.grad for p in self.parameters.values()]
        (torch._foreach_copy_ if self.fresh else torch._foreach_add_)(sums, new)
        self.fresh = False
        for p in self.parameters.values():
            p.grad = None

    @torch.no_grad()
    def step(self, step, scale):
        """Clips, one step of AdamW at `scale` times its learning rates, and of the average (decay with warm-up).
        Returns the norm that the gradient had."""
        for group, lr in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = lr * scale
        norm = nn.utils.get_total_norm([p.grad for p in self.masters.values() if p.grad is not None])
        if self.args.fsdp:                                                   # of all parts, wherever they lie
            distributed.all_reduce(norm.square_())
            norm.sqrt_()
        nn.utils.clip_grads_with_norm_(self.masters.values(), 1.0, norm)
        self.optimizer.step()
        if self.copies:
            torch._foreach_copy_(list(self.parameters.values()), list(self.masters.values()))
        else:
            self.task.model.zero_grad(set_to_none=not self.args.cuda_graph)  # a graph writes to where they were
        self.fresh = True
        if self.ema is not self.masters:
            decay = min(self.args.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(*(list(xs.values()) for xs in (self.ema, self.masters)), 1 - decay)
        return norm

    @contextmanager
    @torch.no_grad()
    def averaged(self):
        """Within, the model computes with the averaged weights."""
        before = [here(p).clone() for p in self.parameters.values()] if self.ema is not self.masters else []
        for p, average in zip(self.parameters.values(), self.ema.values()) if before else ():
            here(p).copy_(average)
        with torch.compiler.set_stance("force_eager"):                       # not worth a minute of compiling
            yield
        for p, old in zip(self.parameters.values(), before):
            here(p).copy_(old)

    # ---- checkpoints

    def whole(self, name, x):
        """x, one of the numbers kept for the parameter of that name, as the tensor of which it may be a part here."""
        p = self.parameters[name]
        if not isinstance(p, DTensor) or not x.dim():
            return x.detach()
        return DTensor.from_local(x, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())

    def tensors(self):
        """Everything that a step changes, by name."""
        average = {} if self.ema is self.masters else {"ema": self.ema}
        moments = {f"adam.{key}": {name: self.optimizer.state[p][key] for name, p in self.masters.items()}
                   for key in ("step", "exp_avg", "exp_avg_sq")}
        return {f"{kind}.{name}": self.whole(name, x)
                for kind, xs in ({"model": self.masters} | average | moments).items() for name, x in xs.items()}

    def checkpoints(self):
        """Those of this stage, the oldest first."""
        return sorted(self.args.out.glob(f"{self.task.name}.*.checkpoint.safetensors"))

    @torch.no_grad()
    def write(self, step, seconds):
        """A checkpoint after that many steps and seconds, whole or none. The last two are kept, for the day that the
        disk fails. Then the averaged weights, for the model folder."""
        whole = {name: gather(x, self.args) for name, x in self.tensors().items()}
        if self.args.rank == 0:
            path = self.args.out / f"{self.task.name}.{step:08}.checkpoint.safetensors"
            try:
                write_tensors(whole, path, {"step": str(step), "seconds": str(seconds)})
            except OSError as error:
                raise ValueError(f"{error}; {self.last_good()}") from None
            for old in self.checkpoints()[:-2]:
                old.unlink()
        self.publish()

    @torch.no_grad()
    def publish(self):
        """Hands the averaged weights, put together on the first process, to task.save."""
        whole = {name: gather(self.whole(name, x), self.args) for name, x in self.ema.items()}
        if self.args.rank == 0:
            try:
                self.task.save(whole)
            except OSError as error:
                raise ValueError(f"{error}; {self.last_good()}") from None

    def last_good(self):
        """Where to go on from, in words."""
        good = self.checkpoints()
        return f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"

    @torch.no_grad()
    def resume(self):
        """Loads the last whole checkpoint, if there is one: the steps and seconds that it was written after, else 0."""
        newest = max((int(path.name.split(".")[1]) for path in self.checkpoints()), default=0)
        if not unanimous(newest, self.args):
            raise ValueError(f"{self.args.out}: not all processes see the same checkpoints there; want a folder that "
                             "all hosts share")
        for path in reversed(self.checkpoints()):
            try:
                with safe_open(path, framework="pt") as file:
                    ours = self.tensors()
                    if {name: list(x.shape) for name, x in ours.items()} != {
                            name: file.get_slice(name).get_shape() for name in file.keys()}:
                        raise ValueError(f"{path}: is of another model, or --ema was another; move the checkpoints of "
                                         f"stage {self.task.name} away to start anew")
                    for name, x in ours.items():
                        tensor = file.get_tensor(name).to(self.args.device)
                        if isinstance(x, DTensor):
                            tensor = distribute_tensor(tensor, x.device_mesh, x.placements)
                        here(x).copy_(here(tensor))
                    step, seconds = (float(file.metadata().get(key, 0)) for key in ("step", "seconds"))
            except SafetensorError as error:
                print(f"{path}: not whole ({error}); taking the one before it")
                continue
            if self.copies:
                torch._foreach_copy_(list(self.parameters.values()), list(self.masters.values()))
            print(f"going on from {path}, step {step:.0f}")
            return int(step), seconds
        if self.checkpoints():
            raise ValueError(f"{self.args.out}: no checkpoint of stage {self.task.name} can be read; move them away to "
                             "start anew")
        return 0, 0.0


def here(x):
    """The part of a tensor that this process holds: all of it, but for FSDP2's."""
    return x.to_local() if isinstance(x, DTensor) else x


def gather(x, args):
    """A tensor, put together from all processes, on the first one's CPU; None on the others."""
    x = x.full_tensor() if isinstance(x, DTensor) else x
    return x.cpu().contiguous() if args.rank == 0 else None


# ------------------------------------------------------------------------------------------- trading time and memory

def networks(model):
    """The modules of a task that are called: itself, or, of a ModuleDict, each."""
    return list(model.values()) if isinstance(model, nn.ModuleDict) else [model]


def shard(model, args):
    """FSDP2: each process keeps a part of every tensor, and gathers a block's when it is that block's turn."""
    precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if args.bf16 else None, reduce_dtype=torch.float32,
                                     cast_forward_inputs=False)
    warnings.filterwarnings("ignore", message=".*returned a view tensor")    # which nobody changes in place
    model.to(memory_format=torch.contiguous_format)                          # FSDP2 takes no other layout
    for network in networks(model):
        for part in network.modules():
            if isinstance(part, Block):                                      # a ResBlock and its attentions together:
                for turn in zip_longest(part.resnets, part.attentions, part.temporal_attentions):   # fewer messages
                    fully_shard([p for p in turn if p is not None], mp_policy=precision)
                for change in (*part.downsamplers, *part.upsamplers):
                    fully_shard(change, mp_policy=precision)
        fully_shard(network, mp_policy=precision)                            # the rest; SPADE's too, since FSDP2 does
                                                                             # not see into what Spade returns


def replay(backward, example, weights):
    """`backward` as one recorded CUDA graph: a small model's kernels are over sooner than they are launched."""
    static, side = [x.clone() for x in example], torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):                                                   # cuDNN and cuBLAS settle before recording
            backward(*static)
    torch.cuda.current_stream().wait_stream(side)
    for p in weights.parameters.values():                                    # the recorded backward makes the gradients
        p.grad = None
    weights.fresh = True
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = backward(*static)

    def replayed(*batch):
        for old, new in zip(static, batch, strict=True):
            old.copy_(new)
        graph.replay()
        return value
    return replayed


def compile_blocks(model):
    """torch.compile, block by block: blocks of one size share their code, 28 pieces for the toy video model."""
    torch._dynamo.config.recompile_limit = 64                                # sizes of one class; 8 is the default
    for part in model.modules():
        if isinstance(part, BLOCKS):
            part.compile(dynamic=False)


def checkpoint_blocks(model):
    """Keeps no activation from inside a block but computes them again on the way back: less memory, more time. Nothing
    in a block is random."""
    for part in model.modules():
        if isinstance(part, (ResnetBlock, SpatialTransformer, TemporalAttention)):
            part.forward = partial(recompute, part.forward, use_reentrant=False, preserve_rng_state=False)
