"""Training: Sec. 3.3 Eq. 5, Sec. 4.1 "Implementation details". The loop itself is in loop.py.

here  loss (Eq. 5), parameter_groups, and the four stages of the paper's road, each one command:

    python train.py vae   --out mine      an autoencoder: pictures to latents of unit variance and back
    python train.py image --out mine      an image model and its text encoder on stills: "SD2.1 in small"
    python train.py video --out mine      an image model grown to 3D, by Eq. 5 with the appearance noise prior
    python train.py tsr   --out mine      temporal super-resolution: the video model, between two frames

    python train.py video --data my_clips --out mine                      on clips of your own, see clips.py
    python train.py video --model path/to/sd21 --data my_clips --out mine --bf16       the real thing
    python train.py latents --for video --data my_clips --out latents     the autoencoder's work once, for --latents
    torchrun --nproc-per-node 8 train.py video --out mine ...             on several GPUs, or hosts

--out collects what is trained. What a stage needs and does not train is taken from there, if an earlier stage left it
there, else from --model, whose config files also say how large everything is; a line says which. The defaults are the
paper's, or SD2.1's where the paper is silent, unless the model folder brings its own, as toy/ does ("training" in its
config.json). A run that was stopped goes on when its command is given again. `train.py STAGE --help` has the options.

ours  AdamW (0.9, 0.999), weight decay 1e-2, gradients clipped to norm 1, 10 % empty captions: the paper is silent. It
      names two rates, temporal and spatial (Sec. 4.1); read as: what is new 2e-5, what is copied from SD 2e-6, so the
      zero convolutions and projectors of AppearNet, which are new and spatial, count as new.
"""

import argparse
import math
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import distributed, nn

import latents
import weights
from appearnet import INJECTIONS, VideoModel, is_new
from clip import TextEncoder, Tokenizer, learn_merges, save_merges
from clips import ClipSet
from data import ToySet
from files import ArgumentParser, contact_sheet, from_pixels, to_pixels
from loop import Task, checkpoint_blocks, compile_blocks, fit, unanimous
from microcinema import MicroCinema, Sampling, between, check_device
from sampler import add_noise, appearance_noise
from unet3d import UNet3D
from vae import AutoencoderKL


def loss(f_theta, z_0, condition, text, t, eps_n, schedule, lam=0.03, weighting="epsilon"):
    """Eq. 5: the mean of |f_theta(z_t, t, z^c, c) - eps|^2 over all frames, for noise with the appearance prior.

    The target is the total noise eps = lam z^c + eps_n of Eq. 3, not eps_n. z_0 and eps_n [b, 4, n, h, w], condition
    (z^c) [b, 4, 1 or n, h, w], text (c) [b, l, d], t [b]. lam = 0 is the plain loss of the image model. `weighting` "v"
    divides by alpha_bar: the error of v (Salimans & Ho 2022, Sec. 4), in which the first, noisiest steps weigh more.
    The network computes in the dtype of `text`, all else here is float32.
    """
    alpha_bar = schedule.at(t, z_0)
    eps = appearance_noise(eps_n, condition, lam)                            # Eq. 3
    z_t = add_noise(z_0, eps, alpha_bar)                                     # Eq. 4
    output = f_theta(z_t.to(text.dtype), t, condition.to(text.dtype), text).float()
    error = (output - eps) ** 2                                              # Eq. 5
    return (error / alpha_bar if weighting == "v" else error).mean()


def parameter_groups(model, lr_temporal=2e-5, lr_spatial=2e-6):
    """The two learning rates of Sec. 4.1, for AdamW: what is new to SD2.1, and what was copied from it."""
    groups = [{"name": "new", "lr": lr_temporal, "params": []},
              {"name": "from the image model", "lr": lr_spatial, "params": []}]
    for name, p in model.named_parameters():
        groups[not is_new(name)]["params"].append(p)
    return groups


# -------------------------------------------------------------------------------------------------- what a stage needs

def source(part, args):
    """The folder or file that a part is read from: --out, if a stage before this one left it there, else --model."""
    trained = any((args.out / part).glob("*.safetensors"))
    if not unanimous(int(trained), args):
        raise ValueError(f"{args.out / part}: not all processes see the same there; want a folder that all hosts share")
    path = args.out if trained else args.model
    print(f"{part}: from {path}")
    return path


