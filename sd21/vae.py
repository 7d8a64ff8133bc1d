"""The autoencoder: what "latent" means in the paper (z_0 and z^c of Sec. 3.3). SD2.1's AutoencoderKL.

in, out  pictures [b, 3, H, W] in [-1, 1] (of a video: its frames); mean, log variance of their latents [b, 4, H/8, W/8]
our reading  The paper takes this model as it is. Its U-Net sees z * scale, which has about unit variance: the caller
             multiplies after encode, divides before decode, and chooses whether z is the mean or a sample.
An attribute's name is its tensor's name in SD2.1's `vae/` folder; arguments are the keys of its config.json.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import nn

from sd21.kernels import attention

EPS = 1e-6                                          # of every group norm here; SD's U-Net has 1e-5 in its ResBlocks


class ResBlock(nn.Module):
    """Group norm, SiLU, 3x3 convolution, twice, and a skip. The U-Net's ResBlock without the diffusion step."""
    def __init__(self, c_in, c_out, groups):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, c_in, eps=EPS), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, c_out, eps=EPS), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(self.norm2(h))) + self.conv_shortcut(x)


class Attention(nn.Module):
    """Every position of the latent attends to every other, with a single head, and a skip."""
    def __init__(self, c, groups):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, c, eps=EPS)
        self.to_q, self.to_k, self.to_v = nn.Linear(c, c), nn.Linear(c, c), nn.Linear(c, c)
        self.to_out = nn.ModuleList([nn.Linear(c, c)])      # a list of one: its published name is to_out.0

    def forward(self, x):
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)                          # [b, (h w), c]
        tokens = attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens), heads=1)
        return x + self.to_out[0](tokens).transpose(1, 2).reshape(x.shape)


class Block(nn.Module):
    """The ResBlocks of one level, in the middle with attention after the first, then a change of resolution or none."""
    def __init__(self, c_in, c_out, layers, groups, attend=False, downsample=False, upsample=False):
        super().__init__()
        self.resnets = nn.ModuleList([ResBlock(c_in if i == 0 else c_out, c_out, groups) for i in range(layers)])
        self.attentions = nn.ModuleList([Attention(c_out, groups)] if attend else [])
        self.downsamplers, self.upsamplers = nn.ModuleList(), nn.ModuleList()
        if downsample:          # SD pads zeros at the right and the bottom only; its U-Net pads all four sides
            pad, conv = nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(c_out, c_out, 3, stride=2)
            self.downsamplers.append(nn.Sequential(OrderedDict(pad=pad, conv=conv)))
        if upsample:            # repeats every pixel four times
            repeat, conv = nn.Upsample(scale_factor=2), nn.Conv2d(c_out, c_out, 3, padding=1)
            self.upsamplers.append(nn.Sequential(OrderedDict(repeat=repeat, conv=conv)))

    def forward(self, x):
        for layer in [self.resnets[0], *self.attentions, *self.resnets[1:], *self.downsamplers, *self.upsamplers]:
            x = layer(x)
        return x


class Encoder(nn.Sequential):
    """Picture -> mean and log variance of its latent, as one tensor of 4 + 4 channels."""
    def __init__(self, widths, layers, groups):
        c, last = widths[-1], len(widths) - 1
        super().__init__(OrderedDict(               # SD2.1's channels and sizes, for a 512 x 512 picture:
            conv_in=nn.Conv2d(3, widths[0], 3, padding=1),                  # [b, 128, 512, 512]
            down_blocks=nn.Sequential(*[            # [b, 128, 256, 256]  [b, 256, 128, 128]  [b, 512, 64, 64] twice
                Block(widths[max(i - 1, 0)], widths[i], layers, groups, downsample=i < last) for i in range(last + 1)]),
            mid_block=Block(c, c, 2, groups, attend=True),
            conv_norm_out=nn.GroupNorm(groups, c, eps=EPS), silu=nn.SiLU(),
            conv_out=nn.Conv2d(c, 8, 3, padding=1)))                        # [b, 8, 64, 64]


class Decoder(nn.Sequential):
    """Latent -> picture: the encoder mirrored, with one more ResBlock on every level."""
    def __init__(self, widths, layers, groups):
        widths, last, layers = widths[::-1], len(widths) - 1, layers + 1
        super().__init__(OrderedDict(
            conv_in=nn.Conv2d(4, widths[0], 3, padding=1),
            mid_block=Block(widths[0], widths[0], 2, groups, attend=True),  # [b, 512, 64, 64]
            up_blocks=nn.Sequential(*[              # [b, 512, 128, 128]  [b, 512, 256, 256]  [b, 256, 512, 512]
                Block(widths[max(i - 1, 0)], widths[i], layers, groups, upsample=i < last) for i in range(last + 1)]),
            conv_norm_out=nn.GroupNorm(groups, widths[-1], eps=EPS), silu=nn.SiLU(),        # [b, 128, 512, 512]
            conv_out=nn.Conv2d(widths[-1], 3, 3, padding=1)))


class AutoencoderKL(nn.Module):
    """The defaults are SD2.1's config.json: 83,653,863 parameters. The config calls the scale `scaling_factor`."""
    def __init__(self, in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(128, 256, 512, 512),
                 layers_per_block=2, norm_num_groups=32, scaling_factor=0.18215):
        super().__init__()
        if (in_channels, out_channels, latent_channels) != (3, 3, 4):
            raise ValueError(f"latent_channels {latent_channels}, want 4; in_channels and out_channels, want 3")
        widths, self.scale = list(block_out_channels), scaling_factor
        self.factor = 2 ** (len(widths) - 1)        # every block but the last halves the size: 8 for SD2.1
        self.encoder = Encoder(widths, layers_per_block, norm_num_groups)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)
        self.decoder = Decoder(widths, layers_per_block, norm_num_groups)

    def encode(self, x):
        """[b, 3, H, W] -> (mean, logvar), [b, 4, h, w]; sample: mean + exp(logvar / 2) * noise. Raises ValueError."""
        H, W = x.shape[-2:]
        if H % self.factor or W % self.factor:
            raise ValueError(f"a picture {W} wide and {H} high: both sides must be multiples of {self.factor}")
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)          # so that exp() neither overflows nor reaches zero

    def decode(self, z):
        """[b, 4, h, w] -> [b, 3, H, W], about in [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(z))
