"""Tests of sd21/replay.py. Those that need a GPU are skipped without one."""

import shutil

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sd21.replay import Replay, can_record, compile_for_sampling

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


class Model(nn.Module):
    """x * weight, and how often Python was asked."""
    def __init__(self, device="cpu"):
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.tensor(2.0, device=device)), 0

    def forward(self, x):
        self.calls += 1
        return x * self.weight


def test_without_a_gpu_every_call_is_the_models_own():
    """Three calls: does the model see each of them?"""
    model, replay = Model().eval(), Replay()
    assert [replay(model, torch.tensor(float(x))).item() for x in (1, 2, 3)] == [2, 4, 6]
    assert model.calls == 3                                                  # breaks if the first result is kept


def test_hooks_and_training_forbid_a_recording():
    """A graph would not call a hook again, and training changes what a call does."""
    class OnGpu:
        is_cuda = True
    model = nn.Sequential(Model()).eval()
    assert not can_record(model, [OnGpu()])                                  # gradients are wanted
    with torch.no_grad():
        assert can_record(model, [OnGpu()]) and not can_record(model, [torch.zeros(1)])
        assert not can_record(lambda x: x, [OnGpu()])                        # not a module: nobody knows what it does
        assert not can_record(model.train(), [OnGpu()])
        model.eval()[0].register_forward_hook(lambda *_: None)
        assert not can_record(model, [OnGpu()])                              # breaks if only the outermost is asked


@needs_gpu
def test_a_recorded_call_follows_inputs_weights_and_shapes():
    """Five calls, then other weights in the same memory, then another shape: is it the plain call each time?"""
    model, replay = Model("cuda").eval(), Replay()
    with torch.inference_mode():
        for x in (1.0, 2.0, 3.0, 4.0, 5.0):
            assert replay(model, torch.full((3,), x, device="cuda")).tolist() == [2 * x] * 3
        assert model.calls == 2                                              # one plain call, one recording
        model.weight.fill_(7.0)
        assert replay(model, torch.ones(3, device="cuda")).tolist() == [7] * 3
        assert [replay(model, torch.ones(2, device="cuda")).tolist() for _ in range(3)] == [[7, 7]] * 3
        kept = replay(model, torch.ones(2, device="cuda"))
        replay(model, torch.zeros(2, device="cuda"))
        assert kept.tolist() == [7, 7]                                       # breaks without the clone


@needs_gpu
def test_a_model_that_moved_is_recorded_again():
    """The old graph still reads the old memory."""
    model, replay = Model("cuda").eval(), Replay()
    with torch.inference_mode():
        for _ in range(3):
            replay(model, torch.ones(1, device="cuda"))
        model.weight = nn.Parameter(torch.tensor(5.0, device="cuda"))
        assert [replay(model, torch.ones(1, device="cuda")).item() for _ in range(3)] == [5, 5, 5]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_computes_the_same_and_says_how_long_it_took(capsys):
    """Two shapes, two calls each: the same numbers, and one line for each shape."""
    model = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4)).eval()
    with torch.inference_mode():
        inputs = [torch.randn(rows, 4) for rows in (2, 2, 3, 3)]
        want = [model(x) for x in inputs]
        compile_for_sampling(model)
        assert_close([model(x) for x in inputs], want)
    assert capsys.readouterr().out.count("compiled in") == 2                 # breaks if every call says so
