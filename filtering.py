"""The paper's data filter: Sec. 4 "Datasets" leaves out "a low CLIP score" and "excessively high or low motions".

    python data.py filter my_clips/                                       measures every clip, and draws a histogram
    python data.py filter my_clips/ --motion 0.005 0.2 --out kept.jsonl   what is left; then train.py --data kept.jsonl
    python data.py filter my_clips/ --clip clip.pt --merges merges.txt --score 0.2        the text-image score as well

in    a folder of clips (clips.py)
out   a metadata file of those that are left, and a .png beside it, by which to choose the thresholds
here  change, motion, ClipScore, histogram, and the command
ours  The paper gives neither its measures nor its thresholds. Motion is the mean change of a pixel from frame to frame,
      from 0 to 1, at the rate of training: no optical flow is needed to tell a still from a cut. The score is the
      cosine between CLIP's vectors of the caption and of the centre frame. A TorchScript file is a program: load only
      what you trust.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from clip import Tokenizer
from clips import ClipSet, read_clip
from files import ArgumentParser, beside

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)     # CLIP's, of RGB


def change(frames):
    """The mean change of a pixel, of 1, between neighbours of uint8 frames [n, H, W, 3]; 0 if there is but one."""
    return float(np.abs(np.diff(frames.astype(np.float32) / 255, axis=0)).mean()) if len(frames) > 1 else 0.0


def motion(clip, fps, size=64):
    """The mean change of a pixel, of 1, between frames 1 / fps seconds apart."""
    return change(read_clip(clip.path, np.arange(0, clip.seconds - 1e-3, 1 / fps), size, clip.fps))


class ClipScore:
    """The text-image score by a CLIP in a TorchScript file with the methods encode_image and encode_text, as OpenAI
    publishes it: pictures [b, 3, 224, 224], normalised, and ids [b, 77]."""

    def __init__(self, file, merges, device="cpu"):
        self.tokenizer, self.device = Tokenizer.load(merges), device
        try:
            self.network = torch.jit.load(str(file), map_location=device).float().eval()
            self.vectors(torch.zeros(1, 3, 224, 224), "")                    # what it cannot do it says now
        except (RuntimeError, ValueError, AttributeError) as error:
            raise ValueError(f"{file}: not a CLIP as TorchScript ({str(error).strip().splitlines()[-1]})") from None

    def vectors(self, picture, caption):
        """Those of pictures [b, 3, 224, 224] and of a caption: each [b, d]."""
        text = self.network.encode_text(self.tokenizer([caption]).to(self.device))
        return self.network.encode_image(picture.to(self.device)).float(), text.float()

    @torch.inference_mode()
    def __call__(self, clip):
        frame = read_clip(clip.path, np.array([clip.seconds / 2]), 224, clip.fps)[0]
        frame = torch.tensor(frame).permute(2, 0, 1) / 255
        mean, deviation = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, DEVIATION))
        return torch.cosine_similarity(*self.vectors(((frame - mean) / deviation)[None], clip.caption)).item()


def histogram(values, low, high, title, width=640, height=260, bars=40):
    """A picture of how often each value occurs; bars outside [low, high] are grey."""
    picture, font = Image.new("RGB", (width, height), "white"), ImageFont.load_default(size=14)
    draw = ImageDraw.Draw(picture)
    counts, edges = np.histogram(values, bars)
    left, bottom, step = 40, height - 40, (width - 80) / bars
    for k, count in enumerate(counts):
        middle = (edges[k] + edges[k + 1]) / 2
        top = bottom - (bottom - 40) * count / max(counts.max(), 1)
        colour = "#2a6fc0" if low <= middle <= high else "#bbbbbb"
        draw.rectangle([left + k * step, top, left + (k + 1) * step - 2, bottom], colour)
    for share in (0, 0.25, 0.5, 0.75, 1):
        at = edges[0] + share * (edges[-1] - edges[0])
        draw.text((left + share * (width - 80), bottom + 8), f"{at:.3g}", "#606060", font, anchor="ma")
    kept = sum(low <= value <= high for value in values)
    draw.text((left, 10), f"{title}: {kept} of {len(values)} clips kept", "#202020", font)
    return picture


def main(argv=None):
    """The command line; see the top of the file."""
    parser = ArgumentParser(prog="data.py filter", description="Leave out clips that move too much or too "
                                     "little, or whose caption does not fit.")
    add = parser.add_argument
    add("folder", type=Path, help="folder of clips with captions (clips.py)")
    add("--motion", type=float, nargs=2, default=(0.0, 1.0), metavar=("LOW", "HIGH"),
        help="mean change of a pixel to keep")
    add("--score", type=float, default=-1.0, metavar="LOW", help="least text-image score to keep; takes --clip")
    add("--clip", type=Path, help="a CLIP as TorchScript, for the text-image score; without it only motion is filtered")
    add("--merges", type=Path, help="CLIP's merges.txt; takes --clip")
    add("--fps", type=float, default=2.0, help="frames a second at which motion is measured (default 2)")
    add("--out", type=Path, help="the metadata file to write (default: metadata.filtered.jsonl in the folder)")
    args = parser.parse_args(argv)
    try:
        filter_clips(args)
    except (ValueError, OSError) as error:
        print(f"data.py filter: {error}", file=sys.stderr)
        return 2
    return 0


def filter_clips(args):
    """Measures, then writes the metadata of what is kept, and the histograms."""
    if not (0 < args.fps <= 1000 and args.motion[0] <= args.motion[1] and -1 <= args.score <= 1):
        raise ValueError("want --fps above 0 and at most 1000, --motion LOW HIGH in this order, --score from -1 to 1")
    if bool(args.clip) != bool(args.merges) or args.score > -1 and not args.clip:
        raise ValueError("the text-image score takes both --clip FILE and --merges FILE")
    out = args.out or args.folder / "metadata.filtered.jsonl"
    if out.suffix != ".jsonl" or out.name == "metadata.jsonl" or not out.parent.is_dir():
        raise ValueError(f"{out}: want a new .jsonl file, not called metadata.jsonl, in a folder that exists")
    score = ClipScore(args.clip, args.merges) if args.clip else None
    clips = ClipSet(args.folder, 1, frames=2, fps=args.fps)
    print(clips.summary())
    if not score:
        print("no --clip: only motion is measured and filtered, not whether captions fit")
    everything, rows, moves, scores = [*clips.clips, *clips.spared], [], [], []
    for clip in tqdm(everything, desc="measuring", mininterval=2):
        try:
            moved, fits = motion(clip, args.fps), score(clip) if score else 1.0
        except (ValueError, OSError) as error:
            tqdm.write(f"left out {clip.path.name}: {error}")
            continue
        moves.append(moved)
        scores.append(fits)
        if args.motion[0] <= moved <= args.motion[1] and fits >= args.score:
            name = os.path.relpath(clip.path, out.parent)
            row = {"file_name": name, "text": clip.caption, "motion": round(moved, 5)}
            rows.append(row | ({"fps": clip.fps} if clip.path.is_dir() else {})
                        | ({"score": round(fits, 4)} if score else {}))
    if not moves:
        raise ValueError(f"{args.folder}: none of its clips can be measured")
    pictures = [histogram(moves, *args.motion, "motion")]
    if score:
        pictures.append(histogram(scores, args.score, 1.0, "text-image score"))
    sheet = Image.new("RGB", (pictures[0].width, sum(picture.height for picture in pictures)))
    for k, picture in enumerate(pictures):
        sheet.paste(picture, (0, k * picture.height))
    with beside(out.with_suffix(".png")) as part:
        sheet.save(part)
    with beside(out) as part:
        part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{out}: {len(rows)} of {len(everything)} clips; {out.with_suffix('.png')}")
