"""Exercises for exercises/figures.py and blocks.py: do the figures show what the modules and the toy model do?"""
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_microcinema import load_toy
from test_unet3d import TINY
from torch.testing import assert_close

from appearnet import VideoModel
from exercises import figures
from exercises.blocks import bands, block_of, blocks, draw_unet
from sd21.kernels import frame_attention

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def full_size():
    """The video model of SD2.1's size on the meta device, where tensors take no memory."""
    with torch.device("meta"):
        return VideoModel()


# ---- the blocks of the 3D U-Net ----

def test_the_blocks_hold_every_parameter_of_sd21_and_of_the_paper(full_size):
    """SD2.1's 865,910,724 once, its encoder and middle 351,662,080 a second time. How many numbers are new?"""
    found = blocks(full_size, 40)
    assert sum(old for _, old, _ in found.values()) == 865_910_724 + 351_662_080
    assert sum(new for _, _, new in found.values()) == 374_497_332 + 597_861_140 - 351_662_080


def test_the_shapes_of_the_blocks_follow_from_the_config(full_size):
    """Nine frames of 40 x 40: channels 320, 640, 1280, 1280, half the size after each downsampler."""
    shapes = {name: shape for name, (shape, _, _) in blocks(full_size, 40).items()}
    assert shapes["unet.time_embedding"] == [1, 1280] and shapes["appearnet.projectors"] is None
    for i, (c, size) in enumerate([(320, 40), (640, 20), (1280, 10), (1280, 5)]):
        for part in ("unet", "appearnet"):
            assert shapes[f"{part}.down_blocks.{i}.resnets.1"] == [9, c, size, size]
        assert shapes[f"unet.up_blocks.{3 - i}.resnets.2"] == [9, c, size, size]
    assert shapes["unet.conv_out"] == shapes["appearnet.zero_conv"] == [9, 4, 40, 40]


def test_the_blocks_come_in_the_order_in_which_they_are_used(full_size):
    """AppearNet is first, because it tells the U-Net what to inject."""
    names = list(blocks(full_size, 40))
    assert names[0] == "appearnet.zero_conv" and names[-1] == "unet.conv_out"
    assert names.index("unet.mid_block") < names.index("unet.up_blocks.0.resnets.0")


@pytest.mark.parametrize("name, block", [
    ("unet.temporal_conv_in.conv.weight", "unet.conv_in"), ("unet.conv_norm_out", "unet.conv_out"),
    ("appearnet.down_blocks.1.temporal_attentions.0.ff", "appearnet.down_blocks.1.attentions.0"),
    ("unet.up_blocks.2.resnets.0.temporal_conv2.norm", "unet.up_blocks.2.resnets.0"), ("unet.down_blocks.0", None),
    ("unet", None)])
def test_a_temporal_layer_belongs_to_the_spatial_layer_before_it(name, block):
    """A list of blocks is none itself."""
    assert block_of(name) == block


def test_a_band_holds_the_decoder_block_that_reads_its_skip(full_size):
    """Twelve skips, read in reverse order. Where do upsamplers and the last convolution stand?"""
    rows = bands(full_size.unet, blocks(full_size, 40))
    assert [encoder[-1] for encoder, _ in rows] == full_size.unet.skips
    lowest = [[name for name in decoder if "resnets" in name] for _, decoder in rows]
    assert lowest == [[f"up_blocks.{i}.resnets.{j}"] for i in (3, 2, 1, 0) for j in (2, 1, 0)]   # reversed
    assert rows[0][1][0] == "conv_out" and rows[3][1][0] == "up_blocks.2.upsamplers.0"


def test_the_picture_has_an_arrow_for_every_route(monkeypatch):
    """A very small model: routes, and two lines to and from the middle."""
    arrows = []
    monkeypatch.setattr("exercises.blocks.arrow", lambda draw, points, colour: arrows.append(colour))
    draw_unet(TINY, 128)
    with torch.device("meta"):
        routes = VideoModel(**TINY).appearnet.routes
    assert len(arrows) == len(routes) + 2
    assert arrows.count("#d9730d") == sum(to.endswith(".norm") for to, _ in routes)      # orange is SPADE


# ---- what the toy model does ----

