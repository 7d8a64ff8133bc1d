"""Spatial super-resolution: Sec. 3.1, "an off-the-shelf spatial super-resolution model", 320 to 1280 pixels.

in    frames [k, 3, H, W] in [-1, 1]
out   the same, 4 (Lanczos: 2 to 16) times as high and wide
here  load_upscaler: a name or a file -> a function frames -> frames; SRVGG, the network that ships in upscaler/

ours  The paper names no model. Here it is Real-ESRGAN's small one for videos (Wang et al. 2021), a network of 0.6
      million parameters that sees one frame at a time; Lanczos, to compare; or any network in a TorchScript file, which
      takes and gives RGB in [0, 1]. A TorchScript file is a program: load only what you trust.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from files import from_pixels, to_pixels

REAL_ESRGAN = Path(__file__).parent / "upscaler" / "realesr-animevideov3-x4.fp16.safetensors"


class SRVGG(nn.Module):
    """Eighteen 3x3 convolutions at the small size; the last gives the 4 x 4 pixels that each pixel becomes, as what to
    add to the picture enlarged by repetition. x [k, 3, H, W] in [0, 1] -> [k, 3, 4 H, 4 W]."""

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
    h, w = frames.shape[2] * scale, frames.shape[3] * scale
    pictures = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in to_pixels(frames.cpu())]
    large = np.stack([np.asarray(picture.resize((w, h), Image.Resampling.LANCZOS)) for picture in pictures])
    return from_pixels(torch.from_numpy(large).permute(0, 3, 1, 2)).to(frames.device)


def load_upscaler(name="realesrgan", scale=4, device="cpu"):
    """`name`: "realesrgan", "lanczos" or a TorchScript file. ValueError if it cannot be had, or not at this scale."""
    if not 2 <= scale <= 16:
        raise ValueError(f"upscale {scale}: want 2 to 16")
    if name == "lanczos":
        return lambda frames: lanczos(frames, scale)
    if name == "realesrgan":
        if scale != 4:
            raise ValueError(f"upscale {scale}: Real-ESRGAN's network does 4; `--upscaler lanczos` 2 to 16")
        network = SRVGG()
        try:
            network.load_state_dict(load_file(REAL_ESRGAN))
        except (SafetensorError, OSError) as e:
            raise ValueError(f"{REAL_ESRGAN}: cannot be read ({e}); copy the project's anew") from None
    else:
        if not Path(name).is_file():
            raise ValueError(f"upscaler {name}: want realesrgan, lanczos or a TorchScript file")
        try:
            network = torch.jit.load(name, map_location="cpu")
        except RuntimeError:
            raise ValueError(f"upscaler {name}: not a TorchScript file (torch.jit.save writes one)") from None
    network = network.float().eval().to(device)

    @torch.inference_mode()
    def upscale(frames):
        try:
            large = network((frames.to(device) + 1) / 2)
            shape = list(large.shape)
        except (RuntimeError, AttributeError) as e:                          # somebody's network: takes or gives else
            if "allocate" in str(e):                                         # of memory, the caller knows more
                raise
            raise ValueError(f"upscaler {name}: {str(e).strip().splitlines()[-1]}") from None
        if shape != [*frames.shape[:2], frames.shape[2] * scale, frames.shape[3] * scale]:
            raise ValueError(f"upscaler {name}: makes {shape} of {list(frames.shape)}, "
                             f"which is not {scale} times as large")
        return large.clamp(0, 1) * 2 - 1
    return upscale
