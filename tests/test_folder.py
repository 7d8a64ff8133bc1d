"""Exercises on data/folder.py: somebody's folder of clips, with everything that goes wrong in such folders."""
import json
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import write_configs
from PIL import Image

import train
from data import folder
from data.folder import FolderSet
from data.media import write_video
from training import pretrain


def write_clip(path, count=8, milliseconds=100, shade=lambda k: 20 * k, size=(40, 24)):
    """An animation whose frame k is grey, shade(k) of 255."""
    frames = [Image.new("RGB", size, (shade(k),) * 3) for k in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=milliseconds, **options)
    return path


def describe(folder, **captions):
    """Writes metadata.jsonl. In the names, __ stands for the dot."""
    lines = [json.dumps({"file_name": name.replace("__", "."), "text": text}) for name, text in captions.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.apng"])
def test_frames_are_read_by_time_not_by_number(name, tmp_path):
    """Three frames of 100, 700 and 200 ms: which is shown at 0, 0.3, 0.6 and 0.9 s? At 1 s, none is."""
    path = write_clip(tmp_path / name, 3, [100, 700, 200], shade=lambda k: (0, 120, 240)[k])
    assert folder.clip_seconds(path) == pytest.approx(1.0)
    frames = folder.read_clip(path, np.array([0, 0.3, 0.6, 0.9]), 16)
    assert frames.shape == (4, 16, 16, 3) and frames[:, 8, 8, 0].tolist() == [0, 120, 120, 240]    # breaks by index
    with pytest.raises(ValueError, match="ends before"):
        folder.read_clip(path, np.array([0.7, 1.0]), 16)


def test_a_folder_of_pictures_is_a_clip(tmp_path):
    """Pictures 1 to 12, at 4 a second: does number 10 come after number 9, and not after number 1?"""
    for k in range(1, 13):
        (tmp_path / "walk").mkdir(exist_ok=True)
        Image.new("L", (9, 9), 10 * k).save(tmp_path / "walk" / f"{k}.png")
    line = {"file_name": "walk", "text": "a walk", "fps": 4}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    walk = FolderSet(tmp_path, 1, frames=3, fps=1, size=8)
    assert walk.clips[0].seconds == 3 and walk.clips[0].caption == "a walk"
    frames = folder.read_clip(tmp_path / "walk", np.array([0.0, 2.3]), 8, fps=4)
    assert frames[:, 0, 0, 0].tolist() == [10, 100]                          # breaks if 10.png comes after 1.png


@pytest.mark.parametrize("kind", ["jsonl", "csv", "webvid", "txt"])
def test_captions_in_four_conventions(kind, tmp_path):
    """The same two captions in JSON lines, in CSV, in WebVid's CSV and in text files: are they read alike?"""
    a, b = (write_clip(tmp_path / "films" / f"{name}.gif") for name in "ab")
    if kind == "jsonl":
        (tmp_path / "metadata.jsonl").write_text('{"file_name": "films/a.gif", "text": "one, two"}\n\n'
                                                 '{"file_name": "films/b.gif", "text": "three"}\n')
    elif kind == "csv":
        (tmp_path / "metadata.csv").write_text('file_name,text\nfilms/a.gif,"one, two"\nfilms/b.gif,three\n')
    elif kind == "webvid":
        (tmp_path / "metadata.csv").write_text('videoid,contentUrl,duration,page_dir,name\na,u,PT1S,films,"one, two"\n'
                                               "b,u,PT1S,films,three\n")
        a, b = (path.rename(path.with_suffix(".mp4")) for path in (a, b))
    else:
        a.with_suffix(".jpg").touch(), a.with_suffix(".a").touch()           # other files may lie beside it
        a.with_suffix(".txt").write_text("one, two\n")
        b.with_suffix(".txt").write_text("three")
    captions = folder.read_captions(tmp_path)
    assert {path: row["text"] for path, row in captions.items()} == {a: "one, two", b: "three"}


def test_a_picture_that_breaks_its_decoder_stops_nothing(tmp_path, monkeypatch, capsys):
    """A folder of pictures and a GIF. Then Pillow takes the pictures for decompression bombs: is the GIF used?"""
    (tmp_path / "film").mkdir()
    for k in range(3):
        Image.new("RGB", (60, 60)).save(tmp_path / "film" / f"{k}.png")
    write_clip(tmp_path / "small.gif", 20)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "film", "text": "film", "fps": 1}\n'
                                             '{"file_name": "small.gif", "text": "small"}\n')
    dataset = FolderSet(tmp_path, 2, frames=2, fps=2, size=8)
    assert [item["caption"] for item in (dataset[0], dataset[1])] == ["film", "small"]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert dataset[0]["caption"] == "small"                                  # breaks with a traceback: no ValueError
    assert "skipped film: cannot be read" in capsys.readouterr().out


