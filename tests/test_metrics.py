"""Exercises on metrics.py: a ruler is itself measured first, on clips of which everything is known."""
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from test_clips import describe, write_clip

import metrics
from clips import ClipSet
from data import COLOURS, MOTIONS, SHAPES, Background, Scene, Thing, frame_times, render, sample_scene, scene_of
from files import from_pixels
from metrics import average_compared, compare, psnr, score_clip
from microcinema import MicroCinema

TOY = Path(__file__).parents[1] / "toy"
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
    error, distance = metrics.against_truth(moved, true)
    assert distance == pytest.approx(5, abs=0.2)                             # breaks if only x counts
    assert metrics.decibels(error) == pytest.approx(metrics.psnr(moved, true))
    assert metrics.against_truth(true, true) == (0, 0)
    assert metrics.against_truth(np.full_like(true, 90), true)[1] == 64


def test_interpolation_is_scored_beside_both_cross_fades():
    """Fast motion, 2 to 8 fps: the truth through the autoencoder is nearest; a cross-fade shows two things. Of a thing
    that stays in its place it shows one, so that with such scenes among them its PSNR is better than of the others."""
    cinema = MicroCinema.load(TOY)
    rows = metrics.score_interpolation(cinema, 4, 8, steps=1)
    assert list(rows)[1:] == ["cross-fade of pixels", "cross-fade of latents", "MicroCinema"]
    best = rows["truth through the autoencoder"]
    ours, fades = rows["MicroCinema"], [rows["cross-fade of pixels"], rows["cross-fade of latents"]]
    assert all(best[0] > psnr and best[2] <= away for psnr, _, away in fades)
    assert best[0] > ours[0] and all(ours[2] < away / 2 for *_, away in fades)           # breaks with the ends' mean
    assert all(psnr > of_moving for psnr, of_moving, _ in fades)             # breaks if all count as moving


# ---- clips of one's own ----

def bar(n=5, step=1):
    """A bright bar, 2 pixels wide, that goes `step` pixels to the right a frame: uint8 [n, 8, 24, 3]."""
    frame = np.full((8, 24, 3), 40, np.uint8)
    frame[:, 3:5] = (240, 140, 40)
    return np.stack([np.roll(frame, step * k, axis=1) for k in range(n)])


def dawn(step, n=5):
    """Everything brightens by `step` a frame."""
    return np.stack([np.full((8, 24, 3), 100 + step * k, np.uint8) for k in range(n)])


def test_a_clip_compared_with_itself():
    """No error, no drift, as much motion, and all of it alike. Brighter by 10 everywhere: only the error is another."""
    score = compare(bar(), bar())
    assert score["centre"] == score["others"] == score["drift"] == 0
    assert score["motion"] == 1 and score["agreement"] == pytest.approx(1)
    brighter = compare(bar() + np.uint8(10), bar())             # breaks if it counts from the true key frame
    assert brighter == score | {"centre": 100, "others": 100, "agreement": pytest.approx(1)}


def test_the_centre_frame_and_the_others_are_apart():
    """The centre frame off by 10, or all others off by 15: squared errors of 100 and 225, each in its place."""
    centre, others = bar(), bar()
    centre[2] += 10
    others[[0, 1, 3, 4]] += 15
    for clip, errors in ((centre, (100, 0)), (others, (0, 225))):
        score = compare(clip, bar())
        assert (score["centre"], score["others"]) == errors     # breaks if frame 0 is the key frame


def test_drift_is_how_far_the_mean_colour_goes():
    """Red rises by 3 a frame, green and blue stay: 2, 1, 0, 1, 2 steps from the key frame, in a channel of three."""
    clip = bar()
    clip[..., 0] += np.arange(0, 15, 3, dtype=np.uint8)[:, None, None]
    assert compare(clip, bar())["drift"] == pytest.approx(3 * 6 / 5 / 3 / 255)          # breaks from the first frame


def test_motion_is_how_much_changes_of_what_should():
    """A bar 2 wide changes 2 columns at 1 pixel a frame, 4 at 2 or 3; a dawn twice as steep, twice as much."""
    of = lambda clip, true: compare(clip, true)["motion"]
    assert of(bar(step=2), bar()) == pytest.approx(2) and of(bar(step=3), bar()) == pytest.approx(2)
    assert of(bar(), bar(step=3)) == pytest.approx(1 / 2)                               # breaks upside down
    assert of(dawn(8), dawn(4)) == pytest.approx(2)
    assert of(dawn(4)[::-1], dawn(4)) == pytest.approx(1)                               # breaks in uint8: -4 is 252


