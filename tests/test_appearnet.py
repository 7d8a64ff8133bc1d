"""Exercises for appearnet.py: Eq. 1-2, Fig. 3, Table 2, and the injection table of SD2.1."""
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from test_unet3d import TINY, moving_clip, stir
from torch.testing import assert_close

from appearnet import INJECTIONS, AppearNet, Spade, VideoModel, group_norm_3d, is_new, routes, spade
from unet3d import UNet3D, fold, unfold


def grown(inject="add_encdec_spade", seed=0):
    """A random image model, and the video model that grows from it."""
    torch.manual_seed(seed)
    flat = stir(UNet3D(temporal=False, **TINY)).eval()
    return flat, VideoModel.grow(flat, inject).eval()


def condition(z_t, seed=1):
    b, c, _, h, w = z_t.shape
    return torch.randn(b, c, 1, h, w, generator=torch.Generator().manual_seed(seed))


# ---- Eq. 1 and 2 ----

def test_eq_1_against_four_nested_loops():
    """Over which axes are mu and sigma taken? Count by hand, in float64, with every dimension a different number."""
    b, c, n, h, w, groups = 2, 8, 3, 4, 5, 4
    h_m = torch.randn(b, c, n, h, w, dtype=torch.float64)
    expected = torch.empty_like(h_m)
    for i in range(b):
        for g in range(groups):
            members = [h_m[i, k, frame, y, x] for k in range(2 * g, 2 * g + 2) for frame in range(n) for y in range(h)
                       for x in range(w)]
            mu = sum(members) / len(members)
            sigma = (sum((m - mu) ** 2 for m in members) / len(members) + 1e-5) ** 0.5
            expected[i, 2 * g:2 * g + 2] = (h_m[i, 2 * g:2 * g + 2] - mu) / sigma
    assert_close(group_norm_3d(h_m, groups), expected)                       # breaks with statistics of single frames


def test_eq_2_by_hand():
    """h_bar = 2. What do gamma_a = 0.5 and beta_a = -1 make of it? And two zeros?"""
    h_bar = torch.full((1, 1, 1, 1, 1), 2.0)
    assert spade(h_bar, 0.5 * torch.ones(1), -torch.ones(1)).item() == 2.0   # 1.5 * 2 - 1; breaks without the + 1
    assert spade(h_bar, torch.zeros(1), torch.zeros(1)).item() == 2.0


def test_a_clip_of_equal_numbers_is_normalised_to_zeros():
    """All numbers 5: h_m - mu is 0, and so is sigma. 0 / 0?"""
    assert torch.equal(group_norm_3d(torch.full((2, 8, 3, 4, 5), 5.0), 4), torch.zeros(2, 8, 3, 4, 5))   # breaks: eps=0


# ---- Fig. 3, the projector and its norm ----

@torch.no_grad()
def spade_layer(**biases):
    """A Spade from 6 channels to 8, with these biases of its convolutions, and its inputs f_a and h_m, three frames."""
    torch.manual_seed(0)
    layer = Spade(6, 8, groups=4)
    for name, value in biases.items():
        getattr(layer, name).bias.fill_(value)
    return layer, torch.randn(2 * 3, 6, 4, 5), 7 + torch.randn(2, 8, 3, 4, 5)


@torch.no_grad()
def test_a_fresh_spade_only_normalises():
    """gamma_a and beta_a start at zero. What is left?"""
    layer, f_a, h_m = spade_layer()
    assert torch.equal(layer(f_a, 3)(h_m), group_norm_3d(h_m, 4))            # breaks if gamma or beta starts elsewhere


@torch.no_grad()
def test_eq_2_comes_after_eq_1():
    """gamma_a = 2 and beta_a = -5 everywhere: 3 h_bar - 5?"""
    layer, f_a, h_m = spade_layer(gamma=2.0, beta=-5.0)
    assert_close(layer(f_a, 3)(h_m), 3 * group_norm_3d(h_m, 4) - 5)          # breaks with gamma_a and beta_a exchanged,
                                                                             # or if the norm comes last

