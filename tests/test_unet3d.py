"""Exercises for unet3d.py. The golden numbers come from the published implementation, run on seeded random weights."""
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from unet3d import (
    Attention, TemporalAttention, TemporalConv, UNet3D, channels_last_group_norm, fold, sinusoids, unfold
)

REFERENCE = Path(__file__).parent / "reference"
TINY = dict(block_out_channels=(8, 16), layers_per_block=1, attention_head_dim=(2, 4), cross_attention_dim=6,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=4)


def golden(scale=1.0, **more):
    """The golden U-Net (with temporal=True: grown, its new tensors as they start), its runs, and their tolerance."""
    sidecar = json.loads((REFERENCE / "unet_tiny.json").read_text())
    config = sidecar["config"]
    model = UNet3D(block_out_channels=config["block_out_channels"], attention_head_dim=config["num_heads"],
                   cross_attention_dim=config["cross_attention_dim"], norm_num_groups=config["norm_num_groups"], **more)
    tensors = {name: w.float() * (1 if "norm" in name or "transformer_blocks" in name else scale)
               for name, w in load_file(REFERENCE / "unet_tiny.weights.safetensors").items()}
    model.load_state_dict(model.state_dict() | tensors)
    return model.eval(), load_file(REFERENCE / "unet_tiny.io.safetensors"), sidecar["tolerance"]


def error(ours, reference):
    return float((ours - reference).abs().max() / reference.abs().max())


def inputs(io, run):
    return io[f"{run}/sample"][:, :, None], io[f"{run}/timestep"].reshape(-1), io[f"{run}/encoder_hidden_states"]


