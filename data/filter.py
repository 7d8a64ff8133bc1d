"""The paper's data filter: Sec. 4 "Datasets" leaves out "a low CLIP score" and "excessively high or low motions".

    python -m data.filter my_clips                                       measure every clip, draw a histogram
    python -m data.filter my_clips --motion 0.001 0.5 --out kept.jsonl   filter; then train.py video --data kept.jsonl

our reading  The paper gives neither measures nor thresholds. Motion is the mean absolute difference between adjacent
             frames at the rate of training, from 0 to 1. It tells stills and hard cuts from motion.
"""
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
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
    """The `change` of a whole Clip, read at `fps`."""
    times = np.arange(0, clip.seconds - 1e-3, 1 / fps)              # at the very end, no frame is shown any more
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
        except (RuntimeError, ValueError, AttributeError) as error:
            raise ValueError(f"{file}: not a CLIP as TorchScript ({str(error).strip().splitlines()[-1]})") from None

    @torch.inference_mode()
    def __call__(self, frame, caption):
        picture = (torch.tensor(frame) / 255 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
        text = self.network.encode_text(self.tokenizer([caption]).to(self.device)).float()
        image = self.network.encode_image(picture.permute(2, 0, 1)[None].to(self.device)).float()
        return torch.cosine_similarity(image, text).item()


def draw_histogram(values, low, high, title, width=640, height=260, bars=40):
    """A picture of how often each value occurs. Bars outside [low, high] are grey."""
    picture, (counts, edges) = Image.new("RGB", (width, height), "white"), np.histogram(values, bars)
    draw, bottom, places = ImageDraw.Draw(picture), height - 40, np.linspace(40, width - 40, bars + 1)
    for k, count in enumerate(counts):
        colour = "#2a6fc0" if low <= edges[k:k + 2].mean() <= high else "#bbbbbb"
        draw.rectangle([places[k], bottom - (bottom - 40) * count / counts.max(), places[k + 1] - 2, bottom], colour)
    for k in range(0, bars + 1, bars // 4):
        draw.text((places[k], bottom + 8), f"{edges[k]:.3g}", "#606060", anchor="ma", font_size=14)
    kept = sum(low <= value <= high for value in values)
    draw.text((40, 10), f"{title}: {kept} of {len(values)} clips kept", "#202020", font_size=14)
    return picture


def filter_clips(args):
    """Measures all clips, then writes the metadata of those that pass, and histograms. `args` is the command line."""
    if not (args.motion[0] <= args.motion[1] and -1 <= args.score <= 1):
        raise ValueError("want --motion LOW HIGH in this order, and --score from -1 to 1")
    if bool(args.clip) != bool(args.merges) or args.score > -1 and not args.clip:
        raise ValueError("the text-image score takes both --clip FILE and --merges FILE")
    out = args.out or args.folder / "metadata.filtered.jsonl"
    around = args.folder.resolve(), *args.folder.resolve().parents                  # metadata names only files below it
    if out.suffix != ".jsonl" or out.name == "metadata.jsonl" or out.parent.resolve() not in around:
        raise ValueError(f"{out}: want a .jsonl file, not called metadata.jsonl, in the clips' folder or one around it")
    for path in (out, out.with_suffix(".png")):
        check_output(path, [path.suffix], [args.folder, args.clip, args.merges, out.parent])
    score = ClipScore(args.clip, args.merges) if args.clip else None
    dataset = FolderSet(args.folder, 1, frames=2, fps=args.fps)
    print(dataset.summary())
    if not score:
        print("no --clip: only motion is measured and filtered, not whether captions fit")
    clips, measured, rows = dataset.clips + dataset.spared, [], []
    for clip in tqdm(clips, desc="measuring", mininterval=2):
        try:
            moved, middle = motion(clip, args.fps), np.array([clip.seconds / 2])
            fits = score(read_clip(clip.path, middle, 224, clip.fps)[0], clip.caption) if score else 1.0
            measured.append((moved, fits))
        except (ValueError, OSError) as error:
            tqdm.write(one_line(f"left out {clip.path.name}: {error}"))
            continue
        if args.motion[0] <= moved <= args.motion[1] and fits >= args.score:
            row = {"file_name": os.path.relpath(clip.path, out.parent), "text": clip.caption, "motion": round(moved, 5)}
            row |= {"fps": clip.fps} if clip.path.is_dir() else {}
            row |= {"score": round(fits, 4)} if score else {}
            rows.append(row)
    if not measured:
        raise ValueError(f"{args.folder}: none of its clips can be measured")
    motions, scores = zip(*measured)
    pictures = [draw_histogram(motions, *args.motion, "motion")]
    if score:
        pictures.append(draw_histogram(scores, args.score, 1.0, "text-image score"))
    with atomic_write(out.with_suffix(".png")) as part:
        Image.fromarray(np.concatenate(pictures)).save(part, pnginfo=MARK)    # one below another
    with atomic_write(out) as part:
        part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{out}: {len(rows)} of {len(clips)} clips; {out.with_suffix('.png')}")


def main(argv=None):
    """The command line; see the top of the file. Returns the exit code."""
    parser = ArgumentParser("python -m data.filter", description="Leave out clips by their motion and captions.")
    add = parser.add_argument
    add("folder", type=Path, help="folder of clips with captions (data/folder.py)")
    add("--motion", type=float, nargs=2, default=(0.0, 1.0), metavar=("LOW", "HIGH"), help="motion to keep, 0 to 1")
    add("--score", type=float, default=-1.0, metavar="LOW", help="lowest text-image score to keep; needs --clip")
    add("--clip", type=Path, help="a CLIP as TorchScript, for the text-image score; without it only motion is filtered")
    add("--merges", type=Path, help="CLIP's merges.txt; needs --clip")
    add("--fps", type=fps, default=2.0, help="frames a second at which motion is measured (default 2)")
    add("--out", type=Path, help="the metadata file to write (default: metadata.filtered.jsonl in the folder)")
    return run(parser.prog, filter_clips, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
