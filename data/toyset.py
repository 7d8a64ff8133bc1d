"""The generated dataset: Sec. 4 "Datasets", with a toy world instead of WebVid-10M. (folder.py reads real clips.)

in       a seed     -> a Scene, and from it any frame of its four seconds, at any frame rate and size
out      ToySet[i]  -> {"frames": uint8 [3, n, H, W], "caption": str, "name": str}
defines  SHAPES, COLOURS, MOTIONS, SPEEDS, track, Thing, Scene, is_held_out, sample_scene, scene_of, render,
         frame_times, ToySet
our reading  The paper trains on WebVid-10M, which was withdrawn in February 2024. We draw every clip: one or two
             coloured shapes that move, grow, turn or bounce. A clip lasts 4 s, 9 frames at 2 fps (Sec. 4.1). Its key
             frame is at t = 2 s, where every thing is upright and at a fixed phase of its motion. So key frame and
             caption together determine the clip. Never mirror a clip: captions say left and right.
             A tenth of all (shape, colour, motion) triples is held out, so that one can test on unseen ones.

Places and sizes are fractions of the picture, x to the right and y down. Angles are radians, clockwise on the screen.

    python -m data.toyset --out toyset.png --seed 0     # a contact sheet: one clip a row, its caption below
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.media import check_output, write_sheet
from sd21.command import ArgumentParser, fps, natural, positive_int, run
from sd21.text import with_fps

SECONDS, CENTRE = 4.0, 2.0          # length of a clip, and the time of its key frame


# ---- shapes, colours, motions ---------------------------------------------------------------------------------------
# A shape is its signed distance at (x, y): negative inside, with slope 1 near the edge, in units of the radius of the
# circle around it. Its origin is its centroid: so a turning shape stays in place.

def _box(x, y, w, h, rounded=0.08):
    dx, dy = abs(x) - (w - rounded), abs(y) - (h - rounded)
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - rounded


def _star(x, y, inner=0.46):
    wedge = math.pi / 5                                             # half the angle between two of the five tips
    a = np.arctan2(x, -y)                                           # 0 is straight up
    a, r = abs((a + wedge) % (2 * wedge) - wedge), np.hypot(x, y)   # fold all ten half-tips onto one
    edge_x, edge_y = inner * math.sin(wedge), inner * math.cos(wedge) - 1.0     # from the tip to the inner corner
    return (r * np.sin(a) * -edge_y + (r * np.cos(a) - 1.0) * edge_x) / math.hypot(edge_x, edge_y)


def _heart(x, y):
    x, y = abs(x), y - 0.117                                        # a square on its corner, half a disc on each side
    u, v = (x + y) * math.sqrt(0.5) - 0.08, (y - x) * math.sqrt(0.5) - 0.08
    return np.minimum(np.maximum(abs(u), abs(v)) - 0.52, np.hypot(u, v + 0.52) - 0.52)


SHAPES = {
    "circle": lambda x, y: np.hypot(x, y) - 0.86,
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.68) - 0.22,
    "square": lambda x, y: _box(x, y, 0.74, 0.74),
    "triangle": lambda x, y: np.maximum(y, abs(x) * math.sqrt(0.75) - y / 2) - 0.48,
    "star": _star,
    "heart": _heart,
    "cross": lambda x, y: np.minimum(_box(x, y, 0.92, 0.31), _box(x, y, 0.31, 0.92)),
    "moon": lambda x, y: np.maximum(np.hypot(x - 0.262, y) - 0.78, 0.563 - np.hypot(x - 0.563, y)),
}
ROUND = ("circle", "ring")                                          # these never turn, since nobody could see it

COLOURS = {"red": (222, 44, 52), "orange": (244, 128, 24), "yellow": (246, 204, 44), "green": (36, 176, 64),
           "turquoise": (38, 186, 190), "blue": (44, 92, 226), "purple": (138, 58, 196), "pink": (244, 96, 178)}

SPEEDS = {"slowly": 0.6, "": 1.0, "quickly": 1.5}


def _swing(u):                                                      # a pendulum, there and back in 3.2 s; the key
    lean = math.radians(40) * np.sin(2 * np.pi / 3.2 * u)           # frame is its lowest point
    return {"dx": 0.32 * np.sin(lean), "dy": 0.32 * (np.cos(lean) - 1), "angle": -lean}


# name -> (the same as a verb, a function of u = speed * (seconds after the key frame)). The function gives the changes
# since the key frame: dx and dy in fractions of the picture, log of the growth of the radius, angle.
MOTIONS = {
    "moving left": ("moves to the left", lambda u: {"dx": -0.1 * u}),
    "moving right": ("moves to the right", lambda u: {"dx": 0.1 * u}),
    "moving up": ("moves upwards", lambda u: {"dy": -0.1 * u}),
    "moving down": ("moves downwards", lambda u: {"dy": 0.1 * u}),
    "growing": ("grows", lambda u: {"growth": math.log(2) / 4 * u}),            # twice the radius in 4 s
    "shrinking": ("shrinks", lambda u: {"growth": -math.log(2) / 4 * u}),
    # At 2 fps 20 degrees a frame, quickly 30: less than half of a star's 72, so one sees which way it turns.
    "turning": ("turns", lambda u: {"angle": math.radians(40) * u}),
    # Hops of 2 s, and once around in 4 s: the key frame is at the top of both.
    "bouncing": ("bounces", lambda u: {"dy": 0.28 * (1 - abs(np.cos(np.pi / 2 * u)))}),
    "circling": ("circles around", lambda u: {"dx": 0.17 * np.sin(np.pi / 2 * u),
                                              "dy": 0.17 * (1 - np.cos(np.pi / 2 * u))}),
    "swinging": ("swings", _swing),
}
STILL = "standing still"                                            # only the second thing of a scene may stand still


def track(motion, u):
    """The change of a thing at u = speed * (t - CENTRE) after the key frame: [4, n] = dx, dy, log growth, angle."""
    u = np.asarray(u, dtype=np.float64)
    changes = {} if motion == STILL else MOTIONS[motion][1](u)
    return np.stack([changes.get(name, 0 * u) for name in ("dx", "dy", "growth", "angle")])


# ---- scenes ---------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Thing:
    """One coloured shape and its motion."""
    shape: str
    colour: str
    motion: str
    speed: str                  # a key of SPEEDS
    x: float                    # its centre and radius in the key frame
    y: float
    radius: float

    def at(self, times):
        """Its x, y, radius and angle at these seconds: [4, n]."""
        dx, dy, growth, angle = track(self.motion, SPEEDS[self.speed] * (np.asarray(times) - CENTRE))
        return np.stack([self.x + dx, self.y + dy, self.radius * np.exp(growth), angle])


@dataclass(frozen=True)
class Background:
    """One colour flows into another: along a line ("slope"), around a spot ("glow"), at a soft horizon ("floor")."""
    kind: str
    colours: tuple              # two RGB triples, pale or dark but never vivid: the things must stand out
    x: float                    # glow: the spot (x, y); floor: the horizon is at y; slope: its direction is (x, y)
    y: float


@dataclass(frozen=True)
class Scene:
    """The content of a clip. `caption` describes it, `render` draws it."""
    things: tuple               # one or two Things, never touching
    background: Background

    def caption(self, wording=0):
        """The scene in one of WORDINGS wordings. Wording 0 is the plain one: "a red circle slowly moving left"."""
        captions = [_describe(thing, wording) for thing in self.things]
        return " and ".join(" ".join(caption.split()) for caption in captions)      # an empty speed leaves two spaces


WORDINGS = 5


def _describe(thing, wording):
    shape, colour, motion, speed = thing.shape, thing.colour, thing.motion, thing.speed
    verb = "stands still" if motion == STILL else MOTIONS[motion][0]
    a = "an" if colour[0] in "aeiou" else "a"
    return (f"{a} {colour} {shape} {speed} {motion}",
            f"a {shape} that is {colour} {verb} {speed}",
            f"the {colour} {shape} is {speed} {motion}",
            f"{colour} {shape}, {motion} {speed}",
            f"{a} {colour} {shape} {speed} {verb}")[wording % WORDINGS]


def is_held_out(shape, colour, motion):
    """Whether training never shows this triple: one of the ten motions of each shape in each colour, so a tenth.

    Every pair of words is still in the training set; only the three together are new.
    """
    if motion == STILL:
        return False
    shape, colour, motion = list(SHAPES).index(shape), list(COLOURS).index(colour), list(MOTIONS).index(motion)
    return (3 * shape + 7 * colour + motion) % 10 == 0


# ---- random scenes --------------------------------------------------------------------------------------------------

BACKGROUNDS = [((250, 243, 230), (226, 214, 200)), ((236, 242, 248), (196, 208, 222)),       # pale: cream, sky,
               ((246, 232, 230), (222, 204, 208)), ((232, 240, 230), (198, 212, 200)),       # blush, sage,
               ((240, 236, 248), (206, 200, 222)), ((244, 244, 242), (204, 206, 210)),       # lilac, white;
               ((88, 96, 116), (40, 44, 62)), ((94, 88, 104), (44, 40, 54)),                 # dark: navy, plum,
               ((84, 98, 98), (36, 46, 50)), ((150, 158, 170), (108, 114, 128))]             # pine, slate
MOMENTS = np.linspace(0, SECONDS, 65)                               # the times at which paths are checked


def _choose(rng, options):
    return list(options)[rng.integers(len(options))]


def _sample_background(rng):
    kind, colours = _choose(rng, ("slope", "glow", "floor")), _choose(rng, BACKGROUNDS)
    if kind == "slope":
        angle = rng.uniform(-1, 1)                                  # the light comes roughly from above
        return Background(kind, colours, math.sin(angle), math.cos(angle))
    return Background(kind, colours, rng.uniform(0.25, 0.75), rng.uniform(0.2, 0.5) + 0.35 * (kind == "floor"))


def _sample_words(rng, held_out=False, still=False):
    while True:                                                     # one triple in ten is held out
        motion = STILL if still else _choose(rng, MOTIONS)
        shape, colour = _choose(rng, SHAPES), _choose(rng, COLOURS)
        if is_held_out(shape, colour, motion) == held_out and not (motion == "turning" and shape in ROUND):
            return shape, colour, motion, "" if still else _choose(rng, SPEEDS)


def _sample_thing(rng, shape, colour, motion, speed, small):
    """A thing of these words whose whole path lies within the picture."""
    low, high = (0.14, 0.17) if motion in ("growing", "shrinking") else (0.12, 0.18)
    radius = rng.uniform(low, high) * (0.8 if small else 1)
    x, y, r, _ = Thing(shape, colour, motion, speed, 0.0, 0.0, radius).at(MOMENTS)
    x, y = (rng.uniform((0.02 + r - path).max(), (0.98 - r - path).min()) for path in (x, y))
    return Thing(shape, colour, motion, speed, float(x), float(y), float(radius))


def sample_scene(seed, held_out=False, things=None):
    """The scene of a seed, an int or a list of ints. `things` is 1 or 2; None gives a quarter of the scenes two.

    The first thing of a held-out scene is a held-out triple. No other thing, in any scene, is one.
    """
    rng = np.random.default_rng(seed)
    count = things or (2 if rng.random() < 0.25 else 1)
    if count not in (1, 2):
        raise ValueError(f"a scene has one or two things, not {count}")
    background = _sample_background(rng)
    while True:
        first = _sample_thing(rng, *_sample_words(rng, held_out), small=count == 2)
        if count == 1:
            return Scene((first,), background)
        for _ in range(20):                                         # 97 % find a second thing in 20 tries
            second = _sample_thing(rng, *_sample_words(rng, still=rng.random() < 0.4), small=True)
            (xa, ya, ra, _), (xb, yb, rb, _) = first.at(MOMENTS), second.at(MOMENTS)
            apart = np.hypot(xa - xb, ya - yb) > ra + rb + 0.04     # a gap that one sees
            if second.colour != first.colour and np.all(apart):
                return Scene((first, second), background)


def scene_of(shape, colour, motion, speed="", seed=0):
    """A scene of this one thing. The seed chooses place, size and background."""
    rng = np.random.default_rng(seed)
    background = _sample_background(rng)
    return Scene((_sample_thing(rng, shape, colour, motion, speed, small=False),), background)


# ---- drawing --------------------------------------------------------------------------------------------------------

def _smoothstep(x):
    """0 below 0, 1 above 1, and a smooth S between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _paint_background(ground, size):
    """The background alone: float32 [size, size, 3]."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = centres[None, :], centres[:, None]
    if ground.kind == "slope":
        mix = _smoothstep(0.5 + ((x - 0.5) * ground.x + (y - 0.5) * ground.y) * 0.9)
    elif ground.kind == "glow":
        mix = _smoothstep(np.hypot(x - ground.x, y - ground.y) * 1.1)
    else:                                                           # the floor, with a little light from the left
        mix = 0.8 * _smoothstep((y - ground.y) / 0.08 + 0.5) + 0.2 * _smoothstep(0.5 * x + 0.5 * y)
    light, dark = np.float32(ground.colours)
    return light + mix[..., None] * (dark - light)


def _paint(picture, thing, x, y, radius, angle):
    """Draws one thing into picture, uint8 [size, size, 3], in place. Changes only a box around it and its shadow."""
    size = len(picture)
    left, top = (max(0, math.floor((p - 1.3 * radius) * size)) for p in (x, y))
    right, bottom = (math.ceil((p + 1.75 * radius) * size) for p in (x, y))
    box = picture[top:bottom, left:right]
    h, w, _ = box.shape
    px = (((np.arange(left, left + w) + 0.5) / size - x) / radius).astype(np.float32)[None, :]      # pixel centres, in
    py = (((np.arange(top, top + h) + 0.5) / size - y) / radius).astype(np.float32)[:, None]        # units of radius
    cos, sin = math.cos(angle), math.sin(angle)

    def distance(px, py):                                           # of the turned shape
        return SHAPES[thing.shape](cos * px + sin * py, cos * py - sin * px)

    below = np.maximum(distance(px - 0.16, py - 0.26), np.hypot(px - 0.16, py - 0.26) - 1)     # shortens tips
    shadow = 0.34 * _smoothstep(0.5 - below / 0.7)
    inside = np.clip(0.5 - distance(px, py) * (radius * size), 0, 1)[..., None]                 # an edge of one pixel
    light = 1.02 - 0.13 * (px + py)                                                             # from the upper left
    shine = 0.22 * np.exp(-5 * ((px + 0.32) ** 2 + (py + 0.36) ** 2))[..., None]
    colour = np.float32(COLOURS[thing.colour]) * light[..., None]
    colour += shine * (255 - colour)
    under = box * (1 - shadow[..., None])
    box[:] = np.clip(under + inside * (colour - under) + 0.5, 0, 255)


def render(scene, times, size=128):
    """The scene at these seconds: uint8 [n, size, size, 3]. Raises ValueError for a time outside [0, 4]."""
    times = np.asarray(times, dtype=np.float64).reshape(-1)
    if len(times) and not (times.min() > -1e-6 and times.max() < SECONDS + 1e-6):
        raise ValueError(f"a scene lasts from 0 to {SECONDS:g} s, asked for {times.min():g} to {times.max():g} s")
    ground = (_paint_background(scene.background, size) + 0.5).astype(np.uint8)
    frames = np.repeat(ground[None], len(times), axis=0)            # [n, size, size, 3]
    for thing in scene.things:
        for frame, state in zip(frames, thing.at(times).T):
            _paint(frame, thing, *state)
    return frames


# ---- the dataset ----------------------------------------------------------------------------------------------------

def frame_times(n=9, fps=2.0):
    """The seconds of n frames around the key frame, which has index n // 2."""
    return CENTRE + (np.arange(n) - n // 2) / fps


class ToySet(torch.utils.data.Dataset):
    """`count` clips; item i is always the same clip. frames=1 gives key frames, for the image model.

    windows: frame rates, for temporal super-resolution. If given, they replace `fps`: item i is a window at one of
    them, at a random place of the 4 s, and its caption names the rate. Raises ValueError if 4 s hold too few frames.
    """

    def __init__(self, count, frames=9, fps=2.0, size=128, seed=0, held_out=False, windows=()):
        self.count, self.frames, self.fps, self.size, self.seed = count, frames, fps, size, seed
        self.held_out, self.windows = held_out, windows
        slowest, steps = (min(windows), frames - 1) if windows else (fps, 2 * (frames // 2))    # both ways from CENTRE
        if steps / slowest > SECONDS:
            raise ValueError(f"{frames} frames at {slowest:g} fps: a toy clip lasts {SECONDS:g} s; want fewer frames "
                             "or a higher rate")

    def __len__(self):
        return self.count

    def scene(self, i):
        """The Scene of item i."""
        return sample_scene([self.seed, i], self.held_out)

    def captions(self):
        """A caption of each item, in all wordings by turns. The tokenizer learns its merges from them."""
        return [self.scene(i).caption(i) for i in range(self.count)]

    def times(self, i):
        """The seconds of the frames of item i."""
        if not self.windows:
            return frame_times(self.frames, self.fps)
        rate = self.windows[i % len(self.windows)]
        start = np.random.default_rng([self.seed, i, 2]).uniform(0, SECONDS - (self.frames - 1) / rate)
        return start + np.arange(self.frames) / rate

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(i)
        scene, wording = self.scene(i), np.random.default_rng([self.seed, i, 1]).integers(WORDINGS)
        frames = torch.from_numpy(render(scene, self.times(i), self.size))                      # [n, H, W, 3]
        caption = scene.caption(wording)
        if self.windows:
            caption = with_fps(caption, self.windows[i % len(self.windows)])
        return {"frames": frames.permute(3, 0, 1, 2).contiguous(), "caption": caption, "name": f"toy clip {i}"}

def draw(args):
    """Writes the contact sheet that the command line asks for."""
    check_output(args.out, [".png"])
    write_sheet(ToySet(args.clips, args.frames, args.fps, args.size, args.seed, args.held_out), args.out)
    print(f"{args.out}: {args.clips} clips of {args.frames} frames")


def main(argv=None):
    """The command line; see the top of the file. Returns the exit code."""
    parser = ArgumentParser("python -m data.toyset", description="Draw a contact sheet of the toy set, one clip a row.")
    add = parser.add_argument
    add("--out", type=Path, default="toyset.png", help="the picture to write, a .png (default toyset.png)")
    add("--clips", type=positive_int, default=12, help="how many clips (default 12)")
    add("--frames", type=positive_int, default=9, help="frames of each, n (default 9)")
    add("--fps", type=fps, default=2.0, help="frames a second (default 2, so that 9 frames are 4 s)")
    add("--size", type=positive_int, default=128, help="pixels a side of a frame (default 128)")
    add("--seed", type=natural, default=0, help="seed of the set (default 0)")
    add("--held-out", action="store_true", help="draw the held-out triples")
    return run(parser.prog, draw, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
