"""Exercises for weights.py: a checkpoint is read whole or not at all."""
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_unet3d import TINY

import weights
from appearnet import VideoModel
from unet3d import UNet3D

REFERENCE = Path(__file__).parent / "reference"
FILE = "diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture
def folder(tmp_path):
    """A tiny image model, saved as unet/ of a model folder; returns its folder and the model."""
    torch.manual_seed(0)
    model = UNet3D(temporal=False, **TINY)
    weights.save(model.state_dict(), TINY, tmp_path / "unet")
    return tmp_path, model


def test_what_is_saved_is_what_is_loaded(folder):
    """Float16 on disk. Which digits survive?"""
    path, model = folder
    loaded = weights.load_unet(path).state_dict()
    assert loaded.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor.half().float())              # breaks if any tensor is left as it starts


def test_the_published_layout_of_a_folder_is_read(tmp_path):
    """The golden weights with a published config.json: keys that say nothing new are passed over."""
    config = json.loads((REFERENCE / "unet_tiny.json").read_text())["config"]
    published = {"_class_name": "UNet2DConditionModel", "act_fn": "silu", "attention_head_dim": config["num_heads"],
                 "block_out_channels": config["block_out_channels"], "center_input_sample": False, "norm_eps": 1e-5,
                 "cross_attention_dim": 32, "downsample_padding": 1, "dual_cross_attention": False, "freq_shift": 0,
                 "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "flip_sin_to_cos": True,
                 "layers_per_block": 2, "norm_num_groups": 8, "num_class_embeds": None, "sample_size": 64,
                 "use_linear_projection": True}
    weights.write_json(published, tmp_path / "unet" / "config.json")
    shutil.copy(REFERENCE / "unet_tiny.weights.safetensors", tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    model = weights.load_unet(tmp_path)
    stored = load_file(REFERENCE / "unet_tiny.weights.safetensors")
    assert all(torch.equal(tensor, stored[name].float()) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("key, value", [("act_fn", "gelu"), ("use_linear_projection", False), ("num_class_embeds", 10)])
def test_a_config_that_asks_for_something_else_is_refused(folder, key, value):
    """SD1's convolutions, class labels, another activation: reading on would give wrong pictures without a word."""
    path, _ = folder
    weights.write_json(TINY | {key: value}, path / "unet" / "config.json")
    with pytest.raises(ValueError, match=key):
        weights.load_unet(path)


def test_a_config_that_describes_no_model_is_refused(folder):
    """A width that is a word, groups that do not divide: one line, that names the file."""
    path, _ = folder
    for wrong in ({"block_out_channels": ["wide", 16]}, {"norm_num_groups": 3}, {"attention_head_dim": [2]}):
        weights.write_json(TINY | wrong, path / "unet" / "config.json")
        with pytest.raises(ValueError, match="config.json"):
            weights.load_unet(path)


def broken(tensors, how):
    """The tensors of a checkpoint with one thing wrong, and what the message must name."""
    first = "conv_in.weight"
    if how == "missing":
        del tensors[first]
    elif how == "renamed":
        tensors["conv_first.weight"] = tensors.pop(first)
    elif how == "one too many":
        tensors["extra.weight"] = torch.zeros(1)
        return "extra.weight"
    elif how == "shape":
        tensors[first] = tensors[first][:-1].clone()
    elif how == "integers":
        tensors[first] = tensors[first].int()
    elif how == "nan":
        tensors[first][0, 0, 0, 0] = float("nan")
    return first


@pytest.mark.parametrize("how", ["missing", "renamed", "one too many", "shape", "integers", "nan"])
def test_a_wrong_tensor_is_named(folder, how):
    """Law 5: none is read by half. Which tensor is wrong?"""
    path, _ = folder
    file = path / "unet" / FILE
    tensors = load_file(file)
    name = broken(tensors, how)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=name) as e:                         # breaks if loading is not strict
        weights.load_unet(path)
    assert str(file) in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("how", ["empty", "cut at 4", "cut at half", "long header", "pickle", "no file", "no config",
                                 "config cut", "no folder"])
def test_a_damaged_file_gives_one_line(folder, how):
    """Whatever happened to the file: one ValueError, one line, that names it."""
    path, _ = folder
    file, config = path / "unet" / FILE, path / "unet" / "config.json"
    whole = file.read_bytes()
    if how == "empty":
        file.write_bytes(b"")
    elif how == "cut at 4":
        file.write_bytes(whole[:4])
    elif how == "cut at half":
        file.write_bytes(whole[:len(whole) // 2])
    elif how == "long header":
        file.write_bytes((1 << 40).to_bytes(8, "little") + whole[8:])
    elif how == "pickle":
        torch.save({"a": torch.zeros(3)}, file)
    elif how == "no file":
        file.unlink()
    elif how == "no config":
        config.unlink()
    elif how == "config cut":
        config.write_text(config.read_text()[:20])
    elif how == "no folder":
        shutil.rmtree(path / "unet")
    with pytest.raises(ValueError) as e:
        weights.load_unet(path)
    assert str(path) in str(e.value) and "unet" in str(e.value) and "\n" not in str(e.value)


def test_saving_never_leaves_half_a_file(folder, monkeypatch):
    """The disk fills up while the new weights are written. What is left? The old ones, whole."""
    path, model = folder
    before = (path / "unet" / FILE).read_bytes()

    def full_disk(tensors, file, **more):
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")
    monkeypatch.setattr(weights, "save_file", full_disk)
    with pytest.raises(OSError):
        weights.save(model.state_dict(), TINY, path / "unet")
    assert (path / "unet" / FILE).read_bytes() == before                     # breaks if it writes in place


def test_the_toy_model_is_whole_and_within_its_size():
    """Every part loads; all files together under 24 MiB, none above 12; and the video model is a grown image model."""
    toy = Path(__file__).parents[1] / "toy"
    for load in (weights.load_unet, weights.load_text_encoder, weights.load_video):
        assert all(p.isfinite().all() for p in load(toy).parameters())
    sizes = [file.stat().st_size for file in toy.rglob("*") if file.is_file()]
    assert sum(sizes) < 24 * 2**20 and max(sizes) < 12 * 2**20
    config = weights.read_json(toy / "unet" / "config.json")
    grown = VideoModel.grow(weights.load_unet(toy), **weights.arguments(VideoModel, config, toy))
    assert {n: p.shape for n, p in grown.state_dict().items()} == \
        {n: p.shape for n, p in weights.load_video(toy).state_dict().items()}