def moving_clip(b=2, n=3, h=4, w=6, l=5, d=6):
    """z_t with frames that differ, t, and text."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(b, 4, n, h, w, generator=g), torch.tensor([3, 700])[:b], torch.randn(b, l, d, generator=g)


@torch.no_grad()
def stir(model, seed=0):
    """Random numbers into every parameter: as after training, nothing is zero any more."""
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.add_(0.2 * torch.randn(p.shape, generator=g))
    return model


@torch.no_grad()
@pytest.mark.parametrize("run", ["t981", "t1", "batch"])
def test_without_temporal_layers_it_computes_what_sd_computes(run):
    """One frame is a picture. Random weights, three inputs: which module differs first from the published?"""
    model, io, tolerance = golden(temporal=False)
    seen = {}
    for name, module in model.named_modules():
        if f"{run}/{name}" in io:
            module.register_forward_hook(lambda m, x, y, name=name: seen.update({name: y}))
    seen["out"] = model(*inputs(io, run))[:, :, 0]
    assert len(seen) > 20 or run != "batch"
    for name, ours in seen.items():                                          # breaks with conv_shortcut left out
        assert error(ours, io[f"{run}/{name}"]) < tolerance["max_abs_difference_over_max_abs_reference"], name


@torch.no_grad()
def test_small_activations_show_the_eps_of_the_norms():
    """Weights times 0.05: now 1e-5 in ResBlocks and 1e-6 in front of transformers can be told apart. Can they?"""
    model, io, tolerance = golden(scale=0.05, temporal=False)
    assert error(model(*inputs(io, "t981"))[:, :, 0], io["scaled/out"]) < tolerance["scaled"]    # breaks: 1e-6 <-> 1e-5


def test_names_and_shapes_are_those_of_sd21():
    """On the meta device, where tensors take no memory: does the published file fit, and what does the paper add?"""
    manifest = json.loads((REFERENCE / "sd21_unet.json").read_text())
    with torch.device("meta"):
        flat, grown = UNet3D(temporal=False), UNet3D()
    ours = {name: list(p.shape) for name, p in flat.state_dict().items()}
    assert ours == manifest and sum(p.numel() for p in flat.parameters()) == 865_910_724
    new = {name: p for name, p in grown.state_dict().items() if name not in manifest}
    assert all("temporal" in name for name in new) and len(new) == len(grown.state_dict()) - len(manifest)
    conv = sum(p.numel() for name, p in new.items() if "temporal_conv" in name)
    assert conv == 151_280_692 and sum(p.numel() for p in new.values()) - conv == 223_251_840
    assert sum(isinstance(m, TemporalConv) for m in grown.modules()) == 52   # one behind every 3x3 convolution,
    assert sum(len(p.shape) == 4 and p.shape[2:] == (3, 3) for p in flat.parameters()) == 52        # of which there are
    assert sum(isinstance(m, TemporalAttention) for m in grown.modules()) == 16


@torch.no_grad()
def test_law_1_fresh_the_video_unet_is_the_image_unet_on_every_frame():
    """Sec. 3.1, zero-started temporal layers. On a moving clip: does any frame notice that it has neighbours?"""
    flat, grown = golden(temporal=False)[0], golden()[0]
    z_t, t, text = moving_clip(h=8, w=16, d=32)
    one_by_one = torch.stack([flat(z_t[:, :, i:i + 1], t, text)[:, :, 0] for i in range(3)], dim=2)
    assert_close(grown(z_t, t, text), one_by_one, atol=2e-5, rtol=0)         # breaks if fold is a bare reshape


@torch.no_grad()
def test_law_1_holds_on_a_still():
    """n = 1: the grown network on a still is the image network too."""
    flat, grown = golden(temporal=False)[0], golden()[0]
    z_t, t, text = moving_clip(n=1, h=8, w=8, d=32)
    assert_close(grown(z_t, t, text), flat(z_t, t, text), atol=2e-5, rtol=0)


def test_law_2_after_three_steps_every_tensor_has_moved():
    """One zero a branch, not two: is every tensor alive after three optimiser steps?"""
    torch.manual_seed(0)
    model = UNet3D(**TINY)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(*moving_clip()) - 1).pow(2).mean().backward()
        optimizer.step()
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert still == []                                                       # breaks with norm and conv both zeroed


def test_fold_puts_frames_before_channels_and_unfold_undoes_it():
    """Every number of a tensor tells its own place. Where does z[b, c, n] go?"""
    z = torch.arange(2 * 3 * 4 * 5 * 6).view(2, 3, 4, 5, 6)
    frames = fold(z)
    for b in range(2):
        for n in range(4):
            assert torch.equal(frames[b * 4 + n], z[b, :, n])                # breaks with z.reshape(8, 3, 5, 6)
    assert torch.equal(unfold(frames, 4), z)


@pytest.mark.parametrize("shape", [(3, 8, 4, 5), (2, 8, 3, 4, 5)], ids=["frames", "a clip"])
@pytest.mark.parametrize("affine", [True, False])
def test_the_norm_in_channels_last_memory_is_the_group_norm(shape, affine):
    """Numbers around 5, in channels-last memory. Is it PyTorch's norm, with its gradient, and stays the memory so?"""
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}[len(shape)]
    x = (5 + torch.randn(shape)).contiguous(memory_format=layout).requires_grad_()
    weight, bias = (torch.randn(8), torch.randn(8)) if affine else (None, None)
    ours, theirs = (norm(x, 4, weight, bias) for norm in (channels_last_group_norm, torch.nn.functional.group_norm))
    assert_close(ours, theirs, atol=1e-4, rtol=0)                            # breaks with the mean not taken off
    assert ours.stride() == x.stride()
    g = torch.randn(shape)
    assert_close(*(torch.autograd.grad(y, x, g)[0] for y in (ours, theirs)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype, most", [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_the_norm_in_16_bits_takes_large_numbers(dtype, most):
    """Numbers in the thousands, whose squares float16 does not have. How far is the norm from float32's?"""
    x, weight, bias = (y.to(dtype) for y in (3000 * torch.randn(2, 8, 4, 5), torch.randn(8), torch.randn(8)))
    ours = channels_last_group_norm(x, 4, weight, bias)
    theirs = torch.nn.functional.group_norm(x.float(), 4, weight.float(), bias.float())
    assert ours.dtype == dtype and (ours - theirs).norm() < most * theirs.norm()         # breaks without .float()


def test_the_frames_of_a_clip_read_its_text_and_no_other():
    """Two clips of three frames, a text each. Is every frame what it is alone, with its clip's text? Six frames cannot
    share four texts."""
    layer, x, text = Attention(8, 6, heads=2), torch.randn(6, 6, 8), torch.randn(2, 7, 6)
    alone = [layer(x[i:i + 1], text[i // 3:i // 3 + 1]) for i in range(6)]
    assert_close(layer(x, text), torch.cat(alone), atol=1e-6, rtol=1e-5)     # breaks with text[i % 2]
    with pytest.raises(RuntimeError):
        layer(x, torch.randn(4, 7, 6))                                       # breaks if rows are cut where they like


def test_channels_last_clips_fold_without_a_copy():
    """The layout of the house. Is the folded clip the same memory?"""
    z = torch.randn(2, 3, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    assert fold(z).data_ptr() == z.data_ptr() and fold(z).is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
@pytest.mark.parametrize("layer, reach", [("space", {2}), ("convolution", {1, 2, 3}), ("attention", {0, 1, 2, 3, 4})])
def test_which_frames_hear_of_a_nudge_to_frame_2(layer, reach):
    """Of five frames, which change behind a spatial layer, a temporal convolution, a temporal attention?"""
    torch.manual_seed(0)
    conv, attention = stir(TemporalConv(8, 4)), stir(TemporalAttention(8, 2, 4))
    conv.norm = torch.nn.Identity()                                          # its statistics span the clip
    attention.norm = torch.nn.Identity()
    run = {"space": torch.nn.Conv2d(8, 8, 3, padding=1), "convolution": lambda h: conv(h, 5),
           "attention": lambda h: attention(h, 5)}[layer]
    h = torch.randn(5, 8, 4, 6)
    nudged = h.clone()
    nudged[2, 0, 1, 1] += 1
    apart = (run(nudged) - run(h)).abs().amax(dim=(1, 2, 3)) > 1e-6
    assert set(apart.nonzero().flatten().tolist()) == reach                  # breaks with n and h swapped
    if layer != "space":                                                     # and only the nudged pixel hears of it
        assert (run(nudged) - run(h)).abs().amax(dim=(0, 1)).gt(1e-6).sum() == 1


@torch.no_grad()
@pytest.mark.parametrize("n", [5, 9, 70])
def test_pixels_that_share_a_row_of_attention_do_not_see_each_other(n):
    """Twelve pixels at once, in rows of up to 64 tokens, then one by one: is it the same?"""
    torch.manual_seed(0)
    attention, h = stir(TemporalAttention(8, 2, 4)), torch.randn(2 * n, 8, 3, 4)
    attention.norm = torch.nn.Identity()                                     # its statistics span the clip
    alone = [[attention(h[:, :, y:y + 1, x:x + 1], n) for x in range(4)] for y in range(3)]
    alone = torch.cat([torch.cat(row, dim=3) for row in alone], dim=2)
    assert_close(attention(h, n), alone, atol=1e-5, rtol=1e-5)               # breaks without the mask


@torch.no_grad()
def test_without_positions_temporal_attention_would_not_know_the_order():
    """Shuffle the frames: does the output follow? It must not, or nothing can tell moving left from moving right."""
    torch.manual_seed(0)
    attention, h, shuffled = stir(TemporalAttention(8, 2, 4)), torch.randn(5, 8, 4, 6), [3, 0, 4, 1, 2]
    assert not torch.allclose(attention(h[shuffled], 5), attention(h, 5)[shuffled], atol=1e-3)   # breaks: position = 0


@torch.no_grad()
def test_every_frame_reads_its_own_clips_text():
    """Two clips in a batch, two texts. Change the second text: which clip changes?"""
    torch.manual_seed(0)
    model, (z_t, t, text) = stir(UNet3D(**TINY)), moving_clip()
    other = text.clone()
    other[1] += 1
    apart = (model(z_t, t, other) - model(z_t, t, text)).abs().amax(dim=(1, 3, 4))
    assert apart[0].max() == 0 and apart[1].min() > 1e-4                     # breaks if text is tiled, not repeated


@torch.no_grad()
def test_a_clip_does_not_depend_on_the_clips_beside_it():
    """Law 4. Alone or in a batch of two?"""
    model, (z_t, t, text) = stir(UNet3D(**TINY)), moving_clip()
    assert_close(model(z_t, t, text)[1:], model(z_t[1:], t[1:], text[1:]), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_eval_means_the_same_twice():
    """No dropout, no state."""
    model, clip = stir(UNet3D(**TINY)).eval(), moving_clip()
    assert torch.equal(model(*clip), model(*clip))


def test_sinusoids_are_the_published_time_embedding():
    """Cosines first. 16, 32 and 320 wide."""
    golden = load_file(REFERENCE / "timestep_embedding.safetensors")
    for dim in (16, 32, 320):
        assert_close(sinusoids(golden["t"], dim), golden[f"dim{dim}"], atol=1e-4, rtol=0)    # breaks: sines first
