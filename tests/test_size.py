"""Exercises on --size: width and height apart, from the option to the files. The default is the paper's square."""
import shutil
import subprocess

import numpy as np
import pytest
import torch
from conftest import run
from PIL import Image, ImageDraw
from test_folder import describe, write_clip
from test_microcinema import PROMPT, ROOT, load_toy, trained_components
from test_microcinema_command import exit_code, one_line

import train
from data import folder, toyset
from data.folder import FolderSet
from data.media import command_of
from data.toyset import ToySet
from evaluation import toy_scores
from evaluation.windows import Protocol, Windows
from microcinema import MicroCinema, Sampling
from sd21.files import read_json
from training.prepare import Clips

TOY_VIDEO = read_json(ROOT / "toy" / "video" / "config.json")["sampling"]


@pytest.fixture
def quick(monkeypatch):
    """The command uses the toy model that the tests share."""
    shared = load_toy()
    monkeypatch.setattr(MicroCinema, "load", lambda *_, **__: shared)


@pytest.fixture
def films(tmp_path):
    """A folder of three clips of 40 x 24 pixels with captions, long enough for three frames at 4 fps."""
    for k in range(3):
        write_clip(tmp_path / "films" / f"{k}.webp", 20, shade=lambda i, k=k: 70 * k + 5 * i)
    describe(tmp_path / "films", **{f"{k}__webp": f"grey number {k}" for k in range(3)})
    return tmp_path / "films"


# ---- sampling ----

def test_the_default_is_the_papers_square():
    """Sec. 4.1: 320 x 320, in sampling and in training."""
    assert Sampling().size == Clips().size == 320


@pytest.mark.parametrize("size, nearest", [("100x72", "96x64 or 128x96"), ("96x40", "96x32 or 96x64"),
                                           ("20x72", "32x64 or 32x96"), (100, "96 or 128"), (8, "32"), (9990, "9984")])
def test_the_message_names_the_nearest_sizes(size, nearest):
    """The toy model wants multiples of 32. A side that fits stays; no side becomes 0, or more than 9999."""
    with pytest.raises(ValueError, match=f"size {size}: want a multiple of 32 pixels a side .* as {nearest}$"):
        load_toy().settings(size=size)


def test_pictures_and_latents_have_two_sides():
    """Key frames of 64 x 40 pixels, latents of 6 x 8: the width fits. Is the height refused, and named as such?"""
    with pytest.raises(ValueError, match="size 64x40: .* as 64x32 or 64$"):
        load_toy().animate(PROMPT, torch.zeros(1, 3, 40, 64))
    with pytest.raises(ValueError, match="size 64x48: .* as 64x32 or 64$"):
        load_toy().interpolate_latents(torch.zeros(1, 4, 2, 6, 8), PROMPT)


def test_a_sentence_becomes_a_wide_video(quick, tmp_path, capsys):
    """Key frame, video, frames between and the upscaler: is the file wide, and its line, and the command in it?"""
    options = "--size 64x32 --steps 1 --frames 2 --fps 8 --upscale 2 --upscaler lanczos --out".split()
    assert exit_code(PROMPT, *options, tmp_path / "x.gif") == 0
    assert "5 frames of 128x64 at 8 fps" in capsys.readouterr().out          # breaks with height and width exchanged
    with Image.open(tmp_path / "x.gif") as gif:
        assert (gif.size, gif.n_frames) == ((128, 64), 5)
    assert "--size 64x32" in command_of(tmp_path / "x.gif")


def test_a_square_is_one_number_or_two():
    """The same seed at size 64 and "64x64": the same key frame and video, bit for bit?"""
    keys = [load_toy().key_frame(PROMPT, [3], steps=1, size=size) for size in (64, "64x64")]
    videos = [load_toy().animate(PROMPT, key, [3], steps=1, frames=2) for key in keys]
    assert torch.equal(*keys) and torch.equal(*videos) and videos[0].shape == (1, 3, 2, 64, 64)


