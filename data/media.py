"""Picture and video files, in and out.

in       a picture of any size and mode  -> [3, H, W] in [-1, 1]                                        (read_picture)
out      frames, each uint8 [3, H, W]    -> GIF, WebP, APNG, PNG contact sheet, folder of PNGs, mp4     (write_video)
defines  from_pixels, to_pixels, read_picture, centre, ENDINGS, check_output, write_video, contact_sheet, video_rows,
         write_sheet
our reading  Everything: the paper does not speak of files. Every file is written atomically.
"""

import os
import re
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from sd21.files import atomic_write

ENDINGS = {".gif": ".gif", ".webp": ".webp", ".apng": ".apng", ".png": ".png (a contact sheet)", ".mp4": ".mp4",
           "": "or no ending for a folder of frames"}               # ending -> its name in a message


def from_pixels(pixels):
    """uint8 0..255 -> float32 in [-1, 1], any shape."""
    return pixels.float() / 127.5 - 1


def to_pixels(x):
    """[-1, 1] -> uint8, rounded to the nearest; values outside [-1, 1] are clamped."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _to_rgb(image):
    """A Pillow picture of any mode -> RGB. Transparent pixels become white; 16 bits are scaled, not clipped."""
    if image.mode.startswith("I") or image.mode == "F":             # integers of 16 or 32 bits, or floats
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        whites = (1, 255) if image.mode == "F" else (65535,)        # the usual values of white
        white = min((white for white in whites if white >= values.max()), default=values.max())
        black = min(values.min(), 0)
        image = Image.fromarray(((values - black) / (white - black) * 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def read_picture(path, height, width):
    """Reads a picture: ([3, height, width] in [-1, 1], one line on what was changed). Takes an animation's first frame.

    Raises FileNotFoundError or ValueError with a text of one line.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such picture")
    if not path.is_file():
        raise ValueError(f"{path}: not a picture file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                         # large pictures only warn, huge ones raise
            with Image.open(path) as image:
                image.load()
                notes = [f"{path.name}: {image.width}x{image.height} {image.mode}"]
                upright = ImageOps.exif_transpose(image)
                if image.getexif().get(0x0112, 1) != 1:             # the EXIF tag "Orientation"; 1 is upright
                    notes.append("turned upright")
                if upright.has_transparency_data:
                    notes.append("laid on white")
                picture, more_notes = centre(upright, height, width)
    except Exception as error:                                      # decoders raise all kinds of errors on broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: cannot be read as a picture ({reason}); a PNG or JPEG can") from None
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return from_pixels(pixels).contiguous(), ", ".join(notes + more_notes)


def centre(image, height, width):
    """Cuts out the largest centred box of the wanted shape and resizes it: (RGB picture, notes on what was done)."""
    picture, notes = _to_rgb(image), []
    w, h = picture.size
    scale = min(w / width, h / height)
    box_w, box_h = max(1, round(scale * width)), max(1, round(scale * height))
    if (box_w, box_h) != (w, h):
        notes.append(f"cropped to the centre {box_w}x{box_h}")
    if (box_w, box_h) != (width, height):
        notes.append(f"resized to {width}x{height}")
    left, top = (w - box_w) // 2, (h - box_h) // 2
    picture = picture.crop((left, top, left + box_w, top + box_h))
    return picture.resize((width, height), Image.Resampling.LANCZOS), notes


def check_output(path, endings=ENDINGS):
    """Raises now the ValueError or OSError that write_video(path) would raise after the long computation.

    endings: the formats to choose from, if not all.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in endings:
        choices = ", ".join(ENDINGS[ending] for ending in endings)
        raise ValueError(f"{path}: unknown ending {kind!r}; choose {choices}")
    if kind == ".mp4" and not shutil.which("ffmpeg"):
        raise ValueError(f"{path}: mp4 needs the program ffmpeg, which is not on the PATH; .gif and .webp do not")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; create it first")
    if path.is_dir() and kind:
        raise ValueError(f"{path}: is a folder, not a file")
    if path.is_dir() and not all(re.fullmatch(r"frame_\d+\.png", name) for name in os.listdir(path)):
        raise ValueError(f"{path}: this folder holds other files than frames; name a new one")
    if path.is_file() and not kind:
        raise ValueError(f"{path}: is a file; for a folder of frames name a new folder")
    try:                                                            # only a trial shows all reasons why it may fail
        tempfile.TemporaryDirectory(prefix=f".{path.name}", dir=path.parent).cleanup()
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror})") from None


def write_video(frames, path, fps=2.0):
    """Writes uint8 [3, n, H, W], or an iterator of n frames [3, H, W], to path; returns path.

    The ending of path chooses the format (ENDINGS). GIF, WebP and APNG loop forever. Frames wait in a temporary file,
    so this function holds one in memory at a time; but Pillow holds all pictures of a GIF, WebP or APNG while it saves
    them. GIF and WebP store equal neighbours as one frame that lasts longer. Raises ValueError or OSError.
    """
    path = Path(path)
    check_output(path)
    if torch.is_tensor(frames):
        if frames.ndim != 4:
            raise ValueError(f"a video is uint8 [3, n, H, W], not {frames.dtype} {list(frames.shape)}")
        frames = frames.unbind(1)
    if not fps > 0:
        raise ValueError(f"{fps} frames a second: want more than 0")
    with tempfile.TemporaryFile(dir=path.parent) as spool, atomic_write(path) as part:
        frames = _spool(frames, spool)                                       # [n, H, W, 3]
        # GIF counts hundredths of a second. We round the times, not the durations: errors must not add up.
        times = [round(100 * i / fps) * 10 for i in range(len(frames) + 1)]  # milliseconds
        options = {"save_all": True, "loop": 0, "duration": [b - a for a, b in zip(times, times[1:])]}
        pictures, kind = (Image.fromarray(frame) for frame in frames), path.suffix.lower()
        if kind == ".gif":
            _save_gif(part, frames, options)
        elif kind == ".webp":                                                # above 92 files grow, but hardly improve
            next(pictures).save(part, append_images=list(pictures), quality=92, **options)
        elif kind == ".apng":
            next(pictures).save(part, "PNG", append_images=list(pictures), **options)
        elif kind == ".png":
            contact_sheet(frames).save(part)
        elif kind == ".mp4":
            _save_mp4(part, spool, frames.shape, fps)
        else:
            part.mkdir()
            for i, picture in enumerate(pictures):
                picture.save(part / f"frame_{i:03d}.png")
    return path


def _spool(frames, spool):
    """Writes frames, each uint8 [3, H, W], to an open file one at a time: uint8 [n, H, W, 3], mapped from the file."""
    n, shape = 0, None
    for frame in frames:
        if frame.dtype != torch.uint8 or frame.ndim != 3 or len(frame) != 3 or (shape or frame.shape) != frame.shape:
            raise ValueError(f"frames of a video are uint8 [3, H, W], all alike, not {frame.dtype} {list(frame.shape)}")
        shape = frame.shape
        spool.write(frame.cpu().permute(1, 2, 0).contiguous().numpy().tobytes())
        n += 1
    if not n or 0 in shape:
        raise ValueError("a video needs at least one frame, and a frame at least one pixel")
    spool.flush()
    return np.memmap(spool, np.uint8, "r", shape=(n, *shape[1:], 3))


def _save_gif(part, frames, options):
    """Saves with one palette, made from all frames. With one a frame, parts that do not move would flicker."""
    step_h, step_w = (max(1, size // 128) for size in frames.shape[1:3])     # k-means on all pixels takes half a minute
    small = frames[:, ::step_h, ::step_w]
    column = Image.fromarray(np.ascontiguousarray(small.reshape(-1, *small.shape[2:])))      # [(n h), w, 3]
    palette = column.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE)
    first, *rest = (Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    first.save(part, append_images=rest, **options)


def _save_mp4(part, spool, shape, fps):
    _, h, w, _ = shape
    command = ["ffmpeg", "-y", "-loglevel", "error",
               "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{w}x{h}", "-r", str(fps), "-i", "-",
               "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p", str(part)]     # yuv420p needs even sizes
    spool.seek(0)
    done = subprocess.run(command, stdin=spool, capture_output=True)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(f"ffmpeg failed: {lines[-1] if lines else f'exit code {done.returncode}'}")


def contact_sheet(*clips, captions=(), gap=4):
    """A picture with one clip uint8 [n, H, W, 3] a row: its frames side by side, its caption below."""
    n, h, w = max(len(clip) for clip in clips), *clips[0].shape[1:3]
    font = ImageFont.load_default(size=max(10, h // 9))
    row_height = h + (2 * (h // 9) if captions else 0) + gap
    sheet = Image.new("RGB", (n * (w + gap) + gap, len(clips) * row_height + gap), "white")
    for row, clip in enumerate(clips):
        top = row * row_height + gap
        for column, frame in enumerate(clip):
            sheet.paste(Image.fromarray(frame), (column * (w + gap) + gap, top))
        if captions:
            ImageDraw.Draw(sheet).text((gap, top + h), captions[row], (60, 60, 70), font)
    return sheet


def video_rows(*videos):
    """A contact sheet of videos [b, 3, n, H, W] in [-1, 1]: the first clip of each, then the second of each, ..."""
    pixels = [to_pixels(video).permute(0, 2, 3, 4, 1).cpu().numpy() for video in videos]     # [b, n, H, W, 3]
    return contact_sheet(*[clip for clips in zip(*pixels, strict=True) for clip in clips])


def write_sheet(dataset, path):
    """Draws a contact sheet of all clips of a ToySet or FolderSet, with captions."""
    items = [dataset[i] for i in range(len(dataset))]
    clips = [item["frames"].permute(1, 2, 3, 0).numpy() for item in items]
    with atomic_write(path) as part:
        contact_sheet(*clips, captions=[item["caption"] for item in items]).save(part)
