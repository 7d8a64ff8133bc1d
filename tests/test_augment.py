"""Exercises on data/augment.py: what each augmentation changes, and what it leaves."""
import numpy as np
import pytest
from test_folder import describe, write_clip

from data import augment
from data.folder import FolderSet, main

NOISE = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
every_change = pytest.mark.parametrize("change", augment.CHANGES.values(), ids=augment.CHANGES)


def draws(change, frames=NOISE, count=40):
    """`count` results of one augmentation, by different seeds."""
    return [change(frames, np.random.default_rng(seed)) for seed in range(count)]


@every_change
def test_all_frames_of_a_window_change_alike(change):
    """Three equal frames: are they equal afterwards? If not, the augmentation would add motion of its own."""
    for frames in draws(change, NOISE[[0, 0, 0]]):
        assert (frames == frames[0]).all()                                   # breaks if each frame has its own draw


@every_change
def test_a_change_keeps_size_and_type_and_is_drawn_anew(change):
    """Forty seeds: frames of the same shape and type, and many different ones?"""
    for given in (NOISE, NOISE[:, :24], NOISE[:, :, :24]):                   # square, wide, tall
        results = draws(change, given)
        assert all(frames.shape == given.shape and frames.dtype == np.uint8 for frames in results)
        assert len({frames.tobytes() for frames in results}) >= 6            # a wide one moves by a pixel at most


@pytest.mark.parametrize("change", [augment.shift, augment.zoom], ids=["shift", "zoom"])
def test_no_change_mirrors(change):
    """Left is dark, right is bright. A mirror would make "moving left" of "moving right": is left still darker?"""
    ramp = np.broadcast_to(np.linspace(0, 255, 40).astype(np.uint8)[None, None, :, None], NOISE.shape)
    assert all(frames[:, :, :5].mean() < 60 and frames[:, :, -5:].mean() > 195 for frames in draws(change, ramp))


def test_a_shift_moves_pixels_and_invents_none():
    """At most two pixels of 40. Does the inner picture occur in the original, at which offsets?"""
    offsets = set()
    for frames in draws(augment.shift):
        inner = frames[:, 4:-4, 4:-4]
        offsets |= {(y, x) for y in range(9) for x in range(9) if (NOISE[:, y:y + 32, x:x + 32] == inner).all()}
    assert {y for y, _ in offsets} == {x for _, x in offsets} == {2, 3, 4, 5, 6}         # breaks if it goes one way


def test_a_shift_repeats_the_border():
    """A picture whose columns differ, moved to the right: is the gap filled with the first column?"""
    ramp = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, None, :, None], NOISE.shape)
    rows = {tuple(frames[0, 0, :3, 0]) for frames in draws(augment.shift, ramp)}
    assert rows == {(0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 4)}   # breaks if it is filled with black


def test_a_zoom_enlarges_by_up_to_a_tenth():
    """A ramp of slope 5 a pixel: by which factor is it flatter?"""
    ramp = np.broadcast_to((5 * np.arange(40, dtype=np.uint8))[None, None, :, None], NOISE.shape)
    slopes = [(float(frames[0, 20, 34, 0]) - float(frames[0, 20, 5, 0])) / 29 for frames in draws(augment.zoom, ramp)]
    assert min(slopes) > 5 / 1.1 - 0.1 and max(slopes) < 5.1                 # breaks if it shrinks, or adds a border
    assert min(slopes) < 4.7 and max(slopes) > 4.9


def test_a_zoom_squeezes_no_wide_picture():
    """Ramps of slope 3 to the right and slope 5 downwards, in 60 x 30 pixels: are both flatter by one factor?"""
    y, x = np.mgrid[:30, :60]
    ramps = np.stack([3 * x, 5 * y, 0 * x], -1).astype(np.uint8)[None]
    for frames in draws(augment.zoom, ramps):
        right, down = (float(a) - float(b) for a, b in ((frames[0, 15, 54, 0], frames[0, 15, 5, 0]),
                                                        (frames[0, 24, 30, 1], frames[0, 5, 30, 1])))
        assert abs(right / (3 * 49) - down / (5 * 19)) < 0.02                # breaks if the box is square


