"""The scores: Sec. 4 "Metrics". Here the exact ones of the toy world and of clips kept out; no network has to judge.

in    uint8 frames [n, H, W, 3] of a generated clip, and the Thing that was asked for (data.py), or the true clip
out   score_clip: is the shape right, the colour, the motion, the speed; how far do colour and size drift from the key
      frame, number n // 2; does everything stand still
      compare: how near is it to the true clip whose key frame it was given, does it move as much, and alike
here  find, shape_of, colour_of, motion_of, score_clip, psnr, compare; and the command that scores a model:

    python metrics.py --prompts 128 --steps 15                                  the table of the README
    python metrics.py --prompts 128 --steps 15 --between                        that of temporal super-resolution
    python metrics.py --prompts 64 --data my_clips --weights mine --out strip.png   clips of your own, kept out

ours  Everything here. The paper's FVD, IS and CLIPSIM ask a network whether clips look real; the toy world is known,
      so its clips can be measured with a ruler: find the thing by its vividness (only things are vivid), compare its
      silhouette with all silhouettes, and its path with all paths that data.track can draw. Of real clips only the
      clip itself is known; a sentence has many right videos, so its motion need not be the truth's: `agreement` is
      low for a good model, too, and worth looking at from one model to the next.

Places and sizes are fractions of the picture, angles radians clockwise, times seconds.
"""
import functools
import math
import sys
from pathlib import Path

import numpy as np
import torch

from clips import ClipSet
from data import CENTRE, COLOURS, MOTIONS, ROUND, SECONDS, SHAPES, SPEEDS, STILL, frame_times, render, sample_scene
from data import track
from files import ArgumentParser, beside, check_output, contact_sheet, from_pixels, to_pixels
from filtering import change
from microcinema import UNTRAINED, MicroCinema, between, check_device, from_where, sources

FAINTEST = 60                       # of 255: backgrounds stay below half of it, things reach 130 and more
IN_PLACE = ("growing", "shrinking", "turning")          # motions that leave the centre where it is
SYMMETRY = {"square": 4, "cross": 4, "triangle": 3, "star": 5, **dict.fromkeys(ROUND, 0)}   # looks in a turn; else 1


def squared_error(a, b):
    """The mean squared difference of two uint8 pictures or clips."""
    return float(np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2))


def decibels(error):
    """10 log10(255^2 / error), of a mean squared error."""
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def psnr(a, b):
    """Peak signal-to-noise ratio of two uint8 pictures or clips, in dB."""
    return decibels(squared_error(a, b))


# ---- find the thing -------------------------------------------------------------------------------------------------

def _hue(rgb):
    """The direction of a colour away from grey, a unit vector [..., 3]."""
    away = rgb - rgb.mean(-1, keepdims=True)
    return away / np.maximum(np.linalg.norm(away, axis=-1, keepdims=True), 1e-6)


def find(frame, other=None):
    """Find the thing in one frame, uint8 [H, W, 3]; what has the hue of `other`, a colour's name, is left aside.

    Returns None if nothing vivid is there, else a dict: x, y (of its centre), area (of the picture), rgb (its mean
    colour), patch (its silhouette [33, 33], moved to the middle and scaled to unit area).
    """
    size = frame.shape[0]
    rgb = frame.astype(np.float32)
    vivid = rgb.max(-1) - rgb.min(-1)
    if other is not None:
        nearest = (_hue(rgb) @ _hue(np.float32(list(COLOURS.values()))).T).argmax(-1)
        vivid[nearest == list(COLOURS).index(other)] = 0
    most = np.partition(vivid.ravel(), -30)[-30:].min()             # the 30th, not the first: that may be noise
    if most < FAINTEST:
        return None
    level = (np.median(vivid) + np.median(vivid[vivid > most / 2])) / 2         # halfway from background to thing
    y, x = np.nonzero(vivid > level)
    away = np.hypot(x - np.median(x), y - np.median(y))
    near = away <= 3.5 * np.median(away)                            # drops stray specks
    mask = np.zeros(vivid.shape, bool)
    mask[y[near], x[near]] = True
    x, y, area = x[near].mean(), y[near].mean(), int(near.sum())
    inner = mask.copy()                                             # less a border of one pixel, which mixes with what
    for step in ((0, 1), (0, -1), (1, 0), (-1, 0)):                 # is around it
        inner &= np.roll(mask, step, (0, 1))
    grid = GRID * np.sqrt(area)
    patch = _sample(np.where(mask, vivid, np.minimum(vivid, level)), x + grid[None, :], y + grid[:, None]) > level
    return {"x": (x + 0.5) / size, "y": (y + 0.5) / size, "area": area / size**2, "patch": patch,
            "rgb": rgb[inner if inner.any() else mask].mean(0)}


