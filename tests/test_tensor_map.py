"""Exercises for sd21/tensor_map.py: the printed map of a checkpoint."""
import re
import subprocess
import sys
from pathlib import Path

import pytest

from appearnet import is_new
from microcinema import COMPONENT_CLASSES
from sd21.tensor_map import main
from sd21.weights import locate

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_map_shows_every_tensor_and_the_line_of_its_class(capsys):
    """Is each tensor there once, what the paper adds apart, and does each file:line hold the class?"""
    assert main(COMPONENT_CLASSES, is_new, [str(ROOT / "toy")]) == 0
    said = capsys.readouterr().out
    rows = re.findall(r"^  (\S+) +\[.*\] +F16 +(\w+) +([\w/]+\.py):(\d+)$", said, re.M)
    located = locate(ROOT / "toy")
    assert sorted(row[0] for row in rows) == sorted(name for tensors in located.values() for name in tensors)
    for _, name, file, line in rows:
        assert (ROOT / file).read_text().splitlines()[int(line) - 1].startswith(f"class {name}(")
    added = said.split("video, what the paper adds")[1].split("\n\n")[0]
    assert "temporal_conv1.conv.weight" in added and "appearnet.zero_conv.weight" in added
    assert "attn1.to_q" not in re.sub(r"temporal_attentions\S+", "", added)


@pytest.mark.slow
def test_the_map_can_be_cut_short():
    """`python -m sd21.weights toy | head -n 1`: no traceback and no complaint when nobody reads on."""
    run = subprocess.Popen([sys.executable, "-m", "sd21.weights", ROOT / "toy"], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert run.stdout.readline().startswith(f"{ROOT / 'toy'}: looks like")
    run.stdout.close()
    assert run.stderr.read() == "" and run.wait() == 0                       # breaks without BrokenPipeError


@pytest.mark.slow
def test_without_a_video_model_the_map_shows_what_growing_would_add(capsys, tmp_path):
    """An image model alone, with its schedule. Which tensors would the paper add, and is the family recognised?"""
    for name in ("unet", "scheduler"):
        (tmp_path / name).symlink_to(ROOT / "toy" / name)
    assert main(COMPONENT_CLASSES, is_new, [str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path}: looks like a model of its own size\n")
    added = said.split("what the paper adds, not in this checkpoint")[1]
    rows = re.findall(r"^  (\S+) +\[.*\] +- +\w+ +[\w/]+\.py:\d+$", added, re.M)
    assert len(rows) > 100 and all(is_new(name) for name in rows)


def test_a_path_without_a_model_is_one_line(capsys, tmp_path):
    """An empty folder and a file that is none."""
    (tmp_path / "x.safetensors").write_text("no tensors")
    for path in (tmp_path, tmp_path / "x.safetensors", tmp_path / "nowhere"):
        assert main(COMPONENT_CLASSES, is_new, [str(path)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"python -m sd21.weights: {path}: ") and said.count("\n") == 1
