"""The paper's data filter: Sec. 4 "Datasets" leaves out "a low CLIP score" and "excessively high or low motions".

    python -m data.filter my_clips                                       measure every clip, draw a histogram
    python -m data.filter my_clips --motion 0.001 0.5 --out kept.jsonl   filter; then train.py video --data kept.jsonl
    python -m data.filter my_clips --clip clip.pt --merges merges.txt --score 0.2     filter by text-image score, too

in       a folder of clips (data/folder.py)
out      a metadata file of the clips that pass, and a .png beside it, from which to choose the thresholds
defines  change, motion, ClipScore, draw_histogram, filter_clips
our reading  The paper gives neither measures nor thresholds. Motion is the mean absolute difference between adjacent
             frames at the rate of training, from 0 to 1; that separates stills and hard cuts from motion, without
             optical flow. The score is the cosine between CLIP's embeddings of the caption and of the centre frame.
             A TorchScript file is a program: load only what you trust.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from data.folder import FolderSet, read_clip
from sd21.command import ArgumentParser, fps, run
from sd21.files import atomic_write
from sd21.text import Tokenizer

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)     # CLIP's, for RGB


def change(frames):
    """Mean absolute difference between adjacent frames, uint8 [n, H, W, 3] taken as [0, 1]; 0 for a single frame."""
    return float(np.abs(np.diff(frames.astype(np.float32) / 255, axis=0)).mean()) if len(frames) > 1 else 0.0


def motion(clip, fps, size=64):
    """The `change` of a whole Clip, read at `fps`."""
    times = np.arange(0, clip.seconds - 1e-3, 1 / fps)              # at the very end, no frame is shown any more
    return change(read_clip(clip.path, times, size, clip.fps))


class ClipScore:
    """The text-image score by a CLIP in a TorchScript file with methods encode_image and encode_text, as OpenAI
    publishes it. They take normalised pictures [b, 3, 224, 224] and ids [b, 77]."""

    def __init__(self, file, merges, device="cpu"):
        self.tokenizer, self.device = Tokenizer.load(merges), device
        try:
            self.network = torch.jit.load(str(file), map_location=device).float().eval()
            self.embed(torch.zeros(1, 3, 224, 224), "")             # fail here rather than after the first hour
        except (RuntimeError, ValueError, AttributeError) as error:
            raise ValueError(f"{file}: not a CLIP as TorchScript ({str(error).strip().splitlines()[-1]})") from None

    def embed(self, picture, caption):
        """The embeddings of a normalised picture [1, 3, 224, 224] and of its caption: each [1, d]."""
        text = self.network.encode_text(self.tokenizer([caption]).to(self.device))
        return self.network.encode_image(picture.to(self.device)).float(), text.float()

    @torch.inference_mode()
    def __call__(self, clip):
        frame = read_clip(clip.path, np.array([clip.seconds / 2]), 224, clip.fps)[0]
        frame = torch.tensor(frame).permute(2, 0, 1) / 255
        mean, deviation = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, DEVIATION))
        return torch.cosine_similarity(*self.embed(((frame - mean) / deviation)[None], clip.caption)).item()


def draw_histogram(values, low, high, title, width=640, height=260, bars=40):
    """A picture of how often each value occurs. Bars outside [low, high] are grey."""
    picture, font = Image.new("RGB", (width, height), "white"), ImageFont.load_default(size=14)
    draw = ImageDraw.Draw(picture)
    counts, edges = np.histogram(values, bars)
    left, bottom, step = 40, height - 40, (width - 80) / bars       # a margin of 40 pixels all around
    for k, count in enumerate(counts):
        middle = (edges[k] + edges[k + 1]) / 2
        top = bottom - (bottom - 40) * count / counts.max()
        colour = "#2a6fc0" if low <= middle <= high else "#bbbbbb"
        draw.rectangle([left + k * step, top, left + (k + 1) * step - 2, bottom], colour)
    for place in (0, 0.25, 0.5, 0.75, 1):
        value = edges[0] + place * (edges[-1] - edges[0])
        draw.text((left + place * (width - 80), bottom + 8), f"{value:.3g}", "#606060", font, anchor="ma")
    passed = sum(low <= value <= high for value in values)
    draw.text((left, 10), f"{title}: {passed} of {len(values)} clips kept", "#202020", font)
    return picture


def filter_clips(args):
    """Measures all clips, then writes the metadata of those that pass, and histograms. `args` is the command line."""
    if not (args.motion[0] <= args.motion[1] and -1 <= args.score <= 1):
        raise ValueError("want --motion LOW HIGH in this order, and --score from -1 to 1")
    if bool(args.clip) != bool(args.merges) or args.score > -1 and not args.clip:
        raise ValueError("the text-image score takes both --clip FILE and --merges FILE")
    out = args.out or args.folder / "metadata.filtered.jsonl"
    if out.suffix != ".jsonl" or out.name == "metadata.jsonl" or not out.parent.is_dir():
        raise ValueError(f"{out}: want a new .jsonl file, not called metadata.jsonl, in a folder that exists")
    score = ClipScore(args.clip, args.merges) if args.clip else None
    dataset = FolderSet(args.folder, 1, frames=2, fps=args.fps)
    print(dataset.summary())
    if not score:
        print("no --clip: only motion is measured and filtered, not whether captions fit")
    clips, rows, motions, scores = dataset.clips + dataset.spared, [], [], []
    for clip in tqdm(clips, desc="measuring", mininterval=2):
        try:
            moved, fits = motion(clip, args.fps), score(clip) if score else 1.0
        except (ValueError, OSError) as error:
            tqdm.write(f"left out {clip.path.name}: {error}")
            continue
        motions.append(moved)
        scores.append(fits)
        if args.motion[0] <= moved <= args.motion[1] and fits >= args.score:
            row = {"file_name": os.path.relpath(clip.path, out.parent), "text": clip.caption, "motion": round(moved, 5)}
            if clip.path.is_dir():
                row["fps"] = clip.fps
            if score:
                row["score"] = round(fits, 4)
            rows.append(row)
    if not motions:
        raise ValueError(f"{args.folder}: none of its clips can be measured")
    pictures = [draw_histogram(motions, *args.motion, "motion")]
    if score:
        pictures.append(draw_histogram(scores, args.score, 1.0, "text-image score"))
    with atomic_write(out.with_suffix(".png")) as part:
        Image.fromarray(np.concatenate(pictures)).save(part)        # one below the other
    with atomic_write(out) as part:
        part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{out}: {len(rows)} of {len(clips)} clips; {out.with_suffix('.png')}")


def main(argv=None):
    """The command line; see the top of the file. Returns the exit code."""
    parser = ArgumentParser("python -m data.filter", description="Leave out clips that move too much or too little, "
                            "or whose caption does not fit.")
    add = parser.add_argument
    add("folder", type=Path, help="folder of clips with captions (data/folder.py)")
    add("--motion", type=float, nargs=2, default=(0.0, 1.0), metavar=("LOW", "HIGH"),
        help="the motion of clips to keep: mean absolute difference between adjacent frames, 0 to 1")
    add("--score", type=float, default=-1.0, metavar="LOW", help="lowest text-image score to keep; needs --clip")
    add("--clip", type=Path, help="a CLIP as TorchScript, for the text-image score; without it only motion is filtered")
    add("--merges", type=Path, help="CLIP's merges.txt; needs --clip")
    add("--fps", type=fps, default=2.0, help="frames a second at which motion is measured (default 2)")
    add("--out", type=Path, help="the metadata file to write (default: metadata.filtered.jsonl in the folder)")
    return run(parser.prog, filter_clips, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
