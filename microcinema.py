"""MicroCinema: Sec. 3.1 and Fig. 2 as a whole. A sentence becomes a key frame, the key frame a video.

    python microcinema.py "a red circle moving left"                     -> a-red-circle-moving-left.gif
    python microcinema.py "a red circle moving left" --image photo.jpg   animates a picture of yours
    python microcinema.py "..." --seed 7 --steps 20 --out video.webp     .gif .webp .apng .png (sheet) .mp4 or folder
    python microcinema.py "..." --fps 32 --upscale 4 --out video.mp4     129 frames, four times as large
    python microcinema.py "..." --between first.png last.png --fps 8     sets frames between pictures of yours
    python microcinema.py "..." --weights mine                           with the parts that train.py wrote to mine/

defines  Sampling, its settings; MicroCinema: key_frame (stage one), animate and interpolate (stage two: video, TSR);
      tsr_condition, the condition of TSR; encode_video, pixels to latents

Divide and conquer: any text-to-image model draws the key frame (here the U-Net before it was grown to 3D). The video
model animates it. The same network with other weights sets frames between, once or twice. Any upscaler enlarges them.
The stages work on latents: pictures [b, 3, H, W] in [-1, 1] are z [b, 4, H/8, W/8], and videos add n frames.

our reading
      The key frame is number n // 2, the centre of an odd n. It is generated again with the others, not copied in.
      Guidance 7.5 and 50 steps are SD2.1's habits. A model folder may bring other settings, in video/config.json.
"""

import argparse
import itertools
import math
import random
import re
import signal
import sys
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from appearnet import VideoModel
from data.media import ENDINGS, check_output, read_picture, to_pixels, write_video
from sampler import SAMPLERS, NoiseSchedule, appearance_noise, guide
from sd21 import weights
from sd21.command import (ArgumentParser, add_options, check_multiple, device, height_width, one_line, option,
                          positive_int, run, size, size_of)
from sd21.replay import Replay, compile_for_sampling
from sd21.text import TextEncoder, Tokenizer, with_fps
from sd21.vae import AutoencoderKL
from unet3d import UNet3D, fold, unfold
from upscaler.network import load_upscaler

COMPONENT_CLASSES = {"text_encoder": TextEncoder, "vae": AutoencoderKL, "unet": UNet3D,        # {folder: its class}
                     "video": VideoModel, "tsr": VideoModel}
UNTRAINED = ("no trained video weights (--weights): temporal layers and AppearNet are untrained and have no effect; "
             "expect frames that are separate pictures of the sentence, none of them the key frame")


@dataclass(frozen=True)
class Sampling:
    """How to sample: the paper's values, else SD2.1's. Raises ValueError; `settings` checks size, steps and spacing."""
    size: int | str = option(320, "pixels: 320 (Sec. 4.1) is square, 320x192 is width x height", size)
    frames: int = option(9, "N, frames of the video (9, Sec. 4.1); best odd: the key frame is the centre", int)
    fps: float = 2.0                # frames a second that the model was trained for (Sec. 4.1)
    steps: int = option(50, "denoising steps of each stage (50)", int)
    guidance: float = option(7.5, "guidance scale w (7.5); 1: the plain conditional model, more exaggerates", float)
    lam: float = option(0.03, "lambda of Eq. 3, z^c in the noise at every step; as trained (0.03, Fig. 6)", float)
    gamma: float = option(0.02, "gamma of Sec. 4.2.2, extra z^c in the first noise (0.02, Fig. 6)", float)
    eta: float = option(0.0, "share of fresh noise in each step of DDIM: 0 (default) solves the ODE, 1 is DDPM", float)
    sampler: str = option("ddim", "the solver (ddim)", choices=tuple(SAMPLERS))
    spacing: str = option("trailing", "trailing: from t = 999; leading: SD2.1's steps", choices=("trailing", "leading"))

    def __post_init__(self):
        if not 1 <= self.frames < 2**16:
            raise ValueError(f"{self.frames} frames: want 1 to 65535")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler '{self.sampler}': want {' or '.join(SAMPLERS)}")
        if not all(map(math.isfinite, (self.guidance, self.lam, self.gamma))):
            raise ValueError(f"guidance {self.guidance:g}, lambda {self.lam:g}, gamma {self.gamma:g}: want finite "
                             "numbers")
        if not (0 <= self.eta <= 1 and (self.eta == 0 or self.sampler == "ddim")):
            raise ValueError(f"eta {self.eta:g} with sampler {self.sampler}: want 0 to 1 with ddim, 0 with any other")


