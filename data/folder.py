"""Folders of real clips: Sec. 4 "Datasets", with a set of one's own instead of WebVid-10M.

in       GIF, WebP, APNG, stills or folders of pictures; with the program ffmpeg mp4, webm, mkv, mov, avi. Captions in
         metadata.jsonl or .csv (file_name, text; or WebVid's videoid, page_dir, name), or in a .txt beside each clip.
         Several for a clip, in rows, in a list or in lines of the .txt, are used in turn, window by window
out      FolderSet[i] -> {"frames": uint8 [3, n, H, W], "caption": str, "name": str}, like a ToySet
our reading  Frames are read by time, not by index, since frames of real files differ in duration. Clips that cannot be
             used are skipped and named, not replaced by black frames. `python -m data.folder my_clips` shows the rest.
"""
import csv
import functools
import json
import re
import shutil
import subprocess
import sys
from argparse import ArgumentTypeError
from collections import Counter, defaultdict, namedtuple
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import augment as augmentation
from data.media import centre, open_picture, sheet_command
from sd21.command import ArgumentParser, height_width, one_line, positive_float
from sd21.text import with_fps

ANIMATIONS, FILMS = (".gif", ".webp", ".apng", ".png"), (".mp4", ".webm", ".mkv", ".mov", ".avi")
STILLS = (".jpg", ".jpeg", ".bmp", ".tif", ".tiff")                 # clips of one frame, for the image model
PICTURES = (".png", ".webp", *STILLS)                               # in a folder of pictures
HIDDEN = re.compile(r"(^|/)(\.|__MACOSX)")                          # such as ._a.txt of macOS
UTF_8 = {"encoding": "utf-8-sig", "errors": "surrogateescape"}      # other bytes become surrogates: see FolderSet
FOLDER_FPS = 24.0                   # for folders of pictures, unless the metadata has "fps"
# fps: of its pictures, if it is a folder. caption: the first of its captions, for programs that want only one.
Clip = namedtuple("Clip", "path caption seconds fps captions", defaults=[()])


def _read_rows(file):
    """Yields the rows of a metadata file as dicts. Raises ValueError, for JSON with the number of the bad line."""
    lines = file.read_text(**UTF_8).strip().split("\n")             # splitlines() would also split at U+2028
    try:
        if file.suffix.lower() == ".csv":                           # strict: a quote that never ends is an error
            reader = csv.DictReader((line + "\n" for line in lines), strict=True)   # captions may contain line breaks
            if len(set(reader.fieldnames or ())) < len(reader.fieldnames or ()):
                raise csv.Error("two columns have the same name")
            yield from reader
            return
        for number, line in enumerate(lines, 1):
            yield dict(json.loads(line.strip() or "{}"))            # read_captions skips empty rows
    except csv.Error as error:
        raise ValueError(f"{file}: not a CSV file ({error})") from None
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"{file}: line {number} is not a JSON object in UTF-8") from None


