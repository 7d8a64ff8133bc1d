"""The training loop, one for every stage: Sec. 4.1 "Implementation details". The stages are in train.py, pretrain.py.

All random numbers of step k follow from the run's seed and k. So a stopped run resumes from its last readable
checkpoint and ends with the same weights, bit for bit, on a CPU with the same number of threads. Under torchrun each
process draws the whole batch and computes its share: the steps and the checkpoints are those of one process."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint as recompute
from tqdm import tqdm

from sd21.command import device, learning_rate, natural, option, positive_float, positive_int, seed, share
from sd21.files import atomic_write
from training.distributed import all_gather, rank, world_size
from training.report import AVERAGE, Report
from training.state import TrainState, checkpoints

# Since torch 2.10 Inductor fuses sums over rows with sums over columns and can lose gradients, such as that of a
# convolution's bias before a time embedding (pytorch issues 190796, 193061). Inductor reads this when first used.
os.environ.setdefault("TORCHINDUCTOR_MIX_ORDER_REDUCTION", "0")


@dataclass(frozen=True)
class Run:
    """How to train a stage; the defaults are the paper's if it has them. ValueError for options that exclude others."""
    stage: str
    out: Path = option(None, "folder to collect the trained parts in, and the checkpoints", Path, required=True)
    steps: int = option(64_000, "optimizer steps (64K, Sec. 4.2)", positive_int)
    minutes: float | None = option(None, "end after this time, if it comes before --steps", positive_float)
    batch: int = option(16, "clips a step (16, Sec. 4.2)", positive_int)
    accumulate: int = option(1, "compute each batch in this many parts: less memory, the same step", positive_int)
    seed: int = option(0, "of the data, the first weights and all noise", seed)
    device: str = option("cuda" if torch.cuda.is_available() else "cpu", "cpu or cuda", device)
    bf16: bool = option(False, "compute in bfloat16; AdamW updates float32 master weights", bool)
    ema: float = option(0.0, "decay of the averaged weights, which are saved; 0: no average", share)
    warmup: int = option(0, "steps over which the learning rate rises from 0", natural)
    cooldown: float = option(0.0, "share of the steps, at the end, over which it falls to 0", share)
    weight_decay: float = option(1e-2, "of AdamW", learning_rate)
    keep: str | None = option(None, "the average weights to save: the best by the loss on held-out clips (default for "
                              "clips of one's own), or the last (default for the toy set)", choices=("best", "last"))
    patience: int = option(0, "end after this many checkpoints in a row without better weights; 0: never", natural)
    save_every: int = option(1000, "steps between checkpoints", positive_int)
    sample_every: int = option(500, "steps between sample pictures, OUT/STAGE-STEP.png", positive_int)
    cuda_graph: bool = option(False, "record a step once and replay it: faster for small models (cuda)", bool)
    compile: bool = option(False, "torch.compile the model, record a step where that is possible: the fastest", bool)
    checkpointing: bool = option(False, "gradient checkpointing: less memory for more time", bool)
    fsdp: bool = option(False, "FSDP2 instead of DDP: every process keeps a part (torchrun)", bool)

    def __post_init__(self):
        if self.fsdp and "RANK" not in os.environ:
            raise ValueError("--fsdp: start it with torchrun --nproc-per-node N train.py ...")
        if self.batch % (world_size() * self.accumulate):
            raise ValueError(f"--batch {self.batch}: want a multiple of {world_size()} processes x "
                             f"--accumulate {self.accumulate}")
        if self.patience and self.keep != "best":
            raise ValueError("--patience: needs --keep best")
        if self.cuda_graph and not self.records():
            raise ValueError("--cuda-graph: want one process on a GPU, and neither --accumulate nor --fsdp")

    def records(self):
        """Whether a step becomes one CUDA graph: asked for, and on one GPU, with one backward pass."""
        return (self.cuda_graph or self.compile) and (
            self.device == "cuda" and world_size() * self.accumulate == 1 and not self.fsdp)

    def generator(self, step):
        """All random numbers of a step. The factor is larger than any number of steps: two seeds share no step."""
        return torch.Generator(self.device).manual_seed(self.seed * 10_000_000 + step)


