"""Exercises for unet3d.py. The golden numbers come from the published implementation, run on seeded random weights."""
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from test_kernels import plain_attention
from torch.testing import assert_close

from sd21.layers import sinusoids
from unet3d import TemporalAttention, TemporalConv, UNet3D, UNetConfig, fold, unfold

REFERENCE = Path(__file__).parent / "reference"
TINY = dict(block_out_channels=(8, 16), layers_per_block=1, attention_head_dim=(2, 4), cross_attention_dim=6,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=4)


def golden(scale=1.0, **more):
    """The golden U-Net, its inputs and outputs, and their tolerance. Temporal layers, if any, are untrained."""
    sidecar = json.loads((REFERENCE / "unet_tiny.json").read_text())
    config = sidecar["config"]
    model = UNet3D(block_out_channels=config["block_out_channels"], attention_head_dim=config["num_heads"],
                   cross_attention_dim=config["cross_attention_dim"], norm_num_groups=config["norm_num_groups"], **more)
    tensors = {name: w.float() * (1 if "norm" in name or "transformer_blocks" in name else scale)
               for name, w in load_file(REFERENCE / "unet_tiny.weights.safetensors").items()}
    model.load_state_dict(model.state_dict() | tensors)
    return model.eval(), load_file(REFERENCE / "unet_tiny.io.safetensors"), sidecar["tolerance"]


def error(output, reference):
    return float((output - reference).abs().max() / reference.abs().max())


def inputs(io, run):
    return io[f"{run}/sample"][:, :, None], io[f"{run}/timestep"].reshape(-1), io[f"{run}/encoder_hidden_states"]


def moving_clip(b=2, n=3, h=4, w=6, l=5, d=6):
    """z_t with frames that differ, t, and text."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(b, 4, n, h, w, generator=g), torch.tensor([3, 700])[:b], torch.randn(b, l, d, generator=g)


@torch.no_grad()
def stir(model, seed=0):
    """Adds random numbers to every parameter. As after training, none is zero any more. Returns the model."""
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.add_(0.2 * torch.randn(p.shape, generator=g))
    return model


# ---- SD2.1's image model ----

@torch.no_grad()
@pytest.mark.parametrize("run", ["t981", "t1", "batch"])
def test_without_temporal_layers_it_computes_what_sd_computes(run):
    """One frame is a picture. Random weights, three inputs: which module is the first to differ from the published?"""
    model, io, tolerance = golden(temporal=False)
    seen = {}
    for name, module in model.named_modules():
        if f"{run}/{name}" in io:
            module.register_forward_hook(lambda m, x, y, name=name: seen.update({name: y}))
    seen["out"] = model(*inputs(io, run))[:, :, 0]
    assert len(seen) > 20 or run != "batch"
    for name, output in seen.items():                                        # breaks without conv_shortcut
        assert error(output, io[f"{run}/{name}"]) < tolerance["max_abs_difference_over_max_abs_reference"], name


@torch.no_grad()
def test_small_activations_show_the_eps_of_the_norms():
    """The eps is 1e-5 in ResBlocks, 1e-6 before transformers. With weights times 0.05 it makes a visible difference."""
    model, io, tolerance = golden(scale=0.05, temporal=False)
    assert error(model(*inputs(io, "t981"))[:, :, 0], io["scaled/out"]) < tolerance["scaled"]    # breaks: 1e-6 <-> 1e-5


def test_sinusoids_are_the_published_time_embedding():
    """Cosines first. 16, 32 and 320 wide."""
    published = load_file(REFERENCE / "timestep_embedding.safetensors")
    for dim in (16, 32, 320):
        assert_close(sinusoids(published["t"], dim), published[f"dim{dim}"], atol=1e-4, rtol=0)   # breaks: sines first


# ---- what the paper adds ----

@pytest.fixture(scope="module")
def full_size():
    """The image model and the video U-Net of SD2.1's size, on the meta device, where tensors take no memory."""
    with torch.device("meta"):
        return UNet3D(temporal=False), UNet3D()


@pytest.fixture(scope="module")
def manifest():
    """{name: shape} of the tensors in SD2.1's published unet/ folder."""
    return json.loads((REFERENCE / "sd21_unet.json").read_text())


