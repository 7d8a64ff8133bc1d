"""Exercises on data/media.py: do pictures and videos survive their files, and do files survive a bad run?"""
import os
import shlex
import shutil
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

from data import media
from data.toyset import ToySet


# ---- pixels and pictures --------------------------------------------------------------------------------------------

def test_every_pixel_value_returns():
    """0..255 to [-1, 1] and back: is anything lost?"""
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(media.to_pixels(media.from_pixels(every)), every)      # breaks if to_pixels truncates
    assert media.from_pixels(every)[[0, 255]].tolist() == [-1, 1]


def test_values_outside_the_range_are_clamped():
    """A decoder may well return 1.3. Is that white?"""
    assert media.to_pixels(torch.tensor([1.3, -7.0, 0.0])).tolist() == [255, 0, 128]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_no_pixels(bad):
    """float16 overflows in a decoder. As uint8, NaN is black: is that refused instead?"""
    with pytest.raises(ValueError, match="not finite"):                     # breaks if only clamp() guards
        media.to_pixels(torch.tensor([0.5, bad]))


def save_in_all_modes(folder):
    """Pictures of 40 x 20 pixels, all the same grey, 51 of 255. The transparent ones are black over white."""
    grey, size = Image.new("L", (40, 20), 51), (40, 20)
    grey.save(folder / "L.png")
    grey.convert("RGB").save(folder / "RGB.png")
    grey.convert("CMYK").save(folder / "CMYK.tif")
    grey.convert("RGB").quantize(4).save(folder / "P.png")
    Image.fromarray(np.full((20, 40), 51 * 257, np.uint16)).save(folder / "I16.png")
    Image.fromarray(np.full((20, 40), 51 * 257, np.int32)).save(folder / "I.tif")
    Image.fromarray(np.full((20, 40), 0.2, np.float32)).save(folder / "F.tif")
    grey.convert("RGB").save(folder / "animated.gif", save_all=True, append_images=[Image.new("RGB", size, "white")])
    Image.new("RGBA", size, (0, 0, 0, 204)).save(folder / "RGBA.png")       # 20 % of the white shines through: 51
    Image.new("LA", size, (0, 204)).save(folder / "LA.png")


def test_a_picture_is_the_same_in_every_mode(tmp_path):
    """Grey 51 in 8 bits, 16 bits, CMYK, a palette, or as black glass on white: is it always 51 / 127.5 - 1 = -0.6?"""
    save_in_all_modes(tmp_path)
    for path in sorted(tmp_path.iterdir()):                                 # breaks if alpha is dropped, or 16 bits cut
        picture, notes = media.read_picture(path, 24, 24)
        assert picture.shape == (3, 24, 24) and (picture + 0.6).abs().max() < 0.02, path.name
        assert notes.startswith(f"{path.name}: 40x20 ") and "centre 20x20, resized to 24x24" in notes


@pytest.mark.parametrize("values, levels", [
    ([-1, 0, 1, np.nan], [0, 128, 255, 128]), ([0, 51, 255], [0, 51, 255]), ([0, 100, 500], [0, 51, 255])])
def test_floats_run_from_0_or_less_to_the_usual_white_or_more(values, levels, tmp_path):
    """A picture of floats with negative values and NaN, which counts as 0; up to 255; and up to 500."""
    Image.fromarray(np.float32([[value] * 8 for value in values])).save(tmp_path / "f.tif")
    picture, _ = media.read_picture(tmp_path / "f.tif", len(values), 8)
    assert media.to_pixels(picture)[0, :, 4].tolist() == levels


