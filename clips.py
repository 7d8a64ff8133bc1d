"""Folders of real clips: Sec. 4 "Datasets", for a set of one's own in the place of WebVid-10M.

in    a folder with GIF, WebP, APNG, folders of pictures, and mp4, webm, mkv, mov, avi where the program ffmpeg is on
      the PATH; captions in metadata.jsonl or metadata.csv (file_name, text; or WebVid's videoid, page_dir, name), or in
      a .txt beside each clip
out   ClipSet[i] -> {"frames": uint8 [3, n, H, W], "caption": str, "name": str}, as data.ToySet gives them
here  ClipSet, and its .summary() of what was found, and skipped, and why; read_captions, clip_seconds, read_clip

    python clips.py my_clips/ --out sheet.png           # the summary, and a contact sheet of windows

ours  Frames are read by time, not by number: real files have frames of unequal duration. A window of n frames at a
      fixed rate starts at a random place of its clip. What cannot be read, is too short or has
      no caption is skipped and named; it never becomes a picture of zeros.
"""

import csv
import functools
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data import paced
from files import ArgumentParser, beside, centre, check_output, contact_sheet

ANIMATIONS, FILMS = (".gif", ".webp", ".apng", ".png"), (".mp4", ".webm", ".mkv", ".mov", ".avi")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
FOLDER_FPS = 24.0                   # of a folder of pictures that does not say its own, in metadata: "fps"


# ---- captions -------------------------------------------------------------------------------------------------------

def read_text(file):
    """What is written in a file. ValueError that names it if it is not text."""
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ValueError(f"{file}: is not text in UTF-8") from None


def read_rows(file):
    """The rows of a metadata file as dicts. ValueError in one line, with the number of the line, if one is broken."""
    text = read_text(file)
    if file.suffix == ".csv":
        try:
            return list(csv.DictReader(io.StringIO(text, newline="")))       # a caption may hold a line break
        except csv.Error as error:
            raise ValueError(f"{file}: not a CSV file ({error})") from None
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            if line.strip():
                rows.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            raise ValueError(f"{file}: line {number} is not a JSON object") from None
    return rows


def read_captions(folder):
    """{path of a clip: {"text": caption or "", "fps": of a folder of pictures}} of all that are named; `folder` may be
    a metadata file, too."""
    if folder.is_file():
        files, folder = [folder], folder.parent
    else:
        files = [folder / name for name in ("metadata.jsonl", "metadata.csv") if (folder / name).is_file()]
    if len(files) == 2:
        raise ValueError(f"{folder}: has both metadata.jsonl and metadata.csv; keep one")
    if not files:
        return {clip_beside(text): {"text": read_text(text)} for text in sorted(folder.rglob("*.txt"))}
    captions = {}
    for row in read_rows(files[0]):
        if row.get("file_name"):
            path, text = folder / str(row["file_name"]), row.get("text")
        elif row.get("videoid"):                                    # WebVid's columns
            path, text = folder / str(row.get("page_dir") or "") / f"{row['videoid']}.mp4", row.get("name")
        else:
            raise ValueError(f"{files[0]}: wants the columns file_name and text, or WebVid's videoid, page_dir "
                             f"and name; has {', '.join(map(str, row))}")
        try:
            captions[path] = {"text": str(text or "").strip(), "fps": float(row.get("fps") or FOLDER_FPS)}
            if not 0 < captions[path]["fps"] < math.inf:
                raise ValueError
        except (ValueError, TypeError):
            raise ValueError(f"{files[0]}: fps {row['fps']!r} of {path.name} is not a number above 0") from None
    return captions


def clip_beside(text):
    """The clip that a .txt is beside: of its name, and a kind that we read. The .txt itself if there is none."""
    return next((p for p in sorted(text.parent.iterdir()) if p.stem == text.stem
                 and (p.is_dir() or p.suffix.lower() in (*ANIMATIONS, *FILMS))), text)


# ---- one clip -------------------------------------------------------------------------------------------------------

def animation(path):
    """Yields (picture, seconds it lasts) of an animated picture. A duration of 0 is 0.1 s, as browsers take it."""
    with Image.open(path) as image:
        for k in range(getattr(image, "n_frames", 1)):
            image.seek(k)
            image.load()                                            # WebP tells the duration only now
            yield image, (image.info.get("duration") or 100) / 1000


def pictures_of(folder):
    """The pictures of a folder, in the order of the numbers in their names."""
    numbers = lambda path: [int(number) for number in re.findall(r"\d+", path.stem)]
    return sorted((path for path in folder.iterdir() if path.suffix.lower() in PICTURES), key=lambda p: (numbers(p), p))


