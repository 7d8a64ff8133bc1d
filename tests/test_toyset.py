"""Exercises on data/toyset.py: is the toy world as its docstrings say?"""
import numpy as np
import pytest
import torch
from PIL import Image

from data import toyset
from data.toyset import COLOURS, MOTIONS, ROUND, SHAPES, Background, Scene, Thing, ToySet, render, sample_scene

GREY = Background("slope", ((200, 200, 200), (200, 200, 200)), 0.0, 1.0)


def alone(shape, motion, speed="", radius=0.15, colour="red"):
    """A scene of one thing in the centre, on grey."""
    return Scene((Thing(shape, colour, motion, speed, 0.5, 0.5, radius),), GREY)


def vivid(frames):
    """A mask of the thing: on grey, the pixels that have a colour."""
    return frames.max(-1).astype(int) - frames.min(-1) > 70


def centre(mask):
    """Mean x and y of a mask, as fractions of the picture."""
    return np.array([np.nonzero(mask)[1].mean() + 0.5, np.nonzero(mask)[0].mean() + 0.5]) / len(mask)


# ---- scenes ---------------------------------------------------------------------------------------------------------

def test_a_seed_is_a_scene():
    """Is seed 5 the same scene twice? Are two hundred seeds two hundred scenes?"""
    assert sample_scene(5) == sample_scene(5)
    assert len({sample_scene(seed) for seed in range(200)}) == 200          # breaks if the seed is not used


def test_one_triple_in_ten_is_never_trained_on():
    """Do three thousand training scenes contain a held-out triple? And does every word still occur often?"""
    triples = [(s, c, m) for s in SHAPES for c in COLOURS for m in MOTIONS if not (m == "turning" and s in ROUND)]
    held_out = {triple for triple in triples if toyset.is_held_out(*triple)}
    assert 0.09 < len(held_out) / len(triples) < 0.11
    things = [thing for seed in range(3000) for thing in sample_scene(seed).things]
    seen = [(thing.shape, thing.colour, thing.motion) for thing in things]
    assert not held_out & set(seen)                         # breaks if only the first thing of a scene is checked
    assert set(triples) - held_out <= set(seen)
    for place, words in enumerate((SHAPES, COLOURS, MOTIONS)):
        assert min([triple[place] for triple in seen].count(word) for word in words) > 150
    assert held_out == {(t.shape, t.colour, t.motion) for s in range(800) for t in sample_scene(s, True, 1).things}


def test_nothing_touches_anything():
    """A thing that left the picture, or touched another, would change its shape. Does one, at 401 times?"""
    for seed in range(300):
        paths = [thing.at(np.linspace(0, 4, 401)) for thing in sample_scene(seed, things=1 + seed % 2).things]
        for x, y, radius, _ in paths:
            assert min((x - radius).min(), (y - radius).min(), 1 - (x + radius).max(), 1 - (y + radius).max()) > 0.01
        if len(paths) == 2:                                 # breaks if only the key frame is looked at
            (xa, ya, ra, _), (xb, yb, rb, _) = paths
            assert (np.hypot(xa - xb, ya - yb) - ra - rb).min() > 0


def test_captions_read_as_english():
    """Five wordings of one scene, written out by hand: "an" orange ring, and a speed only if it is unusual."""
    one = Thing("ring", "orange", "moving left", "slowly", 0.5, 0.5, 0.1)
    two = Thing("star", "blue", toyset.STILL, "", 0.2, 0.2, 0.1)
    assert [Scene((one, two), GREY).caption(wording) for wording in range(toyset.WORDINGS)] == [
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
    """In four seconds a thing should travel 0.4 of the picture, in the direction of the caption. Does it?"""
    first, last = vivid(render(alone("circle", motion, speed), [0, 4]))
    moved = centre(last) - centre(first)
    assert np.allclose(moved, 0.4 * factor * np.array(sign), atol=0.004)    # breaks if y points up


def test_growing_doubles_the_radius():
    """Twice the radius is four times the pixels. Does a heart get them?"""
    small, middle, large = vivid(render(alone("heart", "growing"), [0, 2, 4])).sum((1, 2))
    assert abs(large / small - 4) < 0.15 and abs(middle / small - 2) < 0.1  # breaks if the area doubles instead


def test_shrinking_is_growing_backwards():
    """Is the first frame of a growing heart the last one of a shrinking heart?"""
    assert np.array_equal(render(alone("heart", "growing"), [0]), render(alone("heart", "shrinking"), [4]))


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - set(ROUND)))
def test_turning_is_clockwise_and_stays_in_place(shape):
    """Half a second after the key frame: is it turned by 20 degrees? (Pillow counts the other way.)"""
    before, after = vivid(render(alone(shape, "turning", radius=0.3), [2, 2.5]))
    turned = np.asarray(Image.fromarray(before.astype(np.uint8) * 255).rotate(-20)) > 127
    assert (turned & after).sum() / (turned | after).sum() > 0.95           # breaks if y points up
    assert abs(centre(after) - centre(before)).max() < 0.005                # breaks if the origin is not the centroid