def test_names_and_shapes_are_those_of_sd21(full_size, manifest):
    """Does the published file fit?"""
    flat, _ = full_size
    shapes = {name: list(p.shape) for name, p in flat.state_dict().items()}
    assert shapes == manifest and sum(p.numel() for p in flat.parameters()) == 865_910_724


def test_every_new_tensor_has_temporal_in_its_name(full_size, manifest):
    """No tensor of SD2.1 is lost, and how many numbers does the paper add in convolutions, and in attentions?"""
    grown = full_size[1].state_dict()
    new = {name: p for name, p in grown.items() if name not in manifest}
    assert all("temporal" in name for name in new) and len(new) == len(grown) - len(manifest)
    conv = sum(p.numel() for name, p in new.items() if "temporal_conv" in name)
    assert conv == 151_280_692 and sum(p.numel() for p in new.values()) - conv == 223_251_840


def test_there_are_52_temporal_convolutions_and_16_temporal_attentions(full_size):
    """Sec. 3.1: one temporal convolution after every 3x3 convolution. How many of those does SD2.1 have?"""
    flat, grown = full_size
    assert sum(isinstance(m, TemporalConv) for m in grown.modules()) == 52
    assert sum(len(p.shape) == 4 and p.shape[2:] == (3, 3) for p in flat.parameters()) == 52
    assert sum(isinstance(m, TemporalAttention) for m in grown.modules()) == 16


def test_temporal_layers_have_the_heads_and_groups_of_their_level(full_size):
    """5, 10, 20 heads as in the spatial attention beside; 32 groups everywhere."""
    _, grown = full_size
    for name, layer in grown.named_modules():
        if isinstance(layer, TemporalAttention):
            twin = grown.get_submodule(name.replace("temporal_", ""))
            assert layer.attn1.heads == twin.transformer_blocks[0].attn1.heads, name     # breaks with one head for all
        if isinstance(layer, torch.nn.GroupNorm):
            assert layer.num_groups == 32, name


def test_sd21_has_one_head_for_64_channels():
    """`attention_head_dim` is a misnomer of the published file. Are 5, 10, 20, 20 heads C / 64 of each level?"""
    config = UNetConfig()
    assert config.attention_head_dim == tuple(c / 64 for c in config.block_out_channels)


@pytest.mark.parametrize("wrong", [{"attention_head_dim": (3, 4)}, {"norm_num_groups": 3},
                                   {"block_out_channels": (9, 16), "attention_head_dim": (3, 4), "norm_num_groups": 1}])
def test_heads_and_groups_must_divide_the_channels(wrong):
    """3 heads or 3 groups of 8 channels; 9 channels, half of which are the sines of a position."""
    with pytest.raises(ValueError, match="channels: want a multiple of 2, "):
        UNetConfig(**TINY | wrong)


def test_a_network_of_other_input_channels_is_refused():
    """SD2-inpainting has 9, SD2-depth 5, InstructPix2Pix 8. Only a video model may have 8: z_t and z^c."""
    for channels, temporal in ((9, False), (9, True), (5, False), (8, False)):
        with pytest.raises(ValueError, match=f"in_channels {channels}: want 4"):
            UNetConfig(**TINY, in_channels=channels, temporal=temporal)
    assert UNetConfig(**TINY, in_channels=8).in_channels == 8


def test_latents_whose_size_does_not_divide_are_refused():
    """Two levels halve 5 rows to 3, and double them to 6: the skip has 5. PyTorch would only say that sizes differ."""
    model, text = UNet3D(**TINY), torch.zeros(1, 5, 6)
    for h, w in ((5, 4), (4, 5)):
        with pytest.raises(ValueError, match=f"latents {w} wide and {h} high: both sides must be multiples of 2"):
            model(torch.zeros(1, 4, 3, h, w), torch.zeros(1), text)


def test_lists_of_unequal_length_in_the_config_are_refused():
    """Two levels, and heads for one of them. The second level would be made without a word, or not at all."""
    with pytest.raises(ValueError, match="differ in length"):
        UNet3D(**TINY | {"attention_head_dim": (2,)})


