"""Picture and video files, in and out.

in    a picture, any size, any mode   -> [3, H, W] in [-1, 1]                                          (read_picture)
out   frames, uint8 [3, H, W] each    -> GIF, WebP, APNG, a PNG contact sheet, a folder of PNGs, mp4   (write_video)
here  from_pixels, to_pixels, read_picture, centre, check_output, beside, write_video, contact_sheet; ArgumentParser, of
      all commands
ours  Everything: the paper's pictures are in memory. What is written is written beside its place and renamed, so that a
      name never holds half a file.
"""
import argparse, os, re, shutil, subprocess, tempfile, warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps


class ArgumentParser(argparse.ArgumentParser):
    """A command's arguments. What it cannot take it says in one line, as all of ours do; argparse adds the usage."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def from_pixels(pixels):
    """uint8 0..255 -> float32 in [-1, 1], any shape."""
    return pixels.float() / 127.5 - 1


def to_pixels(x):
    """[-1, 1] -> uint8, rounded to the nearest; what lies outside is clipped."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _to_rgb(image):
    """Any mode of Pillow's -> RGB. What is transparent becomes white; 16 bits are scaled, where Pillow would clip."""
    if image.mode.startswith("I") or image.mode == "F":             # "I;16", "I;16B", "I" and floats
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        top = next((top for top in ((1, 255) if image.mode == "F" else (65535,)) if values.max() <= top), values.max())
        low = min(values.min(), 0)
        image = Image.fromarray(((values - low) / (top - low) * 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def read_picture(path, height, width):
    """Any picture -> ([3, height, width] in [-1, 1], a line that says what was done). Of an animation, the first frame.

    Raises FileNotFoundError or ValueError, whose text is one line.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such picture")
    if not path.is_file():
        raise ValueError(f"{path}: not a picture file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                         # of large pictures; far too large ones raise
            with Image.open(path) as image:
                image.load()
                said = [f"{path.name}: {image.width}x{image.height} {image.mode}"]
                upright = ImageOps.exif_transpose(image)
                if image.getexif().get(0x0112, 1) != 1:             # the tag "Orientation"
                    said.append("turned upright")
                if upright.has_transparency_data:
                    said.append("laid on white")
                picture, how = centre(upright, height, width)
    except Exception as error:                                      # a broken file breaks each decoder in its own way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: cannot be read as a picture ({reason}); a PNG or JPEG can") from None
    return from_pixels(torch.from_numpy(np.array(picture)).permute(2, 0, 1)).contiguous(), ", ".join(said + how)


def centre(image, height, width):
    """The centre of a picture of any mode, as large as it fits, resized: (RGB picture, what was done, in words)."""
    picture, said = _to_rgb(image), []
    w, h = picture.size
    keep = min(w / width, h / height)                               # pixels of the picture per pixel of ours
    box_w, box_h = max(1, round(keep * width)), max(1, round(keep * height))
    if (box_w, box_h) != (w, h):
        said.append(f"cropped to the centre {box_w}x{box_h}")
    if (box_w, box_h) != (width, height):
        said.append(f"resized to {width}x{height}")
    left, top = (w - box_w) // 2, (h - box_h) // 2
    picture = picture.crop((left, top, left + box_w, top + box_h))
    return picture.resize((width, height), Image.Resampling.LANCZOS), said


ENDINGS = (".gif", ".webp", ".apng", ".png", ".mp4", "")            # "" is a folder of frames


def check_output(path):
    """Raise before the long computation what write_video(path) would raise after it: ValueError or OSError."""
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in ENDINGS:
        raise ValueError(f"{path}: unknown ending {kind!r}; choose .gif, .webp, .apng, .png (a contact sheet), .mp4, "
                         f"or no ending for a folder of frames")
    if kind == ".mp4" and not shutil.which("ffmpeg"):
        raise ValueError(f"{path}: mp4 takes the program ffmpeg, which is not on the PATH; .gif and .webp take none")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; create it first")
    if path.is_dir() and kind:
        raise ValueError(f"{path}: is a folder, not a file")
    if path.is_dir() and not all(re.fullmatch(r"frame_\d+\.png", name) for name in os.listdir(path)):
        raise ValueError(f"{path}: this folder holds other files than frames; name a new one")
    if path.exists() and not path.is_dir() and not kind:
        raise ValueError(f"{path}: is a file; for a folder of frames name a new folder")
    try:
        _part(path).touch()                                         # nothing tells as surely as trying
        _part(path).unlink()
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror})") from None


def _part(path, what="part"):
    return path.with_name(f".{what}-{os.getpid()}-{path.name}")     # the ending stays: it chooses the format


@contextmanager
def beside(path):
    """A name beside path to write to. It takes path's place when the block ends well, and is gone when it does not."""
    part, old = _part(path), _part(path, "old")
    try:
        yield part
        if path.is_dir():                                           # frames of an earlier run, see check_output
            path.rename(old)
        os.replace(part, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        if old.exists() and not path.exists():                      # stopped between the two lines
            old.rename(path)
        shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)


def _save_gif(part, frames, how):
    """One palette for the whole clip, chosen from all its frames, so that nothing flickers that does not move."""
    small = frames[:, ::max(1, frames.shape[1] // 128), ::max(1, frames.shape[2] // 128)]
    every = Image.fromarray(np.ascontiguousarray(small.reshape(-1, *small.shape[2:])))         # one below the other
    palette = every.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE)
    first, *rest = (Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    first.save(part, append_images=rest, **how)


def _save_mp4(part, spool, shape, fps):
    _, h, w, _ = shape
    command = ["ffmpeg", "-y", "-loglevel", "error",
               "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{w}x{h}", "-r", str(fps), "-i", "-",
               "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p", str(part)]     # it takes even sizes only
    spool.seek(0)
    done = subprocess.run(command, stdin=spool, capture_output=True)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(f"ffmpeg failed: {said[-1] if said else f'exit code {done.returncode}'}")


def _spooled(frames, spool):
    """Writes frames, each uint8 [3, H, W], to an open file, one at a time: uint8 [n, H, W, 3], in the file."""
    n, shape = 0, None
    for frame in frames:
        if frame.dtype != torch.uint8 or frame.ndim != 3 or len(frame) != 3 or (shape or frame.shape) != frame.shape:
            raise ValueError(f"frames of a video are uint8 [3, H, W], all alike, not {frame.dtype} {list(frame.shape)}")
        shape = frame.shape
        spool.write(frame.cpu().permute(1, 2, 0).contiguous().numpy().tobytes())
        n += 1
    if not n or 0 in shape:
        raise ValueError("a video has a frame at least, and a frame a pixel")
    spool.flush()
    return np.memmap(spool, np.uint8, "r", shape=(n, *shape[1:], 3))


def write_video(frames, path, fps=2.0):
    """Write uint8 [3, n, H, W], or an iterator of n frames [3, H, W], to path, in the format of its ending (ENDINGS),
    looping forever; returns path.

    Frames wait on disk, in a file without a name, so that no two need be in memory; the file at `path` is written
    beside its place and renamed, so it never holds half a video. (In a GIF or WebP, frames that do not differ are
    stored as one that lasts longer; Pillow holds the pictures of GIF, WebP and APNG in memory while it saves them.)
    """
    path = Path(path)
    check_output(path)
    if torch.is_tensor(frames):
        if frames.ndim != 4:
            raise ValueError(f"a video is uint8 [3, n, H, W], not {frames.dtype} {list(frames.shape)}")
        frames = frames.unbind(1)
    if not fps > 0:
        raise ValueError(f"{fps} frames a second: want more than 0")
    with tempfile.TemporaryFile(dir=path.parent) as spool, beside(path) as part:
        frames = _spooled(frames, spool)                                           # [n, H, W, 3]
        ends = [round(100 * i / fps) * 10 for i in range(len(frames) + 1)]         # GIF counts hundredths of a second;
        how = dict(save_all=True, loop=0, duration=[b - a for a, b in zip(ends, ends[1:])])   # rounding must not add up
        pictures, kind = (Image.fromarray(frame) for frame in frames), path.suffix.lower()
        if kind == ".gif":
            _save_gif(part, frames, how)
        elif kind == ".webp":
            next(pictures).save(part, append_images=list(pictures), quality=92, **how)
        elif kind == ".apng":
            next(pictures).save(part, "PNG", append_images=list(pictures), **how)
        elif kind == ".png":
            contact_sheet(frames).save(part)
        elif kind == ".mp4":
            _save_mp4(part, spool, frames.shape, fps)
        else:
            part.mkdir()
            for i, picture in enumerate(pictures):
                picture.save(part / f"frame_{i:03d}.png")
    return path


def contact_sheet(*clips, captions=(), gap=4):
    """A picture with one clip [n, H, W, 3] a row, its frames side by side, and its caption below."""
    n, h, w = max(len(clip) for clip in clips), *clips[0].shape[1:3]
    font = ImageFont.load_default(size=max(10, h // 9))
    line = 2 * (h // 9) if captions else 0
    sheet = Image.new("RGB", (n * (w + gap) + gap, len(clips) * (h + line + gap) + gap), "white")
    for row, clip in enumerate(clips):
        top = row * (h + line + gap) + gap
        for column, frame in enumerate(clip):
            sheet.paste(Image.fromarray(frame), (column * (w + gap) + gap, top))
        if captions:
            ImageDraw.Draw(sheet).text((gap, top + h), captions[row], (60, 60, 70), font)
    return sheet