def test_agreement_knows_where_to():
    """Dusk for a dawn: -1. The bar backwards: from the key frame, 1 and 2 pixels off it changes 2 and 4 columns, on
    both sides: 12 in squares. Only the place it has left, 2 columns in each of 2 frames, is common: 4 / 12."""
    assert compare(dawn(4)[::-1], dawn(4))["agreement"] == pytest.approx(-1)            # breaks with absolute changes
    assert compare(bar()[::-1], bar())["agreement"] == pytest.approx(4 / 12)
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    true = np.random.default_rng(1).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    assert abs(compare(noise, true)["agreement"]) < 0.02                                # breaks with frames themselves
    assert compare(noise, true)["motion"] == pytest.approx(1, abs=0.02)


@pytest.mark.filterwarnings("error")
def test_a_still_does_not_move_and_agrees_with_nothing():
    """The key frame repeated: none of the motion, nothing to correlate. If the truth is still, neither is defined."""
    still = bar()[[2] * 5]
    score = compare(still, bar())
    assert score["centre"] == score["drift"] == score["motion"] == 0 and np.isnan(score["agreement"])
    flicker = still.copy()
    flicker[3, 0, 0] += 3                                        # 0.00001 a frame, of 1: less than MOVES
    for true in (still, flicker):
        score = compare(bar(), true)
        assert np.isnan(score["motion"]) and np.isnan(score["agreement"])               # breaks: divided by nothing
    flash = dawn(0) + 10 * np.uint8(np.arange(5) != 2)[:, None, None, None]             # it moves, all pixels alike
    assert compare(bar(), flash)["motion"] > 0 and np.isnan(compare(bar(), flash)["agreement"])


def test_the_average_leaves_out_what_does_not_apply():
    """Four clips by hand; the last one's truth is still, the first moves 1/20 of its truth and agrees with nothing."""
    nan = float("nan")
    scores = [dict(centre=0.0, others=0.0, drift=0.01, motion=0.05, agreement=nan),
              dict(centre=100.0, others=400.0, drift=0.02, motion=1.0, agreement=0.5),
              dict(centre=200.0, others=0.0, drift=0.03, motion=9.0, agreement=-0.1),
              dict(centre=100.0, others=0.0, drift=0.02, motion=nan, agreement=nan)]
    row = average_compared(scores)
    assert row["centre frame"] == row["other frames"] == pytest.approx(28.1308, abs=1e-3)   # breaks: a mean of dB
    assert row["colour drift"] == pytest.approx(2) and row["motion"] == 1 and row["agreement"] == pytest.approx(0.2)
    assert row["still"] == pytest.approx(100 / 3)                                       # breaks if nan is still
    row = average_compared(scores[3:])
    assert row["colour drift"] == 2 and all(np.isnan(row[name]) for name in ("motion", "agreement", "still"))


def eleven_clips(folder):
    """Eleven dawns of 2 s, 10 frames a second; number k brightens by k a frame. The tenth is kept out of training."""
    for k in range(11):
        write_clip(folder / f"{k}.webp", 20, shade=lambda frame: 20 + (k + 1) * frame, size=(64, 64))
    describe(folder, **{f"{k}__webp": f"dawn {k}" for k in range(11)})
    return folder


