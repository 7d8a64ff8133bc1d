"""Exact scores: Sec. 4 "Metrics". No network judges: the toy world can be measured, a held-out clip is the truth.

our reading  The paper's FVD, IS and CLIPSIM ask a network whether clips look real. We find the thing by its vivid
             colour and compare its silhouette with all shapes at all angles, its path with all of data.toyset.track. A
             caption has many right videos, and only the true one is known: `agreement` is low for good models, too.
Positions and sizes are fractions of the picture, angles radians clockwise, times seconds; key frame: number n // 2.
"""
import functools

import numpy as np

from data.filter import change
from data.toyset import CENTRE, COLOURS, MOTIONS, ROUND, SHAPES, SPEEDS, STILL, frame_times, track

GRID = np.linspace(-1, 1, 33)       # pixel positions of a patch, unit: root of the thing's area; the moon reaches 0.97
MOVES = 0.001       # mean change of a pixel in [0, 1] a frame, a quarter of a grey level: with less, a clip is still
# How many times a shape looks the same in one turn; 0 for round shapes, 1 for shapes without an entry.
SYMMETRY = {"square": 4, "cross": 4, "triangle": 3, "star": 5, **dict.fromkeys(ROUND, 0)}


def find(frame, other=None):
    """Finds the thing in a frame, uint8 [H, W, 3], and ignores the colour named `other`. None if nothing is vivid, else
    x, y (centre), area (share of the picture), rgb (mean), patch (silhouette, bool [33, 33], centred, of unit area)."""
    size, rgb = len(frame), frame.astype(np.float32)
    vivid = rgb.max(-1) - rgb.min(-1)
    if other is not None:
        away = [colours - colours.mean(-1, keepdims=True) for colours in (rgb, np.float32(list(COLOURS.values())))]
        hues, named = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6) for x in away)   # away from grey
        vivid[(hues @ named.T).argmax(-1) == list(COLOURS).index(other)] = 0
    # The 30th most vivid pixel: the smallest thing has about 70 pixels of 128 x 128, and noise makes only a few vivid.
    most = np.partition(vivid.ravel(), -30)[-30]
    if most < 60:                                                   # a background has at most 28, a thing 130 and more
        return None
    level = (np.median(vivid) + np.median(vivid[vivid > most / 2])) / 2         # halfway from background to thing
    mask = vivid > level
    y, x = np.nonzero(mask)
    away = np.hypot(x - np.median(x), y - np.median(y))
    # Drop stray pixels. No shape reaches beyond 2.3 medians (the triangle's tips); 3.5 leaves room for blur.
    mask[mask] = away <= 3.5 * np.median(away)
    inner = np.all([np.roll(mask, step, (0, 1)) for step in ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))], axis=0)
    (y, x), area = np.argwhere(mask).mean(0), mask.sum()
    patch = np.where(mask, vivid, np.minimum(vivid, level)).T
    for centre in (x, y):                                           # bilinear: between columns, then between rows
        position = np.clip(centre + GRID * np.sqrt(area), 0, size - 1.001)          # the border continues outside
        i = position.astype(int)
        share = (position - i)[:, None]
        patch = ((1 - share) * patch[i] + share * patch[i + 1]).T
    return {"x": (x + 0.5) / size, "y": (y + 0.5) / size, "area": area / size**2, "patch": patch.T > level,
            "rgb": rgb[inner if inner.any() else mask].mean(0)}     # without the border, which mixes in background


@functools.cache
def _templates():
    """Every shape at every angle that looks different: names [m], angles [m], silhouettes float32 [m, 33 * 33]. They
    are 4 degrees apart, so an angle is at most 2 degrees off: half a pixel at the rim if the radius is 15 pixels."""
    templates, fine = [], np.linspace(-1.1, 1.1, 221)               # every shape lies within a radius of about 1
    for name, distance in SHAPES.items():
        looks = SYMMETRY.get(name, 1)
        scale = np.sqrt((distance(*np.meshgrid(fine, fine)) < 0).sum()) * (fine[1] - fine[0])      # root of the area
        x, y = np.meshgrid(GRID * scale, GRID * scale)
        for angle in np.radians(np.arange(0, 360 / looks, 4)) if looks else [0.0]:
            cos, sin = np.cos(angle), np.sin(angle)
            templates.append((name, angle, distance(cos * x + sin * y, cos * y - sin * x).ravel() < 0))
    names, angles, patches = map(np.array, zip(*templates))
    return names, angles, patches.astype(np.float32)


def shape_of(patch, among=None):
    """(shape, angle) of the silhouette with the largest intersection over union; `among`: the only shape to try."""
    (names, angles, patches), patch = _templates(), patch.ravel().astype(np.float32)
    both = patches @ patch
    overlap = both / (patches.sum(1) + patch.sum() - both)
    if among is not None:
        overlap[names != among] = -1
    best = overlap.argmax()
    return str(names[best]), float(angles[best])


def motion_of(path, times, radius, shape):
    """(motion, speed) whose data.toyset.track is nearest to a measured path [4, n]; of STILL, any speed. Distance: root
    mean square of a point on the rim, which growing and turning move. A turn that looks like none counts as none."""
    speeds = np.linspace(0.3, 2.2, 96)          # half of "slowly" (0.6) to one and a half of "quickly" (1.5), by 0.02
    fits, looks = [], SYMMETRY.get(shape, 1)
    for motion in (STILL, *MOTIONS):
        dx, dy, growth, angle = path[:, None] - track(motion, speeds[:, None] * (times - CENTRE))       # each [96, n]
        turned = 2 * np.sin(looks * angle / 2) / looks if looks else 0 * angle                          # a chord
        apart = np.sqrt((dx**2 + dy**2 + radius**2 * (growth**2 + turned**2)).mean(-1))                 # [96]
        fits.append((apart.min(), motion, float(speeds[apart.argmin()])))
    return min(fits, key=lambda fit: fit[0])[1:]


