"""Training: Sec. 3.3 Eq. 5, Sec. 4.1 "Implementation details".

here  loss (Eq. 5), parameter_groups, and one loop, `fit`, for the four stages of the paper's road in small:

    python train.py vae    --like toy --out mine     an autoencoder: pictures to latents of unit variance and back
    python train.py image  --like toy --out mine     an image model and its text encoder on stills: "SD2.1 in small"
    python train.py video  --like toy --out mine     grown to 3D by the code that grows SD2.1, trained by Eq. 5
    python train.py tsr    --like toy --out mine     temporal super-resolution: the video model, between two frames

--like names a model folder whose config.json files say how large everything is; --out collects the trained parts. Each
stage reads what the ones before it wrote there. The defaults are the paper's, or SD2.1's where the paper is silent; the
small model learns from scratch and takes higher rates: toy/README.md has its commands. A run that was stopped goes on
from its last checkpoint when the same command is given again. --data names a folder of clips of your own. On several
GPUs, or hosts, the same commands run under torchrun: `torchrun --nproc-per-node 8 train.py video ...`.

ours  AdamW (0.9, 0.999), weight decay 1e-2, gradients clipped to norm 1, 10 % empty captions: the paper is silent. It
      names two rates, temporal and spatial (Sec. 4.1); read as: what is new 2e-5, what is copied from SD 2e-6, so the
      zero convolutions and projectors of AppearNet, which are new and spatial, count as new.
"""

import argparse
import math
import os
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint as recompute
from tqdm import tqdm

import weights
from appearnet import Spade, VideoModel, is_new
from clip import TextEncoder, Tokenizer, learn_merges, save_merges
from clips import ClipSet
from data import ToySet
from files import from_pixels
from microcinema import between
from report import Report
from sampler import add_noise, appearance_noise
from unet3d import Downsample, ResnetBlock, SpatialTransformer, TemporalAttention, UNet3D, Upsample
from vae import AutoencoderKL


def loss(f_theta, z_0, condition, text, t, eps_n, schedule, lam=0.03, weighting="epsilon"):
    """Eq. 5: the mean of |f_theta(z_t, t, z^c, c) - eps|^2 over all frames, for noise with the appearance prior.

    The target is the total noise eps = lam z^c + eps_n of Eq. 3, not eps_n. z_0 and eps_n [b, 4, n, h, w], condition
    (z^c) [b, 4, 1 or n, h, w], text (c) [b, l, d], t [b]. lam = 0 is the plain loss of the image model. `weighting` "v"
    divides by alpha_bar: the error of v (Salimans & Ho 2022, Sec. 4), in which the first, noisiest steps weigh more.
    """
    alpha_bar = schedule.at(t, z_0)
    eps = appearance_noise(eps_n, condition, lam)                            # Eq. 3
    z_t = add_noise(z_0, eps, alpha_bar)                                     # Eq. 4
    error = (f_theta(z_t, t, condition, text).float() - eps) ** 2            # Eq. 5
    return (error / alpha_bar if weighting == "v" else error).mean()


def parameter_groups(model, lr_temporal=2e-5, lr_spatial=2e-6):
    """The two learning rates of Sec. 4.1, for AdamW: what is new to SD2.1, and what was copied from it."""
    groups = [{"name": "new", "lr": lr_temporal, "params": []},
              {"name": "from the image model", "lr": lr_spatial, "params": []}]
    for name, p in model.named_parameters():
        groups[not is_new(name)]["params"].append(p)
    for group in groups:
        count = sum(p.numel() for p in group["params"])
        print(f"{group['name']}: {len(group['params'])} tensors, {count:,} parameters, learning rate {group['lr']:g}")
    return groups


# -------------------------------------------------------------------------------------------------------- the one loop

def checkpoint(path, tensors, step):
    """Writes tensors and step beside, then renames: a complete checkpoint or none."""
    beside = path.with_name(path.name + ".part")
    save_file({k: v.contiguous() for k, v in tensors.items()}, beside, metadata={"step": str(step)})
    os.replace(beside, path)


class Objective(nn.Module):
    """A model and its loss as one module, so that DistributedDataParallel sees the whole step."""

    def __init__(self, model, loss_of):
        super().__init__()
        self.model, self.loss_of = model, loss_of

    def forward(self, *tensors):
        return self.loss_of(*tensors)


BUCKETS = 5                                                                  # of the diffusion steps, to validate in


