"""Cached latents: each clip goes through the autoencoder once, before training (Sec. 3.3, z_0).

in       a dataset of clips (ToySet, FolderSet)
out      Latents: z_0 and captions, in memory, or in a folder as latents.json and safetensors shards, float16
our reading  z_0 is the mean of the posterior times the scale. A shard is mapped into memory, not read: a million clips
             of the paper's size take 115 GB, of which a batch needs one or two megabytes.
"""
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import distributed
from tqdm import tqdm

from data.media import from_pixels
from sd21.files import read_json, write_json, write_tensors

SETS = ("train", "kept-out")                    # as they are named in files; "kept-out" is the held-out set


class Latents:
    """z_0 [4, n, h, w], caption and name of each clip. `z` is a list of shards [k, 4, n, h, w]; in memory, just one."""
    def __init__(self, z, captions, names):
        self.z, self.captions, self.names = z, captions, names

    def __len__(self):
        return len(self.names)

    def rows(self, indices, device):
        """z_0 of the clips with these indices, a tensor [b]: [b, 4, n, h, w], float32, on the device."""
        if len(self.z) == 1 and self.z[0].device.type == torch.device(device).type:
            return self.z[0][indices].float()
        places = [divmod(i, len(self.z[0])) for i in indices.tolist()]       # all shards but the last are equally long
        return torch.stack([self.z[shard][row] for shard, row in places]).to(device).float()


def loader(clips, indices, batch):
    """Batches of the clips with these indices, made by worker processes: {"frames": uint8 [b, 3, n, H, W], ...}."""
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))      # torchrun's processes share a host
    workers = max(0, min(cores - 1, len(indices) // batch // 16))            # fewer batches are not worth a process
    return torch.utils.data.DataLoader(clips, batch, sampler=indices, num_workers=workers,
                                       prefetch_factor=4 if workers else None)       # some clips take longer


@torch.no_grad()
def _encode(encode_video, clips, indices, batch, device, quiet=False):
    """(z_0 float16 [k, 4, n, h, w] on the device, captions, names) of the clips with these indices."""
    z, captions, names = [], [], []
    if device == "cpu":
        batch = max(1, 9 // clips.frames)                                    # 9 frames fit into the cache, 36 do not
    for items in tqdm(loader(clips, indices, batch), desc="encoding the clips", mininterval=2, disable=quiet):
        z.append(encode_video(from_pixels(items["frames"].to(device))).half())
        captions += items["caption"]
        names += items["name"]
    return torch.cat(z).contiguous(), captions, names


def encode(encode_video, clips, batch, device, rank=0, world=1):
    """All clips as Latents in memory on the device. Under torchrun each process encodes its share and gets the others'.
    encode_video: frames [b, 3, n, H, W], float32 in [-1, 1] -> z_0 [b, 4, n, h, w]."""
    indices = [(start + rank) % len(clips) for start in range(0, len(clips), world)]    # wraps: all ranks get as many
    z, captions, names = _encode(encode_video, clips, indices, batch, device, quiet=rank > 0)
    if world == 1:
        return Latents([z], captions, names)
    shares = [None] * world
    distributed.all_gather_object(shares, (z.cpu(), captions, names))
    z, captions, names = ([shares[k % world][part][k // world] for k in range(len(clips))] for part in range(3))
    return Latents([torch.stack(z).to(device)], captions, names)


def write(encode_video, sets, out, batch, device, cache_key, shard=1000):
    """Encodes [training, held-out] clips into the folder `out`, `shard` clips a file. A second call continues after the
    last complete file. cache_key: a dict, the settings that must match. ValueError if the folder holds other files."""
    out.mkdir(parents=True, exist_ok=True)
    content = cache_key | {"clips": {name: len(clips) for name, clips in zip(SETS, sets, strict=True)}, "shard": shard}
    index = out / "latents.json"
    files = [path for path in out.iterdir() if not path.name.startswith(".")]       # a killed run leaves hidden files
    if files and not (index in files and read_json(index) == content):
        raise ValueError(f"{out}: is not empty, and its files are not from this command; name a new folder")
    write_json(content, index)
    for name, clips in zip(SETS, sets):
        for number, first in enumerate(range(0, len(clips), shard)):
            file = out / f"{name}-{number:05}.safetensors"
            if not file.exists():
                z, captions, names = _encode(encode_video, clips, range(len(clips))[first:first + shard], batch, device)
                write_tensors({"z_0": z.cpu()}, file, {"captions": json.dumps(captions), "names": json.dumps(names)})


def read(folder, cache_key):
    """[training, held-out]: the Latents in a folder that `write` made. ValueError unless they match cache_key."""
    folder, sets = Path(folder), []
    content = read_json(folder / "latents.json")
    for key, value in cache_key.items():
        if content.get(key) != value:
            raise ValueError(f"{folder}: {key} is {content.get(key)}, want {value}; make new latents for this stage")
    counts = content["clips"] if isinstance(content.get("clips"), dict) else {}
    for name in SETS:
        z, captions, names = [], [], []
        for file in sorted(folder.glob(f"{name}-*.safetensors")):
            try:
                with safe_open(file, framework="pt") as shard:
                    rows = shard.get_tensor("z_0")                  # mapped: the disk is read when a row is used
                    texts, ids = (json.loads(shard.metadata()[key]) for key in ("captions", "names"))
                lists = all(isinstance(x, list) and all(isinstance(y, str) for y in x) for x in (texts, ids))
                if not (lists and len(texts) == len(ids) == len(rows) and rows.is_floating_point() and rows.dim() == 5
                        and rows.shape[1] == 4 and rows.shape[2] == content.get("frames", rows.shape[2])):
                    raise ValueError("its tensor, captions and names do not fit together")
            except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
                raise ValueError(f"{file}: not a shard of latents ({error})") from None
            z.append(rows)
            captions += texts
            names += ids
        if len(names) != counts.get(name):
            raise ValueError(f"{folder}: has {len(names)} of {counts.get(name)} clips for {name}; a shard is missing")
        sets.append(Latents(z, captions, names))
    return sets