@torch.no_grad()
def test_law_1_fresh_the_video_unet_is_the_image_unet_on_every_frame():
    """Sec. 3.1: the temporal branches start at zero. On a moving clip, does any frame notice that it has neighbours?"""
    flat, grown = golden(temporal=False)[0], golden()[0]
    z_t, t, text = moving_clip(h=8, w=16, d=32)
    one_by_one = torch.stack([flat(z_t[:, :, i:i + 1], t, text)[:, :, 0] for i in range(3)], dim=2)
    assert_close(grown(z_t, t, text), one_by_one, atol=2e-5, rtol=0)         # breaks if fold is only a reshape


@torch.no_grad()
def test_law_1_holds_on_a_still():
    """n = 1: on a still the grown network is the image network too."""
    flat, grown = golden(temporal=False)[0], golden()[0]
    z_t, t, text = moving_clip(n=1, h=8, w=8, d=32)
    assert_close(grown(z_t, t, text), flat(z_t, t, text), atol=2e-5, rtol=0)


def test_law_2_after_three_steps_every_tensor_has_moved():
    """One zero layer in a branch, not two: does every tensor learn within three steps of SGD at 0.1?"""
    torch.manual_seed(0)
    model = UNet3D(**TINY)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(*moving_clip()) - 1).pow(2).mean().backward()
        optimizer.step()
    unmoved = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert unmoved == []                                                     # breaks with norm and conv both at zero


@torch.no_grad()
def test_channels_is_true_of_every_output():
    """AppearNet sizes its projectors by `channels`. Encoder: run it. Decoder: ask the layers of these names."""
    model, (z_t, t, text) = UNet3D(**TINY), moving_clip()
    _, outputs = model.encode(fold(z_t), t, text, n=3, injections={})
    decoder = [name for names in model.decoder for name in names if name]
    assert [*model.channels] == [*outputs, *decoder]
    for name, output in outputs.items():
        assert model.channels[name] == output.shape[1], name
    for name in decoder:
        layer = model.get_submodule(name)
        last = layer.conv2 if "resnets" in name else layer.proj_out
        assert model.channels[name] == len(last.weight), name                # breaks with the input's channels


# ---- the temporal layers, by other roads ----

def double_clip():
    """[b, c, n, h, w], with frames of different contrast: a norm of single frames would not see that."""
    torch.manual_seed(0)
    return torch.randn(2, 8, 3, 4, 5).double() * torch.tensor([1.0, 3.0, 9.0]).view(3, 1, 1)


@torch.no_grad()
def test_a_temporal_convolution_is_a_norm_of_the_clip_then_silu_then_a_3d_convolution():
    """PyTorch's own layers on [b, c, n, h, w], and the skip."""
    layer, clip = stir(TemporalConv(8, 4)).double(), double_clip()
    branch = F.silu(F.group_norm(clip, 4, layer.norm.weight, layer.norm.bias))
    branch = F.conv3d(branch, layer.conv.weight[..., None], layer.conv.bias, padding=(1, 0, 0))
    assert_close(unfold(layer(fold(clip), 3), 3), clip + branch)             # breaks with statistics of single frames


def test_temporal_norms_have_the_eps_of_the_spatial_norms_before_them():
    """1e-5 after convolutions, 1e-6 in attention, as in SD2.1."""
    assert TemporalConv(8, 4).norm.eps == 1e-5 and TemporalAttention(8, 2, 4).norm.eps == 1e-6      # breaks with 2e-6


@torch.no_grad()
def test_what_replaces_the_norm_leaves_nothing_of_it():
    """A function that doubles, instead of the norm. SiLU and convolution stay; are scale and bias of the norm gone?"""
    layer, clip = stir(TemporalConv(8, 4)).double(), double_clip()
    branch = F.conv3d(F.silu(2 * clip), layer.conv.weight[..., None], layer.conv.bias, padding=(1, 0, 0))
    assert_close(unfold(layer(fold(clip), 3, lambda h: 2 * h), 3), clip + branch)    # breaks if the norm comes too


