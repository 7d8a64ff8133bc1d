"""Picture and video files, in and out. Every file is written atomically. The paper does not speak of files.

in       a picture of any size and mode  -> [3, H, W] in [-1, 1]                                        (read_picture)
out      frames, each uint8 [3, H, W]    -> GIF, WebP, APNG, PNG contact sheet, folder of PNGs, mp4     (write_video)
"""
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from io import BytesIO
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageDraw, ImageOps

from sd21.command import ArgumentParser, fps, natural, one_line, positive_int, run, size
from sd21.files import atomic_write

ENDINGS = (".gif", ".webp", ".apng", ".png", ".mp4", "")            # .png: a contact sheet; none: a folder of frames
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")      # for others, Pillow may run a program (EPS: gs)
warnings.filterwarnings("ignore", module="PIL")                     # of odd pictures: our errors are one line
MARK = "written by MicroCinema"     # in the metadata of all files that we write: the next run may replace only these


def signed(words=()):
    """Options of Pillow's save() that put MARK into a file, and the words of the command that made it, as JSON: all of
    them ASCII, as GIF's comments and EXIF want it."""
    exif = Image.Exif()
    exif[0x0131] = f"{MARK} {json.dumps([*words])}"                 # the tag "Software": for PNG and WebP
    return {"comment": exif[0x0131], "exif": exif}


SIGNED = signed()


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
    """Opens a picture, or an animation at its first frame: a Pillow image, not decoded yet. Nothing else opens one."""
    if not Path(path).is_file():                                    # a pipe or a device may never end
        raise ValueError("there is no such file")
    image = Image.open(path, formats=FORMATS)
    image.seek(1 if image.info.get("default_image") else 0)         # browsers hide the default image of an APNG
    return image


def read_picture(path, height, width):
    """Reads a picture: ([3, height, width] in [-1, 1], one line on what was changed). Takes an animation's first frame.
    Raises ValueError, in one line."""
    path = Path(path)
    try:                                                            # large pictures only warn, huge ones raise
        with open_picture(path) as image:
            image.load()
            what = f"{one_line(path.name)}: {image.width}x{image.height} {image.mode}"
            picture, notes = centre(image, height, width)
    except Exception as error:                                      # decoders raise all kinds of errors on broken files
        raise ValueError(f"{path}: cannot be read as a picture ({one_line(error)}); a PNG or JPEG can") from None
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return from_pixels(pixels).contiguous(), ", ".join([what, *notes])


def centre(image, height, width):
    """The largest centred box, resized: (RGB picture, notes). Any mode: transparent turns white, 16 bits are scaled.
    Upright and in sRGB, if the picture has an EXIF orientation, a colour profile or a gamma."""
    notes = ["turned upright"] if image.getexif().get(0x0112, 1) != 1 else []        # the tag "Orientation"
    image = ImageOps.exif_transpose(image)
    info, mode = image.info, "RGBA" if image.has_transparency_data else "RGB"
    with suppress(KeyError, OSError, ImageCms.PyCMSError):          # browsers too ignore a profile that does not fit
        profile = ImageCms.ImageCmsProfile(BytesIO(info["icc_profile"]))
        if "sRGB" not in ImageCms.getProfileDescription(profile):
            source = image.convert(mode) if image.mode == "P" or mode == "RGBA" else image
            image = ImageCms.profileToProfile(source, profile, ImageCms.createProfile("sRGB"), outputMode=mode)
    if image.mode.startswith("I") or image.mode == "F":             # integers of 16 or 32 bits, or floats
        values = np.nan_to_num(np.asarray(image))
        whites = (1, 255) if image.mode == "F" else (65535,)        # the usual values of white
        black, white = min(values.min(), 0), next((white for white in whites if white >= values.max()), values.max())
        rows = [np.interp(row, (black, white), (0, 255)).round().astype(np.uint8) for row in values]
        image = Image.fromarray(np.stack(rows))                     # all rows at once would take 30 bytes a pixel
    if info.get("gamma") and not {"srgb", "icc_profile"} & info.keys():         # a PNG's: the screen's is 2.2
        levels = [round(255 * (level / 255) ** (1 / (2.2 * info["gamma"]))) for level in range(256)]
        image = image.convert(mode).point(levels * 3 + (list(range(256)) if mode == "RGBA" else []))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        notes.append("laid on white")
    scale = min(image.width / width, image.height / height)
    if image.width * height != image.height * width:
        notes.append(f"cropped to the centre {scale * width:.0f}x{scale * height:.0f}")
    if image.size != (width, height):
        notes.append(f"resized to {width}x{height}")
    return ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS), notes


def check_output(path, endings=ENDINGS, inputs=()):
    """Raises now the ValueError or OSError that write_video(path) would raise after the long computation. Also if the
    output would replace one of `inputs` (paths or None), or a file that this program did not write."""
    path = Path(path)
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path}: is a link to a file that is not there; name another output")
    kind, where = path.suffix.lower(), path.resolve()
    if kind not in endings:
        raise ValueError(f"{path}: unknown ending {kind!r}; want {', '.join(end or 'none' for end in endings)}")
    for item in map(Path, filter(None, inputs)):
        if where.exists() and any(where.samefile(it) for it in (item, *item.resolve().parents) if it.exists()):
            raise ValueError(f"{path}: would replace {item}, which this command reads; name another output")
    if kind == ".mp4" and not shutil.which("ffmpeg"):
        raise ValueError(f"{path}: mp4 needs the program ffmpeg, which is not on the PATH; .gif and .webp do not")
    if path.exists():
        if not (path.is_file() if kind else path.is_dir()):
            raise ValueError(f"{path}: is {'a folder' if kind else 'a file'} or a device; name a new one")
        for file in [path] if kind else path.iterdir():
            named = kind or file.match("frame_*.png")
            if not (named and file.is_file() and MARK.encode() in file.read_bytes()):
                raise ValueError(f"{file}: is not an output of this command; move it away or name another output")
    try:                                                            # only a trial shows all reasons why it may fail
        tempfile.TemporaryDirectory(prefix=f".{path.name}", dir=path.parent).cleanup()
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror})") from None