@dataclass
class Stage:
    """What is trained, on which batches, with which loss."""
    model: nn.Module                    # float32, on its device
    groups: list                        # for AdamW: names, parameters and learning rates
    pick: Callable                      # (step, generator) -> numbers of the clips in that step's batch; vae: the step
    load: Callable                      # (numbers, generator) -> tensors of the whole batch, [b, ...] each
    loss_of: Callable                   # (*tensors of a batch) -> its mean loss
    names: Callable                     # (numbers) -> names of these clips
    save: Callable                      # ({name: tensor} of the averaged weights) -> None
    validate: Callable = lambda: {}     # () -> {name: loss} on held-out clips, with the current weights
    sample: Callable | None = None      # () -> a picture of what the model makes now
    units: Callable | None = None       # (network) -> groups of modules that FSDP2 gathers together


def fit(stage, run):
    """Trains for run.steps steps or run.minutes, whichever ends first. A stopped run resumes; its minutes count, up to
    the checkpoint. ValueError for a loss or gradient that is not finite, or a full disk."""
    for group in stage.groups:
        count = sum(p.numel() for p in group["params"])
        print(f"{group['name']}: {len(group['params'])} tensors, {count:,} parameters, learning rate {group['lr']:g}")
    state = TrainState(stage, run)
    start, seconds = state.resume()
    try:
        take_steps(stage, run, state, start, seconds)
    except (OSError, FloatingPointError) as error:                           # a full disk, a loss that is not finite
        paths = checkpoints(run.out, run.stage)
        good = f"the last good checkpoint is {paths[-1]}" if paths else "there is no checkpoint yet"
        raise ValueError(f"{error}; {good}") from None


def take_steps(stage, run, state, start, seconds):
    """The steps of `fit` from `start` on. OSError for a full disk, FloatingPointError for a loss that is not finite."""
    if start:                                                                # the stopped run may have written its
        state.export(start)                                                  # checkpoint but not the model folder
    train_step = make_train_step(stage, state, run, start)
    first = evaluate(stage.validate)
    if first and not start:
        print(f"first loss, on held-out clips: {sum(first.values()) / len(first):.4f}")
    columns = [*first, AVERAGE] if run.keep == "best" else list(first)
    report = Report(run.out / f"{run.stage}.csv", columns, start) if rank() == 0 else None
    first_bad_step = torch.full((), run.steps, device=run.device)            # stays on the GPU: .item() waits for it
    began, limit, running = time.monotonic() - seconds, 60 * (run.minutes or math.inf), None
    impatient = lambda step: 0 < run.patience * run.save_every <= step - state.best_step
    end = start if seconds >= limit or impatient(start) else run.steps
    progress = tqdm(range(start, end), initial=start, total=run.steps, desc=run.stage, mininterval=2,
                    disable=rank() > 0)
    for step in progress:
        spent = max(all_gather((time.monotonic() - began) / limit)) if run.minutes else 0
        left = 1 - max(step / run.steps, spent)                              # share of the run, from 1 to 0
        loss = train_step(step, learning_rate_scale(step, left, run.warmup, run.cooldown))
        first_bad_step = torch.where(loss.isfinite(), first_bad_step, first_bad_step.clamp(max=step))
        after, last = step + 1, left <= 0 or step + 1 == run.steps
        due = last or after % run.save_every == 0
        if step % 50 == 0 or due:                                            # 50: often enough to watch the loss
            mean = sum(all_gather(loss.item())) / world_size()
            bad = min(all_gather(first_bad_step.item()))
            if bad < run.steps:
                clips = ", ".join(stage.names(stage.pick(bad, run.generator(bad))))      # pick draws first: same clips
                raise FloatingPointError(f"the loss or its gradient is not finite at step {bad}, with clips {clips}")
            running = mean if running is None else 0.9 * running + 0.1 * mean            # of the loss
            progress.set_postfix(loss=f"{running:.4f}")
            losses, note = (evaluate(stage.validate) if due else {}), ""
            if due and run.keep == "best":
                with state.averaged():
                    averages = evaluate(stage.validate).values()
                losses[AVERAGE] = all_gather(sum(averages) / len(averages))[0]           # rank 0's: all decide alike
                state.best, state.best_step = min((state.best, state.best_step), (losses[AVERAGE], after))
                last = last or impatient(after)
                note = f"; held out, average weights: {losses[AVERAGE]:.4f}, best {state.best:.4f} at {state.best_step}"
            if rank() == 0:
                report.add(after, time.monotonic() - began, mean, **losses)
        if stage.sample and (last or after % run.sample_every == 0):
            with state.averaged():
                picture = evaluate(stage.sample)
            if rank() == 0:
                with atomic_write(run.out / f"{run.stage}-{after:06}.png") as path:
                    picture.save(path)
        if due:
            state.write(after, time.monotonic() - began)
            tqdm.write(f"{run.stage} step {after}: loss {running:.4f}{note}")
            if rank() == 0:
                report.draw()
        if last and after < run.steps:                                       # else the bar would end one step early
            break