@torch.no_grad()
def test_a_temporal_attention_is_a_transformer_block_along_the_frames_of_one_pixel():
    """Norm of the clip, then pixel by pixel: positions 0, 1, 2, attention, feed-forward, each with its own skip."""
    layer, clip = stir(TemporalAttention(8, 2, 4)).double(), double_clip()
    normed = F.group_norm(clip, 4, layer.norm.weight, layer.norm.bias, eps=1e-6)
    expected = clip.clone()
    for b in range(2):
        for y in range(4):
            for x in range(5):
                h = layer.proj_in(normed[b, :, :, y, x].T[None]) + sinusoids(torch.arange(3), 8)     # [1, n, c]
                q, k, v = (to(layer.norm1(h)) for to in (layer.attn1.to_q, layer.attn1.to_k, layer.attn1.to_v))
                h = h + layer.attn1.to_out[0](plain_attention(q, k, v, heads=2))
                h = h + layer.ff(layer.norm2(h))
                expected[b, :, :, y, x] += layer.proj_out(h)[0].T
    assert_close(unfold(layer(fold(clip), 3), 3), expected)                  # breaks with statistics of single frames


@torch.no_grad()
def test_each_temporal_layer_reads_what_its_spatial_layer_has_just_computed():
    """Sec. 3.1, "after": `temporal_conv1` follows `conv1`, and so on. Three frames at a time."""
    model, outputs, wrong, read = stir(UNet3D(**TINY)), {}, [], []
    for name, layer in model.named_modules():
        layer.register_forward_hook(lambda layer, inputs, output, name=name: outputs.update({name: output}))
        if isinstance(layer, TemporalConv | TemporalAttention):
            def check(layer, inputs, name=name):
                read.append(name)
                if inputs[0] is not outputs.get(name.replace("temporal_", "")) or inputs[1] != 3:
                    wrong.append(name)
            layer.register_forward_pre_hook(check)
    model(*moving_clip())
    assert len(read) == 24 and wrong == []                                   # breaks with the time embedding between


# ---- injections ----

@torch.no_grad()
@pytest.mark.parametrize("site, c", [
    ("down_blocks.0.resnets.0", 8), ("down_blocks.0.attentions.0", 8), ("down_blocks.1.resnets.0", 16),
    ("mid_block", 16), ("up_blocks.1.attentions.0", 8), ("up_blocks.1.attentions.1", 8),
    ("up_blocks.0.resnets.0.skip", 16), ("up_blocks.0.resnets.1.skip", 8), ("up_blocks.1.resnets.1.skip", 8),
    ("down_blocks.1.resnets.0.temporal_conv2.norm", 16), ("up_blocks.1.resnets.1.temporal_conv2.norm", 8)])
def test_an_injection_arrives_where_its_name_says(site, c):
    """Do the same by hand, with a hook on the layer of that name. Is it the same, and not nothing?"""
    torch.manual_seed(0)
    model, clip, x = stir(UNet3D(**TINY)), moving_clip(), torch.randn(c, 1, 1)
    plain = model(*clip)
    name, _, last = site.rpartition(".")
    if last == "norm":                                                       # a function, called instead of the norm
        sent = lambda h: h * x[..., None]
        hook = model.get_submodule(site).register_forward_hook(lambda m, inputs, output: sent(inputs[0]))
    elif last == "skip":                                                     # the channels behind those of h
        sent = x
        hook = model.get_submodule(name).register_forward_pre_hook(
            lambda m, inputs: (torch.cat([inputs[0][:, :-c], inputs[0][:, -c:] + x], dim=1), *inputs[1:]))
    else:                                                                    # behind the temporal attention
        sent = x
        layer = model.get_submodule(site.replace("attentions", "temporal_attentions"))
        hook = layer.register_forward_hook(lambda m, inputs, output: output + x)
    by_hand = model(*clip)
    hook.remove()
    assert torch.equal(model(*clip, {site: sent}), by_hand)                  # breaks if it is added to another output
    assert (by_hand - plain).abs().max() > 1e-3


# ---- fold and unfold ----

