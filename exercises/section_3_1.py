"""Exercises of Sec. 3.1: the 3D U-Net, and temporal super-resolution."""

import math

import torch
import torch.nn.functional as F

from exercises.catalogue import TINY, close, exercise, frames_of, normal, stir
from sd21.layers import sinusoids as positions


@exercise("3.1", "", "unet3d.py", "fold", 1, 5, "Turn a clip into a batch of frames for a 2D layer.",
          "transpose exchanges two dimensions, flatten joins neighbours.")
def fold(unet3d):
    """Every number tells its own place. Where does frame k of clip b go? A bare reshape has the right shape."""
    z = torch.arange(2 * 3 * 4 * 5 * 6).view(2, 3, 4, 5, 6)
    frames = unet3d.fold(z)
    assert frames.shape == (8, 3, 5, 6), "want the shape [(b n), c, h, w]: swap channels and frames, nothing else"
    assert not frames[1].equal(z[1, :, 0]), "want clip after clip, row b * n + k; yours goes frame by frame"
    assert frames.equal(frames_of(z)), ("row b * n + k is frame k of clip b with its own channels; a reshape without a "
                                        "transpose has the right shape, but mixes channels with frames")


@exercise("3.1", "Fig. 3", "unet3d.py", "TemporalConv.forward", 2, 15,
          "3D norm, SiLU, 3x1x1 convolution, and the skip.",
          "unfold h to [b, c, n, h, w]. The norm, or denormalise in its place, then SiLU; neither if self.norm is "
          "None. self.conv reads [b, c, n, (h w)]. Fold its output and add it to h.")
def temporal_conv(unet3d):
    """Fresh: silent. With random weights: PyTorch's 3D convolution behind a norm of the clip, not of single frames."""
    clip, run = normal(2, 8, 5, 4, 6), lambda layer, clip, *more: unet3d.unfold(layer(frames_of(clip), 5, *more), 5)
    conv = lambda x, layer: F.conv3d(x, layer.conv.weight[..., None], layer.conv.bias, padding=(1, 0, 0))
    layer = unet3d.TemporalConv(8, 4).double()
    close(run(layer, clip), clip, "with a convolution of zeros it is the identity; is the skip missing?")
    stir(layer)
    close(run(layer, clip, lambda x: 2 * x), clip + conv(F.silu(2 * clip), layer), "want conv(SiLU(...)) of the norm, "
          "or of denormalise, which replaces the norm; and fold, not reshape, the branch before you add it to h")
    louder = clip.clone()
    louder[:, :, 4] *= 100                                                   # too far from frame 0 for the convolution
    assert not run(layer, louder)[:, :, 0].allclose(run(layer, clip)[:, :, 0]), (
        "the 3D norm sees a whole clip; yours takes the statistics of single frames")
    normed = F.group_norm(clip, 4, layer.norm.weight, layer.norm.bias)
    close(run(layer, clip), clip + conv(F.silu(normed), layer), "want h + conv(SiLU(norm(h)))")
    bare = stir(unet3d.TemporalConv(8, groups=None).double())
    close(run(bare, clip), clip + conv(clip, bare), "with groups=None there is neither norm nor SiLU")


@exercise("3.1", '"zero-initialize all"', "unet3d.py", "TemporalAttention.__init__", 2, 15,
          "Which layer starts at zero, so that the branch is silent but learns?",
          "The layers that forward uses: norm (eps 1e-6), proj_in, norm1, attn1 (attend=frame_attention), norm2, ff, "
          "proj_out. ZeroLinear starts at zero.")
def zero_start(unet3d):
    """Is it silent at first? Does every tensor move within three steps? Not with q, k, v and out all zero."""
    layer, h = unet3d.TemporalAttention(8, 2, 4), frames_of(normal(2, 8, 3, 4, 6)).float()
    close(layer(h, 3), h, "fresh, the branch adds nothing: zero its last layer, proj_out")
    assert layer.attn1.heads == 2, "attn1 has as many heads as the level"
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (layer(h, 3) - 1).pow(2).mean().backward()
        optimizer.step()
    dead = [name for name, p in layer.named_parameters() if p.equal(before[name])]
    assert not dead, (f"{dead[0]} never moves (of {len(dead)} such): with several layers at zero, queries, keys, values"
                      " and output wait for each other; zero the last layer only")
    assert isinstance(layer.proj_out, unet3d.ZeroLinear), (
        "VideoModel.grow calls reset_parameters() of new layers; only a ZeroLinear is zero again after that")


