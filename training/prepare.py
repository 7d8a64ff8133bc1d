"""What every stage needs before its first step: the parts it reads, its clips as latents, and a held-out loss. A stage
reads the parts it does not train from --out if an earlier stage wrote them there, otherwise from --model, and prints
which. Model sizes come from the config files in --model."""

from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path

import torch

from appearnet import Spade
from data import latents
from data.folder import FolderSet
from data.toyset import ToySet
from microcinema import COMPONENT_CLASSES, encode_video
from sampler import NoiseSchedule
from sd21 import weights
from sd21.command import fps, option, positive_int
from sd21.layers import SpatialTransformer
from sd21.text import Tokenizer
from training.distributed import check_shared, rank, world_size
from training.loop import Stage, checkpoint_blocks, compile_blocks, fit
from unet3d import Block, Downsample, ResnetBlock, TemporalAttention, Upsample

COMPILED = (ResnetBlock, SpatialTransformer, TemporalAttention, Downsample, Upsample, Spade)     # block by block
RECOMPUTED = (ResnetBlock, SpatialTransformer, TemporalAttention)            # in the backward pass, by --checkpointing


def open_component(name, run, model):
    """The Component that a stage reads: from run.out if an earlier stage wrote it, else from `model`."""
    components = weights.resolve_components(model, run.out)
    if name not in components:
        raise ValueError(f"{model}: holds no {name}, and {run.out} neither; train stage {name} first")
    check_shared(run.out / name, components[name].place == run.out)
    print(f"{name}: from {components[name].place}")
    return components[name]


def load(component, run=None, **fixed):
    """The model of a component; with `run`, in the dtype and on the device to compute in."""
    where = {"dtype": torch.bfloat16 if run.bf16 else torch.float32, "device": run.device} if run else {}
    return weights.load(component, COMPONENT_CLASSES[component.name], **where, **fixed)


def frozen_parts(run, model, merges=None):
    """(vae, text encoder, tokenizer): the parts that stages video and tsr do not train."""
    vae, text_encoder = (load(open_component(name, run, model), run) for name in ("vae", "text_encoder"))
    return vae, text_encoder, Tokenizer.load(weights.resolve_components(model, run.out, merges)["tokenizer"].place)


def schedule_for_eq_5(place, device):
    """The noise schedule at `place`. Eq. 5 trains eps: ValueError if the model there predicts v."""
    schedule = weights.read_settings(weights.component("scheduler", place), None, NoiseSchedule)
    if schedule.prediction_type != "epsilon":
        raise ValueError(f"{place}: a v-prediction model; Eq. 5 trains a network that predicts eps, so start from "
                         "one that does (SD2.1-base, not the 768-pixel SD2.1)")
    return schedule.to(device)


@dataclass(frozen=True)
class Clips:
    """Which clips a stage trains on, and how windows are cut from them. The defaults are the paper's."""
    data: Path | None = option(None, "folder of clips with captions, see data/folder.py (default: the toy set)", Path)
    latents: Path | None = option(None, "folder that `train.py latents` wrote: train on it instead of --data", Path)
    clips: int = option(50_000, "how many clips of the toy set, or windows of yours", positive_int)
    frames: int = option(9, "N, frames of a clip (9, Sec. 4.1; 17 in the ablations)", positive_int)
    fps: float = option(2.0, "frames a second of a clip (2, Sec. 4.1); shorter clips need more", fps)
    size: int = option(320, "height and width in pixels (320, Sec. 3.1)", positive_int)
    seed: int = 0
    windows: tuple = ()             # frame rates of the windows, where they are not all at `fps`

    def of_stage(self, stage):
        """The clips of a stage: stills for the image model; five frames at both of its rates for TSR (Sec. 3.1)."""
        if stage == "tsr":                                                   # used from 2 to 8 fps, and from 8 to 32
            return replace(self, frames=5, windows=(4 * self.fps, 16 * self.fps))
        return replace(self, frames=1) if stage == "image" else self

    def dataset(self, count, held_out=False):
        """`count` of them as a dataset: of the held-out tenth, or of the rest."""
        options = (count, self.frames, self.fps, self.size, self.seed, held_out, self.windows)
        dataset = FolderSet(self.data, *options) if self.data else ToySet(*options)
        if self.data and not held_out:
            print(f"{self.data}: {dataset.summary()}")
        return dataset

    def two_sets(self):
        """[the clips to train on, 32 held-out clips: a loss of them is stable to 1 %]."""
        return [self.dataset(self.clips), self.dataset(min(32, self.clips), held_out=True)]

    def cache_key(self, vae):
        """The settings that cached latents must match."""
        return {"frames": self.frames, "fps": list(self.windows) or [self.fps], "size": self.size, "scale": vae.scale}

    def encoded(self, vae, run):
        """The two sets as Latents."""
        if self.latents:
            return latents.read(self.latents, self.cache_key(vae))
        return [latents.encode(partial(encode_video, vae), dataset, run.batch, run.device, rank(), world_size())
                for dataset in self.two_sets()]