def test_the_true_key_frame_of_a_clip_kept_out_is_what_the_model_is_given(tmp_path):
    """A model whose autoencoder is perfect and whose videos stand still: what was it asked, and what are its scores?"""
    asked = []

    class Still:
        encode_frames = decode = staticmethod(lambda x: x)

        def animate(self, prompts, keys, seeds, **changes):
            asked.append((prompts, keys, list(seeds), changes))
            return metrics.repeated(keys, 5)
    clips = ClipSet(eleven_clips(tmp_path), 3, frames=5, fps=10, size=16, held_out=True)
    rows, strip = metrics.score_clips(Still(), clips, seed=7, batch=2, shown=2, steps=4)
    assert [(prompts, seeds) for prompts, _, seeds, _ in asked] == [(["dawn 9"] * 2, [7, 8]), (["dawn 9"], [9])]
    for i, key in enumerate(torch.cat([keys for _, keys, _, _ in asked])):
        assert torch.equal(key, from_pixels(clips[i]["frames"][:, 2]))                  # breaks if frame 0 is the key
    assert asked[0][3] == {"steps": 4}
    best, *stills = rows.values()
    assert best["other frames"] == float("inf") and best["motion"] == 1 and best["agreement"] == pytest.approx(1)
    assert best["colour drift"] == pytest.approx(100 * 10 * 6 / 5 / 255)
    assert stills[0] == pytest.approx(stills[1], nan_ok=True) and stills[0]["still"] == 100
    assert stills[0]["other frames"] == pytest.approx(metrics.decibels(100 * (4 + 1 + 1 + 4) / 4))
    assert [caption for caption, _, _ in strip] == ["dawn 9"] * 2
    for i, (_, true, ours) in enumerate(strip):
        assert np.array_equal(true, clips[i]["frames"].permute(1, 2, 3, 0)) and np.array_equal(ours, true[[2] * 5])


def test_the_command_scores_a_folder_and_draws_a_strip(tmp_path, capsys):
    """Nine windows of the one clip kept out: a table of even rows, and eight pairs, the truth above."""
    out, video = tmp_path / "strip.png", next((TOY / "video").glob("*.safetensors"))
    how = ["--data", str(eleven_clips(tmp_path / "clips")), "--prompts", "9", "--steps", "1", "--fps", "5"]
    assert metrics.main([*how, "--weights", str(video), "--out", str(out)]) == 0
    first, _, *table, _, last = capsys.readouterr().out.splitlines()
    assert first.endswith(f"video from {video}") and "8 of them" in last
    assert table[0].startswith("| 9 windows of 1 clips kept out |")                    # breaks if all clips are taken
    assert len(table) == 5 and all(line.count("|") == 8 for line in table)
    assert table[4].startswith("| its key frame repeated | inf dB |") and table[4].endswith("| 0.00 | - | 100.0 % |")
    clips = ClipSet(tmp_path / "clips", 9, 9, 5, held_out=True)
    with Image.open(out) as strip:
        assert strip.size == (9 * 132 + 4, 16 * (128 + 28 + 4) + 4)
        for i in range(8):                                      # breaks if ours is above
            there = [strip.getpixel((4 + 132 * k + 64, 4 + 320 * i + 64))[0] for k in range(9)]
            assert there == clips[i]["frames"][0, :, 64, 64].tolist()


def test_what_cannot_be_scored_is_one_line(tmp_path, capsys):
    """Flags that would be ignored, or do not go together; no clips, or too short ones; a strip that is a film."""
    clips = eleven_clips(tmp_path / "clips")
    own, one = ["--data", str(clips), "--fps", "5"], ["--steps", "1"]
    wrong = {"--fps takes --data": ["--fps", "5"], "--out takes --data": ["--between", "--out", "x.png"],
             "choose one": [*own, "--between"], "--fps above 0": ["--data", str(clips), "--fps", "0"],
             "--gamma: want a finite": [*own, "--gamma", "nan"], "--fps: want a finite": [*own[:2], "--fps", "inf"],
             "--prompts 1 or": [*own, "--prompts", "0"], "--prompts 2 or": ["--prompts", "1"],
             "--batch 1": [*own, "--batch", "0"], "too short": ["--data", str(clips), *one],
             "one picture": [*own, "--out", str(tmp_path / "x.gif")], "does not exist": [*own, "--out", "no/x.png"],
             "no such folder": ["--data", str(tmp_path / "none"), *one], "device none": [*own, "--device", "none"],
             "none of the folders": [*own, "--weights", str(clips)], "0 steps": own}
    for names, argv in wrong.items():
        assert metrics.main(["--steps", "0", *argv]) == 2, names         # breaks if a flag is passed by: "0 steps"
        said = capsys.readouterr()
        line = said.err.splitlines()[-1]
        assert names in line and line.startswith("metrics.py: ") and "Traceback" not in said.err and not said.out, said
    assert not (tmp_path / "x.gif").exists()
