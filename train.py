"""Training: Sec. 3.3 Eq. 5, Sec. 4.1 "Implementation details". The loop itself is in training/loop.py.

    python train.py video --out mine      the image model grown to 3D, by Eq. 5 with the appearance noise prior
    python train.py tsr   --out mine      temporal super-resolution: the video model, between two frames

    python train.py video --data my_clips --out mine                      on clips of your own, see data/folder.py
    python train.py video --model path/to/sd21 --data my_clips --out mine --bf16       SD2.1, at the paper's settings
    python train.py latents --for video --data my_clips --out latents     encodes the clips once, for --latents
    torchrun --nproc-per-node 8 train.py video --out mine ...             on several GPUs, or hosts

defines  loss (Eq. 5), parameter_groups (the two learning rates), make_batch, the stages train_video and train_tsr

The paper starts from SD2.1. `python -m training.pretrain vae` and `image` train a small autoencoder and image model in
its place. The defaults are the paper's, unless the model folder brings its own, as toy/ does ("training" in its
config.json). A run that was stopped resumes when its command is given again. `train.py STAGE --help` lists the options.

our reading
      The paper names two rates, temporal and spatial (Sec. 4.1): new tensors get 2e-5, tensors copied from SD get 2e-6.
      AppearNet's zero convolutions and projectors are spatial but new: 2e-5. 10 % of the captions are emptied.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from appearnet import INJECTIONS, VideoModel, is_new
from data.media import video_rows
from microcinema import MicroCinema, Sampling, tsr_condition
from sampler import add_noise, appearance_noise
from sd21 import weights
from sd21.command import existing_path, finite_float, learning_rate, option, share
from training import options, prepare
from unet3d import UNet3D


def loss(f_theta, z_0, condition, text, t, eps_n, schedule, lam=0.03, weighting="epsilon"):
    """Eq. 5: the mean of |f_theta(z_t, t, z^c, c) - eps|^2 over all frames, for noise with the appearance prior.

    The target is the total noise eps = lam z^c + eps_n of Eq. 3, not eps_n. z_0 and eps_n [b, 4, n, h, w], condition
    (z^c) [b, 4, 1 or n, h, w], text (c) [b, l, d], t [b]. lam = 0 is the plain loss of the image model. `weighting` "v"
    divides by alpha_bar: the error of v (Salimans & Ho 2022, Sec. 4), in which the noisiest steps weigh more. The
    network computes in the dtype of `text`, all else here is float32."""
    alpha_bar = schedule.alpha_bar_at(t, z_0)
    eps = appearance_noise(eps_n, condition, lam)                            # Eq. 3
    z_t = add_noise(z_0, eps, alpha_bar)                                     # Eq. 4
    output = f_theta(z_t.to(text.dtype), t, condition.to(text.dtype), text).float()
    error = (output - eps) ** 2                                              # Eq. 5
    return (error / alpha_bar if weighting == "v" else error).mean()


def parameter_groups(model, lr_temporal=2e-5, lr_spatial=2e-6):
    """The two learning rates of Sec. 4.1, for AdamW: of the tensors new to SD2.1, and of those copied from it. Row
    "concat" of Table 2 widens a copied tensor, conv_in.weight: its new channels share the tensor's small rate."""
    new = [p for name, p in model.named_parameters() if is_new(name)]
    copied = [p for name, p in model.named_parameters() if not is_new(name)]
    return [{"name": "new", "lr": lr_temporal, "params": new},
            {"name": "from the image model", "lr": lr_spatial, "params": copied}]


def make_batch(z_0, ids, empty_ids, drop_text, steps, random):
    """A batch of clips z_0 [b, 4, n, h, w] with token ids [b, 77]: (z_0, ids, t, eps_n), the arguments of loss_of.

    A share `drop_text` of the captions becomes the empty one, for guidance; z^c and the prior stay. t is uniform over
    `steps` diffusion steps, eps_n is i.i.d. `random` is a torch.Generator."""
    options = {"generator": random, "device": z_0.device}
    ids = torch.where(torch.rand(len(z_0), 1, **options) < drop_text, empty_ids, ids)
    t = torch.randint(0, steps, (len(z_0),), **options)
    return z_0, ids, t, torch.randn(z_0.shape, **options)


# ---------------------------------------------------------------------------------------------------------- the stages

@dataclass(frozen=True)
class BaseRecipe:
    """The choices of every stage that Eq. 5 trains. option(default, help, check) is a field and a command option."""
    model: Path = option(Path(__file__).parent / "toy", "model folder, or SD2.1's single file, to begin with (toy)",
                         existing_path)
    weighting: str = option("epsilon", "Eq. 5 as it is, or v: divided by alpha_bar", choices=("epsilon", "v"))
    drop_text: float = option(0.1, "share of captions emptied, for classifier-free guidance", share)


@dataclass(frozen=True)
class Recipe(BaseRecipe):
    """The choices of stages video and tsr. The defaults are the paper's."""
    start: Path | None = option(None, "folder whose video (tsr) model to begin with", existing_path)
    merges: Path | None = option(None, "the tokenizer's merges.txt, if it is not with the model", Path)
    inject: str | None = option(None, "a row of Table 2 (default: the last, or that of --start)", choices=INJECTIONS)
    lam: float = option(0.03, "lambda of Eq. 3 (0.03, Fig. 6)", finite_float)
    lr_temporal: float = option(2e-5, "learning rate of new tensors (2e-5, Sec. 4.1)", learning_rate)
    lr_spatial: float = option(2e-6, "learning rate of tensors from the image model (2e-6, Sec. 4.1)", learning_rate)