def score_clip(frames, thing, other=None, fps=2.0):
    """Scores a clip, uint8 [n, H, W, 3], against the Thing of its prompt. `other` is the scene's second Thing, if any.
    shape, colour   are they right in the key frame?
    motion, still   is it right (of ten motions and standing still)? is standing still nearest to its path?
    speed           measured / asked; nan if the motion is wrong
    colour_drift    mean over frames and channels of |mean colour - that in the key frame| / 255
    size_drift      mean over frames of |radius / radius in the key frame - 1|; nan where it should grow or shrink
    found, saw      is the thing in every frame? if not, the drifts are nan; the measured (shape, colour, motion)"""
    sightings = [find(frame, other.colour if other else None) for frame in frames]
    key, found = sightings[len(frames) // 2], None not in sightings
    shape = colour = motion = None
    speed = colour_drift = size_drift = np.nan
    if key is not None:
        shape, key_angle = shape_of(key["patch"])
        colour = min(COLOURS, key=lambda name: np.linalg.norm(key["rgb"] - np.float32(COLOURS[name])))
    if found:
        path = np.array([[seen["x"] - key["x"], seen["y"] - key["y"], np.log(seen["area"] / key["area"]) / 2,
                          shape_of(seen["patch"], shape)[1] - key_angle] for seen in sightings]).T       # [4, n]
        # The radius is 0.66 (circle) to 1.0 (moon) of the root of the area, and about 0.7 for five of eight shapes.
        motion, measured = motion_of(path, frame_times(len(frames), fps), np.sqrt(key["area"]) * 0.7, shape)
        if motion == thing.motion and motion != STILL:
            speed = measured / SPEEDS[thing.speed]
        colour_drift = float(np.mean([abs(seen["rgb"] - key["rgb"]).mean() / 255 for seen in sightings]))
        if thing.motion not in ("growing", "shrinking"):
            size_drift = float(np.mean(abs(np.sqrt([seen["area"] for seen in sightings]) / np.sqrt(key["area"]) - 1)))
    return dict(shape=shape == thing.shape, colour=colour == thing.colour, motion=motion == thing.motion,
                still=motion == STILL, speed=speed, colour_drift=colour_drift, size_drift=size_drift, found=found,
                saw=(shape, colour, motion))


def _reduce(scores, column, function=np.mean):
    """function(the numbers of a column that are not nan); nan if there are none."""
    numbers = [score[column] for score in scores if not np.isnan(score[column])]
    return float(function(numbers)) if numbers else np.nan


def average(scores):
    """One row of the table: means over many score_clip, without nan, in percent except `speed`."""
    columns = ("shape", "colour", "motion", "still", "speed", "colour_drift", "size_drift")
    return {column: _reduce(scores, column) * (1 if column == "speed" else 100) for column in columns}


def squared_error(a, b):
    """The mean squared difference of two uint8 pictures or clips."""
    return float(np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2))


def decibels(error):
    """PSNR in dB of a mean squared error: 10 log10(255^2 / error)."""
    return np.inf if error == 0 else float(10 * np.log10(255**2 / error))


def psnr(a, b):
    """Peak signal-to-noise ratio of two uint8 pictures or clips, in dB."""
    return decibels(squared_error(a, b))


def compare(video, true):
    """Compares two clips, uint8 [n, H, W, 3]. Each is measured from its own key frame.
    centre, others  mean squared error of the key frame, and of all other frames
    drift           mean over frames and channels of |mean colour of the frame - that of the key frame| / 255
    motion          change from frame to frame (data.filter.change) / that of the true clip; nan if that stands still
    agreement       correlation of the changes from the key frame with the true ones; nan if either clip is still"""
    c, motion, agreement = len(true) // 2, np.nan, np.nan
    others, colours = np.arange(len(true)) != c, video.mean((1, 2))                     # colours [n, 3]
    if change(true) >= MOVES:
        motion = change(video) / change(true)
        a, b = ((clip[others].astype(np.float32) - clip[c]).ravel() for clip in (video, true))
        if min(a.std(), b.std()) > 0:
            agreement = float(np.corrcoef(a, b)[0, 1])
    return dict(centre=squared_error(video[c], true[c]), others=squared_error(video[others], true[others]),
                drift=float(abs(colours - colours[c]).mean() / 255), motion=motion, agreement=agreement)


def average_compared(scores):
    """One row of the table, over many `compare`, without nan: PSNR in dB of the mean squared errors, mean drift in
    percent, median motion (1: as much as in the true clips), mean agreement, percent of clips that stand still."""
    # Below a tenth of the true motion a clip is still: between a repeated key frame (0) and working models (about 1).
    still = _reduce(scores, "motion", lambda motions: np.mean(np.array(motions) < 0.1))
    return {"centre frame": decibels(_reduce(scores, "centre")), "other frames": decibels(_reduce(scores, "others")),
            "colour drift": 100 * _reduce(scores, "drift"), "motion": _reduce(scores, "motion", np.median),
            "agreement": _reduce(scores, "agreement"), "still": 100 * still}
