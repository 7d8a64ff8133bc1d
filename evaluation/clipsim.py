"""CLIPSIM (Wu et al. 2021): Sec. 4 "Evaluation metrics", Table 1: the mean cosine of every frame with its caption.

    python -m evaluation.clipsim generated/                                             toy CLIPSIM: toy/judge
    python -m evaluation.clipsim generated/ --network clip.pt --merges FILE --size 224  OpenAI's CLIP as TorchScript

A cosine has no unit: it can be compared only between sets of captions and clips that one network has judged.
"""
import sys
from pathlib import Path

import torch

from data.filter import DEVIATION, MEAN, ClipScore
from evaluation.windows import Protocol, Windows
from sd21.command import ArgumentParser, add_options, from_args, run


@torch.inference_mode()
def cosines(score, frames, captions):
    """The cosine of every frame with its clip's caption: [b, n]. frames: uint8 [b, n, H, W, 3]. score: has a network
    with CLIP's encode_image and encode_text, a tokenizer and a device, as data.filter.ClipScore and judge.ToyScore."""
    x = frames.to(score.device).flatten(0, 1) / 255                 # [(b n), H, W, 3]
    x = (x - torch.tensor(MEAN, device=x.device)) / torch.tensor(DEVIATION, device=x.device)
    image = score.network.encode_image(x.permute(0, 3, 1, 2)).float().unflatten(0, frames.shape[:2])     # [b, n, d]
    text = score.network.encode_text(score.tokenizer(captions).to(score.device)).float()
    return torch.cosine_similarity(image, text[:, None], dim=-1).cpu()


def load_score(network, merges, device):
    """CLIP from a file, or the pair of the toy judge for None."""
    if network is None:
        from evaluation.judge import ToyScore                       # that module trains
        return ToyScore(device)
    return ClipScore(network, merges, device)


def score_folder(args):
    """The command: prints CLIPSIM and the protocol."""
    if bool(args.network) != bool(args.merges):
        raise ValueError("CLIP takes both --network FILE and --merges FILE; the toy judge takes neither")
    if args.network and args.size != 224:
        raise ValueError(f"--size {args.size}: CLIP sees pictures of 224 pixels; add --size 224")
    protocol = from_args(Protocol, args)
    score = load_score(args.network, args.merges, protocol.device)
    windows = Windows(args.folder, protocol, with_captions=True)
    captions, means = iter(windows.captions), []
    for frames in windows.batches():
        means.append(cosines(score, frames, [next(captions) for _ in frames]).mean(1))
    means, name = torch.cat(means), args.network.name if args.network else "toy judge"          # means: one a clip
    print(f"CLIPSIM {means.mean():.4f}, standard error {means.std() / len(means) ** 0.5:.4f} ({len(means)} clips; "
          f"network {name}, frames {protocol.frames}, fps {protocol.fps:g}, size {protocol.size})")


def main(argv=None):
    """The command line; see the top of the file. Returns the exit code."""
    parser = ArgumentParser("python -m evaluation.clipsim", description="Mean cosine of frames with their caption.")
    parser.add_argument("folder", type=Path, help="folder of clips with captions (data/folder.py)")
    parser.add_argument("--merges", type=Path, help="CLIP's merges.txt; needs --network")
    add_options(parser, Protocol)
    return run(parser.prog, score_folder, parser.parse_args(argv), out_of_memory="a smaller --batch takes less")


if __name__ == "__main__":
    sys.exit(main())
