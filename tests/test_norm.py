"""Exercises for the group norm of sd21/kernels.py, at numbers where a careless one loses digits."""
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from sd21.kernels import channels_last_group_norm


def clip(mean, deviation):
    """[b, c, n, h, w] in channels-last memory."""
    x = mean + deviation * torch.randn(2, 8, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last_3d)


def test_equal_numbers_are_normalised_to_zeros():
    """The variance is 0. Without eps, 0 / 0 is not a number."""
    assert torch.equal(channels_last_group_norm(clip(5.0, 0.0), 4), torch.zeros(2, 8, 3, 4, 5))


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_small_numbers_show_the_eps(eps):
    """Deviation 0.003: a variance of about 1e-5."""
    x = clip(0.0, 0.003)
    assert_close(channels_last_group_norm(x, 4, eps=eps), F.group_norm(x, 4, eps=eps), atol=1e-5, rtol=1e-5)


def test_a_mean_a_thousand_times_the_deviation_costs_few_digits():
    """E[x^2] - E[x]^2 of such numbers has hardly a digit left in float32. How far is the norm from float64's?"""
    x = clip(1000.0, 1.0)
    error = channels_last_group_norm(x, 4) - F.group_norm(x.double(), 4)
    assert error.abs().max() < 1e-4                                          # breaks without the pivot: 0.15
