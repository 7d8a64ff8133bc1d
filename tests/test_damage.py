"""Exercises on damaged models: whatever happened to a file, a person reads one line that names the place."""
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from microcinema import main
from sd21 import weights
from sd21.files import read_json
from sd21.text import TextEncoder

ROOT = Path(__file__).parents[1]
FILE = "diffusion_pytorch_model.fp16.safetensors"


def edit_header(file, change):
    """Changes the header of a safetensors file, a dict; the numbers stay."""
    whole = file.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:8 + size])
    text = json.dumps(change(header) or header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + size:])


def edit_entry(key, value):
    """Changes one entry of conv_in.weight in the header; `value` may be a function of the old one."""
    def change(header):
        entry = header["conv_in.weight"]
        entry[key] = value(entry[key]) if callable(value) else value
    return lambda file: edit_header(file, change)


def edit_tensors(change):
    """Changes the tensors of the file, a dict."""
    def edit(file):
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)
    return edit


def overwrite(old, new):
    """Replaces `old` by `new` in the header."""
    return lambda file: file.write_bytes(file.read_bytes().replace(old, new, 1))


def keep(count):
    """Keeps the first `count` bytes; a negative count removes the last bytes."""
    return lambda file: file.write_bytes(file.read_bytes()[:count])


def swap(tensors):
    tensors["conv_in.weight"], tensors["conv_out.weight"] = tensors["conv_out.weight"], tensors["conv_in.weight"]


def one_number(x):
    def change(tensors):
        tensors["mid_block.resnets.1.conv2.weight"].view(-1)[-1] = x
    return edit_tensors(change)


def length(size):
    """Changes the length of the header, in the first eight bytes."""
    return lambda file: file.write_bytes(size.to_bytes(8, "little") + file.read_bytes()[8:])


def config(**changes):
    """Changes entries of the config.json beside the file."""
    def edit(file):
        path = file.with_name("config.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return edit


def other_file(name, content=None):
    """Replaces the content of another file of the model, or removes that file."""
    def edit(file):
        path = file.parents[1] / name
        path.unlink() if content is None else path.write_bytes(content)
    return edit


def other_family(file):
    """Replaces the text encoder by a complete one of another width than the U-Net reads."""
    folder = file.parents[1] / "text_encoder"
    settings = read_json(folder / "config.json") | {"hidden_size": 64}
    model = TextEncoder(**weights.arguments(TextEncoder, settings, folder))
    weights.save(model.state_dict(), settings, folder, stem="model")


def as_directory(file):
    file.unlink()
    file.mkdir()


def dangling(file):
    file.unlink()
    file.symlink_to("nowhere")


DAMAGE = {
    **{f"cut at {n}": keep(n) for n in (0, 1, 7, 8, 9, 1000, 50_000, -2_000_000, -1)},
    "one byte more": lambda file: file.write_bytes(file.read_bytes() + b"0"),
    "header longer than the file": length(1 << 40), "header of 2^64 - 1": length(2**64 - 1), "no header": length(0),
    "header one short": lambda file: length(int.from_bytes(file.read_bytes()[:8], "little") - 1)(file),
    "header not JSON": overwrite(b'{"', b'["'), "header not UTF-8": overwrite(b"conv_in", b"conv\xff\xffn"),
    "header a list": lambda file: edit_header(file, lambda header: list(header)),
    "header empty": lambda file: edit_header(file, lambda header: {"__metadata__": {}}),
    "overlapping": edit_entry("data_offsets", lambda ends: [ends[0] - 8, ends[1] - 8]),
    "a gap": edit_entry("data_offsets", lambda ends: [ends[0] + 8, ends[1] + 8]),
    "end before start": edit_entry("data_offsets", lambda ends: ends[::-1]),
    "negative offset": edit_entry("data_offsets", lambda ends: [-8, ends[1]]),
    "offset behind the end": edit_entry("data_offsets", lambda ends: [ends[0], 10**12]),
    "offsets are words": edit_entry("data_offsets", ["a", "b"]),
    "shape without its bytes": edit_entry("shape", [64, 4, 3, 4]),
    "a negative size": edit_entry("shape", [-64, 4, 3, 3]),
    "unknown dtype": edit_entry("dtype", "F99"), "integers": edit_entry("dtype", "I16"),
    "dtype of another size": edit_entry("dtype", "F32"), "transposed": edit_entry("shape", [4, 64, 3, 3]),
    "flat": edit_entry("shape", [64 * 4 * 9]),
    "renamed": edit_tensors(lambda tensors: tensors.update({"conv_first.weight": tensors.pop("conv_in.weight")})),
    "missing": edit_tensors(lambda tensors: tensors.pop("mid_block.attentions.0.norm.bias")),
    "one too many": edit_tensors(lambda tensors: tensors.update(extra=torch.zeros(1))),
    "swapped": edit_tensors(swap),
    "zero-sized": edit_tensors(lambda tensors: tensors.update({"conv_in.weight": torch.zeros(0, 4, 3, 3)})),
    "a number": edit_tensors(lambda tensors: tensors.update({"conv_in.bias": torch.tensor(1.0)})),
    "NaN": one_number(float("nan")), "infinity": one_number(float("inf")),
    "a pickle": lambda file: torch.save({"conv_in.weight": torch.zeros(3)}, file),
    "a web page": lambda file: file.write_text("<!DOCTYPE html><title>404</title>"),
    "a pointer of git lfs": lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "a folder": as_directory, "a dangling link": dangling, "no file": Path.unlink,
    "only a .bin": lambda file: file.rename(file.with_suffix(".bin")),
    "no folder": lambda file: shutil.rmtree(file.parent),
    "no config": other_file("unet/config.json"), "half a config": other_file("unet/config.json", b'{"in_channels": 4'),
    "config is a list": other_file("unet/config.json", b"[]"),
    "config is not text": other_file("unet/config.json", b"\xff"),
    "config of SD1": config(use_linear_projection=False), "another width": config(block_out_channels=[64, 72, 96]),
    "impossible groups": config(norm_num_groups=7), "width is a word": config(block_out_channels=["wide", 72, 80]),
    "two families": other_family, "no merges": other_file("tokenizer/merges.txt"),
    "half the merges": other_file("tokenizer/merges.txt", b"#version: 0.2\ni n\n"),
    "no schedule": other_file("scheduler/scheduler_config.json"),
    "no such schedule": other_file("scheduler/scheduler_config.json", b'{"beta_schedule": "linear"}'),
    "no such injection": other_file("video/config.json", b'{"inject": "everywhere"}'),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_gives_one_line_and_exit_2(damage, tmp_path, capsys):
    """The U-Net's file is damaged, or one beside it. Does a person read one line that names the place?"""
    model = tmp_path / "model"
    shutil.copytree(ROOT / "toy", model, copy_function=os.symlink)           # files that may change are copied below
    for file in (model / "unet").iterdir():
        file.unlink()
        shutil.copy(ROOT / "toy" / "unet" / file.name, file)
    for name in ("tokenizer/merges.txt", "scheduler/scheduler_config.json", "video/config.json"):
        (model / name).unlink()
        shutil.copy(ROOT / "toy" / name, model / name)
    DAMAGE[damage](model / "unet" / FILE)
    assert main(["a red circle moving left", "--model", str(model), "--out", str(tmp_path / "out.gif")]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("microcinema.py: ") and said.err.count("\n") == 1 and str(model) in said.err, said.err
    assert not (tmp_path / "out.gif").exists()
    print(said.err)                                                          # pytest -rP shows what a person would read
