"""Exact scores: Sec. 4 "Metrics". No network judges: the toy world can be measured, a held-out clip is the truth.

in       uint8 frames [n, H, W, 3] of a generated clip, and the Thing of its prompt or the true clip
out      score_clip: are shape, colour, motion and speed right, how far do colour and size drift, does nothing move?
         compare: how near is the clip to the true one, does it move as much, does it move alike?
defines  find, shape_of, colour_of, motion_of, score_clip, average; psnr, compare, average_compared
our reading  The paper's FVD, IS and CLIPSIM ask a network whether clips look real. Here we find the thing by its vivid
             colour and compare its silhouette with all shapes at all angles, its path with all of data.toyset.track. Of
             real clips only the true one is known, but a caption has many right videos: `agreement` is low for good
             models, too.

Positions and sizes are fractions of the picture, angles radians clockwise, times seconds; key frame: number n // 2.
"""
import functools
import math

import numpy as np

from data.filter import change
from data.toyset import CENTRE, COLOURS, MOTIONS, ROUND, SHAPES, SPEEDS, STILL, frame_times, track

FAINTEST = 60       # vividness is max(R, G, B) - min(R, G, B): at most 28 in a background, 130 and more in a thing
GRID = np.linspace(-1, 1, 33)       # pixel positions of a patch, unit: root of the thing's area; the moon reaches 0.97
# How many times a shape looks the same in one turn; 0 for round shapes, 1 for shapes without an entry.
SYMMETRY = {"square": 4, "cross": 4, "triangle": 3, "star": 5, **dict.fromkeys(ROUND, 0)}


# ---- find the thing -------------------------------------------------------------------------------------------------

def _hue(rgb):
    """The direction of colours [..., 3] away from grey, as unit vectors [..., 3]."""
    away = rgb - rgb.mean(-1, keepdims=True)
    return away / np.maximum(np.linalg.norm(away, axis=-1, keepdims=True), 1e-6)


def _sample(picture, x, y):
    """Bilinear values of [H, W] at the pixel positions x [1, w], y [h, 1]; the border continues outside."""
    h, w = picture.shape
    x, y = np.clip(x, 0, w - 1.001), np.clip(y, 0, h - 1.001)       # the right and lower neighbours must exist
    i, j = y.astype(int), x.astype(int)
    fy, fx = y - i, x - j
    return ((1 - fy) * ((1 - fx) * picture[i, j] + fx * picture[i, j + 1])
            + fy * ((1 - fx) * picture[i + 1, j] + fx * picture[i + 1, j + 1]))


def find(frame, other=None):
    """Finds the thing in one frame, uint8 [H, W, 3], and ignores pixels of the colour named `other`.

    Returns None if nothing is vivid, else a dict: x, y (centre), area (share of the picture), rgb (mean colour), patch
    (silhouette, bool [33, 33], centred and scaled to unit area).
    """
    size = frame.shape[0]
    rgb = frame.astype(np.float32)
    vivid = rgb.max(-1) - rgb.min(-1)
    if other is not None:
        nearest = (_hue(rgb) @ _hue(np.float32(list(COLOURS.values()))).T).argmax(-1)
        vivid[nearest == list(COLOURS).index(other)] = 0
    # The 30th most vivid pixel: the smallest thing has about 70 pixels of 128 x 128, and noise makes only a few vivid.
    most = np.partition(vivid.ravel(), -30)[-30]
    if most < FAINTEST:
        return None
    level = (np.median(vivid) + np.median(vivid[vivid > most / 2])) / 2         # halfway from background to thing
    y, x = np.nonzero(vivid > level)
    away = np.hypot(x - np.median(x), y - np.median(y))
    # Drop stray pixels. No shape reaches beyond 2.3 medians (the triangle's tips); 3.5 leaves room for blur.
    near = away <= 3.5 * np.median(away)
    mask = np.zeros(vivid.shape, bool)
    mask[y[near], x[near]] = True
    x, y, area = x[near].mean(), y[near].mean(), int(near.sum())
    inner = mask.copy()                                             # without its border, which mixes in background
    for step in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        inner &= np.roll(mask, step, (0, 1))
    grid = GRID * np.sqrt(area)
    patch = _sample(np.where(mask, vivid, np.minimum(vivid, level)), x + grid[None, :], y + grid[:, None]) > level
    return {"x": (x + 0.5) / size, "y": (y + 0.5) / size, "area": area / size**2, "patch": patch,
            "rgb": rgb[inner if inner.any() else mask].mean(0)}


