"""Clips as the models are trained on them: once through the autoencoder (Sec. 3.3, z_0), then never again.

in    a set of clips (data.ToySet, clips.ClipSet)
out   Latents: z_0 and captions, in memory, or in a folder: latents.json and safetensors shards, float16
here  Latents, encode, write, read

ours  z_0 is the posterior's mean times the scale factor. A shard is mapped, not read: a million clips of the paper's
      size are 115 GB, of which a batch touches a megabyte or two.
"""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import distributed
from tqdm import tqdm

from files import from_pixels
from weights import read_json, write_json, write_tensors

SETS = ("train", "kept-out")


class Latents:
    """z_0 [4, n, h, w], caption and name of each clip; z_0 in one tensor, or in one a shard."""

    def __init__(self, z, captions, names):
        self.z, self.captions, self.names = z, captions, names
        self.where = [(shard, row) for shard, some in enumerate(z) for row in range(len(some))]

    def __len__(self):
        return len(self.where)

    def rows(self, pick, device):
        """z_0 [b, 4, n, h, w], float32, of the clips with these numbers, a tensor [b]."""
        if len(self.z) == 1 and self.z[0].device.type == torch.device(device).type:
            return self.z[0][pick].float()
        where = [self.where[i] for i in pick.tolist()]
        return torch.stack([self.z[shard][row] for shard, row in where]).to(device).float()


def loader(clips, indices, batch):
    """The clips with these numbers, drawn or read by other processes: {"frames": uint8 [b, 3, n, H, W], ...}."""
    spare = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1     # torchrun's, on this host
    workers = max(0, min(spare, len(indices) // batch // 16))                # a few batches are not worth a process
    return torch.utils.data.DataLoader(clips, batch, sampler=indices, num_workers=workers,
                                       prefetch_factor=4 if workers else None)


@torch.no_grad()
def batches(vae, scale, clips, args, indices):
    """Yields (z_0 [b, 4, n, h, w] float16, captions, names) of the clips with these numbers."""
    like = next(vae.parameters())
    progress = {"desc": "encoding the clips", "mininterval": 2, "disable": args.rank > 0}
    for batch in tqdm(loader(clips, indices, args.batch), **progress):
        x = from_pixels(batch["frames"].to(args.device)).to(like)            # [b, 3, n, H, W]
        mean, _ = vae.encode(x.transpose(1, 2).flatten(0, 1))
        z = (mean.float() * scale).unflatten(0, (len(x), -1)).transpose(1, 2)
        yield z.half(), batch["caption"], batch["name"]


def encode(vae, scale, clips, args):
    """All clips, in memory on the device. Under torchrun each process encodes its share and gets the rest."""
    rounds = -(-len(clips) // args.world)
    mine = [i % len(clips) for i in range(args.rank, rounds * args.world, args.world)]
    z, captions, names = zip(*batches(vae, scale, clips, args, mine))
    share = torch.cat(z), [c for some in captions for c in some], [name for some in names for name in some]
    shares = [share]
    if args.world > 1:
        shares = [None] * args.world
        distributed.all_gather_object(shares, (share[0].cpu(), *share[1:]))
    order = [(rank, row) for row in range(rounds) for rank in range(args.world)][:len(clips)]       # clip k: where?
    z = torch.stack([shares[rank][0][row] for rank, row in order]).to(args.device)
    return Latents([z], *([shares[rank][part][row] for rank, row in order] for part in (1, 2)))


def write(vae, scale, sets, args, about, shard=1000):
    """Writes the folder args.out: what the two sets of clips are, then the clips, `shard` of them a file.

    If it was stopped, the same call goes on behind the last whole file. ValueError if the folder holds anything else.
    """
    args.out.mkdir(parents=True, exist_ok=True)
    about = about | {"clips": dict(zip(SETS, map(len, sets), strict=True)), "shard": shard}
    said = args.out / "latents.json"
    found = [path for path in args.out.iterdir() if path.name[0] != "."]     # but for what a killed run leaves
    if found and not (said.is_file() and read_json(said) == about):
        raise ValueError(f"{args.out}: is not empty, and not what this command left there; name a new folder")
    write_json(about, said)
    for name, clips in zip(SETS, sets, strict=True):
        for number, first in enumerate(range(0, len(clips), shard)):
            file = args.out / f"{name}-{number:05}.safetensors"
            if file.exists():
                continue
            z, captions, names = zip(*batches(vae, scale, clips, args, range(first, min(first + shard, len(clips)))))
            words = {"captions": [c for some in captions for c in some], "names": [n for some in names for n in some]}
            words = {key: json.dumps(value) for key, value in words.items()}
            write_tensors({"z_0": torch.cat(z).cpu().contiguous()}, file, words)


def read(folder, about):
    """The two sets of a folder that `write` made. ValueError unless it was made as `about` asks."""
    made = read_json(Path(folder) / "latents.json")
    for key, value in about.items():
        if made.get(key) != value:
            raise ValueError(f"{folder}: {key} is {made.get(key)}, want {value}; make the latents anew for this stage")
    sets = []
    for name in SETS:
        z, captions, names = [], [], []
        for file in sorted(Path(folder).glob(f"{name}-*.safetensors")):
            try:
                with safe_open(file, framework="pt") as shard:
                    z.append(shard.get_tensor("z_0"))                        # mapped: read when it is touched
                    captions += json.loads(shard.metadata()["captions"])
                    names += json.loads(shard.metadata()["names"])
            except (SafetensorError, KeyError, TypeError) as error:
                raise ValueError(f"{file}: not a shard of latents ({error})") from None
        if len(names) != (count := made.get("clips", {}).get(name)):
            raise ValueError(f"{folder}: has {len(names)} of {count} clips for {name}; a shard is missing")
        sets.append(Latents(z, captions, names))
    return sets