def read_captions(folder):
    """{path of a clip: {"text": its first caption or "", "texts": all of them, "fps": its rate, for folders of
    pictures}}, for all clips named. `folder` may also be a metadata file. Raises ValueError in one line."""
    files = [file for file in (folder, folder / "metadata.jsonl", folder / "metadata.csv") if file.is_file()]
    captions = {}
    if len(files) == 2:
        raise ValueError(f"{folder}: has both metadata.jsonl and metadata.csv; keep one")
    if not files:                                                   # a .txt describes the file or folder with its stem
        kinds = ("", *ANIMATIONS, *FILMS, *STILLS)
        endings = sorted({path.suffix for path in folder.rglob("*") if path.suffix.lower() in kinds})    # such as .MOV
        for text in sorted(folder.rglob("*.txt")):
            if not text.is_file() or text.is_symlink() or HIDDEN.search(text.relative_to(folder).as_posix()):
                continue
            clips = [path for path in map(text.with_suffix, endings) if path.exists()]
            clip = min(clips, key=lambda path: path.suffix.lower() in STILLS, default=text)    # a .jpg: its cover
            try:
                lines = [line.strip() for line in text.read_text(**UTF_8).strip().split("\n")]
            except OSError:                                         # such as a lack of permission: see FolderSet
                lines = [None]
            captions[clip] = {"text": lines[0], "texts": lines, "fps": FOLDER_FPS}
        return captions
    for row in (row for row in _read_rows(files[0]) if any(row.values())):
        if None in row:                                             # csv.DictReader's key of cells without a column
            raise ValueError(f"{files[0]}: too many cells, {row[None]}; write captions with commas in quotes")
        if row.get("videoid") and not row.get("file_name"):         # WebVid's columns
            row |= {"file_name": f"{row.get('page_dir') or '.'}/{row['videoid']}.mp4", "text": row.get("name")}
        if not row.get("file_name"):
            raise ValueError(f"{files[0]}: wants file_name and text, or WebVid's columns; has {one_line(list(row))}")
        path = files[0].parent / str(row["file_name"])
        try:
            rate = positive_float(row.get("fps") or FOLDER_FPS)
        except (ArgumentTypeError, TypeError):
            raise ValueError(f"{files[0]}: fps {row['fps']!r} of {path.name} is not a number above 0") from None
        texts = row["text"] if isinstance(row.get("text"), list) else [row.get("text") or ""]
        texts = [text.strip() if isinstance(text, str) else text for text in texts] or [""]
        captions.setdefault(path, {"text": texts[0], "texts": [], "fps": rate})["texts"] += texts
    return captions


def is_text(caption):
    """Whether a caption is text, without NUL or bytes that were no UTF-8."""
    return isinstance(caption, str) and not re.search("[\0\ud800-\udfff]", caption)


def _animation(path):
    """Yields (picture, its duration in seconds). Durations up to 10 ms become 0.1 s, as in browsers."""
    with open_picture(path) as image:
        count = image.n_frames if image.format in ("GIF", "PNG", "WEBP") else 1      # a .tif has pages
        if image.width * image.height * count > 2**32:              # 2,000 of Full HD
            raise ValueError(f"{count} frames of {image.width}x{image.height} pixels are too many")
        for frame in range(image.tell(), count):
            image.seek(frame)
            image.load()                                            # Pillow knows a WebP's duration only after load()
            yield image, (time if (time := image.info.get("duration") or 0) > 10 else 100) / 1000


def pictures_of(folder):
    """The pictures of a folder, sorted by the numbers in their names: 10.png after 9.png. For other paths, []."""
    paths = [path for path in folder.glob("*") if path.suffix.lower() in PICTURES and not HIDDEN.match(path.name)]
    return sorted(paths, key=lambda path: ([int(number) for number in re.findall(r"\d+", path.stem)], path))


def _ffmpeg(path, *options, seek=()):
    """The output of ffmpeg for the film in a file. Playlists, which name other files, are not among the formats."""
    command = ["ffmpeg", "-v", "error", "-protocol_whitelist", "file,pipe", "-format_whitelist",
               "mov,matroska,avi,mpegts,flv,ogg", *seek, "-i", f"file:{path}", "-map", "0:V:0", *options, "-"]
    return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL).stdout


@functools.cache                                                    # one run asks up to three times
def clip_seconds(path, fps=FOLDER_FPS):
    """The length of a clip in seconds. `fps` is for folders of pictures. Raises ValueError or OSError, without path."""
    if path.is_dir():
        return len(pictures_of(path)) / fps
    if not path.is_file():
        raise ValueError("is not a file" if path.exists() else "is not there")
    if path.suffix.lower() in FILMS:
        if not shutil.which("ffmpeg"):
            raise ValueError("needs the program ffmpeg, which is not on the PATH")
        # A row a packet: track, time to decode, time to show, duration. A container's own duration may be its sound's.
        table = _ffmpeg(path, "-c", "copy", "-f", "framecrc").decode()
        rows = [line.split(",") for line in table.splitlines() if line.startswith("0,")]
        if not rows:
            raise ValueError("cannot be read as a film")
        if any(int(row[2]) == -2**63 for row in rows):              # ffmpeg would guess, and err by some frames
            raise ValueError("has frames without times, as B-frames in an .avi; convert it to .mp4")
        unit = re.search(r"#tb 0: (\d+)/(\d+)", table)             # of time, in seconds; the last frames may be missing
        return max(int(row[2]) + int(row[3]) for row in rows) * int(unit[1]) / int(unit[2]) - 0.1
    if path.suffix.lower() not in ANIMATIONS + STILLS:
        raise ValueError(f"is no clip: want {' '.join(ANIMATIONS + FILMS)} or a folder of pictures")
    try:
        return sum(seconds for _, seconds in _animation(path))
    except Exception as error:                                      # decoders raise all kinds of errors on broken files
        raise ValueError(f"cannot be read ({one_line(error)})") from None