@pytest.fixture
def brightening(tmp_path):
    """A folder with one clip of 2 s, 10 frames a second, each brighter by 12 of 255."""
    write_clip(tmp_path / "a.gif", 20, 100, shade=lambda k: 12 * k)
    describe(tmp_path, a__gif="brighter")
    return tmp_path


def test_windows_start_anywhere_in_a_clip(brightening):
    """Sixty windows of three frames at 4 fps: at which frames of the clip do they start?"""
    dataset = FolderSet(brightening, 60, frames=3, fps=4, size=8, seed=1)
    firsts = [dataset[i]["frames"][0, 0, 0, 0].item() / 12 for i in range(60)]
    assert min(firsts) <= 1 and max(firsts) >= 13 and len(set(firsts)) > 10  # breaks if all start at 0


def test_frames_of_a_window_lie_apart_as_its_rate_says(brightening):
    """At 4 fps, 2.5 frames of the clip lie between two of the window. Do they, to the nearest frame?"""
    item = FolderSet(brightening, 60, frames=3, fps=4, size=8, seed=1)[7]
    steps = item["frames"][0, :, 0, 0].float().diff() / 12
    assert item["caption"] == "brighter" and item["frames"].shape == (3, 3, 8, 8)
    assert ((steps - 2.5).abs() < 1).all()


def test_an_item_is_always_the_same_window(brightening):
    """Item 7, read twice: are the frames equal?"""
    dataset = FolderSet(brightening, 60, frames=3, fps=4, size=8, seed=1)
    assert torch.equal(dataset[7]["frames"], dataset[7]["frames"])           # breaks if numpy's global generator draws


def test_a_caption_of_a_window_names_its_rate(brightening):
    """Windows at 4 and 8 fps by turns: what do their captions begin with?"""
    dataset = FolderSet(brightening, 2, frames=3, size=8, windows=(4, 8))
    assert [dataset[i]["caption"] for i in range(2)] == ["4 fps, brighter", "8 fps, brighter"]


