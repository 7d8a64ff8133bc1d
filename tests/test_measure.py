"""Exercises for evaluation/measure.py: first measure the ruler itself, on clips of which everything is known."""
import numpy as np
import pytest
from PIL import Image, ImageFilter

from data.toyset import COLOURS, MOTIONS, SHAPES, Background, Scene, Thing, frame_times, render, sample_scene, scene_of
from evaluation.measure import average, average_compared, compare, find, psnr, score_clip, shape_of

GREY = Background("slope", ((210, 210, 210), (190, 190, 190)), 0.0, 1.0)


def clip_of(thing, *others):
    return render(Scene((thing, *others), GREY), frame_times())


def ask(shape="star", colour="blue", motion="moving left", speed="", x=0.5, y=0.5, radius=0.14):
    return Thing(shape, colour, motion, speed, x, y, radius)


def right(score):
    return score["shape"] and score["colour"] and score["motion"] and not score["still"]


def degraded(frames, rng):
    """The errors of a poor autoencoder: blur, half the pixels, noise. About 29 dB."""
    size = frames.shape[1]
    soft = [Image.fromarray(frame).filter(ImageFilter.GaussianBlur(1.2)) for frame in frames]
    soft = [np.asarray(f.resize((size // 2,) * 2, Image.Resampling.BOX).resize((size,) * 2, Image.Resampling.BICUBIC))
            for f in soft]
    return np.clip(np.stack(soft) + rng.normal(0, 8, frames.shape), 0, 255).astype(np.uint8)


# ---- the toy world --------------------------------------------------------------------------------------------------

def test_the_truth_scores_full_marks():
    """Of 80 true clips, with one thing and with two: how many are misread, and how much do they seem to drift?"""
    for seed in range(80):
        scene = sample_scene(seed, held_out=seed % 2 == 0)
        score = score_clip(render(scene, frame_times()), *scene.things)
        assert right(score), (scene.caption(), score["saw"])
        assert abs(score["speed"] - 1) < 0.06 and score["colour_drift"] < 0.02
        assert not score["size_drift"] > 0.03               # it is nan where the size should change


def test_the_truth_survives_a_poor_autoencoder():
    """The same at 29 dB. A ruler that fails on blur would blame the model for it."""
    rng, rights, decibels = np.random.default_rng(0), [], []
    for seed in range(100, 170):
        scene = sample_scene(seed)
        clip = render(scene, frame_times())
        poor = degraded(clip, rng)
        decibels.append(psnr(clip, poor))
        rights.append(right(score_clip(poor, *scene.things)))
    assert 28 < np.mean(decibels) < 30 and np.mean(rights) > 0.98


@pytest.mark.parametrize("motion", list(MOTIONS))
def test_a_still_is_called_a_still(motion):
    """The key frame, nine times. All is right except the motion, and nothing drifts."""
    scene = scene_of("heart", "green", motion, "slowly", seed=4)
    score = score_clip(np.repeat(render(scene, [2.0]), 9, axis=0), *scene.things)
    assert score["still"] and not score["motion"] and score["shape"] and score["colour"]
    assert score["colour_drift"] == 0 and np.isnan(score["speed"])          # breaks if STILL does not compete


def test_backwards_is_another_motion():
    """A clip is played backwards. Left becomes right and growing shrinking; a bounce stays a bounce."""
    seen = {}
    for motion in MOTIONS:
        thing = ask("heart", motion=motion)
        seen[motion] = score_clip(clip_of(thing)[::-1], thing)["saw"][2]
    pairs = ("moving left", "moving right"), ("moving up", "moving down"), ("growing", "shrinking")
    assert all(seen[a] == b and seen[b] == a for a, b in pairs) and seen["bouncing"] == "bouncing"
    assert all(seen[motion] != motion for motion in ("turning", "circling", "swinging"))    # breaks if signs are lost


def test_another_shape_or_colour_is_seen():
    """We ask for each shape and colour and show the next one. Is the error found, and named?"""
    shapes, colours = list(SHAPES), list(COLOURS)
    for i in range(8):
        wrong = ask(shapes[i], colours[i])
        score = score_clip(clip_of(wrong), ask(shapes[i - 1], colours[i - 1]))
        assert not score["shape"] and not score["colour"] and score["motion"]
        assert score["saw"] == (shapes[i], colours[i], "moving left")       # breaks if it trusts the Thing asked for


@pytest.mark.parametrize("motion", list(MOTIONS))
def test_half_as_fast_is_half_the_speed(motion):
    """We ask for the usual speed and show "slowly" and "quickly": 0.6 and 1.5, and the motion is still right."""
    for speed, factor in (("slowly", 0.6), ("quickly", 1.5)):
        thing = ask(motion=motion, speed=speed)
        score = score_clip(clip_of(thing), ask(motion=motion))
        assert score["motion"] and abs(score["speed"] - factor) < 0.05      # breaks if it counts frames, not seconds


def test_colour_drift_by_hand():
    """All frames but the key frame are darkened to 0.9: a drift of 0.1 of the mean colour, in 8 frames of 9."""
    thing = ask("circle", "orange")
    clip = clip_of(thing)
    drifted = (clip * 0.9).astype(np.uint8)
    drifted[4] = clip[4]
    middle = clip[4, 56:73, 56:73].mean() / 255
    score = score_clip(drifted, thing)
    assert abs(score["colour_drift"] - 0.1 * middle * 8 / 9) < 0.006        # breaks if frame 0 is the key frame
    assert right(score)


def test_size_drift_by_hand():
    """A thing grows that should turn: its radius is 2^(t/4) of the key frame's, t = -2 ... 2 s."""
    score = score_clip(clip_of(ask(motion="growing", radius=0.2)), ask(motion="turning"))
    expected = np.mean(abs(2 ** (np.linspace(-2, 2, 9) / 4) - 1))
    assert abs(score["size_drift"] - expected) < 0.01 and score["saw"][2] == "growing"      # breaks with areas
    assert np.isnan(score_clip(clip_of(ask(motion="growing")), ask(motion="growing"))["size_drift"])


def test_the_second_thing_is_ignored():
    """A small blue star moves beside a larger red square. Whose path is measured? What if the star is missing?"""
    star, square = ask(y=0.25, radius=0.1), ask("square", "red", "moving right", y=0.7, radius=0.2)
    assert right(score_clip(clip_of(star, square), star, square))           # breaks if `other` is not used
    assert right(score_clip(clip_of(star, square), square, star))
    assert score_clip(clip_of(square), star, square)["saw"] == (None, None, None)


def test_stray_pixels_are_no_part_of_the_thing():
    """Four vivid pixels lie in a far corner of the last frame. Does the thing seem to have moved or grown?"""
    thing = ask()
    clip, specked = clip_of(thing), clip_of(thing)
    specked[8, 124:126, 2:4] = COLOURS["blue"]
    for key in ("x", "y", "area"):
        assert find(specked[8])[key] == find(clip[8])[key]                  # breaks if all vivid pixels count


def test_an_empty_picture_has_nothing_right():
    """A clip without a thing, and one whose thing is missing in the last frame."""
    thing = ask()
    clip = clip_of(thing)
    empty = np.full_like(clip, 180)
    score = score_clip(empty, thing)
    assert not (score["shape"] or score["colour"] or score["motion"] or score["found"] or score["still"])
    clip[8] = 180
    score = score_clip(clip, thing)
    assert score["shape"] and score["colour"] and not score["motion"] and not score["found"]


def test_the_angle_of_a_silhouette():
    """A triangle looks the same every 120 degrees. It turns by 40 degrees a second. So at 0, 2, 3 and 4 s it is at -80
    (which looks like 40), 0, 40 and 80 degrees. Are the angles right to the 4 degrees between templates?"""
    clip = render(Scene((ask("triangle", motion="turning", radius=0.3),), GREY), [0, 2, 3, 4])
    for frame, degrees in zip(clip, (40, 0, 40, 80)):
        shape, angle = shape_of(find(frame)["patch"])                       # breaks if the templates turn the other way
        assert shape == "triangle" and abs(np.degrees(angle) - degrees) <= 4


def test_the_average_is_in_percent_and_leaves_out_nan():
    """Two clips by hand; the size of the first should change. Speed alone is no percentage."""
    a = dict(shape=True, colour=True, motion=True, still=False, speed=1.5, colour_drift=0.01, size_drift=float("nan"))
    b = a | dict(shape=False, motion=False, speed=float("nan"), colour_drift=0.03, size_drift=0.25)
    assert average([a, b]) == dict(shape=50, colour=100, motion=50, still=0, speed=1.5, colour_drift=2, size_drift=25)
    assert np.isnan(average([a])["size_drift"])                             # breaks if no clip is a mean of 0


# ---- comparison with the true clip ----------------------------------------------------------------------------------

def bar(n=5, step=1):
    """A bright bar, 2 pixels wide, that moves `step` pixels to the right a frame: uint8 [n, 8, 24, 3]."""
    frame = np.full((8, 24, 3), 40, np.uint8)
    frame[:, 3:5] = (240, 140, 40)
    return np.stack([np.roll(frame, step * k, axis=1) for k in range(n)])


def dawn(step, n=5):
    """Everything brightens by `step` a frame."""
    return np.stack([np.full((8, 24, 3), 100 + step * k, np.uint8) for k in range(n)])


def test_psnr_by_hand():
    """Every pixel is off by 1: 10 log10(255^2) = 48.13 dB. By 100: 40 dB less. By 0: infinite."""
    a = np.full((2, 3, 4, 3), 100, np.uint8)
    assert abs(psnr(a, a - 1) - 48.1308) < 1e-3 and abs(psnr(a, a + 100) - 8.1308) < 1e-3
    assert psnr(a, a) == float("inf")                       # breaks without the floats: 100^2 is 16 in uint8


def test_a_clip_compared_with_itself():
    """No error, no drift, full motion and agreement. If it is brighter by 10 everywhere, only the error changes."""
    score = compare(bar(), bar())
    assert score["centre"] == score["others"] == score["drift"] == 0
    assert score["motion"] == 1 and score["agreement"] == pytest.approx(1)
    brighter = compare(bar() + np.uint8(10), bar())             # breaks if it is measured from the true key frame
    assert brighter == score | {"centre": 100, "others": 100, "agreement": pytest.approx(1)}


def test_the_centre_frame_and_the_others_are_apart():
    """The centre frame is off by 10, or all others by 15: squared errors of 100 and 225, each in its own column."""
    centre, others = bar(), bar()
    centre[2] += 10
    others[[0, 1, 3, 4]] += 15
    for clip, errors in ((centre, (100, 0)), (others, (0, 225))):
        score = compare(clip, bar())
        assert (score["centre"], score["others"]) == errors     # breaks if frame 0 is the key frame


def test_drift_is_the_change_of_the_mean_colour():
    """Red rises by 3 a frame, green and blue stay: 2, 1, 0, 1, 2 steps from the key frame, in one channel of three."""
    clip = bar()
    clip[..., 0] += np.arange(0, 15, 3, dtype=np.uint8)[:, None, None]
    assert compare(clip, bar())["drift"] == pytest.approx(3 * 6 / 5 / 3 / 255)          # breaks from the first frame


def test_motion_is_relative_to_the_truth():
    """A bar 2 wide changes 2 columns at 1 pixel a frame, 4 at 2 or 3. A dawn twice as steep changes twice as much."""
    motion = lambda clip, true: compare(clip, true)["motion"]
    assert motion(bar(step=2), bar()) == pytest.approx(2) and motion(bar(step=3), bar()) == pytest.approx(2)
    assert motion(bar(), bar(step=3)) == pytest.approx(1 / 2)                           # breaks upside down
    assert motion(dawn(8), dawn(4)) == pytest.approx(2)
    assert motion(dawn(4)[::-1], dawn(4)) == pytest.approx(1)                           # breaks in uint8: -4 is 252


def test_agreement_knows_the_direction():
    """Dusk for a dawn: -1. The bar backwards: at 1 and 2 pixels from the key frame it changes 2 and 4 columns, on both
    sides: 12 in squares. Only the columns that it leaves, 2 in each of 2 frames, are common: 4 / 12."""
    assert compare(dawn(4)[::-1], dawn(4))["agreement"] == pytest.approx(-1)            # breaks with absolute changes
    assert compare(bar()[::-1], bar())["agreement"] == pytest.approx(4 / 12)


def test_noise_agrees_with_nothing():
    """Two clips of independent noise have the same motion. Their changes are not correlated."""
    noise, true = (np.random.default_rng(seed).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8) for seed in (0, 1))
    assert abs(compare(noise, true)["agreement"]) < 0.02                                # breaks with frames themselves
    assert compare(noise, true)["motion"] == pytest.approx(1, abs=0.02)


@pytest.mark.filterwarnings("error")
def test_a_still_does_not_move_and_agrees_with_nothing():
    """The key frame repeated has no motion and nothing to correlate. If the truth is still, neither is defined."""
    still = bar()[[2] * 5]
    score = compare(still, bar())
    assert score["centre"] == score["drift"] == score["motion"] == 0 and np.isnan(score["agreement"])
    flicker = still.copy()
    flicker[3, 0, 0] += 3                                        # 0.00001 a frame, less than MOVES
    for true in (still, flicker):
        score = compare(bar(), true)
        assert np.isnan(score["motion"]) and np.isnan(score["agreement"])               # breaks with a division by 0
    flash = dawn(0) + 10 * np.uint8(np.arange(5) != 2)[:, None, None, None]             # all pixels change alike
    assert compare(bar(), flash)["motion"] > 0 and np.isnan(compare(bar(), flash)["agreement"])


def test_the_average_leaves_out_undefined_numbers():
    """Four clips by hand. The truth of the last is still. The first has 1/20 of its truth's motion and no agreement."""
    nan = float("nan")
    scores = [dict(centre=0.0, others=0.0, drift=0.01, motion=0.05, agreement=nan),
              dict(centre=100.0, others=400.0, drift=0.02, motion=1.0, agreement=0.5),
              dict(centre=200.0, others=0.0, drift=0.03, motion=9.0, agreement=-0.1),
              dict(centre=100.0, others=0.0, drift=0.02, motion=nan, agreement=nan)]
    row = average_compared(scores)
    assert row["centre frame"] == row["other frames"] == pytest.approx(28.1308, abs=1e-3)   # breaks: a mean of dB
    assert row["colour drift"] == pytest.approx(2) and row["motion"] == 1 and row["agreement"] == pytest.approx(0.2)
    assert row["still"] == pytest.approx(100 / 3)                                       # breaks if nan counts as still
    row = average_compared(scores[3:])
    assert row["colour drift"] == 2 and all(np.isnan(row[name]) for name in ("motion", "agreement", "still"))
