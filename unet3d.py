"""The 3D U-Net: Sec. 3.1 "Base image&text-to-video model", Fig. 2 and the left half of Fig. 3.

in    z_t [b, 4, n, h, w], t [b], text [b, l, d], injections (from appearnet.py, or none)
out   eps, the shape of z_t
here  UNet3D; Encoder, which AppearNet inherits; fold and unfold; group_norm; zero, the start of every new branch

SD2.1's U-Net plus a temporal convolution after each of its 52 3x3 convolutions and a temporal attention after each of
its 16 spatial transformers. An attribute's name is its tensor's name in SD2.1's published `unet/` folder, and every
tensor that the paper adds has `temporal` in its name. With `temporal=False` it is SD2.1's own image model.

ours  - "zero-initialize all" (Sec. 3.1) is read as: the last map of each temporal branch. All of them zero would be a
        saddle: queries, keys, values and output would wait for each other for ever.
      - SD's own norms see one frame at a time, the new norms a whole clip, so that the fresh 3D network equals the 2D
        one on every frame.
      - Frame positions are sinusoids, so that any n works; without them attention could not tell past from future.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def fold(z):
    """Clips to a batch of frames for a 2D layer: [b, c, n, h, w] -> [(b n), c, h, w].

    Not a reshape: frames have to come before channels first. In the channels-last layouts, which we use throughout,
    both orders are the same memory (b, n, h, w, c) and nothing is copied.
    """
    return z.transpose(1, 2).flatten(0, 1)


def unfold(frames, n):
    """The way back: [(b n), c, h, w] -> [b, c, n, h, w]. Always a view."""
    return frames.unflatten(0, (-1, n)).transpose(1, 2)


def zero(layer):
    """The layer with its parameters set to zero: a branch ending in it starts as no change, and still learns."""
    def reset_parameters():                                                  # PyTorch's name for "start (again)"
        for p in layer.parameters():
            nn.init.zeros_(p)

    layer.reset_parameters = reset_parameters
    reset_parameters()
    return layer


def sinusoids(x, dim):
    """Cosines, then sines, of x [b] at dim / 2 frequencies falling from 1 to nearly 1/10000: [b, dim], float32."""
    frequencies = torch.exp(torch.arange(dim // 2, device=x.device) * (-math.log(10000) / (dim // 2)))
    angles = x.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def group_norm(x, groups, weight=None, bias=None, eps=1e-5):
    """F.group_norm of x [b, c, ...]: over each group's channels and all its places. weight and bias [c], or neither.

    Out of PyTorch's own, torch.compile makes a kernel that walks through channels-last memory group by group. What it
    is given in its place would be a dozen kernels if it were not compiled.
    """
    norm = channels_last_group_norm if torch.compiler.is_compiling() else F.group_norm
    return norm(x, groups, weight, bias, eps)


def channels_last_group_norm(x, groups, weight=None, bias=None, eps=1e-5):
    """The same, from channels-last memory to channels-last memory, by sums of single channels.

    They are float32, so that their difference loses nothing that 16 bits had.
    """
    h = x.movedim(1, -1).flatten(1, -2).unflatten(-1, (groups, -1)).float()  # [b, places, groups, c / groups]
    sums = torch.stack([h.sum(1, keepdim=True), h.square().sum(1, keepdim=True)])
    mean, square = sums.mean(-1, keepdim=True) / h.shape[1]                  # [b, 1, groups, 1] each
    scale = ((square - mean * mean).clamp(min=0) + eps).rsqrt()
    shift = -mean * scale
    if weight is not None:
        weight, bias = weight.view(groups, -1), bias.view(groups, -1)
        scale, shift = scale * weight, torch.addcmul(bias, shift, weight)
    h = torch.addcmul(shift, h, scale).to(x.dtype)
    return h.view(len(x), *x.shape[2:], x.shape[1]).movedim(-1, 1)


class GroupNorm(nn.GroupNorm):
    """PyTorch's layer, by the function above."""

    def forward(self, x):
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


