"""Picture and video files, in and out. Every file is written atomically. The paper does not speak of files.

in       a picture of any size and mode  -> [3, H, W] in [-1, 1]                                        (read_picture)
out      frames, each uint8 [3, H, W]    -> GIF, WebP, APNG, PNG contact sheet, folder of PNGs, mp4     (write_video)
"""
import os
import shutil
import subprocess
import tempfile
import warnings
from contextlib import suppress
from io import BytesIO
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageDraw, ImageOps, PngImagePlugin

from sd21.command import fps, natural, one_line, positive_int, run
from sd21.files import atomic_write

ENDINGS = {".gif": ".gif", ".webp": ".webp", ".apng": ".apng", ".png": ".png (a contact sheet)", ".mp4": ".mp4",
           "": "or no ending for a folder of frames"}               # ending -> its name in a message
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")      # for others, Pillow may run a program (EPS: gs)
MARK = PngImagePlugin.PngInfo()                                     # in the PNGs that we write: these may be replaced
MARK.add_text("Software", "MicroCinema")


def from_pixels(pixels):
    """uint8 0..255 -> float32 in [-1, 1], any shape."""
    return pixels.float() / 127.5 - 1


def to_pixels(x):
    """[-1, 1] -> uint8, rounded to the nearest; values outside are clamped. ValueError for NaN and infinity."""
    if not x.isfinite().all():                                      # as uint8, NaN would be black
        raise ValueError("a picture has numbers that are not finite; float32 instead of float16 may help")
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def as_clips(videos):
    """Videos [b, 3, n, H, W] in [-1, 1] -> uint8 [b, n, H, W, 3]."""
    return to_pixels(videos).permute(0, 2, 3, 4, 1).cpu().numpy()


def open_picture(path):
    """Opens a picture or an animation: a Pillow image, not decoded yet. The only place that does so."""
    if not Path(path).is_file():                                    # a pipe or a device may never end
        raise ValueError("there is no such file")
    return Image.open(path, formats=FORMATS)


def read_picture(path, height, width):
    """Reads a picture: ([3, height, width] in [-1, 1], one line on what was changed). Takes an animation's first frame.
    Raises ValueError, in one line."""
    path = Path(path)
    try:                                                            # large pictures only warn, huge ones raise
        with warnings.catch_warnings(action="ignore"), open_picture(path) as image:
            image.load()
            what = f"{one_line(path.name)}: {image.width}x{image.height} {image.mode}"
            picture, notes = centre(image, height, width)
    except Exception as error:                                      # decoders raise all kinds of errors on broken files
        raise ValueError(f"{path}: cannot be read as a picture ({one_line(error)}); a PNG or JPEG can") from None
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return from_pixels(pixels).contiguous(), ", ".join([what, *notes])


def centre(image, height, width):
    """The largest centred box, resized: (RGB picture, notes). Any mode: transparent turns white, 16 bits are scaled.
    Upright and in sRGB, if the picture has an EXIF orientation or a colour profile."""
    notes = ["turned upright"] if image.getexif().get(0x0112, 1) != 1 else []        # the tag "Orientation"
    image = ImageOps.exif_transpose(image)
    with suppress(KeyError, OSError, ImageCms.PyCMSError):          # browsers too ignore a profile that does not fit
        profile = ImageCms.ImageCmsProfile(BytesIO(image.info["icc_profile"]))
        if "sRGB" not in ImageCms.getProfileDescription(profile):
            mode = "RGBA" if image.has_transparency_data else "RGB"
            source = image.convert(mode) if image.mode == "P" or mode == "RGBA" else image
            image = ImageCms.profileToProfile(source, profile, ImageCms.createProfile("sRGB"), outputMode=mode)
    if image.mode.startswith("I") or image.mode == "F":             # integers of 16 or 32 bits, or floats
        values = np.asarray(image)
        whites = (1, 255) if image.mode == "F" else (65535,)        # the usual values of white
        low, high = float(np.nan_to_num(np.nanmin(values))), float(np.nan_to_num(np.nanmax(values)))
        white, black = min((white for white in whites if white >= high), default=high), min(low, 0)
        scaled = np.empty(values.shape, np.uint8)
        for row, line in zip(scaled, values):                       # all rows at once would take 30 bytes a pixel
            row[:] = ((np.nan_to_num(line.astype(np.float64)) - black) / (white - black) * 255).round()
        image = Image.fromarray(scaled)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        notes.append("laid on white")
    w, h = image.size
    scale = min(w / width, h / height)
    box_w, box_h = max(1, round(scale * width)), max(1, round(scale * height))
    if (box_w, box_h) != (w, h):
        notes.append(f"cropped to the centre {box_w}x{box_h}")
    if (box_w, box_h) != (width, height):
        notes.append(f"resized to {width}x{height}")
    left, top = (w - box_w) // 2, (h - box_h) // 2
    picture = image.crop((left, top, left + box_w, top + box_h)).convert("RGB")
    return picture.resize((width, height), Image.Resampling.LANCZOS), notes