def test_unusable_clips_are_skipped_and_named(tmp_path):
    """One good clip; the others are cut, empty, too short, missing, no clip, or have no caption. Are all 8 named?"""
    write_clip(tmp_path / "good.webp", 20)
    half = write_clip(tmp_path / "half.webp", 20, shade=lambda k: k)
    half.write_bytes(half.read_bytes()[:len(half.read_bytes()) // 2])
    (tmp_path / "empty.gif").touch()
    write_clip(tmp_path / "short.gif", 3)
    write_clip(tmp_path / "silent.gif", 20)
    write_clip(tmp_path / "unlisted.gif", 20)
    for name in ("1.jpg", "2.png"):                                          # a folder of pictures is one clip
        (tmp_path / "frames").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "frames" / name)
    (tmp_path / "frames" / ".DS_Store").touch()
    (tmp_path / "song.mp3").write_text("la la la")
    describe(tmp_path, good__webp="good", half__webp="half", empty__gif="empty", short__gif="short", silent__gif=" ",
             gone__gif="gone", song__mp3="song")
    dataset = FolderSet(tmp_path, 4, frames=3, fps=2, size=8)
    assert [clip.caption for clip in dataset.clips] == ["good"]
    summary = dataset.summary()
    assert summary.startswith("1 clips") and "\n" not in summary
    for name in ("half.webp", "empty.gif", "short.gif", "silent.gif", "unlisted.gif", "gone.gif", "song.mp3", "frames"):
        assert name in summary
    assert sum(map(len, dataset.skipped.values())) == 8                      # breaks if each picture is a clip
    assert all(item["caption"] == "good" for item in dataset)


def test_clips_that_break_during_training_are_an_error(tmp_path):
    """The only clip becomes an empty file after the folder was looked at. Is there an error, not an endless search?"""
    clip = write_clip(tmp_path / "good.webp", 20)
    describe(tmp_path, good__webp="good")
    dataset = FolderSet(tmp_path, 4, frames=3, fps=2, size=8)
    clip.write_bytes(b"")
    with pytest.raises(ValueError, match="any more"):
        dataset[0]


def test_every_tenth_clip_is_held_out(tmp_path):
    """Of twenty clips, two are never trained on. Which?"""
    for k in range(20):
        write_clip(tmp_path / f"{k:02d}.gif", 12)
    describe(tmp_path, **{f"{k:02d}__gif": f"number {k}" for k in range(20)})
    trained, held_out = (FolderSet(tmp_path, 4, 3, 4, size=8, held_out=out).captions() for out in (False, True))
    assert held_out == ["number 9", "number 19"] and len(trained) == 18 and not set(held_out) & set(trained)


def test_nine_clips_are_too_few_to_hold_one_out(tmp_path):
    """With nine clips, what is there to validate on? All of them."""
    for k in range(9):
        write_clip(tmp_path / f"{k}.gif", 12)
    describe(tmp_path, **{f"{k}__gif": f"number {k}" for k in range(9)})
    assert len(FolderSet(tmp_path, 4, 3, 4, size=8, held_out=True).clips) == 9


def test_a_broken_tenth_clip_is_no_reason_to_stop(tmp_path):
    """Of twelve clips the tenth, the only one to hold out, is broken. What is there to validate on? All others."""
    names = [f"{k:02}__gif" for k in range(12)]
    for name in names:
        write_clip(tmp_path / name.replace("__", "."))
    (tmp_path / "09.gif").write_bytes(b"broken")
    describe(tmp_path, **{name: f"clip {name}" for name in names})
    train_on, validate_on = (FolderSet(tmp_path, 4, frames=2, fps=5, size=8, held_out=out) for out in (False, True))
    assert len(train_on.clips) == 11 and validate_on.clips == train_on.clips     # breaks with "no clip to train on"
    assert "skipped 1" in train_on.summary()


def test_a_caption_may_contain_a_line_break(tmp_path):
    """A Unicode line separator in JSON, as data/filter.py writes it, and a line break in CSV: do both come through?"""
    path = write_clip(tmp_path / "a.gif")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.gif", "text": "up\u2028down"}\n', encoding="utf-8")
    (tmp_path / "metadata.csv").write_text('file_name,text\na.gif,"up\ndown"\n')
    for name, text in (("metadata.jsonl", "up\u2028down"), ("metadata.csv", "up\ndown")):
        assert folder.read_captions(tmp_path / name)[path]["text"] == text   # breaks with str.splitlines


def test_a_rate_of_zero_is_refused(tmp_path):
    """A folder of pictures at 0 fps would last forever. Is the error one that names the clip?"""
    (tmp_path / "metadata.csv").write_text("file_name,text,fps\na.gif,a,0\n")
    with pytest.raises(ValueError, match="'0' of a.gif is not a number above 0"):
        folder.read_captions(tmp_path / "metadata.csv")


def exit_code(*argv):
    """The exit code of the command; argparse leaves by SystemExit."""
    try:
        return folder.main([str(arg) for arg in argv])
    except SystemExit as stop:
        return stop.code


def test_a_folder_with_nothing_to_train_on_is_one_line(tmp_path, capsys):
    """No folder, an empty one, broken or wrong metadata, two kinds of it: one line that says which?"""
    write_clip(tmp_path / "words" / "a.gif")
    (tmp_path / "words" / "metadata.jsonl").write_text('{"file_name": "a.gif", "text": "a"}\nnot JSON')
    write_clip(tmp_path / "columns" / "a.gif")
    (tmp_path / "columns" / "metadata.csv").write_text("path,words\na.gif,a\n")
    shutil.copytree(tmp_path / "columns", tmp_path / "both")
    (tmp_path / "both" / "metadata.jsonl").touch()
    (tmp_path / "empty").mkdir()
    for name, content in (("rate", b'{"file_name": "a.gif", "text": 7, "fps": "fast"}'), ("picture", b"\x89PNG")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.jsonl").write_bytes(content)
    (tmp_path / "quote").mkdir()
    (tmp_path / "quote" / "metadata.csv").write_text('file_name,text\na.gif,"' + "never closed\n" * 20_000)
    for name, reason in (("nowhere", "no such folder"), ("empty", "no clip"), ("words", "line 2"),
                         ("columns", "file_name"), ("both", "keep one"), ("rate", "'fast'"), ("picture", "UTF-8"),
                         ("quote", "not a CSV")):
        assert exit_code(tmp_path / name, "--out", tmp_path / "x.png") == 2
        message = capsys.readouterr().err
        assert message.startswith(f"python -m data.folder: {tmp_path / name}")
        assert reason in message and message.count("\n") == 1
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("option", [("--fps", "inf"), ("--seed", "-1"), ("--out", "x.mp4"), ("--size", "0")])
def test_an_impossible_option_is_one_line(option, tmp_path, monkeypatch, capsys):
    """A rate, seed, ending or size that cannot be, with a good folder: one line that names it, exit code 2, no file?"""
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "good" / "a.gif", 50)
    describe(tmp_path / "good", a__gif="a")
    assert exit_code("good", *option) == 2
    message = capsys.readouterr().err
    assert message.startswith("python -m data.folder: ") and message.count("\n") == 1
    assert option[0] in message or option[1] in message                      # breaks if infinity is a rate
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_the_command_prints_a_summary_and_draws_windows(tmp_path, capsys):
    """One good clip and one without a caption, two rows: what is printed, and how large is the sheet?"""
    write_clip(tmp_path / "a.gif", 50)
    write_clip(tmp_path / "b.gif", 50)
    describe(tmp_path, a__gif="a")
    assert exit_code(tmp_path, "--out", tmp_path / "x.png", "--rows", 2, "--frames", 3, "--size", 16) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 clips with 1 captions, 5.0 to 5.0 s long")
    assert lines[1:] == [f"{tmp_path / 'x.png'}: 2 windows of 3 frames at 2 fps", "skipped, has no caption: b.gif"]
    with Image.open(tmp_path / "x.png") as sheet:
        assert sheet.width == 3 * (16 + 4) + 4


def test_a_sheet_replaces_no_picture_of_the_set(tmp_path, capsys):
    """--out names a picture among the clips. Only a sheet of an earlier run may be replaced there."""
    write_clip(tmp_path / "a.gif", 50)
    before = write_clip(tmp_path / "b.png", 50).read_bytes()
    describe(tmp_path, a__gif="a")
    options = ["--rows", 1, "--frames", 3, "--size", 16]
    assert exit_code(tmp_path, "--out", tmp_path / "b.png", *options) == 2
    assert "is not an output" in capsys.readouterr().err and (tmp_path / "b.png").read_bytes() == before
    assert [exit_code(tmp_path, "--out", tmp_path / "sheet.png", *options) for _ in range(2)] == [0, 0]


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="the program ffmpeg is not on the PATH")
def test_films_are_read_through_ffmpeg(tmp_path):
    """101 greys, 2 apart, at 24 fps as mp4. Which ones are shown every half second?

    And can a film of 4.2 s be read to its end, in windows of 4 s?
    """
    greys = torch.arange(0, 202, 2, dtype=torch.uint8)
    write_video(greys.view(1, -1, 1, 1).expand(3, -1, 32, 32).contiguous(), tmp_path / "a.mp4", fps=24)
    assert folder.clip_seconds(tmp_path / "a.mp4") == pytest.approx(101 / 24, abs=0.15)
    for start in (0, 1 / 24):
        frames = folder.read_clip(tmp_path / "a.mp4", start + np.arange(9) / 2, 16)
        assert np.allclose(frames[:, 8, 8, 0], 48 * start + np.arange(0, 202, 24), atol=5)       # breaks if rounded
    describe(tmp_path, a__mp4="brighter")
    dataset = FolderSet(tmp_path, 12, frames=9, fps=2, size=8)
    assert len([dataset[i] for i in range(12)]) == 12


