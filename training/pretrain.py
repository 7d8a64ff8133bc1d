"""What the paper takes off the shelf, in small: an autoencoder and an image model with its text encoder.

    python -m training.pretrain vae   --out mine      pictures to latents of unit variance, and back
    python -m training.pretrain image --out mine      stills from sentences: "SD2.1 in small"

They replace SD2.1 where a person trains everything on a small set. `python -m training.pretrain STAGE --help` lists the
options. train.py has the stages of the paper.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from data.latents import loader
from data.media import from_pixels, video_rows
from microcinema import COMPONENT_CLASSES, MicroCinema, Sampling
from sd21 import weights
from sd21.command import existing_path, finite_float
from sd21.files import read_json, write_json
from sd21.text import Tokenizer, learn_merges, save_merges
from sd21.vae import AutoencoderKL
from train import loss, make_batch
from training import options, prepare
from training.distributed import rank, wait_for_all
from training.loop import Stage, fit
from training.state import checkpoints

STILLS = 4                          # frames that the autoencoder is given of each clip: neighbours are alike
SCALE_STILLS = 256                  # stills that the scale of the latents is measured on
SPECIAL_TOKENS = 514                # in every vocabulary: 256 bytes, 256 bytes that end a word, start and end


@dataclass(frozen=True)
class Recipe:
    """The choices of stages vae and image."""
    model: Path
    lr: float = 1e-4
    decoder_of: Path | None = None  # an autoencoder whose decoder to train further
    weighting: str = "epsilon"
    drop_text: float = 0.1


def new_model(name, model, **changes):
    """An untrained model of the size in the component's config.json, and that config, both with `changes`."""
    config, where = weights.component(name, model).read()
    config |= changes
    fixed = {"temporal": False} if name == "unet" else {}
    return COMPONENT_CLASSES[name](**weights.arguments(COMPONENT_CLASSES[name], config, where) | fixed), config


# ------------------------------------------------------------------------------------------------------ the autoencoder

def distance(x_hat, x):
    """|x - x_hat| + 4 (x - x_hat)^2, mean: the square punishes the few large errors, at edges, which the eye sees."""
    return (x_hat - x).abs().mean() + 4 * (x_hat - x).pow(2).mean()


def vae_loss(encode, decode, x, noise, encoder_dtype, decoder_dtype):
    """The distance of a sample's decoding from the pictures x [b, 3, H, W], and a little KL divergence from N(0, 1).

    noise [b, 4, h, w], or 0 for the posterior's mean. The factor 1e-4 keeps latents near unit size without blurring.
    """
    mean, logvar = (y.float() for y in encode(x.to(encoder_dtype)))
    x_hat = decode((mean + (0.5 * logvar).exp() * noise).to(decoder_dtype)).float()
    kl = 0.5 * (mean ** 2 + logvar.exp() - 1 - logvar).mean()
    return distance(x_hat, x) + 1e-4 * kl


class FrameStream:
    """The clips of step k, as frames [(b n), 3, H, W] in [-1, 1]. Workers read the clips of the next steps ahead."""

    def __init__(self, dataset, run):
        self.dataset, self.run, self.loader, self.next_step = dataset, run, None, None

    def numbers(self, step, steps=1):
        """The numbers of the clips of `steps` steps from `step` on; the set begins again at its end."""
        return [i % len(self.dataset) for i in range(step * self.run.batch, (step + steps) * self.run.batch)]

    def frames(self, step):
        """The frames of one step, on the device."""
        if step != self.next_step:                                           # the first step, also of a resumed run
            self.loader = iter(loader(self.dataset, self.numbers(step, self.run.steps - step), self.run.batch))
        self.next_step = step + 1
        return from_pixels(next(self.loader)["frames"].to(self.run.device)).transpose(1, 2).flatten(0, 1)


