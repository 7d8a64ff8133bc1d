"""The toy judge: two small networks of our own, which stand in for I3D and CLIP in the toy world (Sec. 4, metrics).

    python -m evaluation.judge --out mine      trains both; toy/judge was made like this. evaluation/trust.py tests them

defines  VideoClassifier (shape, colour, motion of a clip), ImageTextPair (CLIP in small), load_judge, ToyScore, measure
our reading  Both see only triples (shape, colour, motion) that data/toyset.py does not hold out. They see clips at
             64 x 64 pixels, 17 frames at 4 fps or 9 at 2 fps by chance, so that they judge both rates.
"""
import itertools
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

from data.filter import DEVIATION, MEAN
from data.toyset import COLOURS, MOTIONS, SHAPES, STILL, WORDINGS, frame_times, render, sample_scene
from evaluation.clipsim import cosines
from evaluation.fvd import Statistics
from evaluation.windows import JUDGE, run_network
from sd21 import weights
from sd21.command import ArgumentParser, add_options, from_args, one_line, positive_int, run
from sd21.text import TextEncoder, Tokenizer, save_merges
from training.loop import Run, Stage, fit
from unet3d import fold, unfold

TOY, SIZE, FRAMES, FPS = Path(__file__).parents[1] / "toy", 64, 17, 4.0
CLASSES = tuple(SHAPES), tuple(COLOURS), (STILL, *MOTIONS)          # the three answers of the classifier


def block(convolution):
    """Convolution, group norm, SiLU."""
    return nn.Sequential(convolution, nn.GroupNorm(8, convolution.out_channels), nn.SiLU())


