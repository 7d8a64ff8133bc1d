"""Exercises on data/filter.py: which clips move too little or too much, or have a caption that does not fit?"""
import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_folder import describe, write_clip

from data import filter as data_filter
from data.folder import Clip, FolderSet


def run(*argv):
    """The exit code of the command; argparse leaves by SystemExit."""
    try:
        return data_filter.main([str(arg) for arg in argv])
    except SystemExit as stop:
        return stop.code


def three_clips(folder):
    """Writes clips of 10 frames a second: a still one, one that brightens by 10 of 255 a frame, one that flickers."""
    write_clip(folder / "still.webp", 20, shade=lambda k: 90 + (k == 19))    # one odd frame: equal ones are merged
    write_clip(folder / "slow.webp", 20, shade=lambda k: 10 * k)
    write_clip(folder / "flicker.webp", 20, shade=lambda k: 255 * (k % 2))
    describe(folder, still__webp="a wall", slow__webp="a dawn", flicker__webp="a strobe")


def test_motion_is_the_mean_change_of_a_pixel(tmp_path):
    """By hand: 10 of 255 a frame, and twice that at half the rate. Black and white by turns: 1."""
    three_clips(tmp_path)

    def motion(name, fps):
        return data_filter.motion(Clip(tmp_path / name, "", 2.0, 24), fps)
    assert motion("slow.webp", 10) == pytest.approx(10 / 255, abs=1e-3)
    assert motion("slow.webp", 5) == pytest.approx(20 / 255, abs=1e-3)       # breaks if frames are counted, not timed
    assert motion("flicker.webp", 10) == pytest.approx(1, abs=0.01)


def test_a_single_frame_does_not_move():
    """One frame has no neighbour: is its motion 0, and not NaN?"""
    assert data_filter.change(np.full((1, 4, 5, 3), 7, np.uint8)) == 0


def test_training_reads_the_metadata_that_the_filter_writes(tmp_path, capsys):
    """Only one of three clips lies between the thresholds. Is it the one in the new file, and is that a dataset?"""
    three_clips(tmp_path)
    assert run(tmp_path, "--fps", 10, "--motion", 0.01, 0.5) == 0
    output = capsys.readouterr().out
    assert "only motion" in output and "1 of 3 clips" in output
    rows = [json.loads(line) for line in open(tmp_path / "metadata.filtered.jsonl")]
    assert [(row["file_name"], row["text"]) for row in rows] == [("slow.webp", "a dawn")]
    assert Image.open(tmp_path / "metadata.filtered.png").width == 640
    assert FolderSet(tmp_path / "metadata.filtered.jsonl", 1, frames=3, fps=4).captions() == ["a dawn"]


def test_a_clip_that_cannot_be_measured_is_left_out(tmp_path, capsys):
    """A fourth clip is a folder of pictures, one of them broken. Are the other three measured?"""
    three_clips(tmp_path)
    (tmp_path / "walk").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / "walk" / "1.png")
    (tmp_path / "walk" / "2.png").write_text("no picture")
    with open(tmp_path / "metadata.jsonl", "a") as file:
        file.write('\n{"file_name": "walk", "text": "a walk", "fps": 2}')
    assert run(tmp_path, "--fps", 10, "--motion", 0.01, 0.5) == 0
    output = capsys.readouterr()
    assert "left out walk" in output.out + output.err and "1 of 4 clips" in output.out   # breaks if it stops there


def test_the_histogram_is_no_clip(tmp_path):
    """The filter leaves a .png in the folder of clips. Is it missing from the clips without a caption?"""
    three_clips(tmp_path)
    assert run(tmp_path, "--fps", 10) == 0
    assert (tmp_path / "metadata.filtered.png").exists()
    assert "metadata.filtered.png" not in FolderSet(tmp_path, 1, frames=2, fps=5).summary()