# ---------------------------------------------------------------------------------------------- temporal layers (new)

class TemporalConv(nn.Module):
    """h + 3x1x1 conv(SiLU(3D group norm(h))): the yellow boxes of Fig. 3. Starts as the identity.

    `denormalise`, if AppearNet sends one, takes the norm's place (Eq. 1-2). The layer behind conv_out has only four
    channels, too few to normalise: groups=None leaves norm and SiLU out.
    """

    def __init__(self, channels, groups):
        super().__init__()
        self.norm = GroupNorm(groups, channels) if groups else None
        self.conv = zero(nn.Conv2d(channels, channels, (3, 1), padding=(1, 0)))   # 3x1x1 over n, h, w = 3x1 over n, hw

    def forward(self, h, n, denormalise=None):
        clip = unfold(h, n)                                                  # [b, c, n, h, w]
        branch = clip
        if self.norm is not None:
            branch = F.silu(self.norm(clip) if denormalise is None else denormalise(clip))
        branch = self.conv(branch.flatten(3))                                # [b, c, n, (h w)]
        return h + fold(branch.view_as(clip))


class TemporalAttention(nn.Module):
    """Each pixel attends along its own n frames, then a feed-forward; the added branch ends in a zero layer.

    Thousands of sequences of 9 frames are what attention kernels are slowest at: they work on tiles of 64. So a row
    holds p pixels, one behind another, and a mask keeps each to itself: a quarter to two fifths of the time on an H200.
    """

    KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]  # cuDNN is slower here

    def __init__(self, channels, heads, groups):
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)
        self.proj_out = zero(nn.Linear(channels, channels))

    def forward(self, h, n):
        clip = unfold(h, n)
        b, c, n, height, width = clip.shape
        p = max(p for p in range(1, max(1, 64 // n) + 1) if height * width % p == 0)
        token = torch.arange(p * n, device=h.device)                         # the places in a row
        pixel, frame = token // n, token % n
        # A product instead of sinusoids(frame, c), which torch.compile would compute anew for every pixel.
        position = F.one_hot(frame, n).to(h.dtype) @ sinusoids(torch.arange(n, device=h.device), c).to(h.dtype)
        x = self.norm(clip).permute(0, 3, 4, 2, 1).reshape(-1, p * n, c)     # [(b h w / p), (p n), c]
        x = self.proj_in(x) + position
        with sdpa_kernel(self.KERNELS):
            x = x + self.attn1(self.norm1(x), mask=pixel[:, None] == pixel)
        x = x + self.ff(self.norm2(x))
        x = self.proj_out(x).view(b, height, width, n, c)
        return h + fold(x.permute(0, 4, 3, 1, 2))


class NoTemporal(nn.Module):
    """Stands where a temporal layer would, in the 2D model."""

    def forward(self, h, n, denormalise=None):
        return h


# --------------------------------------------------------------------------------------------- spatial layers (SD2.1)

class Attention(nn.Module):
    """Multi-head attention of x [b, i, c] over context [b, l, d]; over x itself if no context is given.

    A context may serve several x in a row, as the frames of a clip, x [(b n), i, c], all read its text: they ask as one
    long row. (Its keys repeated for nine frames had gradients of NaN, compiled: README, Speed.) mask [i, l]: who may
    look at whom.
    """

    def __init__(self, channels, context_dim, heads):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x, context=None, mask=None):
        context = x if context is None else context
        q = self.to_q(x).unflatten(0, (len(context), -1)).flatten(1, 2)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2)         # [b, heads, i or l, ...]
                   for y in (q, self.to_k(context), self.to_v(context)))
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out[0](h.transpose(1, 2).reshape(x.shape))