def test_a_picture_of_the_right_size_has_no_notes(tmp_path):
    """8 x 8 pixels are asked for and given; then twice as many."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert media.read_picture(tmp_path / "a.png", 8, 8)[1] == "a.png: 8x8 RGB"
    assert media.read_picture(tmp_path / "a.png", 16, 16)[1] == "a.png: 8x8 RGB, resized to 16x16"


def test_palette_transparency_becomes_white(tmp_path):
    """A palette picture in which every pixel is the transparent entry. Is it white?"""
    Image.new("P", (8, 8), 0).save(tmp_path / "p.png", transparency=0)
    assert media.read_picture(tmp_path / "p.png", 8, 8)[0].min() == 1        # breaks without has_transparency_data


@pytest.fixture
def stripes():
    """Three vertical stripes, 10 pixels each: red, green, blue."""
    picture = Image.new("RGB", (30, 10))
    for i, colour in enumerate(("red", "lime", "blue")):
        picture.paste(colour, (10 * i, 0, 10 * i + 10, 10))
    return picture


def test_the_centre_is_kept(stripes, tmp_path):
    """A square crop of three stripes: is it the green one?"""
    stripes.save(tmp_path / "stripes.png")
    picture, _ = media.read_picture(tmp_path / "stripes.png", 8, 8)
    assert (picture.mean((1, 2)) - torch.tensor([-1.0, 1, -1])).abs().max() < 0.02      # breaks if cropped at the left


def test_a_photo_is_turned_upright(stripes, tmp_path):
    """The EXIF tag says that the camera was held sideways. Is the left stripe, red, now at the top?"""
    exif = Image.Exif()
    exif[0x0112] = 6                                                        # "turn me a quarter clockwise"
    stripes.resize((96, 32), Image.Resampling.NEAREST).save(tmp_path / "photo.jpg", exif=exif, quality=100)
    picture, notes = media.read_picture(tmp_path / "photo.jpg", 96, 32)
    assert picture[0, :28].mean() > 0.9 and picture[2, 68:].mean() > 0.9 and "turned upright" in notes


def adobe_rgb():
    """An ICC profile with the primaries of Adobe RGB and gamma 2.2, built by hand."""
    number = lambda x: struct.pack(">i", round(x * 65536))
    xyz = lambda *values: b"XYZ \0\0\0\0" + b"".join(map(number, values))
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0"
    tags = [(b"desc", b"desc\0\0\0\0" + struct.pack(">I", 5) + b"wide\0" + b"\0" * 79), (b"wtpt", xyz(.9642, 1, .8249)),
            (b"rXYZ", xyz(.60974, .31111, .01947)), (b"gXYZ", xyz(.20528, .62567, .06087)),
            (b"bXYZ", xyz(.14919, .06322, .74457)), (b"rTRC", curve), (b"gTRC", curve), (b"bTRC", curve)]
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags:
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(data), len(content))
        data += content
    return (struct.pack(">I", 128 + len(table + data)) + b"\0" * 4 + b"\2\x10\0\0mntrRGB XYZ " + b"\0" * 12 + b"acsp"
            + b"\0" * 28 + number(.9642) + number(1) + number(.8249) + b"\0" * 48 + table + data)


@pytest.mark.parametrize("mode, alpha", [("RGB", ()), ("RGBA", (255,)), ("P", ())])
def test_a_colour_profile_is_followed(mode, alpha, tmp_path):
    """Adobe RGB's (90, 200, 60), by its matrix: in sRGB (0, 201, 37). Do we read that?"""
    picture = Image.new("RGB", (8, 8), (90, 200, 60)).quantize(4) if mode == "P" else Image.new(
        mode, (8, 8), (90, 200, 60, *alpha))
    picture.save(tmp_path / "p.png", icc_profile=adobe_rgb())
    read = media.to_pixels(media.read_picture(tmp_path / "p.png", 8, 8)[0])
    assert (read[:, 4, 4].int() - torch.tensor([0, 201, 37])).abs().max() <= 1      # breaks if the profile is ignored


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16"])
def test_the_gamma_of_a_png_is_followed(mode, tmp_path):
    """Light 0.2, stored with gamma 1: the screen's gamma of 2.2 shows it as 255 * 0.2 ** (1 / 2.2) = 123."""
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", struct.pack(">I", 100_000))
    picture = Image.new("RGB", (8, 8), (51, 51, 51))
    picture = Image.new("I;16", (8, 8), 51 * 257) if mode == "I;16" else picture.convert(mode)
    picture.save(tmp_path / "p.png", pnginfo=info)
    picture, notes = media.read_picture(tmp_path / "p.png", 8, 8)
    assert media.to_pixels(picture).unique().tolist() == [123] and ("white" in notes) == (mode == "RGBA")


