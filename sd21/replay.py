"""Faster sampling, which calls one model many times with tensors of the same shapes. The numbers are those of the plain
call, up to rounding. docs/speed.md has timings."""

import time

import torch
from torch import nn
from tqdm import tqdm


def can_record(model, inputs):
    """Whether a call can be a CUDA graph: on a GPU, not in training, and without hooks, which a graph would skip."""
    sampling = isinstance(model, nn.Module) and not model.training and not torch.is_grad_enabled()
    return sampling and inputs[0].is_cuda and not any(
        part._forward_hooks or part._forward_pre_hooks for part in model.modules())


class Replay:
    """replay(model, *tensors) -> model(*tensors). On a GPU it records the call as a CUDA graph, then replays it: one
    launch instead of thousands, so the GPU never waits for Python. It keeps one recording: of the last model and
    shapes."""
    def __init__(self):
        self.key = self.graph = None

    def __call__(self, model, *inputs):
        if not can_record(model, inputs):
            return model(*inputs)
        # The key: all that a recording depends on. A tensor made in inference mode cannot be written to outside it.
        key = (model, next(model.parameters()).data_ptr(), torch.is_inference_mode_enabled(),
               [(x.shape, x.dtype, x.device) for x in inputs])
        if key != self.key:
            self.key, self.graph = key, None
            return model(*inputs)               # the first call compiles, and chooses cuDNN's kernels
        if self.graph is None:
            self.inputs, self.graph = [x.clone() for x in inputs], torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.output = model(*self.inputs)
        for old, new in zip(self.inputs, inputs, strict=True):
            old.copy_(new)
        self.graph.replay()
        return self.output.clone()              # the next replay writes over self.output


def compile_for_sampling(model):
    """torch.compile of the whole model with its weights as constants, which fuses more than compiling block by block.
    Prints the seconds of the first call with new shapes, in which it compiles."""
    model.compile(dynamic=False, options={"freezing": True})
    compiled, known = model._compiled_call_impl, set()

    def timed(*inputs):
        began, shapes = time.monotonic(), tuple(x.shape for x in inputs)
        output = compiled(*inputs)
        if shapes not in known:
            tqdm.write(f"{type(model).__name__}, {len(inputs[0])} clips: compiled in {time.monotonic() - began:.0f} s")
        known.add(shapes)
        return output
    model._compiled_call_impl = timed