class GEGLU(nn.Module):
    """A linear layer to values and gates; values * GELU(gates).

    Two products in the place of one: the gradients of two halves would be joined again, in a slow kernel.
    """

    def __init__(self, channels, inner):
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, x):
        weights, biases = self.proj.weight.chunk(2), self.proj.bias.chunk(2)
        value, gate = (F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Up by four, gate, and down again. `net.1` is SD's dropout of 0, which has no weights."""

    def __init__(self, channels):
        super().__init__()
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x):
        return self.net(x)


class TransformerBlock(nn.Module):
    """Attention within a frame, attention to the text, feed-forward."""

    def __init__(self, channels, text_dim, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, text_dim, heads)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x, text):                                              # x [(b n), (h w), c], text [b, l, d]
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), text)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer block on the pixels of a frame, between two linear layers, with a skip."""

    def __init__(self, channels, text_dim, heads, groups):
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, text_dim, heads)])
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, h, text):
        x = self.norm(h).permute(0, 2, 3, 1).flatten(1, 2)                   # [(b n), (h w), c]
        x = self.proj_out(self.transformer_blocks[0](self.proj_in(x), text))
        return h + x.unflatten(1, h.shape[2:]).permute(0, 3, 1, 2)


class ResnetBlock(nn.Module):
    """Fig. 3, left: two spatial convolutions, a temporal layer behind each, the skip around all four."""

    def __init__(self, c_in, c_out, d_emb, groups, temporal):
        super().__init__()
        self.norm1 = GroupNorm(groups, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.temporal_conv1 = TemporalConv(c_out, groups) if temporal else NoTemporal()
        self.time_emb_proj = nn.Linear(d_emb, c_out)
        self.norm2 = GroupNorm(groups, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.temporal_conv2 = TemporalConv(c_out, groups) if temporal else NoTemporal()
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x, emb, n, denormalise=None):
        h = self.temporal_conv1(self.conv1(F.silu(self.norm1(x))), n)
        h = h + self.time_emb_proj(F.silu(emb))[:, :, None, None]
        h = self.temporal_conv2(self.conv2(F.silu(self.norm2(h))), n, denormalise)
        return self.conv_shortcut(x) + h


class Downsample(nn.Module):
    """Half the height and width."""

    def __init__(self, channels, groups, temporal):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.temporal_conv = TemporalConv(channels, groups) if temporal else NoTemporal()

    def forward(self, h, n):
        return self.temporal_conv(self.conv(h), n)


class Upsample(nn.Module):
    """Twice the height and width."""

    def __init__(self, channels, groups, temporal):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.temporal_conv = TemporalConv(channels, groups) if temporal else NoTemporal()

    def forward(self, h, n):
        return self.temporal_conv(self.conv(F.interpolate(h, scale_factor=2.0, mode="nearest")), n)


# ---------------------------------------------------------------------------------------------------------- the model

class Block(nn.Module):
    """One level: ResBlocks, a spatial and a temporal attention after each (if heads), one change of resolution or none.

    `channels` lists (c_in, c_out) of each ResBlock. The walk through the parts is Encoder's and UNet3D's.
    """

    def __init__(self, channels, d_emb, text_dim, heads, groups, temporal, downsample=False, upsample=False):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(c_in, c, d_emb, groups, temporal) for c_in, c in channels)
        sites = [c for _, c in channels] if heads else []
        self.attentions = nn.ModuleList(SpatialTransformer(c, text_dim, heads, groups) for c in sites)
        self.temporal_attentions = nn.ModuleList(
            TemporalAttention(c, heads, groups) if temporal else NoTemporal() for c in sites)
        c = channels[-1][1]
        self.downsamplers = nn.ModuleList([Downsample(c, groups, temporal)] if downsample else [])
        self.upsamplers = nn.ModuleList([Upsample(c, groups, temporal)] if upsample else [])

    def attend(self, j, h, text, n):
        """The 3D attention of Fig. 2 behind ResBlock j: space, then time."""
        return self.temporal_attentions[j](self.attentions[j](h, text), n)


class MidBlock(Block):
    """ResBlock, 3D attention, ResBlock, at the lowest resolution."""

    def __init__(self, channels, d_emb, text_dim, heads, groups, temporal):
        super().__init__([(channels, channels)] * 2, d_emb, text_dim, heads, groups, temporal)
        del self.attentions[1], self.temporal_attentions[1]                 # SD has one attention here, between the two

    def forward(self, h, emb, text, n):
        h = self.attend(0, self.resnets[0](h, emb, n), text, n)
        return self.resnets[1](h, emb, n)


class TimeEmbedding(nn.Module):
    """The diffusion step as a vector."""

    def __init__(self, dim, d_emb):
        super().__init__()
        self.linear_1 = nn.Linear(dim, d_emb)
        self.linear_2 = nn.Linear(d_emb, d_emb)

    def forward(self, t):
        x = sinusoids(t, self.linear_1.in_features).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(x)))


class Encoder(nn.Module):
    """What U-Net and AppearNet have in common: first convolution, time embedding, encoder and middle (Sec. 3.2).

    The arguments are named as in the published `unet/config.json`, whose `attention_head_dim` is in truth the number of
    heads of each level. The defaults are SD2.1's.
    """

    def __init__(self, in_channels=4, block_out_channels=(320, 640, 1280, 1280), layers_per_block=2,
                 down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), attention_head_dim=(5, 10, 20, 20),
                 cross_attention_dim=1024, norm_num_groups=32, temporal=True):
        super().__init__()
        c, levels = list(block_out_channels), range(len(block_out_channels))
        d_emb, last = 4 * c[0], len(c) - 1
        heads = [k if "CrossAttn" in kind else 0 for k, kind in zip(attention_head_dim, down_block_types, strict=True)]
        common = dict(d_emb=d_emb, text_dim=cross_attention_dim, groups=norm_num_groups, temporal=temporal)

        self.conv_in = nn.Conv2d(in_channels, c[0], 3, padding=1)
        self.temporal_conv_in = TemporalConv(c[0], norm_num_groups) if temporal else NoTemporal()
        self.time_embedding = TimeEmbedding(c[0], d_emb)
        self.down_blocks = nn.ModuleList(
            Block([(c[max(i - 1, 0)] if j == 0 else c[i], c[i]) for j in range(layers_per_block)],
                  heads=heads[i], downsample=i != last, **common) for i in levels)
        self.mid_block = MidBlock(c[-1], heads=attention_head_dim[-1], **common)
        self.heads, self.common = heads, common                              # UNet3D builds its decoder from these

    def encode(self, frames, t, text, n, injections):
        """The way down. frames [(b n), 4, h, w] -> (emb [(b n), d], {path: output [(b n), c, h, w]} of every part).

        `injections` holds, by path, what AppearNet sends: see UNet3D.
        """
        def inject(path, h):
            return h + injections[path] if path in injections else h

        emb = self.time_embedding(t).repeat_interleave(n, dim=0)
        h = self.temporal_conv_in(self.conv_in(frames), n)
        outputs = {"conv_in": h}
        for i, block in enumerate(self.down_blocks):
            for j, resnet in enumerate(block.resnets):
                path = f"down_blocks.{i}.resnets.{j}"
                h = outputs[path] = inject(path, resnet(h, emb, n, injections.get(f"{path}.temporal_conv2.norm")))
                if block.attentions:
                    path = f"down_blocks.{i}.attentions.{j}"
                    h = outputs[path] = inject(path, block.attend(j, h, text, n))
            for downsample in block.downsamplers:
                h = outputs[f"down_blocks.{i}.downsamplers.0"] = downsample(h, n)
        outputs["mid_block"] = inject("mid_block", self.mid_block(h, emb, text, n))
        return emb, outputs

    def encoder_paths(self):
        """Every part of the way down, in the order of `encode`."""
        paths = ["conv_in"]
        for i, block in enumerate(self.down_blocks):
            for j in range(len(block.resnets)):
                paths += [f"down_blocks.{i}.{kind}.{j}" for kind in ("resnets", "attentions") if getattr(block, kind)]
            paths += [f"down_blocks.{i}.downsamplers.0" for _ in block.downsamplers]
        return paths

    def skip_paths(self):
        """The encoder outputs that the decoder reads, first to last: 12 at SD2.1's size."""
        paths = self.encoder_paths()                                         # all but ResBlocks before an attention
        return [path for path in paths if path.replace("resnets", "attentions") not in paths or "resnets" not in path]

    def channels(self, path):
        """How many channels the output at `path` has."""
        part = self.get_submodule(path)
        match part:
            case nn.Conv2d():
                return part.out_channels
            case ResnetBlock():
                return part.conv2.out_channels
            case SpatialTransformer():
                return part.proj_out.out_features
            case Downsample():
                return part.conv.out_channels
            case MidBlock():
                return part.resnets[-1].conv2.out_channels


