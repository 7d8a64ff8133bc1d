"""Exercises on files.py: does every picture and video survive its file, and the file a bad run?"""
import importlib
import os

import numpy as np
import pytest
import torch
from PIL import Image

import files
from data import ToySet


@pytest.mark.parametrize("name, more", [("microcinema", "a"), ("weights", "a"), ("clips", "a"), ("data", "a"),
                                        ("train", "vae --out a"), ("metrics", "")])
def test_a_command_says_in_one_line_what_it_cannot_take(name, more, monkeypatch, capsys):
    """An option that does not exist. argparse alone would print its usage first, eleven lines for microcinema.py."""
    monkeypatch.setattr("sys.argv", [f"{name}.py", *more.split(), "--nonsense"])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(name).main()
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith(f"{name}.py: unrecognized arguments: ")     # breaks without error()
    assert said.endswith("--nonsense\n") and said.count("\n") == 1


# ---- pixels and pictures --------------------------------------------------------------------------------------------

def test_every_pixel_value_returns():
    """0..255 to [-1, 1] and back: is anything lost? What becomes of 1.3, which a decoder may well say?"""
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(files.to_pixels(files.from_pixels(every)), every)      # breaks if to_pixels cuts
    assert files.from_pixels(every)[[0, 255]].tolist() == [-1, 1]
    assert files.to_pixels(torch.tensor([1.3, -7.0, 0.0])).tolist() == [255, 0, 128]


def modes(folder):
    """Pictures 40 x 20 of one grey, 51 of 255, in every mode; the see-through ones are black that nobody should see."""
    grey, size = Image.new("L", (40, 20), 51), (40, 20)
    grey.save(folder / "L.png")
    grey.convert("RGB").save(folder / "RGB.png")
    grey.convert("CMYK").save(folder / "CMYK.tif")
    grey.convert("RGB").quantize(4).save(folder / "P.png")
    Image.fromarray(np.full((20, 40), 51 * 257, np.uint16)).save(folder / "I16.png")
    Image.fromarray(np.full((20, 40), 51 * 257, np.int32)).save(folder / "I.tif")
    Image.fromarray(np.full((20, 40), 0.2, np.float32)).save(folder / "F.tif")
    grey.convert("RGB").save(folder / "animated.gif", save_all=True, append_images=[Image.new("RGB", size, "white")])
    Image.new("RGBA", size, (0, 0, 0, 204)).save(folder / "RGBA.png")       # 20 % of white shines through: 51
    Image.new("LA", size, (0, 204)).save(folder / "LA.png")


def test_a_picture_is_the_same_in_every_mode(tmp_path):
    """Grey 51, as eight bits, sixteen, ink, palette, or black glass on white: is it always 51 / 127.5 - 1 = -0.6?"""
    modes(tmp_path)
    for path in sorted(tmp_path.iterdir()):                                 # breaks if alpha is dropped, or 16 bits cut
        picture, said = files.read_picture(path, 24, 24)
        assert picture.shape == (3, 24, 24) and (picture + 0.6).abs().max() < 0.02, path.name
        assert said.startswith(f"{path.name}: 40x20 ") and "centre 20x20, resized to 24x24" in said


def test_palette_transparency_becomes_white(tmp_path):
    """A palette picture, all of it the see-through entry."""
    Image.new("P", (8, 8), 0).save(tmp_path / "p.png", transparency=0)
    assert files.read_picture(tmp_path / "p.png", 8, 8)[0].min() == 1        # breaks without has_transparency_data