@functools.cache                                                    # a stage looks at the same clips up to three times
def clip_seconds(path, fps=FOLDER_FPS):
    """How long a clip lasts. ValueError or OSError, in a few words, if it cannot be read."""
    if not path.exists():
        raise ValueError("is not there")
    if path.is_dir():
        return len(pictures_of(path)) / fps
    if path.suffix.lower() in FILMS:
        if not shutil.which("ffmpeg"):
            raise ValueError("takes the program ffmpeg, which is not on the PATH")
        said = subprocess.run(["ffmpeg", "-hide_banner", "-i", str(path)], capture_output=True,
                              stdin=subprocess.DEVNULL).stderr
        found = re.search(r"Duration: (\d+):(\d+):([\d.]+)", said.decode(errors="replace"))
        if not found:
            raise ValueError("cannot be read as a film")
        return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3]) - 0.1      # the last frames may not be whole
    if path.suffix.lower() not in ANIMATIONS:
        raise ValueError(f"is no clip: want {' '.join(ANIMATIONS + FILMS)} or a folder of pictures")
    try:
        return sum(seconds for _, seconds in animation(path))
    except Exception as error:                                      # a broken file breaks each decoder in its own way
        raise cannot_be_read(error) from None


def cannot_be_read(error):
    """What to say of a broken file, in a few words."""
    return ValueError(f"cannot be read ({' '.join(str(error).split()) or type(error).__name__})")


