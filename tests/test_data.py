"""Exercises on data.py: is the toy world what it says, and does every picture and video survive its file?"""
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import data
from data import COLOURS, MOTIONS, ROUND, SHAPES, Background, Scene, Thing, ToySet, render, sample_scene

GREY = Background("slope", ((200, 200, 200), (200, 200, 200)), 0.0, 1.0)


def alone(shape, motion, speed="", radius=0.15, colour="red"):
    return Scene((Thing(shape, colour, motion, speed, 0.5, 0.5, radius),), GREY)


def vivid(frames):
    """Where the thing is: on grey, whatever has a colour."""
    return frames.max(-1).astype(int) - frames.min(-1) > 70


def centre(mask):
    return np.array([np.nonzero(mask)[1].mean() + 0.5, np.nonzero(mask)[0].mean() + 0.5]) / len(mask)      # x, y


# ---- scenes ---------------------------------------------------------------------------------------------------------

def test_a_seed_is_a_scene():
    """Is seed 5 the same scene twice? Are two hundred seeds two hundred scenes?"""
    assert sample_scene(5) == sample_scene(5)
    assert len({sample_scene(seed) for seed in range(200)}) == 200          # breaks if the seed is not used


def test_one_triple_in_ten_is_never_trained_on():
    """Do three thousand training scenes contain a held-out triple? And is every word still learnt many times?"""
    triples = [(s, c, m) for s in SHAPES for c in COLOURS for m in MOTIONS if not (m == "turning" and s in ROUND)]
    held_out = {triple for triple in triples if data.is_held_out(*triple)}
    assert 0.09 < len(held_out) / len(triples) < 0.11
    things = [thing for seed in range(3000) for thing in sample_scene(seed).things]
    seen = [(thing.shape, thing.colour, thing.motion) for thing in things]
    assert not held_out & set(seen)                         # breaks if only the first thing of a scene is checked
    assert set(triples) - held_out <= set(seen)
    for place, words in enumerate((SHAPES, COLOURS, MOTIONS)):
        assert min([triple[place] for triple in seen].count(word) for word in words) > 150
    assert held_out == {(t.shape, t.colour, t.motion) for s in range(800) for t in sample_scene(s, True, 1).things}


def test_nothing_touches_anything():
    """A thing that leaves the picture, or two that meet, would change their shape. At 401 times, do they?"""
    for seed in range(300):
        paths = [thing.at(np.linspace(0, 4, 401)) for thing in sample_scene(seed, things=1 + seed % 2).things]
        for x, y, radius, _ in paths:
            assert min((x - radius).min(), (y - radius).min(), 1 - (x + radius).max(), 1 - (y + radius).max()) > 0.01
        if len(paths) == 2:                                 # breaks if only the key frame is looked at
            (xa, ya, ra, _), (xb, yb, rb, _) = paths
            assert (np.hypot(xa - xb, ya - yb) - ra - rb).min() > 0


def test_captions_read_as_english():
    """Five wordings of one scene, written out by hand: "an" orange ring, a speed only where it is not the usual one."""
    one = Thing("ring", "orange", "moving left", "slowly", 0.5, 0.5, 0.1)
    two = Thing("star", "blue", data.STILL, "", 0.2, 0.2, 0.1)
    assert [Scene((one, two), GREY).caption(wording) for wording in range(data.WORDINGS)] == [
        "an orange ring slowly moving left and a blue star standing still",
        "a ring that is orange moves to the left slowly and a star that is blue stands still",
        "the orange ring is slowly moving left and the blue star is standing still",
        "orange ring, moving left slowly and blue star, standing still",
        "an orange ring slowly moves to the left and a blue star stands still"]
    assert alone("heart", "turning").caption() == "a red heart turning"     # breaks if "" leaves two spaces


# ---- drawing --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("speed, factor", [("slowly", 0.6), ("", 1.0), ("quickly", 1.5)])
@pytest.mark.parametrize("motion, sign", [("moving left", (-1, 0)), ("moving right", (1, 0)),
                                          ("moving up", (0, -1)), ("moving down", (0, 1))])
def test_left_is_left_on_the_screen(motion, sign, speed, factor):
    """In four seconds a thing should travel 0.4 of the picture, in the direction the caption says. Does it?"""
    first, last = vivid(render(alone("circle", motion, speed), [0, 4]))
    moved = centre(last) - centre(first)
    assert np.allclose(moved, 0.4 * factor * np.array(sign), atol=0.004)    # breaks if y points up