def test_the_middle_is_kept_and_up_is_up(tmp_path):
    """Three stripes, of which a square crop keeps the middle one; then the camera was held sideways."""
    stripes = Image.new("RGB", (30, 10))
    for i, colour in enumerate(("red", "lime", "blue")):
        stripes.paste(colour, (10 * i, 0, 10 * i + 10, 10))
    stripes.save(tmp_path / "stripes.png")
    picture, _ = files.read_picture(tmp_path / "stripes.png", 8, 8)
    assert (picture.mean((1, 2)) - torch.tensor([-1.0, 1, -1])).abs().max() < 1e-6      # breaks if cropped at the left
    exif = Image.Exif()
    exif[0x0112] = 6                                                        # "turn me a quarter clockwise"
    stripes.resize((96, 32), Image.Resampling.NEAREST).save(tmp_path / "photo.jpg", exif=exif, quality=100)
    picture, said = files.read_picture(tmp_path / "photo.jpg", 96, 32)       # its left, red, is now the top
    assert picture[0, :28].mean() > 0.9 and picture[2, 68:].mean() > 0.9 and "turned upright" in said


def test_a_bad_picture_is_one_clear_line(tmp_path):
    """Missing, a folder, empty, not a picture, cut short, or a bomb: one line that names the file, no traceback."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:3000])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not a picture")
    Image.new("1", (20000, 10000)).save(tmp_path / "bomb.png")
    for name in ("cut.png", "empty.png", "text.png", "bomb.png", "missing.png", "."):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:      # breaks if only OSError is caught: the bomb
            files.read_picture(tmp_path / name, 8, 8)
        assert "\n" not in str(caught.value) and str(tmp_path / name) in str(caught.value)


# ---- videos --------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def clip():
    return ToySet(1, size=64, seed=1)[0]["frames"]                          # [3, 9, 64, 64]


def read_back(path):
    """[n, H, W, 3], the milliseconds of each frame, and the loop count, as Pillow reads them."""
    with Image.open(path) as image:
        frames, times = [], []
        for i in range(image.n_frames):
            image.seek(i)
            frames.append(np.asarray(image.convert("RGB")))
            times.append(image.info["duration"])
        return np.stack(frames).astype(float), times, image.info["loop"]


@pytest.mark.parametrize("ending, decibels", [(".gif", 36), (".webp", 34), (".apng", 100)])
def test_a_video_reads_back(clip, tmp_path, ending, decibels):
    """Nine frames at 2 fps: nine pictures of half a second, for ever, and how close to what was written?"""
    frames, times, loop = read_back(files.write_video(clip, tmp_path / f"a{ending}"))
    assert times == [500] * 9 and loop == 0
    error = ((frames - clip.permute(1, 2, 3, 0).numpy()) ** 2).mean()       # breaks if n and h are swapped
    assert 10 * np.log10(255**2 / max(error, 1e-9)) > decibels


def test_gif_time_does_not_drift(tmp_path):
    """GIF counts hundredths of a second, and 32 fps is 3.125 of them. After 32 frames, is it one second?"""
    frames = (torch.arange(32) * 8).to(torch.uint8).view(1, 32, 1, 1).expand(3, 32, 8, 8)
    _, times, _ = read_back(files.write_video(frames, tmp_path / "a.gif", fps=32))
    assert sum(times) == 1000 and set(times) == {30, 40}                    # breaks if each frame is rounded alone: 960


def test_a_sheet_and_a_folder(clip, tmp_path):
    """The contact sheet holds every frame side by side, the folder every frame as a file, without loss."""
    frames = clip.permute(1, 2, 3, 0).numpy()
    sheet = np.asarray(Image.open(files.write_video(clip, tmp_path / "a.png")))
    assert sheet.shape == (64 + 8, 9 * 68 + 4, 3) and np.array_equal(sheet[4:68, 4 + 8 * 68:68 + 8 * 68], frames[8])
    for _ in range(2):                                                      # a second run replaces the first
        folder = files.write_video(clip, tmp_path / "frames")
    assert sorted(os.listdir(folder)) == [f"frame_{i:03d}.png" for i in range(9)]
    assert np.array_equal(np.asarray(Image.open(folder / "frame_007.png")), frames[7])
    (folder / "diary.txt").write_text("mine")
    with pytest.raises(ValueError, match="other files"):                    # breaks if any folder is replaced
        files.write_video(clip, folder)
    assert (folder / "diary.txt").read_text() == "mine" and sorted(os.listdir(tmp_path)) == ["a.png", "frames"]


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for ffmpeg is a shell script")
def test_mp4_pipes_every_byte_to_ffmpeg(clip, tmp_path, monkeypatch):
    """With a stand-in for ffmpeg that writes down what it is sent: all frames, in order? And one that fails?"""
    program = tmp_path / "ffmpeg"
    program.write_text('#!/bin/sh\nfor last; do :; done\ncat > "$last"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert files.write_video(clip, tmp_path / "a.mp4").read_bytes() == clip.permute(1, 2, 3, 0).numpy().tobytes()
    program.write_text("#!/bin/sh\ncat > /dev/null\necho no such encoder >&2\nexit 1\n")
    with pytest.raises(OSError, match="no such encoder"):                   # breaks if the exit code is not looked at
        files.write_video(clip, tmp_path / "b.mp4")
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "ffmpeg"]


def test_a_failed_write_leaves_what_was_there(clip, tmp_path, monkeypatch):
    """The disk fills up halfway. Is yesterday's video still whole, and is no fragment left?"""
    path = tmp_path / "a.gif"
    path.write_bytes(b"yesterday")

    def full(self, part, *args, **kwargs):
        part.write_bytes(b"half")
        raise OSError("No space left on device")
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):                          # breaks if it writes to path itself
        files.write_video(clip, path)
    assert path.read_bytes() == b"yesterday" and os.listdir(tmp_path) == ["a.gif"]


