"""Exercises for evaluation/toy_scores.py: what is the model given, and what is its result compared with?"""
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_folder import describe, write_clip

from data.folder import FolderSet
from data.media import from_pixels
from data.toyset import render, scene_of
from evaluation import toy_scores
from evaluation.measure import decibels, psnr
from microcinema import MicroCinema

TOY = Path(__file__).parents[1] / "toy"


def eleven_clips(folder):
    """Eleven dawns of 2 s, 10 frames a second; number k brightens by k + 1 a frame. The tenth is held out."""
    for k in range(11):
        write_clip(folder / f"{k}.webp", 20, shade=lambda frame: 20 + (k + 1) * frame, size=(64, 64))
    describe(folder, **{f"{k}__webp": f"dawn {k}" for k in range(11)})
    return folder


def exit_code(*argv):
    """The exit code of the command. argparse exits by itself when an option is wrong."""
    try:
        return toy_scores.main([*map(str, argv)])
    except SystemExit as stop:
        return stop.code


def test_frames_are_compared_with_the_truth():
    """The truth moves three pixels to the right and four down: how far away is the thing? Missing: half a picture."""
    true = render(scene_of("circle", "red", "moving left"), [1.0, 2.0, 3.0])
    moved = np.roll(true, (4, 3), axis=(1, 2))
    error, distance = toy_scores.against_truth(moved, true)
    assert distance == pytest.approx(5, abs=0.2)                             # breaks if only x counts
    assert decibels(error) == pytest.approx(psnr(moved, true))
    assert toy_scores.against_truth(true, true) == (0, 0)
    assert toy_scores.against_truth(np.full_like(true, 90), true)[1] == 64


@pytest.mark.slow
def test_interpolation_is_scored_beside_both_cross_fades():
    """Fast motion, 2 to 8 fps: the truth through the autoencoder is nearest. A cross-fade shows two things; but one if
    the thing stays in its place, so the PSNR of such scenes is better than that of the others."""
    cinema = MicroCinema.load(TOY)
    rows = toy_scores.score_interpolation(cinema, 4, 8, steps=1)
    assert list(rows)[1:] == ["cross-fade of pixels", "cross-fade of latents", "MicroCinema"]
    best = rows["truth through the autoencoder"]
    ours, fades = rows["MicroCinema"], [rows["cross-fade of pixels"], rows["cross-fade of latents"]]
    assert all(best[0] > psnr and best[2] <= away for psnr, _, away in fades)
    assert best[0] > ours[0] and all(ours[2] < away / 2 for *_, away in fades)           # breaks with the ends' mean
    assert all(psnr > of_moving for psnr, of_moving, _ in fades)             # breaks if all count as moving


def test_the_model_is_given_the_true_key_frame_of_a_held_out_clip(tmp_path):
    """A fake model has a perfect autoencoder, and its videos stand still. What is it asked, and what are its scores?"""
    asked = []

    class Still:
        encode_frames = decode = staticmethod(lambda x: x)

        def animate(self, prompts, keys, seeds, **changes):
            asked.append((prompts, keys, list(seeds), changes))
            return keys[:, :, None].repeat(1, 1, 5, 1, 1)
    clips = FolderSet(eleven_clips(tmp_path), 3, frames=5, fps=10, size=16, held_out=True)
    rows, strip = toy_scores.score_clips(Still(), clips, seed=7, batch=2, shown=2, steps=4)
    assert [(prompts, seeds) for prompts, _, seeds, _ in asked] == [(["dawn 9"] * 2, [7, 8]), (["dawn 9"], [9])]
    for i, key in enumerate(torch.cat([keys for _, keys, _, _ in asked])):
        assert torch.equal(key, from_pixels(clips[i]["frames"][:, 2]))                  # breaks if frame 0 is the key
    assert asked[0][3] == {"steps": 4}
    best, *stills = rows.values()
    assert best["other frames"] == float("inf") and best["motion"] == 1 and best["agreement"] == pytest.approx(1)
    assert best["colour drift"] == pytest.approx(100 * 10 * 6 / 5 / 255)
    assert stills[0] == pytest.approx(stills[1], nan_ok=True) and stills[0]["still"] == 100
    assert stills[0]["other frames"] == pytest.approx(decibels(100 * (4 + 1 + 1 + 4) / 4))
    assert [caption for caption, _, _ in strip] == ["dawn 9"] * 2
    for i, (_, true, ours) in enumerate(strip):
        assert np.array_equal(true, clips[i]["frames"].permute(1, 2, 3, 0)) and np.array_equal(ours, true[[2] * 5])


@pytest.mark.slow
def test_the_command_scores_a_folder_and_draws_a_strip(tmp_path, capsys):
    """Nine windows of the one held-out clip: a table of even rows, and eight pairs, the truth above."""
    out, video = tmp_path / "strip.png", next((TOY / "video").glob("*.safetensors"))
    options = ["--data", eleven_clips(tmp_path / "clips"), "--prompts", "9", "--steps", "1", "--fps", "5"]
    assert exit_code(*options, "--weights", video, "--out", out) == 0
    first, _, *table, _, last = capsys.readouterr().out.splitlines()
    assert first.endswith(f"video from {video}") and "8 of them" in last
    assert table[0].startswith("| 9 windows of 1 clips held out |")                    # breaks if all clips are taken
    assert len(table) == 5 and all(line.count("|") == 8 for line in table)
    assert table[4].startswith("| its key frame repeated | inf dB |") and table[4].endswith("| 0.00 | - | 100.0 % |")
    clips = FolderSet(tmp_path / "clips", 9, 9, 5, held_out=True)
    with Image.open(out) as strip:
        assert strip.size == (9 * 132 + 4, 16 * (128 + 28 + 4) + 4)
        for i in range(8):                                      # breaks if the model's clip is above the truth
            reds = [strip.getpixel((4 + 132 * k + 64, 4 + 320 * i + 64))[0] for k in range(9)]
            assert reds == clips[i]["frames"][0, :, 64, 64].tolist()


def test_a_wrong_request_is_one_line(tmp_path, capsys):
    """Flags that would be ignored or exclude each other, values out of range; no clips, or clips that are too short."""
    clips = eleven_clips(tmp_path / "clips")
    own, one = ["--data", clips, "--fps", "5"], ["--steps", "1"]
    wrong = {"--fps needs --data": ["--fps", "5"], "--out needs --data": ["--between", "--out", "x.png"],
             "--between: not allowed with argument --data": [*own, "--between"],
             "--fps: 0: want more than 0": ["--data", clips, "--fps", "0"],
             "gamma nan: want finite": [*own, "--gamma", "nan"],
             "--fps: inf: want": ["--data", clips, "--fps", "inf"],
             "--prompts: 0: want": [*own, "--prompts", "0"], "--prompts: want 2 or": ["--prompts", "1"],
             "--batch: 0: want": [*own, "--batch", "0"], "too short": ["--data", clips, *one],
             "unknown ending": [*own, "--out", tmp_path / "x.gif"], "no/x.png: ": [*own, "--out", "no/x.png"],
             "no such folder": ["--data", tmp_path / "none", *one], "--device: none": [*own, "--device", "none"],
             "none of the folders": [*own, "--weights", clips], "0 steps": own}
    for message, argv in wrong.items():
        assert exit_code("--steps", "0", *argv) == 2, message   # breaks if a check is missing: "0 steps" is the last
        printed = capsys.readouterr()
        line = printed.err.splitlines()[-1]
        assert message in line and line.startswith("python -m evaluation.toy_scores: "), printed
        assert "Traceback" not in printed.err and not printed.out, printed
    assert not (tmp_path / "x.gif").exists()