def test_growing_doubles_the_radius():
    """Twice the radius is four times the pixels. And is shrinking growing, backwards?"""
    small, middle, large = vivid(render(alone("heart", "growing"), [0, 2, 4])).sum((1, 2))
    assert abs(large / small - 4) < 0.15 and abs(middle / small - 2) < 0.1  # breaks if the area doubles instead
    assert np.array_equal(render(alone("heart", "growing"), [0]), render(alone("heart", "shrinking"), [4]))


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - set(ROUND)))
def test_turning_is_clockwise_and_stays_in_place(shape):
    """Half a second after the key frame: is it the key frame turned by 20 degrees? (Pillow counts the other way.)"""
    before, after = vivid(render(alone(shape, "turning", radius=0.3), [2, 2.5]))
    turned = np.asarray(Image.fromarray(before.astype(np.uint8) * 255).rotate(-20)) > 127
    assert (turned & after).sum() / (turned | after).sum() > 0.95           # breaks if clockwise is counted with y up
    assert abs(centre(after) - centre(before)).max() < 0.005                # breaks if the origin is not the centroid


def test_bouncing_circling_and_swinging_by_hand():
    """Where is the thing at four moments one can work out on paper?"""
    def place(motion, t):
        return centre(vivid(render(alone("circle", motion, radius=0.1), [t]))[0]) - 0.5
    assert np.allclose(place("bouncing", 1), (0, 0.28), atol=0.004)         # hops of two seconds, top at 2, floor at 1
    assert np.allclose(place("bouncing", 0), (0, 0), atol=0.004)
    assert np.allclose(place("circling", 3), (0.17, 0.17), atol=0.004)      # from the top, clockwise: right comes first
    assert np.allclose(place("circling", 4), (0, 0.34), atol=0.004)
    arc = np.radians(40)
    assert np.allclose(place("swinging", 2.8), (0.32 * np.sin(arc), 0.32 * (np.cos(arc) - 1)), atol=0.004)
    assert np.allclose(place("swinging", 0.4), (0, 0), atol=0.004)    # half a swing of 3.2 s earlier


def test_a_disc_has_the_area_that_geometry_gives_it():
    """The circle fills 0.86 of its radius: pi (0.86 r)^2 of the picture. At any size in pixels?"""
    for size in (64, 96, 192):
        share = vivid(render(alone("circle", "moving left", radius=0.2), [2], size)).mean()
        assert abs(share / (np.pi * (0.86 * 0.2) ** 2) - 1) < 0.03          # breaks if radius and diameter mix


def test_the_edge_is_soft():
    """Antialiased: let a disc grow by a tenth of a pixel. No pixel flips; those of the outline change by a tenth of the
    way from paper to thing, about 15 of 255."""
    thin, thick = (render(alone("circle", "moving left", radius=(22 + more) / 128 / 0.86), [2])[0].astype(int)
                   for more in (0, 0.1))
    assert 10 < abs(thick - thin).max() < 25                                # breaks if the edge is a hard threshold


def test_shapes_and_colours_can_be_told_apart():
    """Seen at 24 pixels, how much do the two most alike silhouettes differ? And the two most alike colours?"""
    masks = [vivid(render(alone(shape, "moving left", radius=0.1), [2]))[0] for shape in SHAPES]
    overlap = max((a & b).sum() / (a | b).sum() for i, a in enumerate(masks) for b in masks[:i])
    assert len(SHAPES) >= 6 and overlap < 0.85
    rgb = np.array(list(COLOURS.values()), float)
    gaps = [np.linalg.norm(a - b) for i, a in enumerate(rgb) for b in rgb[:i]]
    assert len(COLOURS) >= 8 and len(MOTIONS) >= 8 and min(gaps) > 70


