"""MicroCinema: Sec. 3.1 and Fig. 2 as a whole. A sentence becomes a key frame, the key frame a video.

    python microcinema.py "a red circle moving left"                     -> a-red-circle-moving-left.gif
    python microcinema.py "a red circle moving left" --image photo.jpg   animates a picture of yours
    python microcinema.py "..." --seed 7 --steps 20 --out video.webp     .gif .webp .apng .png (sheet) .mp4 or folder
    python microcinema.py "..." --fps 32 --upscale 4 --out video.mp4     129 frames, four times as large
    python microcinema.py "..." --between first.png last.png --fps 8     what may lie between two pictures of yours
    python microcinema.py "..." --weights mine                          with the parts that train.py wrote to mine/

here  MicroCinema: load, key_frame (stage one), animate (stage two), interpolate (stage three), frames, upscale;
      Sampling, its settings; sources, where its parts lie; between, the condition of stage three; VideoModel

Divide and conquer: any text-to-image model, here the U-Net before it was grown to 3D, draws the key frame; the video
model moves it; the same network with other weights sets frames between, once or twice; any upscaler makes them large.
Everything is latent: pictures [b, 3, H, W] in [-1, 1] are z [b, 4, H/8, W/8], and videos add n frames.

ours  The key frame is number n // 2, the centre of an odd n, and is drawn anew with the others, not copied in. Guidance
      7.5 and 50 steps are SD2.1's habits; the paper is silent. A model folder may bring its own, in video/config.json.
"""

import argparse
import itertools
import math
import random
import re
import signal
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from tqdm import tqdm

import weights
from appearnet import VideoModel
from clip import Tokenizer
from data import paced
from files import ENDINGS, ArgumentParser, check_output, read_picture, to_pixels, write_video
from sampler import SAMPLERS, appearance_noise, guide
from upscaler import load_upscaler


@dataclass(frozen=True)
class Sampling:
    """How to sample. The defaults are the paper's, or SD2.1's where it is silent."""
    size: int = 320                 # height and width in pixels (Sec. 4.1)
    frames: int = 9                 # N (Sec. 4.1)
    fps: float = 2.0                # frames a second that the model was trained for (Sec. 4.1)
    steps: int = 50
    guidance: float = 7.5           # 1: follow the text as it is; more: exaggerate it
    lam: float = 0.03               # lambda of Eq. 3; belongs to the trained weights (Fig. 6)
    gamma: float = 0.02             # extra z_c in the first noise (Sec. 4.2.2, Fig. 6)
    eta: float = 0.0                # share of fresh noise in each step of DDIM; 0 solves the ODE
    sampler: str = "ddim"           # or dpm++
    spacing: str = "trailing"       # of the steps, or leading


def noise(seeds, shape, stage, device="cpu"):
    """Independent noise [b, *shape]: the same for the same seed, in whatever batch, on whatever device; a function that
    gives the next such noise at each call."""
    generators = [torch.Generator().manual_seed(random.Random(f"{seed} {stage}").getrandbits(62)) for seed in seeds]
    return lambda: torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)


def one_each(prompts, seeds, pictures=None):
    """The prompts as a list, if there is but one as well. ValueError unless each has its seed, and picture or video."""
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if len({len(x) for x in (prompts, seeds, pictures) if x is not None}) > 1:
        rest = "" if pictures is None else f", {len(pictures)} pictures or videos"
        raise ValueError(f"{len(prompts)} prompts, {len(seeds)} seeds{rest}: want as many of each")
    return prompts


def between(z_first, z_last, n):
    """The condition of temporal super-resolution (Sec. 3.1): from one latent to another in n even steps, both included.

    z_first, z_last [b, 4, h, w] -> z_bar [b, 4, n, h, w], z_bar^i = (1 - i / (n - 1)) z_first + i / (n - 1) z_last.
    """
    share = torch.linspace(0, 1, n, device=z_first.device, dtype=z_first.dtype).view(n, 1, 1)
    return (1 - share) * z_first[:, :, None] + share * z_last[:, :, None]


UNTRAINED = ("no trained video weights (--weights): temporal layers and AppearNet are as they start, without effect; "
             "expect a key frame, and then frames that are separate pictures of the sentence")
PARTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler", "video", "tsr")      # the folders of a model folder


