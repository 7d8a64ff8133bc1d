"""What the paper takes off the shelf, in small: an autoencoder and an image model with its text encoder.

    python -m training.pretrain vae   --out mine      pictures to latents of unit variance, and back
    python -m training.pretrain image --out mine      stills from sentences: "SD2.1 in small"

They replace SD2.1 where a person trains everything on a small set. `python -m training.pretrain STAGE --help` lists the
options. train.py has the stages of the paper."""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from data.latents import loader
from data.media import from_pixels, video_rows
from microcinema import COMPONENT_CLASSES, MicroCinema, Sampling
from sd21 import weights
from sd21.command import existing_path, learning_rate, option
from sd21.files import write_json
from sd21.text import Tokenizer, learn_merges, save_merges
from train import BaseRecipe, loss, make_batch
from training import options, prepare
from training.distributed import all_gather, rank
from training.loop import Stage, fit
from training.state import checkpoints


@dataclass(frozen=True)
class Recipe(BaseRecipe):
    """The choices of stages vae and image."""
    lr: float = option(1e-4, "learning rate", learning_rate)
    start: Path | None = option(None, "folder whose autoencoder to begin with", existing_path)
    decoder_of: Path | None = option(None, "folder of an autoencoder whose decoder to train further", existing_path)

    def __post_init__(self):
        if self.start and self.decoder_of:
            raise ValueError("--start and --decoder-of: choose one")


def new_model(name, model, **changes):
    """(an untrained model of the size in the component's config.json, that config), both with `changes`."""
    component, fixed = weights.component(name, model), {"temporal": False} if name == "unet" else {}
    model = weights.read_settings(component, None, COMPONENT_CLASSES[name], **changes, **fixed)
    return model, component.read()[0] | changes


def distance(x_hat, x):
    """|x - x_hat| + 4 (x - x_hat)^2, mean: the square punishes the few large errors, at edges, which the eye sees."""
    return (x_hat - x).abs().mean() + 4 * (x_hat - x).pow(2).mean()


def vae_loss(encode, decode, x, noise):
    """The distance of a sample's decoding from the pictures x [b, 3, H, W], plus 1e-4 times the KL divergence of the
    posterior from N(0, 1), which keeps latents near unit size without blurring. noise [b, 4, h, w]; 0: the mean."""
    mean, logvar = (y.float() for y in encode(x))
    x_hat = decode(mean + (0.5 * logvar).exp() * noise).float()
    kl = 0.5 * (mean ** 2 + logvar.exp() - 1 - logvar).mean()
    return distance(x_hat, x) + 1e-4 * kl