def fit(model, draw, loss_of, groups, save, args, validate=dict):
    """Trains `model` for args.steps steps and hands its averaged weights to `save`.

    draw(step, generator) -> the tensors of one batch; loss_of(*tensors) -> its loss. All randomness of a step comes
    from its generator, seeded by the run's seed and the step's number: a resumed run draws what the unbroken would.
    Under torchrun each of args.world processes draws the whole batch, takes its share of it, and DDP averages their
    gradients: the same steps as one process would take, and a checkpoint that does not know how many they were.
    validate() -> {name: loss} at each checkpoint. The numbers are in STAGE.csv, and drawn in STAGE.png, of --out.
    """
    if args.batch % (args.world * args.accumulate):
        raise ValueError(f"--batch {args.batch}: want a multiple of {args.world} processes x "
                         f"--accumulate {args.accumulate}")
    if args.cuda_graph and args.world * args.accumulate > 1:
        raise ValueError("--cuda-graph: want one process and no --accumulate")
    path, start, part = args.out / f"{args.stage}.checkpoint.safetensors", 0, args.out / PARTS[args.stage]
    if any(part.glob("*.safetensors")) and not path.exists():
        raise ValueError(f"{part}: holds trained weights already; name another --out, or move them away")
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=1e-2, fused=args.device == "cuda")
    rates = [group["lr"] for group in groups]
    parameters = dict(model.named_parameters())
    ema = {name: p.detach().clone() for name, p in parameters.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    for p in parameters.values():                                            # AdamW makes its state at the first step:
        optimizer.state[p] = {"step": torch.zeros((), device=p.device if args.device == "cuda" else "cpu"),
                              "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}     # make it now

    def state():
        moments = {f"adam.{key}.{name}": value for name, p in parameters.items()
                   for key, value in optimizer.state[p].items()}
        return {f"model.{k}": p.data for k, p in parameters.items()} | {f"ema.{k}": v for k, v in ema.items()} | moments

    if path.exists():
        stored = load_file(path, device=args.device)
        for name, tensor in state().items():
            tensor.copy_(stored[name])
        with safe_open(path, framework="pt") as file:
            start = int(file.metadata()["step"])
        print(f"going on from {path}, step {start}")

    def batch(step):
        whole = draw(step, torch.Generator(args.device).manual_seed(args.seed * 10_000_000 + step))
        return [x[args.rank::args.world] for x in whole]

    objective = Objective(model, loss_of)
    if args.world > 1:
        objective = DistributedDataParallel(objective)

    def backward(*tensors):                                                  # in --accumulate parts, one by one
        total = 0
        for i, part in enumerate(zip(*(x.chunk(args.accumulate) for x in tensors), strict=True), 1):
            more = args.world > 1 and i < args.accumulate                    # the processes share gradients at the end
            with objective.no_sync() if more else nullcontext(), \
                    torch.autocast(args.device, torch.bfloat16, enabled=args.bf16, cache_enabled=False):
                value = objective(*part) / args.accumulate
            value.backward()
            total = total + value.detach()
        return total

    if args.cuda_graph:
        backward = replay(backward, batch(start), optimizer)
    running, began, bad = None, time.monotonic(), torch.full((), -1, device=args.device)
    report = Report(args.out / f"{args.stage}.csv", list(validate()), start) if args.rank == 0 else None
    progress = tqdm(range(start, args.steps), initial=start, total=args.steps, desc=args.stage, mininterval=2,
                    disable=args.rank > 0)
    for step in progress:
        left = 1 - max(step / args.steps, agreed((time.monotonic() - began) / (60 * args.minutes), args))  # 1 to 0
        scale = min(1, (step + 1) / (args.warmup + 1), max(left, 0) / max(args.cooldown, 1e-9))
        for group, lr in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = lr * scale
        value = backward(*batch(step))
        bad = torch.where((bad < 0) & ~value.isfinite(), step, bad)          # read now and then: a GPU is waited for
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=not args.cuda_graph)
        decay = min(args.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(ema.values()), [p.data for p in parameters.values()], 1 - decay)
        last = left <= 0 or step + 1 == args.steps
        due = last or (step + 1) % args.save_every == 0
        if step % 50 == 0 or due:
            now = agreed(value.item(), args)
            if not np.isfinite(now) or bad >= 0:
                good = f"the last good checkpoint is {path}" if path.exists() else "there is no checkpoint yet"
                raise ValueError(f"the loss is not finite at step {bad.item() if bad >= 0 else step}; {good}")
            running = now if running is None else 0.9 * running + 0.1 * now
            progress.set_postfix(loss=f"{running:.4f}")
            if args.rank == 0:
                report.add(step + 1, time.monotonic() - began, now, **validate() if due else {})
        if due and args.rank == 0:
            checkpoint(path, state(), step + 1)
            save(ema)
            report.draw()
            tqdm.write(f"{args.stage} step {step + 1}: loss {running:.4f}")
        if last:
            break
    wait_for_all(args)


def agreed(number, args):
    """The mean of a number over all processes, so that all of them decide alike."""
    if args.world == 1:
        return number
    mean = torch.tensor(number / args.world, dtype=torch.float64, device=args.device)
    distributed.all_reduce(mean)
    return mean.item()


def wait_for_all(args):
    """Until every process is here: what the first one wrote can be read."""
    if args.world > 1:
        distributed.barrier()


def replay(backward, example, optimizer):
    """`backward` as one recorded CUDA graph: a small model's kernels are over sooner than they are launched."""
    static, side = [x.clone() for x in example], torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):                                                   # cuDNN and cuBLAS settle before recording
            backward(*static)
    torch.cuda.current_stream().wait_stream(side)
    optimizer.zero_grad(set_to_none=True)                                    # the recorded backward makes the gradients
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
        if isinstance(part, (ResnetBlock, SpatialTransformer, TemporalAttention, Downsample, Upsample, Spade)):
            part.compile(dynamic=False)


