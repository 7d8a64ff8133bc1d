"""The generated dataset: Sec. 4 "Datasets", with a toy world instead of WebVid-10M, which was withdrawn in 2024.

in       a seed     -> a Scene, and from it any frame of its four seconds, at any frame rate and size
out      ToySet[i]  -> {"frames": uint8 [3, n, H, W], "caption": str, "name": str}
our reading  Coloured shapes move for 4 s, 9 frames at 2 fps (Sec. 4.1). In the key frame, at 2 s, each is upright, at
             a fixed phase of its motion: so key frame and caption determine the clip. Never mirror a clip: captions say
             left and right. `python -m data.toyset` draws a contact sheet.
"""
import math
import sys
from collections import namedtuple

import numpy as np
import torch

from data.media import sheet_command
from sd21.command import ArgumentParser, height_width
from sd21.text import with_fps

SECONDS, CENTRE = 4.0, 2.0          # length of a clip, and the time of its key frame


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


# A shape is its signed distance at (x, y): negative inside, with slope 1 near the edge, in units of the radius of the
# circle around it. Its origin is its centroid: so a turning shape stays in place.
SHAPES = {"circle": lambda x, y: np.hypot(x, y) - 0.86,
          "ring": lambda x, y: abs(np.hypot(x, y) - 0.68) - 0.22,
          "square": lambda x, y: _box(x, y, 0.74, 0.74),
          "triangle": lambda x, y: np.maximum(y, abs(x) * math.sqrt(0.75) - y / 2) - 0.48,
          "star": _star, "heart": _heart,
          "cross": lambda x, y: np.minimum(_box(x, y, 0.92, 0.31), _box(x, y, 0.31, 0.92)),
          "moon": lambda x, y: np.maximum(np.hypot(x - 0.262, y) - 0.78, 0.563 - np.hypot(x - 0.563, y))}
ROUND = ("circle", "ring")                                          # these never turn, since nobody could see it
COLOURS = {"red": (222, 44, 52), "orange": (244, 128, 24), "yellow": (246, 204, 44), "green": (36, 176, 64),
           "turquoise": (38, 186, 190), "blue": (44, 92, 226), "purple": (138, 58, 196), "pink": (244, 96, 178)}
SPEEDS = {"slowly": 0.6, "": 1.0, "quickly": 1.5}


def _swing(u):                                                      # a pendulum, there and back in 3.2 s; the key
    lean = math.radians(40) * np.sin(2 * np.pi / 3.2 * u)           # frame is its lowest point
    return {"dx": 0.32 * np.sin(lean), "dy": 0.32 * (np.cos(lean) - 1), "angle": -lean}


# name -> (the same as a verb, a function of u = speed * (seconds after the key frame)). The function gives the changes
# since the key frame: dx and dy, log of the growth of the radius, angle.
MOTIONS = {"moving left": ("moves to the left", lambda u: {"dx": -0.1 * u}),
           "moving right": ("moves to the right", lambda u: {"dx": 0.1 * u}),
           "moving up": ("moves upwards", lambda u: {"dy": -0.1 * u}),
           "moving down": ("moves downwards", lambda u: {"dy": 0.1 * u}),
           "growing": ("grows", lambda u: {"growth": math.log(2) / 4 * u}),                    # twice the radius in 4 s
           "shrinking": ("shrinks", lambda u: {"growth": -math.log(2) / 4 * u}),
           # At 2 fps 20 degrees a frame, quickly 30: less than half of a star's 72, so one sees which way it turns.
           "turning": ("turns", lambda u: {"angle": math.radians(40) * u}),
           # Hops of 2 s, and once around in 4 s: the key frame is at the top of both.
           "bouncing": ("bounces", lambda u: {"dy": 0.28 * (1 - abs(np.cos(np.pi / 2 * u)))}),
           "circling": ("circles around", lambda u: {"dx": 0.17 * np.sin(np.pi / 2 * u),
                                                     "dy": 0.17 * (1 - np.cos(np.pi / 2 * u))}),
           "swinging": ("swings", _swing)}
