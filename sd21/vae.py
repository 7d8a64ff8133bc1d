"""The autoencoder: what "latent" means in the paper (z_0 and z^c of Sec. 3.3). SD2.1's AutoencoderKL.

in       a picture [b, 3, H, W] in [-1, 1]; a video goes through as a batch of frames
out      mean and log variance of its latent, each [b, 4, h, w]; h = H / 8 and w = W / 8 for SD2.1
defines  AutoencoderKL: encode(picture) -> (mean, logvar); decode(z) -> picture, not clamped; factor = H / h; scale

An attribute's name is its tensor's name in SD2.1's `vae/` folder; arguments are the keys of its config.json.

our reading
      - The paper takes this model as it is and trains nothing in it. The U-Net does not see z but z * scale, which has
        about unit variance: 0.18215 for SD2.1. The caller multiplies after encode and divides before decode, and
        chooses whether z is the mean or a sample.
"""

import torch.nn.functional as F
from torch import nn

EPS = 1e-6                                          # of every group norm here; SD's U-Net has 1e-5 in its ResBlocks


class ResBlock(nn.Module):
    """Group norm, SiLU, 3x3 convolution, twice, and a skip. The U-Net's ResBlock without the diffusion step."""

    def __init__(self, c_in, c_out, groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps=EPS)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, c_out, eps=EPS)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.conv_shortcut(x) + h


class Attention(nn.Module):
    """Every position of the latent attends to every other, with a single head, and a skip."""

    def __init__(self, c, groups):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, c, eps=EPS)
        self.to_q = nn.Linear(c, c)
        self.to_k = nn.Linear(c, c)
        self.to_v = nn.Linear(c, c)
        self.to_out = nn.ModuleList([nn.Linear(c, c)])      # a list of one: its published name is to_out.0

    def forward(self, x):
        b, c, h, w = x.shape
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)                          # [b, (h w), c]
        q, k, v = (to(tokens).unsqueeze(1) for to in (self.to_q, self.to_k, self.to_v))  # [b, 1, (h w), c]
        tokens = self.to_out[0](F.scaled_dot_product_attention(q, k, v).squeeze(1))     # [b, (h w), c]
        return x + tokens.transpose(1, 2).reshape(b, c, h, w)


class MidBlock(nn.Module):
    """ResBlock, attention, ResBlock, at the lowest resolution."""

    def __init__(self, c, groups):
        super().__init__()
        self.resnets = nn.ModuleList([ResBlock(c, c, groups), ResBlock(c, c, groups)])
        self.attentions = nn.ModuleList([Attention(c, groups)])

    def forward(self, x):
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Downsample(nn.Module):
    """Half the height and width. SD pads zeros at the right and the bottom only; its U-Net pads all four sides."""

    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the height and width: repeats every pixel four times, then a convolution."""

    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Block(nn.Module):
    """The ResBlocks of one level, then a change of resolution or none."""

    def __init__(self, c_in, c_out, layers, groups, downsample=False, upsample=False):
        super().__init__()
        self.resnets = nn.ModuleList([ResBlock(c_in if i == 0 else c_out, c_out, groups) for i in range(layers)])
        self.downsamplers = nn.ModuleList([Downsample(c_out)] if downsample else [])
        self.upsamplers = nn.ModuleList([Upsample(c_out)] if upsample else [])

    def forward(self, x):
        for layer in [*self.resnets, *self.downsamplers, *self.upsamplers]:
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Picture -> mean and log variance of its latent, as one tensor of 2 * latent_channels channels."""

    def __init__(self, in_channels, latent_channels, widths, layers, groups):
        super().__init__()
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList([
            Block(widths[max(i - 1, 0)], c, layers, groups, downsample=i != last) for i, c in enumerate(widths)])
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * latent_channels, 3, padding=1)

    def forward(self, x):                           # SD2.1's channels and sizes, for a 512 x 512 picture:
        x = self.conv_in(x)                         # [b, 128, 512, 512]
        for block in self.down_blocks:
            x = block(x)                            # [b, 128, 256, 256]  [b, 256, 128, 128]  [b, 512, 64, 64] twice
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))     # [b, 8, 64, 64]


class Decoder(nn.Module):
    """Latent -> picture: the encoder mirrored, with one more ResBlock on every level."""

    def __init__(self, out_channels, latent_channels, widths, layers, groups):
        super().__init__()
        last = len(widths) - 1
        widths = widths[::-1]
        self.conv_in = nn.Conv2d(latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups)
        self.up_blocks = nn.ModuleList([
            Block(widths[max(i - 1, 0)], c, layers + 1, groups, upsample=i != last) for i, c in enumerate(widths)])
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, z):
        x = self.mid_block(self.conv_in(z))         # [b, 512, 64, 64]
        for block in self.up_blocks:
            x = block(x)                            # [b, 512, 128, 128]  [b, 512, 256, 256]  [b, 256, 512, 512]
        return self.conv_out(F.silu(self.conv_norm_out(x)))     # after the last block: [b, 128, 512, 512]


class AutoencoderKL(nn.Module):
    """The defaults are SD2.1's config.json: 83,653,863 parameters. The config calls the scale `scaling_factor`."""

    def __init__(self, in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(128, 256, 512, 512),
                 layers_per_block=2, norm_num_groups=32, scaling_factor=0.18215):
        super().__init__()
        widths = list(block_out_channels)
        self.factor = 2 ** (len(widths) - 1)        # every block but the last halves the size: 8 for SD2.1
        self.scale = scaling_factor
        self.encoder = Encoder(in_channels, latent_channels, widths, layers_per_block, norm_num_groups)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.decoder = Decoder(out_channels, latent_channels, widths, layers_per_block, norm_num_groups)

    def encode(self, x):
        """[b, 3, H, W] -> (mean, logvar), each [b, 4, h, w]. A sample is mean + exp(logvar / 2) * noise.

        Raises ValueError unless H and W are multiples of `factor`.
        """
        H, W = x.shape[-2:]
        if H % self.factor or W % self.factor:
            raise ValueError(f"a picture {W} wide and {H} high: both sides must be multiples of {self.factor}")
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)          # so that exp() neither overflows nor reaches zero

    def decode(self, z):
        """[b, 4, h, w] -> [b, 3, H, W], about in [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(z))