def frozen(args):
    """The parts that no later stage trains, on the device and in the dtype to compute in: (vae, scale, text_encoder,
    tokenizer)."""
    how = {"dtype": torch.bfloat16 if args.bf16 else torch.float32, "device": args.device}
    vae, scale = weights.load_vae(source("vae", args), **how)
    where = source("text_encoder", args)
    merges = args.merges or (where if where.is_dir() else where.parent)
    return vae, scale, weights.load_text_encoder(where, **how), Tokenizer.load(merges)


def schedule_for_eq_5(path, args):
    """The noise schedule, on the device. Eq. 5 trains eps: ValueError if the model was trained to tell v."""
    schedule = weights.load_schedule(path)
    if schedule.prediction_type != "epsilon":
        raise ValueError(f"{path}: a v-prediction model; Eq. 5 trains a network that predicts eps, so start from "
                         "one that does (SD2.1-base, not the 768-pixel SD2.1)")
    schedule.alpha_bar = schedule.alpha_bar.to(args.device)
    return schedule


def fresh(model_class, part, args, **more):
    """A model to train from nothing, of the size that the part's config.json in --model says; and that config."""
    config, where = weights.read_config(args.model, part)
    return model_class(**weights.arguments(model_class, config, where) | more), config


def dataset(args, count, frames, windows=(), held_out=False):
    """`count` clips of the toy set, or windows of the clips in --data; of the tenth that is kept out, or not."""
    kind, where = (ToySet, ()) if args.data is None else (ClipSet, (args.data,))
    found = kind(*where, count, frames, args.fps, args.size, args.seed, held_out, windows)
    if args.data and not held_out:
        print(f"{args.data}: {found.summary()}")
    return found


def shape_of_clips(stage, args):
    """(frames of a clip, frame rates at which windows are cut, where not one clip is one window at --fps)."""
    if stage == "tsr":                                                       # used from 2 to 8 fps, and from 8 to 32
        return 5, (4 * args.fps, 16 * args.fps)
    return (1 if stage == "image" else args.frames), ()


def about(stage, scale, args):
    """What latents must have in common with the stage that trains on them."""
    frames, windows = shape_of_clips(stage, args)
    return {"frames": frames, "fps": list(windows) or [args.fps], "size": args.size, "scale": scale}


def two_sets(stage, args):
    """The clips that a stage trains on, and a few that are kept out."""
    return [dataset(args, count, *shape_of_clips(stage, args), held_out)
            for count, held_out in ((args.clips, False), (min(32, args.clips), True))]


def latent_clips(vae, scale, args):
    """The two sets of clips of a stage, as latents.Latents."""
    if args.latents:
        return latents.read(args.latents, about(args.stage, scale, args))
    return [latents.encode(vae, scale, clips, args) for clips in two_sets(args.stage, args)]


def draw_batches(clips, ids, empty, schedule, args):
    """Task.draw and Task.names: z_0 [b, 4, n, h, w], token ids with some captions emptied, uniform t [b], and eps_n."""
    def random(generator, shape, sampler=torch.rand, **how):
        return sampler(**how, size=shape, generator=generator, device=args.device)

    def pick(generator):
        return random(generator, (args.batch,), torch.randint, low=0, high=len(clips))

    def draw(step, generator):
        rows = pick(generator)
        z_0 = clips.rows(rows, args.device)
        text_ids = torch.where(random(generator, (args.batch, 1)) < args.drop_text, empty, ids[rows])
        t = random(generator, (args.batch,), torch.randint, low=0, high=len(schedule.alpha_bar))
        return z_0, text_ids, t, random(generator, z_0.shape, torch.randn)

    return {"draw": draw, "names": lambda step, generator: [clips.names[i] for i in pick(generator).tolist()]}


BUCKETS = 5                                                                  # of the diffusion steps, to validate in


@torch.no_grad()
def by_bucket(loss_of, z_0, ids, schedule):
    """The loss on clips that were kept out, the same clips, steps and noise each time: {"t 0-199": loss, ...}."""
    generator, last = torch.Generator(z_0.device).manual_seed(0), len(schedule.alpha_bar)
    losses = {}
    for k in range(BUCKETS):
        low, high = k * last // BUCKETS, (k + 1) * last // BUCKETS
        t = torch.randint(low, high, (len(z_0),), generator=generator, device=z_0.device)
        eps_n = torch.randn(z_0.shape, generator=generator, device=z_0.device)
        with torch.compiler.set_stance("force_eager"):                       # not worth a minute of compiling
            parts = zip(*(x.split(4) for x in (z_0, ids, t, eps_n)), strict=True)        # few at once: clips are large
            losses[f"t {low}-{high - 1}"] = sum(loss_of(*part).item() * len(part[0]) for part in parts) / len(z_0)
    return losses