STILL = "standing still"                                            # only the second thing of a scene may stand still
DESCRIPTIONS = ("{a} {colour} {shape} {speed} {motion}", "a {shape} that is {colour} {verb} {speed}",
                "the {colour} {shape} is {speed} {motion}", "{colour} {shape}, {motion} {speed}",
                "{a} {colour} {shape} {speed} {verb}")
WORDINGS = len(DESCRIPTIONS)


def track(motion, u):
    """The change of a thing at u = speed * (t - CENTRE) after the key frame: [4, n] = dx, dy, log growth, angle."""
    u = np.asarray(u, dtype=np.float64)
    changes = {} if motion == STILL else MOTIONS[motion][1](u)
    return np.stack([changes.get(name, 0 * u) for name in ("dx", "dy", "growth", "angle")])


class Thing(namedtuple("Thing", "shape colour motion speed x y radius")):
    """One coloured shape and its motion: keys of SHAPES, COLOURS, MOTIONS (or STILL) and SPEEDS, then its centre and
    radius in the key frame. Places and sizes are fractions of the picture, x to the right and y down."""
    def at(self, times):
        """Its x, y, radius and angle (radians, clockwise on the screen) at these seconds: [4, n]."""
        dx, dy, growth, angle = track(self.motion, SPEEDS[self.speed] * (np.asarray(times) - CENTRE))
        return np.stack([self.x + dx, self.y + dy, self.radius * np.exp(growth), angle])


Background = namedtuple("Background", "kind colours x y")           # a key of GROUNDS, two RGB triples, and a place


class Scene(namedtuple("Scene", "things background")):
    """The content of a clip: one or two Things, never touching, on a Background."""
    def caption(self, wording=0):
        """The scene in one of WORDINGS wordings. Wording 0 is the plain one: "a red circle slowly moving left"."""
        descriptions = []
        for thing in self.things:
            verb = "stands still" if thing.motion == STILL else MOTIONS[thing.motion][0]
            a = "an" if thing.colour[0] in "aeiou" else "a"
            descriptions.append(DESCRIPTIONS[wording % WORDINGS].format(a=a, verb=verb, **thing._asdict()))
        return " ".join(" and ".join(descriptions).split())         # an empty speed leaves two spaces


def is_held_out(shape, colour, motion):
    """Whether training never shows this triple, a tenth of all. It does show every pair of the three words."""
    number = 3 * list(SHAPES).index(shape) + 7 * list(COLOURS).index(colour)
    return motion != STILL and (number + list(MOTIONS).index(motion)) % 10 == 0


def _smoothstep(x):                                                 # 0 below 0, 1 above 1, and a smooth S between
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


# How one colour flows into another: in the direction (at.x, at.y), around a spot, or at a soft horizon.
GROUNDS = {"slope": lambda x, y, at: _smoothstep(0.5 + ((x - 0.5) * at.x + (y - 0.5) * at.y) * 0.9),
           "glow": lambda x, y, at: _smoothstep(np.hypot(x - at.x, y - at.y) * 1.1),
           "floor": lambda x, y, at: 0.8 * _smoothstep((y - at.y) / 0.08 + 0.5) + 0.2 * _smoothstep(0.5 * x + 0.5 * y)}
# Pale or dark, but never vivid: the things must stand out.
BACKGROUNDS = [((250, 243, 230), (226, 214, 200)), ((236, 242, 248), (196, 208, 222)),       # pale: cream, sky,
               ((246, 232, 230), (222, 204, 208)), ((232, 240, 230), (198, 212, 200)),       # blush, sage,
               ((240, 236, 248), (206, 200, 222)), ((244, 244, 242), (204, 206, 210)),       # lilac, white;
               ((88, 96, 116), (40, 44, 62)), ((94, 88, 104), (44, 40, 54)),                 # dark: navy, plum,
               ((84, 98, 98), (36, 46, 50)), ((150, 158, 170), (108, 114, 128))]             # pine, slate
MOMENTS = np.linspace(0, SECONDS, 65)                               # the times at which paths are checked


def _choose(rng, options):
    return list(options)[rng.integers(len(options))]


