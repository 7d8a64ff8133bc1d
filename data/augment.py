"""Augmentations (--augment) that keep a caption true, for few clips. The paper, with ten million, mentions none.

defines      shift, zoom, colour: (frames uint8 [n, H, W, 3], numpy Generator) -> frames, all changed alike; rate
our reading  Each is small. A mirror would make "left" of "right", another hue "orange" of "red". A window is encoded
             once and augmented once: a clip is seen in as many ways as --clips makes windows of it.
"""
from argparse import ArgumentTypeError

import numpy as np
from PIL import Image


def shift(frames, random):
    """Moves the picture by up to a twentieth of its shorter side, in whole pixels. Its border fills the gap."""
    height, width = frames.shape[1:3]
    reach = min(height, width) // 20
    padded = np.pad(frames, ((0, 0), (reach, reach), (reach, reach), (0, 0)), "edge")
    left, top = random.integers(2 * reach + 1, size=2)
    return padded[:, top:top + height, left:left + width]


def zoom(frames, random):
    """Cuts a box of 1 to 1/1.1 of the size at a random place and enlarges it again."""
    height, width = frames.shape[1:3]
    scale = random.uniform(1, 1.1)
    left, top = random.uniform(0, (width - width / scale, height - height / scale))
    options = (width, height), Image.Resampling.LANCZOS, (left, top, left + width / scale, top + height / scale)
    return np.stack([Image.fromarray(frame).resize(*options) for frame in frames])


def colour(frames, random):
    """Changes saturation by up to a tenth and brightness by up to a twentieth."""
    grey = frames.mean(-1, keepdims=True)
    saturated = grey + random.uniform(0.9, 1.1) * (frames - grey)
    return np.clip(random.uniform(0.95, 1.05) * saturated + 0.5, 0, 255).astype(np.uint8)


def rate(fps, slowest, random):
    """A frame rate within a tenth of fps, and above `slowest`, at which the window would be as long as its clip."""
    return fps * random.uniform(max(0.9, 1.001 * slowest / fps), 1.1)


CHANGES = {"shift": shift, "zoom": zoom, "colour": colour}
DEFAULT = ("shift", "colour")       # zoom blurs pixel art; rate repeats or drops frames if a file has few a second
FEW = 1000                          # clips: DEFAULT helped with 525, and harmed with 1,800 (docs/few-clips.md)


def names(text):
    """An argparse type: "none", or some of CHANGES and "rate" with commas between them, as a tuple."""
    chosen = () if text == "none" else tuple(text.split(","))
    if set(chosen) - {*CHANGES, "rate"} or len(set(chosen)) < len(chosen):
        raise ArgumentTypeError(f"{text}: want none, or some of {','.join(CHANGES)},rate")
    return chosen