def _sample(picture, x, y):
    """Bilinear values of [H, W] at pixel places x [1, w], y [h, 1]; the border continues outside."""
    h, w = picture.shape
    x, y = np.clip(x, 0, w - 1.001), np.clip(y, 0, h - 1.001)
    i, j = y.astype(int), x.astype(int)
    fy, fx = y - i, x - j
    return ((1 - fy) * ((1 - fx) * picture[i, j] + fx * picture[i, j + 1])
            + fy * ((1 - fx) * picture[i + 1, j] + fx * picture[i + 1, j + 1]))


# ---- name what was found --------------------------------------------------------------------------------------------

GRID = np.linspace(-1, 1, 33)       # a patch's pixels, in units of the root of the thing's area; the moon reaches 0.97


@functools.cache
def _templates():
    """Every shape at every angle that looks different, 4 degrees apart: names, angles [m], silhouettes [m, 33*33]."""
    names, angles, patches = [], [], []
    fine = np.linspace(-1.1, 1.1, 221)
    for name, distance in SHAPES.items():
        looks = SYMMETRY.get(name, 1)
        scale = np.sqrt((distance(*np.meshgrid(fine, fine)) < 0).sum()) * (fine[1] - fine[0])      # root of its area
        for angle in np.radians(np.arange(0, 360 / looks, 4)) if looks else [0.0]:
            x, y = np.meshgrid(GRID * scale, GRID * scale)
            names.append(name)
            angles.append(angle)
            patches.append(distance(np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x) < 0)
    return np.array(names), np.array(angles), np.reshape(patches, (len(names), -1)).astype(np.float32)


def shape_of(patch, among=None):
    """The shape and angle whose silhouette overlaps a patch best (intersection over union), of all or of one shape."""
    names, angles, patches = _templates()
    patch = patch.ravel().astype(np.float32)
    both = patches @ patch
    overlap = both / (patches.sum(1) + patch.sum() - both)
    best = np.where((names == among) | (among is None), overlap, -1).argmax()
    return str(names[best]), float(angles[best])


def colour_of(rgb):
    """The nearest colour's name."""
    return min(COLOURS, key=lambda name: np.linalg.norm(rgb - np.float32(COLOURS[name])))


def motion_of(path, times, radius, looks, motions=tuple(MOTIONS)):
    """Which motion, at which speed, comes closest to a measured path [4, n], as data.track makes them?

    The distance is that of a point on the rim, root mean square over the frames: growth and turning count by what they
    do at the radius, and a turn to the next of the shape's `looks` counts as none. Speeds run from half of "slowly" to
    beyond "quickly"; the path that stays where it is competes, as STILL. Returns the name, the speed and the distance.
    """
    speeds = np.linspace(0.3, 2.2, 96)
    best = (STILL, 0.0, np.inf)
    for motion in (STILL, *motions):
        dx, dy, growth, angle = path[:, None] - track(motion, speeds[:, None] * (times - CENTRE))       # each [96, n]
        turned = 2 * np.sin(looks * angle / 2) / looks if looks else 0 * angle                          # a chord
        apart = np.sqrt((dx**2 + dy**2 + radius**2 * (growth**2 + turned**2)).mean(-1))                 # [96]
        if apart.min() < best[2]:
            best = (motion, float(speeds[apart.argmin()]) if motion != STILL else 0.0, float(apart.min()))
    return best