def _sample_thing(rng, small, held_out=False, still=False, words=None):
    """A thing of these words, or of random ones, whose whole path lies within the picture."""
    while not words:                                                # one triple in ten is held out
        motion = STILL if still else _choose(rng, MOTIONS)
        shape, colour = _choose(rng, SHAPES), _choose(rng, COLOURS)
        if is_held_out(shape, colour, motion) == held_out and not (motion == "turning" and shape in ROUND):
            words = shape, colour, motion, "" if still else _choose(rng, SPEEDS)
    low, high = (0.14, 0.17) if words[2] in ("growing", "shrinking") else (0.12, 0.18)
    radius = rng.uniform(low, high) * (0.8 if small else 1)
    x, y, r, _ = Thing(*words, 0.0, 0.0, radius).at(MOMENTS)
    return Thing(*words, *(rng.uniform((0.02 + r - path).max(), (0.98 - r - path).min()) for path in (x, y)), radius)


def sample_scene(seed, held_out=False, things=None, words=None):
    """The scene of a seed, an int or a list of ints. `things` is 1 or 2; None gives a quarter of the scenes two. The
    first thing of a held-out scene is a held-out triple, and no other thing is one. words: those of the first thing."""
    rng = np.random.default_rng(seed)
    count = things or (2 if rng.random() < 0.25 else 1)
    kind, colours = _choose(rng, GROUNDS), _choose(rng, BACKGROUNDS)
    if kind == "slope":
        angle = rng.uniform(-1, 1)                                  # the light comes roughly from above
        x, y = math.sin(angle), math.cos(angle)
    else:
        x, y = rng.uniform(0.25, 0.75), rng.uniform(0.2, 0.5) + 0.35 * (kind == "floor")
    background = Background(kind, colours, x, y)
    while True:
        first = _sample_thing(rng, count == 2, held_out, words=words)
        if count == 1:
            return Scene((first,), background)
        for _ in range(20):                                         # 97 % find a second thing in 20 tries
            second = _sample_thing(rng, True, still=rng.random() < 0.4)
            (xa, ya, ra, _), (xb, yb, rb, _) = first.at(MOMENTS), second.at(MOMENTS)
            apart = np.hypot(xa - xb, ya - yb) > ra + rb + 0.04     # a gap that one sees
            if second.colour != first.colour and apart.all():
                return Scene((first, second), background)


def scene_of(shape, colour, motion, speed="", seed=0):
    """A scene of this one thing. The seed chooses place, size and background."""
    return sample_scene(seed, things=1, words=(shape, colour, motion, speed))


def _paint(picture, thing, x, y, radius, angle):
    """Draws one thing into picture, uint8 [size, size, 3], in place. Changes only a box around it and its shadow."""
    size = len(picture)
    left, top = (max(0, math.floor((p - 1.3 * radius) * size)) for p in (x, y))
    right, bottom = (min(size, math.ceil((p + 1.75 * radius) * size)) for p in (x, y))
    px = (((np.arange(left, right) + 0.5) / size - x) / radius).astype(np.float32)[None, :]     # pixel centres, in
    py = (((np.arange(top, bottom) + 0.5) / size - y) / radius).astype(np.float32)[:, None]     # units of radius
    shape, cos, sin = SHAPES[thing.shape], math.cos(angle), math.sin(angle)
    distance = shape(cos * px + sin * py, cos * py - sin * px)                                  # of the turned shape
    inside = np.clip(0.5 - distance * (radius * size), 0, 1)[..., None]                         # an edge of one pixel
    sx, sy = px - 0.16, py - 0.26                                                               # as the shadow sees it
    below = np.maximum(shape(cos * sx + sin * sy, cos * sy - sin * sx), np.hypot(sx, sy) - 1)   # shortens tips
    shadow = 0.34 * _smoothstep(0.5 - below / 0.7)
    shine = 0.22 * np.exp(-5 * ((px + 0.32) ** 2 + (py + 0.36) ** 2))[..., None]
    colour = np.float32(COLOURS[thing.colour]) * (1.02 - 0.13 * (px + py))[..., None]           # lit from upper left
    colour += shine * (255 - colour)
    box = picture[top:bottom, left:right]
    under = box * (1 - shadow[..., None])
    box[:] = np.clip(under + inside * (colour - under) + 0.5, 0, 255)