class UNet3D(Encoder):
    """eps = UNet3D(z_t, t, text): z_t and eps [b, 4, n, h, w], t [b], text [b, l, d]; h and w divide by 2^(levels - 1).

    The arguments are Encoder's. `injections` maps a path to what AppearNet, or another conditioning, sends there:
        "down_blocks.0.resnets.1", "....attentions.1", "mid_block"    a tensor, added to that output
        "up_blocks.2.resnets.0.skip"                                  a tensor, added to the skip that is read there
        "....resnets.1.temporal_conv2.norm"                           a function, called in the norm's place
    """

    def __init__(self, **config):
        super().__init__(**config)
        c_skip = [self.channels(path) for path in self.skip_paths()]
        h, last, self.up_blocks = c_skip[-1], len(self.down_blocks) - 1, nn.ModuleList()
        for i, down in enumerate(reversed(self.down_blocks)):
            c = down.resnets[-1].conv2.out_channels
            channels = []
            for _ in range(len(down.resnets) + 1):                           # one more than down: conv_in and the
                channels.append((h + c_skip.pop(), c))                       # downsamplers left skips as well
                h = c
            self.up_blocks.append(Block(channels, heads=self.heads[last - i], upsample=i != last, **self.common))
        groups = self.common["groups"]
        self.conv_norm_out = GroupNorm(groups, h)
        self.conv_out = nn.Conv2d(h, 4, 3, padding=1)
        self.temporal_conv_out = TemporalConv(4, None) if self.common["temporal"] else NoTemporal()
        self.to(memory_format=torch.channels_last)

    def decoder_paths(self):
        """The 12 decoder blocks in order: (path of the ResBlock, path of its attention or None)."""
        return [(f"up_blocks.{i}.resnets.{j}", f"up_blocks.{i}.attentions.{j}" if block.attentions else None)
                for i, block in enumerate(self.up_blocks) for j in range(len(block.resnets))]

    def forward(self, z_t, t, text, injections=None):
        injections = injections or {}
        n = z_t.shape[2]
        frames = fold(z_t).contiguous(memory_format=torch.channels_last)     # [(b n), 4, h, w]
        emb, outputs = self.encode(frames, t, text, n, injections)
        skips = [outputs[path] for path in self.skip_paths()]
        h = outputs["mid_block"]
        for i, block in enumerate(self.up_blocks):
            for j, resnet in enumerate(block.resnets):
                path, skip = f"up_blocks.{i}.resnets.{j}", skips.pop()
                skip = skip + injections[f"{path}.skip"] if f"{path}.skip" in injections else skip
                h = resnet(torch.cat([h, skip], dim=1), emb, n, injections.get(f"{path}.temporal_conv2.norm"))
                if block.attentions:
                    path, h = f"up_blocks.{i}.attentions.{j}", block.attend(j, h, text, n)
                    h = h + injections[path] if path in injections else h
            for upsample in block.upsamplers:
                h = upsample(h, n)
        h = self.conv_out(F.silu(self.conv_norm_out(h)))
        return unfold(self.temporal_conv_out(h, n), n)