class Judge(torch.nn.Module):
    """Stands in for CLIP: a picture's embedding is (brightness, 1), a text's (1, 1)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def encode_image(self, x: torch.Tensor) -> torch.Tensor:
        bright = x.mean(dim=[1, 2, 3])
        return torch.stack([bright, torch.ones_like(bright)], dim=1)

    @torch.jit.export
    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.ones(ids.shape[0], 2)


def test_the_text_image_score_takes_any_clip_as_torchscript(tmp_path, capsys):
    """The stand-in scores bright pictures high. Is the dark clip left out, and the score as computed by hand?"""
    write_clip(tmp_path / "dark.webp", 20, shade=lambda k: k)
    write_clip(tmp_path / "bright.webp", 20, shade=lambda k: 255 - k)
    describe(tmp_path, dark__webp="a night", bright__webp="a day")
    torch.jit.script(Judge()).save(tmp_path / "judge.pt")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    assert run(tmp_path, "--clip", tmp_path / "judge.pt", "--merges", tmp_path / "merges.txt", "--score", 0.5) == 0
    rows = [json.loads(line) for line in open(tmp_path / "metadata.filtered.jsonl")]
    assert [row["text"] for row in rows] == ["a day"]
    white = np.mean((245 / 255 - np.array(data_filter.MEAN)) / np.array(data_filter.DEVIATION))      # the centre frame
    assert rows[0]["score"] == pytest.approx((white + 1) / np.sqrt(2 * (white**2 + 1)), abs=0.01)


def test_a_bad_option_is_one_line_and_nothing_is_overwritten(tmp_path, capsys):
    """No folder, swapped thresholds, a score without a CLIP, two files that are no CLIP, the metadata as output, ..."""
    three_clips(tmp_path)
    before = (tmp_path / "metadata.jsonl").read_bytes()
    (tmp_path / "no.pt").write_text("no network")
    torch.jit.script(torch.nn.Identity()).save(tmp_path / "other.pt")        # a network without encode_text
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    for argv in ([tmp_path / "nowhere"], [tmp_path, "--motion", 0.5, 0.1], [tmp_path, "--score", 0.2],
                 [tmp_path, "--clip", tmp_path / "no.pt", "--merges", tmp_path / "merges.txt"],
                 [tmp_path, "--clip", tmp_path / "other.pt", "--merges", tmp_path / "merges.txt"],
                 [tmp_path, "--motion", "nan", "nan"], [tmp_path, "--fps", "inf"],
                 [tmp_path, "--out", tmp_path / "metadata.jsonl"], [tmp_path, "--fps", 0]):
        assert run(*argv) == 2
        message = capsys.readouterr().err
        assert message.startswith("python -m data.filter: ") and message.count("\n") == 1
    assert (tmp_path / "metadata.jsonl").read_bytes() == before
    assert not (tmp_path / "metadata.filtered.jsonl").exists()


@pytest.mark.parametrize("name", ["kept.png", "kept.jsonl"])
def test_a_folder_in_the_way_of_the_filter_stays(name, tmp_path, capsys):
    """A folder called kept.png or kept.jsonl, with a diary in it, and --out kept.jsonl. Is the diary still there?"""
    three_clips(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "diary.txt").write_text("mine")
    assert run(tmp_path, "--fps", 10, "--out", tmp_path / "kept.jsonl") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and name in message                     # breaks if it measures before it checks
    assert (tmp_path / name / "diary.txt").read_text() == "mine"


def test_a_histogram_does_not_replace_a_clip(tmp_path, capsys):
    """One of the clips is called kept.png, and the histogram would be too."""
    three_clips(tmp_path)
    before = write_clip(tmp_path / "kept.png", 20).read_bytes()
    assert run(tmp_path, "--fps", 10, "--out", tmp_path / "kept.jsonl") == 2
    assert "did not write" in capsys.readouterr().err and (tmp_path / "kept.png").read_bytes() == before


def test_the_filter_does_not_replace_captions(tmp_path, capsys):
    """--out names metadata that somebody wrote by hand, or the file that is filtered."""
    three_clips(tmp_path)
    mine = (tmp_path / "metadata.jsonl").rename(tmp_path / "mine.jsonl")
    before = mine.read_text()
    for folder in (mine, tmp_path):
        assert run(folder, "--fps", 10, "--out", mine) == 2 and mine.read_text() == before
        assert capsys.readouterr().err.count("\n") == 1


def test_the_filter_may_be_run_again(tmp_path):
    """Both files that the first run wrote are there. Does the second replace them?"""
    three_clips(tmp_path)
    for low, count in ((0, 3), (0.01, 2)):
        assert run(tmp_path, "--fps", 10, "--motion", low, 1) == 0           # breaks if no file is ever replaced
        assert len((tmp_path / "metadata.filtered.jsonl").read_text().splitlines()) == count


def test_the_filter_writes_no_metadata_that_names_clips_outside(tmp_path, capsys):
    """--out in a folder beside the clips: its file names would begin with ../, which data/folder.py refuses."""
    three_clips(tmp_path / "clips")
    (tmp_path / "other").mkdir()
    assert run(tmp_path / "clips", "--fps", 10, "--out", tmp_path / "other" / "kept.jsonl") == 2
    assert "or one around it" in capsys.readouterr().err