# ---- name its shape, colour and motion ------------------------------------------------------------------------------

@functools.cache
def _templates():
    """Every shape at every angle that looks different: names [m], angles [m], silhouettes float32 [m, 33 * 33].

    At 4 degrees apart, an angle is at most 2 degrees off. That is half a pixel at the rim if the radius is 15 pixels.
    """
    names, angles, patches = [], [], []
    fine = np.linspace(-1.1, 1.1, 221)                              # every shape lies within a radius of about 1
    for name, distance in SHAPES.items():
        looks = SYMMETRY.get(name, 1)
        scale = np.sqrt((distance(*np.meshgrid(fine, fine)) < 0).sum()) * (fine[1] - fine[0])      # root of the area
        for angle in np.radians(np.arange(0, 360 / looks, 4)) if looks else [0.0]:
            x, y = np.meshgrid(GRID * scale, GRID * scale)
            names.append(name)
            angles.append(angle)
            patches.append(distance(np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x) < 0)
    return np.array(names), np.array(angles), np.reshape(patches, (len(names), -1)).astype(np.float32)


def shape_of(patch, among=None):
    """(shape, angle) of the silhouette that overlaps a patch best, by intersection over union.

    among: the only shape to try; None tries all.
    """
    names, angles, patches = _templates()
    patch = patch.ravel().astype(np.float32)
    both = patches @ patch
    overlap = both / (patches.sum(1) + patch.sum() - both)
    if among is not None:
        overlap[names != among] = -1
    best = overlap.argmax()
    return str(names[best]), float(angles[best])


def colour_of(rgb):
    """The name of the nearest colour."""
    return min(COLOURS, key=lambda name: np.linalg.norm(rgb - np.float32(COLOURS[name])))


def motion_of(path, times, radius, looks, motions=tuple(MOTIONS)):
    """(motion, speed) of the path by data.toyset.track that is nearest to a measured path [4, n].

    The distance is that of a point on the rim, root mean square over the frames: growing and turning count by how far
    they move the rim. A turn to the next of the shape's `looks` counts as none. STILL competes with `motions`.
    """
    speeds = np.linspace(0.3, 2.2, 96)          # half of "slowly" (0.6) to one and a half of "quickly" (1.5), by 0.02
    best, least = (STILL, 0.0), np.inf
    for motion in (STILL, *motions):
        dx, dy, growth, angle = path[:, None] - track(motion, speeds[:, None] * (times - CENTRE))       # each [96, n]
        turned = 2 * np.sin(looks * angle / 2) / looks if looks else 0 * angle                          # a chord
        apart = np.sqrt((dx**2 + dy**2 + radius**2 * (growth**2 + turned**2)).mean(-1))                 # [96]
        if apart.min() < least:
            best, least = (motion, float(speeds[apart.argmin()]) if motion != STILL else 0.0), apart.min()
    return best


# ---- score a clip of the toy world ----------------------------------------------------------------------------------