def side_of(size):
    """The side of a square size. Raises ValueError for any other: places and radii are fractions of one side."""
    height, width = height_width(size)
    if height != width:
        raise ValueError(f"size {size}: the toy world is square; want one number, or clips of your own")
    return width


def render(scene, times, size=128):
    """The scene at these seconds, from 0 to 4: uint8 [n, size, size, 3]. Later a thing may have left the picture."""
    size = side_of(size)
    ground, pixels = scene.background, (np.arange(size, dtype=np.float32) + 0.5) / size          # centres of pixels
    x, y = pixels[None, :], pixels[:, None]
    mix, (light, dark) = GROUNDS[ground.kind](x, y, ground), np.float32(ground.colours)
    picture = (light + mix[..., None] * (dark - light) + 0.5).astype(np.uint8)
    frames = np.repeat(picture[None], len(times), axis=0)           # [n, size, size, 3]
    for thing in scene.things:
        for frame, state in zip(frames, thing.at(times).T):
            _paint(frame, thing, *state)
    return frames


def frame_times(n=9, fps=2.0):
    """The seconds of n frames around the key frame, which has index n // 2."""
    return CENTRE + (np.arange(n) - n // 2) / fps


class ToySet(torch.utils.data.Dataset):
    """`count` clips around their key frames; frames=1 is for the image model. Item i is always the same. windows: frame
    rates that replace `fps` by turns, for temporal super-resolution: such a clip starts anywhere in the 4 s, and its
    caption names the rate. Raises ValueError if 4 s hold too few frames, or for a size that is not square."""
    def __init__(self, count, frames=9, fps=2.0, size=128, seed=0, held_out=False, windows=()):
        self.count, self.frames, self.size, self.seed, self.held_out = count, frames, side_of(size), seed, held_out
        self.windows, self.rates, self.skipped = windows, windows or (fps,), {}
        steps, slowest = (frames - 1 if windows else 2 * (frames // 2)), min(self.rates)        # both ways from CENTRE
        if steps / slowest > SECONDS:
            raise ValueError(f"{frames} frames at {slowest:g} fps: a toy clip lasts {SECONDS:g} s; want fewer frames")

    def __len__(self):
        return self.count

    def summary(self):
        """One line for the command, as of a FolderSet."""
        return f"{self.count} generated clips of {SECONDS:g} s"

    def captions(self):
        """A caption of each item, in all wordings by turns. The tokenizer learns its merges from them."""
        return [sample_scene([self.seed, i], self.held_out).caption(i) for i in range(self.count)]

    def times(self, i):
        """The seconds of the frames of item i."""
        rate = self.rates[i % len(self.rates)]
        if not self.windows:
            return frame_times(self.frames, rate)
        start = np.random.default_rng([self.seed, i, 2]).uniform(0, SECONDS - (self.frames - 1) / rate)
        return start + np.arange(self.frames) / rate

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(i)
        scene = sample_scene([self.seed, i], self.held_out)
        frames = torch.from_numpy(render(scene, self.times(i), self.size))                      # [n, H, W, 3]
        caption = scene.caption(np.random.default_rng([self.seed, i, 1]).integers(WORDINGS))
        caption = with_fps(caption, self.rates[i % len(self.rates)]) if self.windows else caption
        return {"frames": frames.permute(3, 0, 1, 2).contiguous(), "caption": caption, "name": f"toy clip {i}"}


def main(argv=None):
    """The command line; see the top of the file. Returns the exit code."""
    parser = ArgumentParser("python -m data.toyset", description="Draw a contact sheet of the toy set.")
    parser.add_argument("--held-out", action="store_true", help="draw the held-out triples")
    return sheet_command(ToySet, parser, argv, rows="--clips", out="toyset.png")


if __name__ == "__main__":
    sys.exit(main())