@pytest.mark.slow
def test_a_small_model_is_trained_on_a_folder(tmp_path, capsys):
    """The four stages, two steps each, on three usable clips and four others: does each stage name these?"""
    small, mine = write_configs(tmp_path / "small"), tmp_path / "mine"
    for k in range(3):
        write_clip(mine / f"{k}.webp", 30, 100, shade=lambda i, k=k: (70 * k + 5 * i) % 256)
    half = write_clip(mine / "half.webp", 20, shade=lambda i: i)
    half.write_bytes(half.read_bytes()[:len(half.read_bytes()) // 2])
    (mine / "empty.gif").touch()
    write_clip(mine / "short.gif", 1, 10)
    write_clip(mine / "silent.gif", 20)
    describe(mine, **{f"{k}__webp": f"grey number {k}" for k in range(3)}, half__webp="half", empty__gif="empty",
             short__gif="short", silent__gif=" ")
    for stage in ("vae", "image", "video", "tsr"):
        argv = [stage, "--model", str(small), "--out", str(tmp_path / "out"), "--data", str(mine),
                *"--steps 2 --batch 2 --clips 4 --size 16 --fps 4 --device cpu".split()]
        if stage == "video":
            argv += ["--frames", "3"]
        assert (pretrain if stage in ("vae", "image") else train).main(argv) == 0
        output = capsys.readouterr().out
        usable = 4 if stage == "image" else 3                                # for a still, no clip is too short
        assert f"{usable} clips with {usable} captions" in output and ("short.gif" in output) == (stage != "image")
        assert all(name in output for name in ("half.webp", "empty.gif", "silent.gif"))  # breaks if one is not named
    assert os.path.isdir(tmp_path / "out" / "tsr")