def tsr_condition(z_first, z_last, n):
    """The condition of temporal super-resolution (Sec. 3.1): n latents, evenly spaced from z_first to z_last.

    z_first, z_last [b, 4, h, w] -> z_bar [b, 4, n, h, w], z_bar^i = (1 - i / (n - 1)) z_first + i / (n - 1) z_last."""
    share = torch.linspace(0, 1, n, device=z_first.device, dtype=z_first.dtype).view(n, 1, 1)
    return (1 - share) * z_first[:, :, None] + share * z_last[:, :, None]


def encode_video(vae, x):
    """Pixels x [b, 3, n, H, W] in [-1, 1] -> z_0 [b, 4, n, h, w]: the posterior's mean, scaled to unit variance."""
    frames = fold(x).to(next(vae.parameters()))                              # in the autoencoder's dtype, on its device
    return unfold(vae.encode(frames)[0].float() * vae.scale, x.shape[2])


def noise(seeds, shape, stage, device="cpu"):
    """A function that returns the next i.i.d. noise [b, *shape] at each call. A seed gives the same noise in every
    batch and on every device; each stage has its own."""
    generators = [torch.Generator().manual_seed(random.Random(f"{seed} {stage}").getrandbits(62)) for seed in seeds]
    return lambda: torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)


def as_list(prompts, seeds, pictures=None):
    """Prompts as a list, also a single string. ValueError if prompts, seeds and pictures differ in number."""
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    counts = {"prompts": prompts, "seeds": seeds} | ({} if pictures is None else {"pictures or videos": pictures})
    if len({len(x) for x in counts.values()}) > 1:
        raise ValueError(f"{', '.join(f'{len(x)} {name}' for name, x in counts.items())}: want as many of each")
    return prompts


