"""The 3D U-Net: Sec. 3.1 "Base image&text-to-video model", Fig. 2 and the left half of Fig. 3.

in    z_t [b, 4, n, h, w], t [b], text [b, l, d], injections (from appearnet.py, or none)
out   eps, the shape of z_t
defines  fold and unfold; TemporalConv, TemporalAttention; UNet3D; Encoder, which AppearNet inherits; UNetConfig

SD2.1's U-Net plus a temporal convolution after each of its 52 3x3 convolutions and a temporal attention after each of
its 16 spatial transformers. An attribute's name is its tensor's name in SD2.1's published `unet/` folder. Every tensor
that the paper adds has `temporal` in its name. With `temporal=False` it is SD2.1's own image model.

our reading
      - "zero-initialize all" (Sec. 3.1): we zero the last layer of each temporal branch. With all at zero, queries,
        keys, values and output would have no gradient: each one waits for the others.
      - SD's own norms see one frame at a time, the new norms a whole clip. So the fresh 3D network equals the 2D
        network on every frame.
      - Frame positions are sinusoids, so that any n works. Without them attention could not tell past from future.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from sd21.kernels import computed_once, frame_attention
from sd21.layers import Attention, FeedForward, GroupNorm, SpatialTransformer, TimeEmbedding, sinusoids


@dataclass(frozen=True)
class UNetConfig:
    """The keys of SD2.1's `unet/config.json`. The defaults are its values."""
    in_channels: int = 4
    block_out_channels: tuple = (320, 640, 1280, 1280)          # of each level
    layers_per_block: int = 2                                   # ResBlocks in each level of the encoder
    down_block_types: tuple = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    attention_head_dim: tuple = (5, 10, 20, 20)                 # a misnomer of the file: heads in each level
    cross_attention_dim: int = 1024                             # d, the width of a text token
    norm_num_groups: int = 32
    temporal: bool = True                                       # False: SD2.1's image model

    def __post_init__(self):
        if not len(self.block_out_channels) == len(self.attention_head_dim) == len(self.down_block_types):
            raise ValueError("block_out_channels, attention_head_dim and down_block_types differ in length")
        if self.in_channels not in ((4, 8) if self.temporal else (4,)):      # 8: z_t and z^c, row concat of Table 2
            raise ValueError(f"in_channels {self.in_channels}: want 4; inpainting and depth models have more")
        for c, heads in zip(self.block_out_channels, self.attention_head_dim, strict=True):
            if c % 2 or c % max(1, heads) or c % max(1, self.norm_num_groups):
                raise ValueError(f"{c} channels: want a multiple of 2, {heads} heads, {self.norm_num_groups} groups")

    def heads(self, i):
        """Attention heads of level i; 0 where the level has no attention."""
        return self.attention_head_dim[i] if "CrossAttn" in self.down_block_types[i] else 0


def fold(z):
    """Clips to a batch of frames for a 2D layer: [b, c, n, h, w] -> [(b n), c, h, w].

    Not a bare reshape, which would mix channels with frames. In channels-last memory, which we use throughout, both
    orders are the same memory (b, n, h, w, c), so nothing is copied."""
    return z.transpose(1, 2).flatten(0, 1)


def unfold(frames, n):
    """The way back: [(b n), c, h, w] -> [b, c, n, h, w]. Always a view."""
    return frames.unflatten(0, (-1, n)).transpose(1, 2)


# ---------------------------------------------------------------------------------------------- temporal layers (new)

