"""Exercises on metrics.py: a ruler is itself measured first, on clips of which everything is known."""
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

import metrics
from data import COLOURS, MOTIONS, SHAPES, Background, Scene, Thing, frame_times, render, sample_scene, scene_of
from metrics import psnr, score_clip
from microcinema import MicroCinema

GREY = Background("slope", ((210, 210, 210), (190, 190, 190)), 0.0, 1.0)


def clip_of(thing, *others):
    return render(Scene((thing, *others), GREY), frame_times())


def ask(shape="star", colour="blue", motion="moving left", speed="", x=0.5, y=0.5, radius=0.14):
    return Thing(shape, colour, motion, speed, x, y, radius)


def right(score):
    return score["shape"] and score["colour"] and score["motion"] and not score["still"]


def blurred(frames, rng):
    """What a poor autoencoder does: blur, half the pixels, noise. About 29 dB."""
    size = frames.shape[1]
    soft = [Image.fromarray(frame).filter(ImageFilter.GaussianBlur(1.2)) for frame in frames]
    soft = [np.asarray(f.resize((size // 2,) * 2, Image.Resampling.BOX).resize((size,) * 2, Image.Resampling.BICUBIC))
            for f in soft]
    return np.clip(np.stack(soft) + rng.normal(0, 8, frames.shape), 0, 255).astype(np.uint8)


def test_psnr_by_hand():
    """Every pixel off by one: 10 log10(255^2) = 48.13 dB. By a hundred: 40 dB less. By none: infinite."""
    a = np.full((2, 3, 4, 3), 100, np.uint8)
    assert abs(psnr(a, a - 1) - 48.1308) < 1e-3 and abs(psnr(a, a + 100) - 8.1308) < 1e-3
    assert psnr(a, a) == float("inf")                       # breaks without the floats: 100^2 is 16 in uint8


def test_the_truth_scores_full_marks():
    """Of 80 true clips, with one thing and with two: how many are misread, and how much do they seem to drift?"""
    for seed in range(80):
        scene = sample_scene(seed, held_out=seed % 2 == 0)
        score = score_clip(render(scene, frame_times()), *scene.things)
        assert right(score), (scene.caption(), score["saw"])
        assert abs(score["speed"] - 1) < 0.06 and score["colour_drift"] < 0.02
        assert not score["size_drift"] > 0.03               # nan where the size should change


def test_the_truth_survives_a_poor_autoencoder():
    """The same at 29 dB: a ruler that slips on blur would blame the model for it."""
    rng, rights, decibels = np.random.default_rng(0), [], []
    for seed in range(100, 170):
        scene = sample_scene(seed)
        clip = render(scene, frame_times())
        poor = blurred(clip, rng)
        decibels.append(psnr(clip, poor))
        rights.append(right(score_clip(poor, *scene.things)))
    assert 28 < np.mean(decibels) < 30 and np.mean(rights) > 0.98


@pytest.mark.parametrize("motion", list(MOTIONS))
def test_a_still_is_called_a_still(motion):
    """The key frame, nine times. Everything is right but the motion; nothing drifts."""
    scene = scene_of("heart", "green", motion, "slowly", seed=4)
    score = score_clip(np.repeat(render(scene, [2.0]), 9, axis=0), *scene.things)
    assert score["still"] and not score["motion"] and score["shape"] and score["colour"]
    assert score["colour_drift"] == 0 and np.isnan(score["speed"])          # breaks if STILL does not compete


def test_backwards_is_another_motion():
    """Play a clip backwards: left becomes right, growing shrinking, clockwise anticlockwise, a hop stays a hop."""
    seen = {}
    for motion in MOTIONS:
        thing = ask("heart", motion=motion)
        seen[motion] = score_clip(clip_of(thing)[::-1], thing)["saw"][2]
    pairs = ("moving left", "moving right"), ("moving up", "moving down"), ("growing", "shrinking")
    assert all(seen[a] == b and seen[b] == a for a, b in pairs) and seen["bouncing"] == "bouncing"
    assert all(seen[motion] != motion for motion in ("turning", "circling", "swinging"))    # breaks if signs are lost


def test_another_shape_or_colour_is_seen():
    """Ask for each shape and colour, get the next one: is the mistake found, and named?"""
    shapes, colours = list(SHAPES), list(COLOURS)
    for i in range(8):
        wrong = ask(shapes[i], colours[i])
        score = score_clip(clip_of(wrong), ask(shapes[i - 1], colours[i - 1]))
        assert not score["shape"] and not score["colour"] and score["motion"]
        assert score["saw"] == (shapes[i], colours[i], "moving left")       # breaks if it believes what was asked


@pytest.mark.parametrize("motion", list(MOTIONS))
def test_half_as_fast_is_half_the_speed(motion):
    """Asked for the usual speed, shown "slowly" and "quickly": 0.6 and 1.5, and the motion is still right."""
    for speed, factor in (("slowly", 0.6), ("quickly", 1.5)):
        thing = ask(motion=motion, speed=speed)
        score = score_clip(clip_of(thing), dataclasses.replace(thing, speed=""))
        assert score["motion"] and abs(score["speed"] - factor) < 0.05      # breaks if frames are counted, not seconds


def test_colour_drift_by_hand():
    """Darken all frames but the key frame to 0.9: a drift of 0.1 of the mean colour, in 8 frames of 9."""
    thing = ask("circle", "orange")
    clip = clip_of(thing)
    drifted = (clip * 0.9).astype(np.uint8)
    drifted[4] = clip[4]
    middle = clip[4, 56:73, 56:73].mean() / 255
    score = score_clip(drifted, thing)
    assert abs(score["colour_drift"] - 0.1 * middle * 8 / 9) < 0.006        # breaks if the first frame is the key
    assert right(score)


def test_size_drift_by_hand():
    """Asked to turn, it grows: the radius is 2^(t/4) of the key frame's, t = -2 ... 2 s."""
    score = score_clip(clip_of(ask(motion="growing", radius=0.2)), ask(motion="turning"))
    expected = np.mean(abs(2 ** (np.linspace(-2, 2, 9) / 4) - 1))
    assert abs(score["size_drift"] - expected) < 0.01 and score["saw"][2] == "growing"      # breaks with areas
    assert np.isnan(score_clip(clip_of(ask(motion="growing")), ask(motion="growing"))["size_drift"])


def test_the_second_thing_is_left_aside():
    """A larger red square stands by while a small blue star moves: whose path is it? And if the star is missing?"""
    star, square = ask(y=0.25, radius=0.1), ask("square", "red", "moving right", y=0.7, radius=0.2)
    assert right(score_clip(clip_of(star, square), star, square))           # breaks if `other` is not used
    assert right(score_clip(clip_of(star, square), square, star))
    assert score_clip(clip_of(square), star, square)["saw"] == (None, None, None)


def test_a_stray_speck_is_no_part_of_the_thing():
    """Four vivid pixels in a far corner of the last frame: does the thing seem to have moved or grown?"""
    thing = ask()
    clip, specked = clip_of(thing), clip_of(thing)
    specked[8, 124:126, 2:4] = COLOURS["blue"]
    for key in ("x", "y", "area"):
        assert metrics.find(specked[8])[key] == metrics.find(clip[8])[key]  # breaks if all vivid pixels count


def test_nothing_there_is_nothing_right():
    """An empty picture; and a thing that is gone in the last frame."""
    thing = ask()
    clip = clip_of(thing)
    empty = np.full_like(clip, 180)
    score = score_clip(empty, thing)
    assert not (score["shape"] or score["colour"] or score["motion"] or score["found"] or score["still"])
    clip[8] = 180
    score = score_clip(clip, thing)
    assert score["shape"] and score["colour"] and not score["motion"] and not score["found"]


def test_the_angle_of_a_silhouette():
    """A triangle looks the same every 120 degrees. Turning by 40 a second, at 0, 2, 3, 4 s it is at -80 (that is 40),
    0, 40 and 80: does the ruler, whose marks are 4 degrees apart, say so?"""
    clip = render(Scene((ask("triangle", motion="turning", radius=0.3),), GREY), [0, 2, 3, 4])
    for frame, degrees in zip(clip, (40, 0, 40, 80)):
        shape, angle = metrics.shape_of(metrics.find(frame)["patch"])       # breaks if the templates turn the other way
        assert shape == "triangle" and abs(np.degrees(angle) - degrees) <= 4


def test_frames_are_compared_with_the_truth():
    """The truth moved three pixels to the right and four down: how far is the thing? Gone: half a picture."""
    true = render(scene_of("circle", "red", "moving left"), [1.0, 2.0, 3.0])
    moved = np.roll(true, (4, 3), axis=(1, 2))
    decibels, distance = metrics.against_truth(moved, true, moves=True)
    assert distance == pytest.approx(5, abs=0.2)                             # breaks if only x counts
    assert decibels == pytest.approx(metrics.psnr(moved, true))
    assert metrics.against_truth(true, true, True) == (float("inf"), 0)
    assert metrics.against_truth(np.full_like(true, 90), true, True)[1] == 64
    assert np.isnan(metrics.against_truth(true, true, moves=False)[1])


def test_interpolation_is_scored_beside_both_cross_fades():
    """Fast motion, 2 to 8 fps: the truth through the autoencoder is nearest; a cross-fade shows two things."""
    cinema = MicroCinema.load(Path(__file__).parents[1] / "toy")
    cinema.tsr = cinema.tsr or cinema.video
    rows = metrics.score_interpolation(cinema, 3, 8, steps=1)
    assert list(rows)[1:] == ["cross-fade of pixels", "cross-fade of latents", "MicroCinema"]
    best = rows["truth through the autoencoder"]
    assert all(best[0] > psnr and best[1] <= away for name, (psnr, away) in rows.items() if name != list(rows)[0])