def checkpoint_blocks(model):
    """Keeps no activation from inside a block but computes them again on the way back: less memory, more time."""
    for part in model.modules():
        if isinstance(part, (ResnetBlock, SpatialTransformer, TemporalAttention)):
            part.forward = partial(recompute, part.forward, use_reentrant=False)


def dataset(args, count, frames, windows=(), held_out=False):
    """`count` clips of the toy set, or windows of the clips in --data; of the tenth that is kept out, or not."""
    kind, where = (ToySet, ()) if args.data is None else (ClipSet, (args.data,))
    found = kind(*where, count, frames, args.fps, args.size, args.seed, held_out, windows)
    if args.data and not held_out:
        print(f"{args.data}: {found.summary()}")
    return found


def batches(args, clips, indices):
    """The clips with these numbers: {"frames": uint8 [b, 3, n, H, W], "caption": [b]}, b = --batch."""
    workers = max(1, (os.cpu_count() or 2) - 1)
    return torch.utils.data.DataLoader(clips, args.batch, sampler=indices, num_workers=workers, prefetch_factor=4)


@torch.no_grad()
def encode_all(vae, scale, tokenizer, args, clips):
    """Clips once through the autoencoder: latents [clips, 4, n, h, w] and token ids [clips, 77], in memory.

    The latents are the means of the posterior, multiplied by the scale factor.
    """
    latents, ids = [], []
    rounds = -(-len(clips) // args.world)                                    # each process encodes every world-th clip
    mine = [i % len(clips) for i in range(args.rank, rounds * args.world, args.world)]
    for batch in tqdm(batches(args, clips, mine), desc="encoding the clips", mininterval=2, disable=args.rank > 0):
        x = from_pixels(batch["frames"].to(args.device))                     # [b, 3, n, H, W]
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
            mean, _ = vae.encode(x.transpose(1, 2).flatten(0, 1))
        latents.append((mean.float() * scale).unflatten(0, (len(x), -1)).transpose(1, 2).half())
        ids.append(tokenizer(batch["caption"]))
    return [gathered(torch.cat(x).to(args.device), args)[:len(clips)] for x in (latents, ids)]


def gathered(x, args):
    """The rows of every process: its k-th is number k * world + rank of all."""
    if args.world == 1:
        return x
    shares = [torch.empty_like(x) for _ in range(args.world)]
    distributed.all_gather(shares, x.contiguous())
    return torch.stack(shares, dim=1).flatten(0, 1)


# ---------------------------------------------------------------------------------------------------------- the stages

def build(model_class, folder, **more):
    """A fresh model of the size that a folder's config.json says, and that config."""
    config = weights.read_json(folder / "config.json")
    return model_class(**weights.arguments(model_class, config, folder / "config.json"), **more), config


def schedule_for_eq_5(args):
    """The noise schedule, on the device. Eq. 5 trains eps: ValueError if the model was trained to tell v."""
    schedule = weights.load_schedule(args.out)
    if schedule.prediction_type != "epsilon":
        raise ValueError(f"{args.out}: a v-prediction model; Eq. 5 trains a network that predicts eps, so start from "
                         "one that does (SD2.1-base, not the 768-pixel SD2.1)")
    schedule.alpha_bar = schedule.alpha_bar.to(args.device)
    return schedule


def train_vae(args):
    """|x - x_hat| and its square on frames of the toy set, with a little KL; then the scale for unit variance."""
    vae, config = build(AutoencoderKL, args.like / "vae")
    config.pop("scaling_factor", None)
    vae.to(args.device, memory_format=torch.channels_last)
    encode, decode = (torch.compile(f) if args.compile else f for f in (vae.encode, vae.decode))
    clips, stream = dataset(args, args.clips, args.frames), None

    def draw(step, generator):                                               # four frames of each clip
        nonlocal stream
        if stream is None:
            numbers = [i % args.clips for i in range(step * args.batch, args.steps * args.batch)]
            stream = iter(batches(args, clips, numbers))
        x = from_pixels(next(stream)["frames"].to(args.device)).transpose(1, 2).flatten(0, 1)       # [(b n), 3, H, W]
        pick = torch.randperm(len(x), generator=generator, device=args.device)[:args.batch * 4]
        x = x[pick].contiguous(memory_format=torch.channels_last)
        latent = (len(x), config["latent_channels"], x.shape[2] // vae.factor, x.shape[3] // vae.factor)
        return x, torch.randn(latent, generator=generator, device=args.device)

    def loss_of(x, noise):
        mean, logvar = encode(x)
        error = decode(mean + (0.5 * logvar).exp() * noise).float() - x
        kl = 0.5 * (mean.float() ** 2 + logvar.float().exp() - 1 - logvar.float()).mean()
        return error.abs().mean() + 4 * error.pow(2).mean() + 1e-4 * kl

    fit(vae, draw, loss_of, [{"params": list(vae.parameters()), "lr": args.lr}],
        lambda tensors: weights.save(tensors, config, args.out / "vae"), args)

    vae, _ = weights.load_vae(args.out)
    stills = dataset(args, 256, 1)
    with torch.inference_mode():                                             # of what will be diffused: the means
        squares = [vae.encode(from_pixels(item["frames"]).transpose(0, 1))[0].pow(2).mean() for item in stills]
    scale = torch.stack(squares).mean().rsqrt().item()
    if args.rank == 0:
        weights.write_json(config | {"scaling_factor": round(scale, 5)}, args.out / "vae" / "config.json")


def train_image(args):
    """The image model and its text encoder, together, on key frames: Eq. 5 with one frame and no prior."""
    vae, scale = weights.load_vae(args.out)
    text_encoder, text_config = build(TextEncoder, args.like / "text_encoder")
    unet, config = build(UNet3D, args.like / "unet", temporal=False)
    file = args.like / "scheduler" / "scheduler_config.json"
    if args.rank == 0:
        weights.write_json(weights.read_json(file), args.out / "scheduler" / file.name)
        merges = learn_merges(dataset(args, 20_000, 1).captions(), text_config["vocab_size"] - 514)
        (args.out / "tokenizer").mkdir(exist_ok=True)
        save_merges(merges, args.out / "tokenizer" / "merges.txt")
    wait_for_all(args)
    schedule = schedule_for_eq_5(args)
    tokenizer = Tokenizer.load(args.out)
    encode = lambda clips: encode_all(vae.to(args.device), scale, tokenizer, args, clips)
    z, ids = encode(dataset(args, args.clips, 1))
    kept_out = encode(dataset(args, 32, 1, held_out=True))
    print(f"latents: mean {z.float().mean():.3f}, deviation {z.float().std():.3f}")
    model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}).to(args.device)
    if args.compile:
        compile_blocks(unet)
    empty = tokenizer([""]).to(args.device)

    def loss_of(z_0, text_ids, t, eps_n):
        return loss(lambda z_t, t, _, text: unet(z_t, t, text), z_0, 0 * z_0, text_encoder(text_ids), t, eps_n,
                    schedule, lam=0, weighting=args.weighting)

    def save(tensors):
        part = lambda prefix: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        weights.save(part("unet."), config, args.out / "unet")
        weights.save(part("text_encoder."), text_config, args.out / "text_encoder", stem="model")

    fit(model, lambda step, generator: draw_batch(z, ids, empty, schedule, generator, args), loss_of,
        [{"params": list(model.parameters()), "lr": args.lr}], save, args,
        lambda: by_bucket(loss_of, *kept_out, schedule))


