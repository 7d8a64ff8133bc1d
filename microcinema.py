"""MicroCinema: Sec. 3.1 and Fig. 2 as a whole. A sentence becomes a key frame, the key frame a video.

    python microcinema.py "a red circle moving left"                     -> a-red-circle-moving-left.gif
    python microcinema.py "a red circle moving left" --image photo.jpg   animates a picture of yours
    python microcinema.py "..." --seed 7 --steps 20 --out video.webp     .gif .webp .apng .png (sheet) .mp4 or folder

here  MicroCinema: load, key_frame (stage one), animate (stage two); Sampling, its settings; VideoModel (appearnet.py)

Divide and conquer: any text-to-image model, here the U-Net before it was grown to 3D, draws the key frame; the video
model moves it. Everything is latent: pictures [b, 3, H, W] in [-1, 1] are z [b, 4, H/8, W/8], and videos add n frames.

ours  The key frame is number n // 2, the centre of an odd n, and is drawn anew with the others, not copied in. Guidance
      7.5 and 50 steps are SD2.1's habits; the paper is silent. A model folder may bring its own, in video/config.json.
"""

import argparse
import random
import re
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from tqdm import tqdm

import weights
from appearnet import VideoModel
from clip import Tokenizer
from data import ENDINGS, check_output, read_picture, to_pixels, write_video
from sampler import SAMPLERS, appearance_noise, guide


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


def noise(seeds, shape, stage):
    """Independent noise [b, *shape]: the same for the same seed, in whatever batch, on whatever device; a function that
    gives the next such noise at each call."""
    generators = [torch.Generator().manual_seed(random.Random(f"{seed} {stage}").getrandbits(62)) for seed in seeds]
    return lambda: torch.stack([torch.randn(shape, generator=g) for g in generators])


