"""The same numbers, faster. Each function has the signature of its plain form, which its docstring gives. Nothing here
is needed to understand the paper. tests/test_kernels.py compares values and gradients; docs/speed.md has timings."""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def group_norm(x, groups, weight=None, bias=None, eps=1e-5):
    """F.group_norm of x [b, c, ...]: weight * (x - mean) / sqrt(variance + eps) + bias, weight and bias [c] or None.
    torch.compile turns it into a kernel that reads channels-last memory group by group. The version below is faster
    when compiled and a dozen small kernels when not, so it is used only while compiling."""
    norm = channels_last_group_norm if torch.compiler.is_compiling() else F.group_norm
    return norm(x, groups, weight, bias, eps)


def channels_last_group_norm(x, groups, weight=None, bias=None, eps=1e-5):
    """`group_norm` by sums of single channels: it reads and writes channels-last memory without a copy."""
    h = x.movedim(1, -1).flatten(1, -2).unflatten(-1, (groups, -1)).float()  # [b, places, groups, c / groups]
    # E[x^2] - E[x]^2 cancels where the mean is large: sums in float32, of differences from one value of the group.
    h = h - h[:, :1, :, :1].detach()
    sums = torch.stack([h.sum(1, keepdim=True), h.square().sum(1, keepdim=True)])
    mean, square = sums.mean(-1, keepdim=True) / h.shape[1]                  # [b, 1, groups, 1] each
    scale = ((square - mean * mean).clamp(min=0) + eps).rsqrt()
    shift = -mean * scale
    if weight is not None:
        weight, bias = weight.view(groups, -1), bias.view(groups, -1)
        scale, shift = scale * weight, torch.addcmul(bias, shift, weight)
    h = torch.addcmul(shift, h, scale).to(x.dtype)
    return h.view(len(x), *x.shape[2:], x.shape[1]).movedim(-1, 1)


def split_heads(x, heads):
    """[b, l, c] -> [b, heads, l, c / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attention(q, k, v, heads):
    """softmax(q k^T / sqrt(c / heads)) v for each head: q [(b n), i, c], k and v [b, l, c] -> [(b n), i, c].
    The n frames of a clip share one text, so q may have n times as many rows as k and v. Their queries are joined into
    one long row instead of repeating the keys, whose gradient torch.compile once returned as NaN."""
    rows = q.unflatten(0, (len(k), -1)).flatten(1, 2)                        # [b of k, (n i), c]
    h = F.scaled_dot_product_attention(*(split_heads(x, heads) for x in (rows, k, v)))
    return h.transpose(1, 2).reshape(q.shape)


def frame_attention(q, k, v, heads):
    """`attention` along the frames of each pixel: q, k and v [b, (h w), n, c] -> [b, (h w), n, c].
    Attention kernels work on tiles of 64 tokens and are slow on thousands of 9-frame sequences. So p pixels share a
    row, and a mask stops them from attending to each other."""
    _, pixels, n, _ = q.shape
    p = max(p for p in range(1, max(1, 64 // n) + 1) if pixels % p == 0)     # divides h w: no row holds two clips
    pixel = torch.arange(p * n, device=q.device) // n
    mask = pixel[:, None] == pixel                                           # [(p n), (p n)]
    rows = (split_heads(x.reshape(-1, p * n, x.shape[-1]), heads) for x in (q, k, v))
    # cuDNN's kernel is left out: it is slower here.
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        h = F.scaled_dot_product_attention(*rows, attn_mask=mask)
    return h.transpose(1, 2).reshape(q.shape)


def computed_once(table):
    """The table [n, c] itself. While compiling, times the identity: torch.compile would otherwise recompute the table
    for every pixel."""
    if not torch.compiler.is_compiling():
        return table
    return torch.eye(len(table), dtype=table.dtype, device=table.device) @ table


def geglu(x, weight, bias):
    """value * GELU(gate), where value and gate are the halves of F.linear(x, weight, bias). Two matrix products instead
    of one: the backward of chunk() concatenates the two gradients in a slow kernel."""
    (w_value, w_gate), (b_value, b_gate) = weight.chunk(2), bias.chunk(2)
    return F.linear(x, w_value, b_value) * F.gelu(F.linear(x, w_gate, b_gate))
