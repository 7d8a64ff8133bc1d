"""SD2.1 at its real size, too large for the test suite: time and memory to load and grow it, and law 1.

    python tests/random_sd21.py /tmp/sd21                     (or a real copy of SD2.1-base)
    python tests/full_size.py /tmp/sd21 --dtype float32       needs 12 GB of memory; bfloat16 needs 6
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from appearnet import VideoModel
from microcinema import COMPONENT_CLASSES
from sd21 import weights

GIB = 2**30


def report(label, began, models):
    """Prints one line: seconds since `began`, size of the weights so far, and peak memory of the process."""
    size = sum(p.numel() * p.element_size() for model in models for p in model.parameters()) / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB          # Linux counts KiB
    print(f"{label}: {time.monotonic() - began:.1f} s; weights {size:.2f} GiB, peak resident {peak:.2f} GiB, "
          f"ratio {peak / size:.3f}", flush=True)


@torch.inference_mode()
def main():
    """Loads the three components, grows the U-Net, and compares it with the image model frame by frame."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="folder or single file")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    args = parser.parse_args()
    dtype, began = getattr(torch, args.dtype), time.monotonic()
    unet, *others = [weights.load(weights.component(name, args.path), COMPONENT_CLASSES[name], dtype, **fixed)
                     for name, fixed in (("unet", {"temporal": False}), ("vae", {}), ("text_encoder", {}))]
    models = [unet, *others]
    report("loaded", began, models)
    began = time.monotonic()
    video = VideoModel.grow(unet)
    report("grown", began, [*models, video])

    torch.manual_seed(0)
    z_t, condition = torch.randn(1, 4, 3, 16, 16).to(dtype), torch.randn(1, 4, 1, 16, 16).to(dtype)
    text, t = torch.randn(1, 77, 1024).to(dtype), torch.tensor([981])
    frames = torch.cat([unet(z_t[:, :, i:i + 1], t, text) for i in range(3)], dim=2).float()
    error = (video(z_t, t, condition, text).float() - frames).abs().max() / frames.abs().max()
    print(f"law 1, video model against image model on 3 frames: largest difference {error:.1e} of the largest value")


if __name__ == "__main__":
    main()