class ZeroConv2d(nn.Conv2d):
    """A convolution that starts at zero: a branch that ends in it starts as no change, and still learns.

    PyTorch calls reset_parameters when a layer is made. VideoModel.grow calls it on every new layer."""

    def reset_parameters(self):
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero, see ZeroConv2d."""
    reset_parameters = ZeroConv2d.reset_parameters


class TemporalConv(nn.Module):
    """h + 3x1x1 conv(SiLU(3D group norm(h))): the yellow boxes of Fig. 3. Starts as the identity. h [(b n), c, h, w].

    `denormalise`, if AppearNet sends one, replaces the norm (Eq. 1-2). The layer after conv_out has only four
    channels, too few to normalise: with groups=None it has neither norm nor SiLU."""

    def __init__(self, channels, groups):
        super().__init__()
        self.norm = GroupNorm(groups, channels) if groups else None
        self.conv = ZeroConv2d(channels, channels, (3, 1), padding=(1, 0))   # 3x1x1 over n, h, w = 3x1 over n, (h w)

    def forward(self, h, n, denormalise=None):
        clip = unfold(h, n)                                                  # [b, c, n, h, w]
        branch = clip
        if self.norm is not None:
            branch = F.silu(self.norm(clip) if denormalise is None else denormalise(clip))
        branch = self.conv(branch.flatten(3))                                # [b, c, n, (h w)]
        return h + fold(branch.view_as(clip))


class TemporalAttention(nn.Module):
    """Each pixel attends along its own n frames, then a feed-forward. The branch ends in a zero layer."""

    def __init__(self, channels, heads, groups):
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, channels, heads, attend=frame_attention)
        self.norm2 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)
        self.proj_out = ZeroLinear(channels, channels)

    def forward(self, h, n):
        clip = unfold(h, n)                                                  # [b, c, n, h, w]
        x = self.norm(clip).flatten(3).permute(0, 3, 2, 1).contiguous()      # [b, (h w), n, c]
        position = sinusoids(torch.arange(n, device=h.device), x.shape[-1]).to(h.dtype)
        x = self.proj_in(x) + computed_once(position)                        # the table itself: sd21/kernels.py
        x = x + self.attn1(self.norm1(x))
        x = x + self.ff(self.norm2(x))
        x = self.proj_out(x).unflatten(1, h.shape[2:])                       # [b, h, w, n, c]
        return h + fold(x.permute(0, 4, 3, 1, 2))


class NoTemporal(nn.Module):
    """Replaces a temporal layer in the 2D model."""

    def forward(self, h, n, denormalise=None):
        return h


def temporal_conv(channels, config):
    """The temporal convolution after a spatial one."""
    return TemporalConv(channels, config.norm_num_groups) if config.temporal else NoTemporal()


# ------------------------------------------------------------------------- SD2.1's blocks, with temporal layers inside

class ResnetBlock(nn.Module):
    """Fig. 3, left: two spatial convolutions, a temporal layer after each, the skip around all four."""

    def __init__(self, c_in, c_out, config):
        super().__init__()
        groups, d_emb = config.norm_num_groups, 4 * config.block_out_channels[0]
        self.norm1 = GroupNorm(groups, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.temporal_conv1 = temporal_conv(c_out, config)
        self.time_emb_proj = nn.Linear(d_emb, c_out)
        self.norm2 = GroupNorm(groups, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.temporal_conv2 = temporal_conv(c_out, config)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x, emb, n, denormalise=None):
        h = self.temporal_conv1(self.conv1(F.silu(self.norm1(x))), n)
        h = h + self.time_emb_proj(F.silu(emb))[:, :, None, None]
        h = self.temporal_conv2(self.conv2(F.silu(self.norm2(h))), n, denormalise)
        return self.conv_shortcut(x) + h


class Downsample(nn.Module):
    """Half the height and width."""

    def __init__(self, channels, config):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.temporal_conv = temporal_conv(channels, config)

    def forward(self, h, n):
        return self.temporal_conv(self.conv(h), n)


class Upsample(nn.Module):
    """Twice the height and width."""

    def __init__(self, channels, config):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.temporal_conv = temporal_conv(channels, config)

    def forward(self, h, n):
        return self.temporal_conv(self.conv(F.interpolate(h, scale_factor=2.0, mode="nearest")), n)


class Block(nn.Module):
    """The layers of one level: ResBlocks, after each a spatial and a temporal attention (if the level has heads), then
    one change of resolution or none. Encoder.encode and UNet3D.forward call them.

    `channels` lists (c_in, c_out) of each ResBlock."""

    def __init__(self, channels, heads, config, downsample=False, upsample=False):
        super().__init__()
        groups, text_dim = config.norm_num_groups, config.cross_attention_dim
        self.resnets = nn.ModuleList(ResnetBlock(c_in, c, config) for c_in, c in channels)
        sites = [c for _, c in channels] if heads else []
        self.attentions = nn.ModuleList(SpatialTransformer(c, text_dim, heads, groups) for c in sites)
        self.temporal_attentions = nn.ModuleList(
            TemporalAttention(c, heads, groups) if config.temporal else NoTemporal() for c in sites)
        c = channels[-1][1]
        self.downsamplers = nn.ModuleList([Downsample(c, config)] if downsample else [])
        self.upsamplers = nn.ModuleList([Upsample(c, config)] if upsample else [])

    def attend(self, j, h, text, n):
        """The 3D attention of Fig. 2 after ResBlock j: space, then time."""
        return self.temporal_attentions[j](self.attentions[j](h, text), n)


class MidBlock(Block):
    """ResBlock, 3D attention, ResBlock, at the lowest resolution."""

    def __init__(self, channels, heads, config):
        super().__init__([(channels, channels)] * 2, heads, config)
        del self.attentions[1], self.temporal_attentions[1]                  # SD has one attention here, not two

    def forward(self, h, emb, text, n):
        h = self.attend(0, self.resnets[0](h, emb, n), text, n)
        return self.resnets[1](h, emb, n)


def inject(h, injections, name):
    """h plus what AppearNet sends to the output of that name, if it sends anything."""
    return h + injections[name] if name in injections else h


class Encoder(nn.Module):
    """What U-Net and AppearNet share: first convolution, time embedding, encoder and middle (Sec. 3.2).

    The arguments are those of UNetConfig. `channels` maps the name of each output of `encode` to its channels, in the
    order of computation. `skips` names the outputs that the decoder reads: 12 at SD2.1's size."""
    Config = UNetConfig

    def __init__(self, **config):
        super().__init__()
        self.config = config = UNetConfig(**config)
        c, last = config.block_out_channels, len(config.block_out_channels) - 1
        self.conv_in = nn.Conv2d(config.in_channels, c[0], 3, padding=1)
        self.temporal_conv_in = temporal_conv(c[0], config)
        self.time_embedding = TimeEmbedding(c[0], 4 * c[0])
        self.down_blocks = nn.ModuleList()
        self.channels, self.skips = {"conv_in": c[0]}, ["conv_in"]
        for i in range(len(c)):
            c_in = [c[max(i - 1, 0)]] + [c[i]] * (config.layers_per_block - 1)
            block = Block([(x, c[i]) for x in c_in], config.heads(i), config, downsample=i != last)
            self.down_blocks.append(block)
            for j in range(config.layers_per_block):
                names = [f"down_blocks.{i}.resnets.{j}"]
                names += [f"down_blocks.{i}.attentions.{j}"] if block.attentions else []
                self.channels |= dict.fromkeys(names, c[i])
                self.skips.append(names[-1])
            if block.downsamplers:
                self.channels[f"down_blocks.{i}.downsamplers.0"] = c[i]
                self.skips.append(f"down_blocks.{i}.downsamplers.0")
        self.mid_block = MidBlock(c[-1], config.attention_head_dim[-1], config)
        self.channels["mid_block"] = c[-1]

    def encode(self, frames, t, text, n, injections):
        """frames [(b n), 4, h, w] -> (emb [(b n), d_emb], {name: output [(b n), c, h, w]} of every part).

        `injections` holds, by name, what AppearNet sends: see UNet3D."""
        emb = self.time_embedding(t).repeat_interleave(n, dim=0)
        h = self.temporal_conv_in(self.conv_in(frames), n)
        outputs = {"conv_in": h}
        for i, block in enumerate(self.down_blocks):
            for j, resnet in enumerate(block.resnets):
                name = f"down_blocks.{i}.resnets.{j}"
                h = resnet(h, emb, n, injections.get(f"{name}.temporal_conv2.norm"))
                h = outputs[name] = inject(h, injections, name)
                if block.attentions:
                    name = f"down_blocks.{i}.attentions.{j}"
                    h = outputs[name] = inject(block.attend(j, h, text, n), injections, name)
            for downsample in block.downsamplers:
                h = outputs[f"down_blocks.{i}.downsamplers.0"] = downsample(h, n)
        outputs["mid_block"] = inject(self.mid_block(h, emb, text, n), injections, "mid_block")
        return emb, outputs


