"""Exercises on training/prepare.py: what a run says about a person's clips before it trains."""
import re

import pytest
from conftest import run
from test_folder import describe, write_clip

from data import augment
from data.folder import FolderSet
from data.toyset import ToySet
from training.prepare import Clips, describe_set, through_the_autoencoder


def two_sets(folder, captions, count=400, shade=lambda k: 10 * k, frames=3):
    """(training windows, held-out windows) of a folder with a clip of 2 s for each caption; every tenth is held out."""
    for k in range(len(captions)):
        write_clip(folder / f"{k:03}.gif", 20, 100, shade)
    describe(folder, **{f"{k:03}__gif": caption for k, caption in enumerate(captions)})
    return [FolderSet(folder, count, frames, 4, size=8, held_out=held_out) for held_out in (False, True)]


def test_the_first_lines_count_clips_and_captions(tmp_path):
    """Nine clips to train on, with three captions. Which numbers are said?"""
    text = describe_set(*two_sets(tmp_path, ["a b", "c d", "e f"] * 3 + ["a f"]))
    assert text.startswith("9 clips, 3 distinct captions; of 1 held-out clips, 1 have only words that training sees")


def test_the_first_lines_know_new_words(tmp_path):
    """Of two held-out captions one has a word that no other clip has. Capitals and commas make no new word."""
    captions = ["red ball"] * 9 + ["Red, BALL"] + ["blue ball"] * 9 + ["green ball"]
    assert "of 2 held-out clips, 1 have only words" in describe_set(*two_sets(tmp_path, captions))


def test_the_first_lines_measure_motion(tmp_path):
    """Each frame is brighter by 10 of 255, and at 4 fps two or three frames lie between two: how much is the motion?"""
    text = describe_set(*two_sets(tmp_path, ["x"] * 10))
    motion = float(re.search(r"motion ([\d.]+)", text)[1])
    assert 20 / 255 < motion < 30 / 255 and "0% stills" in text


def test_the_first_lines_count_stills(tmp_path):
    """Clips in which nothing moves: are they all called stills, and is the filter named?"""
    text = describe_set(*two_sets(tmp_path, ["x"] * 10, shade=lambda k: 50 + k % 1))
    assert "100% stills" in text and "data.filter" in text


def test_a_picture_is_no_still_to_leave_out(tmp_path):
    """The image model trains on windows of one frame. Is neither motion nor the filter named there?"""
    text = describe_set(*two_sets(tmp_path, ["x"] * 10, frames=1))
    assert "data.filter" not in text and "stills" not in text


@pytest.mark.parametrize("captions, count, said", [
    (["x"] * 10, 400, {"--patience": True, "--guidance": False, "--clips": False}),
    ([f"word {k}" for k in range(10)], 100, {"--patience": True, "--guidance": True, "--clips": True})])
def test_the_recipe_follows_the_set(tmp_path, captions, count, said):
    """One caption for ten clips and 44 windows of each; a caption each and 11 windows. Which options are named?"""
    text = describe_set(*two_sets(tmp_path, captions, count))
    assert {name: name in text.splitlines()[1] for name in said} == said


class Cinema:
    """An autoencoder that adds an error to what it gives back."""
    def __init__(self, error):
        self.error = error

    def encode_frames(self, x):
        return x

    def decode(self, z):
        return z + self.error


@pytest.mark.parametrize("error, decibels, warns", [(2 / 255, "48.1", False), (20 / 255, "28.1", True)])
def test_the_psnr_of_the_autoencoder_is_that_of_255_levels(error, decibels, warns):
    """An error of one level of 255, and of ten: 20 log10(255) and 20 log10(25.5). Which one gets a warning?"""
    line = through_the_autoencoder(Cinema(error), ToySet(2, frames=3, size=16))
    assert f"{decibels} dB" in line and ("pretrain vae" in line) == warns and "\n" not in line


@pytest.mark.parametrize("few, asked, changes", [(10, None, ("shift", "colour")), (9, None, ()), (10, (), ()),
                                                 (9, ("zoom",), ("zoom",))])
def test_only_few_clips_are_augmented_by_default(tmp_path, monkeypatch, capsys, few, asked, changes):
    """Nine clips to train on, and one held out: by default, are fewer than `few` augmented? Is a choice kept?"""
    two_sets(tmp_path, ["x"] * 10)
    monkeypatch.setattr(augment, "FEW", few)
    clips = Clips(data=tmp_path, clips=4, frames=3, fps=4, size=8, augment=asked)
    assert [dataset.augment for dataset in clips.two_sets()] == [changes, ()]
    assert f"augmented by: {', '.join(changes) or 'nothing'}\n" in capsys.readouterr().out


def test_held_out_windows_are_not_augmented(tmp_path):
    """The loss on them must be comparable from run to run. Which augmentations have the two sets?"""
    two_sets(tmp_path, ["x"] * 10)
    sets = Clips(data=tmp_path, clips=4, frames=3, fps=4, size=8, augment=("shift",)).two_sets()
    assert [dataset.augment for dataset in sets] == [("shift",), ()]


@pytest.fixture
def own_run(like, ready, tmp_path, capsys):
    """(what was printed, the folder) of stage video on ten clips of one's own: three steps, with --start."""
    out = ready("out")
    assert run("video", like, ready("start"), 1) == 0
    captions = [f"clip {k}" for k in range(9)]
    two_sets(tmp_path / "clips", ["long " * 80, *captions])
    capsys.readouterr()
    assert run("video", like, out, 3, "--data", tmp_path / "clips", "--fps", 4, "--start", tmp_path / "start") == 0
    return capsys.readouterr().out, out


@pytest.mark.slow
def test_a_run_on_ones_own_clips_says_what_it_needs_to(own_run):
    """The set, what fits, the autoencoder, and the best weights by held-out clips: in this order, before and after?"""
    output, _ = own_run
    places = [output.find(words) for words in ("9 clips, 9 distinct", "what fits: ", "through the autoencoder: ",
                                               "1 captions are longer than the text encoder reads; cut off, as 'long",
                                               "first loss, on held-out clips")]
    assert -1 not in places and places == sorted(places)


@pytest.mark.slow
def test_a_run_on_ones_own_clips_keeps_the_best(own_run):
    """Without --keep: has the table the losses of the average weights?"""
    _, out = own_run
    assert "average weights" in (out / "video.csv").read_text().splitlines()[0]