class MicroCinema:
    """The parts of a model folder and the two stages. Pictures in and out are [b, 3, H, W], videos [b, 3, n, H, W].
    Prompts are b sentences (or one string), seeds b numbers. `changes` are fields of Sampling."""

    def __init__(self, tokenizer, text_encoder, vae, unet, video, schedule, sampling=Sampling(), trained=True, tsr=None,
                 tsr_sampling=Sampling(frames=5), image_sampling=None, progress=True):
        self.tokenizer, self.text_encoder, self.vae, self.unet, self.video = tokenizer, text_encoder, vae, unet, video
        self.schedule, self.sampling, self.trained, self.progress = schedule, sampling, trained, progress
        self.tsr, self.tsr_sampling, self.image_sampling, self.replay = tsr, tsr_sampling, image_sampling, Replay()

    @torch.inference_mode()
    def key_frame(self, prompts, seeds=(0,), **changes):
        """Stage one (Sec. 3.1): pictures [b, 3, H, W] in [-1, 1] for b prompts and seeds."""
        s, prompts = self.settings(self.image_sampling, **changes), as_list(prompts, seeds)
        text, empty = self.encode_text(prompts), self.encode_text([""] * len(prompts))
        h, w = (side // self.vae.factor for side in height_width(s.size))
        next_noise = noise(seeds, (4, 1, h, w), "key frame", text.device)
        z = self.sample(partial(self.replay, self.unet), next_noise(), text, empty, s, next_noise, 0.0, "key frame")
        return self.decode(z)[:, :, 0]

    @torch.inference_mode()
    def animate(self, prompts, key_frames, seeds=(0,), appearance=True, **changes):
        """Stage two (Sec. 3.1): videos [b, 3, n, H, W] in [-1, 1] around key frames [b, 3, H, W].

        Size is that of the pictures. appearance=False is for comparison: no AppearNet and no noise prior, only the 3D
        U-Net with the text."""
        return self.decode(self.animate_latents(prompts, key_frames, seeds, appearance, **changes))

    @torch.inference_mode()
    def animate_latents(self, prompts, key_frames, seeds=(0,), appearance=True, **changes):
        """`animate` without the decoder: latents [b, 4, n, h, w]."""
        s = self.settings(**{**changes, "size": size_of(*key_frames.shape[2:])})
        prompts = as_list(prompts, seeds, key_frames)
        text, empty = self.encode_text(prompts), self.encode_text([""] * len(prompts))
        z_c = self.encode(key_frames)                                        # [b, 4, 1, h, w]
        if appearance:
            return self.sample_video(self.video, z_c, text, empty, s, seeds, "video", "video")
        alone = self.video if self.video.concat else lambda z_t, t, z_c, text: self.video.unet(z_t, t, text)
        return self.sample_video(alone, 0 * z_c, text, empty, s, seeds, "video", "video without z_c")

    def sample_video(self, model, condition, text, empty, s, seeds, stage, name):
        """Latents z_0 of clips of s.frames frames from `model`, f_theta, with condition [b, 4, 1 or n, h, w]."""
        next_noise = noise(seeds, (4, s.frames, *condition.shape[3:]), stage, text.device)

        def f_theta(z_t, t, text):                                           # z_c stays in both passes of the guidance
            z_c = condition.to(z_t.dtype).repeat(len(z_t) // len(condition), 1, 1, 1, 1)
            return self.replay(model, z_t, t, z_c, text)                     # model(...); on a GPU, a recorded call

        z_T = appearance_noise(next_noise(), condition, s.lam + s.gamma)     # Sec. 4.2.2
        return self.sample(f_theta, z_T, text, empty, s, next_noise, s.lam * condition, name)

    def sample(self, model, z_T, text, empty, s, next_noise, shift, name):
        """Solves from z_T to z_0 with guidance and a progress bar: in float32, whatever the dtype of the network."""
        timesteps = self.schedule.timesteps(s.steps, s.spacing)
        in_float32 = lambda z_t, t, text: model(z_t.to(text.dtype), t, text).float()
        guided = guide(in_float32, s.guidance, text, empty)
        options = {"eta": s.eta, "shift": shift, "noise": next_noise} if s.sampler == "ddim" else {}
        for z in tqdm(SAMPLERS[s.sampler](guided, z_T, timesteps, self.schedule, **options), desc=name,
                      total=s.steps, disable=not self.progress):
            pass
        if not z.isfinite().all():
            raise ValueError(f"{name}: the numbers grew beyond all bounds; try a smaller guidance, lambda or gamma, or "
                             "float32")
        return z

    @torch.inference_mode()
    def interpolate(self, videos, prompts, seeds=(0,), rounds=1, pairs=8, fps=None, **changes):
        """Temporal super-resolution (Sec. 3.1) of pictures: [b, 3, n, H, W] -> [b, 3, 4^rounds (n - 1) + 1, H, W].

        The given frames, `fps` a second (default: the rate of the video model), come back untouched."""
        z, fps = self.encode_frames(videos), fps or self.sampling.fps
        for k in range(rounds):
            z = self.interpolate_latents(z, prompts, seeds, pairs, 4 ** k * fps, **changes)
        return torch.stack([torch.stack([*self.decode_frames(*clip, 4 ** rounds)], dim=1)
                            for clip in zip(z, videos, strict=True)])

    @torch.inference_mode()
    def interpolate_latents(self, z, prompts, seeds=(0,), pairs=8, fps=None, **changes):
        """One round of temporal super-resolution (Sec. 3.1): z [b, 4, n, h, w] -> [b, 4, 4 (n - 1) + 1, h, w].

        It sets three frames between every two neighbours and keeps the neighbours, so that seams meet. `pairs` pairs
        are computed at once, which bounds the memory. `fps`: frames a second of z."""
        if self.tsr is None:
            raise ValueError("the model has no temporal super-resolution: its folder lacks tsr/")
        if z.shape[2] < 2:
            raise ValueError(f"{z.shape[2]} frame: want 2 or more to set frames between")
        prompts = as_list(prompts, seeds, z)
        m, size = z.shape[2] - 1, size_of(*(side * self.vae.factor for side in z.shape[3:]))     # m pairs in a clip
        s = self.settings(self.tsr_sampling, **{**changes, "size": size, "frames": 5})
        first, last = fold(z[:, :, :-1]), fold(z[:, :, 1:])                  # [(b m), 4, h, w]
        rate = 4 * (fps or self.sampling.fps)
        text = self.encode_text([with_fps(prompt, rate) for prompt in prompts]).repeat_interleave(m, dim=0)
        empty = self.encode_text([""] * len(prompts)).repeat_interleave(m, dim=0)
        seeds, clips = [f"{seed}, pair {k}" for seed in seeds for k in range(m)], []
        for i in range(0, len(first), pairs):
            rows = slice(i, i + pairs)
            name = f"to {rate:g} fps, pairs {i + 1}-{min(i + pairs, len(first))} of {len(first)}"
            z_bar = tsr_condition(first[rows], last[rows], s.frames)
            clip = self.sample_video(self.tsr, z_bar, text[rows], empty[rows], s, seeds[rows], f"{rate:g} fps", name)
            clip[:, :, 0] = first[rows]                                      # the given frame stays as it is
            clips.append(clip[:, :, :-1])                                    # the next pair begins with the last frame
        clips = unfold(torch.cat(clips), m).flatten(2, 3)        # clips [(b m), 4, 4, h, w] -> [b, 4, (m 4), h, w]
        return torch.cat([clips, z[:, :, -1:]], dim=2)

    @staticmethod
    def upscale(frames, upscaler, batch=4):
        """The last step (Sec. 3.1): enlarges frames [3, H, W] in [-1, 1] of an iterator, `batch` at a time, with any
        function [k, 3, H, W] -> [k, 3, H', W'], such as those of upscaler/network.py."""
        frames = iter(frames)
        while some := list(itertools.islice(frames, batch)):
            yield from upscaler(torch.stack(some))

    def compile(self):
        """torch.compile for the models of all stages. The first call of each takes minutes; it prints how long."""
        for model in {self.unet, self.video, self.tsr} - {None}:             # untrained, video and tsr are one model
            compile_for_sampling(model)

    def encode_text(self, prompts):
        """The prompts through tokenizer and text encoder: [b, 77, d]."""
        return self.text_encoder(self.tokenizer(prompts).to(next(self.text_encoder.parameters()).device))

    @torch.inference_mode()
    def encode(self, pictures):
        """z_c [b, 4, 1, h, w] of pictures [b, 3, H, W]."""
        return encode_video(self.vae, pictures[:, :, None])

    def encode_frames(self, videos):
        """z [b, 4, n, h, w] of videos [b, 3, n, H, W], frame by frame: n pictures at once take n times the memory."""
        return torch.cat([self.encode(pictures) for pictures in videos.unbind(2)], dim=2)

    @torch.inference_mode()
    def decode(self, z, batch=9):
        """z [b, 4, n, h, w] -> videos [b, 3, n, H, W] in [-1, 1], `batch` frames at a time: pictures are large."""
        frames = fold(z / self.vae.scale).to(next(self.vae.parameters()))
        frames = torch.cat([self.vae.decode(some).float() for some in frames.split(batch)])
        if not frames.isfinite().all():
            raise ValueError("the autoencoder's numbers grew beyond all bounds; try float32")
        return unfold(frames.clamp(-1, 1), z.shape[2])

    def decode_frames(self, z, given=None, stride=1, batch=9):
        """Yields the frames [3, H, W] in [-1, 1] of one clip's latents z [4, n, h, w]. Each is decoded once.

        `given` [3, m, H, W] are pictures for every stride-th frame, which are not decoded."""
        for start in range(0, z.shape[1], batch):
            ids = range(start, min(start + batch, z.shape[1]))
            new_ids = [k for k in ids if given is None or k % stride]
            decoded = iter(self.decode(z[None, :, new_ids])[0].unbind(1) if new_ids else ())
            for k in ids:
                yield next(decoded) if k in new_ids else given[:, k // stride].to(z.device)

    def settings(self, sampling=None, **changes):
        """The model's Sampling (or another) with these changes (None: unchanged). ValueError if it is impossible."""
        s = replace(sampling or self.sampling, **{key: value for key, value in changes.items() if value is not None})
        check_multiple(s.size, self.vae.factor * 2 ** (len(self.unet.down_blocks) - 1))          # raises ValueError
        self.schedule.timesteps(s.steps, s.spacing)                          # raises ValueError
        return s

    @classmethod
    def load(cls, path="toy", device="cpu", dtype=torch.float32, overlay=None, merges=None, tsr=True):
        """Reads a model folder or SD2.1's single file (sd21/weights.py).

        overlay: a folder or file that train.py wrote; its parts replace those of `path`. merges: merges.txt, if it is
        not with the model. tsr=False: does not read tsr/, which saves time. Without trained video weights, video and
        tsr are the image model grown to 3D (`trained` is False then). ValueError or OSError, in one line, if a part is
        missing or broken."""
        if overlay:
            weights.check_overlay(overlay, merges)
        components = weights.resolve_components(path, overlay, merges)

        def load(name, **fixed):
            return weights.load(components[name], COMPONENT_CLASSES[name], dtype, device, **fixed)

        parts = {"tokenizer": Tokenizer.load(components["tokenizer"].place), "text_encoder": load("text_encoder"),
                 "vae": load("vae"), "unet": load("unet", temporal=False),
                 "schedule": weights.read_settings(components["scheduler"], None, NoiseSchedule)}
        if "video" not in components:
            model = VideoModel.grow(parts["unet"]).eval()
            parts |= {"video": model, "tsr": model, "trained": False}
        for name, settings in (("video", "sampling"), ("tsr", "tsr_sampling")):
            if name in components and (tsr or name != "tsr"):
                parts |= {name: load(name), settings: weights.read_settings(components[name], "sampling", Sampling)}
        image = weights.arguments(Sampling, components["unet"].settings("sampling"), components["unet"].config)
        parts["image_sampling"] = replace(parts.get("sampling", Sampling()), **image)
        weights.check_sizes_match(parts, components)
        return cls(**parts)


# ---------------------------------------------------------------------------------------------------- the command line

def main(argv=None):
    """The command line; see the top of the file."""
    about = __doc__.partition("defines")[0]                                  # the examples
    parser = ArgumentParser("microcinema.py", description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, or_between = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add("prompt", help="the sentence c")
    add("--model", type=Path, default=Path(__file__).parent / "toy",
        help="model folder, or SD2.1's single .safetensors file (default: the toy model)")
    add("--weights", type=Path, help="what train.py wrote: a folder, whose parts replace the model's, or the file of a "
                                     "video model (default: the model folder's video/)")
    add("--merges", type=Path, help="the tokenizer's merges.txt, if it is not with the model")
    or_between("--image", type=Path, help="a picture to be the key frame; any size, any mode")
    or_between("--between", type=Path, nargs="+", metavar="PICTURE", help="set frames between two or more pictures")
    add("--fps", type=float, help="frames a second: as trained (2, default), 4 times that (default of --between) or 16")
    add("--pairs", type=positive_int, help="pairs of frames to set others between at once (8); bounds the memory")
    add("--upscale", type=int, default=1, metavar="TIMES", help="enlarge the video: 4 (Real-ESRGAN), 2-16 (Lanczos)")
    add("--upscaler", help="realesrgan (default), lanczos, or a TorchScript file (RGB in [0, 1])")
    add("--out", type=Path, help=f"the file ({' '.join(filter(None, ENDINGS))}) or folder to write (PROMPT.gif)")
    add("--seed", type=int, default=0, help="of the noise eps_n; the same seed gives the same video")
    sampling = parser.add_argument_group("sampling", "defaults: the model folder's, else the paper's or SD2.1's")
    add_options(sampling, Sampling, default=None)
    add("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, mps")
    add("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of weights and arithmetic")
    add("--compile", action="store_true", help="torch.compile the models: minutes to start, then faster (GPU)")
    return run(parser.prog, make_video, parser.parse_args(argv), argv or sys.argv[1:],
               out_of_memory="a smaller --size, --frames, --pairs or --upscale takes less")


def make_video(args, command):
    """One video, as the command line asks: checks first, then the stages, then the file, which keeps `command`."""
    if not args.prompt.strip():
        raise ValueError("the prompt is empty: say what should be seen, and how it moves")
    words = re.findall(r"[^\W_]+", args.prompt.lower())                      # letters and digits of all scripts
    name = "-".join(words)[:50] or f"video-{random.Random(args.prompt).getrandbits(32):08x}"        # such as ☀
    out = args.out or Path(f"{name}{f'-{args.seed}' if args.seed else ''}.gif")       # file systems allow 255 bytes
    check_output(out, inputs=[args.image, *(args.between or ()), args.model, args.weights, args.merges, args.upscaler])
    if args.between and len(args.between) < 2:
        raise ValueError("--between: want two or more pictures")
    if args.between and args.frames:
        raise ValueError("--frames: with --between, the pictures and --fps give the number of frames")
    if args.upscaler and args.upscale == 1:
        raise ValueError("--upscaler: say how many times as large, with --upscale")
    upscale = load_upscaler(args.upscaler or "realesrgan", args.upscale, args.device) if args.upscale != 1 else None
    cinema = MicroCinema.load(args.model, args.device, getattr(torch, args.dtype), args.weights, args.merges,
                              tsr=bool(args.fps or args.between))
    torch.backends.cudnn.benchmark = True                                    # a GPU tries its kernels, takes the best
    if args.compile:
        cinema.compile()
    if args.weights:
        print(weights.describe(weights.resolve_components(args.model, args.weights, args.merges)))
    if not cinema.trained:
        print(UNTRAINED)
    changes = {field.name: getattr(args, field.name) for field in fields(Sampling) if field.name != "fps"}
    s, trained = cinema.settings(**changes), cinema.sampling
    if cinema.trained and (height_width(s.size), s.frames) != (height_width(trained.size), trained.frames):
        print(f"the video model was trained on {trained.frames} frames of size {trained.size}; other sizes and lengths "
              "often show things twice, or motion that starts again")
    if upscale:
        upscale(torch.zeros(1, 3, *height_width(s.size)))                    # fail here rather than after the sampling
    rates = [s.fps, 4 * s.fps, 16 * s.fps]                                   # after 0, 1 and 2 rounds
    fps = rates[1 if args.between else 0] if args.fps is None else args.fps
    if fps not in rates:
        raise ValueError(f"{fps:g} fps: want {rates[0]:g}, {rates[1]:g} or {rates[2]:g}")
    rounds = rates.index(fps)
    if rounds and cinema.tsr is None:
        raise ValueError(f"{args.model}: has no temporal super-resolution (tsr/); leave out --fps and --between")
    if rounds and not args.between and s.frames < 2:
        raise ValueError(f"--fps {fps:g}: want --frames 2 or more, to set others between")
    if args.between and not rounds:
        raise ValueError(f"--between at {fps:g} fps: nothing to set between; want 4 or 16 times as many")
    if args.pairs and not rounds:
        raise ValueError(f"--pairs: at {s.fps:g} fps nothing is set between frames; want a larger --fps")
    for note in cinema.tokenizer.notes(args.prompt):
        print(note)

    def read(path):
        picture, notes = read_picture(path, *height_width(s.size))
        print(notes)
        return picture

    given = None
    if args.between:
        given = torch.stack([read(path) for path in args.between], dim=1)    # [3, m, H, W]
        z = cinema.encode_frames(given[None])
    else:
        if s.frames % 2 == 0:
            print(f"{s.frames} frames have no centre: the key frame is number {s.frames // 2} of 0 to {s.frames - 1}")
        key_frame = read(args.image)[None] if args.image else cinema.key_frame(args.prompt, [args.seed], **changes)
        z = cinema.animate_latents(args.prompt, key_frame, [args.seed], **changes)
    for k in range(rounds):
        z = cinema.interpolate_latents(z, args.prompt, [args.seed], args.pairs or 8, 4 ** k * s.fps, **changes)
    frames = cinema.decode_frames(z[0], given, 4 ** rounds)
    if upscale:
        frames = cinema.upscale(frames, upscale)
    n, (height, width) = z.shape[2], (side * args.upscale for side in height_width(s.size))
    write_video(tqdm(map(to_pixels, frames), desc="frames", total=n), out, fps, command)
    print(one_line(f"{out}: {n} frames of {width}x{height} at {fps:g} fps, seed {args.seed}"))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)                # a kill removes the temporary file too
    sys.exit(main())