class UNet3D(Encoder):
    """eps = UNet3D(z_t, t, text): z_t and eps [b, 4, n, h, w], t [b], text [b, l, d]; h and w divide by 2^(levels - 1).

    `injections` maps a name to what AppearNet, or another conditioning, sends there:
        "down_blocks.0.resnets.1", "....attentions.1", "mid_block"    a tensor, added to that output
        "up_blocks.2.resnets.0.skip"                                  a tensor, added to the skip that is read there
        "....resnets.1.temporal_conv2.norm"                           a function, called instead of the norm
    `decoder` lists the decoder blocks in order, 12 at SD2.1's size: (name of the ResBlock, of its attention or None).
    """

    def __init__(self, **config):
        super().__init__(**config)
        config, last = self.config, len(self.down_blocks) - 1
        c_h, c_skip = self.channels["mid_block"], [self.channels[name] for name in self.skips]
        self.up_blocks, self.decoder = nn.ModuleList(), []
        for i in range(last + 1):
            c, heads, pairs = config.block_out_channels[last - i], config.heads(last - i), []
            for j in range(config.layers_per_block + 1):                     # + 1: conv_in and downsamplers leave skips
                pairs.append((c_h + c_skip.pop(), c))
                c_h = c
                names = (f"up_blocks.{i}.resnets.{j}", f"up_blocks.{i}.attentions.{j}" if heads else None)
                self.decoder.append(names)
                self.channels |= {name: c for name in names if name}
            self.up_blocks.append(Block(pairs, heads, config, upsample=i != last))
        self.conv_norm_out = GroupNorm(config.norm_num_groups, c_h)
        self.conv_out = nn.Conv2d(c_h, 4, 3, padding=1)
        self.temporal_conv_out = TemporalConv(4, groups=None) if config.temporal else NoTemporal()
        self.to(memory_format=torch.channels_last)

    def forward(self, z_t, t, text, injections=None):
        injections = injections or {}
        n, height, width = z_t.shape[2:]
        multiple = 2 ** (len(self.up_blocks) - 1)
        if height % multiple or width % multiple:
            raise ValueError(f"latents {width} wide and {height} high: both sides must be multiples of {multiple}")
        frames = fold(z_t).contiguous(memory_format=torch.channels_last)     # [(b n), 4, h, w]
        emb, outputs = self.encode(frames, t, text, n, injections)
        h, skips = outputs["mid_block"], [outputs[name] for name in self.skips]
        for i, block in enumerate(self.up_blocks):
            for j, resnet in enumerate(block.resnets):
                name = f"up_blocks.{i}.resnets.{j}"
                skip = inject(skips.pop(), injections, f"{name}.skip")
                h = resnet(torch.cat([h, skip], dim=1), emb, n, injections.get(f"{name}.temporal_conv2.norm"))
                if block.attentions:
                    h = inject(block.attend(j, h, text, n), injections, f"up_blocks.{i}.attentions.{j}")
            for upsample in block.upsamplers:
                h = upsample(h, n)
        h = self.conv_out(F.silu(self.conv_norm_out(h)))
        return unfold(self.temporal_conv_out(h, n), n)
