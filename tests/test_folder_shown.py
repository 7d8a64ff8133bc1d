"""Exercises on data/folder.py: are frames what a browser or a player shows?"""
import os
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from test_folder import write_clip

from data import folder
from data.folder import FolderSet
from data.media import read_picture, to_pixels, write_video

# ---- pictures and animations ----

@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.bmp", "a.tif", "a.png", "a.webp", "a.gif"])
def test_a_still_is_a_clip_for_the_image_model(name, tmp_path):
    """A picture with a caption: is it a clip of one frame?"""
    Image.new("RGB", (9, 9), (200, 200, 200)).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("grey")
    frames = FolderSet(tmp_path, 1, frames=1, size=8)[0]["frames"]
    assert frames.shape == (3, 1, 8, 8) and (frames.int() - 200).abs().max() <= 2


def test_a_caption_belongs_to_the_film_not_to_its_cover(tmp_path):
    """a.gif, its cover a.bmp, and a.txt."""
    write_clip(tmp_path / "a.gif", 60)
    Image.new("RGB", (9, 9)).save(tmp_path / "a.bmp")
    (tmp_path / "a.txt").write_text("grey")
    assert [clip.path.name for clip in FolderSet(tmp_path, 1).clips] == ["a.gif"]    # breaks if sorted by name alone


def test_a_folder_of_webp_pictures_is_a_clip(tmp_path):
    """150 pictures at 24 a second."""
    (tmp_path / "v").mkdir()
    for k in range(150):
        Image.new("RGB", (8, 8)).save(tmp_path / "v" / f"{k:03}.webp")
    assert folder.clip_seconds(tmp_path / "v") == pytest.approx(150 / 24)


def test_hidden_files_are_no_pictures_of_a_folder(tmp_path):
    """macOS puts a ._0.png, which is no picture, beside 0.png."""
    Image.new("RGB", (8, 8), "white").save(tmp_path / "0.png")
    (tmp_path / "._0.png").write_bytes(b"\0\5\x16\7")
    assert folder.read_clip(tmp_path, np.array([0.0]), 8).min() == 255       # breaks if it is the first picture


@pytest.mark.parametrize("name", ["0.jpg", "0.png", "0.tif", "0.webp"])
def test_every_picture_of_a_folder_is_turned_upright(name, tmp_path):
    """All eight EXIF orientations of a picture whose upper half is white. Where is it white when upright?"""
    picture = Image.new("L", (64, 64))
    picture.paste(255, (0, 0, 64, 32))
    sides = {1: "top", 2: "top", 3: "bottom", 4: "bottom", 5: "left", 6: "right", 7: "right", 8: "left"}
    for orientation, side in sides.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture.convert("RGB").save(tmp_path / name, exif=exif)
        frame = folder.read_clip(tmp_path, np.array([0.0]), 64)[0, :, :, 0].astype(float)
        means = {"top": frame[:28], "bottom": frame[36:], "left": frame[:, :28], "right": frame[:, 36:]}
        assert max(means, key=lambda where: means[where].mean()) == side, orientation


def test_frames_of_10_ms_last_as_long_as_in_browsers(tmp_path):
    """Ten frames of 10 ms: a browser takes a second."""
    assert folder.clip_seconds(write_clip(tmp_path / "a.gif", 10, 10)) == pytest.approx(1)


def test_the_hidden_picture_of_an_animation_is_not_shown(tmp_path):
    """An APNG may hold a white picture for programs that know no animations. Browsers show only the two grey frames."""
    white, *greys = (Image.new("L", (8, 8), level) for level in (255, 50, 100))
    white.save(tmp_path / "a.png", save_all=True, append_images=greys, default_image=True, duration=500)
    assert folder.clip_seconds(tmp_path / "a.png") == pytest.approx(1)       # breaks if the white one is a frame
    frames = folder.read_clip(tmp_path / "a.png", np.array([0, 0.5]), 8)
    assert frames[:, 0, 0, 0].tolist() == [50, 100]
    assert to_pixels(read_picture(tmp_path / "a.png", 8, 8)[0]).unique().tolist() == [50]


# ---- films ----

needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="the program ffmpeg is not on the PATH")


def make_film(command, path):
    """Runs ffmpeg and returns the path of the film."""
    subprocess.run(["ffmpeg", "-v", "error", "-y", *command.split(), f"file:{path}"], check=True)
    return path


GREYS = "-f lavfi -i color=black:size=64x64:rate={rate}:duration={seconds},format=gray,geq=lum=N*4+20 "


@needs_ffmpeg
@pytest.mark.parametrize("name, codec", [("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.mkv", "libx264"),
                                         ("a.webm", "libvpx -b:v 9M")])
