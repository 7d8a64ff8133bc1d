"""Exercises for clips.py: a folder of somebody's clips, with everything that is wrong in such folders."""
import json
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import write_configs
from PIL import Image

import clips
import files
import train
from clips import ClipSet


def write_clip(path, count=8, milliseconds=100, shade=lambda k: 20 * k, size=(40, 24)):
    """An animation whose k-th frame is grey of the shade(k)."""
    frames = [Image.new("RGB", size, (shade(k),) * 3) for k in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    how = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=milliseconds, **how)
    return path


def describe(folder, **captions):
    """metadata.jsonl; in the names, __ stands for the dot."""
    lines = [json.dumps({"file_name": name.replace("__", "."), "text": text}) for name, text in captions.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.apng"])
def test_frames_are_read_by_time_not_by_number(name, tmp_path):
    """Three frames that last 100, 700 and 200 ms: what shows at 0, 0.3, 0.6 and 0.9 s? At 1 s nothing does."""
    path = write_clip(tmp_path / name, 3, [100, 700, 200], shade=lambda k: (0, 120, 240)[k])
    assert clips.clip_seconds(path) == pytest.approx(1.0)
    frames = clips.read_clip(path, np.array([0, 0.3, 0.6, 0.9]), 16)
    assert frames.shape == (4, 16, 16, 3) and frames[:, 8, 8, 0].tolist() == [0, 120, 120, 240]    # breaks by number
    with pytest.raises(ValueError, match="ends before"):
        clips.read_clip(path, np.array([0.7, 1.0]), 16)


def test_a_folder_of_pictures_is_a_clip(tmp_path):
    """Pictures 1 to 12, at 4 a second: number 10 comes after number 9, and not after number 1."""
    for k in range(1, 13):
        (tmp_path / "walk").mkdir(exist_ok=True)
        Image.new("L", (9, 9), 10 * k).save(tmp_path / "walk" / f"{k}.png")
    line = {"file_name": "walk", "text": "a walk", "fps": 4}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    walk = ClipSet(tmp_path, 1, frames=3, fps=1, size=8)
    assert walk.clips[0].seconds == 3 and walk.clips[0].caption == "a walk"
    frames = clips.read_clip(tmp_path / "walk", np.array([0.0, 2.3]), 8, fps=4)
    assert frames[:, 0, 0, 0].tolist() == [10, 100]                          # breaks if 10.png is sorted behind 1.png


@pytest.mark.parametrize("kind", ["jsonl", "csv", "webvid", "txt"])
def test_captions_in_four_conventions(kind, tmp_path):
    """The same two captions, as the ecosystem, WebVid or a person writes them."""
    a, b = (write_clip(tmp_path / "films" / f"{name}.gif") for name in "ab")
    if kind == "jsonl":
        describe(tmp_path, films__a="x")
        (tmp_path / "metadata.jsonl").write_text('{"file_name": "films/a.gif", "text": "one, two"}\n\n'
                                                 '{"file_name": "films/b.gif", "text": "three"}\n')
    elif kind == "csv":
        (tmp_path / "metadata.csv").write_text('file_name,text\nfilms/a.gif,"one, two"\nfilms/b.gif,three\n')
    elif kind == "webvid":
        (tmp_path / "metadata.csv").write_text('videoid,contentUrl,duration,page_dir,name\na,u,PT1S,films,"one, two"\n'
                                               "b,u,PT1S,films,three\n")
        a, b = (path.rename(path.with_suffix(".mp4")) for path in (a, b))
    else:
        a.with_suffix(".jpg").touch(), a.with_suffix(".a").touch()           # what else may be beside it
        a.with_suffix(".txt").write_text("one, two\n")
        b.with_suffix(".txt").write_text("three")
    captions = clips.read_captions(tmp_path)
    assert {path: row["text"] for path, row in captions.items()} == {a: "one, two", b: "three"}


def test_a_picture_that_breaks_its_decoder_stops_nothing(tmp_path, monkeypatch, capsys):
    """A folder of pictures and a GIF. One picture has become what Pillow takes for a bomb, no ValueError of its."""
    (tmp_path / "film").mkdir()
    for k in range(3):
        Image.new("RGB", (60, 60)).save(tmp_path / "film" / f"{k}.png")
    write_clip(tmp_path / "small.gif", 20)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "film", "text": "film", "fps": 1}\n'
                                             '{"file_name": "small.gif", "text": "small"}\n')
    found = ClipSet(tmp_path, 2, frames=2, fps=2, size=8)
    assert [item["caption"] for item in (found[0], found[1])] == ["film", "small"]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert found[0]["caption"] == "small"                                    # breaks with a traceback
    assert "skipped film: cannot be read" in capsys.readouterr().out