def score_clip(frames, thing, other=None, fps=2.0):
    """Score a clip uint8 [n, H, W, 3] against the Thing asked for; `other` is the scene's second Thing, if any.

    shape, colour   right in the key frame?
    motion          right, of all motions and none?              still   is its path closest to no motion at all?
    speed           measured / asked, by the best fit of the asked motion (nan if the motion is wrong)
    colour_drift    mean over frames and channels of |its mean colour - that in the key frame| / 255
    size_drift      mean over frames of |radius / radius in the key frame - 1|; nan where it should grow or shrink
    found           in every frame? If not, the motion is wrong and there are no drifts (nan)
    saw             what was found: (shape, colour, motion)
    """
    finds = [find(frame, other and other.colour) for frame in frames]
    key, nan = finds[len(frames) // 2], float("nan")
    score = dict(shape=False, colour=False, motion=False, still=False, speed=nan, colour_drift=nan, size_drift=nan,
                 found=None not in finds, saw=(None, None, None))
    if key is None:
        return score
    shape, key_angle = shape_of(key["patch"])
    colour, motion = colour_of(key["rgb"]), None
    if score["found"]:
        radius = np.sqrt([seen["area"] for seen in finds])          # up to a factor, of which only ratios matter
        path = np.array([[seen["x"] - key["x"], seen["y"] - key["y"], np.log(seen["area"] / key["area"]) / 2,
                          shape_of(seen["patch"], shape)[1] - key_angle] for seen in finds]).T           # [4, n]
        times, rim, looks = frame_times(len(frames), fps), np.sqrt(key["area"]) * 0.7, SYMMETRY.get(shape, 1)
        motion = motion_of(path, times, rim, looks)[0]
        score["still"] = motion == STILL
        score["colour_drift"] = float(np.mean([abs(seen["rgb"] - key["rgb"]).mean() / 255 for seen in finds]))
        if thing.motion not in ("growing", "shrinking"):
            score["size_drift"] = float(np.mean(abs(radius / np.sqrt(key["area"]) - 1)))
        if motion == thing.motion and motion != STILL:
            score["speed"] = motion_of(path, times, rim, looks, (motion,))[1] / SPEEDS[thing.speed]
    score.update(shape=shape == thing.shape, colour=colour == thing.colour, motion=motion == thing.motion,
                 saw=(shape, colour, motion))
    return score


# ---- compare with a true clip -----------------------------------------------------------------------------------

MOVES = 0.001                       # of 1: a clip of which less changes from frame to frame stands still


def compare(video, true):
    """Compare a clip uint8 [n, H, W, 3] with the true one, whose key frame it was made from. Both count from their own
    key frame, number n // 2.

    centre, others  mean squared error of the key frame, and of all other frames
    drift           mean over frames and channels of |mean colour of the frame - that of the key frame| / 255
    motion          how much changes from frame to frame (filtering.change), over how much does in the truth
    agreement       correlation of its change from the key frame with the truth's, over the pixels of all other frames
    The last two are nan where the truth stands still (below MOVES), the last also where the clip does.
    """
    c = len(true) // 2
    others = np.arange(len(true)) != c
    colours = video.mean((1, 2))                                                        # [n, 3]
    score = dict(centre=squared_error(video[c], true[c]), others=squared_error(video[others], true[others]),
                 drift=float(abs(colours - colours[c]).mean() / 255), motion=float("nan"), agreement=float("nan"))
    if change(true) >= MOVES:
        score["motion"] = change(video) / change(true)
        ours, theirs = ((clip[others].astype(np.float32) - clip[c]).ravel() for clip in (video, true))
        if min(ours.std(), theirs.std()) > 0:
            score["agreement"] = float(np.corrcoef(ours, theirs)[0, 1])
    return score


# ---- average over clips -------------------------------------------------------------------------------------------

COLUMNS = ("shape", "colour", "motion", "still", "speed", "colour_drift", "size_drift")


def average(scores):
    """One row of the table: the mean of each column over many score_clip, in percent; speed as measured / asked.

    A drift that does not apply to a clip (nan) does not count; what applies to no clip stays nan.
    """
    row = {}
    for column in COLUMNS:
        values = np.array([score[column] for score in scores], dtype=float)
        values = values[~np.isnan(values)]
        row[column] = (values.mean() if len(values) else float("nan")) * (1 if column == "speed" else 100)
    return row


FORMATS = {"centre frame": "{:.1f} dB", "other frames": "{:.1f} dB", "colour drift": "{:.1f} %", "motion": "{:.2f}",
           "agreement": "{:.2f}", "still": "{:.1f} %"}


def average_compared(scores):
    """One row of the table, with the columns of FORMATS, over many `compare`.

    centre frame, other frames  PSNR in dB of all clips as one: of the mean of their squared errors
    colour drift, agreement     mean, the drift in percent
    motion                      median, of the truth's: 1 is as much as there
    still                       percent of the clips that move less than a tenth of what the truth does
    A clip for which a number is nan does not count; what applies to no clip is nan.
    """
    columns = {name: np.array([score[name] for score in scores]) for name in scores[0]}
    columns = {name: values[~np.isnan(values)] for name, values in columns.items()}
    of = lambda function, values: float(function(values)) if len(values) else float("nan")
    return {"centre frame": decibels(columns["centre"].mean()), "other frames": decibels(columns["others"].mean()),
            "colour drift": 100 * columns["drift"].mean(), "motion": of(np.median, columns["motion"]),
            "agreement": of(np.mean, columns["agreement"]), "still": 100 * of(np.mean, columns["motion"] < 0.1)}


# ---- score a model ----------------------------------------------------------------------------------------------

def as_pixels(videos):
    """Videos [b, 3, n, H, W] in [-1, 1] -> uint8 [b, n, H, W, 3]."""
    return to_pixels(videos).permute(0, 2, 3, 4, 1).cpu().numpy()


def coded(cinema, videos):
    """Videos [b, 3, n, H, W] through the autoencoder: (latents [b, 4, n, h, w], videos)."""
    z = cinema.encode_frames(videos)
    return z, cinema.decode(z)


def repeated(pictures, n):
    """Pictures [b, 3, H, W] -> videos [b, 3, n, H, W] in which they stand still."""
    return pictures[:, :, None].expand(-1, -1, n, -1, -1)


def score_model(cinema, count, seed=0, batch=16, held_out=False, **changes):
    """Scores {row: {column: ...}} of `count` prompts about one thing, seen in training or held out, and the mean PSNR
    in dB, clip by clip, of the centre frame when the true key frame is given.

    Rows: the truth through the autoencoder; the model, with a key frame of its own drawing; that key frame repeated;
    the model with AppearNet and the noise prior off.
    """
    rows = {"truth through the autoencoder": [], "MicroCinema": [], "its key frame repeated": [],
            "without AppearNet and prior": []}
    centre, times = [], frame_times(cinema.settings(**changes).frames)
    c = len(times) // 2
    for first in range(0, count, batch):
        seeds = range(first, min(first + batch, count))
        scenes = [sample_scene([seed, 1_000_000 + i], held_out, things=1) for i in seeds]
        prompts = [scene.caption() for scene in scenes]
        true = np.stack([render(scene, times, cinema.sampling.size) for scene in scenes])       # [b, n, H, W, 3]
        frames = from_pixels(torch.from_numpy(true)).permute(0, 4, 1, 2, 3)
        keys = cinema.key_frame(prompts, seeds, **changes)
        alone = cinema.animate(prompts, keys, seeds, appearance=False, **changes)
        videos = {"truth through the autoencoder": coded(cinema, frames)[1],
                  "MicroCinema": cinema.animate(prompts, keys, seeds, **changes),
                  "its key frame repeated": repeated(keys, len(times)),
                  "without AppearNet and prior": alone}
        for row, video in videos.items():
            rows[row] += [score_clip(clip, *scene.things)
                          for clip, scene in zip(as_pixels(video), scenes, strict=True)]
        given = as_pixels(cinema.animate(prompts, frames[:, :, c], seeds, **changes))
        centre += [psnr(a[c], b[c]) for a, b in zip(given, true, strict=True)]
    return {row: average(scores) for row, scores in rows.items()}, float(np.mean(centre))


def against_truth(video, true):
    """How far uint8 frames [n, H, W, 3] are from the true ones: (mean squared error, distance of the thing's centre in
    pixels).

    A thing that is not found is half a picture away.
    """
    size, distances = true.shape[1], []
    for a, b in zip(video, true, strict=True):
        seen, there = find(a), find(b)
        distances.append(np.hypot(seen["x"] - there["x"], seen["y"] - there["y"]) * size if seen else size / 2)
    return squared_error(video, true), float(np.mean(distances))


def score_interpolation(cinema, count, fps, seed=0, batch=16, **changes):
    """Temporal super-resolution to `fps` on `count` held-out scenes: {row: (PSNR of all, PSNR of those whose thing
    changes place, in dB and of all their frames as one; and of these the distance in pixels)}.

    The toy world is continuous, so the three frames between two, 4 / fps seconds apart, are known. Rows: the truth
    through the autoencoder; the two frames cross-faded in pixels, and in latents (the condition itself); the model.
    """
    rows, moves = {}, []
    for first in range(0, count, batch):
        seeds = range(first, min(first + batch, count))
        scenes = [sample_scene([seed, 2_000_000 + i], held_out=True, things=1) for i in seeds]
        starts = [np.random.default_rng([seed, i]).uniform(0, SECONDS - 4 / fps) for i in seeds]
        true = np.stack([render(scene, start + np.arange(5) / fps, cinema.sampling.size)
                         for scene, start in zip(scenes, starts)])                              # [b, 5, H, W, 3]
        x = from_pixels(torch.from_numpy(true)).permute(0, 4, 1, 2, 3)
        z, through = coded(cinema, x)                                                           # [b, 4, 5, h, w]
        videos = {"truth through the autoencoder": through,
                  "cross-fade of pixels": between(x[:, :, 0], x[:, :, 4], 5),
                  "cross-fade of latents": cinema.decode(between(z[:, :, 0], z[:, :, 4], 5)),
                  "MicroCinema": cinema.interpolate(x[:, :, [0, 4]], [scene.caption() for scene in scenes], seeds,
                                                    pairs=batch, fps=fps / 4, **changes)}
        moves += [scene.things[0].motion not in IN_PLACE for scene in scenes]
        for row, video in videos.items():
            rows[row] = rows.get(row, []) + [against_truth(a[1:4], b[1:4])
                                             for a, b in zip(as_pixels(video), true, strict=True)]
    scores = {}
    for row, values in rows.items():
        errors, distances = np.array(values).T
        scores[row] = decibels(errors.mean()), decibels(errors[moves].mean()), float(distances[moves].mean())
    return scores


def score_clips(cinema, clips, seed=0, batch=16, shown=8, **changes):
    """The model on windows of a ClipSet, the true key frame and caption given: ({row: {column: number}}, strip).

    Rows: the truth through the autoencoder; the model; the key frame repeated, through nothing. strip: of the first
    `shown` windows (caption, the truth, the model's), uint8 [n, H, W, 3]. Window i has the noise of seed + i.
    """
    rows, strip = {}, []
    for first in range(0, len(clips), batch):
        items = [clips[i] for i in range(first, min(first + batch, len(clips)))]
        prompts, seeds = [item["caption"] for item in items], range(seed + first, seed + first + len(items))
        x = from_pixels(torch.stack([item["frames"] for item in items]))                        # [b, 3, n, H, W]
        true, keys = as_pixels(x), x[:, :, x.shape[2] // 2]
        videos = {"truth through the autoencoder": coded(cinema, x)[1],
                  "MicroCinema": cinema.animate(prompts, keys, seeds, **changes),
                  "its key frame repeated": repeated(keys, x.shape[2])}
        videos = {row: as_pixels(video) for row, video in videos.items()}
        for row, video in videos.items():
            rows[row] = rows.get(row, []) + [compare(a, b) for a, b in zip(video, true, strict=True)]
        strip += list(zip(prompts, true, videos["MicroCinema"], strict=True))[:shown - len(strip)]
    return {row: average_compared(scores) for row, scores in rows.items()}, strip


# ---- the command --------------------------------------------------------------------------------------------------

def print_table(*rows):
    """A Markdown table: rows of cells, the first of them the head."""
    for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]):
        print("|", *(f"{cell} |".lstrip() for cell in row))