def test_a_folder_of_frames_is_not_lost_between_two_names(clip, tmp_path, monkeypatch):
    """Yesterday's frames have moved aside, and today's do not come to take their place. Where are they?"""
    files.write_video(clip, tmp_path / "frames")
    before = sorted(os.listdir(tmp_path / "frames"))

    def stopped(part, path):
        raise KeyboardInterrupt
    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        files.write_video(clip[:, :1], tmp_path / "frames")
    assert os.listdir(tmp_path) == ["frames"]                               # breaks if they keep their hidden name
    assert sorted(os.listdir(tmp_path / "frames")) == before


def test_an_impossible_output_is_refused_beforehand(tmp_path, monkeypatch):
    """An unknown ending, no such folder, a folder called .gif, a file for a folder, no ffmpeg: said before the work."""
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "folder.gif").mkdir()
    (tmp_path / "file").write_text("")
    for name, what in (("a.avi", "unknown ending"), ("no/a.gif", "does not exist"), ("folder.gif", "is a folder"),
                       ("file", "is a file"), ("a.mp4", "ffmpeg"), ("x" * 250 + ".gif", "cannot be written")):
        with pytest.raises((ValueError, OSError), match=what) as caught:
            files.check_output(tmp_path / name)
        assert "\n" not in str(caught.value)
    for name in ("a.gif", "a.WEBP", "frames"):
        files.check_output(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.gif"]           # breaks if the trial file stays


def test_a_run_that_is_killed_while_frames_come_leaves_nothing(clip, tmp_path):
    """Frames from an iterator, and Ctrl-C at the third. What is in the folder? An iterator is as good as a tensor."""
    def frames():
        yield from clip.unbind(1)[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_video(frames(), tmp_path / "a.gif")
    assert os.listdir(tmp_path) == []                                        # breaks if frames wait in a named file
    files.write_video(iter(clip.unbind(1)), tmp_path / "a.gif")
    files.write_video(clip, tmp_path / "b.gif")
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    for odd in ([clip[:, 0], clip[:, 0, :2]], [clip[:, 0].float()], []):
        with pytest.raises(ValueError):
            files.write_video(iter(odd), tmp_path / "c.gif")
    assert sorted(os.listdir(tmp_path)) == ["a.gif", "b.gif"]