def test_windows_start_anywhere_and_an_item_is_always_the_same(tmp_path):
    """A clip of 2 s that brightens: windows of three frames at 4 fps. Where do they start?"""
    write_clip(tmp_path / "a.gif", 20, 100, shade=lambda k: 12 * k)
    describe(tmp_path, a__gif="brighter")
    found = ClipSet(tmp_path, 60, frames=3, fps=4, size=8, seed=1)
    firsts = [found[i]["frames"][0, 0, 0, 0].item() / 12 for i in range(60)]
    assert min(firsts) <= 1 and max(firsts) >= 13 and len(set(firsts)) > 10  # breaks if all start at 0
    item = found[7]
    steps = item["frames"][0, :, 0, 0].float().diff() / 12
    assert item["caption"] == "brighter" and item["frames"].shape == (3, 3, 8, 8)
    assert ((steps - 2.5).abs() < 1).all()                                   # 0.25 s are 2.5 frames
    assert torch.equal(item["frames"], found[7]["frames"])
    two_rates = ClipSet(tmp_path, 2, frames=3, size=8, windows=(4, 8))
    assert [two_rates[i]["caption"] for i in range(2)] == ["4 fps, brighter", "8 fps, brighter"]


def test_what_cannot_be_used_is_skipped_and_named(tmp_path):
    """Cut in half, empty, too short, thrice without a caption, not there, no clip: and one good one. Nothing stops."""
    write_clip(tmp_path / "good.webp", 20)
    half = write_clip(tmp_path / "half.webp", 20, shade=lambda k: k)
    half.write_bytes(half.read_bytes()[:len(half.read_bytes()) // 2])
    (tmp_path / "empty.gif").touch()
    write_clip(tmp_path / "short.gif", 3)
    write_clip(tmp_path / "silent.gif", 20)
    write_clip(tmp_path / "unlisted.gif", 20)
    for name in ("1.jpg", "2.png"):                                          # a clip, too: one, not two
        (tmp_path / "frames").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "frames" / name)
    (tmp_path / "frames" / ".DS_Store").touch()
    (tmp_path / "song.mp3").write_text("la la la")
    describe(tmp_path, good__webp="good", half__webp="half", empty__gif="empty", short__gif="short", silent__gif=" ",
             gone__gif="gone", song__mp3="song")
    found = ClipSet(tmp_path, 4, frames=3, fps=2, size=8)
    assert [clip.caption for clip in found.clips] == ["good"]
    said = found.summary()
    assert said.startswith("1 clips") and all(name in said for name in
                                              ("half.webp", "empty.gif", "short.gif", "silent.gif", "unlisted.gif",
                                               "gone.gif", "song.mp3", "frames")) and "\n" not in said
    assert sum(map(len, found.skipped.values())) == 8                        # breaks if each picture is a clip
    assert all(item["caption"] == "good" for item in found)
    (tmp_path / "good.webp").write_bytes(b"")                                # while training is under way
    with pytest.raises(ValueError, match="any more"):
        found[0]


def test_every_tenth_clip_is_kept_out(tmp_path):
    """Twenty clips: two are never trained on. Of nine, none can be spared."""
    for k in range(20):
        write_clip(tmp_path / f"{k:02d}.gif", 12)
    describe(tmp_path, **{f"{k:02d}__gif": f"number {k}" for k in range(20)})
    trained, kept = (ClipSet(tmp_path, 4, 3, 4, size=8, held_out=held_out).captions() for held_out in (False, True))
    assert kept == ["number 9", "number 19"] and len(trained) == 18 and not set(kept) & set(trained)
    describe(tmp_path, **{f"{k:02d}__gif": f"number {k}" for k in range(9)})
    assert len(ClipSet(tmp_path, 4, 3, 4, size=8, held_out=True).clips) == 9


def test_a_broken_tenth_clip_is_no_reason_to_stop(tmp_path):
    """Twelve clips; the tenth, the only one to keep out, is broken. What is there to validate on? All the others."""
    names = [f"{k:02}__gif" for k in range(12)]
    for name in names:
        write_clip(tmp_path / name.replace("__", "."))
    (tmp_path / "09.gif").write_bytes(b"broken")
    describe(tmp_path, **{name: f"clip {name}" for name in names})
    train_on, validate_on = (ClipSet(tmp_path, 4, frames=2, fps=5, size=8, held_out=out) for out in (False, True))
    assert len(train_on.clips) == 11 and validate_on.clips == train_on.clips     # breaks with "no clip to train on"
    assert "skipped 1" in train_on.summary()


def test_lines_of_metadata_end_where_they_end(tmp_path):
    """A caption with a line separator of Unicode's in JSON, as filtering.py writes it, and one of two lines in CSV."""
    path = write_clip(tmp_path / "a.gif")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.gif", "text": "up\u2028down"}\n', encoding="utf-8")
    (tmp_path / "metadata.csv").write_text('file_name,text\na.gif,"up\ndown"\n')
    for name, text in (("metadata.jsonl", "up\u2028down"), ("metadata.csv", "up\ndown")):
        assert clips.read_captions(tmp_path / name)[path]["text"] == text    # breaks with str.splitlines
    (tmp_path / "metadata.csv").write_text("file_name,text,fps\na.gif,a,0\n")
    with pytest.raises(ValueError, match="'0' of a.gif is not a number above 0"):
        clips.read_captions(tmp_path / "metadata.csv")


def test_a_folder_with_nothing_to_train_on_is_one_line(tmp_path, capsys):
    """No such folder, an empty one, broken metadata, two kinds of it: through the commands, exit code 2."""
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
    for name, says in (("nowhere", "no such folder"), ("empty", "no clip"), ("words", "line 2"),
                       ("columns", "file_name"), ("both", "keep one"), ("rate", "'fast'"), ("picture", "UTF-8"),
                       ("quote", "not a CSV")):
        assert clips.main([str(tmp_path / name), "--out", str(tmp_path / "x.png")]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"clips.py: {tmp_path / name}") and says in said and said.count("\n") == 1
    write_clip(tmp_path / "good" / "a.gif", 50)
    describe(tmp_path / "good", a__gif="a")
    for argv in (["--fps", "inf"], ["--seed", "-1"], ["--out", str(tmp_path / "x.mp4")]):
        assert clips.main([str(tmp_path / "good"), "--out", str(tmp_path / "x.png"), *argv]) == 2
        assert argv[0] in (said := capsys.readouterr().err) or "x.mp4" in said
        assert said.count("\n") == 1                                         # breaks if NaN or infinity is a rate
    assert not (tmp_path / "x.png").exists()


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="the program ffmpeg is not on the PATH")
def test_films_are_read_through_ffmpeg(tmp_path):
    """101 greys, 2 apart, at 24 fps as mp4. Which ones show every half second? And can a film of 4.2 s be read to its
    end, window after window of 4 s?"""
    greys = torch.arange(0, 202, 2, dtype=torch.uint8)
    files.write_video(greys.view(1, -1, 1, 1).expand(3, -1, 32, 32).contiguous(), tmp_path / "a.mp4", fps=24)
    assert clips.clip_seconds(tmp_path / "a.mp4") == pytest.approx(101 / 24, abs=0.15)
    for start in (0, 1 / 24):
        frames = clips.read_clip(tmp_path / "a.mp4", start + np.arange(9) / 2, 16)
        assert np.allclose(frames[:, 8, 8, 0], 48 * start + np.arange(0, 202, 24), atol=5)       # breaks if rounded
    describe(tmp_path, a__mp4="brighter")
    found = ClipSet(tmp_path, 12, frames=9, fps=2, size=8)
    assert len([found[i] for i in range(12)]) == 12


def test_a_small_model_is_trained_on_a_folder(tmp_path, capsys):
    """The four stages, two steps each, on a folder of three clips that will do and four that will not, each named."""
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
        how = "--steps 2 --batch 2 --clips 4 --size 16 --fps 4 --device cpu".split()
        how += ["--frames", "3"] if stage == "video" else []
        argv = [stage, "--model", str(small), "--out", str(tmp_path / "out"), "--data", str(mine), *how]
        assert train.main(argv) == 0
        said = capsys.readouterr().out
        fit = 4 if stage == "image" else 3                                   # for a still, no clip is too short
        assert f"{fit} clips with {fit} captions" in said and ("short.gif" in said) == (stage != "image")
        assert all(name in said for name in ("half.webp", "empty.gif", "silent.gif"))    # breaks if one is not named
    assert os.path.isdir(tmp_path / "out" / "tsr")