def sources(path, overlay=None, merges=None):
    """Where each part of a model lies: {part: model folder or file}. What `overlay` has is taken from there, and all
    else from `path`; nobody need have a video or tsr.

    overlay: a folder that train.py wrote, which has the parts that it has folders for; or a file, which is a video
    model. merges: the tokenizer's file, before both. Names and shapes tell nothing of a video model that learned on
    the latents of another autoencoder: see that what was trained together stays together.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such model folder or file")
    found = {part: path for part in PARTS if part not in ("video", "tsr") or (path / part).is_dir()}
    if path.is_file():
        found["tokenizer"] = path.parent
    if overlay:
        overlay = Path(overlay)
        if not overlay.exists():
            raise ValueError(f"{overlay}: no such file of a video model, nor a folder that train.py wrote")
        own = ["video"] if overlay.is_file() else [part for part in PARTS if (overlay / part).is_dir()]
        if not own:
            raise ValueError(f"{overlay}: has none of the folders {', '.join(PARTS)}; want one that train.py wrote")
        if ("tokenizer" in own) != ("text_encoder" in own) and not merges:
            raise ValueError(f"{overlay}: has one of tokenizer/ and text_encoder/; they belong together, and train.py "
                             "writes both")
        found |= dict.fromkeys(own, overlay)
    return found | ({"tokenizer": Path(merges)} if merges else {})


def from_where(found):
    """One line on `sources`: "tokenizer, text_encoder, vae, unet, scheduler, tsr from toy; video from mine"."""
    return "; ".join(f"{', '.join(part for part in found if found[part] == place)} from {place}"
                     for place in dict.fromkeys(found.values()))


def check_family(parts, found):
    """ValueError in one line if a tokenizer, a text encoder and the models that read it do not belong together."""
    known, width = parts["text_encoder"].text_model.embeddings.token_embedding.weight.shape
    if parts["tokenizer"].vocab_size != known:
        raise ValueError(f"{found['tokenizer']}: the tokenizer has {parts['tokenizer'].vocab_size} tokens, the text "
                         f"encoder {known}; merges.txt is cut short, or another model's")
    for part in [part for part in ("unet", "video", "tsr") if part in found]:
        reads = getattr(parts[part], "unet", parts[part]).common["text_dim"]
        if reads != width:
            raise ValueError(f"{found[part]}: the text encoder's vectors are {width} wide, its {part} reads {reads}; "
                             "they are of different families")


class MicroCinema:
    """The parts of a model folder, and the three stages. Pictures in and out are [b, 3, H, W], videos [b, 3, n, H, W];
    prompts are b sentences, or one of them, and `seeds` b numbers."""

    def __init__(self, tokenizer, text_encoder, vae, scale, unet, video: VideoModel, schedule, sampling=Sampling(),
                 trained=True, tsr=None, tsr_sampling=Sampling(frames=5), progress=True):
        self.tokenizer, self.text_encoder, self.vae, self.scale = tokenizer, text_encoder, vae, scale
        self.unet, self.video, self.schedule, self.sampling, self.trained = unet, video, schedule, sampling, trained
        self.tsr, self.tsr_sampling, self.progress = tsr, tsr_sampling, progress

    @classmethod
    def load(cls, path="toy", device="cpu", dtype=torch.float32, overlay=None, merges=None):
        """Reads a model folder or SD2.1's single file (weights.py): `path`, with what `overlay` has in its place.

        overlay: what train.py wrote, a folder or a file; see `sources`. merges: merges.txt, if it does not lie in the
        folder, or beside the file. Where neither has a trained video model, it is the image model grown to 3D as it is
        (`trained` is False then), between frames as well. ValueError or OSError, in one line, if a part is missing or
        broken.
        """
        found, how = sources(path, overlay, merges), {"dtype": dtype, "device": device}
        tokenizer, schedule = Tokenizer.load(found["tokenizer"]), weights.load_schedule(found["scheduler"])
        text_encoder = weights.load_text_encoder(found["text_encoder"], **how)
        (vae, scale), unet = weights.load_vae(found["vae"], **how), weights.load_unet(found["unet"], **how)
        parts = dict(tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, scale=scale, unet=unet, schedule=schedule)

        def settings(part):
            config, where = weights.read_config(found[part], part)
            return Sampling(**weights.arguments(Sampling, config.get("sampling", {}), where))

        if "video" in found:
            parts |= {"video": weights.load_video(found["video"], **how), "sampling": settings("video")}
        else:
            config, where = weights.read_config(found["unet"], "unet")
            model = VideoModel.grow(unet, **weights.arguments(VideoModel, config, where)).eval()
            parts |= {"video": model, "tsr": model, "trained": False}
        if "tsr" in found:
            parts |= {"tsr": weights.load_tsr(found["tsr"], **how), "tsr_sampling": settings("tsr")}
        check_family(parts, found)
        return cls(**parts)

    def settings(self, sampling=None, **changes):
        """The model's Sampling (or another) with these changes. ValueError for what cannot be sampled."""
        s = replace(sampling or self.sampling, **{key: value for key, value in changes.items() if value is not None})
        multiple = self.vae.factor * 2 ** (len(self.unet.down_blocks) - 1)
        if s.size < multiple or s.size % multiple:
            raise ValueError(f"size {s.size}: want a multiple of {multiple} pixels (autoencoder x U-Net levels)")
        if s.frames < 1:
            raise ValueError(f"{s.frames} frames: want 1 or more")
        if s.sampler not in SAMPLERS:
            raise ValueError(f"sampler '{s.sampler}': want {' or '.join(SAMPLERS)}")
        if not all(map(math.isfinite, (s.guidance, s.lam, s.gamma))):
            raise ValueError(f"guidance {s.guidance:g}, lambda {s.lam:g}, gamma {s.gamma:g}: want finite numbers")
        if not 0 <= s.eta <= 1 or s.eta and s.sampler != "ddim":
            raise ValueError(f"eta {s.eta:g}: want 0 to 1, and 0 for every sampler but ddim")
        self.schedule.path(s.steps, s.spacing)
        return s

    def encode_text(self, prompts):
        """[b, 77, d]"""
        device = next(self.text_encoder.parameters()).device
        return self.text_encoder(self.tokenizer(prompts).to(device))

    @torch.inference_mode()
    def encode(self, pictures):
        """z_c [b, 4, 1, h, w] of pictures [b, 3, H, W]: the mean of the posterior, scaled."""
        like = next(self.vae.parameters())
        return (self.vae.encode(pictures.to(like))[0].float() * self.scale)[:, :, None]

    def encode_frames(self, videos):
        """z [b, 4, n, h, w] of videos [b, 3, n, H, W], n times b pictures."""
        return torch.cat([self.encode(pictures) for pictures in videos.unbind(2)], dim=2)

    @torch.inference_mode()
    def decode(self, z, batch=9):
        """Latents [b, 4, n, h, w] -> [b, 3, n, H, W] in [-1, 1], `batch` frames at a time: here pictures are large."""
        like = next(self.vae.parameters())
        frames = (z / self.scale).transpose(1, 2).flatten(0, 1).to(like)     # [(b n), 4, h, w]
        frames = torch.cat([self.vae.decode(some).float().clamp(-1, 1) for some in frames.split(batch)])
        return frames.unflatten(0, (len(z), -1)).transpose(1, 2)

    def sample(self, model, z_T, text, empty, s, more_noise, shift, name):
        """Solves from z_T to z_0 with guidance and a progress bar: in float32, whatever the dtype of the network."""
        path = self.schedule.path(s.steps, s.spacing)
        guided = guide(model, s.guidance, text, empty)
        model = lambda z_t, t: guided(z_t.to(text.dtype), t).float()
        how = {"eta": s.eta, "shift": shift, "noise": more_noise} if s.sampler == "ddim" else {}
        for z in tqdm(SAMPLERS[s.sampler](model, z_T, path, self.schedule, **how), desc=name, total=s.steps,
                      disable=not self.progress):
            pass
        if not z.isfinite().all():
            raise ValueError(f"{name}: the numbers grew beyond all bounds; try a smaller guidance, lambda or gamma, or "
                             "float32")
        return z

    @torch.inference_mode()
    def key_frame(self, prompts, seeds=(0,), **changes):
        """Stage one (Sec. 3.1): pictures [b, 3, H, W] in [-1, 1] for b prompts and seeds. `changes`: see Sampling."""
        s, prompts = self.settings(**changes), one_each(prompts, seeds)
        text, empty = self.encode_text(prompts), self.encode_text([""] * len(prompts))
        h = s.size // self.vae.factor
        fresh = noise(seeds, (4, 1, h, h), "key frame", text.device)
        return self.decode(self.sample(self.unet, fresh(), text, empty, s, fresh, 0.0, "key frame"))[:, :, 0]

    def sample_video(self, model, condition, text, empty, s, seeds, stage, name):
        """Latents z_0 of clips of s.frames frames, by `model`, f_theta with this condition [b, 4, 1 or n, h, w]."""
        fresh = noise(seeds, (4, s.frames, *condition.shape[3:]), stage, text.device)

        def f_theta(z_t, t, text):                                           # z_c stays in both passes of the guidance
            return model(z_t, t, condition.to(z_t.dtype).repeat(len(z_t) // len(condition), 1, 1, 1, 1), text)

        z_T = appearance_noise(fresh(), condition, s.lam + s.gamma)          # Sec. 4.2.2
        return self.sample(f_theta, z_T, text, empty, s, fresh, s.lam * condition, name)

    @torch.inference_mode()
    def animate_latents(self, prompts, key_frames, seeds=(0,), appearance=True, **changes):
        """`animate` without the last step: latents [b, 4, n, h, w]."""
        s, prompts = self.settings(**changes | {"size": key_frames.shape[-1]}), one_each(prompts, seeds, key_frames)
        text, empty = self.encode_text(prompts), self.encode_text([""] * len(prompts))
        z_c = self.encode(key_frames)
        if appearance:
            return self.sample_video(self.video, z_c, text, empty, s, seeds, "video", "video")
        alone = lambda z_t, t, z_c, text: self.video.unet(z_t, t, text)
        return self.sample_video(alone, 0 * z_c, text, empty, s, seeds, "video", "video without z_c")

    @torch.inference_mode()
    def animate(self, prompts, key_frames, seeds=(0,), appearance=True, **changes):
        """Stage two (Sec. 3.1): videos [b, 3, n, H, W] in [-1, 1] around key frames [b, 3, H, W].

        `changes`: see Sampling; size is the pictures' own. appearance=False is for comparison: neither AppearNet nor
        noise prior, the 3D U-Net alone with the text.
        """
        return self.decode(self.animate_latents(prompts, key_frames, seeds, appearance, **changes))

    @torch.inference_mode()
    def interpolate_latents(self, z, prompts, seeds=(0,), pairs=8, fps=None, **changes):
        """One round of temporal super-resolution (Sec. 3.1): z [b, 4, n, h, w] -> [b, 4, 4 (n - 1) + 1, h, w].

        Three frames are set between every two neighbours, which stay as they are, so that seams meet. All pairs are
        independent; `pairs` of them are computed at once, which bounds the memory and changes nothing else. `fps`:
        frames a second of z, by default those of the video model.
        """
        if self.tsr is None:
            raise ValueError("the model has no temporal super-resolution: its folder lacks tsr/")
        if z.shape[2] < 2:
            raise ValueError(f"{z.shape[2]} frame: want 2 or more to set frames between")
        prompts = one_each(prompts, seeds, z)
        m, size = z.shape[2] - 1, z.shape[-1] * self.vae.factor              # m pairs in a clip
        s = self.settings(self.tsr_sampling, **changes | {"size": size, "frames": 5})
        first, last = (x.transpose(1, 2).flatten(0, 1) for x in (z[:, :, :-1], z[:, :, 1:]))         # [(b m), 4, h, w]
        rate = 4 * (fps or self.sampling.fps)
        text, empty = (self.encode_text(words).repeat_interleave(m, dim=0)
                       for words in ([paced(prompt, rate) for prompt in prompts], [""] * len(prompts)))
        seeds = [f"{seed}, pair {k}" for seed in seeds for k in range(m)]
        clips = []
        for i in range(0, len(first), pairs):
            rows = slice(i, i + pairs)
            name = f"to {rate:g} fps, pairs {i + 1}-{min(i + pairs, len(first))} of {len(first)}"
            z_bar = between(first[rows], last[rows], s.frames)
            clip = self.sample_video(self.tsr, z_bar, text[rows], empty[rows], s, seeds[rows], f"{rate:g} fps", name)
            clip[:, :, 0] = first[rows]                                      # the given frame, and the new behind it
            clips.append(clip[:, :, :-1])
        clips = torch.cat(clips).unflatten(0, (-1, m)).transpose(1, 2).flatten(2, 3)     # [b, 4, (m 4), h, w]
        return torch.cat([clips, z[:, :, -1:]], dim=2)

    @torch.inference_mode()
    def interpolate(self, frames, prompts, seeds=(0,), rounds=1, pairs=8, fps=None, **changes):
        """Temporal super-resolution (Sec. 3.1) of pictures: [b, 3, n, H, W] -> [b, 3, 4^rounds (n - 1) + 1, H, W].

        The given frames, `fps` a second (default: as many as the video model makes), come back untouched; each of them
        is encoded once, each new one decoded once.
        """
        z, fps = self.encode_frames(frames), fps or self.sampling.fps
        for k in range(rounds):
            z = self.interpolate_latents(z, prompts, seeds, pairs, 4 ** k * fps, **changes)
        return torch.stack([torch.stack([*self.frames(*clip, 4 ** rounds)], dim=1)
                            for clip in zip(z, frames, strict=True)])

    def frames(self, z, given=None, stride=1, batch=9):
        """The frames [3, H, W] in [-1, 1] of one clip's latents z [4, n, h, w], one by one, each decoded once.

        `given` [3, m, H, W] are pictures for every stride-th frame, which are not decoded at all.
        """
        n, given = z.shape[1], None if given is None else given.to(z.device)
        for i in range(0, n, batch):
            here = range(i, min(i + batch, n))
            new = [k for k in here if given is None or k % stride]
            decoded = dict(zip(new, self.decode(z[None, :, new])[0].unbind(1))) if new else {}
            yield from (decoded[k] if k in decoded else given[:, k // stride] for k in here)

    @staticmethod
    def upscale(frames, upscaler, batch=4):
        """Frames [3, H, W] in [-1, 1], of a list or an iterator, through any function [k, 3, H, W] -> [k, 3, H', W'].

        The paper's last step (Sec. 3.1), off the shelf: see upscaler.load_upscaler. `batch` frames are held at a time.
        """
        frames = iter(frames)
        while some := list(itertools.islice(frames, batch)):
            yield from upscaler(torch.stack(some))


def main(argv=None):
    """The command line; see the top of the file."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("prompt", help="the sentence c")
    add("--model", type=Path, default=Path(__file__).parent / "toy",
        help="model folder, or SD2.1's single .safetensors file (default: the toy model)")
    add("--weights", type=Path, help="what train.py wrote: a folder, whose parts take the place of the model's, or the "
                                     "file of a video model (default: the model folder's video/)")
    add("--merges", type=Path, help="the tokenizer's merges.txt, if it is not with the model")
    add("--image", type=Path, help="a picture to be the key frame, instead of drawing one; any size, any mode")
    add("--between", type=Path, nargs="+", metavar="PICTURE", help="set frames between two or more pictures of yours")
    add("--fps", type=float, help="frames a second: as trained (2, default), 4 (--between's default) or 16 times that")
    add("--pairs", type=int, help="pairs of frames between which it sets others at once (default 8); bounds the memory")
    add("--upscale", type=int, default=1, metavar="TIMES", help="enlarge the video: 4 (Real-ESRGAN), 2-16 (Lanczos)")
    add("--upscaler", help="realesrgan (default), lanczos, or a TorchScript file (RGB in [0, 1])")
    add("--out", type=Path, help=f"the file ({' '.join(filter(None, ENDINGS))}) or folder to write (PROMPT.gif)")
    add("--seed", type=int, default=0, help="of the noise eps_n; the same seed gives the same video")
    add("--steps", type=int, help="denoising steps of each stage (default: the model's, else 50)")
    add("--guidance", type=float, help="classifier-free guidance scale w, all stages (default: the model's, or 7.5)")
    add("--lam", type=float, help="lambda of Eq. 3, z^c in the noise at every step (default: as trained, or 0.03)")
    add("--gamma", type=float, help="gamma of Sec. 4.2.2, more z^c in the first noise (default: the model's, or 0.02)")
    add("--eta", type=float, help="eta of DDIM, from 0 (ODE, default) to 1 (as much fresh noise as DDPM)")
    add("--sampler", choices=SAMPLERS, help="the solver (default: the model's, else ddim)")
    add("--spacing", choices=("trailing", "leading"), help="of the steps t: from 999 (default), or SD2.1's from 981")
    add("--frames", type=int, help="N, frames of the video (default 9; best odd: the key frame is the centre)")
    add("--size", type=int, help="height and width in pixels (default: as trained)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, mps ...")
    add("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of weights and arithmetic")
    args = parser.parse_args(argv)
    try:
        make(args)
        return 0
    except KeyboardInterrupt:
        print("microcinema.py: stopped; nothing was written", file=sys.stderr)
        return 130
    except (ValueError, OSError) as e:
        said = e
    except (RuntimeError, MemoryError) as e:                                 # PyTorch's has no type of its own on a CPU
        if isinstance(e, RuntimeError) and not re.search("allocate|overflow", str(e)):
            raise
        said = "takes more memory than there is; a smaller --size, --frames, --pairs or --upscale takes less"
    print(f"microcinema.py: {said}", file=sys.stderr)
    return 2


def make(args):
    """One video, as the command line asks: checks first, then the stages, then the file."""
    if not args.prompt.strip():
        raise ValueError("the prompt is empty: say what should be seen, and how it moves")
    words = re.findall(r"[a-z0-9]+", args.prompt.lower())
    out = args.out or Path(f"{'-'.join(words)[:60] or 'video'}.gif")
    check_output(out)
    check_device(args.device)
    if args.image and args.between:
        raise ValueError("--image and --between: choose one")
    if args.between and len(args.between) < 2:
        raise ValueError("--between: want two or more pictures")
    if args.between and args.frames:
        raise ValueError("--frames: with --between there are as many as the pictures and --fps make")
    if args.pairs is not None and args.pairs < 1:
        raise ValueError(f"--pairs {args.pairs}: want 1 or more")
    if args.upscaler and args.upscale == 1:
        raise ValueError("--upscaler: say how many times as large, with --upscale")
    upscale = load_upscaler(args.upscaler or "realesrgan", args.upscale, args.device) if args.upscale != 1 else None
    cinema = MicroCinema.load(args.model, args.device, getattr(torch, args.dtype), args.weights, args.merges)
    if args.weights:
        print(from_where(sources(args.model, args.weights, args.merges)))
    if not cinema.trained:
        print(UNTRAINED)
    names = {field.name for field in fields(Sampling)} - {"fps"}
    changes = {name: getattr(args, name) for name in names if hasattr(args, name)}
    s = cinema.settings(**changes)
    if upscale:
        upscale(torch.zeros(1, 3, s.size, s.size))                           # what it cannot do it says now
    rounds = rounds_to(s.fps * (4 if args.between else 1) if args.fps is None else args.fps, s.fps)
    if rounds and cinema.tsr is None:
        raise ValueError(f"{args.model}: has no temporal super-resolution (tsr/); leave out --fps and --between")
    if rounds and not args.between and s.frames < 2:
        raise ValueError(f"--fps {args.fps:g}: want --frames 2 or more, to set others between")
    if args.pairs and not rounds:
        raise ValueError(f"--pairs: at {s.fps:g} fps nothing is set between frames; want a larger --fps")
    if cut := cinema.tokenizer.cut(args.prompt):
        print(f"the prompt is longer than the text encoder reads; cut off: {cut!r}")

    def read(path):
        picture, what_was_done = read_picture(path, s.size, s.size)
        print(what_was_done)
        return picture[None]

    given = None
    if args.between:
        if not rounds:
            raise ValueError(f"--between at {args.fps:g} fps: nothing to set between; want 4 or 16 times as many")
        given = torch.stack([read(path)[0] for path in args.between], dim=1)             # [3, m, H, W]
        z = cinema.encode_frames(given[None])
    else:
        if s.frames % 2 == 0:
            print(f"{s.frames} frames have no centre: the key frame is number {s.frames // 2} of 0 to {s.frames - 1}")
        key_frame = read(args.image) if args.image else cinema.key_frame([args.prompt], [args.seed], **changes)
        z = cinema.animate_latents([args.prompt], key_frame, [args.seed], **changes)
    for k in range(rounds):
        z = cinema.interpolate_latents(z, [args.prompt], [args.seed], args.pairs or 8, 4 ** k * s.fps, **changes)
    frames = cinema.frames(z[0], given, 4 ** rounds)
    if upscale:
        frames = cinema.upscale(frames, upscale)
    n, size, fps = z.shape[2], s.size * args.upscale, s.fps * 4 ** rounds
    write_video(tqdm(map(to_pixels, frames), desc="frames", total=n), out, fps)
    print(f"{out}: {n} frames of {size}x{size} at {fps:g} fps, seed {args.seed}")


def check_device(device):
    """ValueError in one line if there is no such device."""
    try:
        torch.empty(1, device=device).cpu()                                  # `meta` has no numbers to give back
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"device {device}: {str(e).splitlines()[0]}") from None


def rounds_to(fps, base):
    """How many times four frames for one make `fps` out of `base`. ValueError if not 0, 1 or 2 times."""
    for rounds in range(3):
        if fps == base * 4 ** rounds:
            return rounds
    raise ValueError(f"{fps:g} fps: want {base:g}, {4 * base:g} or {16 * base:g}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)                # a kill, too, clears up behind itself
    sys.exit(main())