def read_clip(path, times, size, fps=FOLDER_FPS):
    """The frames shown at evenly spaced times, in seconds, cut at their centre to a size: uint8 [n, H, W, 3].
    `fps` is for folders of pictures. Raises ValueError if the clip ends before the last time or cannot be read."""
    (height, width), frames, end = height_width(size), [], 0.0
    if path.suffix.lower() in FILMS and not path.is_dir():
        rate = 1 / (times[1] - times[0]) if len(times) > 1 else 1.0
        # settb: the unit of microseconds. round=up: the frame on show, not the nearest. sar: width / height of a pixel.
        changes = (f"settb=AVTB,setpts=PTS-{times[0] + 1e-5:f}/TB,fps={rate}:round=up:start_time=0,"
                   f"scale='max({width},round({height}*iw*sar/ih))':'max({height},round({width}*ih/iw/sar))',"
                   f"crop={width}:{height}")
        # From a key frame at least 1 s before, since the frame on show may have begun earlier.
        output = _ffmpeg(path, "-vf", changes, "-frames:v", str(len(times)), "-f", "rawvideo", "-pix_fmt", "rgb24",
                         seek=f"-noaccurate_seek -copyts -start_at_zero -ss {max(0, times[0] - 1):f}".split())
        frames = np.frombuffer(output, np.uint8).reshape(-1, height, width, 3)
    else:
        pictures = ((open_picture(p), 1 / fps) for p in pictures_of(path)) if path.is_dir() else _animation(path)
        try:
            for picture, seconds in pictures:
                end += seconds                                      # this picture is shown until `end`
                while len(frames) < len(times) and times[len(frames)] < end - 1e-6:
                    frames.append(np.asarray(centre(picture, height, width)[0]))
                if len(frames) == len(times):
                    break
        except Exception as error:                                  # see clip_seconds
            raise ValueError(f"cannot be read ({one_line(error)})") from None
    if len(frames) < len(times):
        raise ValueError(f"ends before {times[-1]:.2f} s")
    return np.stack(frames)