def command_of(path):
    """The command that made a video. Raises ValueError if the file does not tell it."""
    path = min(path.glob("*.png"), default=path) if path.is_dir() else path
    try:
        if path.suffix.lower() == ".mp4" and path.is_file():
            text = path.read_bytes().decode("latin-1")
        else:
            with open_picture(path) as image:
                comment = image.info.get("comment", b"")            # bytes in a GIF; somebody else's may be text
                comment = comment.decode("latin-1") if isinstance(comment, bytes) else ""
                text = f"{comment} {image.getexif().get(0x0131)}"
        words = json.JSONDecoder().raw_decode(text.partition(f"{MARK} ")[2])[0]
        if not (isinstance(words, list) and words and all(isinstance(word, str) for word in words)):
            raise ValueError("no command")
    except Exception:                                               # see read_picture
        raise ValueError(f"{path}: does not tell the command that made it") from None
    return one_line(shlex.join(["python", "microcinema.py", *words]))


def write_video(frames, path, fps=2.0, words=()):
    """Writes uint8 [3, n, H, W], or an iterator of n frames [3, H, W], in the format of path's ending; returns path.
    GIF and WebP store equal neighbours as one long frame. words: see `signed`. Raises ValueError or OSError."""
    path, signature = Path(path), signed(words)
    check_output(path)
    with tempfile.TemporaryFile(dir=path.parent) as spool, atomic_write(path) as part:           # frames wait on disk
        shape = None
        for frame in frames.unbind(1) if torch.is_tensor(frames) else frames:
            shape = shape or frame.shape
            if frame.dtype != torch.uint8 or frame.ndim != 3 or len(frame) != 3 or frame.shape != shape:
                raise ValueError(f"want frames uint8 [3, H, W], all alike, not {frame.dtype} {list(frame.shape)}")
            spool.write(frame.cpu().permute(1, 2, 0).numpy().tobytes())
        if not (fps > 0 and shape and shape.numel()):
            raise ValueError("a video needs more than 0 frames a second, at least one frame, and at least one pixel")
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
                                quality=92, **signature)    # of a WebP; above 92 files grow, but hardly improve
        elif kind == ".png":
            contact_sheet(frames).save(part, **signature)
        elif kind == ".mp4":
            command = ["ffmpeg", "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{w}x{h}",
                       "-r", str(fps), "-i", "-", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2",        # yuv420p: even sizes
                       "-pix_fmt", "yuv420p", "-metadata", f"comment={signature['comment']}",
                       str(part.absolute())]                          # so that "a:" is no protocol
            spool.seek(0)
            done = subprocess.run(command, stdin=spool, capture_output=True)
            if done.returncode:
                log = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
                raise OSError(f"ffmpeg failed: {log.splitlines()[-1]}")
        else:
            part.mkdir()
            for i, picture in enumerate(pictures):
                picture.save(part / f"frame_{i:03d}.png", **signature)
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
    add(rows, dest="count", type=positive_int, default=12, help="how many clips, one a row (default 12, at most 1000)")
    add("--frames", type=positive_int, default=9, help="frames of each, n (default 9)")
    add("--fps", type=fps, default=2.0, help="frames a second (default 2, so that 9 frames are 4 s)")
    add("--size", type=size, default=128, help="pixels a side of a frame, or width x height as 320x192 (default 128)")
    add("--seed", type=natural, default=0, help="seed of the set (default 0)")

    def draw(out, **options):
        if options["count"] > 1000:
            raise ValueError(f"{rows} {options['count']}: want at most 1000")
        check_output(out, [".png"])
        dataset = dataset_class(**options)
        check_output(out, [".png"], [clip.path for clip in getattr(dataset, "clips", ())])
        clips, captions = zip(*[(item["frames"].permute(1, 2, 3, 0).numpy(), item["caption"]) for item in dataset])
        with atomic_write(out) as part:
            contact_sheet(*clips, captions=captions).save(part, **SIGNED)
        print(dataset.summary())
        print(f"{out}: {len(dataset)} windows of {dataset.frames} frames at {options['fps']:g} fps")
        for reason, names in dataset.skipped.items():
            print(f"skipped, {reason}: {', '.join(names)}")
    return run(parser.prog, lambda: draw(**vars(parser.parse_args(argv))))


def main(argv=None):
    """The command: prints the command that made a video. Returns the exit code."""
    parser = ArgumentParser("python -m data.media", description="Print the command that made a video.")
    parser.add_argument("file", type=Path, help="a video, contact sheet or folder of frames")
    return run(parser.prog, lambda: print(command_of(parser.parse_args(argv).file)))


if __name__ == "__main__":
    sys.exit(main())
