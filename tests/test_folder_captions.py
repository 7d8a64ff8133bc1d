"""Exercises on data/folder.py: which captions and files are taken, and is every other one named?"""
import json
import os

import pytest
from test_folder import describe, write_clip

from data import folder
from data.folder import FolderSet, read_captions


def captions_of(tmp_path, name, text):
    """The usable captions and the summary of a folder with one clip, a.gif, and this file of captions."""
    write_clip(tmp_path / "a.gif", 60)
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    dataset = FolderSet(tmp_path, 1)
    return dataset.captions(), dataset.summary()


@pytest.mark.parametrize("name, text", [
    ("metadata.jsonl", '{"file_name": "a.gif", "text": "one"}\n{"file_name": "a.gif", "text": "two"}'),
    ("metadata.csv", "file_name,text\na.gif,one\n./a.gif,two\n"), ("a.txt", "one\n \ntwo\n"),
    ("metadata.jsonl", '{"file_name": "a.gif", "text": ["one", "", "two"]}')])
def test_all_captions_of_a_clip_are_read(name, text, tmp_path):
    """Two captions for one clip: in rows, in a list, in lines of a text. Are both taken, and counted?"""
    captions, summary = captions_of(tmp_path, name, text)
    assert captions == ["one", "two"] and "1 clips have 2 captions" in summary      # breaks if the first or last wins


def test_captions_of_a_clip_are_used_in_turn(tmp_path):
    """a.gif has three captions, b.gif one. Which captions do eight windows have, which go to both clips by turns?"""
    for name in "ab":
        write_clip(tmp_path / f"{name}.gif", 60)
    (tmp_path / "a.txt").write_text("one\n\ntwo\nthree\n")
    (tmp_path / "b.txt").write_text("only")
    dataset = FolderSet(tmp_path, 8, frames=2, size=8)
    assert [item["caption"] for item in dataset] == ["one", "only", "two", "only", "three", "only", "one", "only"]


def test_a_second_caption_moves_no_window(tmp_path):
    """The draw of a window's place comes first. Are the frames those of a set with one caption?"""
    write_clip(tmp_path / "a.gif", 60, shade=lambda k: 4 * k)
    places = []
    for text in ("one", "one\ntwo"):
        (tmp_path / "a.txt").write_text(text)
        places.append([item["frames"][0, :, 0, 0].tolist() for item in FolderSet(tmp_path, 5, frames=2, size=8)])
    assert places[0] == places[1] and len(set(map(tuple, places[0]))) > 1


def test_a_caption_with_commas_needs_quotes(tmp_path):
    """A CSV row with more cells than columns: the rest of the caption would be lost."""
    with pytest.raises(ValueError, match="bouncing.*; write captions with commas in quotes"):
        captions_of(tmp_path, "metadata.csv", "file_name,text\na.gif,a red ball, bouncing\n")


@pytest.mark.parametrize("value", [["one", 2], float("nan"), 7, {"en": "one"}, "caf\udce9"])
def test_a_caption_is_a_text(value, tmp_path):
    """A number in a list, NaN, a number, an object, half a character: is the clip named, not given that caption?"""
    with pytest.raises(ValueError, match="cannot be read as text in UTF-8 .a.gif"):      # breaks with str(value)
        captions_of(tmp_path, "metadata.jsonl", json.dumps({"file_name": "a.gif", "text": value}))


def test_one_bad_file_of_captions_does_not_stop_the_others(tmp_path):
    """Beside a.txt: macOS's files, other encodings, binary data, a folder and a broken link. Is a.gif used?"""
    (tmp_path / "__MACOSX").mkdir()
    for name, content in (("._a.txt", b"\0\5\xff"), ("__MACOSX/._a.txt", b"\xff"), ("b.txt", "café".encode("cp1252")),
                          ("c.txt", "café".encode("utf-16")), ("log.txt", bytes(range(256)))):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "d.txt").mkdir()
    os.symlink("nowhere", tmp_path / "e.txt")
    captions, summary = captions_of(tmp_path, "a.txt", "good")               # breaks if one of them raises
    assert captions == ["good"] and "b.txt" in summary and "._a" not in summary


@pytest.mark.parametrize("text", [b"file_name,text\na.gif,x\n,\n",
                                  "file_name,text\na.gif,x\nb.gif,café".encode("cp1252")])
def test_one_bad_row_of_captions_does_not_stop_the_others(text, tmp_path):
    """An empty last row, as spreadsheets write it; a row in another encoding."""
    assert captions_of(tmp_path, "metadata.csv", text)[0] == ["x"]


def test_metadata_names_no_file_outside_its_folder(tmp_path):
    """An absolute path, ../, and a link that leads outside. Are all three refused by name?"""
    write_clip(tmp_path / "a.gif", 60)
    write_clip(tmp_path / "set" / "good.gif", 60)
    os.symlink(tmp_path / "a.gif", tmp_path / "set" / "link.gif")
    names = [str(tmp_path / "a.gif"), "../a.gif", "link.gif", "good.gif"]
    (tmp_path / "set" / "metadata.jsonl").write_text("\n".join(
        json.dumps({"file_name": name, "text": name}) for name in names))
    dataset = FolderSet(tmp_path / "set", 1)
    assert dataset.captions() == ["good.gif"]
    assert dataset.skipped["leads outside the folder of the set"] == ["a.gif", "a.gif", "link.gif"]