@exercise("3.1", "", "sd21/layers.py", "sinusoids", 2, 10, "Turn steps t, or numbers of frames, into vectors.",
          "dim / 2 frequencies 10000^(-k / (dim / 2)), k = 0, 1, ...; cosines, then sines.")
def sinusoids(layers):
    """Written out with math.cos and math.sin. Sines first is the other convention."""
    got = layers.sinusoids(torch.tensor([0, 1, 50]), 8)
    close(got[0], torch.tensor([1.0] * 4 + [0.0] * 4), "all cosines first, then all sines: cos 0 is 1", 1e-4)
    assert got[1, 0] < got[1, 1] < got[1, 2], "the frequency falls along the vector, from 1 to nearly 1/10000"
    angles = [[x * 10000 ** (-k / 4) for k in range(4)] for x in (0, 1, 50)]
    want = torch.tensor([[f(angle) for f in (math.cos, math.sin) for angle in row] for row in angles])
    close(got, want, "frequency k is 10000^(-k / (dim / 2)): dim / 2 in the exponent, as it counts them", 1e-4)


@exercise("3.1", "", "unet3d.py", "TemporalAttention.forward", 3, 25, "Let each pixel attend along its own frames.",
          "Norm of the clip, then [b, (h w), n, c]; proj_in plus sinusoids of 0 to n - 1; attention and feed-forward, "
          "each behind its LayerNorm and with its own skip; proj_out, and back to [(b n), c, h, w]; add to h.")
def temporal_attention(unet3d):
    """Which numbers change with one number of frame 2? Does the order of the frames count? It needs positions."""
    layer, clip = unet3d.TemporalAttention(8, 2, 4).double(), normal(2, 8, 5, 4, 6)
    run = lambda clip: unet3d.unfold(layer(frames_of(clip), 5), 5)
    close(run(clip), clip, "proj_out starts at zero, so h comes back; is the skip around the branch missing?")
    stir(layer)
    norm, layer.norm = layer.norm, torch.nn.Identity()                       # a norm's statistics span the clip
    nudged = clip.clone()
    nudged[0, 0, 2, 1, 1] += 1
    want = torch.zeros(2, 5, 4, 6, dtype=torch.bool)                         # [b, n, h, w]
    want[0, :, 1, 1] = True
    assert ((run(nudged) - run(clip)).abs().amax(1) > 1e-9).equal(want), (
        "each pixel attends to all frames of its own pixel and to nothing else: attn1 reads [b, (h w), n, c]")
    order = [3, 0, 4, 1, 2]
    assert not run(clip[:, :, order]).allclose(run(clip)[:, :, order]), (
        "the order of the frames makes no difference: add positions, or nothing tells moving left from moving right")
    layer.norm, clip[:, :, 4] = norm, 100 * clip[:, :, 4]
    normed = F.group_norm(clip, 4, norm.weight, norm.bias, eps=1e-6)[:1, :, :, 1:2, 1].permute(0, 3, 2, 1)
    x = layer.proj_in(normed) + positions(torch.arange(5), 8)                # of one pixel, [1, 1, n, c]
    x = x + layer.attn1(layer.norm1(x))
    x = layer.proj_out(x + layer.ff(layer.norm2(x)))
    close((run(clip) - clip)[0, :, :, 1, 1], x[0, 0].T, "want a norm of the whole clip, not of single frames; then x + "
          "attn1(norm1(x)) and x + ff(norm2(x)), each with its own skip")


