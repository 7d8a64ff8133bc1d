"""Exercises for sd21/vae.py. The golden numbers are the published implementation's, on seeded random weights."""
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from microcinema import encode_video
from sd21 import weights
from sd21.vae import Attention, AutoencoderKL, Block

REFERENCE = Path(__file__).parent / "reference"
TINY = dict(block_out_channels=(8, 16, 24), layers_per_block=1, norm_num_groups=4)


def golden(scale=1.0):
    """The golden model, its inputs and outputs, and the tolerances (relative to the largest value)."""
    sidecar = json.loads((REFERENCE / "vae_tiny.json").read_text())
    keys = "in_channels out_channels latent_channels block_out_channels layers_per_block norm_num_groups".split()
    model = AutoencoderKL(**{key: sidecar["config"][key] for key in keys})
    weights = load_file(REFERENCE / "vae_tiny.weights.safetensors")
    model.load_state_dict({k: w.float() * (1 if "norm" in k else scale) for k, w in weights.items()}, strict=True)
    return model.eval(), load_file(REFERENCE / "vae_tiny.io.safetensors"), sidecar


def error(output, reference):
    return float((output - reference).abs().max() / reference.abs().max())


@torch.no_grad()
def test_it_computes_what_the_published_autoencoder_computes():
    """Random weights, one picture, one latent: which module is the first to differ from the published one's?"""
    model, io, sidecar = golden()
    seen = {}
    for name, module in model.named_modules():
        for way in ("encode", "decode"):
            if f"{way}/{name}" in io:
                module.register_forward_hook(lambda m, x, y, key=f"{way}/{name}": seen.update({key: y}))
    seen["encode/mean"], seen["encode/logvar"] = model.encode(io["encode/image"])
    seen["decode/image"] = model.decode(io["decode/z"])

    allowed = sidecar["tolerance"]["max_abs_difference_over_max_abs_reference"]
    expected = {key: value for key, value in io.items() if key in seen}
    assert len(expected) == 3 + 5 + 3                       # three outputs, five encoder blocks, three decoder blocks
    assert {key: e for key, y in expected.items() if (e := error(seen[key], y)) > allowed} == {}
    # breaks with zeros on all four sides in Block's `pad`, without the attention's norm, with ReLU for SiLU


@torch.no_grad()
def test_shrunken_weights_show_the_eps_of_the_norms():
    """With ordinary weights, an eps of 1e-5 or 1e-6 makes no visible difference. Does it with small weights?"""
    model, io, sidecar = golden(scale=0.05)
    allowed = sidecar["tolerance"]["scaled"]              # the JSON file says how the weights were shrunk
    assert error(model.encode(io["encode/image"])[0], io["scaled/mean"]) < allowed
    assert error(model.decode(io["decode/z"]), io["scaled/image"]) < allowed
    # breaks with EPS = 1e-5, which passes the test above


@torch.no_grad()
def test_memory_format_changes_nothing():
    """channels_last stores the same numbers in another order. Does any layer assume the usual one?"""
    model, io, _ = golden()
    model = model.to(memory_format=torch.channels_last)
    image, z = (io[key].to(memory_format=torch.channels_last) for key in ("encode/image", "decode/z"))
    assert error(model.encode(image)[0], io["encode/mean"]) < 2e-5
    assert error(model.decode(z), io["decode/image"]) < 2e-5
    # only this test breaks with a view that assumes an order: .view(b, -1) of the attention's input


def test_every_tensor_has_the_name_and_shape_of_the_published_file():
    """SD2.1's vae/ folder holds 248 tensors. Does the model have these and no others?"""
    with torch.device("meta"):                              # shapes without memory
        model = AutoencoderKL()
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == json.loads((REFERENCE / "sd21_vae.json").read_text())
    assert sum(p.numel() for p in model.parameters()) == 83_653_863
    # breaks with a conv_shortcut in every ResBlock, or with as many ResBlocks in the decoder as in the encoder


def test_downsampling_pads_at_the_right_and_the_bottom_only():
    """A kernel that is 1 in its centre and 0 elsewhere: which pixel of each 2 x 2 square does it keep?"""
    down = Block(1, 1, layers=1, groups=1, downsample=True).downsamplers[0]
    down.conv.weight.data.zero_()[0, 0, 1, 1] = 1
    down.conv.bias.data.zero_()
    x = torch.arange(24.0).view(1, 1, 4, 6)
    assert_close(down(x), x[:, :, 1::2, 1::2])              # padding=1 would keep x[:, :, 0::2, 0::2]