def write_latents(run, clips, recipe):
    """Encodes clips once, into shards that --latents reads."""
    if world_size() > 1:
        raise ValueError("latents: takes one process, not torchrun")
    vae = load(weights.component("vae", recipe.model), run)
    key = {"data": str(clips.data or "toy set"), "model": str(recipe.model), "seed": run.seed, "bf16": run.bf16}
    key |= clips.cache_key(vae)
    latents.write(partial(encode_video, vae), clips.two_sets(), run.out, run.batch, run.device, key)
    print(f"{run.out}: {clips.clips} clips of {clips.frames} frames")


def train_on_latents(run, clips, cinema, model, groups, loss_of, make_batch, drop_text, save, sample):
    """Trains on latents: makes the Stage of image, video and tsr, prints what to expect, and fits it. cinema: has the
    parts. loss_of(z_0, ids, t, eps_n, f_theta=the model's) -> loss. sample(held_out), of Latents, -> a picture."""
    train_set, held_out = clips.encoded(cinema.vae, run)
    ids, held_out_ids, empty_ids = (cinema.tokenizer(captions).to(run.device)
                                    for captions in (train_set.captions, held_out.captions, [""]))
    steps = len(cinema.schedule.alpha_bar)
    z_0 = held_out.rows(torch.arange(len(held_out), device=run.device), run.device)
    if run.checkpointing:
        checkpoint_blocks(model, RECOMPUTED)
    if run.compile:
        compile_blocks(model, COMPILED)
    # What guidance will need, and a loss to compare the first one with.
    zero = partial(loss_of, f_theta=lambda z_t, *_: torch.zeros_like(z_t))
    losses = loss_by_bucket(zero, z_0, held_out_ids, steps).values()
    print(f"captions: {1 - drop_text:.0%} kept, {drop_text:.0%} emptied, for guidance; z^c and noise prior: all kept\n"
          f"loss of a network that always answers 0: {sum(losses) / len(losses):.4f}")
    fit(Stage(model, groups, loss_of=loss_of, save=save, units=sharding_units,
              pick=lambda _, random: torch.randint(len(train_set), (run.batch,), generator=random, device=run.device),
              load=lambda rows, random: make_batch(train_set.rows(rows, run.device), ids[rows], empty_ids, drop_text,
                                                   steps, random),
              names=lambda rows: [train_set.names[i] for i in rows.tolist()],
              validate=lambda: loss_by_bucket(loss_of, z_0, held_out_ids, steps), sample=lambda: sample(held_out)), run)


@torch.no_grad()
def loss_by_bucket(loss_of, z_0, ids, steps, buckets=5):
    """The loss on held-out clips by diffusion step, on the same clips, steps and noise each time: {"t 0-199": loss}.
    Eq. 5 is mostly noise that no model can predict: its mean hardly moves, but a bucket of t shows learning."""
    random, losses = torch.Generator(z_0.device).manual_seed(0), {}
    for k in range(buckets):
        low, high = k * steps // buckets, (k + 1) * steps // buckets
        t = torch.randint(low, high, (len(z_0),), generator=random, device=z_0.device)
        eps_n = torch.randn(z_0.shape, generator=random, device=z_0.device)
        parts = zip(*(x.split(4) for x in (z_0, ids, t, eps_n)), strict=True)            # 4: bounds the memory
        losses[f"t {low}-{high - 1}"] = sum(loss_of(*part).item() * len(part[0]) for part in parts) / len(z_0)
    return losses


def sharding_units(network):
    """What FSDP2 gathers together: a ResBlock with its attentions, which means fewer messages; a change of resolution.
    SPADE's layers are gathered with the network, since FSDP2 does not see into the function that Spade returns."""
    for block in network.modules():
        if isinstance(block, Block):
            for layers in zip_longest(block.resnets, block.attentions, block.temporal_attentions):
                yield [layer for layer in layers if layer is not None]
            yield from (*block.downsamplers, *block.upsamplers)
