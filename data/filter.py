"""The paper's data filter: Sec. 4 "Datasets" leaves out "a low CLIP score" and "excessively high or low motions".

    python -m data.filter my_clips                                       measure every clip, print a histogram
    python -m data.filter my_clips --motion 0.001 0.5 --out kept.jsonl   filter; then --data kept.jsonl in training

our reading  The paper gives neither measures nor thresholds. Motion is the mean absolute difference between adjacent
             frames at the rate of training, from 0 to 1. It tells stills and hard cuts from motion.
"""
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.folder import FolderSet, read_clip
from data.media import MARK, check_output
from sd21.command import ArgumentParser, fps, one_line, run
from sd21.files import atomic_write
from sd21.text import Tokenizer

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)     # CLIP's, for RGB


def change(frames):
    """Mean absolute difference between adjacent frames, uint8 [n, H, W, 3] taken as [0, 1]; 0 for a single frame."""
    return float(np.abs(np.diff(frames.astype(np.float32) / 255, axis=0)).mean()) if len(frames) > 1 else 0.0


def motion(clip, fps, size=64):
    """The `change` of a whole Clip, read at `fps`; of its first ten minutes, if it is longer."""
    times = np.arange(0, min(clip.seconds - 1e-3, 600), 1 / fps)    # at the very end, no frame is shown any more
    return change(read_clip(clip.path, times, size, clip.fps))


class ClipScore:
    """The cosine between CLIP's embeddings of a frame, uint8 [224, 224, 3], and of its caption. CLIP is a TorchScript
    file as OpenAI publishes it: encode_image takes normalised pictures [b, 3, 224, 224], encode_text takes ids [b, 77].
    Such a file is a program: load only what you trust."""
    def __init__(self, file, merges, device="cpu"):
        self.tokenizer, self.device = Tokenizer.load(merges), device
        try:
            self.network = torch.jit.load(str(file), map_location=device).float().eval()
            self(np.zeros((224, 224, 3), np.uint8), "")             # fail here rather than after the first hour
        except (RuntimeError, AttributeError) as error:
            raise ValueError(f"{file}: not a CLIP as TorchScript ({str(error).strip().splitlines()[-1]})") from None

    @torch.inference_mode()
    def __call__(self, frame, caption):
        picture = (torch.tensor(frame) / 255 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
        text = self.network.encode_text(self.tokenizer([caption]).to(self.device)).float()
        image = self.network.encode_image(picture.permute(2, 0, 1)[None].to(self.device)).float()
        return torch.cosine_similarity(image, text).item()


def toy_score():
    """toy/judge in place of CLIP: nothing to download, but it knows only the toy world."""
    from evaluation.judge import ToyScore                           # late, since it imports this module
    return ToyScore()


def print_histogram(values, low, high, title, bars=20):
    """Prints how often each value occurs, a bar a line. Bars outside [low, high] are dotted."""
    counts, edges = np.histogram(values, bars)
    print(f"{title} of {len(values)} clips, # where it lies between {low:g} and {high:g}")
    for count, left, right in zip(counts, edges, edges[1:]):
        sign = "#" if low <= (left + right) / 2 <= high else "."
        print(f"{left:8.4f} to {right:8.4f} | {count:5} {sign * math.ceil(60 * count / max(1, *counts))}")


def filter_clips(args):
    """Measures all clips, prints histograms, writes the metadata of those that pass. `args` is the command line."""
    if not (args.motion[0] <= args.motion[1] and -1 <= args.score <= 1):
        raise ValueError("want --motion LOW HIGH in this order, and --score from -1 to 1")
    toy = args.clip == "toy"
    if (args.clip is None or toy) != (args.merges is None) or (args.score > -1 and not args.clip):
        raise ValueError("the text-image score takes --clip toy, or both --clip FILE and --merges FILE")
    folder = args.folder.parent if args.folder.is_file() else args.folder
    out = args.out or folder / "metadata.filtered.jsonl"
    network = None if toy or not args.clip else Path(args.clip)
    check_output(out, [".jsonl"], [args.folder, network, args.merges, folder / "metadata.jsonl"])
    if out.resolve().parent not in (folder.resolve(), *folder.resolve().parents):    # it names only files below it
        raise ValueError(f"{out}: want a file in the clips' folder or in one around it")
    score = toy_score() if toy else ClipScore(network, args.merges) if network else None
    dataset = FolderSet(args.folder, 1, frames=2, fps=args.fps)
    print(dataset.summary())
    if not score:
        print("no --clip: only motion is measured and filtered, not whether captions fit")
    rows = []
    for clip in tqdm(dataset.clips + dataset.spared, desc="measuring", mininterval=2):
        try:
            text = clip.captions if len(clip.captions) > 1 else clip.caption
            row = {"file_name": os.path.relpath(clip.path, out.parent), "text": text, "note": MARK}
            row |= {"fps": clip.fps} if clip.path.is_dir() else {}
            row["motion"] = round(motion(clip, args.fps), 6)
            if score:
                middle = read_clip(clip.path, np.array([clip.seconds / 2]), 224, clip.fps)[0]
                row["score"] = round(score(middle, clip.caption), 4)
            rows.append(row)
        except (ValueError, OSError) as error:
            tqdm.write(one_line(f"left out {clip.path.name}: {error}"))
    print_histogram([row["motion"] for row in rows], *args.motion, "motion")
    kept = [row for row in rows if args.motion[0] <= row["motion"] <= args.motion[1]]
    if score:
        print_histogram([row["score"] for row in rows], args.score, 1.0, "text-image score")
        kept = [row for row in kept if row["score"] >= args.score]
    if not kept:
        raise ValueError(f"{args.folder}: none of {len(rows)} measured clips passes; nothing was written")
    with atomic_write(out) as part:
        part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
    print(f"{out}: {len(kept)} of {len(rows)} clips")


def main(argv=None):
    """The command line; see the top of the file. Returns the exit code."""
    parser = ArgumentParser("python -m data.filter", description="Leave out clips by their motion and captions.")
    add = parser.add_argument
    add("folder", type=Path, help="folder of clips with captions (data/folder.py)")
    add("--motion", type=float, nargs=2, default=(0.0, 1.0), metavar=("LOW", "HIGH"), help="motion to keep, 0 to 1")
    add("--score", type=float, default=-1.0, metavar="LOW", help="lowest text-image score to keep; needs --clip")
    add("--clip", help="for the text-image score: a CLIP as TorchScript, or toy, for toy/judge")
    add("--merges", type=Path, help="CLIP's merges.txt; needs --clip")
    add("--fps", type=fps, default=2.0, help="frames a second at which motion is measured (default 2)")
    add("--out", type=Path, help="the metadata file to write (default: metadata.filtered.jsonl in the folder)")
    return run(parser.prog, filter_clips, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