def test_a_grey_pixel_stays_grey():
    """Saturation and brightness of grey 100: are the three channels equal, and within a twentieth?"""
    for frames in draws(augment.colour, np.full((1, 2, 2, 3), 100, np.uint8)):
        assert (frames == frames[0, 0, 0, 0]).all() and 95 <= frames[0, 0, 0, 0] <= 105


def test_a_colour_keeps_its_order_of_channels():
    """Orange, 200 120 40: green is halfway from blue to red. Does that stay, or does it become red or yellow?"""
    hues = [(float(g) - float(b)) / (float(r) - float(b))
            for r, g, b in (frames[0, 0, 0] for frames in draws(augment.colour, np.uint8([[[[200, 120, 40]]]])))]
    assert np.abs(np.array(hues) - 0.5).max() < 0.02                         # breaks if channels get draws of their own


def test_a_rate_stays_within_a_tenth():
    """8 fps, in a clip that is long enough: from 7.2 to 8.8?"""
    rates = [augment.rate(8, 1.0, np.random.default_rng(seed)) for seed in range(99)]
    assert 7.2 <= min(rates) < 7.4 and 8.6 < max(rates) <= 8.8


def test_a_rate_is_not_slower_than_the_clip_allows():
    """A window of 8 fps that would end after its clip below 7.9 fps: is it never slower?"""
    assert min(augment.rate(8, 7.9, np.random.default_rng(seed)) for seed in range(99)) > 7.9


@pytest.fixture
def brightening(tmp_path):
    """A folder with one clip of 2 s, 10 frames a second, each brighter by 12 of 255."""
    write_clip(tmp_path / "a.gif", 20, 100, shade=lambda k: 12 * k)
    describe(tmp_path, a__gif="brighter")
    return tmp_path


def test_a_window_keeps_its_augmentation(brightening):
    """Item 3, read twice, and item 4: equal frames, then others?"""
    dataset = FolderSet(brightening, 9, frames=3, fps=2, size=20, augment=("shift", "zoom", "colour", "rate"))
    assert dataset[3]["frames"].equal(dataset[3]["frames"]) and not dataset[3]["frames"].equal(dataset[4]["frames"])


def test_without_augmentation_nothing_changes(brightening):
    """Nine windows, with no augmentation and with colour: is the place of each in the clip the same?"""
    for one, other in zip(*(FolderSet(brightening, 9, 3, 2, 20, augment=names) for names in ((), ("colour",)))):
        ratio = other["frames"].float().mean((0, 2, 3)) / one["frames"].float().mean((0, 2, 3)).clamp(min=1)
        assert 0.94 < ratio[1] < 1.06                                        # breaks if the place is drawn anew


def test_the_rate_of_windows_is_drawn(brightening):
    """Frames 2.5 apart at 4 fps, a tenth more or less: do the steps between first and last frame differ?"""
    dataset = FolderSet(brightening, 60, frames=5, fps=4, size=8, augment=("rate",))
    spans = [(item["frames"][0, -1, 0, 0].item() - item["frames"][0, 0, 0, 0].item()) / 12 for item in dataset]
    assert min(spans) < 10 < max(spans) and 8 <= min(spans) and max(spans) <= 12


def test_windows_that_name_their_rate_keep_it(brightening):
    """"8 fps, brighter" must be true. Is the augmentation of rates refused for them?"""
    with pytest.raises(ValueError, match="augment rate: the captions"):
        FolderSet(brightening, 9, frames=3, windows=(4, 8), augment=("rate",))


@pytest.mark.parametrize("choice", ["shift,mirror", "shift,shift"])
def test_an_unknown_augmentation_is_refused(brightening, capsys, choice):
    """A mirror, which would make captions wrong, or one change twice: one line that names the others?"""
    with pytest.raises(SystemExit):
        main([str(brightening), "--augment", choice])
    message = capsys.readouterr().err
    assert f"{choice}: want none, or some of shift,zoom,colour,rate" in message and message.count("\n") == 1


def test_a_sheet_shows_augmented_windows(brightening):
    """`python -m data.folder my_clips --augment colour`: does the picture differ from the one without?"""
    for name in ("none", "colour"):
        options = ["--augment", name, "--out", str(brightening / f"{name}.png"), "--frames", "3", "--size", "16"]
        assert main([str(brightening), *options]) == 0
    plain, coloured = ((brightening / f"{name}.png").read_bytes() for name in ("none", "colour"))
    assert plain != coloured                                                 # breaks if the option is ignored
