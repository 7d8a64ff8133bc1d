"""Exercises for sd21/files.py: is a file ever seen half-written, and what does a failed or killed write leave?"""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open

from sd21 import files
from sd21.files import atomic_write, read_json, write_json, write_tensors

ROOT = Path(__file__).parents[1]


# ---- atomic writes ----

def test_a_file_appears_when_it_is_complete(tmp_path):
    """While the block runs, is there a file of that name? Does the temporary name keep the ending?"""
    path = tmp_path / "a.b.gif"
    with atomic_write(path) as part:
        part.write_text("new")
        assert part.name == "a.b.gif" and not path.exists()                 # Pillow reads the format from the ending
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.b.gif"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    """The disk fills up halfway, or the person presses Ctrl-C. Is the old file still there, and no fragment left?"""
    path = tmp_path / "a.gif"
    path.write_text("old")
    for error in (OSError("No space left on device"), KeyboardInterrupt()):
        with pytest.raises(type(error)), atomic_write(path) as part:        # breaks if it writes to path itself
            part.write_text("half")
            raise error
        assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.gif"]


def test_a_folder_replaces_a_folder(tmp_path):
    """Frames of an earlier run, more than the new ones: is any of them left among the new?"""
    path = tmp_path / "frames"
    for count in (3, 2):
        with atomic_write(path) as part:
            part.mkdir()
            for k in range(count):
                (part / str(k)).write_text(str(count))
    assert {file.name: file.read_text() for file in path.iterdir()} == {"0": "2", "1": "2"}
    assert os.listdir(tmp_path) == ["frames"]


def test_a_file_never_replaces_a_folder(tmp_path):
    """A folder of somebody's has the name of a file that we write. Is it still there, with its content?"""
    (tmp_path / "vae.csv").mkdir()
    (tmp_path / "vae.csv" / "diary.txt").write_text("mine")
    with pytest.raises(OSError, match="vae.csv"), atomic_write(tmp_path / "vae.csv") as part:
        part.write_text("step,loss")
    assert (tmp_path / "vae.csv" / "diary.txt").read_text() == "mine"       # breaks if any folder is moved away
    assert os.listdir(tmp_path) == ["vae.csv"]


def test_a_folder_is_not_lost_between_two_names(tmp_path, monkeypatch):
    """The old folder has been moved away, and the run is stopped before the new one replaces it. Where is the old?"""
    path = tmp_path / "frames"
    path.mkdir()
    (path / "0").write_text("old")

    def stopped(part, path):
        raise KeyboardInterrupt
    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as part:
        part.mkdir()
    assert os.listdir(tmp_path) == ["frames"] and (path / "0").read_text() == "old"     # breaks if it stays hidden


KILLED = """
import os, sys
from sd21.files import atomic_write
with atomic_write(sys.argv[1]) as part:
    part.write_text("half")
    os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no kill -9")
def test_a_folder_that_a_killed_write_had_moved_away_comes_back(tmp_path):
    """kill -9 between the two renames: the old frames are in the temporary folder. The next write fails. Lost?"""
    (tmp_path / ".frames.part" / "frames.old").mkdir(parents=True)
    (tmp_path / ".frames.part" / "frames.old" / "frame_000.png").write_text("precious")
    with pytest.raises(OSError), atomic_write(tmp_path / "frames"):
        raise OSError("full")
    assert (tmp_path / "frames" / "frame_000.png").read_text() == "precious"  # breaks if the next write clears it


def test_the_next_write_removes_what_a_killed_one_left(tmp_path):
    """kill -9 runs no `finally`. What is in the folder then, and after the same file is written again?"""
    path = tmp_path / "a.txt"
    subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT)
    assert os.listdir(tmp_path) == [".a.txt.part"]
    (tmp_path / ".a.txt.part" / ".tmpU4huFa").touch()                       # as safetensors names its unfinished file
    with atomic_write(path) as part:
        part.write_text("new")
    assert os.listdir(tmp_path) == ["a.txt"]                                # breaks if every write has its own name


def test_a_persons_folder_of_that_name_is_not_removed(tmp_path):
    """A folder with the temporary name and a file of its own: is the write refused, in one line, and the file kept?"""
    (tmp_path / ".a.gif.part").mkdir()
    (tmp_path / ".a.gif.part" / "thesis.txt").write_text("mine")
    with pytest.raises(OSError, match="move it away") as raised, atomic_write(tmp_path / "a.gif") as part:
        part.write_text("new")
    assert "\n" not in str(raised.value) and not (tmp_path / "a.gif").exists()
    assert (tmp_path / ".a.gif.part" / "thesis.txt").read_text() == "mine"   # breaks if the folder is always removed


# ---- JSON ----

def test_json_survives_its_file(tmp_path):
    """A config, written into a folder that does not exist yet."""
    content = {"block_out_channels": [4, 8], "name": "é", "scaling_factor": None}
    write_json(content, tmp_path / "vae" / "config.json")
    assert read_json(tmp_path / "vae" / "config.json") == content


@pytest.mark.parametrize("content", [None, b"", b'{"a": 1', b"[1, 2]", b'"word"', b"\xff\xfe"])
def test_anything_but_a_json_object_is_refused_in_one_line(tmp_path, content):
    """No file, an empty one, half of one, a list, a string, bytes that are no text."""
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="config.json") as error:           # breaks if a list is returned
        read_json(path)
    assert "\n" not in str(error.value)



def test_json_nested_too_deep_is_one_line(tmp_path):
    """100,000 brackets: Python's parser gives up with a RecursionError."""
    (tmp_path / "x.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ValueError, match="x.json: not JSON"):
        read_json(tmp_path / "x.json")


# ---- safetensors ----

def test_tensors_survive_their_file(tmp_path):
    """Numbers, dtype and metadata, in a folder that does not exist yet."""
    tensors = {"a": torch.tensor([[1.0, -2.5]], dtype=torch.bfloat16), "b": torch.arange(3)}
    write_tensors(tensors, tmp_path / "new" / "x.safetensors", {"step": "4", "names": json.dumps(["é"])})
    with safe_open(tmp_path / "new" / "x.safetensors", framework="pt") as file:
        assert file.metadata() == {"step": "4", "names": json.dumps(["é"])}
        for name, tensor in tensors.items():
            assert file.get_tensor(name).equal(tensor) and file.get_tensor(name).dtype == tensor.dtype


def test_whoever_may_read_other_new_files_may_read_tensors(tmp_path):
    """safetensors makes its files private. On a shared machine, can a colleague load what you trained?"""
    write_tensors({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    (tmp_path / "b").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "b").stat().st_mode    # breaks without the chmod


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error:\n no space")])
def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch, error):
    """The library raises its own error, over several lines."""
    path = tmp_path / "x.safetensors"
    write_tensors({"a": torch.zeros(2)}, path)
    before = path.read_bytes()

    def full_disk(tensors, file, metadata):
        file.write_bytes(b"half")
        raise error
    monkeypatch.setattr(files, "save_file", full_disk)
    with pytest.raises(OSError, match="x.safetensors: cannot be written .*space") as caught:
        write_tensors({"a": torch.ones(2)}, path)                           # breaks if only OSError is caught
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.safetensors"]
