"""Exercises for sd21/names.py: every name of SD2.1's two layouts, and the kinds of model that people mix up."""
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sd21 import weights
from sd21.files import write_json
from sd21.names import NOT_NEEDED, RENAME, RENAME_OLD, family, rename
from sd21.text import TextEncoder
from sd21.vae import AutoencoderKL
from unet3d import UNet3D

REFERENCE = Path(__file__).parent / "reference"
LDM_MAP = json.loads((REFERENCE / "sd21_ldm_map.json").read_text())


def test_the_rename_table_is_the_published_map():
    """1228 tensors of the single file, one by one: do they get the names that diffusers' converters give them?"""
    for name, target in LDM_MAP.items():
        renamed = rename(rename(name, RENAME), RENAME_OLD)
        if isinstance(target, list):                                         # fused query, key and value
            assert [renamed.replace("qkv", q) for q in "qkv"] == target
        elif target:
            assert renamed == target                                         # breaks if decoder levels are not mirrored
        else:
            assert NOT_NEEDED.fullmatch(name)
    needed = [name for name in LDM_MAP if not NOT_NEEDED.fullmatch(name)]
    assert len(needed) == 1214 and len(LDM_MAP) == 1228


@pytest.mark.parametrize("name, model_class, manifest",
                         [("unet", lambda: UNet3D(temporal=False), "unet"), ("vae", AutoencoderKL, "vae"),
                          ("text_encoder", TextEncoder, "text")])
def test_full_size_names_and_shapes(name, model_class, manifest):
    """With its default arguments, has each model SD2.1's tensors and no others? (`meta` takes no memory.)"""
    with torch.device("meta"):
        model = model_class()
    shapes = {tensor: list(x.shape) for tensor, x in model.state_dict().items()}
    assert shapes == json.loads((REFERENCE / f"sd21_{manifest}.json").read_text())
    assert sorted(f"{name}/{tensor}" for tensor in shapes) == sorted(
        t for target in LDM_MAP.values() for t in (target if isinstance(target, list) else [target])
        if t and t.startswith(name))


def test_the_family_of_a_file_is_recognised():
    """Files that people mix up: which tensors tell them apart?"""
    stored = lambda *shape: weights.Stored(Path("x"), "x", "F16", shape)
    to_k = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    assert family({to_k: stored(320, 768)}) == "SD1"
    assert family({to_k: stored(320, 1024)}) == "SD2"
    assert family({to_k: stored(320, 1024)}, "v_prediction") == "SD2 768 (v-prediction)"
    assert family({to_k: stored(320, 1024)}, "epsilon") == "SD2 base (eps)"
    assert family({to_k: stored(640, 2048), "conditioner.embedders.0.x": stored(1)}) == "SDXL"
    assert family({"controlnet_cond_embedding.conv_in.weight": stored(1)}) == "a ControlNet"
    motion = "down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight"
    assert family({motion: stored(1)}) == "an AnimateDiff motion module"
    assert family({"unet.down_blocks.0.resnets.0.temporal_conv1.conv.weight": stored(1)}) == "a video model of ours"


def test_an_sd1_file_is_refused_by_name(tmp_path):
    """SD1 names its text encoder differently and is 768 wide: does the line say SD1, not only that a tensor is odd?"""
    file = tmp_path / "v1-5.safetensors"
    to_k = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    text = "cond_stage_model.transformer.text_model.final_layer_norm.weight"
    save_file({text: torch.zeros(768), to_k: torch.zeros(320, 768)}, file)
    with pytest.raises(ValueError, match="looks like SD1"):
        weights.load(weights.component("unet", file), UNet3D, temporal=False)


def test_an_sd1_folder_is_refused_by_name(tmp_path):
    """Its config gives one number of heads and its projections are convolutions: does the line say SD1?"""
    write_json({"cross_attention_dim": 768, "attention_head_dim": 8}, tmp_path / "unet" / "config.json")
    to_k = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    save_file({to_k: torch.zeros(320, 768)}, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match="looks like SD1") as e:
        weights.load(weights.component("unet", tmp_path), UNet3D, temporal=False)
    assert "\n" not in str(e.value)