@exercise("3.1", "Fig. 3", "unet3d.py", "ResnetBlock.forward", 2, 15,
          "A temporal layer after each spatial convolution, and the step t between.",
          "norm1, SiLU, conv1, temporal_conv1; add the time embedding's projection; norm2, SiLU, conv2, "
          "temporal_conv2, which gets denormalise; the skip goes through conv_shortcut.")
def resblock(unet3d):
    """What does each part read? Hooks write it down. The time embedding comes after the temporal layer."""
    block = stir(unet3d.ResnetBlock(8, 12, unet3d.UNetConfig(**TINY)))
    x, emb, read, sent = torch.randn(6, 8, 4, 6), torch.randn(6, 32), {}, lambda clip: clip
    for name, layer in block.named_children():                               # inputs and output of each, as they were
        layer.register_forward_hook(with_kwargs=True, hook=lambda _, inputs, named, output, name=name: read.update(
            {name: [x.clone() if isinstance(x, torch.Tensor) else x for x in (*inputs, *named.values(), output)]}))
    out = block(x, emb, 3, sent)
    assert {"temporal_conv1", "temporal_conv2"} <= read.keys(), "want a temporal layer after each spatial convolution"
    assert sent not in read["temporal_conv1"] and sent in read["temporal_conv2"], (
        "denormalise goes to the second temporal layer only (Fig. 3)")
    for i in "12":
        close(read[f"temporal_conv{i}"][0], read[f"conv{i}"][-1], f"temporal_conv{i} reads what conv{i} returns")
    h = read["temporal_conv1"][-1] + block.time_emb_proj(F.silu(emb))[:, :, None, None]
    close(read.get("norm2", [h])[0], h, "the time embedding, SiLU and time_emb_proj, is added after temporal_conv1")
    close(read["conv2"][0], F.silu(block.norm2(h)), "norm2 and SiLU come before conv2")
    close(out, read["temporal_conv2"][-1] + block.conv_shortcut(x), "the skip goes around all four layers")


@exercise("3.1", "TSR", "microcinema.py", "tsr_condition", 1, 10,
          "n latents, evenly spaced from the first to the last.",
          "torch.linspace; a frame dimension goes behind the channels: z_first[:, :, None].")
def tsr(microcinema):
    """Five frames: quarters, by hand. With i / n, the last frame would not arrive."""
    first, last = normal(2, 4, 3, 5), normal(2, 4, 3, 5, seed=2)
    z_bar = microcinema.tsr_condition(first, last, 5)
    want = torch.stack([first, 0.75 * first + 0.25 * last, (first + last) / 2, 0.25 * first + 0.75 * last, last], dim=2)
    assert z_bar.shape == want.shape, "want [b, 4, n, h, w]"
    assert not z_bar[:, :, 0].allclose(last), "the ends are exchanged: frame 0 is z_first"
    close(z_bar[:, :, 0], first, "frame 0 is z_first itself; the weights go from 0 to 1")
    close(z_bar[:, :, 4], last, "frame n - 1 is z_last itself: the weight is i / (n - 1), not i / n")
    close(z_bar, want, "the frames lie evenly between: frame 1 of 5 is 3/4 z_first + 1/4 z_last")


@exercise("3.1", "our reading", "microcinema.py", "noise", 2, 10,
          "Noise that depends on seed and stage, not on the batch.",
          "A torch.Generator for each seed, seeded from the text of seed and stage; return a function that draws from "
          "all of them and stacks.")
def seeds(microcinema):
    """Seed 5, alone and beside seed 3. One generator for the whole batch would give it other noise."""
    make = lambda *seeds, stage="video": microcinema.noise(seeds, (4, 3, 2, 2), stage)
    twice = make(5)
    assert twice().equal(make(5)()), "the same seed gives the same noise again"
    assert not twice().equal(make(5)()), "each call returns new noise: a sampler with eta > 0 asks at every step"
    assert make(3, 5)()[1:].equal(make(5)()), "a seed gives the same noise in every batch: one generator for each seed"
    assert not make(5)().equal(make(5, stage="key frame")()), "each stage has noise of its own"
    close(make(*range(400))().std(), torch.tensor(1.0), "want a standard normal distribution", 0.03)