def score_clip(frames, thing, other=None, fps=2.0):
    """Scores a clip, uint8 [n, H, W, 3], against the Thing of its prompt. `other` is the scene's second Thing, if any.

    shape, colour   are they right in the key frame?
    motion          is it right, of all motions and none?        still   is standing still nearest to its path?
    speed           measured / asked, by the best fit of the asked motion; nan if the motion is wrong
    colour_drift    mean over frames and channels of |mean colour - that in the key frame| / 255
    size_drift      mean over frames of |radius / radius in the key frame - 1|; nan where it should grow or shrink
    found           is the thing in every frame? if not, the motion is wrong and the drifts are nan
    saw             the measured (shape, colour, motion)
    """
    sightings = [find(frame, other.colour if other else None) for frame in frames]
    key, nan = sightings[len(frames) // 2], math.nan
    score = dict(shape=False, colour=False, motion=False, still=False, speed=nan, colour_drift=nan, size_drift=nan,
                 found=None not in sightings, saw=(None, None, None))
    if key is None:
        return score
    shape, key_angle = shape_of(key["patch"])
    colour, motion = colour_of(key["rgb"]), None
    if score["found"]:
        path = np.array([[seen["x"] - key["x"], seen["y"] - key["y"], np.log(seen["area"] / key["area"]) / 2,
                          shape_of(seen["patch"], shape)[1] - key_angle] for seen in sightings]).T       # [4, n]
        # The radius is 0.66 (circle) to 1.0 (moon) of the root of the area, and about 0.7 for five of eight shapes.
        times, rim, looks = frame_times(len(frames), fps), np.sqrt(key["area"]) * 0.7, SYMMETRY.get(shape, 1)
        motion, _ = motion_of(path, times, rim, looks)
        score["still"] = motion == STILL
        score["colour_drift"] = float(np.mean([abs(seen["rgb"] - key["rgb"]).mean() / 255 for seen in sightings]))
        if thing.motion not in ("growing", "shrinking"):
            roots = np.sqrt([seen["area"] for seen in sightings])                       # proportional to the radius
            score["size_drift"] = float(np.mean(abs(roots / np.sqrt(key["area"]) - 1)))
        if motion == thing.motion and motion != STILL:
            score["speed"] = motion_of(path, times, rim, looks, (motion,))[1] / SPEEDS[thing.speed]
    score.update(shape=shape == thing.shape, colour=colour == thing.colour, motion=motion == thing.motion,
                 saw=(shape, colour, motion))
    return score


def _over_clips(function, values):
    """function(values) without the nan among them; nan if nothing is left."""
    values = [value for value in values if not math.isnan(value)]
    return float(function(values)) if values else math.nan


COLUMNS = ("shape", "colour", "motion", "still", "speed", "colour_drift", "size_drift")


def average(scores):
    """One row of the table: the means of COLUMNS over many score_clip that are not nan, in percent except `speed`."""
    return {column: _over_clips(np.mean, [score[column] for score in scores]) * (1 if column == "speed" else 100)
            for column in COLUMNS}


# ---- compare with the true clip -------------------------------------------------------------------------------------

MOVES = 0.001       # mean change of a pixel in [0, 1] a frame, a quarter of a grey level: with less, a clip is still


def squared_error(a, b):
    """The mean squared difference of two uint8 pictures or clips."""
    return float(np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2))


def decibels(error):
    """PSNR in dB of a mean squared error: 10 log10(255^2 / error)."""
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def psnr(a, b):
    """Peak signal-to-noise ratio of two uint8 pictures or clips, in dB."""
    return decibels(squared_error(a, b))


def compare(video, true):
    """Compares two clips, uint8 [n, H, W, 3]. Each is measured from its own key frame.

    centre, others  mean squared error of the key frame, and of all other frames
    drift           mean over frames and channels of |mean colour of the frame - that of the key frame| / 255
    motion          change from frame to frame (data.filter.change), divided by the true clip's
    agreement       correlation of the changes from the key frame with the true clip's, over pixels of the other frames
    motion and agreement are nan where the true clip stands still (below MOVES), agreement also where the video does.
    """
    c = len(true) // 2
    others = np.arange(len(true)) != c
    colours = video.mean((1, 2))                                                        # [n, 3]
    score = dict(centre=squared_error(video[c], true[c]), others=squared_error(video[others], true[others]),
                 drift=float(abs(colours - colours[c]).mean() / 255), motion=math.nan, agreement=math.nan)
    if change(true) >= MOVES:
        score["motion"] = change(video) / change(true)
        a, b = ((clip[others].astype(np.float32) - clip[c]).ravel() for clip in (video, true))
        if min(a.std(), b.std()) > 0:
            score["agreement"] = float(np.corrcoef(a, b)[0, 1])
    return score


def average_compared(scores):
    """One row of the table, over many `compare`. A nan does not count; a column with nothing else is nan.

    centre frame, other frames  PSNR in dB of the mean squared error over all clips
    colour drift, agreement     mean, the drift in percent
    motion                      median; 1: as much as in the true clips
    still                       percent of the clips whose motion is below a tenth of the true clip's: our choice,
                                between a repeated key frame (0) and working models (about 1)
    """
    columns = {name: [score[name] for score in scores] for name in scores[0]}
    still = _over_clips(lambda motions: np.mean(np.array(motions) < 0.1), columns["motion"])
    return {"centre frame": decibels(np.mean(columns["centre"])), "other frames": decibels(np.mean(columns["others"])),
            "colour drift": 100 * float(np.mean(columns["drift"])), "motion": _over_clips(np.median, columns["motion"]),
            "agreement": _over_clips(np.mean, columns["agreement"]), "still": 100 * still}
