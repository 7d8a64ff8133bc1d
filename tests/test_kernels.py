"""Exercises for sd21/kernels.py. Law 6: does each fast function agree with its plain form, gradients included?

A plain form computes in float64, from the same inputs. So the tolerance is what the kernel's own dtype may lose.
"""
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from sd21 import kernels

# Largest error that a value or gradient may have, relative to the largest value. A number of float32 has 24 bits, one
# of bfloat16 has 8; a few roundings and sums of some dozen numbers lie between input and output.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
both_dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "bfloat16"])


def random(dtype, *shapes, mean=0.0, seed=0):
    """One tensor for each shape, normal around `mean`."""
    g = torch.Generator().manual_seed(seed)
    return [(mean + torch.randn(shape, generator=g)).to(dtype) for shape in shapes]


def assert_agree(fast, plain, *inputs):
    """fast(*inputs) and its gradient for each input agree with `plain`, to the tolerance of the inputs' dtype."""
    dtype = inputs[0].dtype
    exact = [x.double().requires_grad_() for x in inputs]
    inputs = [x.detach().requires_grad_() for x in inputs]
    y, expected = fast(*inputs), plain(*exact)
    assert y.dtype == dtype and y.shape == expected.shape
    g, = random(dtype, y.shape, seed=1)
    pairs = [("value", y, expected)]
    gradients = zip(torch.autograd.grad(y, inputs, g), torch.autograd.grad(expected, exact, g.double()), strict=True)
    pairs += [(f"gradient of input {i}", *pair) for i, pair in enumerate(gradients)]
    for name, result, reference in pairs:
        error = (result.double() - reference).abs().max() / reference.abs().max()
        assert error < TOLERANCE[dtype], f"{name}: {error:.1e}"


# ---- group norm ----

@both_dtypes
@pytest.mark.parametrize("shape", [(3, 8, 4, 5), (2, 8, 3, 4, 5)], ids=["frames", "a clip"])
@pytest.mark.parametrize("affine", [True, False])
def test_the_norm_by_sums_of_channels_is_the_group_norm(shape, affine, dtype):
    """Numbers around 5, in channels-last memory. Is it PyTorch's norm?"""
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}[len(shape)]
    x, = random(dtype, shape, mean=5.0)
    scale_and_bias = random(dtype, (8,), (8,)) if affine else []

    def fast(x, *scale_and_bias):
        return kernels.channels_last_group_norm(x, 4, *scale_and_bias)

    def plain(x, *scale_and_bias):
        return F.group_norm(x, 4, *scale_and_bias)
    assert_agree(fast, plain, x.contiguous(memory_format=layout), *scale_and_bias)  # breaks if no mean is subtracted


@pytest.mark.parametrize("shape", [(3, 8, 4, 5), (2, 8, 3, 4, 5)], ids=["frames", "a clip"])
@pytest.mark.parametrize("affine", [True, False])
def test_the_norm_by_sums_of_channels_keeps_channels_last_memory(shape, affine):
    """A copy to another layout would cost more than the norm. Are the strides those of the input?"""
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}[len(shape)]
    x = torch.randn(shape).contiguous(memory_format=layout)
    scale_and_bias = (torch.randn(8), torch.randn(8)) if affine else ()
    y = kernels.channels_last_group_norm(x, 4, *scale_and_bias)
    assert y.stride() == x.stride()                                         # breaks with .contiguous() at the end