def test_opacity_has_no_gamma(tmp_path):
    """Black glass, half opaque, with gamma 1. Behind it half of the white is seen."""
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", struct.pack(">I", 100_000))
    Image.new("RGBA", (8, 8), (0, 0, 0, 128)).save(tmp_path / "p.png", pnginfo=info)
    assert media.to_pixels(media.read_picture(tmp_path / "p.png", 8, 8)[0]).unique().tolist() == [127]


@pytest.mark.parametrize("chunk", ["sRGB", "iCCP"])
def test_a_profile_outranks_gamma(chunk, tmp_path):
    """Gamma 1 beside the chunk sRGB, or beside a profile that is sRGB's. Is the grey as it is stored?"""
    info, srgb = PngImagePlugin.PngInfo(), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    info.add(b"gAMA", struct.pack(">I", 100_000))
    if chunk == "sRGB":
        info.add(b"sRGB", b"\0")
    profile = srgb.tobytes() if chunk == "iCCP" else None
    Image.new("RGB", (8, 8), "#808080").save(tmp_path / "p.png", pnginfo=info, icc_profile=profile)
    assert media.to_pixels(media.read_picture(tmp_path / "p.png", 8, 8)[0]).unique().tolist() == [128]


def test_a_profile_that_does_not_fit_is_ignored(tmp_path):
    """Bytes that are no profile, and one for RGB in a grey picture. Is the picture read as it is?"""
    for name, mode, profile in (("a.png", "RGB", b"no profile"), ("b.png", "L", adobe_rgb())):
        Image.new(mode, (8, 8), "#808080").save(tmp_path / name, icc_profile=profile)
        assert media.to_pixels(media.read_picture(tmp_path / name, 8, 8)[0]).unique().tolist() == [128]


def test_no_other_program_runs_for_a_picture(tmp_path, monkeypatch):
    """Pillow would call `gs` for an EPS file, whatever its ending is. Is the file refused, and gs not called?"""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        media.read_picture(tmp_path / "a.png", 8, 8)
    assert not (tmp_path / "called").exists()                               # breaks without formats=FORMATS


def test_a_pipe_is_no_picture(tmp_path):
    """A pipe that nobody writes to would never end."""
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a.png"):                          # breaks if it is opened: the test hangs
        media.read_picture(tmp_path / "a.png", 8, 8)


def test_a_bad_picture_is_one_clear_line(tmp_path):
    """A missing file, a folder, an empty file, text, half a picture, a decompression bomb: one line with its name?"""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:3000])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not a picture")
    Image.new("1", (20000, 10000)).save(tmp_path / "bomb.png")
    for name in ("cut.png", "empty.png", "text.png", "bomb.png", "missing.png", "."):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:      # breaks if only OSError is caught: the bomb
            media.read_picture(tmp_path / name, 8, 8)
        assert "\n" not in str(caught.value) and str(tmp_path / name) in str(caught.value)


# ---- videos ---------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def clip():
    return ToySet(1, size=64, seed=1)[0]["frames"]                          # [3, 9, 64, 64]


def read_back(path):
    """[n, H, W, 3], the duration of each frame in milliseconds, and the loop count, as Pillow reads them."""
    with Image.open(path) as image:
        frames, times = [], []
        for i in range(image.n_frames):
            image.seek(i)
            frames.append(np.asarray(image.convert("RGB")))
            times.append(image.info["duration"])
        return np.stack(frames).astype(float), times, image.info["loop"]


@pytest.mark.parametrize("ending, decibels", [(".gif", 36), (".webp", 34), (".apng", 100)])
def test_a_video_reads_back(clip, tmp_path, ending, decibels):
    """Nine frames at 2 fps: do they read back as nine pictures of half a second, looping, close to the originals?"""
    frames, times, loop = read_back(media.write_video(clip, tmp_path / f"a{ending}"))
    assert times == [500] * 9 and loop == 0
    error = ((frames - clip.permute(1, 2, 3, 0).numpy()) ** 2).mean()       # breaks if n and h are swapped
    assert 10 * np.log10(255**2 / max(error, 1e-9)) > decibels


def test_gif_time_does_not_drift(tmp_path):
    """GIF counts hundredths of a second, and a frame at 32 fps lasts 3.125 of them. Do 32 frames last one second?"""
    frames = (torch.arange(32) * 8).to(torch.uint8).view(1, 32, 1, 1).expand(3, 32, 8, 8)
    _, times, _ = read_back(media.write_video(frames, tmp_path / "a.gif", fps=32))
    assert sum(times) == 1000 and set(times) == {30, 40}                    # breaks if each frame is rounded alone: 960