def is_ours(path):
    """Whether this program wrote a file: a PNG with our MARK, or metadata of data/filter.py."""
    with suppress(Exception), open_picture(path) as image:          # see read_picture
        return image.info.get("Software") == "MicroCinema"
    return path.suffix == ".jsonl" and all(b'"motion": ' in row for row in path.read_bytes().splitlines())


def check_output(path, endings=ENDINGS, inputs=()):
    """Raises now the ValueError or OSError that write_video(path) would raise after the long computation. Also if the
    output would replace one of `inputs`, which are paths or None, or in a folder of them a file that is not ours."""
    path = Path(path)
    kind, where = path.suffix.lower(), path.resolve()
    if kind not in endings:
        raise ValueError(f"{path}: unknown ending {kind!r}; choose {', '.join(ENDINGS[end] for end in endings)}")
    for item in map(Path, filter(None, inputs)):
        if where.exists() and any(where.samefile(it) for it in (item, *item.resolve().parents) if it.exists()):
            raise ValueError(f"{path}: would replace {item}, which this command reads; name another output")
        if item.is_dir() and item.resolve() in where.parents and path.is_file() and not is_ours(path):
            raise ValueError(f"{path}: is a file that this program did not write; name another output")
    if kind == ".mp4" and not shutil.which("ffmpeg"):
        raise ValueError(f"{path}: mp4 needs the program ffmpeg, which is not on the PATH; .gif and .webp do not")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; create it first")
    if path.exists() and not (path.is_file() if kind else path.is_dir()):
        raise ValueError(f"{path}: is {'a folder' if kind else 'a file'} or a device; name a new one")
    if path.is_dir() and not all(file.match("frame_*.png") and is_ours(file) for file in path.iterdir()):
        raise ValueError(f"{path}: this folder holds other files than frames of this program; name a new one")
    try:                                                            # only a trial shows all reasons why it may fail
        tempfile.TemporaryDirectory(prefix=f".{path.name}", dir=path.parent).cleanup()
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror})") from None