def introduce(silence, args):
    """What to know before the first step: what guidance will need, and a loss to compare the first one with."""
    kept = 1 - args.drop_text
    print(f"{'share of clips':16}{'text c':10}{'z^c':8}noise prior      (guidance drops the text only)\n"
          f"{kept:<16.0%}{'kept':10}{'kept':8}kept\n{args.drop_text:<16.0%}{'dropped':10}{'kept':8}kept")
    print(f"loss of a network that always answers 0: {sum(silence.values()) / len(silence):.4f}")


def rows_of(*videos):
    """A contact sheet of videos [b, 3, n, H, W] in [-1, 1]: the first of each, then the second of each, ..."""
    pixels = [to_pixels(video).permute(0, 2, 3, 4, 1).cpu().numpy() for video in videos]
    return contact_sheet(*[clip for clips in zip(*pixels, strict=True) for clip in clips])


# ---------------------------------------------------------------------------------------------------------- the stages

FRAMES, STILLS = 9, 4                                                       # of a clip; of these, what the VAE is given


def train_vae(args):
    """|x - x_hat| and its square on stills, with a little KL; then the scale for unit variance.

    With --decoder-of the latents are another autoencoder's, and its decoder alone is trained further, for pictures that
    are nearer to the truth: every model that was trained on these latents can be used with it (as Stability AI did for
    SD, "ft-MSE").
    """
    if args.decoder_of:
        (vae, scale), (config, _) = weights.load_vae(args.decoder_of), weights.read_config(args.decoder_of, "vae")
        config["scaling_factor"] = scale
        trained = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
        vae.encoder.requires_grad_(False), vae.quant_conv.requires_grad_(False)
    else:
        vae, config = fresh(AutoencoderKL, "vae", args)
        trained = vae
        config["scaling_factor"] = None                                      # until it is measured
    vae.to(args.device, memory_format=torch.channels_last)
    like = vae.encoder.conv_in.weight                                        # bfloat16 or not: as it is by then
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    encode, decode = (torch.compile(f) if args.compile else f for f in (vae.encode, vae.decode))
    clips, stream, ahead = dataset(args, args.clips, FRAMES), None, None
    kept_out = torch.stack([item["frames"] for item in dataset(args, 3, FRAMES, held_out=True)])
    kept_out = from_pixels(kept_out.to(args.device)).transpose(1, 2)         # [3, n, 3, H, W]

    def numbers(step):
        return [i % args.clips for i in range(step * args.batch, args.steps * args.batch)]

    def draw(step, generator):                                               # a few frames of each clip
        nonlocal stream, ahead
        if step != ahead:                                                    # the first step, or a resumed run's first
            stream = iter(latents.loader(clips, numbers(step), args.batch))
        ahead = step + 1
        x = from_pixels(next(stream)["frames"].to(args.device)).transpose(1, 2).flatten(0, 1)       # [(b n), 3, H, W]
        pick = torch.randperm(len(x), generator=generator, device=args.device)[:args.batch * STILLS]
        x = x[pick].contiguous(memory_format=torch.channels_last)
        latent = (len(x), vae.decoder.conv_in.in_channels, x.shape[2] // vae.factor, x.shape[3] // vae.factor)
        return x, torch.randn(latent, generator=generator, device=args.device)

    def loss_of(x, noise):
        mean, logvar = (y.float() for y in encode(x.to(like.dtype)))
        x_hat = decode((mean + (0.5 * logvar).exp() * noise).to(dtype)).float()
        kl = 0.5 * (mean ** 2 + logvar.exp() - 1 - logvar).mean()
        return distance(x_hat, x) + 1e-4 * kl

    def distance(x_hat, x):
        return (x_hat - x).abs().mean() + 4 * (x_hat - x).pow(2).mean()

    @torch.no_grad()
    def validate():
        with torch.compiler.set_stance("force_eager"):                       # not worth a minute of compiling
            losses = [loss_of(x, 0).item() for x in kept_out]
        return {"kept out": sum(losses) / len(losses)}

    @torch.no_grad()
    def sample():                                                            # the truth, and what comes back
        frames = vae.decode(vae.encode(kept_out.flatten(0, 1).to(like.dtype))[0].to(dtype))
        return rows_of(*(x.transpose(1, 2) for x in (kept_out, frames.view_as(kept_out))))

    print(f"loss of an autoencoder that always answers grey: {distance(0 * kept_out, kept_out):.4f}")

    learns = trained.state_dict()
    others = {name: tensor for name, tensor in vae.state_dict().items() if name not in learns}
    name = "decoder" if args.decoder_of else "autoencoder"
    fit(Task("vae", trained, [{"name": name, "params": list(trained.parameters()), "lr": args.lr}], loss_of, draw,
             names=lambda step, generator: [clips[i]["name"] for i in numbers(step)[:args.batch]],
             save=lambda tensors: weights.save(others | tensors, config, args.out / "vae"), validate=validate,
             sample=sample), args)

    if args.rank == 0 and not args.decoder_of:
        vae = weights.load(args.out, "vae", device=args.device)              # as it was saved
        with torch.inference_mode():                                         # of what will be diffused: the means
            squares = [vae.encode(from_pixels(item["frames"].to(args.device)).transpose(0, 1))[0].pow(2).mean()
                       for item in dataset(args, min(256, args.clips), 1)]
        scale = torch.stack(squares).mean().rsqrt().item()
        weights.write_json(config | {"scaling_factor": round(scale, 5)}, args.out / "vae" / "config.json")


def train_image(args):
    """The image model and its text encoder, together, on key frames: Eq. 5 with one frame and no prior."""
    vae, scale = weights.load_vae(source("vae", args), torch.bfloat16 if args.bf16 else torch.float32, args.device)
    schedule = schedule_for_eq_5(args.model, args)
    if args.rank == 0 and not checkpoints("image", args):                    # a run that goes on has its merges
        found = weights.read_json(args.model / "scheduler" / "scheduler_config.json")
        weights.write_json(found, args.out / "scheduler" / "scheduler_config.json")
        most = weights.read_config(args.model, "text_encoder")[0].get("vocab_size", 49_408) - 514
        captions = latent_clips(vae, scale, args)[0].captions if args.latents else dataset(
            args, min(20_000, 5 * args.clips), 1).captions()
        (args.out / "tokenizer").mkdir(exist_ok=True)
        save_merges(learn_merges(captions, most), args.out / "tokenizer" / "merges.txt")
    if args.world > 1:
        distributed.barrier()                                                # all others read what was just written
    tokenizer = Tokenizer.load(args.out)
    vocabulary = {"vocab_size": tokenizer.vocab_size}                        # few words need fewer merges
    text_encoder, text_config = fresh(TextEncoder, "text_encoder", args, **vocabulary)
    unet, config = fresh(UNet3D, "unet", args, temporal=False)
    model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}).to(args.device)
    # Stills teach no words for motion. At the full rate the text encoder forgets which is which: a tenth.
    groups = [{"name": "U-Net", "params": list(unet.parameters()), "lr": args.lr},
              {"name": "text encoder", "params": list(text_encoder.parameters()), "lr": args.lr / 10}]

    def loss_of(z_0, ids, t, eps_n, f_theta=lambda z_t, t, _, text: unet(z_t, t, text)):
        return loss(f_theta, z_0, 0 * z_0, text_encoder(ids), t, eps_n, schedule, lam=0, weighting=args.weighting)

    def save(tensors):
        part = lambda prefix: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        weights.save(part("unet."), config, args.out / "unet")
        weights.save(part("text_encoder."), text_config | vocabulary, args.out / "text_encoder", stem="model")

    cinema = MicroCinema(tokenizer, text_encoder, vae, scale, unet, None, schedule,
                         Sampling(size=args.size, steps=15, guidance=3.0), progress=False)
    cinema.settings()                                                        # what cannot be sampled it says now

    def strip(kept_out):
        captions = kept_out.captions[:8]
        return rows_of(cinema.key_frame(captions, range(len(captions)))[None].transpose(1, 2))

    train_on_latents(model, groups, loss_of, save, vae, scale, tokenizer, schedule, args, strip)