@pytest.mark.parametrize("ending", [".gif", ".webp", ".apng"])
@pytest.mark.parametrize("fps, count", [(60, 60), (80, 80), (128, 64), (200, 70)])
def test_no_frame_is_shorter_than_browsers_show(ending, fps, count, tmp_path):
    """Browsers show frames of up to 10 ms for 100. Is each frame at least 20 ms, the whole as long as asked?"""
    frames = (torch.arange(count) * 3).to(torch.uint8).view(1, count, 1, 1).expand(3, -1, 8, 8)
    _, times, _ = read_back(media.write_video(frames, tmp_path / f"a{ending}", fps))
    assert min(times) >= 20 and abs(sum(times) - 1000 * count / fps) <= 10   # breaks if all are kept


def test_a_contact_sheet_holds_every_frame(clip, tmp_path):
    """Nine frames of 64 pixels with gaps of 4: is the last one in its place, without loss?"""
    sheet = np.asarray(Image.open(media.write_video(clip, tmp_path / "a.png")))
    assert sheet.shape == (64 + 8, 9 * 68 + 4, 3)
    assert np.array_equal(sheet[4:68, 4 + 8 * 68:68 + 8 * 68], clip[:, 8].permute(1, 2, 0).numpy())


def test_video_rows_pair_the_clips_of_two_batches():
    """Two batches of two clips, each clip of one grey. Which greys are in the four rows?"""
    truth, ours = (torch.tensor(greys).view(2, 1, 1, 1, 1).expand(2, 3, 3, 4, 5) for greys in ([-1.0, 0], [0.5, 1]))
    sheet = np.asarray(media.video_rows(truth, ours))
    assert sheet.shape == (4 * (4 + 4) + 4, 3 * (5 + 4) + 4, 3)
    assert sheet[5::8, 5, 0].tolist() == [0, 191, 128, 255]                 # breaks if all of a batch comes first


def test_a_folder_of_frames_is_lossless_and_replaced_by_the_next_run(clip, tmp_path):
    """Written twice to one folder: does it hold nine PNGs, the frames without loss, and nothing else?"""
    for _ in range(2):
        folder = media.write_video(clip, tmp_path / "frames")
    assert sorted(os.listdir(folder)) == [f"frame_{i:03d}.png" for i in range(9)]
    assert np.array_equal(np.asarray(Image.open(folder / "frame_007.png")), clip[:, 7].permute(1, 2, 0).numpy())
    assert os.listdir(tmp_path) == ["frames"]


def test_a_folder_with_other_files_is_not_replaced(clip, tmp_path):
    """Somebody's diary lies between the frames. Is it still there?"""
    folder = media.write_video(clip, tmp_path / "frames")
    (folder / "diary.txt").write_text("mine")
    with pytest.raises(ValueError, match="diary.txt: is not an output"):    # breaks if any folder is replaced
        media.write_video(clip, folder)
    assert (folder / "diary.txt").read_text() == "mine" and os.listdir(tmp_path) == ["frames"]


def test_somebody_elses_frames_are_not_replaced(clip, tmp_path):
    """A folder with one picture that is called frame_000.png, as ours would be. Is it still there?"""
    (tmp_path / "frames").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "frames" / "frame_000.png")
    with pytest.raises(ValueError, match="is not an output"):               # breaks if only names are compared
        media.write_video(clip, tmp_path / "frames")
    assert os.listdir(tmp_path / "frames") == ["frame_000.png"]