def write_video(frames, path, fps=2.0):
    """Writes uint8 [3, n, H, W], or an iterator of n frames [3, H, W], in the format of path's ending; returns path.
    GIF and WebP store equal neighbours as one long frame. Raises ValueError or OSError."""
    path = Path(path)
    check_output(path)
    if not fps > 0:
        raise ValueError(f"{fps} frames a second: want more than 0")
    with tempfile.TemporaryFile(dir=path.parent) as spool, atomic_write(path) as part:           # frames wait on disk
        shape = None
        for frame in frames.unbind(1) if torch.is_tensor(frames) else frames:
            shape = shape or frame.shape
            if frame.dtype != torch.uint8 or frame.ndim != 3 or len(frame) != 3 or frame.shape != shape:
                raise ValueError(f"frames of a video are uint8 [3, H, W], all alike, not {frame.dtype} "
                                 f"{list(frame.shape)}")
            spool.write(frame.cpu().permute(1, 2, 0).numpy().tobytes())
        if not (shape and shape.numel()):
            raise ValueError("a video needs at least one frame, and a frame at least one pixel")
        spool.flush()
        (_, h, w), kind = shape, path.suffix.lower()
        frames = np.memmap(spool, np.uint8, "r").reshape(-1, h, w, 3)
        pictures = (Image.fromarray(frame) for frame in frames)
        if kind in (".gif", ".webp", ".apng"):
            # GIF counts hundredths of a second. We round the times, not the durations: errors must not add up.
            times, kept = [round(100 * i / fps) * 10 for i in range(len(frames) + 1)], [0]       # milliseconds
            for i, time in enumerate(times):                # browsers show a frame of 10 ms for 100: drop some instead
                kept += [i] if min(time - times[kept[-1]], times[-1] - time) >= 20 else []
            durations = np.diff([*(times[i] for i in kept), max(20, times[-1])]).tolist()
            pictures = (Image.fromarray(frames[i]) for i in kept)
            if kind == ".gif":           # one palette for all frames; with one a frame, parts that do not move flicker
                # We show it about 128 x 128 pixels of each: k-means on all pixels takes half a minute.
                column = Image.fromarray(np.concatenate(frames[:, ::max(1, h // 128), ::max(1, w // 128)]))
                palette = column.quantize(256, Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE)
                pictures = (picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures)
            next(pictures).save(part, save_all=True, append_images=list(pictures), duration=durations, loop=0,
                                quality=92)                 # of a WebP; above 92 files grow, but hardly improve
        elif kind == ".png":
            contact_sheet(frames).save(part, pnginfo=MARK)
        elif kind == ".mp4":
            command = ["ffmpeg", "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{w}x{h}",
                       "-r", str(fps), "-i", "-", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2",        # yuv420p: even sizes
                       "-pix_fmt", "yuv420p", str(part.absolute())]   # so that "a:" is no protocol
            spool.seek(0)
            done = subprocess.run(command, stdin=spool, capture_output=True)
            if done.returncode:
                log = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
                raise OSError(f"ffmpeg failed: {log.splitlines()[-1]}")
        else:
            part.mkdir()
            for i, picture in enumerate(pictures):
                picture.save(part / f"frame_{i:03d}.png", pnginfo=MARK)
    return path


def contact_sheet(*clips, captions=(), gap=4):
    """A picture with one clip uint8 [n, H, W, 3] a row: its frames side by side, its caption below."""
    n, h, w = max(len(clip) for clip in clips), *clips[0].shape[1:3]
    row_height = h + (2 * (h // 9) if captions else 0) + gap
    sheet = Image.new("RGB", (n * (w + gap) + gap, len(clips) * row_height + gap), "white")
    for row, (clip, caption) in enumerate(zip_longest(clips, captions, fillvalue="")):
        top = row * row_height + gap
        for column, frame in enumerate(clip):
            sheet.paste(Image.fromarray(frame), (column * (w + gap) + gap, top))
        ImageDraw.Draw(sheet).text((gap, top + h), caption, (60, 60, 70), font_size=max(10, h // 9))
    return sheet


def video_rows(*videos):
    """A contact sheet of videos [b, 3, n, H, W] in [-1, 1]: the first clip of each, then the second of each, ..."""
    return contact_sheet(*[clip for clips in zip(*map(as_clips, videos), strict=True) for clip in clips])


def sheet_command(dataset_class, parser, argv, rows, out):
    """A command that draws clips of a ToySet or FolderSet. All its options but --out are arguments of that class."""
    add = parser.add_argument
    add("--out", type=Path, default=out, help=f"the contact sheet, a .png (default {out})")
    add(rows, dest="count", type=positive_int, default=12, help="how many clips, one a row (default 12)")
    add("--frames", type=positive_int, default=9, help="frames of each, n (default 9)")
    add("--fps", type=fps, default=2.0, help="frames a second (default 2, so that 9 frames are 4 s)")
    add("--size", type=positive_int, default=128, help="pixels a side of a frame (default 128)")
    add("--seed", type=natural, default=0, help="seed of the set (default 0)")

    def draw(out, **options):
        folder = options.get("folder", Path())                      # or a metadata file
        check_output(out, [".png"], [folder, folder.is_file() and folder.parent] if "folder" in options else ())
        dataset = dataset_class(**options)
        clips, captions = zip(*[(item["frames"].permute(1, 2, 3, 0).numpy(), item["caption"]) for item in dataset])
        with atomic_write(out) as part:
            contact_sheet(*clips, captions=captions).save(part, pnginfo=MARK)
        print(dataset.summary())
        print(f"{out}: {len(dataset)} windows of {dataset.frames} frames at {options['fps']:g} fps")
        for reason, names in dataset.skipped.items():
            print(f"skipped, {reason}: {', '.join(names)}")
    return run(parser.prog, lambda: draw(**vars(parser.parse_args(argv))))