def read_clip(path, times, size, fps=FOLDER_FPS):
    """The frames that show at these seconds, even steps apart, centre squares of size pixels: uint8 [n, size, size, 3].

    ValueError if the clip ends before the last of them, or cannot be read.
    """
    if path.suffix.lower() in FILMS and not path.is_dir():
        rate = 1 / (times[1] - times[0]) if len(times) > 1 else 1.0
        square = (f"fps={rate}:round=up:start_time=0,"              # what shows at a time, not what is nearest to it
                  f"scale={size}:{size}:force_original_aspect_ratio=increase,crop={size}:{size}")
        command = ["ffmpeg", "-v", "error", "-ss", str(times[0]), "-i", str(path), "-vf", square,
                   "-frames:v", str(len(times)), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
        raw = np.frombuffer(done.stdout, np.uint8)
        if raw.size != len(times) * size * size * 3:
            raise ValueError(f"{path}: ends before {times[-1]:.2f} s")
        return raw.reshape(len(times), size, size, 3)
    shown = ((Image.open(p), 1 / fps) for p in pictures_of(path)) if path.is_dir() else animation(path)
    frames, end = [], 0.0
    try:
        for picture, seconds in shown:
            end += seconds
            while len(frames) < len(times) and times[len(frames)] < end - 1e-6:
                frames.append(np.asarray(centre(picture, size, size)[0]))
            if len(frames) == len(times):
                return np.stack(frames)
    except Exception as error:                                      # as above
        raise cannot_be_read(error) from None
    raise ValueError(f"{path}: ends before {times[-1]:.2f} s")


# ---- the set --------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Clip:
    """A clip that can be trained on."""
    path: Path
    caption: str
    seconds: float
    fps: float                      # of its pictures, if it is a folder of them


class ClipSet(torch.utils.data.Dataset):
    """`count` windows of `frames` frames at `fps` out of a folder's clips; item i is always the same window.

    held_out: of every tenth clip that has a caption, which are kept from training whatever else a stage asks of clips,
    or of all others; below ten clips, or if no tenth will do, none can be spared, and both are all. windows: frame
    rates; if any are named, item i is at one of them and not at `fps`, and its caption says at which. ValueError if no
    clip will do.
    """

    def __init__(self, folder, count, frames=9, fps=2.0, size=128, seed=0, held_out=False, windows=()):
        self.count, self.frames, self.rates, self.size, self.seed = count, frames, windows or (fps,), size, seed
        self.windows = windows
        folder, self.clips, self.spared, self.skipped = Path(folder), [], [], defaultdict(list)
        if not folder.exists():
            raise ValueError(f"{folder}: no such folder of clips, nor a metadata file")
        captions = read_captions(folder)
        needed = (frames - 1) / min(self.rates)
        for number, (path, row) in enumerate(tqdm(captions.items(), desc="looking at the clips", delay=2)):
            fps_here = row.get("fps", FOLDER_FPS)
            try:
                if not row["text"]:
                    raise ValueError("has no caption")
                seconds = clip_seconds(path, fps_here)
                if seconds <= needed:
                    raise ValueError(f"is too short: want more than {needed:g} s")
                kept = len(captions) < 10 or (number % 10 == 9) == held_out
                (self.clips if kept else self.spared).append(Clip(path, row["text"], seconds, fps_here))
            except (ValueError, OSError) as error:
                self.skipped[str(error)].append(path.name)
        if held_out and not self.clips:
            self.clips, self.spared = self.spared, []
        known, folders = set(captions), {path.parent for path in captions}
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            measured = path.with_suffix(".jsonl").is_file()                  # a histogram of filtering.py
            pictures = pictures_of(path) if path.is_dir() and os.access(path, os.R_OK) else []
            clip = len(pictures) > 1 or path.suffix.lower() in (*ANIMATIONS, *FILMS)
            if clip and not measured and path not in folders and not known & {path, *path.parents}:
                self.skipped["has no caption"].append(path.name)
                known.add(path)                                              # its pictures are not clips of their own
        if not self.clips:
            raise ValueError(f"{folder}: {self.summary()}")

    def summary(self):
        """One line on what was found, and on what was skipped and why."""
        said, lengths = ["no clip to train on"], sorted(clip.seconds for clip in self.clips)
        if lengths:
            said = [f"{len(self.clips)} clips with {len({clip.caption for clip in self.clips})} captions, "
                    f"{lengths[0]:.1f} to {lengths[-1]:.1f} s long, half of them under "
                    f"{lengths[len(lengths) // 2]:.1f} s",
                    f"{len(self.spared)} more kept out" if self.spared else "too few to keep some out"]
        for reason, names in self.skipped.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            said.append(f"skipped {len(names)}: {reason} ({', '.join(names[:3])}{more})")
        return "; ".join(said)

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(i)
        rate, place = self.rates[i % len(self.rates)], np.random.default_rng([self.seed, i]).uniform()
        for k in range(len(self.clips)):                            # the i-th clip, or the first behind it that will do
            clip = self.clips[(i + k) % len(self.clips)]
            start = place * (clip.seconds - (self.frames - 1) / rate)
            try:
                frames = read_clip(clip.path, start + np.arange(self.frames) / rate, self.size, clip.fps)
            except (ValueError, OSError) as error:                  # it has changed since it was looked at
                tqdm.write(f"skipped {clip.path.name}: {error}")
                continue
            return {"frames": torch.tensor(frames).permute(3, 0, 1, 2).contiguous(), "name": clip.path.name,
                    "caption": paced(clip.caption, rate) if self.windows else clip.caption}
        raise ValueError("none of the clips can be read any more")

    def captions(self):
        """Of all clips, for the tokenizer to learn its merges from."""
        return [clip.caption for clip in self.clips]


def main(argv=None):
    """Prints the summary of a folder and draws a contact sheet; see the top of the file."""
    parser = ArgumentParser(description="Look at a folder of clips as training will see it.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("clips.png"), help="the contact sheet (default clips.png)")
    parser.add_argument("--rows", type=int, default=12, help="windows to draw (default 12)")
    parser.add_argument("--frames", type=int, default=9, help="N, frames of a window (default 9)")
    parser.add_argument("--fps", type=float, default=2.0, help="frames a second of a window (default 2)")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (default 128)")
    parser.add_argument("--seed", type=int, default=0, help="of the places of the windows")
    args = parser.parse_args(argv)
    try:
        if min(args.rows, args.frames, args.size) < 1 or args.seed < 0 or not 0 < args.fps <= 1000:
            raise ValueError("--rows, --frames, --size and --fps must be positive, --fps at most 1000, and --seed not "
                             "negative")
        if args.out.suffix.lower() != ".png":
            raise ValueError(f"{args.out}: a contact sheet is a .png")
        check_output(args.out)
        clips = ClipSet(args.folder, args.rows, args.frames, args.fps, args.size, args.seed)
        items = [clips[i] for i in range(args.rows)]
        with beside(args.out) as part:
            contact_sheet(*[item["frames"].permute(1, 2, 3, 0).numpy() for item in items],
                          captions=[item["caption"] for item in items]).save(part)
    except (ValueError, OSError) as error:
        print(f"clips.py: {error}", file=sys.stderr)
        return 2
    print(f"{clips.summary()}\n{args.out}: {args.rows} windows of {args.frames} frames at {args.fps:g} fps")
    for reason, names in clips.skipped.items():
        print(f"skipped, {reason}: {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