def test_the_shares_are_those_that_attention_uses():
    """Shares times values, head by head: is that what frame_attention returns?"""
    q, k, v = torch.randn(3, 2, 5, 4, 6, generator=torch.Generator().manual_seed(0))     # b 2, (h w) 5, n 4, c 6
    values = v.unflatten(-1, (3, 2)).transpose(-3, -2)
    out = (figures.shares(q, k, 3) @ values).transpose(-3, -2).flatten(-2)
    assert_close(out, frame_attention(q, k, v, 3))                           # breaks with sqrt(c) for sqrt(c / heads)


@pytest.mark.slow
@torch.inference_mode()
def test_denoise_does_what_the_pipeline_does():
    """The same seed, key frame and two steps of DDIM: is the last predicted z_0 that of MicroCinema.animate_latents?"""
    cinema, prompt, z_0 = figures.load(seed=3)
    picture = cinema.decode(z_0[:, :, 4:5])[:, :, 0]
    *_, (t, z_t, z) = figures.denoise(cinema, prompt, cinema.encode(picture), seed=7, steps=2)
    cinema.progress = False
    assert_close(z, cinema.animate_latents([prompt], picture, [7], sampler="ddim", steps=2), atol=1e-3, rtol=0)
    assert t == 499 and not torch.equal(z, z_t)                              # breaks without gamma, or one step on


@pytest.mark.slow
@torch.inference_mode()
def test_the_guide_reads_the_attention_maps_rightly():
    """Head 1 reads frames 4 and 5; in head 2 both ends read each other. For the pixel in the figure."""
    cinema, prompt, z_0 = figures.load(seed=0)
    attend = cinema.video.unet.up_blocks[1].temporal_attentions[0].attn1.attend
    maps, z = figures.attention_maps(cinema, prompt, z_0[:, :, 4:5], seed=0)
    _, ahead, mirror = maps[6 * 8 + 4]                                       # row 6, column 4 of 8 x 8 pixels
    assert ahead[:, 4:6].sum(-1).min() > 0.6
    assert mirror[0].argmax() == mirror[1].argmax() == 8 and mirror[8].argmax() == 0
    assert cinema.video.unet.up_blocks[1].temporal_attentions[0].attn1.attend is attend  # breaks if the spy stays


@pytest.mark.slow
@pytest.mark.parametrize("name", [*figures.PIXELS, *figures.DRAWN])
def test_the_figures_of_the_guide_are_those_that_the_code_draws_now(name, tmp_path, monkeypatch):
    """Drawn again, and compared in squares of 32 x 32 pixels. Broken by: other weights, another layout. If that is
    meant, draw the figure again by its command in the guide."""
    file, toy = next(DOCS.glob(f"{name}.*")), load_toy()
    monkeypatch.setattr(figures.MicroCinema, "load", lambda path: toy)
    seed = ["--seed", "0"] if name in figures.DRAWN else []
    assert figures.main([name, "--out", str(tmp_path / file.name), *seed]) == 0
    pictures = [Image.open(path).convert("RGB") for path in (file, tmp_path / file.name)]
    assert pictures[0].size == pictures[1].size
    old, new = (np.asarray(picture, np.float32) for picture in pictures)
    difference = torch.from_numpy(np.abs(old - new)).mean(-1)[None]          # [1, height, width], of 255
    assert F.avg_pool2d(difference, 32).max() < 5                            # rounding alone: about 1


@pytest.mark.parametrize("argv, message", [
    (["unet-toy", "--out", "x.jpg"], "unknown ending"), (["unet-toy", "--out", "missing/x.png"], "missing/x.png: "),
    (["unet-toy", "--out", "x.png", "--seed", "1"], "unrecognized"), (["paper", "--out", "x.png"], "invalid choice"),
    (["noise"], "--out")])
def test_a_wrong_command_is_one_line(argv, message, capsys, tmp_path, monkeypatch):
    """An ending, a folder that is missing, a seed where nothing is random, an unknown figure, no output."""
    monkeypatch.chdir(tmp_path)
    try:
        code = figures.main(argv)
    except SystemExit as stop:                                               # argparse exits by itself
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2 and message in captured.err and captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