def picture_blocks(*channels):
    """Blocks that halve height and width. The caller takes each channel's largest value: a mean would dilute a thing,
    which is small."""
    return nn.Sequential(*[block(nn.Conv2d(c_in, c_out, kernel, stride=2, padding=kernel // 2))
                           for c_in, c_out, kernel in zip(channels, channels[1:], (5, 3, 3, 3))])


class VideoClassifier(nn.Module):
    """Shape, colour and motion of a clip, with the call of an I3D file. Features [b, 128], classes [b, 704]."""
    def __init__(self):
        super().__init__()
        self.look = picture_blocks(3, 24, 48, 96)                                              # [(b n), 96, 8, 8]
        self.follow = nn.Sequential(block(nn.Conv3d(96, 128, 3, stride=2, padding=1)),         # [b, 128, n / 2, 4, 4]
                                    block(nn.Conv3d(128, 128, 3, stride=(1, 2, 2), padding=1)))
        self.heads = nn.ModuleList([nn.Linear(128, len(names)) for names in CLASSES])

    def forward(self, x, rescale=True, resize=True, return_features=False):
        """x [b, 3, n, H, W], pixels 0-255 (rescale=False: in [-1, 1]), of any size (resize=False: of 64 x 64)."""
        x, n = x / 127.5 - 1 if rescale else x, x.shape[2]
        frames = fold(x)                                                                       # [(b n), 3, H, W]
        frames = F.interpolate(frames, (SIZE, SIZE), mode="area") if resize else frames
        features = self.follow(unfold(self.look(frames), n)).amax((3, 4)).mean(2)
        if return_features:
            return features
        shape, colour, motion = (logits.softmax(-1) for logits in self.answers(features))
        return torch.einsum("bi,bj,bk->bijk", shape, colour, motion).flatten(1)                # independent answers

    def answers(self, features):
        """The logits [b, 8], [b, 8], [b, 11] of shape, colour, motion."""
        return [head(features) for head in self.heads]


class ImageTextPair(nn.Module):
    """CLIP in small (Radford et al. 2021), with CLIP's call: embeddings [b, 64] of pictures and of token ids."""
    def __init__(self, vocab_size):
        super().__init__()
        self.image = picture_blocks(3, 24, 48, 96, 128)
        self.image_projection = nn.Linear(128, 64)
        self.text = TextEncoder(vocab_size, hidden_size=64, intermediate_size=256, num_hidden_layers=2,
                                num_attention_heads=4)
        self.text_projection = nn.Linear(64, 64)
        self.log_scale = nn.Parameter(torch.tensor(2.66))           # of the cosines in `contrast`; as CLIP, 1 / 0.07

    def encode_image(self, x):
        """x [b, 3, H, W], normalised with CLIP's mean and deviation."""
        return self.image_projection(self.image(F.interpolate(x, (SIZE, SIZE), mode="area")).amax((2, 3)))

    def encode_text(self, ids):
        """ids [b, 77]. Like CLIP it reads the end token, which has the highest id, and sees all tokens before it."""
        return self.text_projection(self.text(ids)[torch.arange(len(ids)), ids.argmax(1)])

    def contrast(self, x, ids):
        """CLIP's loss: which of the b captions belongs to a picture, and which picture to a caption?"""
        image, text = F.normalize(self.encode_image(x), dim=-1), F.normalize(self.encode_text(ids), dim=-1)
        logits, right = self.log_scale.exp().clamp(max=100) * image @ text.T, torch.arange(len(x), device=x.device)
        return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


def new_judge(vocab_size):
    """Both networks, untrained."""
    return nn.ModuleDict({"classifier": VideoClassifier(), "pair": ImageTextPair(vocab_size)})


def load_judge(device="cpu", folder=JUDGE.parent):
    """Both networks from a folder that `python -m evaluation.judge` wrote, in eval mode. ValueError, in one line."""
    path = Path(folder, JUDGE.name)
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
        networks = new_judge(Tokenizer.load(folder).vocab_size)
        networks.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path}: no judge ({one_line(error)[:200]}); python -m evaluation.judge makes one") from None
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise ValueError(f"{path}: holds numbers that are not finite; python -m evaluation.judge makes a new judge")
    return networks.to(device).eval()


class ToyScore:
    """The pair and its tokenizer, for evaluation.clipsim.cosines. The call is that of data.filter.ClipScore."""
    def __init__(self, device="cpu", folder=JUDGE.parent):
        self.network, self.tokenizer, self.device = load_judge(device, folder)["pair"], Tokenizer.load(folder), device

    def __call__(self, frame, caption):
        return cosines(self, torch.tensor(frame)[None, None], [caption]).item()


def measure(batches, captions, networks, score, device):
    """({name: Statistics of its features}, probabilities of the toy classes [clips, 704], cosines [clips]) of clips in
    batches uint8 [b, n, H, W, 3]. networks: {name: network}; "toy FVD" is the classifier. score: a ToyScore."""
    features, p, fits, captions = {name: Statistics() for name in networks}, [], [], iter(captions)
    for frames in batches:
        for name, network in networks.items():
            features[name].add(run_network(network, frames, device))
        p.append(run_network(networks["toy FVD"], frames, device, return_features=False))
        fits.append(cosines(score, frames, [next(captions) for _ in frames]).mean(1))
    return features, torch.cat(p), torch.cat(fits)


# ------------------------------------------------------------------------------------------------------------- training

class LabelledClips(torch.utils.data.Dataset):
    """Toy clips with labels: (uint8 [3, 17, 64, 64], caption, labels [3]). One in ten stands still. If there are two
    things, the labels are -100, which cross entropy ignores."""
    def __init__(self, count, seed):
        self.count, self.seed = count, seed

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        random, scene = np.random.default_rng([self.seed, i, 3]), sample_scene([self.seed, i])
        frames, thing = torch.from_numpy(render(scene, frame_times(FRAMES, FPS))), scene.things[0]
        motion = thing.motion
        if random.random() < 0.1:
            frames, motion = frames[random.integers(FRAMES)].expand_as(frames), STILL
        labels = [names.index(word) for names, word in zip(CLASSES, (thing.shape, thing.colour, motion))]
        frames = F.interpolate(frames.permute(0, 3, 1, 2).float(), (SIZE, SIZE), mode="area").round().to(torch.uint8)
        return (frames.transpose(0, 1).contiguous(), scene.caption(random.integers(WORDINGS)),
                torch.tensor(labels if len(scene.things) == 1 else [-100] * 3))


def train(args):
    """Trains both networks on the same clips: cross entropy of three answers, and CLIP's loss on one frame of each."""
    clips, settings, tokenizer = LabelledClips(args.clips, args.seed), from_args(Run, args), Tokenizer.load(TOY)
    batches = torch.utils.data.DataLoader(clips, 64, num_workers=(os.cpu_count() or 1) - 1)
    frames, captions, labels = zip(*tqdm(batches, desc="drawing the clips", mininterval=2))
    frames, labels = torch.cat(frames).to(args.device), torch.cat(labels).to(args.device)
    ids = tokenizer(itertools.chain(*captions)).to(args.device)
    torch.manual_seed(args.seed)
    networks = new_judge(tokenizer.vocab_size).to(args.device)
    classifier, pair = networks["classifier"], networks["pair"]
    mean, deviation = (torch.tensor(x, device=args.device)[:, None, None] for x in (MEAN, DEVIATION))

    def load(rows, random):
        pictures = frames[rows, :, torch.randint(FRAMES, (len(rows),), generator=random, device=args.device)]
        stride = torch.randint(1, 3, (), generator=random, device=args.device).item()          # 4 or 2 fps
        return frames[rows, :, ::stride], pictures, ids[rows], labels[rows]

    def loss_of(frames, pictures, ids, labels):
        answers = classifier.answers(classifier(frames.float(), return_features=True))
        wrong = sum(F.cross_entropy(logits, right) for logits, right in zip(answers, labels.T))
        return wrong + pair.contrast((pictures / 255 - mean) / deviation, ids)

    def save(tensors):
        weights.save(tensors, {"frames": FRAMES, "fps": FPS, "size": SIZE}, args.out, "judge")
        save_merges(tokenizer.rank, args.out / "merges.txt")
    print(f"loss of networks that guess: {sum(np.log(len(names)) for names in CLASSES) + np.log(args.batch):.4f}")
    args.out.mkdir(parents=True, exist_ok=True)
    fit(Stage(networks, [{"name": "judge", "params": list(networks.parameters()), "lr": 2e-3}], loss_of=loss_of,
              pick=lambda step, random: torch.randint(len(clips), (args.batch,), generator=random, device=args.device),
              load=load, save=save, names=lambda rows: [f"toy clip {i}" for i in rows.tolist()]), settings)


def main(argv=None):
    """The command line; see the top of the file. Returns the exit code."""
    parser = ArgumentParser("python -m evaluation.judge", description="Train the two networks of the toy judge.")
    add_options(parser, Run, only=("out", "steps", "minutes", "batch", "seed", "device", "ema", "warmup", "cooldown",
                                   "save_every"))
    parser.set_defaults(stage="judge", steps=4000, batch=64, ema=0.995, warmup=50, cooldown=0.5, save_every=1000)
    parser.add_argument("--clips", type=positive_int, default=20_000, help="clips to train on (20,000, 4 GB of memory)")
    return run(parser.prog, train, parser.parse_args(argv), stopped="the same command resumes from the last checkpoint")


if __name__ == "__main__":
    sys.exit(main())
