"""Exercises for filtering.py: what moves too little or too much, and whose caption does not fit, is left out."""
import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_clips import describe, write_clip

import data
import filtering
from clips import Clip, ClipSet


def run(monkeypatch, *argv):
    monkeypatch.setattr("sys.argv", ["data.py", "filter", *map(str, argv)])
    return data.main()


def three_clips(folder):
    """One stands still, one brightens by 10 of 255 a frame, one flickers black and white; 10 frames a second."""
    write_clip(folder / "still.webp", 20, shade=lambda k: 90 + (k == 19))    # a last frame, so that it is an animation
    write_clip(folder / "slow.webp", 20, shade=lambda k: 10 * k)
    write_clip(folder / "flicker.webp", 20, shade=lambda k: 255 * (k % 2))
    describe(folder, still__webp="a wall", slow__webp="a dawn", flicker__webp="a strobe")


def test_motion_is_the_mean_change_of_a_pixel(tmp_path):
    """By hand: 10 of 255 a frame, and at half the rate 20. Black and white by turns: 1."""
    three_clips(tmp_path)
    of = lambda name, fps: filtering.motion(Clip(tmp_path / name, "", 2.0, 24), fps)
    assert of("slow.webp", 10) == pytest.approx(10 / 255, abs=1e-3)
    assert of("slow.webp", 5) == pytest.approx(20 / 255, abs=1e-3)           # breaks if frames are counted, not timed
    assert of("flicker.webp", 10) == pytest.approx(1, abs=0.01)


def test_the_filter_writes_what_is_left_and_training_reads_it(tmp_path, monkeypatch, capsys):
    """Thresholds around the middle clip. Which line is in the new file, and is it a set to train on?"""
    three_clips(tmp_path)
    assert run(monkeypatch, tmp_path, "--fps", 10, "--motion", 0.01, 0.5) == 0
    said = capsys.readouterr().out
    assert "only motion" in said and "1 of 3 clips" in said
    rows = [json.loads(line) for line in open(tmp_path / "metadata.filtered.jsonl")]
    assert [(row["file_name"], row["text"]) for row in rows] == [("slow.webp", "a dawn")]
    assert Image.open(tmp_path / "metadata.filtered.png").width == 640
    assert ClipSet(tmp_path / "metadata.filtered.jsonl", 1, frames=3, fps=4).captions() == ["a dawn"]


def test_a_clip_that_cannot_be_measured_is_left_out(tmp_path, monkeypatch, capsys):
    """A folder of pictures, one of them no picture, among three clips. Are the others measured? Is the histogram a
    clip?"""
    three_clips(tmp_path)
    (tmp_path / "walk").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / "walk" / "1.png")
    (tmp_path / "walk" / "2.png").write_text("no picture")
    with open(tmp_path / "metadata.jsonl", "a") as file:
        file.write('\n{"file_name": "walk", "text": "a walk", "fps": 2}')
    assert run(monkeypatch, tmp_path, "--fps", 10, "--motion", 0.01, 0.5) == 0
    said = capsys.readouterr()
    assert "left out walk" in said.out + said.err and "1 of 4 clips" in said.out         # breaks if it stops there
    assert "metadata.filtered.png" not in ClipSet(tmp_path, 1, frames=2, fps=5).summary()


class Judge(torch.nn.Module):
    """Stands in for CLIP: a picture's vector is (brightness, 1), a text's (1, 1)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def encode_image(self, x: torch.Tensor) -> torch.Tensor:
        bright = x.mean(dim=[1, 2, 3])
        return torch.stack([bright, torch.ones_like(bright)], dim=1)

    @torch.jit.export
    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.ones(ids.shape[0], 2)


def test_the_text_image_score_takes_any_clip_as_torchscript(tmp_path, monkeypatch, capsys):
    """A judge that likes bright pictures, by a cosine: the dark clip goes, by hand."""
    write_clip(tmp_path / "dark.webp", 20, shade=lambda k: k)
    write_clip(tmp_path / "bright.webp", 20, shade=lambda k: 255 - k)
    describe(tmp_path, dark__webp="a night", bright__webp="a day")
    torch.jit.script(Judge()).save(tmp_path / "judge.pt")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    how = ["--clip", tmp_path / "judge.pt", "--merges", tmp_path / "merges.txt", "--score", 0.5]
    assert run(monkeypatch, tmp_path, *how) == 0
    rows = [json.loads(line) for line in open(tmp_path / "metadata.filtered.jsonl")]
    assert [row["text"] for row in rows] == ["a day"]
    white = np.mean((245 / 255 - np.array(filtering.MEAN)) / np.array(filtering.DEVIATION))      # the centre frame
    assert rows[0]["score"] == pytest.approx((white + 1) / np.sqrt(2 * (white**2 + 1)), abs=0.01)


def test_what_cannot_be_filtered_is_one_line_and_nothing_is_overwritten(tmp_path, monkeypatch, capsys):
    """No folder, thresholds upside down, a score without a CLIP, two CLIPs that are none, the metadata as output."""
    three_clips(tmp_path)
    before = (tmp_path / "metadata.jsonl").read_bytes()
    (tmp_path / "no.pt").write_text("no network")
    torch.jit.script(torch.nn.Identity()).save(tmp_path / "other.pt")        # a network, without encode_text
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    for argv in ([tmp_path / "nowhere"], [tmp_path, "--motion", 0.5, 0.1], [tmp_path, "--score", 0.2],
                 [tmp_path, "--clip", tmp_path / "no.pt", "--merges", tmp_path / "merges.txt"],
                 [tmp_path, "--clip", tmp_path / "other.pt", "--merges", tmp_path / "merges.txt"],
                 [tmp_path, "--motion", "nan", "nan"], [tmp_path, "--fps", "inf"],
                 [tmp_path, "--out", tmp_path / "metadata.jsonl"], [tmp_path, "--fps", 0]):
        assert run(monkeypatch, *argv) == 2
        said = capsys.readouterr().err
        assert said.startswith("data.py filter: ") and said.count("\n") == 1
    assert (tmp_path / "metadata.jsonl").read_bytes() == before
    assert not (tmp_path / "metadata.filtered.jsonl").exists()