def train_video(run, clips, recipe):
    """The image model grown to 3D, with AppearNet and the appearance noise prior, on clips: Eq. 5."""
    unet = prepare.open_component("unet", run, recipe.model)
    sizes = weights.arguments(UNet3D, *unet.read())
    if recipe.start:
        start = weights.component("video", recipe.start)
        config, file = start.read()
        for key, value in sizes.items():
            if config.get(key, value) != value:
                raise ValueError(f"{file}: {key} is {config[key]}, but {value} in the image model of {unet.place}")
        model = prepare.load(start)
    else:
        inject = recipe.inject or INJECTIONS[-1]
        model = VideoModel.grow(prepare.load(unet, temporal=False), inject)
        sampling = weights.component("video", recipe.model).settings("sampling")
        config = sizes | {"inject": inject, "sampling": sampling}
    sampling = config.get("sampling", {}) | {"size": clips.size, "frames": clips.frames, "fps": clips.fps}
    centre = clips.frames // 2                                               # the key frame
    train_motion(run, clips, recipe, model, config | {"sampling": sampling},
                 condition_of=lambda z_0: z_0[:, :, centre:centre + 1])      # z^c


def train_tsr(run, clips, recipe):
    """Temporal super-resolution (Sec. 3.1): the video model, given the first and last of five frames.

    It is used from 2 to 8 fps and from 8 to 32. So it is trained on windows at 8 and at 32 fps (4 and 16 times --fps),
    anywhere in a clip, and the caption begins with the rate (sd21/text.py, with_fps)."""
    start = weights.component("tsr", recipe.start) if recipe.start else prepare.open_component(
        "video", run, recipe.model)
    config, _ = start.read()
    sampling = {key: value for key, value in config.get("sampling", {}).items() if key != "fps"}     # TSR has two rates
    sampling |= weights.component("tsr", recipe.model).settings("sampling") | {"size": clips.size, "frames": 5}
    train_motion(run, clips, recipe, prepare.load(start), config | {"sampling": sampling},
                 condition_of=lambda z_0: tsr_condition(z_0[:, :, 0], z_0[:, :, -1], 5))


def train_motion(run, clips, recipe, model, config, condition_of):
    """Eq. 5 on clips, with condition_of(z_0) as z^c. `run` holds the device, the output folder and the stage."""
    config["sampling"] = config["sampling"] | {"lam": recipe.lam}
    schedule = prepare.schedule_for_eq_5(prepare.open_component("scheduler", run, recipe.model).place, run.device)
    vae, text_encoder, tokenizer = prepare.frozen_parts(run, recipe.model, model, recipe.merges)
    model.to(run.device).train()
    cinema = MicroCinema(tokenizer, text_encoder, vae, model.unet, model, schedule, progress=False)
    sampling = Sampling(**weights.arguments(Sampling, config["sampling"], run.out))
    cinema.settings(sampling)                                                # fail here, not after the first hour

    def loss_of(z_0, ids, t, eps_n, f_theta=model):
        with torch.no_grad():
            text = text_encoder(ids)
        return loss(f_theta, z_0, condition_of(z_0), text, t, eps_n, schedule, recipe.lam, recipe.weighting)

    def sample(held_out):                                                    # truth above model: three clips, 15 steps
        z_0 = held_out.rows(torch.arange(min(3, len(held_out))), run.device)
        captions = held_out.captions[:len(z_0)]
        text, empty = cinema.encode_text(captions), cinema.encode_text([""] * len(z_0))
        z = cinema.sample_video(model, condition_of(z_0), text, empty, replace(sampling, steps=15), range(len(z_0)),
                                run.stage, "sample")
        return video_rows(cinema.decode(z_0), cinema.decode(z))

    prepare.train_on_latents(
        run, clips, cinema, model, parameter_groups(model, recipe.lr_temporal, recipe.lr_spatial), loss_of, make_batch,
        recipe.drop_text, lambda tensors: weights.save(tensors, config, run.out / run.stage), sample)


# ---------------------------------------------------------------------------------------------------- the command line

STAGES = {"video": (train_video, {}), "tsr": (train_tsr, {"without": ("frames", "inject")}),
          "latents": (prepare.write_latents, {"only": ("out", "model", "data", "clips", "frames", "fps", "size", "seed",
                                                       "augment", "batch", "device", "bf16")})}


def parse(argv=None):
    """The arguments."""
    parser, stages = options.command_line("train.py", __doc__, STAGES, Recipe)
    stages["latents"].add_argument("--for", dest="stage_for", choices=("image", "video", "tsr"), required=True,
                                   help="the stage to train")
    args = options.parse(parser, stages, argv)
    if getattr(args, "inject", None) and args.start:
        parser.error("--inject and --start: choose one; a model that is started from keeps its own way to inject")
    return args


def main(argv=None):
    """Trains one stage; see the top of the file."""
    return options.launch("train.py", parse, STAGES, Recipe, argv)


if __name__ == "__main__":
    sys.exit(main())