def test_the_key_frame_is_the_middle_one_at_any_rate():
    """9 frames at 2 fps, 33 at 8 fps, 1 alone: is the centre one picture, and every fourth of 33 one of the 9?"""
    slow, fast, still = (ToySet(4, n, fps, 64, seed=3)[2] for n, fps in ((9, 2), (33, 8), (1, 2)))
    assert slow["frames"].shape == (3, 9, 64, 64) and slow["frames"].dtype == torch.uint8
    assert torch.equal(fast["frames"][:, ::4], slow["frames"])
    assert torch.equal(still["frames"][:, 0], slow["frames"][:, 4])         # breaks if times are not centred on 2 s
    assert slow["caption"] == fast["caption"] == still["caption"]
    with pytest.raises(ValueError, match="lasts from 0 to 4 s"):
        ToySet(1, 17, 2)[0]


# ---- pixels and pictures --------------------------------------------------------------------------------------------

def test_every_pixel_value_returns():
    """0..255 to [-1, 1] and back: is anything lost? What becomes of 1.3, which a decoder may well say?"""
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(data.to_pixels(data.from_pixels(every)), every)      # breaks if to_pixels cuts instead of rounds
    assert data.from_pixels(every)[[0, 255]].tolist() == [-1, 1]
    assert data.to_pixels(torch.tensor([1.3, -7.0, 0.0])).tolist() == [255, 0, 128]


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
        picture, said = data.read_picture(path, 24, 24)
        assert picture.shape == (3, 24, 24) and (picture + 0.6).abs().max() < 0.02, path.name
        assert said.startswith(f"{path.name}: 40x20 ") and "centre 20x20, resized to 24x24" in said


def test_palette_transparency_becomes_white(tmp_path):
    """A palette picture, all of it the see-through entry."""
    Image.new("P", (8, 8), 0).save(tmp_path / "p.png", transparency=0)
    assert data.read_picture(tmp_path / "p.png", 8, 8)[0].min() == 1        # breaks without has_transparency_data


def test_the_middle_is_kept_and_up_is_up(tmp_path):
    """Three stripes, of which a square crop keeps the middle one; then the camera was held sideways."""
    stripes = Image.new("RGB", (30, 10))
    for i, colour in enumerate(("red", "lime", "blue")):
        stripes.paste(colour, (10 * i, 0, 10 * i + 10, 10))
    stripes.save(tmp_path / "stripes.png")
    picture, _ = data.read_picture(tmp_path / "stripes.png", 8, 8)
    assert (picture.mean((1, 2)) - torch.tensor([-1.0, 1, -1])).abs().max() < 1e-6      # breaks if cropped at the left
    exif = Image.Exif()
    exif[0x0112] = 6                                                        # "turn me a quarter clockwise"
    stripes.resize((96, 32), Image.Resampling.NEAREST).save(tmp_path / "photo.jpg", exif=exif, quality=100)
    picture, said = data.read_picture(tmp_path / "photo.jpg", 96, 32)       # its left, red, is now the top
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
            data.read_picture(tmp_path / name, 8, 8)
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
    frames, times, loop = read_back(data.write_video(clip, tmp_path / f"a{ending}"))
    assert times == [500] * 9 and loop == 0
    error = ((frames - clip.permute(1, 2, 3, 0).numpy()) ** 2).mean()       # breaks if n and h are swapped
    assert 10 * np.log10(255**2 / max(error, 1e-9)) > decibels


def test_gif_time_does_not_drift(tmp_path):
    """GIF counts hundredths of a second, and 32 fps is 3.125 of them. After 32 frames, is it one second?"""
    frames = (torch.arange(32) * 8).to(torch.uint8).view(1, 32, 1, 1).expand(3, 32, 8, 8)
    _, times, _ = read_back(data.write_video(frames, tmp_path / "a.gif", fps=32))
    assert sum(times) == 1000 and set(times) == {30, 40}                    # breaks if each frame is rounded alone: 960


