"""What every stage needs before its first step: the parts it reads, its clips as latents, and a held-out loss. A stage
reads the parts it does not train from --out if an earlier stage wrote them there, otherwise from --model, and prints
which. Model sizes come from the config files in --model."""

import re
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path

import torch

from appearnet import Spade
from data import augment, latents
from data.filter import change
from data.folder import FolderSet
from data.media import from_pixels
from data.toyset import ToySet
from microcinema import COMPONENT_CLASSES, encode_video
from sampler import NoiseSchedule
from sd21 import weights
from sd21.command import check_multiple, fps, one_line, option, positive_int, size
from sd21.files import read_json
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


def frozen_parts(run, model, network, merges=None):
    """(vae, text encoder, tokenizer): the parts that stages video and tsr do not train. ValueError unless their sizes
    fit `network`, the video model to train."""
    vae, text_encoder = (load(open_component(name, run, model), run) for name in ("vae", "text_encoder"))
    components = weights.resolve_components(model, run.out, merges) | {run.stage: weights.component(run.stage, run.out)}
    tokenizer = Tokenizer.load(components["tokenizer"].place)
    weights.check_sizes_match({"tokenizer": tokenizer, "text_encoder": text_encoder, run.stage: network}, components)
    return vae, text_encoder, tokenizer


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
    size: int | str = option(320, "pixels: 320 (Sec. 3.1) is square, 320x192 is width x height", size)
    augment: tuple | None = option(None, "changes of each window to train on: none, or some of shift,zoom,colour,rate, "
                                   "see data/augment.py (default: shift,colour for fewer than 1,000 clips of --data)",
                                   augment.names)
    seed: int = 0
    windows: tuple = ()             # frame rates of the windows, where they are not all at `fps`

    def of_stage(self, stage):
        """The clips of a stage: stills for the image model; five frames at both of its rates for TSR (Sec. 3.1)."""
        if stage == "tsr":                                                   # used from 2 to 8 fps, and from 8 to 32
            return replace(self, frames=5, windows=(4 * self.fps, 16 * self.fps))
        return replace(self, frames=1) if stage == "image" else self

    def of_ones_own(self):
        """Whether these are a person's clips, given as files or as latents. Otherwise they are the toy set."""
        source = read_json(self.latents / "latents.json").get("data") if self.latents else self.data
        return source not in (None, "toy set")

    def dataset(self, count, held_out=False):
        """`count` of them as a dataset: of the held-out tenth, or of the rest."""
        options = (count, self.frames, self.fps, self.size, self.seed, held_out, self.windows)
        if not self.data:
            return ToySet(*options)
        dataset = FolderSet(self.data, *options, () if held_out else self.augment or ())
        if not held_out:
            if self.augment is None and len(dataset.clips) < augment.FEW:
                dataset.augment = augment.DEFAULT
            print(f"{self.data}: {dataset.summary()}; augmented by: {', '.join(dataset.augment) or 'nothing'}")
        return dataset

    def two_sets(self):
        """[the clips to train on, 32 held-out clips: a loss of them is stable to 1 %]."""
        sets = [self.dataset(self.clips), self.dataset(min(32, self.clips), held_out=True)]
        if self.data:
            print(describe_set(*sets))
        return sets

    def cache_key(self, vae):
        """The settings that cached latents must match."""
        return {"frames": self.frames, "fps": list(self.windows) or [self.fps], "size": self.size, "scale": vae.scale}

    def encoded(self, vae, run):
        """The two sets as Latents."""
        if self.latents:
            return latents.read(self.latents, self.cache_key(vae))
        return [latents.encode(partial(encode_video, vae), dataset, run.batch, run.device, rank(), world_size())
                for dataset in self.two_sets()]


def describe_set(train_set, held_out):
    """Two lines on a FolderSet: what there is to learn, and the options that fit. Motion is the `change` of up to 50
    windows; a still has less than 0.001, a quarter of a grey level a frame. Our reading of three sets: models learn
    emoji (525 clips, a caption each) by heart and do better with guidance 1, BabyAI (1,800 clips, 233 captions) with 3.
    """
    clips, captions = len(train_set.clips), train_set.captions()
    words_of = lambda texts: set(re.findall(r"\w+", " ".join(texts).lower()))
    words, distinct = words_of(captions), len(set(captions))
    known = sum(words_of(clip.captions) <= words for clip in held_out.clips)
    changes = torch.tensor([change(train_set[i]["frames"].permute(1, 2, 3, 0).numpy())
                            for i in range(0, len(train_set), len(train_set) // 50 + 1)])
    stills = (changes < 0.001).float().mean().item()
    motion = f"; motion {changes.median():.4f} (median), {stills:.0%} stills" if train_set.frames > 1 else ""
    advice = {f"--clips {20 * clips}, for 20 windows of a clip": clips < augment.FEW and len(train_set) < 20 * clips,
              "--patience 10, since so few clips are soon learnt by heart": clips < augment.FEW,
              "--start toy, for models of its sizes": train_set.frames > 1,
              "sampling with --guidance 1, since most captions name a single clip": 2 * distinct > clips,
              "data.filter, which leaves out stills": stills > 0.25 and train_set.frames > 1 and not train_set.windows}
    return (f"{clips} clips, {distinct} distinct captions; of {len(held_out.clips)} held-out clips, {known} have only "
            f"words that training sees{motion}\n"
            f"what fits: {'; '.join(text for text, fits in advice.items() if fits) or 'the defaults'}")


def through_the_autoencoder(cinema, clips):
    """A line on the PSNR of windows of a FolderSet that went through the autoencoder, all pixels as one."""
    x = from_pixels(torch.stack([item["frames"] for item in clips]))
    error = (cinema.decode(cinema.encode_frames(x)).cpu() - x).square().mean().clamp(min=1e-10)
    decibels = -10 * torch.log10(error / 4).item()                           # 4: the square of the range from -1 to 1
    advice = ("; below 30 dB, so train one for these clips, or longer: python -m training.pretrain vae --start toy "
              "--data ... --out ...")
    return f"held-out clips through the autoencoder: {decibels:.1f} dB{advice if decibels < 30 else ''}"


def write_latents(run, clips, recipe):
    """Encodes clips once, into shards that --latents reads."""
    if world_size() > 1:
        raise ValueError("latents: takes one process, not torchrun")
    vae = load(weights.component("vae", recipe.model), run)
    check_multiple(clips.size, vae.factor)
    key = {"data": str(clips.data or "toy set"), "model": str(recipe.model), "seed": run.seed, "bf16": run.bf16}
    sets = clips.two_sets()
    key |= clips.cache_key(vae) | ({"augment": list(sets[0].augment)} if clips.data and sets[0].augment else {})
    latents.write(partial(encode_video, vae), sets, run.out, run.batch, run.device, key)
    print(f"{run.out}: {clips.clips} clips of {clips.frames} frames")


def train_on_latents(run, clips, cinema, model, groups, loss_of, make_batch, drop_text, save, sample):
    """Trains on latents: makes the Stage of image, video and tsr, prints what to expect, and fits it. cinema: has the
    parts. loss_of(z_0, ids, t, eps_n, f_theta=the model's) -> loss. sample(held_out), of Latents, -> a picture."""
    train_set, held_out = clips.encoded(cinema.vae, run)
    if clips.data:
        print(through_the_autoencoder(cinema, clips.dataset(min(8, clips.clips), held_out=True)))
    if cut := [caption for caption in set(train_set.captions) if cinema.tokenizer.cut(caption)]:
        print(one_line(f"{len(cut)} captions are longer than the text encoder reads; cut off, as {cut[0]!r:.60}"))
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