def test_a_video_among_frames_is_not_replaced(clip, tmp_path):
    """Beside the frames lies a GIF that this program wrote, too. Is it still there?"""
    folder = media.write_video(clip, tmp_path / "frames")
    media.write_video(clip, folder / "a.gif")
    with pytest.raises(ValueError, match="a.gif: is not an output"):        # breaks if the mark alone counts
        media.write_video(clip, folder)
    assert (folder / "a.gif").exists()


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.apng", "a.png", "a.mp4"])
def test_only_an_earlier_output_is_replaced(name, clip, tmp_path):
    """A file by another program is refused in one line, and stays. A file of ours is replaced by the next run."""
    if name == "a.mp4" and not shutil.which("ffmpeg"):
        pytest.skip("the program ffmpeg is not on the PATH")
    path = tmp_path / name
    before = path.write_bytes(b"GIF89a by somebody else")
    with pytest.raises(ValueError, match=f"{name}: is not an output.*move it away") as caught:
        media.check_output(path)
    assert "\n" not in str(caught.value) and path.stat().st_size == before
    path.unlink()
    for frames in (clip, clip[:, :3]):                                       # breaks if a format loses the mark
        media.write_video(frames, path)
        assert media.MARK.encode() in path.read_bytes()


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.apng", "a.png", "a.mp4", "frames"])
def test_the_command_travels_with_the_file(clip, tmp_path, name, capsys):
    """Quotes, brackets, another script, and more than the 255 bytes of a GIF's block: does the file tell all of it?"""
    if name == "a.mp4" and not shutil.which("ffmpeg"):
        pytest.skip("the program ffmpeg is not on the PATH")
    words = ["a \"red\" ] ring's \u2600 " + 50 * "word ", "--seed", "3", "--out", name]
    media.write_video(clip, tmp_path / name, 2, words)
    assert media.main([str(tmp_path / name)]) == 0
    command, script, *told = shlex.split(capsys.readouterr().out)
    assert [command, script] == ["python", "microcinema.py"] and told == words       # breaks if EXIF drops the sun


def test_a_file_without_a_command_says_so(clip, tmp_path, capsys):
    """A video that Python code wrote, and no picture at all: one line, exit code 2."""
    media.write_video(clip, tmp_path / "a.gif")
    (tmp_path / "a.txt").write_text("no picture")
    for name, message in (("a.gif", "does not tell"), ("a.txt", "a.txt")):
        assert media.main([str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_an_output_never_replaces_an_input(tmp_path):
    """--out is the picture itself, a link to it, a hard link, or the folder around it: four errors before the work?"""
    picture = tmp_path / "frames" / "frame_000.png"
    picture.parent.mkdir()
    Image.new("RGB", (8, 8)).save(picture, **media.SIGNED)
    os.symlink(picture, tmp_path / "link.png")
    os.link(picture, tmp_path / "hard.png")
    for out in (picture, tmp_path / "link.png", tmp_path / "hard.png", tmp_path / "frames"):
        media.check_output(out)
        with pytest.raises(ValueError, match="which this command reads") as caught:
            media.check_output(out, inputs=[None, picture])
        assert "\n" not in str(caught.value)


def test_a_device_is_no_output(tmp_path):
    """/dev/null looks like the name of a folder of frames. Would the video take its place?"""
    for out in ("/dev/null", tmp_path / "pipe.gif"):
        out == "/dev/null" or os.mkfifo(out)
        with pytest.raises(ValueError, match="a device"):
            media.check_output(out)


@pytest.fixture
def ffmpeg(tmp_path, monkeypatch):
    """A function that puts a shell script named ffmpeg on the PATH."""
    if os.name == "nt":
        pytest.skip("the stand-in for ffmpeg is a shell script")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def install(script):
        (tmp_path / "ffmpeg").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "ffmpeg").chmod(0o755)
    return install


def test_mp4_pipes_every_byte_to_ffmpeg(clip, tmp_path, ffmpeg):
    """This ffmpeg writes its input to its last argument. Are these all frames, in order?"""
    ffmpeg('for last; do :; done\ncat > "$last"')
    assert media.write_video(clip, tmp_path / "a.mp4").read_bytes() == clip.permute(1, 2, 3, 0).numpy().tobytes()


def test_a_failing_ffmpeg_is_an_error_with_its_last_line(clip, tmp_path, ffmpeg):
    """This ffmpeg exits with 1. Does its message arrive, and is no file left?"""
    ffmpeg("cat > /dev/null\necho no such encoder >&2\nexit 1")
    with pytest.raises(OSError, match="no such encoder"):                   # breaks if the exit code is ignored
        media.write_video(clip, tmp_path / "b.mp4")
    assert os.listdir(tmp_path) == ["ffmpeg"]


# ---- bad runs -------------------------------------------------------------------------------------------------------

def test_a_failed_write_leaves_the_old_file(clip, tmp_path, monkeypatch):
    """The disk fills up halfway. Is yesterday's video still whole, and is no fragment left?"""
    path = tmp_path / "a.gif"
    path.write_text(f"yesterday, {media.MARK}")

    def full(self, part, *args, **kwargs):
        part.write_bytes(b"half")
        raise OSError("No space left on device")
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):                          # breaks if it writes to path itself
        media.write_video(clip, path)
    assert path.read_text().startswith("yesterday") and os.listdir(tmp_path) == ["a.gif"]


