"""Exercises on data/filter.py: which clips move too little or too much, or have a caption that does not fit?"""
import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_folder import describe, write_clip

from data import filter as data_filter
from data.folder import Clip, FolderSet
from data.toyset import frame_times, render, scene_of


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


def test_change_by_hand():
    """Two pictures of two pixels, of which one turns from black to white: half of the greatest change."""
    frames = np.zeros((2, 1, 2, 3), np.uint8)
    frames[1, 0, 1] = 255
    assert data_filter.change(frames) == data_filter.change(frames[::-1]) == 0.5     # breaks with max, or without abs


def test_motion_is_that_of_the_whole_clip(tmp_path):
    """Of 20 frames only the first and the last are white: 2 of 19 steps change, by 1."""
    path = write_clip(tmp_path / "a.webp", 20, shade=lambda k: 255 * (k in (0, 19)))
    assert data_filter.motion(Clip(path, "", 2.0, 24), 10) == pytest.approx(2 / 19, abs=1e-3)


def test_a_folder_of_pictures_keeps_its_rate_and_place(tmp_path):
    """Eight pictures, 4 a second, in a folder in the set: by turns black and white, or all black. Are both kept?"""
    for k in range(8):
        write_clip(tmp_path / "films" / "walk" / f"{k}.png", 1, shade=lambda _, k=k: 255 * (k % 2))
        write_clip(tmp_path / "films" / "wall" / f"{k}.png", 1, shade=lambda _: 0)
    rows = [{"file_name": f"films/{name}", "text": name, "fps": 4} for name in ("walk", "wall")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run(tmp_path, "--fps", 4) == 0
    rows = [json.loads(line) for line in open(tmp_path / "metadata.filtered.jsonl")]
    assert [(row["motion"], row["fps"]) for row in rows] == [(1, 4), (0, 4)]         # breaks at 24 pictures a second
    assert FolderSet(tmp_path / "metadata.filtered.jsonl", 1, frames=2, fps=4).clips[1].seconds == 2


def test_a_clip_needs_two_frames_at_the_rate_of_training(tmp_path):
    """Clips of 0.4 and 0.8 s. Which can be measured at 2 fps, the default, and which at 5 fps?"""
    for name, milliseconds in (("a", 200), ("b", 400)):
        write_clip(tmp_path / f"{name}.png", 2, milliseconds)
        (tmp_path / f"{name}.txt").write_text(name)
    for options, names in (((), ["b.png"]), (("--fps", 5), ["a.png", "b.png"])):
        assert run(tmp_path, *options) == 0
        rows = [json.loads(line) for line in open(tmp_path / "metadata.filtered.jsonl")]
        assert [row["file_name"] for row in rows] == names


def test_held_out_clips_are_filtered_too(tmp_path):
    """Of twelve clips training holds one out. Are twelve in the new metadata?"""
    for k in range(12):
        write_clip(tmp_path / f"{k}.gif", 6)
        (tmp_path / f"{k}.txt").write_text("x")
    assert run(tmp_path, "--fps", 5) == 0
    assert len((tmp_path / "metadata.filtered.jsonl").read_text().splitlines()) == 12


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
    assert rows[0]["motion"] == pytest.approx(10 / 255, abs=1e-4)
    assert FolderSet(tmp_path / "metadata.filtered.jsonl", 1, frames=3, fps=4).captions() == ["a dawn"]


def test_a_clip_that_cannot_be_measured_is_left_out(tmp_path, capsys):
    """A fourth clip is a folder of pictures, one of them broken. Are the other three measured?"""
    three_clips(tmp_path)
    (tmp_path / "walk").mkdir()
    write_clip(tmp_path / "walk" / "1.png", 1)
    (tmp_path / "walk" / "2.png").write_text("no picture")
    with open(tmp_path / "metadata.jsonl", "a") as file:
        file.write('\n{"file_name": "walk", "text": "a walk", "fps": 2}')
    assert run(tmp_path, "--fps", 10, "--motion", 0.01, 0.5) == 0
    output = capsys.readouterr()
    assert "left out walk" in output.out + output.err and "1 of 3 clips" in output.out   # breaks if it stops there
    describe(tmp_path, walk="a walk")
    assert run(tmp_path, "--fps", 30) == 2 and "none of 0 measured clips" in capsys.readouterr().err


def bars_of(text):
    """The lines of the printed histogram: (left edge, right edge, number of clips, bar)."""
    rows = [line.replace("to", " ").replace("|", " ").split() for line in text.splitlines() if " | " in line]
    return [(float(left), float(right), int(count), "".join(bar)) for left, right, count, *bar in rows]


def test_the_histogram_counts_every_clip(tmp_path, capsys):
    """Motions of about 0, 0.04 and 1, and thresholds 0.01 and 0.5. How many clips, and which sign, has each bar?"""
    three_clips(tmp_path)
    assert run(tmp_path, "--fps", 10, "--motion", 0.01, 0.5) == 0
    bars = bars_of(capsys.readouterr().out)
    assert len(bars) == 20 and bars[0][0] == pytest.approx(0, abs=0.01) and bars[-1][1] == pytest.approx(1, abs=0.01)
    assert [count for *_, count, _ in bars] == [2, *[0] * 18, 1]
    assert bars[0][3] == "#" * 60 and bars[-1][3] == "." * 30                # breaks if bars are not to scale


def test_a_bar_is_judged_by_its_middle(capsys):
    """Two bars, with middles 0.25 and 0.75. Which lie between the thresholds? Those at a threshold do."""
    for low, high, signs in ((0.25, 0.75, "##"), (0.3, 0.7, ".."), (0.3, 0.8, ".#"), (0.2, 0.7, "#.")):
        data_filter.print_histogram([0, 1], low, high, "motion", bars=2)
        assert "".join(bar[0] for *_, bar in bars_of(capsys.readouterr().out)) == signs


def test_rare_clips_have_a_bar(capsys):
    """One clip beside a thousand. Is its bar still there?"""
    data_filter.print_histogram([0] * 1000 + [1], 0, 1, "motion")
    assert bars_of(capsys.readouterr().out)[-1][2:] == (1, "#")              # breaks if lengths are rounded to 0


class Judge(torch.nn.Module):
    """Stands in for CLIP, in float16 as the published ones. A picture's embedding is (brightness, 1). A text's is
    (1, 1); without words it is (-1, 1). While it is trained, all pictures are alike."""
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Linear(1, 1, bias=False).half()
        torch.nn.init.ones_(self.scale.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def encode_image(self, x: torch.Tensor) -> torch.Tensor:
        bright = self.scale(x.mean(dim=[1, 2, 3])[:, None])
        return torch.cat([0 * bright if self.training else bright, torch.ones_like(bright)], dim=1)

    @torch.jit.export
    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        words = (ids != ids[:, -1:]).sum(dim=1, keepdim=True) > 2            # start, end and padding are no words
        return torch.cat([torch.where(words, 1.0, -1.0), torch.ones(ids.shape[0], 1)], dim=1)


class Eye(Judge):
    """A picture's embedding is the pixel in row 0, column 1; a text's is (1, 0, 0)."""
    @torch.jit.export
    def encode_image(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, 0, 1]

    @torch.jit.export
    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.eye(3)[:1]


@pytest.fixture
def merges(tmp_path):
    """The merges of a tokenizer that knows only bytes."""
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    return tmp_path / "merges.txt"


def test_clip_is_shown_normalised_pictures(merges, tmp_path):
    """The pixel (255, 51, 0), by CLIP's published means and deviations. Which cosine has it with red?"""
    torch.jit.script(Eye()).save(tmp_path / "eye.pt")
    frame = np.zeros((224, 224, 3), np.uint8)
    frame[0, 1] = 255, 51, 0
    red, green, blue = (1 - 0.48145466) / 0.26862954, (0.2 - 0.4578275) / 0.26130258, -0.40821073 / 0.27577711
    cosine = red / (red**2 + green**2 + blue**2)**0.5
    assert data_filter.ClipScore(tmp_path / "eye.pt", merges)(frame, "red") == pytest.approx(cosine, abs=1e-5)


def test_the_text_image_score_takes_any_clip_as_torchscript(merges, tmp_path, capsys):
    """The stand-in scores bright pictures high. Which clips are bright in the middle, and do not flicker?"""
    write_clip(tmp_path / "dark.webp", 20, shade=lambda k: 255 * (k < 8))
    write_clip(tmp_path / "flicker.webp", 20, shade=lambda k: 255 * (k % 2 == 0))
    for k in range(8):
        write_clip(tmp_path / "walk" / f"{k}.png", 1, shade=lambda _, k=k: 245 * (k == 4))
    rows = [{"file_name": "walk", "text": "a day", "fps": 4}, {"file_name": "dark.webp", "text": "a night"},
            {"file_name": "flicker.webp", "text": "a strobe"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    torch.jit.script(Judge()).save(tmp_path / "judge.pt")
    clip = ["--clip", tmp_path / "judge.pt", "--merges", merges, "--fps", 10]
    assert run(tmp_path, *clip, "--score", 0.5, "--motion", 0, 0.5) == 0
    rows = [json.loads(line) for line in open(tmp_path / "metadata.filtered.jsonl")]
    assert [row["text"] for row in rows] == ["a day"]
    assert bars_of(capsys.readouterr().out)[-1][3][0] == "#"                 # the highest scores are kept
    white = np.mean((245 / 255 - np.array(data_filter.MEAN)) / np.array(data_filter.DEVIATION))      # the centre frame
    assert rows[0]["score"] == pytest.approx((white + 1) / np.sqrt(2 * (white**2 + 1)), abs=0.001)


def test_the_toy_judge_needs_no_download(tmp_path):
    """A red star moves to the right in three files, with three captions: right, another colour, another shape."""
    frames = render(scene_of("star", "red", "moving right", seed=1), frame_times(9, 2.0))
    first, *others = map(Image.fromarray, frames)
    for name in "abc":
        first.save(tmp_path / f"{name}.webp", save_all=True, append_images=others, duration=500, quality=95)
    captions = ["a red star moving right", "a blue star moving right", "a red square moving right"]
    describe(tmp_path, a__webp=captions[0], b__webp=captions[1], c__webp=captions[2])
    assert run(tmp_path, "--clip", "toy") == 0
    rows = [json.loads(line) for line in open(tmp_path / "metadata.filtered.jsonl")]
    right, other_colour, other_shape = (row["score"] for row in rows)
    assert right > 0.8 and right > other_colour + 0.2 and right > other_shape + 0.2


def test_a_bad_option_is_one_line_and_nothing_is_overwritten(merges, tmp_path, capsys):
    """No folder, swapped thresholds, a score without a CLIP, two files that are no CLIP, half of a CLIP, ..."""
    three_clips(tmp_path)
    before = (tmp_path / "metadata.jsonl").read_bytes()
    (tmp_path / "no.pt").write_text("no network")
    torch.jit.script(torch.nn.Identity()).save(tmp_path / "other.pt")        # a network without encode_text
    torch.jit.script(Judge()).save(tmp_path / "judge.pt")
    judge = [tmp_path, "--clip", tmp_path / "judge.pt", "--merges", merges]
    for argv in ([tmp_path / "nowhere"], [tmp_path, "--motion", 0.5, 0.1], [tmp_path, "--score", 0.2],
                 [tmp_path, "--clip", tmp_path / "no.pt", "--merges", merges],
                 [tmp_path, "--clip", tmp_path / "nowhere.pt", "--merges", merges],
                 [tmp_path, "--clip", tmp_path / "other.pt", "--merges", merges],
                 [*judge, "--score", 1.1], [*judge, "--score", -1.1], [tmp_path, "--score", -0.5],
                 [tmp_path, "--motion", "nan", "nan"], [tmp_path, "--fps", "inf"],
                 [tmp_path, "--fps", 0], [tmp_path, "--clip", tmp_path / "other.pt"],
                 [tmp_path, "--merges", merges], [tmp_path, "--clip", "toy", "--merges", merges]):
        assert run(*argv) == 2
        message = capsys.readouterr().err
        assert message.startswith("python -m data.filter: ") and message.count("\n") == 1
    assert (tmp_path / "metadata.jsonl").read_bytes() == before
    assert not (tmp_path / "metadata.filtered.jsonl").exists()


def test_no_clip_that_passes_is_an_error(tmp_path, capsys):
    """Thresholds between which no clip lies. Is that said after the histogram, instead of writing an empty file?"""
    three_clips(tmp_path)
    assert run(tmp_path, "--fps", 10, "--motion", 0.3, 0.4) == 2
    output = capsys.readouterr()
    assert "none of 3 measured clips passes" in output.err.splitlines()[-1] and len(bars_of(output.out)) == 20
    assert not (tmp_path / "metadata.filtered.jsonl").exists()


def test_a_folder_in_the_way_of_the_filter_stays(tmp_path, capsys):
    """A folder called metadata.filtered.jsonl, with a diary in it. Is the diary still there?"""
    three_clips(tmp_path)
    (tmp_path / "metadata.filtered.jsonl").mkdir()
    (tmp_path / "metadata.filtered.jsonl" / "diary.txt").write_text("mine")
    assert run(tmp_path, "--fps", 10) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "is a folder" in message            # breaks if it measures before it checks
    assert (tmp_path / "metadata.filtered.jsonl" / "diary.txt").read_text() == "mine"


def test_the_filter_does_not_replace_captions(tmp_path, capsys):
    """metadata.filtered.jsonl is one that somebody wrote by hand. Is it refused, whether it is read or not?"""
    three_clips(tmp_path)
    mine = tmp_path / "metadata.filtered.jsonl"
    before = mine.write_text((tmp_path / "metadata.jsonl").read_text())
    for folder, reason in ((mine, "which this command reads"), (tmp_path, "is not an output")):
        assert run(folder, "--fps", 10) == 2 and mine.stat().st_size == before
        message = capsys.readouterr().err
        assert reason in message and message.count("\n") == 1


def test_the_filter_reads_a_metadata_file_too(tmp_path):
    """mine.jsonl instead of its folder: are the clips beside it filtered into a file beside it?"""
    three_clips(tmp_path)
    mine = (tmp_path / "metadata.jsonl").rename(tmp_path / "mine.jsonl")
    assert run(mine, "--fps", 10) == 0
    assert len(FolderSet(tmp_path / "metadata.filtered.jsonl", 1, frames=3, fps=4).clips) == 3


def test_the_filter_may_be_run_again(tmp_path):
    """The file that the first run wrote is there. Does the second replace it?"""
    three_clips(tmp_path)
    for low, count in ((0, 3), (0.01, 2)):
        assert run(tmp_path, "--fps", 10, "--motion", low, 1) == 0           # breaks if no file is ever replaced
        assert len((tmp_path / "metadata.filtered.jsonl").read_text().splitlines()) == count


def test_the_filter_keeps_all_captions_of_a_clip(tmp_path):
    """Three lines beside a clip: does training still see three, from the filter's metadata?"""
    frames = [Image.effect_noise((16, 16), 10 * k) for k in range(1, 5)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=500)
    (tmp_path / "a.txt").write_text("one\ntwo\nthree")
    assert data_filter.main([str(tmp_path)]) == 0
    assert FolderSet(tmp_path / "metadata.filtered.jsonl", 1, frames=2).captions() == ["one", "two", "three"]


def test_a_long_clip_is_measured_by_its_first_ten_minutes(tmp_path, monkeypatch):
    """Four hundred frames of 655 s each: how many frames are read?"""
    asked = []
    frames = np.zeros((2, 4, 4, 3))
    monkeypatch.setattr(data_filter, "read_clip", lambda _, times, *more: asked.append(len(times)) or frames)
    data_filter.motion(Clip(tmp_path, "a", 262_000.0, 24.0, ["a"]), fps=2.0)
    assert asked == [1200]                                                   # breaks if memory grows with the clip