@pytest.mark.parametrize("dtype, most", [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_the_norm_in_16_bits_takes_large_numbers(dtype, most):
    """Numbers in the thousands. Their squares are too large for float16. How far is the norm from float32's?"""
    x, weight, bias = (y.to(dtype) for y in (3000 * torch.randn(2, 8, 4, 5), torch.randn(8), torch.randn(8)))
    result = kernels.channels_last_group_norm(x, 4, weight, bias)
    reference = F.group_norm(x.float(), 4, weight.float(), bias.float())
    assert result.dtype == dtype and (result - reference).norm() < most * reference.norm()   # breaks without .float()


@pytest.mark.parametrize("compiling", [False, True])
def test_the_norm_by_sums_of_channels_is_only_used_while_compiling(compiling, monkeypatch):
    """Uncompiled it would be a dozen small kernels. Which of the two norms is called?"""
    called = []
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    for owner, name in ((kernels, "channels_last_group_norm"), (F, "group_norm")):
        monkeypatch.setattr(owner, name, lambda *inputs, name=name: called.append((name, inputs)))
    kernels.group_norm("x", 4, "weight", "bias", 1e-6)
    name = "channels_last_group_norm" if compiling else "group_norm"
    assert called == [(name, ("x", 4, "weight", "bias", 1e-6))]             # breaks if eps is not passed on


@pytest.mark.parametrize("norm", [kernels.group_norm, kernels.channels_last_group_norm])
def test_the_eps_of_a_norm_is_pytorchs_unless_told(norm):
    """A deviation of 0.003, which 1e-5 under the root makes visible."""
    x = 0.003 * torch.randn(2, 8, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(norm(x, 4), F.group_norm(x, 4), atol=1e-5, rtol=1e-5)     # breaks with 2e-5


# ---- attention ----

def plain_attention(q, k, v, heads):
    """softmax(q k^T / sqrt(c / heads)) v, row by row, head by head. len(q) / len(k) rows of q share one of k."""
    rows = []
    for i in range(len(q)):
        j = i // (len(q) // len(k))
        parts = zip(*(x.chunk(heads, dim=-1) for x in (q[i], k[j], v[j])))
        rows.append(torch.cat([(q_h @ k_h.T / q_h.shape[-1] ** 0.5).softmax(dim=-1) @ v_h for q_h, k_h, v_h in parts],
                              dim=-1))
    return torch.stack(rows)


def test_a_head_is_a_run_of_channels():
    """Every number of x tells its own place. Which channels does each head get?"""
    x = torch.arange(2 * 3 * 8).view(2, 3, 8)
    heads = torch.stack([x[:, :, :4], x[:, :, 4:]], dim=1)                  # [b, heads, l, c / heads]
    assert torch.equal(kernels.split_heads(x, 2), heads)                    # breaks with unflatten(-1, (-1, heads))


@both_dtypes
def test_attention_is_the_softmax_of_products(dtype):
    """Each of three pictures has its own context: 6 queries, 7 keys, 2 heads."""
    assert_agree(partial(kernels.attention, heads=2), partial(plain_attention, heads=2),
                 *random(dtype, (3, 6, 8), (3, 7, 8), (3, 7, 8)))           # breaks without 1 / sqrt(c / heads)


@both_dtypes
def test_the_frames_of_a_clip_read_its_text_and_no_other(dtype):
    """Two clips of three frames, with one text each. Does every frame read its clip's text, as if it were alone?"""
    assert_agree(partial(kernels.attention, heads=2), partial(plain_attention, heads=2),
                 *random(dtype, (6, 6, 8), (2, 7, 8), (2, 7, 8)))           # breaks with text i % 2


def test_six_frames_cannot_share_four_texts():
    """6 / 4 is no whole number of frames for each text."""
    with pytest.raises(RuntimeError):                                        # breaks if q is only reshaped to k's rows
        kernels.attention(*random(torch.float32, (6, 6, 8), (4, 7, 8), (4, 7, 8)), heads=2)


@both_dtypes
@pytest.mark.parametrize("n", [5, 9, 70])
def test_pixels_that_share_a_row_of_attention_do_not_see_each_other(n, dtype):
    """Twelve pixels of n frames. Rows of at most 64 tokens hold 12, 6 or 1 of them. Is each the same as alone?"""
    def one_by_one(q, k, v):
        return plain_attention(*(x.flatten(0, 1) for x in (q, k, v)), heads=2).view(q.shape)
    assert_agree(partial(kernels.frame_attention, heads=2), one_by_one,
                 *random(dtype, *[(2, 12, n, 8)] * 3))                      # breaks without the mask


# ---- tables and feed-forward ----

@both_dtypes
@pytest.mark.parametrize("compiling", [False, True])
def test_a_table_that_is_computed_once_is_the_table(compiling, dtype, monkeypatch):
    """While compiling a product with the identity, else nothing at all: bit for bit?"""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    table, = random(dtype, (5, 8))
    assert (kernels.computed_once(table) is table) != compiling              # breaks without `not`
    assert torch.equal(kernels.computed_once(table), table)
    assert_agree(kernels.computed_once, lambda table: table, table)


@both_dtypes
def test_two_small_products_are_the_halves_of_a_large_one(dtype):
    """GEGLU: which half is the value, and which goes through GELU?"""
    def plain(x, weight, bias):
        value, gate = F.linear(x, weight, bias).chunk(2, dim=-1)
        return value * F.gelu(gate)
    assert_agree(kernels.geglu, plain, *random(dtype, (2, 3, 8), (12, 8), (12,)))        # breaks if they are swapped