def test_a_folder_of_pictures_holds_no_link_to_the_outside(tmp_path):
    """One picture of a clip is a link to a file outside, one of another is a link within. Is only the first refused?"""
    for name in ("a", "b"):
        for k in range(3):
            write_clip(tmp_path / "set" / name / f"{k}.png", 1)
        (tmp_path / "set" / f"{name}.txt").write_text(name)
    write_clip(tmp_path / "secret.png", 1)
    os.symlink(tmp_path / "secret.png", tmp_path / "set" / "a" / "3.png")
    os.symlink(tmp_path / "set" / "a" / "0.png", tmp_path / "set" / "b" / "3.png")
    dataset = FolderSet(tmp_path / "set", 1, frames=1)
    assert dataset.captions() == ["b"] and dataset.skipped == {"leads outside the folder of the set": ["a"]}


def test_a_text_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    """The system refuses to open b.txt. Is b.gif skipped and named, and a.gif used?"""
    def read_text(path, **options):
        if path.name == "b.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return path.read_bytes().decode()
    for name in "ab":
        write_clip(tmp_path / f"{name}.gif", 60)
        (tmp_path / f"{name}.txt").write_text(name)
    monkeypatch.setattr("pathlib.Path.read_text", read_text)
    dataset = FolderSet(tmp_path, 1)                                         # breaks if the whole set is lost
    assert dataset.captions() == ["a"]
    assert dataset.skipped == {"has a caption that cannot be read as text in UTF-8": ["b.gif"]}


def test_pictures_beside_a_clip_are_named_one_by_one(tmp_path):
    """A folder holds a clip with a caption, and two pictures without. Are the pictures named, and not the folder?"""
    write_clip(tmp_path / "films" / "a.gif", 60)
    (tmp_path / "films" / "a.txt").write_text("a")
    for name in ("b.png", "c.png"):
        write_clip(tmp_path / "films" / name, 1)
    assert FolderSet(tmp_path, 1).skipped == {"has no caption": ["b.png", "c.png"]}


@pytest.mark.parametrize("name", ["a.MP4", "a.Gif", "a.JPG", "a.v2.gif"])
def test_a_text_belongs_to_the_file_with_its_stem(name, tmp_path):
    """Cameras write .JPG and .MP4. Is that the clip that the .txt describes?"""
    (tmp_path / name).touch()
    (tmp_path / name).with_suffix(".txt").write_text("x")
    assert list(folder.read_captions(tmp_path)) == [tmp_path / name]


def test_a_linked_text_is_no_caption(tmp_path):
    """a.txt is a link to a file outside. Is its text kept out of the captions?"""
    (tmp_path / "secret").write_text("password")
    write_clip(tmp_path / "set" / "a.gif", 60)
    os.symlink(tmp_path / "secret", tmp_path / "set" / "a.txt")
    with pytest.raises(ValueError, match="has no caption .a.gif"):
        FolderSet(tmp_path / "set", 1)


def test_a_pipe_is_no_clip(tmp_path):
    """A pipe that nobody writes to would never end. Is it named, and the good clip used?"""
    os.mkfifo(tmp_path / "pipe.gif")
    os.mkfifo(tmp_path / "pipe.mp4")
    write_clip(tmp_path / "a.gif", 60)
    describe(tmp_path, a__gif="a", pipe__gif="b", pipe__mp4="c")
    assert FolderSet(tmp_path, 1).skipped["is not a file"] == ["pipe.gif", "pipe.mp4"]


def test_names_are_printed_without_escapes_and_line_breaks(tmp_path):
    """A clip whose name clears the screen and has two lines. Is the summary one plain line?"""
    write_clip(tmp_path / "a.gif", 60)
    write_clip(tmp_path / "b\x1b[2J\nc.gif", 60)
    describe(tmp_path, a__gif="a")
    assert FolderSet(tmp_path, 1).summary().isprintable()                    # breaks if names are printed raw


def test_an_animation_that_would_take_hours_is_refused_at_once(tmp_path):
    """A few kilobytes, but 3000 frames of 12000 x 12000 pixels."""
    write_clip(tmp_path / "a.gif", 3000, 100, shade=lambda k: k % 2, size=(1, 1))
    content = bytearray((tmp_path / "a.gif").read_bytes())
    content[6:10] = (12000).to_bytes(2, "little") * 2                        # the size of the canvas
    (tmp_path / "a.gif").write_bytes(content)
    with pytest.raises(ValueError, match="too many"):
        folder.clip_seconds(tmp_path / "a.gif")


def test_a_csv_with_an_open_quote_or_a_column_twice_is_refused(tmp_path):
    """The one swallows the next rows, the other loses a caption: an error that names the file."""
    for text, message in (('file_name,text\na.gif,"red\nb.gif,blue\n', "not a CSV file"),
                          ("file_name,text,text\na.gif,red,blue\n", "two columns have the same name")):
        (tmp_path / "metadata.csv").write_text(text)
        with pytest.raises(ValueError, match=f"metadata.csv: .*{message}"):
            read_captions(tmp_path)


def test_a_linked_folder_and_a_caption_with_nul_are_named(tmp_path):
    """A set links to a folder elsewhere, and a .txt is UTF-16: does the summary say so?"""
    write_clip(tmp_path / "set" / "a.gif")
    write_clip(tmp_path / "set" / "b.gif")
    write_clip(tmp_path / "elsewhere" / "c.gif")
    (tmp_path / "set" / "a.txt").write_text("a clip")
    (tmp_path / "set" / "b.txt").write_bytes("a clip".encode("utf-16-le"))
    os.symlink(tmp_path / "elsewhere", tmp_path / "set" / "more")
    skipped = FolderSet(tmp_path / "set", 1, frames=2).skipped
    assert skipped["is a link to a folder"] == ["more"]
    assert skipped["has a caption that cannot be read as text in UTF-8"] == ["b.gif"]