def print_model(cinema, args, changes):
    """The table of the toy world, and the line below it."""
    half = args.prompts // 2
    tables = {name: score_model(cinema, half, args.seed, args.batch, held_out, **changes)
              for name, held_out in (("seen", False), ("held out", True))}
    cell = lambda column, value: "-" if value != value else f"{value:.2f}" if column == "speed" else f"{value:.1f} %"
    print_table((f"{half} prompts each", "", *(column.replace("_", " ") for column in COLUMNS)),
                *((row, name, *(cell(*pair) for pair in values.items()))
                  for name, (rows, _) in tables.items() for row, values in rows.items()))
    centre = ", ".join(f"{decibels:.1f} dB {name}" for name, (_, decibels) in tables.items())
    print(f"\nCentre frame, true key frame given: {centre}")


def print_interpolation(cinema, args, changes):
    """The table of temporal super-resolution, both rounds side by side."""
    rounds = [score_interpolation(cinema, args.prompts, fps, args.seed, args.batch, **changes) for fps in (8, 32)]
    cells = lambda psnr, of_moving, distance: (f"{psnr:.1f} dB", f"{of_moving:.1f} dB", f"{distance:.3f} pixels")
    print_table((f"{args.prompts} held-out clips", "2 to 8 fps: PSNR", "of moving things", "position error",
                 "8 to 32 fps: PSNR", "of moving things", "position error"),
                *((row, *(cell for r in rounds for cell in cells(*r[row]))) for row in rounds[0]))