def train_video(args):
    """The image model grown to 3D, with AppearNet and the appearance noise prior, on clips: Eq. 5."""
    where = (args.start or args.like) / "video" / "config.json"
    config = weights.read_json(where)
    for key, value in weights.read_json(args.out / "unet" / "config.json").items():
        if config.get(key, value) != value:
            raise ValueError(f"{where}: {key} is {config[key]}, but {value} in the image model that it grows from")
    if args.start:
        model = weights.load_video(args.start)
    else:
        model = VideoModel.grow(weights.load_unet(args.out), **weights.arguments(VideoModel, config, where))
    n = args.frames
    config["sampling"] = config["sampling"] | {"size": args.size, "frames": n, "fps": args.fps}
    train_motion(model, config, args, n, lambda z_0: z_0[:, :, n // 2:n // 2 + 1])       # the centre frame


def train_tsr(args):
    """Temporal super-resolution (Sec. 3.1): the video model, given the first and last of five frames.

    It is used from 2 to 8 fps and from 8 to 32, so it sees windows at 8 and at 32 (4 and 16 times --fps), anywhere in
    a clip.
    """
    start = (args.start, "tsr") if args.start else (args.out, "video")
    config = weights.read_json(start[0] / start[1] / "config.json")
    config["sampling"] = {key: value for key, value in config["sampling"].items() if key != "fps"} | {"frames": 5}
    windows = (4 * args.fps, 16 * args.fps)
    train_motion(weights.load(*start), config, args, 5, lambda z_0: between(z_0[:, :, 0], z_0[:, :, -1], 5), windows)


def train_motion(model, config, args, n, condition_of, windows=()):
    """Eq. 5 on clips of n frames; condition_of(z_0) -> what AppearNet and the noise prior are given."""
    config["sampling"] = config["sampling"] | {"lam": args.lam}
    vae, scale = weights.load_vae(args.out)
    text_encoder, tokenizer = weights.load_text_encoder(args.out).to(args.device), Tokenizer.load(args.out)
    model.to(args.device).train()
    if args.checkpointing:
        checkpoint_blocks(model)
    if args.compile:
        compile_blocks(model)
    schedule = schedule_for_eq_5(args)
    encode = lambda clips: encode_all(vae.to(args.device), scale, tokenizer, args, clips)
    z, ids = encode(dataset(args, args.clips, n, windows))
    kept_out = encode(dataset(args, 32, n, windows, held_out=True))
    empty = tokenizer([""]).to(args.device)

    def loss_of(z_0, text_ids, t, eps_n):
        with torch.no_grad():
            text = text_encoder(text_ids)
        return loss(model, z_0, condition_of(z_0), text, t, eps_n, schedule, args.lam, args.weighting)

    fit(model, lambda step, generator: draw_batch(z, ids, empty, schedule, generator, args), loss_of,
        parameter_groups(model, args.lr_temporal, args.lr_spatial),
        lambda tensors: weights.save(tensors, config, args.out / args.stage), args,
        lambda: by_bucket(loss_of, *kept_out, schedule))


@torch.no_grad()
def by_bucket(loss_of, z, ids, schedule):
    """The loss on clips that were kept out, the same clips, steps and noise each time: {"t 0-199": loss, ...}."""
    generator, last = torch.Generator(z.device).manual_seed(0), len(schedule.alpha_bar)
    losses, z_0 = {}, z.float()
    for k in range(BUCKETS):
        low, high = k * last // BUCKETS, (k + 1) * last // BUCKETS
        t = torch.randint(low, high, (len(z),), generator=generator, device=z.device)
        eps_n = torch.randn(z_0.shape, generator=generator, device=z.device)
        with torch.compiler.set_stance("force_eager"):                       # not worth a minute of compiling
            losses[f"t {low}-{high - 1}"] = loss_of(z_0, ids, t, eps_n).item()
    return losses


def draw_batch(z, ids, empty, schedule, generator, args):
    """A random batch: z_0 [b, 4, n, h, w], ids with some captions emptied, uniform steps t [b], i.i.d. noise eps_n."""
    def random(shape, sampler=torch.rand, **how):
        return sampler(**how, size=shape, generator=generator, device=args.device)
    pick = random((args.batch,), torch.randint, low=0, high=len(z))
    z_0 = z[pick].float()
    text_ids = torch.where(random((args.batch, 1)) < args.drop_text, empty, ids[pick])
    t = random((args.batch,), torch.randint, low=0, high=len(schedule.alpha_bar))
    return z_0, text_ids, t, random(z_0.shape, torch.randn)


STAGES = {"vae": train_vae, "image": train_image, "video": train_video, "tsr": train_tsr}
PARTS = {"vae": "vae", "image": "unet", "video": "video", "tsr": "tsr"}      # the folder that tells a stage was trained


def main(argv=None):
    """The command line; see the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("stage", choices=STAGES, help="what to train")
    add("--like", type=Path, default=Path("toy"), help="model folder whose config.json files give the sizes")
    add("--start", type=Path, help="video, tsr: begin with that model of this folder, not the one it comes from")
    add("--out", type=Path, required=True, help="folder to collect the trained parts in, and the checkpoint")
    add("--steps", type=int, default=64_000, help="optimiser steps (64K in the ablations, Sec. 4.2)")
    add("--minutes", type=float, default=math.inf, help="end after this time, if it comes before --steps")
    add("--batch", type=int, default=16, help="clips a step (16, Sec. 4.2); vae: four frames of each")
    add("--data", type=Path, help="folder of clips of your own with captions, see clips.py (default: the toy set)")
    add("--clips", type=int, default=50_000, help="how many clips of the toy set, or windows of yours, to train on")
    add("--fps", type=float, default=2.0, help="frames a second of a clip (2, Sec. 4.1); shorter clips need more")
    add("--size", type=int, default=128, help="height and width in pixels")
    add("--frames", type=int, default=9, help="N, frames of a clip (9, Sec. 4.1); image always has 1, tsr 5")
    add("--lr", type=float, default=1e-4, help="learning rate of the stages vae and image")
    add("--lr-temporal", type=float, default=2e-5, help="learning rate of what is new (2e-5, Sec. 4.1)")
    add("--lr-spatial", type=float, default=2e-6, help="learning rate of what the image model brings (2e-6, Sec. 4.1)")
    add("--lam", type=float, default=0.03, help="lambda of Eq. 3, how much of z^c is in the noise (0.03, Fig. 6)")
    add("--weighting", choices=("epsilon", "v"), default="epsilon", help="epsilon: Eq. 5 as it is; v: over alpha_bar")
    add("--drop-text", type=float, default=0.1, help="share of captions emptied, for classifier-free guidance")
    add("--ema", type=float, default=0.0, help="decay of the average of the weights that is saved; 0: the last weights")
    add("--warmup", type=int, default=0, help="steps over which the learning rate rises from 0")
    add("--cooldown", type=float, default=0.0, help="share of the steps, at the end, over which it falls to 0")
    add("--seed", type=int, default=0, help="of the data, the first weights and all noise")
    add("--save-every", type=int, default=1000, help="steps between checkpoints")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    add("--accumulate", type=int, default=1, help="compute each batch in this many parts: less memory, the same step")
    add("--checkpointing", action="store_true", help="video, tsr: gradient checkpointing, less memory for more time")
    add("--bf16", action="store_true", help="compute in bfloat16 where it is safe; the weights stay float32")
    add("--cuda-graph", action="store_true", help="record a step once and replay it: faster for small models (cuda)")
    add("--compile", action="store_true", help="torch.compile the model: minutes to start, then faster")
    args = parser.parse_args(argv)
    for name in ("steps", "batch", "clips", "size", "frames", "save_every", "accumulate"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: want 1 or more")
    if args.fps <= 0:
        parser.error("--fps: want more than 0")
    args.rank, args.world = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    if args.world > 1:
        if args.device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))             # "cuda" means this one from here on
        distributed.init_process_group("nccl" if args.device == "cuda" else "gloo")
        if args.rank:
            sys.stdout = open(os.devnull, "w")                               # one of them speaks
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    try:
        STAGES[args.stage](args)
    except (ValueError, OSError) as e:
        print(f"train.py: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    finally:
        if args.world > 1:
            distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