def evaluate(function):
    """function(), without gradients and not compiled: compiling again, for its sizes, would take a minute."""
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        return function()


def learning_rate_scale(step, left, warmup, cooldown):
    """The factor of the learning rates: rises over the first `warmup` steps, falls to 0 over the last share `cooldown`.
    left: the share of the run that is still to do, from 1 to 0."""
    rising, falling = (step + 1) / (warmup + 1), max(left, 0) / max(cooldown, 1e-9)  # cooldown 0: 0 only if left is 0
    return min(1, rising, falling)


def make_train_step(stage, state, run, start=0):
    """Returns train_step(step, scale) -> loss, at `scale` times the learning rates. Turns off cuDNN attention in this
    process: it is no faster, and its gradient is NaN where all scores are near -120 (pytorch issue 196678)."""
    torch.backends.cuda.enable_cudnn_sdp(False)
    objective = stage.loss_of
    if world_size() > 1 and not run.fsdp:                                    # DDP wants one module that holds the model
        module = nn.Module()                                                 # and returns the loss
        module.model, module.forward = stage.model, stage.loss_of
        objective = DistributedDataParallel(module, gradient_as_bucket_view=True)

    def batch(step):                                                         # this process's share of it
        random = run.generator(step)
        return [x[rank()::world_size()] for x in stage.load(stage.pick(step, random), random)]

    def backward(*tensors):                                                  # in --accumulate parts, one by one
        total = 0
        for part in zip(*(x.chunk(run.accumulate) for x in tensors), strict=True):
            loss = objective(*part) / run.accumulate
            loss.backward()
            state.collect_gradients()
            total = total + loss.detach()
        return total
    if run.compile:
        print(f"a step: compiled, {'then recorded as one CUDA graph' if run.records() else 'without a CUDA graph'}")
    compute = record_cuda_graph(backward, batch(start), state) if run.records() else backward

    def train_step(step, scale=1.0):
        loss = compute(*batch(step))
        norm = state.step(step, scale)
        return torch.where(norm.isfinite(), loss, norm)                      # reports a gradient that is not finite,
    return train_step                                                        # even if its loss is


def record_cuda_graph(backward, example, state):
    """`backward` as one CUDA graph: Python launches the kernels of a small model more slowly than a GPU runs them."""
    static, side = [x.clone() for x in example], torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):                                                   # cuDNN and cuBLAS choose their kernels in
            backward(*static)                                                # the first calls, before the recording
    torch.cuda.current_stream().wait_stream(side)
    state.stage.model.zero_grad()                                            # the recorded backward makes the gradients
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = backward(*static)

    def replay(*batch):
        torch._foreach_copy_(static, batch)
        graph.replay()
        return loss
    return replay


def compile_blocks(model, blocks):
    """torch.compile, block by block: blocks of one size share their code, 28 pieces for the toy video model."""
    torch._dynamo.config.recompile_limit = 64                                # sizes of one class; 8 is the default
    for part in model.modules():
        if isinstance(part, blocks):
            part.compile(dynamic=False)


def checkpoint_blocks(model, blocks):
    """The backward pass computes the activations in a block again: less memory, more time. Nothing there is random."""
    for part in model.modules():
        if isinstance(part, blocks):
            part.forward = partial(recompute, part.forward, use_reentrant=False, preserve_rng_state=False)