def print_clips(cinema, args, changes):
    """The table of clips of one's own, and the strip."""
    s = cinema.settings(**changes)
    if s.frames < 2:
        raise ValueError(f"{args.model}: makes videos of {s.frames} frame; want 2 or more to compare")
    clips = ClipSet(args.data, args.prompts, s.frames, args.fps or s.fps, s.size, args.seed, held_out=True)
    rows, strip = score_clips(cinema, clips, args.seed, args.batch, **changes)
    if args.out:
        captions = [line for caption, *_ in strip for line in (f"the truth: {caption}", "MicroCinema")]
        with beside(args.out) as part:
            contact_sheet(*[clip for _, *pair in strip for clip in pair], captions=captions).save(part)
    kept = "kept out" if clips.spared else "trained on, too few to keep some out"
    cell = lambda column, value: "-" if value != value else FORMATS[column].format(value)
    print_table((f"{args.prompts} windows of {len(clips.clips)} clips {kept}", *FORMATS),
                *((row, *(cell(*pair) for pair in values.items())) for row, values in rows.items()))
    if args.out:
        print(f"\n{args.out}: {len(strip)} of them, the truth above and ours below")


def check_flags(args):
    """ValueError for what cannot be done, or would be ignored."""
    if args.data and args.between:
        raise ValueError("--data and --between: choose one")
    for flag in ("guidance", "gamma", "fps"):
        if not math.isfinite(getattr(args, flag) or 0):
            raise ValueError(f"--{flag}: want a finite number")
    for flag in ("fps", "out"):
        if getattr(args, flag) is not None and not args.data:
            raise ValueError(f"--{flag} takes --data")
    least = 1 if args.data or args.between else 2
    if args.prompts < least or args.batch < 1 or args.fps is not None and args.fps <= 0:
        raise ValueError(f"want --prompts {least} or more, --batch 1 or more, --fps above 0")
    if args.out:
        check_output(args.out)
        if args.out.suffix.lower() not in (".png", ".webp"):
            raise ValueError(f"{args.out}: the strip is one picture; want .png or .webp")
    check_device(args.device)


