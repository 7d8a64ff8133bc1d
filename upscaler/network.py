"""Spatial super-resolution: Sec. 3.1, "an off-the-shelf spatial super-resolution model", 320 to 1280 pixels.

our reading  The paper names no model. The default is Real-ESRGAN's small one for videos (Wang et al. 2021): 0.6 million
             parameters, one frame at a time. The others are Lanczos, to compare, and any network in a TorchScript file
             that takes and returns RGB in [0, 1]. A TorchScript file is a program: load only what you trust.
"""
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from data.media import from_pixels, to_pixels
from sd21.command import is_out_of_memory

REAL_ESRGAN = Path(__file__).parent / "realesr-animevideov3-x4.fp16.safetensors"


class SRVGG(nn.Module):
    """18 convolutions at the small size. The last gives the 4 x 4 pixels that replace each pixel, as a difference from
    the enlarged picture in which each pixel is repeated. x [k, 3, H, W] in [0, 1] -> [k, 3, 4 H, 4 W]."""
    def __init__(self, channels=64, layers=16, scale=4):
        super().__init__()
        self.scale, self.body = scale, nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.PReLU(channels))
        for _ in range(layers):
            self.body.extend([nn.Conv2d(channels, channels, 3, padding=1), nn.PReLU(channels)])
        self.body.append(nn.Conv2d(channels, 3 * scale ** 2, 3, padding=1))

    def forward(self, x):
        return F.pixel_shuffle(self.body(x), self.scale) + F.interpolate(x, scale_factor=self.scale, mode="nearest")


def lanczos(frames, scale):
    """Pillow's Lanczos filter, frame by frame."""
    pictures = to_pixels(frames.cpu()).permute(0, 2, 3, 1).numpy()
    large = [ImageOps.scale(Image.fromarray(picture), scale, Image.Resampling.LANCZOS) for picture in pictures]
    return from_pixels(torch.from_numpy(np.stack(large)).permute(0, 3, 1, 2)).to(frames.device)


def load_upscaler(name="realesrgan", scale=4, device="cpu"):
    """A function: frames [k, 3, H, W] in [-1, 1] -> [k, 3, scale H, scale W]. `name`: realesrgan, lanczos or a file.
    Raises ValueError if it cannot be loaded or made for this scale; the function does if the network does not fit."""
    if not 2 <= scale <= 16:
        raise ValueError(f"upscale {scale}: want 2 to 16")
    if name == "lanczos":
        return lambda frames: lanczos(frames, scale)
    if name == "realesrgan":
        if scale != 4:
            raise ValueError(f"upscale {scale}: Real-ESRGAN's network does 4; `--upscaler lanczos` does 2 to 16")
        network = SRVGG()
        try:
            network.load_state_dict(load_file(REAL_ESRGAN))
        except (SafetensorError, OSError) as e:
            raise ValueError(f"{REAL_ESRGAN}: cannot be read ({e}); copy the project's file again") from None
    elif Path(name).is_file():
        try:
            network = torch.jit.load(name, map_location="cpu")
        except RuntimeError:
            raise ValueError(f"upscaler {name}: not a TorchScript file (torch.jit.save writes one)") from None
    else:
        raise ValueError(f"upscaler {name}: want realesrgan, lanczos or a TorchScript file")
    network = network.float().eval().to(device)

    @torch.inference_mode()
    def upscale(frames):
        try:
            large = network((frames.to(device) + 1) / 2)
            shape, given = list(large.shape), list(frames.shape)
        except (RuntimeError, AttributeError) as e:     # a file's network may want other inputs, or return no tensor
            if is_out_of_memory(e):                     # not the network's fault
                raise
            raise ValueError(f"upscaler {name}: {str(e).strip().splitlines()[-1]}") from None
        if shape != [*given[:2], given[2] * scale, given[3] * scale]:
            raise ValueError(f"upscaler {name}: makes {shape} of {given}, which is not {scale} times as large")
        if not large.isfinite().all():
            raise ValueError(f"upscaler {name}: makes numbers that are not finite")
        return large.clamp(0, 1) * 2 - 1
    return upscale
