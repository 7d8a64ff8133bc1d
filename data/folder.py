"""Folders of real clips: Sec. 4 "Datasets", with a set of one's own instead of WebVid-10M.

in       a folder with GIF, WebP, APNG or folders of pictures; with the program ffmpeg also mp4, webm, mkv, mov, avi.
         Captions are in metadata.jsonl or metadata.csv (file_name, text; or WebVid's videoid, page_dir, name), or in a
         .txt beside each clip
out      FolderSet[i] -> {"frames": uint8 [3, n, H, W], "caption": str, "name": str}, like a ToySet
defines  read_captions, clip_seconds, read_clip, Clip, FolderSet
our reading  Frames are read by time, not by index, since frames of real files differ in duration. A window of n frames
             at a fixed rate starts at a random time of its clip. Clips that are unreadable, too short or without a
             caption are skipped and named, never replaced by black frames.

    python -m data.folder my_clips --out sheet.png      # a summary, and a contact sheet of windows
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

from data.media import centre, check_output, write_sheet
from sd21.command import ArgumentParser, fps, natural, positive_int, run
from sd21.text import with_fps

ANIMATIONS, FILMS = (".gif", ".webp", ".apng", ".png"), (".mp4", ".webm", ".mkv", ".mov", ".avi")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
FOLDER_FPS = 24.0                   # for folders of pictures, unless the metadata has "fps"


# ---- captions -------------------------------------------------------------------------------------------------------

def _read_text(file):
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ValueError(f"{file}: is not text in UTF-8") from None


def _read_rows(file):
    """The rows of a metadata file as dicts. Raises ValueError in one line, for JSON with the number of the bad line."""
    text = _read_text(file)
    if file.suffix == ".csv":
        try:
            return list(csv.DictReader(io.StringIO(text, newline="")))       # captions may contain line breaks
        except csv.Error as error:
            raise ValueError(f"{file}: not a CSV file ({error})") from None
    rows = []
    for number, line in enumerate(text.split("\n"), 1):             # splitlines() would also split at U+2028
        try:
            if line.strip():
                rows.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            raise ValueError(f"{file}: line {number} is not a JSON object") from None
    return rows


def read_captions(folder):
    """{path of a clip: {"text": its caption or "", "fps": its rate, for folders of pictures}}, for all clips named.

    `folder` may also be a metadata file. Raises ValueError in one line.
    """
    if folder.is_file():
        files, folder = [folder], folder.parent
    else:
        files = [folder / name for name in ("metadata.jsonl", "metadata.csv") if (folder / name).is_file()]
    if len(files) == 2:
        raise ValueError(f"{folder}: has both metadata.jsonl and metadata.csv; keep one")
    if not files:
        return {_clip_of(text): {"text": _read_text(text)} for text in sorted(folder.rglob("*.txt"))}
    captions = {}
    for row in _read_rows(files[0]):
        if row.get("file_name"):
            path, text = folder / str(row["file_name"]), row.get("text")
        elif row.get("videoid"):                                    # WebVid's columns
            path, text = folder / str(row.get("page_dir") or "") / f"{row['videoid']}.mp4", row.get("name")
        else:
            raise ValueError(f"{files[0]}: wants the columns file_name and text, or WebVid's videoid, page_dir "
                             f"and name; has {', '.join(map(str, row))}")
        try:
            rate = float(row.get("fps") or FOLDER_FPS)
        except (ValueError, TypeError):
            rate = math.nan
        if not 0 < rate < math.inf:
            raise ValueError(f"{files[0]}: fps {row['fps']!r} of {path.name} is not a number above 0")
        captions[path] = {"text": str(text or "").strip(), "fps": rate}
    return captions


def _clip_of(text):
    """The clip that a .txt file describes: the file or folder with its stem. The .txt itself if there is none."""
    for path in sorted(text.parent.iterdir()):
        if path.stem == text.stem and (path.is_dir() or path.suffix.lower() in ANIMATIONS + FILMS):
            return path
    return text


# ---- one clip -------------------------------------------------------------------------------------------------------

def _animation(path):
    """Yields (picture, its duration in seconds). Durations of 0 become 0.1 s, as in browsers."""
    with Image.open(path) as image:
        for k in range(getattr(image, "n_frames", 1)):
            image.seek(k)
            image.load()                                            # Pillow knows a WebP's duration only after load()
            yield image, (image.info.get("duration") or 100) / 1000


def _pictures_of(folder):
    """The pictures of a folder, sorted by the numbers in their names: 10.png after 9.png."""
    paths = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES]
    return sorted(paths, key=lambda path: ([int(number) for number in re.findall(r"\d+", path.stem)], path))


def _unreadable(error):
    return ValueError(f"cannot be read ({' '.join(str(error).split()) or type(error).__name__})")


@functools.cache                                                    # one run asks up to three times
def clip_seconds(path, fps=FOLDER_FPS):
    """The length of a clip in seconds. `fps` is for folders of pictures. Raises ValueError or OSError, without path."""
    if not path.exists():
        raise ValueError("is not there")
    if path.is_dir():
        return len(_pictures_of(path)) / fps
    if path.suffix.lower() in FILMS:
        if not shutil.which("ffmpeg"):
            raise ValueError("needs the program ffmpeg, which is not on the PATH")
        command = ["ffmpeg", "-hide_banner", "-i", str(path)]
        log = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL).stderr.decode(errors="replace")
        match = re.search(r"Duration: (\d+):(\d+):([\d.]+)", log)
        if not match:
            raise ValueError("cannot be read as a film")
        return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) - 0.1      # the last frames may be missing
    if path.suffix.lower() not in ANIMATIONS:
        raise ValueError(f"is no clip: want {' '.join(ANIMATIONS + FILMS)} or a folder of pictures")
    try:
        return sum(seconds for _, seconds in _animation(path))
    except Exception as error:                                      # decoders raise all kinds of errors on broken files
        raise _unreadable(error) from None


def read_clip(path, times, size, fps=FOLDER_FPS):
    """The frames shown at evenly spaced times, in seconds, cut to centred squares: uint8 [n, size, size, 3].

    `fps` is for folders of pictures. Raises ValueError if the clip ends before the last time or cannot be read.
    """
    if path.suffix.lower() in FILMS and not path.is_dir():
        rate = 1 / (times[1] - times[0]) if len(times) > 1 else 1.0
        square = (f"fps={rate}:round=up:start_time=0,"              # round=up: the frame on show, not the nearest
                  f"scale={size}:{size}:force_original_aspect_ratio=increase,crop={size}:{size}")
        command = ["ffmpeg", "-v", "error", "-ss", str(times[0]), "-i", str(path), "-vf", square,
                   "-frames:v", str(len(times)), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
        raw = np.frombuffer(done.stdout, np.uint8)
        if raw.size != len(times) * size * size * 3:
            raise ValueError(f"{path}: ends before {times[-1]:.2f} s")
        return raw.reshape(len(times), size, size, 3)
    pictures = ((Image.open(p), 1 / fps) for p in _pictures_of(path)) if path.is_dir() else _animation(path)
    frames, end = [], 0.0
    try:
        for picture, seconds in pictures:
            end += seconds                                          # this picture is shown until `end`
            while len(frames) < len(times) and times[len(frames)] < end - 1e-6:
                frames.append(np.asarray(centre(picture, size, size)[0]))
            if len(frames) == len(times):
                return np.stack(frames)
    except Exception as error:                                      # see clip_seconds
        raise _unreadable(error) from None
    raise ValueError(f"{path}: ends before {times[-1]:.2f} s")


# ---- the dataset ----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Clip:
    """A usable clip of a folder."""
    path: Path
    caption: str
    seconds: float
    fps: float                      # of its pictures, if it is a folder


class FolderSet(torch.utils.data.Dataset):
    """`count` windows of `frames` frames at `fps`, from the clips of a folder; item i is always the same window.

    held_out: True takes every tenth clip of the captions, False all others, so every stage holds out the same clips.
    With fewer than ten clips, or if no tenth one is usable, both take all. windows: frame rates, as in ToySet.
    Raises ValueError if no clip is usable. Attributes: `clips` and `spared` are the usable clips on this side of the
    split and on the other; `skipped` is {reason: names}.
    """

    def __init__(self, folder, count, frames=9, fps=2.0, size=128, seed=0, held_out=False, windows=()):
        self.count, self.frames, self.size, self.seed, self.windows = count, frames, size, seed, windows
        self.rates, self.clips, self.spared, self.skipped = windows or (fps,), [], [], defaultdict(list)
        folder = Path(folder)
        if not folder.exists():
            raise ValueError(f"{folder}: no such folder of clips, nor a metadata file")
        captions = read_captions(folder)
        shortest = (frames - 1) / min(self.rates)
        for number, (path, row) in enumerate(tqdm(captions.items(), desc="looking at the clips", delay=2)):
            clip_fps = row.get("fps", FOLDER_FPS)
            try:
                if not row["text"]:
                    raise ValueError("has no caption")
                seconds = clip_seconds(path, clip_fps)
                if seconds <= shortest:
                    raise ValueError(f"is too short: want more than {shortest:g} s")
                wanted = len(captions) < 10 or (number % 10 == 9) == held_out
                (self.clips if wanted else self.spared).append(Clip(path, row["text"], seconds, clip_fps))
            except (ValueError, OSError) as error:
                self.skipped[str(error)].append(path.name)
        if held_out and not self.clips:
            self.clips, self.spared = self.spared, []
        if folder.is_dir():
            self._skip_unlisted(folder, captions)
        if not self.clips:
            raise ValueError(f"{folder}: {self.summary()}")

    def _skip_unlisted(self, folder, captions):
        """Adds to `skipped` the clips in a folder that no caption names."""
        known, parents = set(captions), {path.parent for path in captions}
        for path in sorted(folder.rglob("*")):
            if path in parents or known & {path, *path.parents} or path.with_suffix(".jsonl").is_file():
                continue                                            # the last is a histogram of data/filter.py
            is_folder_of_pictures = path.is_dir() and os.access(path, os.R_OK) and len(_pictures_of(path)) > 1
            if is_folder_of_pictures or path.suffix.lower() in ANIMATIONS + FILMS:
                self.skipped["has no caption"].append(path.name)
                known.add(path)                                     # the pictures in a folder are not clips

    def summary(self):
        """One line: how many clips are usable, how many are not, and why."""
        parts, lengths = ["no clip to train on"], sorted(clip.seconds for clip in self.clips)
        if lengths:
            captions, median = len({clip.caption for clip in self.clips}), lengths[len(lengths) // 2]
            parts = [f"{len(self.clips)} clips with {captions} captions, {lengths[0]:.1f} to {lengths[-1]:.1f} s long, "
                     f"half of them under {median:.1f} s",
                     f"{len(self.spared)} more held out" if self.spared else "too few to hold some out"]
        for reason, names in self.skipped.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            parts.append(f"skipped {len(names)}: {reason} ({', '.join(names[:3])}{more})")
        return "; ".join(parts)

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(i)
        rate, place = self.rates[i % len(self.rates)], np.random.default_rng([self.seed, i]).uniform()
        for k in range(len(self.clips)):                            # clip i, or the next one that can still be read
            clip = self.clips[(i + k) % len(self.clips)]
            start = place * (clip.seconds - (self.frames - 1) / rate)
            try:
                frames = read_clip(clip.path, start + np.arange(self.frames) / rate, self.size, clip.fps)
            except (ValueError, OSError) as error:
                tqdm.write(f"skipped {clip.path.name}: {error}")
                continue
            return {"frames": torch.tensor(frames).permute(3, 0, 1, 2).contiguous(), "name": clip.path.name,
                    "caption": with_fps(clip.caption, rate) if self.windows else clip.caption}
        raise ValueError("none of the clips can be read any more")

    def captions(self):
        """The captions of all clips. The tokenizer learns its merges from them."""
        return [clip.caption for clip in self.clips]

def draw(args):
    """Prints the summary and writes the contact sheet that the command line asks for."""
    check_output(args.out, [".png"])
    clips = FolderSet(args.folder, args.rows, args.frames, args.fps, args.size, args.seed)
    write_sheet(clips, args.out)
    print(f"{clips.summary()}\n{args.out}: {args.rows} windows of {args.frames} frames at {args.fps:g} fps")
    for reason, names in clips.skipped.items():
        print(f"skipped, {reason}: {', '.join(names)}")


def main(argv=None):
    """The command line; see the top of the file. Returns the exit code."""
    parser = ArgumentParser("python -m data.folder", description="Look at a folder of clips as training will see it.")
    add = parser.add_argument
    add("folder", type=Path, help="folder of clips with captions, or its metadata file")
    add("--out", type=Path, default="clips.png", help="the contact sheet, a .png (default clips.png)")
    add("--rows", type=positive_int, default=12, help="windows to draw (default 12)")
    add("--frames", type=positive_int, default=9, help="frames of a window, n (default 9)")
    add("--fps", type=fps, default=2.0, help="frames a second of a window (default 2)")
    add("--size", type=positive_int, default=128, help="pixels a side of a frame (default 128)")
    add("--seed", type=natural, default=0, help="seed of the places of the windows (default 0)")
    return run(parser.prog, draw, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