@torch.no_grad()
@pytest.mark.parametrize("to, expected", [("gamma", lambda h_bar, x: (x + 1) * h_bar), ("beta", torch.add)])
def test_a_projector_is_a_convolution_and_then_silu(to, expected):
    """Let gamma_a, or beta_a, be what the projector returns. Is that SiLU(Wx + b), frame by frame?"""
    layer, f_a, h_m = spade_layer()
    getattr(layer, to).weight.copy_(torch.eye(8)[:, :, None, None])
    w, b = layer.projector.weight[:, :, 0, 0], layer.projector.bias
    projected = torch.stack([F.silu((frame.movedim(0, -1) @ w.T + b).movedim(-1, 0)) for frame in f_a])
    assert_close(layer(f_a, 3)(h_m), expected(group_norm_3d(h_m, 4), unfold(projected, 3)))   # breaks without the SiLU


# ---- which feature goes where ----

def test_only_the_norms_that_spade_replaces_lose_their_scale_and_bias():
    """Fig. 3: the second temporal norm of each ResBlock but those of the middle. Does SD2.1 keep all its own norms?"""
    _, model = grown()
    bare = [name for name, m in model.unet.named_modules() if isinstance(m, torch.nn.GroupNorm) and m.weight is None]
    assert bare and all(name.endswith("temporal_conv2.norm") for name in bare)
    assert sorted(bare) == sorted(to for to, _ in model.appearnet.routes if to.endswith(".norm"))
    assert not any("mid_block" in name for name in bare)                     # the U-Net's middle gets nothing


@pytest.fixture(scope="module")
def full_size():
    """The U-Net of SD2.1's size, on the meta device, where tensors take no memory."""
    with torch.device("meta"):
        return UNet3D()


def spaded(unet):
    """{ResBlock of the U-Net: name of the feature that its SPADE reads}"""
    return {to.removesuffix(".temporal_conv2.norm"): f_a for to, f_a in routes(unet, "add_encdec_spade")
            if to.endswith(".norm")}


def test_each_encoder_block_reads_the_feature_of_its_twin(full_size):
    """Eight ResBlocks."""
    resnets = [f"down_blocks.{i}.resnets.{j}" for i in range(4) for j in range(2)]
    assert [spaded(full_size)[name] for name in resnets] == resnets


def test_each_decoder_block_reads_the_feature_of_its_skip(full_size):
    """ControlNet's order. What does each of the 12 blocks read?"""
    decoder = [spaded(full_size)[f"up_blocks.{i}.resnets.{j}"] for i in range(4) for j in range(3)]
    down = lambda i: f"down_blocks.{i}.downsamplers.0"
    attention = lambda i, j: f"down_blocks.{i}.attentions.{j}"
    assert decoder == ["down_blocks.3.resnets.1", "down_blocks.3.resnets.0", down(2),
                       attention(2, 1), attention(2, 0), down(1), attention(1, 1), attention(1, 0), down(0),
                       attention(0, 1), attention(0, 0), "conv_in"]          # breaks if the skips are not reversed


def test_the_middle_and_the_decoders_attentions_get_features_too(full_size):
    """Middle to middle; and the last attention reads what the last ResBlock reads."""
    pairs = dict(routes(full_size, "add_encdec_spade"))
    assert pairs["mid_block"] == "mid_block" and pairs["up_blocks.3.attentions.2"] == "conv_in"


def test_how_many_features_each_row_of_table_2_injects(full_size):
    """12 skips and the middle; 8 + 6 more in the encoder; or 8 + 12 SPADEs, 6 + 9 sums after attentions, the middle."""
    count = {inject: len(routes(full_size, inject)) for inject in INJECTIONS}
    assert count == {"concat": 0, "add_dec": 13, "add_encdec": 27, "add_encdec_spade": 36}


def test_appearnet_is_encoder_and_middle_of_sd21_with_their_temporal_layers(full_size):
    """How many numbers of SD2.1 are in it, and how many in temporal layers?"""
    with torch.device("meta"):
        appearnet = AppearNet(full_size)
    own = {name: p.numel() for name, p in appearnet.named_parameters()
           if not name.startswith(("projectors", "zero_conv"))}
    assert sum(size for name, size in own.items() if "temporal" not in name) == 351_662_080
    # temporal: 24 convolutions and 7 attentions of c channels, 3c^2 + 3c and 18c^2 + 18c numbers each
    conv, attention = [320] * 6 + [640] * 5 + [1280] * 13, [320] * 2 + [640] * 2 + [1280] * 3
    assert sum(size for name, size in own.items() if "temporal" in name) == \
        sum(3 * c * c + 3 * c for c in conv) + sum(18 * c * c + 18 * c for c in attention)