def test_an_impossible_output_is_refused_beforehand(tmp_path, monkeypatch):
    """An unknown ending, a missing folder, a folder named .gif, a file for a folder, no ffmpeg, a name too long."""
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "folder.gif").mkdir()
    (tmp_path / "file").write_text("")
    for name, message in (("a.avi", "unknown ending"), ("no/a.gif", "No such file"), ("folder.gif", "is a folder"),
                          ("file", "is a file"), ("a.mp4", "ffmpeg"), ("x" * 250 + ".gif", "cannot be written")):
        with pytest.raises((ValueError, OSError), match=message) as caught:
            media.check_output(tmp_path / name)
        assert "\n" not in str(caught.value)
    for name in ("a.gif", "a.WEBP", "frames"):
        media.check_output(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.gif"]           # breaks if the trial file stays


def test_a_sheet_has_to_be_a_png(tmp_path):
    """A command that draws a contact sheet is given .mp4. Does the message name the ending to choose?"""
    with pytest.raises(ValueError, match=r"a.mp4: unknown ending '.mp4'; want .png$"):
        media.check_output(tmp_path / "a.mp4", [".png"])


def test_a_run_that_is_killed_between_frames_leaves_nothing(clip, tmp_path):
    """Frames come from an iterator, and Ctrl-C comes before the third. Is the folder empty?"""
    def frames():
        yield from clip.unbind(1)[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        media.write_video(frames(), tmp_path / "a.gif")
    assert os.listdir(tmp_path) == []                                        # breaks if frames wait in a named file


def test_an_iterator_is_as_good_as_a_tensor(clip, tmp_path):
    """The same frames as an iterator and as a tensor: are the files equal, byte for byte?"""
    media.write_video(iter(clip.unbind(1)), tmp_path / "a.gif")
    media.write_video(clip, tmp_path / "b.gif")
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


def test_frames_that_make_no_video_are_refused(clip, tmp_path):
    """Frames of two sizes, float frames, no frame: is there an error, and no file?"""
    for frames in ([clip[:, 0], clip[:, 0, :2]], [clip[:, 0].float()], []):
        with pytest.raises(ValueError):
            media.write_video(iter(frames), tmp_path / "c.gif")
    with pytest.raises(ValueError, match="more than 0 frames a second"):
        media.write_video(clip, tmp_path / "c.gif", fps=0)
    assert os.listdir(tmp_path) == []


def test_a_link_to_nothing_and_a_circle_of_links_are_no_outputs(tmp_path):
    """The file would take the place of the link, or the path never ends."""
    os.symlink("nowhere/x.gif", tmp_path / "a.gif")
    os.symlink("b.gif", tmp_path / "b.gif")
    for name in ("a.gif", "b.gif"):
        with pytest.raises(ValueError, match="link to a file that is not there"):
            media.check_output(tmp_path / name)


def test_a_foreign_or_hostile_file_tells_no_command(tmp_path):
    """Numbers, an object, no end, deep lists, a text where GIF has bytes: one line each."""
    for k, note in enumerate(("[1, 2]", '{"a": 1}', '["a"', "[" * 100_000, "5")):
        (tmp_path / f"{k}.mp4").write_text(f"{media.MARK} {note}")
        with pytest.raises(ValueError, match="does not tell"):
            media.command_of(tmp_path / f"{k}.mp4")
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "text")
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png", pnginfo=info)
    os.mkfifo(tmp_path / "pipe.mp4")
    for name in ("a.png", "pipe.mp4"):                                       # breaks if a pipe is waited for
        with pytest.raises(ValueError, match="does not tell"):
            media.command_of(tmp_path / name)