@pytest.mark.parametrize("rate", [1, 4, 10])
def test_a_window_begins_with_the_frame_on_show(rate, name, codec, tmp_path):
    """Each frame of a film is 4 brighter. Which one is shown 0.73 s after the start, and every half second then?"""
    film = make_film(GREYS.format(rate=rate, seconds=6) + f"-c:v {codec} -q:v 2 -pix_fmt yuv420p", tmp_path / name)
    times = 0.73 + np.arange(9) / 2
    seen = ((folder.read_clip(film, times, 64)[:, 32, 32, 0] - 20.0) / 4).round().astype(int)
    assert seen.tolist() == (times * rate).astype(int).tolist()              # breaks with an accurate seek: the next


@needs_ffmpeg
def test_slides_of_a_film_stay_until_the_next(tmp_path):
    """Five slides of 2.5 s: which one is on show when a window begins between two?"""
    write_clip(tmp_path / "s.gif", 5, 2500, shade=lambda k: 20 + 40 * k, size=(64, 64))
    film = make_film(f"-i {tmp_path}/s.gif -c:v libx264 -fps_mode vfr -pix_fmt yuv420p", tmp_path / "s.mp4")
    for start in (1, 2.2, 4.9):
        times = start + np.arange(9) / 2
        seen = (folder.read_clip(film, times, 64)[:, 32, 32, 0] - 20.0) / 40
        assert seen.round().tolist() == (times // 2.5).tolist()              # breaks if ffmpeg drops earlier frames


@needs_ffmpeg
def test_a_film_is_as_long_as_its_pictures(tmp_path):
    """6 s of pictures: with 12 s of sound, in a file whose time begins at 5 s, and as a stream without a duration."""
    greys, sound = GREYS.format(rate=10, seconds=6), "-f lavfi -i sine=duration=12 "
    x264 = "-c:v libx264 -pix_fmt yuv420p "
    late = make_film(greys + x264 + "-output_ts_offset 5", tmp_path / "late.ts")
    films = [make_film(greys + sound + x264, tmp_path / "sound.mp4"),
             make_film(f"-copyts -i {late} -c copy", tmp_path / "late.mkv"), tmp_path / "stream.webm"]
    films[2].write_bytes(subprocess.run(["ffmpeg", "-v", "error", *greys.split(), *"-c:v libvpx -f webm -".split()],
                                        capture_output=True).stdout)
    for film in films:
        assert folder.clip_seconds(film) == pytest.approx(5.9, abs=0.05)     # breaks with the container's duration
        frames = folder.read_clip(film, 1.83 + np.arange(9) / 2, 64)
        assert np.allclose((frames[:, 32, 32, 0] - 20.0) / 4, 18 + 5 * np.arange(9), atol=0.6)


@needs_ffmpeg
@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_a_film_without_times_is_refused(codec, tmp_path):
    """An .avi does not store when a B-frame is shown. Is it refused, and the same film as .mkv read?"""
    command = GREYS.format(rate=10, seconds=6) + f"-c:v {codec} -bf 2 -pix_fmt yuv420p"
    with pytest.raises(ValueError, match="B-frames in an .avi; convert it"):     # breaks if the time to decode is taken
        folder.clip_seconds(make_film(command, tmp_path / "a.avi"))
    assert folder.clip_seconds(make_film(command, tmp_path / "a.mkv")) == pytest.approx(5.9, abs=0.05)


@needs_ffmpeg
def test_pixels_that_are_not_square_are_stretched_back(tmp_path):
    """A circle in a film with pixels twice as wide as high: is it as wide as high?"""
    film = make_film("-f lavfi -i color=black:size=320x240:rate=10:duration=1,format=gray,"
                     "geq=lum=255*lt(hypot(X-160\\,Y-120)\\,60) -vf scale=160:240,setsar=2/1 -c:v libx264 "
                     "-pix_fmt yuv420p", tmp_path / "a.mp4")
    shown = folder.read_clip(film, np.array([0.0]), 64)[0].mean(-1) > 128
    assert abs(int(shown.any(0).sum()) - int(shown.any(1).sum())) <= 1 and shown.any(0).sum() > 25


@needs_ffmpeg
def test_a_colon_in_a_name_is_no_protocol(tmp_path, monkeypatch):
    """take:2.mp4 in the folder set:1, given as relative paths, as a person would."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("set:1")
    film = write_video(torch.zeros(3, 60, 32, 32, dtype=torch.uint8), "take:2.mp4", 10)
    film = film.rename("set:1/take:2.mp4")                                   # breaks without file: or absolute names
    assert folder.clip_seconds(film) == pytest.approx(5.9, abs=0.05)


@needs_ffmpeg
def test_a_film_opens_no_other_file(tmp_path):
    """a.mp4 is a playlist in truth, which names another film. Is it refused?"""
    make_film(GREYS.format(rate=10, seconds=6) + "-c:v libx264 -pix_fmt yuv420p", tmp_path / "secret.mp4")
    (tmp_path / "a.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with pytest.raises(ValueError, match="cannot be read as a film"):           # breaks without the whitelist
        folder.clip_seconds(tmp_path / "a.mp4")
