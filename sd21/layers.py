"""The layers of SD2.1's U-Net that the paper takes as they are. An attribute's name is its tensor's name in `unet/`."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from sd21 import kernels


def sinusoids(x, dim):
    """Cosines, then sines, of x [b] at dim / 2 frequencies falling from 1 to nearly 1/10000: [b, dim], float32."""
    frequencies = torch.exp(torch.arange(dim // 2, device=x.device) * (-math.log(10000) / (dim // 2)))
    angles = x.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class GroupNorm(nn.GroupNorm):
    """PyTorch's layer on x [b, c, ...], with kernels.group_norm."""
    def forward(self, x):
        return kernels.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class Attention(nn.Module):
    """Multi-head attention of x [(b n), i, c] over context [b, l, d], or over x itself. `attend` is from kernels.py."""
    def __init__(self, channels, context_dim, heads, attend=kernels.attention):
        super().__init__()
        self.heads, self.attend = heads, attend
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k, self.to_v = (nn.Linear(context_dim, channels, bias=False) for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])         # a list of one: its name is to_out.0

    def forward(self, x, context=None):
        context = x if context is None else context
        return self.to_out[0](self.attend(self.to_q(x), self.to_k(context), self.to_v(context), self.heads))


class FeedForward(nn.Module):
    """Four times as wide, gated (GEGLU), and back. `net.1` is SD's dropout of 0, which has no weights."""
    def __init__(self, channels):
        super().__init__()
        values_and_gates = nn.ModuleDict({"proj": nn.Linear(channels, 2 * 4 * channels)})
        self.net = nn.ModuleList([values_and_gates, nn.Identity(), nn.Linear(4 * channels, channels)])

    def forward(self, x):
        proj = self.net[0]["proj"]
        return self.net[2](kernels.geglu(x, proj.weight, proj.bias))


class TransformerBlock(nn.Module):
    """Attention within a frame, attention to the text, feed-forward. x [(b n), (h w), c], text [b, l, d]."""
    def __init__(self, channels, text_dim, heads):
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(channels), Attention(channels, channels, heads)
        self.norm2, self.attn2 = nn.LayerNorm(channels), Attention(channels, text_dim, heads)
        self.norm3, self.ff = nn.LayerNorm(channels), FeedForward(channels)

    def forward(self, x, text):
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), text)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer block on the pixels of each frame, between two linear layers, with a skip. h [(b n), c, h, w]."""
    def __init__(self, channels, text_dim, heads, groups):
        super().__init__()
        self.norm, self.proj_in = GroupNorm(groups, channels, eps=1e-6), nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, text_dim, heads)])
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, h, text):
        x = self.norm(h).permute(0, 2, 3, 1).flatten(1, 2)                   # [(b n), (h w), c]
        x = self.proj_out(self.transformer_blocks[0](self.proj_in(x), text))
        return h + x.unflatten(1, h.shape[2:]).permute(0, 3, 1, 2)


class TimeEmbedding(nn.Module):
    """The diffusion step t [b] as a vector [b, d]."""
    def __init__(self, dim, d_emb):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(dim, d_emb), nn.Linear(d_emb, d_emb)

    def forward(self, t):
        x = sinusoids(t, self.linear_1.in_features).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(x)))