def test_bouncing_circling_and_swinging_by_hand():
    """Where is the thing at moments that one can work out on paper?"""
    def place(motion, t):
        return centre(vivid(render(alone("circle", motion, radius=0.1), [t]))[0]) - 0.5
    assert np.allclose(place("bouncing", 1), (0, 0.28), atol=0.004)         # hops of 2 s: top at 2 s, floor at 1 s
    assert np.allclose(place("bouncing", 0), (0, 0), atol=0.004)
    assert np.allclose(place("circling", 3), (0.17, 0.17), atol=0.004)      # clockwise from the top: right comes first
    assert np.allclose(place("circling", 4), (0, 0.34), atol=0.004)
    arc = np.radians(40)
    assert np.allclose(place("swinging", 2.8), (0.32 * np.sin(arc), 0.32 * (np.cos(arc) - 1)), atol=0.004)
    assert np.allclose(place("swinging", 0.4), (0, 0), atol=0.004)          # half a swing of 3.2 s earlier


def test_a_disc_has_the_area_that_geometry_gives_it():
    """The circle has 0.86 of its radius: an area of pi (0.86 r)^2. Does it, at any size in pixels?"""
    for size in (64, 96, 192):
        share = vivid(render(alone("circle", "moving left", radius=0.2), [2], size)).mean()
        assert abs(share / (np.pi * (0.86 * 0.2) ** 2) - 1) < 0.03          # breaks if r is the diameter


def test_the_edge_is_soft():
    """Antialiasing: a disc grows by a tenth of a pixel. Does no pixel flip from background to thing?

    Pixels at the edge should change by a tenth of the difference between the two, about 15 of 255.
    """
    thin, thick = (render(alone("circle", "moving left", radius=(22 + more) / 128 / 0.86), [2])[0].astype(int)
                   for more in (0, 0.1))
    assert 10 < abs(thick - thin).max() < 25                                # breaks if the edge is a hard threshold


def test_shapes_and_colours_can_be_told_apart():
    """How much do the two most similar silhouettes differ, at 24 pixels? And the two most similar colours?"""
    masks = [vivid(render(alone(shape, "moving left", radius=0.1), [2]))[0] for shape in SHAPES]
    overlap = max((a & b).sum() / (a | b).sum() for i, a in enumerate(masks) for b in masks[:i])
    assert len(SHAPES) >= 6 and overlap < 0.85
    rgb = np.array(list(COLOURS.values()), float)
    gaps = [np.linalg.norm(a - b) for i, a in enumerate(rgb) for b in rgb[:i]]
    assert len(COLOURS) >= 8 and len(MOTIONS) >= 8 and min(gaps) > 70


def test_the_key_frame_is_the_middle_one_at_any_rate():
    """9 frames at 2 fps, 33 at 8 fps, 1 alone: do all have the same centre? Is every fourth of the 33 one of the 9?"""
    slow, fast, still = (ToySet(4, n, fps, 64, seed=3)[2] for n, fps in ((9, 2), (33, 8), (1, 2)))
    assert slow["frames"].shape == (3, 9, 64, 64) and slow["frames"].dtype == torch.uint8
    assert torch.equal(fast["frames"][:, ::4], slow["frames"])
    assert torch.equal(still["frames"][:, 0], slow["frames"][:, 4])         # breaks if times are not centred on 2 s
    assert slow["caption"] == fast["caption"] == still["caption"]


def test_a_clip_of_more_than_four_seconds_is_refused():
    """17 frames at 2 fps are 8 s. Is there an error before anything is drawn?"""
    with pytest.raises(ValueError, match="lasts 4 s"):
        ToySet(1, 17, 2)


def test_the_command_draws_a_sheet(tmp_path):
    """python -m data.toyset: a sheet of three clips of five frames?"""
    out = tmp_path / "toyset.png"
    assert toyset.main(f"--out {out} --clips 3 --frames 5 --size 32".split()) == 0
    assert Image.open(out).width == 5 * 36 + 4


@pytest.mark.parametrize("option", ["--out a.doc", "--frames 17", "--size 0", "--fps inf", "--seed -1", "--clips x"])
def test_what_the_command_cannot_draw_is_one_line(option, tmp_path, monkeypatch, capsys):
    """An ending that it cannot write, 8 s of frames, numbers out of range: one line, exit code 2, no file?"""
    monkeypatch.chdir(tmp_path)
    try:
        code = toyset.main(option.split())
    except SystemExit as stop:                                              # argparse's way out
        code = stop.code
    message = capsys.readouterr().err
    assert code == 2 and message.startswith("python -m data.toyset: ") and message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_windows_lie_anywhere_in_a_clip_at_both_rates():
    """Temporal super-resolution learns from windows at 8 and 32 fps. Are both there, and do they cover the clip?"""
    windows = ToySet(200, frames=5, windows=(8, 32))
    times = np.stack([windows.times(i) for i in range(200)])
    assert times.min() >= 0 and times.max() <= toyset.SECONDS
    assert np.allclose(np.diff(times[::2]), 1 / 8) and np.allclose(np.diff(times[1::2]), 1 / 32)
    assert times[:, 0].min() < 0.2 and times[:, -1].max() > 3.8              # breaks if all windows start at 0
    assert torch.equal(windows[3]["frames"], ToySet(200, frames=5, windows=(8, 32))[3]["frames"])


def test_a_caption_of_a_window_names_its_rate():
    """Windows at 8 and 32 fps by turns, and a whole clip: which captions begin with a rate?"""
    windows = ToySet(2, frames=5, windows=(8, 32))
    rates = [windows[i]["caption"].partition(", ")[0] for i in range(2)]
    assert rates == ["8 fps", "32 fps"] and not ToySet(1)[0]["caption"][0].isdigit()
