"""The autoencoder: what "latent" means in the paper (z_0 and z^c of Sec. 3.3), SD2.1's AutoencoderKL by hand.

in    a picture [b, 3, H, W] in [-1, 1]; a video goes through frame by frame, its frames folded into b
out   the mean and the log variance of its latent, each [b, 4, h, w], h = H / 8 and w = W / 8 for SD2.1
here  AutoencoderKL: .encode(picture) -> (mean, logvar), .decode(z) -> picture, not clamped, .factor = H / h
ours  The paper takes the whole model off the shelf and trains nothing in it. The U-Net does not see this file's z but
      z * 0.18215, which has about unit variance. That scale belongs to the pipeline, which multiplies after encode and
      divides before decode; nothing here knows of it. Whether z is the mean or a sample is the caller's choice too.

Every attribute is named so that its state_dict key is the tensor's name in SD2.1's `vae/` folder, and the arguments of
AutoencoderKL are the keys of its config.json. The toy model's autoencoder is this same class with smaller numbers.
"""
import torch.nn.functional as F
from torch import nn

EPS = 1e-6                                          # of every group norm here; the U-Net's residual blocks have 1e-5


class ResBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice, plus the input. As in the U-Net, only that no time step comes in."""

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
    """Every place of the latent looks at every other: one head as wide as there are channels, biases everywhere."""

    def __init__(self, c, groups):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, c, eps=EPS)
        self.to_q = nn.Linear(c, c)
        self.to_k = nn.Linear(c, c)
        self.to_v = nn.Linear(c, c)
        self.to_out = nn.ModuleList([nn.Linear(c, c)])      # a list of one: the published name is to_out.0

    def forward(self, x):
        b, c, h, w = x.shape
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)                          # [b, (h w), c]
        q, k, v = (to(tokens).unsqueeze(1) for to in (self.to_q, self.to_k, self.to_v))  # [b, 1, (h w), c]
        tokens = self.to_out[0](F.scaled_dot_product_attention(q, k, v).squeeze(1))     # [b, (h w), c]
        return x + tokens.transpose(1, 2).reshape(b, c, h, w)


class MidBlock(nn.Module):
    """ResBlock, attention among the pixels, ResBlock, at the lowest resolution."""

    def __init__(self, c, groups):
        super().__init__()
        self.resnets = nn.ModuleList([ResBlock(c, c, groups), ResBlock(c, c, groups)])
        self.attentions = nn.ModuleList([Attention(c, groups)])

    def forward(self, x):
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Downsample(nn.Module):
    """Half the size. SD's own: the zeros go to the right and the bottom only (the U-Net pads all four sides)."""

    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size: every pixel four times, then a convolution smooths the steps."""

    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class DownBlock(nn.Module):
    """The ResBlocks of one level, then half the height and width, but for the last level."""

    def __init__(self, c_in, c_out, layers, groups, last):
        super().__init__()
        self.resnets = nn.ModuleList([ResBlock(c_in if i == 0 else c_out, c_out, groups) for i in range(layers)])
        self.downsamplers = nn.ModuleList([] if last else [Downsample(c_out)])

    def forward(self, x):
        for layer in [*self.resnets, *self.downsamplers]:
            x = layer(x)
        return x


class UpBlock(nn.Module):
    """The ResBlocks of one level, one more than on the way down, then twice the size, but for the last level."""

    def __init__(self, c_in, c_out, layers, groups, last):
        super().__init__()
        self.resnets = nn.ModuleList([ResBlock(c_in if i == 0 else c_out, c_out, groups) for i in range(layers)])
        self.upsamplers = nn.ModuleList([] if last else [Upsample(c_out)])

    def forward(self, x):
        for layer in [*self.resnets, *self.upsamplers]:
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Picture -> the latent's mean and log variance, as one tensor of 2 * latent_channels channels."""

    def __init__(self, in_channels, latent_channels, widths, layers, groups):
        super().__init__()
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList([
            DownBlock(widths[max(i - 1, 0)], c, layers, groups, i == last) for i, c in enumerate(widths)])
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * latent_channels, 3, padding=1)

    def forward(self, x):                           # SD2.1's channels and sizes, for a 512 x 512 picture:
        x = self.conv_in(x)                         # [b, 128, 512, 512]
        for block in self.down_blocks:
            x = block(x)                            # [b, 128, 256, 256]  [b, 256, 128, 128]  [b, 512, 64, 64] twice
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))                             # [b, 8, 64, 64]


class Decoder(nn.Module):
    """Latent -> picture: the encoder mirrored, one residual block more on every level."""

    def __init__(self, out_channels, latent_channels, widths, layers, groups):
        super().__init__()
        last = len(widths) - 1
        widths = widths[::-1]
        self.conv_in = nn.Conv2d(latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups)
        self.up_blocks = nn.ModuleList([
            UpBlock(widths[max(i - 1, 0)], c, layers + 1, groups, i == last) for i, c in enumerate(widths)])
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, z):
        x = self.mid_block(self.conv_in(z))         # [b, 512, 64, 64]
        for block in self.up_blocks:
            x = block(x)                            # [b, 512, 128, 128]  [b, 512, 256, 256]  [b, 256, 512, 512]
        return self.conv_out(F.silu(self.conv_norm_out(x)))     # the last block: [b, 128, 512, 512], no larger


class AutoencoderKL(nn.Module):
    """The defaults are SD2.1's config.json: 83,653,863 parameters."""

    def __init__(self, in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(128, 256, 512, 512),
                 layers_per_block=2, norm_num_groups=32):
        super().__init__()
        widths = list(block_out_channels)
        self.factor = 2 ** (len(widths) - 1)        # every block but the last halves the size: 8 for SD2.1
        self.encoder = Encoder(in_channels, latent_channels, widths, layers_per_block, norm_num_groups)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.decoder = Decoder(out_channels, latent_channels, widths, layers_per_block, norm_num_groups)

    def encode(self, x):
        """[b, 3, H, W] -> (mean, logvar), each [b, 4, h, w]; a sample is mean + exp(logvar / 2) * noise."""
        H, W = x.shape[-2:]
        if H % self.factor or W % self.factor:
            raise ValueError(f"a picture {W} wide and {H} high: both sides must be multiples of {self.factor}")
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)          # so that exp() neither overflows nor reaches zero

    def decode(self, z):
        """[b, 4, h, w] -> [b, 3, H, W]; about [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(z))