def test_attention_with_zero_queries_is_the_mean():
    """All queries zero: every position attends to all others equally. What is the output?"""
    torch.manual_seed(0)
    layer, x = Attention(8, groups=4).double(), torch.randn(2, 8, 3, 5, dtype=torch.float64)
    layer.to_q.weight.data.zero_(), layer.to_q.bias.data.zero_()
    normed = layer.group_norm(x).mean((2, 3))               # [b, c]: linear layers and means commute
    mean = layer.to_out[0](layer.to_v(normed))
    assert_close(layer(x), x + mean[:, :, None, None])      # breaks without `x +`


def test_the_log_variance_is_clamped():
    """What if the network is so certain, or so uncertain, that exp(logvar) would leave float16's range?"""
    model = AutoencoderKL(**TINY)
    model.quant_conv.bias.data[4:] = torch.tensor([1e6, -1e6, 1e6, -1e6])
    mean, logvar = model.encode(torch.zeros(1, 3, 8, 8))
    assert logvar[0, :, 0, 0].tolist() == [20, -30, 20, -30]        # breaks if mean and logvar are swapped
    assert mean.abs().max() < 1e3


@torch.no_grad()
def test_pictures_of_one_batch_are_independent():
    """A video is encoded as a batch of frames. Does a frame's latent depend on the others, or change between calls?"""
    torch.manual_seed(0)
    model, frames = AutoencoderKL(**TINY).double().eval(), torch.randn(3, 3, 8, 12, dtype=torch.float64)
    together = model.encode(frames)[0]
    assert together.shape == (3, 4, 2, 3)                   # three levels: halved twice
    assert_close(together, torch.cat([model.encode(frame[None])[0] for frame in frames]))
    assert torch.equal(together, model.encode(frames)[0])   # .eval() twice: breaks with a dropout_p in the attention
    assert model.decode(together).shape == frames.shape


@torch.no_grad()
def test_latents_are_float32_whatever_the_autoencoder_computes_in():
    """A bfloat16 autoencoder and float32 pixels of two frames. The samplers and the loss count in float32."""
    z_0 = encode_video(AutoencoderKL(**TINY).bfloat16().eval(), torch.zeros(1, 3, 2, 8, 8))
    assert z_0.dtype == torch.float32 and z_0.shape == (1, 4, 2, 2, 2)       # breaks without .float() or .to()


def test_a_size_that_does_not_divide_is_refused():
    """A picture 10 high and a factor of 4: 2.5 rows of latents. Rounding would silently change the picture's size."""
    model = AutoencoderKL(**TINY)
    assert model.factor == 4 and AutoencoderKL(**{**TINY, "block_out_channels": (8, 16, 24, 24)}).factor == 8
    with pytest.raises(ValueError, match="12 wide and 10 high.*multiples of 4"):
        model.encode(torch.zeros(1, 3, 10, 12))
    with pytest.raises(ValueError, match="10 wide and 12 high"):
        model.encode(torch.zeros(1, 3, 12, 10))             # breaks if only one side is checked


def test_the_scale_of_latents_is_the_configs():
    """Whoever multiplies z asks `scale`. Without one in the config, it is SD2.1's."""
    assert AutoencoderKL(**TINY).scale == 0.18215 and AutoencoderKL(**TINY, scaling_factor=0.3).scale == 0.3


def test_an_autoencoder_of_other_channels_is_refused():
    """The latents of newer models have 16 channels: no U-Net of SD2.1 reads them."""
    with pytest.raises(ValueError, match="latent_channels 16, want 4"):
        AutoencoderKL(**TINY, latent_channels=16)
    with pytest.raises(ValueError, match="in_channels"):
        AutoencoderKL(**TINY, in_channels=4)


def test_an_autoencoder_without_a_scale_is_refused(tmp_path):
    """Stage vae writes null until it has measured the scale. It may load the model itself, with any scale."""
    weights.save(AutoencoderKL(**TINY).state_dict(), TINY | {"scaling_factor": None}, tmp_path / "vae")
    vae = weights.component("vae", tmp_path)
    with pytest.raises(ValueError, match="stopped before the scale of its latents was measured"):
        weights.load(vae, AutoencoderKL)
    assert weights.load(vae, AutoencoderKL, scaling_factor=1.0).scale == 1.0