def main(argv=None):
    """Scores a model and prints a Markdown table."""
    parser = ArgumentParser(description="Score a model; see the top of metrics.py.")
    add = parser.add_argument
    add("--model", type=Path, default=Path(__file__).parent / "toy", help="model folder (default: the toy model)")
    add("--weights", type=Path, help="a folder that train.py wrote, whose parts take the place of the model's, or the "
                                     "file of a video model")
    add("--data", type=Path, help="score on a folder of clips with captions (clips.py), those kept out of training")
    add("--between", action="store_true", help="score temporal super-resolution, on held-out clips of the toy world")
    add("--prompts", type=int, default=256, help="how many; of the toy world, half of them seen and half held out")
    add("--batch", type=int, default=16, help="videos at once")
    add("--seed", type=int, default=0, help="of the prompts or windows, and of the noise")
    add("--steps", type=int, help="denoising steps (default: the model's)")
    add("--guidance", type=float, help="guidance scale (default: the model's)")
    add("--gamma", type=float, help="gamma of Sec. 4.2.2 (default: the model's)")
    add("--fps", type=float, help="with --data: frames a second of a window (default: the model's)")
    add("--out", type=Path, help="with --data: a .png or .webp to draw eight windows to, the truth and ours")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, ...")
    args = parser.parse_args(argv)
    try:
        check_flags(args)
        cinema = MicroCinema.load(args.model, args.device, overlay=args.weights)
        if args.weights:
            print(from_where(sources(args.model, args.weights)), end="\n\n")
        if not cinema.trained:
            print(UNTRAINED, end="\n\n")
        changes = dict(steps=args.steps, guidance=args.guidance, gamma=args.gamma)
        (print_clips if args.data else print_interpolation if args.between else print_model)(cinema, args, changes)
    except (ValueError, OSError) as e:
        print(f"metrics.py: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