class FolderSet(torch.utils.data.Dataset):
    """`count` windows of `frames` frames at `fps`, each at a random time of a clip; item i is always the same window.
    held_out: True takes every tenth clip of the captions, False all others; with fewer than ten clips, or if no tenth
    one is usable, both take all. windows: frame rates, as in ToySet. augment: names from data/augment.py. Raises
    ValueError if no clip is usable. `clips` and `spared` are the usable clips on this side of the split and on the
    other; `skipped` is {reason: names}."""
    def __init__(self, folder, count, frames=9, fps=2.0, size=128, seed=0, held_out=False, windows=(), augment=()):
        if windows and "rate" in augment:
            raise ValueError("augment rate: the captions of these windows (stage tsr) name their rate; leave it out")
        self.count, self.frames, self.size, self.seed = count, frames, size, seed
        self.windows, self.augment = windows, augment
        self.rates, self.clips, self.spared, self.skipped = windows or (fps,), [], [], defaultdict(list)
        folder = Path(folder)
        if not folder.exists():
            raise ValueError(f"{folder}: no such folder of clips, nor a metadata file")
        captions, shortest = read_captions(folder), (frames - 1) / min(self.rates)
        root = (folder.parent if folder.is_file() else folder).resolve()
        for number, (path, row) in enumerate(tqdm(captions.items(), desc="looking at the clips", delay=2)):
            texts = [text for text in row["texts"] if text != ""]
            try:
                links = [picture for picture in pictures_of(path) if picture.is_symlink()]
                if not all(file.resolve().is_relative_to(root) for file in (path, *links)):
                    raise ValueError("leads outside the folder of the set")
                if not texts:
                    raise ValueError("has no caption")
                if not all(map(is_text, texts)):
                    raise ValueError("has a caption that cannot be read as text in UTF-8")
                seconds = clip_seconds(path, row["fps"])
                if seconds <= shortest:
                    raise ValueError(f"is too short: want more than {shortest:g} s; a higher --fps takes shorter clips")
                clips = self.clips if (number % 10 == 9) == held_out else self.spared
                clips.append(Clip(path, texts[0], seconds, row["fps"], texts))
            except (ValueError, OSError) as error:
                self.skipped[one_line(error)].append(one_line(path.name))
        if held_out and not self.clips:
            self.clips, self.spared = self.spared, []
        known, parents = set(captions), {path.parent for path in captions}
        for path in sorted(folder.rglob("*")):
            if path in parents or known & {path, *path.parents} or HIDDEN.search(path.relative_to(folder).as_posix()):
                continue
            if path.is_symlink() and path.is_dir():
                self.skipped["is a link to a folder"].append(one_line(path.name))
            elif len(pictures_of(path)) > 1 or path.suffix.lower() in ANIMATIONS + FILMS:
                self.skipped["has no caption"].append(one_line(path.name))
                known.add(path)                                     # the pictures in a folder are not clips
        if not self.clips:
            raise ValueError(f"{folder}: {self.summary()}")

    def summary(self):
        """One line: how many clips are usable, how many are not, and why."""
        parts, lengths = ["no clip to train on"], sorted(clip.seconds for clip in self.clips)
        if lengths:
            parts = [f"{len(lengths)} clips with {len(set(self.captions()))} captions, {lengths[0]:.1f} to "
                     f"{lengths[-1]:.1f} s long, half of them under {lengths[len(lengths) // 2]:.1f} s",
                     f"{len(self.spared)} more held out" if self.spared else "too few to hold some out"]
        counts = Counter(len(clip.captions) for clip in self.clips if len(clip.captions) > 1)
        parts += [f"{clips} clips have {count} captions" for count, clips in sorted(counts.items())]
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
        random = np.random.default_rng([self.seed, i, 1])           # of the augmentation
        for k in range(len(self.clips)):                            # clip i, or the next one that can still be read
            clip = self.clips[(i + k) % len(self.clips)]
            pace = augmentation.rate(rate, (self.frames - 1) / clip.seconds, random) if "rate" in self.augment else rate
            start = place * (clip.seconds - (self.frames - 1) / pace)
            try:
                frames = read_clip(clip.path, start + np.arange(self.frames) / pace, self.size, clip.fps)
                for name in [name for name in self.augment if name in augmentation.CHANGES]:
                    frames = augmentation.CHANGES[name](frames, random)
                caption = clip.captions[(i // len(self.clips)) % len(clip.captions)]
                caption = with_fps(caption, rate) if self.windows else caption
                return {"frames": torch.tensor(frames).permute(3, 0, 1, 2).contiguous(), "caption": caption,
                        "name": one_line(clip.path.name)}
            except (ValueError, OSError) as error:
                tqdm.write(one_line(f"skipped {clip.path.name}: {error}"))
        raise ValueError("none of the clips can be read any more")

    def captions(self):
        """All captions of all clips. The tokenizer learns its merges from them."""
        return [caption for clip in self.clips for caption in clip.captions]


def main(argv=None):
    """The command line; see the top of the file. Returns the exit code."""
    parser = ArgumentParser("python -m data.folder", description="Look at a folder of clips as training will see it.")
    parser.add_argument("folder", type=Path, help="folder of clips with captions, or its metadata file")
    parser.add_argument("--augment", type=augmentation.names, default=(), help="as in training; default none")
    return sheet_command(FolderSet, parser, argv, rows="--rows", out="clips.png")


if __name__ == "__main__":
    sys.exit(main())