def train_video(args):
    """The image model grown to 3D, with AppearNet and the appearance noise prior, on clips: Eq. 5."""
    where = source("unet", args)
    image_config, file = weights.read_config(where, "unet")
    config = weights.arguments(UNet3D, image_config, file)
    if args.start:
        config, file = weights.read_config(args.start, "video")
        for key, value in weights.arguments(UNet3D, image_config, file).items():
            if config.get(key, value) != value:
                raise ValueError(f"{file}: {key} is {config[key]}, but {value} in the image model of {where}")
        model = weights.load_video(args.start)
    else:
        inject = args.inject or INJECTIONS[-1]
        config |= {"inject": inject, "sampling": brought(args.model, "video", "sampling")}
        model = VideoModel.grow(weights.load_unet(where), inject, **weights.arguments(UNet3D, image_config, file))
    n = args.frames
    settings = config.get("sampling", {}) | {"size": args.size, "frames": n, "fps": args.fps}
    train_motion(model, config | {"sampling": settings}, schedule_for_eq_5(where, args), args,
                 lambda z_0: z_0[:, :, n // 2:n // 2 + 1])                   # z^c, the centre frame


def train_tsr(args):
    """Temporal super-resolution (Sec. 3.1): the video model, given the first and last of five frames.

    It is used from 2 to 8 fps and from 8 to 32, so it sees windows at 8 and at 32 (4 and 16 times --fps), anywhere in
    a clip, and the caption says at which (data.paced).
    """
    where, part = (args.start, "tsr") if args.start else (source("video", args), "video")
    config, _ = weights.read_config(where, part)
    settings = {key: value for key, value in config.get("sampling", {}).items() if key != "fps"}
    settings |= brought(args.model, "tsr", "sampling") | {"size": args.size, "frames": 5}
    train_motion(weights.load(where, part), config | {"sampling": settings}, schedule_for_eq_5(args.model, args), args,
                 lambda z_0: between(z_0[:, :, 0], z_0[:, :, -1], 5))


def train_motion(model, config, schedule, args, condition_of):
    """Eq. 5 on clips; condition_of(z_0) -> what AppearNet and the noise prior are given."""
    config["sampling"] = config["sampling"] | {"lam": args.lam}
    vae, scale, text_encoder, tokenizer = frozen(args)
    model.to(args.device).train()
    groups = parameter_groups(model, args.lr_temporal, args.lr_spatial)

    def loss_of(z_0, ids, t, eps_n, f_theta=model):
        with torch.no_grad():
            text = text_encoder(ids)
        return loss(f_theta, z_0, condition_of(z_0), text, t, eps_n, schedule, args.lam, args.weighting)

    settings = Sampling(**weights.arguments(Sampling, config["sampling"], args.out))
    cinema = MicroCinema(tokenizer, text_encoder, vae, scale, model.unet, model, schedule, progress=False)
    cinema.settings(settings)                                                # what cannot be sampled it says now

    @torch.no_grad()
    def strip(kept_out, many=3):                                             # the truth, and ours
        z_0 = kept_out.rows(torch.arange(min(many, len(kept_out))), args.device)
        captions = kept_out.captions[:len(z_0)]
        text, empty = cinema.encode_text(captions), cinema.encode_text([""] * len(z_0))
        clips = cinema.sample_video(model, condition_of(z_0), text, empty, replace(settings, steps=15),
                                    range(len(z_0)), args.stage, "sample")
        return rows_of(cinema.decode(z_0), cinema.decode(clips))

    save = lambda tensors: weights.save(tensors, config, args.out / args.stage)
    train_on_latents(model, groups, loss_of, save, vae, scale, tokenizer, schedule, args, strip)


def train_on_latents(model, groups, loss_of, save, vae, scale, tokenizer, schedule, args, strip):
    """The common part of image, video and tsr. loss_of(z_0, ids, t, eps_n, f_theta = that of the model) -> its loss."""
    clips, kept_out = latent_clips(vae, scale, args)
    ids, kept_ids = (tokenizer(some.captions).to(args.device) for some in (clips, kept_out))
    kept = kept_out.rows(torch.arange(min(32, len(kept_out)), device=args.device), args.device)
    validate = lambda loss_of: by_bucket(loss_of, kept, kept_ids[:len(kept)], schedule)
    if args.checkpointing:
        checkpoint_blocks(model)
    if args.compile:
        compile_blocks(model)
    introduce(validate(partial(loss_of, f_theta=lambda z_t, *_: torch.zeros_like(z_t))), args)
    batches = draw_batches(clips, ids, tokenizer([""]).to(args.device), schedule, args)
    fit(Task(args.stage, model, groups, loss_of, **batches, save=save, validate=lambda: validate(loss_of),
             sample=lambda: strip(kept_out)), args)


def write_latents(args):
    """Clips through the autoencoder, to shards that --latents reads."""
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    if args.world > 1:
        raise ValueError("latents: takes one process, not torchrun")
    vae, scale = weights.load_vae(args.model, dtype, args.device)
    made = {"data": str(args.data or "toy set"), "model": str(args.model), "seed": args.seed, "bf16": args.bf16}
    latents.write(vae, scale, two_sets(args.stage_for, args), args, made | about(args.stage_for, scale, args))
    print(f"{args.out}: {args.clips} clips for stage {args.stage_for}")


# ---------------------------------------------------------------------------------------------------- the command line

STAGES = {"vae": train_vae, "image": train_image, "video": train_video, "tsr": train_tsr, "latents": write_latents}
PARTS = {"vae": "vae", "image": "unet", "video": "video", "tsr": "tsr"}      # the folder that tells a stage was trained


def checkpoints(stage, args):
    """The checkpoints of a stage, by which a run goes on."""
    return list(args.out.glob(f"{stage}.*.checkpoint.safetensors"))


def brought(model, part, key):
    """What the config.json of a part in a model folder says under "sampling" or "training"; {} if it says nothing."""
    file = Path(model) / part / "config.json"
    return weights.read_json(file).get(key, {}) if file.is_file() else {}


def command_line():
    """The parser, and that of each stage by name."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    stages = {}
    for name, train in STAGES.items():
        stages[name] = commands.add_parser(name, help=train.__doc__.splitlines()[0], description=train.__doc__)
        options(stages[name].add_argument, name)
    return parser, stages


def options(add, stage):
    """The options of a stage."""
    on_latents, motion = stage in ("image", "video", "tsr"), stage in ("video", "tsr")
    add("--out", type=Path, required=True, help="folder to collect the trained parts in, and the checkpoints")
    add("--model", type=Path, default=Path(__file__).parent / "toy",
        help="model folder, or SD2.1's single file, to begin with (toy)")
    add("--data", type=Path, help="folder of clips of your own with captions, see clips.py (default: the toy set)")
    add("--clips", type=int, default=50_000, help="how many clips of the toy set, or windows of yours")
    add("--fps", type=float, default=2.0, help="frames a second of a clip (2, Sec. 4.1); shorter clips need more")
    add("--size", type=int, default=320, help="height and width in pixels (320, Sec. 3.1)")
    add("--seed", type=int, default=0, help="of the data, the first weights and all noise")
    add("--batch", type=int, default=16, help="clips a step (16, Sec. 4.2)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    add("--bf16", action="store_true", help="compute in bfloat16; the weights that AdamW moves stay float32")
    if stage in ("video", "latents"):
        add("--frames", type=int, default=FRAMES, help="N, frames of a clip (9, Sec. 4.1; 17 in the ablations)")
    if stage == "latents":
        add("--for", dest="stage_for", choices=("image", "video", "tsr"), required=True, help="the stage to train")
        return
    add("--steps", type=int, default=64_000, help="optimiser steps (64K, Sec. 4.2)")
    add("--minutes", type=float, help="end after this time, if it comes before --steps")
    add("--ema", type=float, default=0.0, help="decay of the average of the weights that is saved; 0: the last weights")
    add("--warmup", type=int, default=0, help="steps over which the learning rate rises from 0")
    add("--cooldown", type=float, default=0.0, help="share of the steps, at the end, over which it falls to 0")
    add("--save-every", type=int, default=1000, help="steps between checkpoints")
    add("--sample-every", type=int, default=500, help="steps between sample pictures, OUT/STAGE-STEP.png")
    add("--accumulate", type=int, default=1, help="compute each batch in this many parts: less memory, the same step")
    add("--cuda-graph", action="store_true", help="record a step once and replay it: faster for small models (cuda)")
    add("--compile", action="store_true", help="torch.compile the model: minutes to start, then faster")
    if on_latents:
        add("--latents", type=Path, help="folder that `train.py latents` wrote: train on it, in place of --data")
        add("--weighting", choices=("epsilon", "v"), default="epsilon", help="Eq. 5 as it is, or v: over alpha_bar")
        add("--drop-text", type=float, default=0.1, help="share of captions emptied, for classifier-free guidance")
        add("--checkpointing", action="store_true", help="gradient checkpointing: less memory for more time")
        add("--fsdp", action="store_true", help="FSDP2 in the place of DDP: every process keeps a part (torchrun)")
    if motion:
        add("--start", type=Path, help="folder whose video (tsr) model to begin with, not the one it comes from")
        add("--merges", type=Path, help="the tokenizer's merges.txt, if it is not with the model")
        add("--lam", type=float, default=0.03, help="lambda of Eq. 3, how much of z^c is in the noise (0.03, Fig. 6)")
        add("--lr-temporal", type=float, default=2e-5, help="learning rate of what is new (2e-5, Sec. 4.1)")
        add("--lr-spatial", type=float, default=2e-6, help="and of what the image model brings (2e-6, Sec. 4.1)")
    else:
        add("--lr", type=float, default=1e-4, help="learning rate")
    if stage == "vae":
        add("--decoder-of", type=Path, help="folder of an autoencoder whose decoder to train on: the same latents")
    if stage == "video":
        add("--inject", choices=INJECTIONS, help=f"how AppearNet injects: a row of Table 2 (default {INJECTIONS[-1]})")


def parse(argv):
    """The arguments. A model folder's own "training" settings come before the paper's, and after the command line's."""
    parser, stages = command_line()
    args = parser.parse_args(argv)
    own = brought(args.model, PARTS[getattr(args, "stage_for", args.stage)], "training")
    own = {key: value for key, value in own.items() if args.stage != "latents" or hasattr(args, key)}
    if unknown := own.keys() - vars(args).keys():
        parser.error(f"{args.model}: its config.json names training settings that are none: {', '.join(unknown)}")
    stages[args.stage].set_defaults(**own)
    args = parser.parse_args(argv)
    for name in ("steps", "batch", "clips", "size", "frames", "save_every", "sample_every", "accumulate"):
        if getattr(args, name, 1) < 1:
            parser.error(f"--{name.replace('_', '-')}: want 1 or more")
    for name, value in vars(args).items():
        if isinstance(value, float) and not math.isfinite(value):
            parser.error(f"--{name.replace('_', '-')}: want a finite number")
    if getattr(args, "warmup", 0) < 0:
        parser.error("--warmup: want 0 or more")
    for name in ("model", "start", "decoder_of"):
        if (path := getattr(args, name, None)) and not path.exists():
            parser.error(f"--{name.replace('_', '-')} {path}: there is no such folder or file")
    if args.stage == "video" and args.start and args.inject:
        parser.error("--inject and --start: choose one; what is started from injects as it did")
    if args.data and getattr(args, "latents", None):
        parser.error("--data and --latents: choose one; latents are clips already")
    for name in ("fps", "minutes"):
        if (value := getattr(args, name, None)) is not None and value <= 0:
            parser.error(f"--{name}: want more than 0")
    if not all(0 <= getattr(args, name, 0) <= 1 for name in ("ema", "cooldown", "drop_text")):
        parser.error("--ema, --cooldown and --drop-text: want shares, from 0 to 1")
    if not 0 <= args.seed < 2**32:
        parser.error("--seed: want 0 to 4294967295")
    args.fsdp = getattr(args, "fsdp", False)
    return args


def main(argv=None):
    """The command line; see the top of the file."""
    torchrun = "RANK" in os.environ
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    try:
        args = parse(argv)
        args.rank, args.world = (int(os.environ.get(name, one)) for name, one in (("RANK", 0), ("WORLD_SIZE", 1)))
        torch.manual_seed(args.seed)
        if args.fsdp and not torchrun:
            raise ValueError("--fsdp: start it with torchrun --nproc-per-node N train.py ...")
        if args.stage in PARTS and any((args.out / PARTS[args.stage]).glob("*.safetensors")) \
                and not checkpoints(args.stage, args):
            raise ValueError(f"{args.out / PARTS[args.stage]}: holds trained weights already; name another --out, or "
                             "move them away")
        if torchrun:
            if args.device == "cuda":
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))         # "cuda" means this one from here on
            distributed.init_process_group("nccl" if args.device == "cuda" else "gloo")
        check_device(args.device)
        if args.rank:
            sys.stdout = open(os.devnull, "w")                               # one of them speaks
        STAGES[args.stage](args)
    except (ValueError, OSError) as e:
        print(f"train.py: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