def train_vae(run, clips, recipe):
    """|x - x_hat| and its square on stills, with a little KL; then the scale for unit variance.
    --start begins with another autoencoder.
    With --decoder-of, the latents are another autoencoder's and only its decoder is trained, for pictures nearer to the
    truth. Every model that was trained on these latents works with it (as Stability AI did for SD, "ft-MSE")."""
    if recipe.start or recipe.decoder_of:
        component = weights.component("vae", recipe.start or recipe.decoder_of)
        vae, config = prepare.load(component), component.read()[0]
    else:
        vae, config = new_model("vae", recipe.model)
    if recipe.decoder_of:
        config |= {"scaling_factor": vae.scale}
        decoder = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
        vae.requires_grad_(False)
        name, trained = "decoder", decoder.requires_grad_(True)
    else:
        config |= {"scaling_factor": None}                                   # null until it is measured
        name, trained = "autoencoder", vae
    vae.to(run.device, memory_format=torch.channels_last)
    encode = lambda x: vae.encode(x.to(vae.encoder.conv_in.weight.dtype))    # a frozen encoder stays float32
    decode = lambda z: vae.decode(z.to(vae.decoder.conv_in.weight.dtype))
    loss_of = partial(vae_loss, *(torch.compile(f) if run.compile else f for f in (encode, decode)))
    dataset, upcoming = clips.dataset(clips.clips), {}                       # {next step: its batch and all later ones}
    # The clips of steps first to last - 1, by number. The set begins again at its end.
    numbers = lambda first, last: [i % len(dataset) for i in range(first * run.batch, last * run.batch)]
    held_out = torch.stack([item["frames"] for item in clips.dataset(3, held_out=True)])        # 3: the rows of a strip
    held_out = from_pixels(held_out.to(run.device)).transpose(1, 2)          # [3, n, 3, H, W]

    def load_batch(step, random):
        if step not in upcoming:                                             # the first step, also of a resumed run
            upcoming[step] = iter(loader(dataset, numbers(step, run.steps), run.batch))          # workers read ahead
        batches = upcoming[step + 1] = upcoming.pop(step)
        x = from_pixels(next(batches)["frames"].to(run.device)).transpose(1, 2).flatten(0, 1)    # [(b n), 3, H, W]
        some = torch.randperm(len(x), generator=random, device=run.device)[:run.batch * 4]       # neighbours are alike:
        x = x[some].contiguous(memory_format=torch.channels_last)                                # 4 stills of a clip
        shape = (len(x), vae.decoder.conv_in.in_channels, x.shape[2] // vae.factor, x.shape[3] // vae.factor)
        return x, torch.randn(shape, generator=random, device=run.device)

    def sample():                                                            # the truth, and its decoding
        mean, _ = encode(held_out.flatten(0, 1))
        return video_rows(held_out.transpose(1, 2), decode(mean).view_as(held_out).transpose(1, 2))
    print(f"loss of an autoencoder that always answers grey: {distance(0 * held_out, held_out):.4f}")
    fit(Stage(trained, [{"name": name, "params": list(trained.parameters()), "lr": recipe.lr}],
              pick=lambda step, _: step, load=load_batch, loss_of=loss_of, sample=sample,
              validate=lambda: {"held out": sum(loss_of(x, 0).item() for x in held_out) / len(held_out)},
              names=lambda step: [dataset[i]["name"] for i in numbers(step, step + 1)],
              save=lambda tensors: weights.save(vae.state_dict() | tensors, config, run.out / "vae")), run)
    if rank() == 0 and not recipe.decoder_of:
        write_scale(run, clips)


@torch.inference_mode()
def write_scale(run, clips):
    """Writes the scale that gives the means of stills unit variance to the config of the autoencoder that was saved."""
    component = weights.component("vae", run.out)
    vae = prepare.load(component, scaling_factor=1.0).to(run.device)
    stills = clips.of_stage("image").dataset(min(256, clips.clips))
    pictures = (from_pixels(item["frames"].to(run.device)).transpose(0, 1) for item in stills)
    scale = torch.stack([vae.encode(x)[0].pow(2).mean() for x in pictures]).mean().rsqrt().item()
    write_json(component.read()[0] | {"scaling_factor": round(scale, 5)}, component.config)


def train_image(run, clips, recipe):
    """The image model and its text encoder, together, on key frames: Eq. 5 with one frame and no prior."""
    vae = prepare.load(prepare.open_component("vae", run, recipe.model), run)
    schedule = prepare.schedule_for_eq_5(recipe.model, run.device)
    if rank() == 0 and not checkpoints(run.out, "image"):                    # a resumed run has its merges and schedule
        write_json(weights.component("scheduler", recipe.model).read()[0],
                   run.out / "scheduler" / "scheduler_config.json")
        if clips.latents:
            captions = clips.encoded(vae, run)[0].captions
        else:                                   # 20,000 captions hold every pair of words; 5 wordings for each clip
            captions = clips.dataset(min(20_000, 5 * clips.clips)).captions()
        part = weights.component("text_encoder", recipe.model)
        vocab_size = weights.arguments(COMPONENT_CLASSES["text_encoder"], *part.read()).get("vocab_size", 49_408)
        merges = learn_merges(captions, vocab_size - 514)                    # 514: 256 bytes, 256 bytes that end a
        save_merges(merges, run.out / "tokenizer" / "merges.txt")            # word, start and end
    all_gather("written")                                                    # the others read what rank 0 wrote
    tokenizer = Tokenizer.load(run.out)
    text_encoder, text_config = new_model("text_encoder", recipe.model, vocab_size=tokenizer.vocab_size)
    unet, config = new_model("unet", recipe.model)
    model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}).to(run.device)
    # Stills cannot teach "left" or "turning". At the full learning rate the text encoder maps such words to the same
    # vector, so it gets a tenth.
    groups = [{"name": "U-Net", "params": list(unet.parameters()), "lr": recipe.lr},
              {"name": "text encoder", "params": list(text_encoder.parameters()), "lr": recipe.lr / 10}]
    still_model = lambda z_t, t, condition, text: unet(z_t, t, text)         # an image model has no condition

    def loss_of(z_0, ids, t, eps_n, f_theta=still_model):
        return loss(f_theta, z_0, 0 * z_0, text_encoder(ids), t, eps_n, schedule, lam=0, weighting=recipe.weighting)

    def save(tensors):
        for name, settings, stem in ("unet", config, "diffusion_pytorch_model"), ("text_encoder", text_config, "model"):
            part = {key.removeprefix(f"{name}."): x for key, x in tensors.items() if key.startswith(f"{name}.")}
            weights.save(part, settings, run.out / name, stem)
    # 15 steps and guidance 3 show in a second what the toy-sized model can draw.
    cinema = MicroCinema(tokenizer, text_encoder, vae, unet, None, schedule,
                         Sampling(size=clips.size, steps=15, guidance=3.0), progress=False)
    cinema.settings()                                                        # fail here, not after the first hour

    def sample(held_out):
        captions = held_out.captions[:8]                                     # one row
        return video_rows(cinema.key_frame(captions, range(len(captions)))[None].transpose(1, 2))
    prepare.train_on_latents(run, clips, cinema, model, groups, loss_of, make_batch, recipe.drop_text, save, sample)


STAGES = {"vae": (train_vae, {"without": ("frames", "latents", "weighting", "drop_text", "checkpointing", "fsdp")}),
          "image": (train_image, {"without": ("frames", "start", "decoder_of")})}


def parse(argv=None):
    """The arguments."""
    return options.parse(*options.command_line("python -m training.pretrain", __doc__, STAGES, Recipe), argv)


def main(argv=None):
    """Trains one stage; see the top of the file."""
    return options.launch("python -m training.pretrain", parse, STAGES, Recipe, argv)


if __name__ == "__main__":
    sys.exit(main())