def test_pictures_are_cut_to_the_size(quick, tmp_path, capsys):
    """--between at 64x32: of 50 x 30 pixels, which stay? Of 30 x 50?"""
    for name, size in (("a.png", (50, 30)), ("b.png", (30, 50))):
        Image.new("RGB", size).save(tmp_path / name)
    options = ["--size", "64x32", "--steps", "1", "--out", tmp_path / "x.gif"]
    assert exit_code(PROMPT, "--between", tmp_path / "a.png", tmp_path / "b.png", *options) == 0
    said = capsys.readouterr().out
    assert "cropped to the centre 50x25" in said and "cropped to the centre 30x15" in said and "of 64x32" in said


def test_a_model_folder_may_say_so(tmp_path):
    """"size": "64x32" in video/config.json: is the next video wide?"""
    trained_components(tmp_path, video={"sampling": TOY_VIDEO | {"size": "64x32", "steps": 1}})
    cinema = MicroCinema.load(ROOT / "toy", overlay=tmp_path, tsr=False)
    assert cinema.key_frame(PROMPT, steps=1).shape == (1, 3, 32, 64)


@pytest.mark.parametrize("size", ["64y32", "64x", "0x32", "64x32x3", "-64", "", "3٢x32"])
def test_a_model_folder_with_no_size_is_named(tmp_path, capsys, size):
    """A size that is none, in video/config.json: one line that names the file."""
    trained_components(tmp_path, video={"sampling": TOY_VIDEO | {"size": size}})
    assert exit_code(PROMPT, "--weights", tmp_path, "--out", tmp_path / "x.gif") == 2
    assert one_line(capsys.readouterr(), f"config.json: 'size' = '{size}'")


# ---- clips ----

@pytest.mark.parametrize("size, rows, columns", [
    ("40x10", slice(7, 17), slice(None)), ("10x24", slice(None), slice(15, 25)), (24, slice(None), slice(8, 32))])
def test_clips_are_cut_at_their_centre(size, rows, columns, tmp_path):
    """Noise of 40 x 24 pixels, asked for in sizes that need no scaling: which pixels stay?"""
    noise = np.random.default_rng(0).integers(0, 256, (2, 24, 40, 3), dtype=np.uint8)
    first, second = map(Image.fromarray, noise)
    first.save(tmp_path / "a.webp", save_all=True, append_images=[second], duration=500, lossless=True)
    frames = folder.read_clip(tmp_path / "a.webp", np.array([0, 0.5]), size)
    assert np.array_equal(frames, noise[:, rows, columns])                   # breaks if it is squeezed


def png(path):
    """A disc of radius 60 in the middle of 320 x 240 pixels."""
    picture = Image.new("RGB", (320, 240))
    ImageDraw.Draw(picture).ellipse((100, 60, 220, 180), "white")
    picture.save(path / "a.png")
    return path / "a.png"


def mp4(path):
    """The same as a film, whose pixels are twice as wide as high."""
    disc = "color=black:size=320x240:rate=10:duration=1,format=gray,geq=lum=255*lt(hypot(X-160\\,Y-120)\\,60)"
    subprocess.run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", disc, *"-vf scale=160:240,setsar=2/1 -c:v libx264 "
                    "-pix_fmt yuv420p".split(), path / "a.mp4"], check=True)
    return path / "a.mp4"


@pytest.mark.parametrize("make", [png, pytest.param(mp4, marks=pytest.mark.skipif(
    not shutil.which("ffmpeg"), reason="needs the program ffmpeg"))])
@pytest.mark.parametrize("size, height, width, diameter", [("64x32", 32, 64, 24), ("32x64", 64, 32, 32),
                                                           ("128x80", 80, 128, 48)])
def test_a_disc_stays_round_in_any_size(make, size, height, width, diameter, tmp_path):
    """Its diameter is half the film's height: how many rows and columns does it take, and is it in the middle?"""
    frame = folder.read_clip(make(tmp_path), np.array([0.0]), size)[0]
    disc = frame.mean(-1) > 128
    assert frame.shape == (height, width, 3)
    for lit, side in ((disc.any(1), height), (disc.any(0), width)):          # rows, columns
        assert abs(lit.sum() - diameter) <= 2 and abs(np.flatnonzero(lit).mean() - (side - 1) / 2) <= 1


def test_windows_of_scores_have_the_size(films):
    """FVD, IS and CLIPSIM at 16x8: frames of 8 rows and 16 columns?"""
    assert Windows(films, Protocol(frames=3, fps=2.0, size="16x8"))[0].shape == (3, 8, 16, 3)