def test_the_full_model_has_one_point_eight_billion_parameters(full_size):
    """865.9 M of SD2.1, 374.5 M temporal, and AppearNet with its projectors."""
    with torch.device("meta"):
        appearnet = AppearNet(full_size)
    assert 1.8e9 < sum(p.numel() for part in (full_size, appearnet) for p in part.parameters()) < 1.9e9


def test_routes_need_a_skip_for_each_decoder_block():
    """Three blocks and two skips. A zip of unequal lists would leave out a block without a word."""
    decoder = [(f"up_blocks.0.resnets.{j}", None) for j in range(3)]
    unet = SimpleNamespace(channels={}, decoder=decoder, skips=["conv_in", "down_blocks.0.resnets.0"])
    with pytest.raises(ValueError):
        routes(unet, "add_dec")                                              # breaks without strict=True


@pytest.mark.parametrize("inject", INJECTIONS)
def test_new_is_what_the_image_model_has_not(inject):
    """Is each tensor of the video model new, or one of SD2.1's?"""
    flat, model = grown(inject)
    new = {name for name in model.state_dict() if name.split(".", 1)[1] not in flat.state_dict()}
    assert {name for name in model.state_dict() if is_new(name)} == new      # breaks with `not in`, or without any()


def test_a_row_that_table_2_does_not_have_is_refused():
    """A misspelt row would otherwise inject as the last one does."""
    with pytest.raises(ValueError, match="add_encdec_spad'"):
        VideoModel("add_encdec_spad", **TINY)


def test_a_grown_model_has_the_dtype_of_the_image_model():
    """Grown from 16 bits: is any tensor larger?"""
    flat = UNet3D(temporal=False, **TINY).bfloat16()
    assert {p.dtype for p in VideoModel.grow(flat).parameters()} == {torch.bfloat16}


# ---- laws 1 and 2 ----

@torch.no_grad()
@pytest.mark.parametrize("inject", INJECTIONS)
def test_law_1_holds_with_every_row_of_table_2(inject):
    """A moving clip, and a condition that has nothing to do with it: is the fresh model still the image model?"""
    flat, model = grown(inject)
    z_t, t, text = moving_clip()
    frames = torch.stack([flat(z_t[:, :, i:i + 1], t, text)[:, :, 0] for i in range(3)], dim=2)
    assert_close(model(z_t, t, condition(z_t), text), frames, atol=2e-5, rtol=1e-5)  # breaks if gamma starts elsewhere