def test_fold_puts_frames_before_channels():
    """Every number of a tensor tells its own place. Where does z[b, c, n] go?"""
    z = torch.arange(2 * 3 * 4 * 5 * 6).view(2, 3, 4, 5, 6)
    frames = fold(z)
    for b in range(2):
        for n in range(4):
            assert torch.equal(frames[b * 4 + n], z[b, :, n])                # breaks with z.reshape(8, 3, 5, 6)


def test_unfold_undoes_fold():
    """There and back: is every number in its old place?"""
    z = torch.arange(2 * 3 * 4 * 5 * 6).view(2, 3, 4, 5, 6)
    assert torch.equal(unfold(fold(z), 4), z)


def test_channels_last_clips_fold_without_a_copy():
    """We use channels-last memory throughout. Is the folded clip the same memory?"""
    z = torch.randn(2, 3, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    assert fold(z).data_ptr() == z.data_ptr() and fold(z).is_contiguous(memory_format=torch.channels_last)


# ---- what depends on what ----

@torch.no_grad()
def changed_by_a_nudge(layer):
    """How much each number of the output [5, 8, 4, 6] changes with one number of frame 2, in pixel (1, 1)."""
    torch.manual_seed(0)
    conv, attention = stir(TemporalConv(8, 4)), stir(TemporalAttention(8, 2, 4))
    conv.norm = attention.norm = torch.nn.Identity()                         # a norm's statistics span the clip
    run = {"space": torch.nn.Conv2d(8, 8, 3, padding=1), "convolution": lambda h: conv(h, 5),
           "attention": lambda h: attention(h, 5)}[layer]
    h = torch.randn(5, 8, 4, 6)
    nudged = h.clone()
    nudged[2, 0, 1, 1] += 1
    return (run(nudged) - run(h)).abs()


@pytest.mark.parametrize("layer, reach", [("space", {2}), ("convolution", {1, 2, 3}), ("attention", {0, 1, 2, 3, 4})])
def test_which_frames_change_with_frame_2(layer, reach):
    """Of five frames, which change after a spatial layer, a temporal convolution, a temporal attention?"""
    changed = changed_by_a_nudge(layer).amax(dim=(1, 2, 3)) > 1e-6
    assert set(changed.nonzero().flatten().tolist()) == reach                # breaks with n and h swapped


@pytest.mark.parametrize("layer", ["convolution", "attention"])
def test_a_temporal_layer_changes_only_the_pixel_that_was_nudged(layer):
    """How many of the 24 pixels change?"""
    assert changed_by_a_nudge(layer).amax(dim=(0, 1)).gt(1e-6).sum() == 1


@torch.no_grad()
def test_without_positions_temporal_attention_would_not_know_the_order():
    """Shuffle the frames: is the output only shuffled? Then nothing could tell moving left from moving right."""
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
    change = (model(z_t, t, other) - model(z_t, t, text)).abs().amax(dim=(1, 3, 4))
    assert change[0].max() == 0 and change[1].min() > 1e-4                   # breaks if frame i reads text i % 2


@torch.no_grad()
def test_law_4_a_clip_does_not_depend_on_the_other_clips_of_its_batch():
    """Alone or in a batch of two: is the output the same?"""
    model, (z_t, t, text) = stir(UNet3D(**TINY)), moving_clip()
    assert_close(model(z_t, t, text)[1:], model(z_t[1:], t[1:], text[1:]), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_two_calls_in_eval_mode_are_equal():
    """No dropout, no state."""
    model, clip = stir(UNet3D(**TINY)).eval(), moving_clip()
    assert torch.equal(model(*clip), model(*clip))


def test_the_sides_of_latents_divide_by_two_for_each_change_of_resolution():
    """Three levels halve twice: latents 6 wide are refused, 4 and 8 are not."""
    unet = UNet3D(**TINY | {"block_out_channels": (8, 8, 8), "attention_head_dim": (2, 2, 2),
                            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D")})
    t, text = torch.tensor([1]), torch.zeros(1, 5, TINY["cross_attention_dim"])
    with pytest.raises(ValueError, match="multiples of 4"):                  # breaks with 2, whatever the levels
        unet(torch.zeros(1, 4, 1, 8, 6), t, text)
    assert unet(torch.zeros(1, 4, 1, 8, 4), t, text).shape == (1, 4, 1, 8, 4)