def test_a_sheet_has_the_size(films, tmp_path):
    """python -m data.folder, augmented: two rows of three frames, 32 x 16 with a gap of 4, and captions."""
    argv = f"{films} --out {tmp_path}/x.png --rows 2 --frames 3 --size 32x16 --augment shift,zoom,colour"
    assert folder.main(argv.split()) == 0
    assert Image.open(tmp_path / "x.png").width == 3 * 36 + 4


@pytest.mark.parametrize("draw", [lambda size: ToySet(1, size=size), lambda size: toyset.render(None, [2.0], size)])
def test_the_toy_world_is_square(draw):
    """Its places and radii are fractions of one side: is another size refused, and the way out named?"""
    with pytest.raises(ValueError, match="size 64x32: the toy world is square; want one number, or clips of your own"):
        draw("64x32")


# ---- training ----

def test_a_stage_says_at_once_that_the_toy_world_is_square(like, ready, capsys):
    """Stage video at 32x16 without --data: one line?"""
    assert run("video", like, ready("out"), 1, "--size", "32x16") == 2
    assert one_line(capsys.readouterr(), "train.py: size 32x16: the toy world is square")


@pytest.mark.slow
def test_a_video_model_learns_wide_clips_and_makes_wide_videos(like, ready, films):
    """Stages video and tsr at 32x16: what do their configs say, how large are the strips, and the next video?"""
    out = ready("out")
    for stage, fps, frames in (("video", 4, 3), ("tsr", 1, 5)):
        options = "--data", films, "--size", "32x16", "--fps", fps, "--sample-every", 1, "--steps", 1
        assert run(stage, like, out, 1, *options) == 0
        assert read_json(out / stage / "config.json")["sampling"]["size"] == "32x16"
        assert Image.open(out / f"{stage}-000001.png").size == (frames * 36 + 4, 6 * 20 + 4)
    cinema = MicroCinema.load(out)
    video = cinema.animate(PROMPT, cinema.key_frame(PROMPT, steps=1), steps=1)
    assert video.shape == (1, 3, 3, 16, 32)                                  # breaks with height and width exchanged
    assert cinema.interpolate(video, PROMPT, steps=1).shape == (1, 3, 9, 16, 32)


def test_the_autoencoder_and_the_image_model_learn_wide_clips(like, films, tmp_path):
    """Stages vae and image at 32x16: strips of three clips and their decodings, and of six stills in one row."""
    for stage, frames, rows in (("vae", 9, 6), ("image", 6, 1)):
        options = "--data", films, "--size", "32x16", "--fps", 8, "--sample-every", 1
        assert run(stage, like, tmp_path / "out", 1, *options) == 0
        assert Image.open(tmp_path / "out" / f"{stage}-000001.png").size == (frames * 36 + 4, rows * 20 + 4)


def test_wide_latents_are_not_tall_ones(like, ready, films, tmp_path, capsys):
    """Latents of clips at 32x16: which training takes them?"""
    out, cache = ready("out"), tmp_path / "latents"
    argv = f"latents --for video --data {films} --model {out} --out {cache} --clips 4 --frames 3 --fps 4 --batch 2"
    assert train.main([*argv.split(), "--size", "32x16", "--device", "cpu"]) == 0
    capsys.readouterr()
    assert run("video", like, out, 1, "--latents", cache, "--fps", 4, "--size", "16x32") == 2
    assert one_line(capsys.readouterr(), "latents: size is 32x16, want 16x32")
    assert run("video", like, out, 1, "--latents", cache, "--fps", 4, "--size", "32x16") == 0


def test_a_wide_model_is_scored_on_clips(films, tmp_path):
    """evaluation.toy_scores --data, for a model of 64x32: a strip of wide frames, the truth above the model's."""
    trained_components(tmp_path / "wide", video={"sampling": TOY_VIDEO | {"size": "64x32", "frames": 3}})
    options = "--prompts 2 --steps 1 --fps 4 --device cpu".split()
    assert toy_scores.main(["--data", str(films), "--weights", str(tmp_path / "wide"), "--out",
                            str(tmp_path / "x.png"), *options]) == 0
    assert Image.open(tmp_path / "x.png").width == 3 * 68 + 4
    assert FolderSet(films, 1, 3, 4, "64x32")[0]["frames"].shape == (3, 3, 32, 64)