class MicroCinema:
    """The parts of a model folder, and the two stages. Pictures in and out are [b, 3, H, W], videos [b, 3, n, H, W]."""

    def __init__(self, tokenizer, text_encoder, vae, scale, unet, video: VideoModel, schedule, sampling=Sampling(),
                 trained=True):
        self.tokenizer, self.text_encoder, self.vae, self.scale = tokenizer, text_encoder, vae, scale
        self.unet, self.video, self.schedule, self.sampling, self.trained = unet, video, schedule, sampling, trained

    @classmethod
    def load(cls, path="toy", device="cpu", dtype=torch.float32, video=None, merges=None):
        """Reads a model folder or SD2.1's single file (weights.py): `path`.

        video: a file with the weights of a trained video model; without, those in the folder's video/, and if there are
        none either, the image model grown to 3D as it is (`trained` is False then). merges: merges.txt, if it does not
        lie in the folder, or beside the file. ValueError or OSError, in one line, if a part is missing or broken.
        """
        path = Path(path)
        if not path.exists():
            raise ValueError(f"{path}: no such model folder or file")
        tokenizer = Tokenizer.load(merges or (path if path.is_dir() else path.parent))
        schedule, how = weights.load_schedule(path), {"dtype": dtype, "device": device}
        text_encoder, (vae, scale) = weights.load_text_encoder(path, **how), weights.load_vae(path, **how)
        unet = weights.load_unet(path, **how)
        known, width = text_encoder.text_model.embeddings.token_embedding.weight.shape
        if tokenizer.vocab_size != known:
            raise ValueError(f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the text encoder {known}; "
                             "merges.txt is cut short, or another model's")
        if width != unet.common["text_dim"]:
            raise ValueError(f"{path}: the text encoder's vectors are {width} wide, the U-Net reads "
                             f"{unet.common['text_dim']}; they are of different families")
        source = video or (path if (path / "video").is_dir() else None)
        if source:
            config, where = weights.read_config(source, "video")
            sampling = Sampling(**weights.arguments(Sampling, config.get("sampling", {}), where))
            model = weights.load_video(source, **how)
        else:
            config, where = weights.read_config(path, "unet")
            sampling, model = Sampling(), VideoModel.grow(unet, **weights.arguments(VideoModel, config, where)).eval()
        return cls(tokenizer, text_encoder, vae, scale, unet, model, schedule, sampling, trained=bool(source))

    def settings(self, **changes):
        """The model's Sampling with these changes. ValueError for what cannot be sampled."""
        s = replace(self.sampling, **{key: value for key, value in changes.items() if value is not None})
        multiple = self.vae.factor * 2 ** (len(self.unet.down_blocks) - 1)
        if s.size < multiple or s.size % multiple:
            raise ValueError(f"size {s.size}: want a multiple of {multiple} pixels (autoencoder x U-Net levels)")
        if s.frames < 1:
            raise ValueError(f"{s.frames} frames: want 1 or more")
        if s.sampler not in SAMPLERS:
            raise ValueError(f"sampler '{s.sampler}': want {' or '.join(SAMPLERS)}")
        if not 0 <= s.eta <= 1 or s.eta and s.sampler != "ddim":
            raise ValueError(f"eta {s.eta:g}: want 0 to 1, and 0 for every sampler but ddim")
        self.schedule.path(s.steps, s.spacing)
        return s

    def encode_text(self, prompts):
        """[b, 77, d]"""
        device = next(self.text_encoder.parameters()).device
        return self.text_encoder(self.tokenizer(prompts).to(device))

    def encode(self, pictures):
        """z_c [b, 4, 1, h, w] of pictures [b, 3, H, W]: the mean of the posterior, scaled."""
        like = next(self.vae.parameters())
        return (self.vae.encode(pictures.to(like))[0].float() * self.scale)[:, :, None]

    def decode(self, z):
        """Latents [b, 4, n, h, w] -> [b, 3, n, H, W] in [-1, 1], clip by clip."""
        like = next(self.vae.parameters())
        clips = [self.vae.decode((clip.transpose(0, 1) / self.scale).to(like)).transpose(0, 1) for clip in z]
        return torch.stack(clips).float().clamp(-1, 1)

    def sample(self, model, z_T, text, empty, s, more_noise, shift, name):
        """Solves from z_T to z_0 with guidance and a progress bar: in float32, whatever the dtype of the network."""
        path = self.schedule.path(s.steps, s.spacing)
        guided = guide(model, s.guidance, text, empty)
        model = lambda z_t, t: guided(z_t.to(text.dtype), t).float()
        how = {"eta": s.eta, "shift": shift, "noise": more_noise} if s.sampler == "ddim" else {}
        for z in tqdm(SAMPLERS[s.sampler](model, z_T, path, self.schedule, **how), desc=name, total=s.steps):
            pass
        return z

    @torch.inference_mode()
    def key_frame(self, prompts, seeds=(0,), **changes):
        """Stage one (Sec. 3.1): pictures [b, 3, H, W] in [-1, 1] for b prompts and seeds. `changes`: see Sampling."""
        s = self.settings(**changes)
        text, empty = self.encode_text(prompts), self.encode_text([""] * len(prompts))
        h = s.size // self.vae.factor
        draw = noise(seeds, (4, 1, h, h), "key frame")
        fresh = lambda: draw().to(text.device)
        return self.decode(self.sample(self.unet, fresh(), text, empty, s, fresh, 0.0, "key frame"))[:, :, 0]

    @torch.inference_mode()
    def animate(self, prompts, key_frames, seeds=(0,), appearance=True, **changes):
        """Stage two (Sec. 3.1): videos [b, 3, n, H, W] in [-1, 1] around key frames [b, 3, H, W].

        `changes`: see Sampling; size is the pictures' own. appearance=False is for comparison: neither AppearNet nor
        noise prior, the 3D U-Net alone with the text.
        """
        s = self.settings(**changes | {"size": key_frames.shape[-1]})
        text, empty = self.encode_text(prompts), self.encode_text([""] * len(prompts))
        z_c = self.encode(key_frames)
        draw = noise(seeds, (4, s.frames, *z_c.shape[3:]), "video")
        fresh = lambda: draw().to(text.device)

        def f_theta(z_t, t, text):                                           # z_c stays in both passes of the guidance
            return self.video(z_t, t, z_c.to(z_t.dtype).repeat(len(z_t) // len(z_c), 1, 1, 1, 1), text)

        if not appearance:
            return self.decode(self.sample(self.video.unet, fresh(), text, empty, s, fresh, 0.0, "video without z_c"))
        z_T = appearance_noise(fresh(), z_c, s.lam + s.gamma)                # Sec. 4.2.2
        return self.decode(self.sample(f_theta, z_T, text, empty, s, fresh, s.lam * z_c, "video"))


def main(argv=None):
    """The command line; see the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("prompt", help="the sentence c")
    add("--model", type=Path, default=Path(__file__).parent / "toy",
        help="model folder, or SD2.1's single .safetensors file (default: the toy model)")
    add("--weights", type=Path, help="file with a trained video model (default: the model folder's video/)")
    add("--merges", type=Path, help="the tokenizer's merges.txt, if it is not with the model")
    add("--image", type=Path, help="a picture to be the key frame, instead of drawing one; any size, any mode")
    add("--out", type=Path, help=f"the file ({' '.join(filter(None, ENDINGS))}) or folder to write (PROMPT.gif)")
    add("--seed", type=int, default=0, help="of the noise eps_n; the same seed gives the same video")
    add("--steps", type=int, help="denoising steps of each stage (default: the model's, else 50)")
    add("--guidance", type=float, help="classifier-free guidance scale w (default: the model's, else 7.5)")
    add("--lam", type=float, help="lambda of Eq. 3, z^c in the noise at every step (default: as trained, 0.03)")
    add("--gamma", type=float, help="gamma of Sec. 4.2.2, more z^c in the first noise (default 0.02)")
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
    except (ValueError, OSError) as e:
        print(f"microcinema.py: {e}", file=sys.stderr)
        return 2
    return 0


def make(args):
    """One video, as the command line asks: checks first, then the two stages, then the file."""
    if not args.prompt.strip():
        raise ValueError("the prompt is empty: say what should be seen, and how it moves")
    words = re.findall(r"[a-z0-9]+", args.prompt.lower())
    out = args.out or Path(f"{'-'.join(words)[:60] or 'video'}.gif")
    check_output(out)
    try:
        torch.empty(1, device=args.device)
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"device {args.device}: {str(e).splitlines()[0]}") from None
    cinema = MicroCinema.load(args.model, args.device, getattr(torch, args.dtype), args.weights, args.merges)
    if not cinema.trained:
        print("no trained video weights (--weights FILE): temporal layers and AppearNet are as they start, without "
              "effect; expect a key frame, and then frames that are separate pictures of the sentence")
    changes = {field.name: getattr(args, field.name) for field in fields(Sampling) if hasattr(args, field.name)}
    s = cinema.settings(**changes)
    if s.frames % 2 == 0:
        print(f"{s.frames} frames have no centre: the key frame is number {s.frames // 2} of 0 to {s.frames - 1}")
    if cut := cinema.tokenizer.cut(args.prompt):
        print(f"the prompt is longer than the text encoder reads; cut off: {cut!r}")
    if args.image:
        picture, what_was_done = read_picture(args.image, s.size, s.size)
        print(what_was_done)
        key_frame = picture[None]
    else:
        key_frame = cinema.key_frame([args.prompt], [args.seed], **changes)
    video = cinema.animate([args.prompt], key_frame, [args.seed], **changes)
    write_video(to_pixels(video[0].cpu()), out, s.fps)
    print(f"{out}: {s.frames} frames of {s.size}x{s.size} at {s.fps:g} fps, seed {args.seed}")


if __name__ == "__main__":
    sys.exit(main())