def moved_by(model, steps):
    """The names of the parameters that differ from their start after so many steps of Adam."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        z_t, t, text = moving_clip()
        (model(z_t, t, condition(z_t), text) - 1).pow(2).mean().backward()
        optimizer.step()
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def test_one_step_moves_only_the_last_map_of_each_new_branch():
    """A zero layer passes no gradient on. Which parts of AppearNet, and of the temporal layers, move first?"""
    torch.manual_seed(0)
    model = VideoModel(**TINY)
    moved = moved_by(model, steps=1)
    zero_convs = {f"appearnet.projectors.{to.replace('.', '_')}" for to, _ in model.appearnet.routes
                  if not to.endswith(".norm")}
    assert {name.rpartition(".")[0] for name in moved if name.startswith("appearnet.")} == zero_convs
    temporal = [name for name in moved if name.startswith("unet.") and "temporal" in name]
    assert all(".conv." in name or "proj_out" in name for name in temporal)


@pytest.mark.parametrize("inject", INJECTIONS)
def test_law_2_three_steps_move_every_tensor(inject):
    """Zero layers one after another wait for each other. After three steps at 1e-2, which tensor has not moved?

    At the paper's 2e-5 and 2e-6 a few may not: where a gradient is below Adam's eps, float32 loses so small a step."""
    torch.manual_seed(0)
    model = VideoModel(inject, **TINY)
    names = {name for name, _ in model.named_parameters()}
    assert names - moved_by(model, steps=3) == set()                         # breaks if a projector starts at zero too


# ---- AppearNet ----

@torch.no_grad()
@pytest.mark.parametrize("inject", INJECTIONS)
def test_once_trained_the_condition_matters_in_every_frame(inject):
    """Another key frame: does every frame change?"""
    model = stir(grown(inject)[1], seed=2)
    z_t, t, text = moving_clip()
    change = model(z_t, t, condition(z_t), text) - model(z_t, t, condition(z_t, seed=3), text)
    assert change.abs().amax(dim=(1, 3, 4)).min() > 1e-4                     # breaks if a row injects nothing


@torch.no_grad()
def test_every_frame_of_appearnet_gets_z_c_and_the_unet_gets_z_t():
    """One key frame for three frames of noise. Record what AppearNet and the U-Net are asked."""
    _, model = grown()
    z_t, t, text = moving_clip()
    z_c, asked = condition(z_t), []
    for part in (model.appearnet, model.unet):
        part.register_forward_pre_hook(lambda part, inputs: asked.extend(inputs[:2]))
    model(z_t, t, z_c, text)
    assert torch.equal(asked[0], z_t) and torch.equal(asked[2], z_t)         # breaks with z_t and z_c exchanged
    assert torch.equal(asked[1], torch.cat([z_c] * 3, dim=2))                # breaks if only the centre frame has z_c


@torch.no_grad()
def test_row_concat_puts_z_c_behind_z_t_in_every_frame():
    """Eight channels. Which are whose?"""
    _, model = grown("concat")
    z_t, t, text = moving_clip()
    z_c, asked = condition(z_t), []
    model.unet.conv_in.register_forward_pre_hook(lambda layer, inputs: asked.extend(inputs))
    model(z_t, t, z_c, text)
    assert torch.equal(asked[0], torch.cat([fold(z_t), z_c[:, :, 0].repeat_interleave(3, dim=0)], dim=1))


@torch.no_grad()
def test_a_condition_of_n_frames_stays_as_it_is():
    """Temporal super-resolution gives each frame a condition of its own. Does AppearNet get all of them?"""
    _, model = grown()
    z_t, t, text = moving_clip()
    z_bar, asked = z_t.flip(2), []
    model.appearnet.register_forward_pre_hook(lambda part, inputs: asked.append(inputs[1]))
    model(z_t, t, z_bar, text)
    assert torch.equal(asked[0], z_bar)                                      # breaks if frame 0 stands for all


@torch.no_grad()
def test_appearnet_reads_z_t_and_the_condition_through_a_zero_convolution():
    """Fig. 2, top: z_t + ZeroConv([z^c ... z^c]). Fresh, AppearNet sees only z_t; with the identity, the sum."""
    _, model = grown()
    stir(model.appearnet.projectors)
    z_t, t, text = moving_clip()
    z_c = condition(z_t).expand_as(z_t)
    net = model.appearnet
    fresh, alone = (net(z_t, c, t, text)["mid_block"] for c in (z_c, 0 * z_c))
    assert torch.equal(fresh, alone)
    net.zero_conv.weight.copy_(torch.eye(4)[:, :, None, None])
    assert_close(net(z_t, z_c, t, text)["mid_block"], net(z_t + z_c, 0 * z_c, t, text)["mid_block"])
    assert not torch.allclose(net(z_t, z_c, t, text)["mid_block"], fresh)    # breaks if the condition is not read


@torch.no_grad()
def test_convolutions_get_frames_and_weights_in_channels_last_memory():
    """In the usual order every convolution would first make a copy. Nothing else would show it."""
    _, model = grown()
    z_t, t, text = moving_clip()
    seen = [p for p in model.parameters() if p.dim() == 4]
    for part in (model.unet, model.appearnet):
        part.conv_in.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    model(z_t, t, condition(z_t), text)
    assert len(seen) > 60 and all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_appearnet_starts_as_a_copy_that_shares_nothing():
    """Sec. 3.2 "inherit": equal to the U-Net's encoder and middle, but trained on its own."""
    _, model = grown()
    unet, net = model.unet.state_dict(), model.appearnet.state_dict()
    common = [name for name in net if name in unet and "temporal" not in name]
    assert len(common) > 40 and all(torch.equal(net[name], unet[name]) for name in common)
    assert all(net[name].data_ptr() != unet[name].data_ptr() for name in common)


def test_eight_input_channels_belong_to_row_concat_alone():
    """z_t and z^c side by side: with AppearNet, nobody would fill the other four channels."""
    with pytest.raises(ValueError, match="only row concat"):
        VideoModel(**TINY | {"in_channels": 8})
    assert VideoModel("concat", **TINY).unet.conv_in.in_channels == 8