def train_vae(run, clips, recipe):
    """|x - x_hat| and its square on stills, with a little KL; then the scale for unit variance.

    With --decoder-of, the latents are another autoencoder's and only its decoder is trained, for pictures nearer to the
    truth. Every model that was trained on these latents works with it (as Stability AI did for SD, "ft-MSE").
    """
    if recipe.decoder_of:
        component = weights.component("vae", recipe.decoder_of)
        vae = prepare.load(component)
        config = component.read()[0] | {"scaling_factor": vae.scale}
        trained = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
        vae.encoder.requires_grad_(False), vae.quant_conv.requires_grad_(False)
    else:
        vae, config = new_model("vae", recipe.model, scaling_factor=None)    # null until it is measured
        trained = vae
    vae.to(run.device, memory_format=torch.channels_last)
    encode, decode = (torch.compile(f) if run.compile else f for f in (vae.encode, vae.decode))
    stream = FrameStream(clips.dataset(clips.clips), run)
    held_out = torch.stack([item["frames"] for item in clips.dataset(3, held_out=True)])        # 3: the rows of a strip
    held_out = from_pixels(held_out.to(run.device)).transpose(1, 2)          # [3, n, 3, H, W]
    decoder_dtype = torch.bfloat16 if run.bf16 else torch.float32

    def loss_of(x, noise):                                                   # a frozen encoder stays float32
        encoder_dtype = vae.encoder.conv_in.weight.dtype
        return vae_loss(encode, decode, x, noise, encoder_dtype, decoder_dtype)

    def load_batch(step, random):                                            # STILLS frames of each clip
        x = stream.frames(step)
        x = x[torch.randperm(len(x), generator=random, device=run.device)[:run.batch * STILLS]]
        x = x.contiguous(memory_format=torch.channels_last)
        shape = (len(x), vae.decoder.conv_in.in_channels, x.shape[2] // vae.factor, x.shape[3] // vae.factor)
        return x, torch.randn(shape, generator=random, device=run.device)

    @torch.no_grad()
    def validate():
        with torch.compiler.set_stance("force_eager"):                       # compiling again would take a minute
            losses = [loss_of(x, 0).item() for x in held_out]
        return {"held out": sum(losses) / len(losses)}

    @torch.no_grad()
    def sample():                                                            # the truth, and its decoding
        mean, _ = vae.encode(held_out.flatten(0, 1).to(vae.encoder.conv_in.weight.dtype))
        x_hat = vae.decode(mean.to(decoder_dtype)).view_as(held_out)
        return video_rows(held_out.transpose(1, 2), x_hat.transpose(1, 2))

    print(f"loss of an autoencoder that always answers grey: {distance(0 * held_out, held_out):.4f}")
    group = {"name": "decoder" if recipe.decoder_of else "autoencoder", "params": list(trained.parameters()),
             "lr": recipe.lr}
    names = trained.state_dict().keys()
    frozen = {name: tensor for name, tensor in vae.state_dict().items() if name not in names}
    fit(Stage(trained, [group], lambda step, random: step, load_batch, loss_of,
              lambda step: [stream.dataset[i]["name"] for i in stream.numbers(step)],
              lambda tensors: weights.save(frozen | tensors, config, run.out / "vae"), validate, sample), run)
    if rank() == 0 and not recipe.decoder_of:
        scale = measure_scale(run, clips)
        write_json(config | {"scaling_factor": round(scale, 5)}, run.out / "vae" / "config.json")


@torch.inference_mode()
def measure_scale(run, clips):
    """The factor that gives the latents unit variance: of the means of stills, by the autoencoder that was saved."""
    saved = weights.component("vae", run.out)
    vae = weights.load(saved, AutoencoderKL, device=run.device, scaling_factor=1.0)
    stills = clips.of_stage("image").dataset(min(SCALE_STILLS, clips.clips))
    squares = [vae.encode(from_pixels(item["frames"].to(run.device)).transpose(0, 1))[0].pow(2).mean()
               for item in stills]
    return torch.stack(squares).mean().rsqrt().item()


# ------------------------------------------------------------------------------------------------------ the image model

def write_tokenizer(run, clips, recipe, vae):
    """Learns the tokenizer's merges from the captions, and copies the schedule of --model: both belong to the model."""
    schedule, _ = weights.component("scheduler", recipe.model).read()
    write_json(schedule, run.out / "scheduler" / "scheduler_config.json")
    config, _ = weights.component("text_encoder", recipe.model).read()
    if clips.latents:
        captions = prepare.latent_clips(vae, clips, run)[0].captions
    else:                                       # 20,000 captions hold every pair of words; 5 wordings for each clip
        captions = clips.dataset(min(20_000, 5 * clips.clips)).captions()
    (run.out / "tokenizer").mkdir(exist_ok=True)
    merges = learn_merges(captions, config.get("vocab_size", 49_408) - SPECIAL_TOKENS)
    save_merges(merges, run.out / "tokenizer" / "merges.txt")


def train_image(run, clips, recipe):
    """The image model and its text encoder, together, on key frames: Eq. 5 with one frame and no prior."""
    vae = prepare.load(prepare.open_component("vae", run, recipe.model), run)
    schedule = prepare.schedule_for_eq_5(recipe.model, run.device)
    if rank() == 0 and not checkpoints(run.out, "image"):                    # a resumed run has its merges
        write_tokenizer(run, clips, recipe, vae)
    wait_for_all()
    tokenizer = Tokenizer.load(run.out)
    text_encoder, text_config = new_model("text_encoder", recipe.model, vocab_size=tokenizer.vocab_size)
    unet, config = new_model("unet", recipe.model)
    model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}).to(run.device)
    # Stills cannot teach "left" or "turning". At the full learning rate the text encoder maps such words to the same
    # vector, so it gets a tenth.
    groups = [{"name": "U-Net", "params": list(unet.parameters()), "lr": recipe.lr},
              {"name": "text encoder", "params": list(text_encoder.parameters()), "lr": recipe.lr / 10}]

    def still_model(z_t, t, condition, text):                                # an image model has no condition
        return unet(z_t, t, text)

    def loss_of(z_0, ids, t, eps_n, f_theta=still_model):
        return loss(f_theta, z_0, 0 * z_0, text_encoder(ids), t, eps_n, schedule, lam=0, weighting=recipe.weighting)

    def save(tensors):
        for folder, config_of, stem in (("unet", config, "diffusion_pytorch_model"),
                                        ("text_encoder", text_config, "model")):
            part = {name.removeprefix(f"{folder}."): x for name, x in tensors.items() if name.startswith(f"{folder}.")}
            weights.save(part, config_of, run.out / folder, stem)

    # 15 steps and guidance 3 show in a second what the toy-sized model can draw.
    cinema = MicroCinema(tokenizer, text_encoder, vae, unet, None, schedule,
                         Sampling(size=clips.size, steps=15, guidance=3.0), progress=False)
    cinema.settings()                                                        # fail here, not after the first hour

    def sample(held_out):
        captions = held_out.captions[:8]                                     # one row
        return video_rows(cinema.key_frame(captions, range(len(captions)))[None].transpose(1, 2))

    prepare.train_on_latents(run, clips, vae, tokenizer, schedule, model, groups, loss_of, make_batch, recipe.drop_text,
                             save, sample)


# ---------------------------------------------------------------------------------------------------- the command line

STAGES = {"vae": train_vae, "image": train_image}
PROG = "python -m training.pretrain"


def parse(argv=None):
    """The arguments of a command line."""
    helps = {name: train.__doc__.splitlines()[0] for name, train in STAGES.items()}
    parser, stages = options.command_line(PROG, __doc__, helps)
    for stage in STAGES:
        add = stages[stage].add_argument
        options.add_clip_options(add, with_frames=False)
        options.add_run_options(add)
        add("--lr", type=finite_float, default=Recipe.lr, help="learning rate")
        if stage == "image":
            options.add_latent_options(add)
        else:
            add("--decoder-of", type=existing_path, help="folder of an autoencoder whose decoder to train further: the "
                                                         "latents stay the same")
    return options.parse(parser, stages, argv)


def main(argv=None):
    """Trains one stage; see the top of the file."""
    args = parse(argv)
    return options.launch(PROG, STAGES[args.stage], Recipe, args)


if __name__ == "__main__":
    sys.exit(main())