def test_a_sheet_and_a_folder(clip, tmp_path):
    """The contact sheet holds every frame side by side, the folder every frame as a file, without loss."""
    frames = clip.permute(1, 2, 3, 0).numpy()
    sheet = np.asarray(Image.open(data.write_video(clip, tmp_path / "a.png")))
    assert sheet.shape == (64 + 8, 9 * 68 + 4, 3) and np.array_equal(sheet[4:68, 4 + 8 * 68:68 + 8 * 68], frames[8])
    for _ in range(2):                                                      # a second run replaces the first
        folder = data.write_video(clip, tmp_path / "frames")
    assert sorted(os.listdir(folder)) == [f"frame_{i:03d}.png" for i in range(9)]
    assert np.array_equal(np.asarray(Image.open(folder / "frame_007.png")), frames[7])
    (folder / "diary.txt").write_text("mine")
    with pytest.raises(ValueError, match="other files"):                    # breaks if any folder is replaced
        data.write_video(clip, folder)
    assert (folder / "diary.txt").read_text() == "mine" and sorted(os.listdir(tmp_path)) == ["a.png", "frames"]


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for ffmpeg is a shell script")
def test_mp4_pipes_every_byte_to_ffmpeg(clip, tmp_path, monkeypatch):
    """With a stand-in for ffmpeg that writes down what it is sent: all frames, in order? And one that fails?"""
    program = tmp_path / "ffmpeg"
    program.write_text('#!/bin/sh\nfor last; do :; done\ncat > "$last"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert data.write_video(clip, tmp_path / "a.mp4").read_bytes() == clip.permute(1, 2, 3, 0).numpy().tobytes()
    program.write_text("#!/bin/sh\ncat > /dev/null\necho no such encoder >&2\nexit 1\n")
    with pytest.raises(OSError, match="no such encoder"):                   # breaks if the exit code is not looked at
        data.write_video(clip, tmp_path / "b.mp4")
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
        data.write_video(clip, path)
    assert path.read_bytes() == b"yesterday" and os.listdir(tmp_path) == ["a.gif"]


def test_an_impossible_output_is_refused_beforehand(tmp_path, monkeypatch):
    """An unknown ending, no such folder, a folder called .gif, a file for a folder, no ffmpeg: said before the work."""
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "folder.gif").mkdir()
    (tmp_path / "file").write_text("")
    for name, what in (("a.avi", "unknown ending"), ("no/a.gif", "does not exist"), ("folder.gif", "is a folder"),
                       ("file", "is a file"), ("a.mp4", "ffmpeg"), ("x" * 250 + ".gif", "cannot be written")):
        with pytest.raises((ValueError, OSError), match=what) as caught:
            data.check_output(tmp_path / name)
        assert "\n" not in str(caught.value)
    for name in ("a.gif", "a.WEBP", "frames"):
        data.check_output(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.gif"]           # breaks if the trial file stays


def test_the_command_draws_a_sheet(tmp_path, monkeypatch, capsys):
    """python data.py: a sheet of three clips of five frames; then with an ending it cannot write: one line, exit 2."""
    out = tmp_path / "toyset.png"
    monkeypatch.setattr(sys, "argv", f"data.py --out {out} --clips 3 --frames 5 --size 32".split())
    assert not data.main() and Image.open(out).width == 5 * 36 + 4
    monkeypatch.setattr(sys, "argv", f"data.py --out {tmp_path / 'a.doc'}".split())
    assert data.main() == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_run_that_is_killed_while_frames_come_leaves_nothing(clip, tmp_path):
    """Frames from an iterator, and Ctrl-C at the third. What is in the folder? An iterator is as good as a tensor."""
    def frames():
        yield from clip.unbind(1)[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.write_video(frames(), tmp_path / "a.gif")
    assert os.listdir(tmp_path) == []                                        # breaks if frames wait in a named file
    data.write_video(iter(clip.unbind(1)), tmp_path / "a.gif")
    data.write_video(clip, tmp_path / "b.gif")
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    for odd in ([clip[:, 0], clip[:, 0, :2]], [clip[:, 0].float()], []):
        with pytest.raises(ValueError):
            data.write_video(iter(odd), tmp_path / "c.gif")
    assert sorted(os.listdir(tmp_path)) == ["a.gif", "b.gif"]


def test_windows_lie_anywhere_in_a_clip_at_both_strides():
    """Temporal super-resolution learns from windows at 8 and at 32 fps: are both there, inside the clip, everywhere?"""
    toy = data.ToySet(200, frames=5, windows=(8, 32))
    times = np.stack([toy.times(i) for i in range(200)])
    assert times.min() >= 0 and times.max() <= data.SECONDS
    assert np.allclose(np.diff(times[::2]), 1 / 8) and np.allclose(np.diff(times[1::2]), 1 / 32)
    assert times[:, 0].min() < 0.2 and times[:, -1].max() > 3.8              # breaks if all windows start at 0
    assert np.array_equal(toy[3]["frames"], data.ToySet(200, frames=5, windows=(8, 32))[3]["frames"])
