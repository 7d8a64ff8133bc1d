"""The data: Sec. 4 "Datasets", with a toy world in the place of WebVid-10M. (clips.py reads folders of real clips.)

in    a seed                     -> a Scene, and from it any frame of its four seconds at any frame rate and size
out   ToySet[i]                  -> {"frames": uint8 [3, n, H, W], "caption": str, "name": str}
here  SHAPES, COLOURS, MOTIONS, SPEEDS, Thing, Scene, sample_scene, scene_of, is_held_out, track, render, ToySet; paced
ours  The paper trains on WebVid-10M (withdrawn in February 2024). Here every clip is drawn: one or two coloured
      shapes that move, grow, turn, bounce. A clip lasts 4 s, which is 9 frames at 2 fps (Sec. 4.1), and its centre
      t = 2 s is the key frame. Every motion passes through the key frame upright and at a fixed phase, so that key
      frame and caption together determine the clip. Never mirror a clip: the captions say left and right.
      A tenth of the (shape, colour, motion) triples never appears in training, so that one can ask for the unseen.

Places and sizes are fractions of the picture, x to the right and y down; angles are radians, clockwise on the screen.

    python data.py --out toyset.png --seed 0            # a contact sheet of the set: one clip a row, its caption below
    python data.py filter my_clips/                     # the paper's filter on a folder of real clips: filtering.py
"""
import math, sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from files import ArgumentParser, beside, check_output, contact_sheet

SECONDS, CENTRE = 4.0, 2.0          # a clip's length, and the time of its key frame


# ---- the words of the toy world -----------------------------------------------------------------------------------
# A shape is its signed distance: negative inside, in units of the radius of the circle around it, of slope 1 near its
# edge. Its origin is its centre of area, so that turning it does not make it wander.

def _box(x, y, w, h, rounded=0.08):
    dx, dy = abs(x) - (w - rounded), abs(y) - (h - rounded)
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - rounded


def _triangle(x, y):
    return np.maximum(y, abs(x) * math.sqrt(0.75) - y / 2) - 0.48


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
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": lambda x, y: np.minimum(_box(x, y, 0.92, 0.31), _box(x, y, 0.31, 0.92)),
    "moon": lambda x, y: np.maximum(np.hypot(x - 0.262, y) - 0.78, 0.563 - np.hypot(x - 0.563, y)),
}
ROUND = ("circle", "ring")                                          # nobody can see these turn

COLOURS = {"red": (222, 44, 52), "orange": (244, 128, 24), "yellow": (246, 204, 44), "green": (36, 176, 64),
           "turquoise": (38, 186, 190), "blue": (44, 92, 226), "purple": (138, 58, 196), "pink": (244, 96, 178)}

SPEEDS = {"slowly": 0.6, "": 1.0, "quickly": 1.5}


def _along(dx=0.0, dy=0.0, grow=0.0, turn=0.0):
    return lambda u: (dx * u, dy * u, grow * u, turn * u)


def _bounce(u):                                                     # hops of 2 s; the key frame is the top of one
    return 0 * u, 0.28 * (1 - abs(np.cos(np.pi / 2 * u))), 0 * u, 0 * u


def _circle(u):                                                     # once around in 4 s; the key frame is at the top
    return 0.17 * np.sin(np.pi / 2 * u), 0.17 * (1 - np.cos(np.pi / 2 * u)), 0 * u, 0 * u


def _swing(u):                                                      # a pendulum, there and back in 3.2 s; the key
    lean = math.radians(40) * np.sin(2 * np.pi / 3.2 * u)           # frame is its lowest point
    return 0.32 * np.sin(lean), 0.32 * (np.cos(lean) - 1), 0 * u, -lean


# name -> (the same as a verb, its track). A track maps u = speed * (seconds from the key frame) to what has changed
# since the key frame: dx, dy (fractions of the picture), log of the growth of the radius, angle.
MOTIONS = {
    "moving left": ("moves to the left", _along(dx=-0.1)),
    "moving right": ("moves to the right", _along(dx=0.1)),
    "moving up": ("moves upwards", _along(dy=-0.1)),
    "moving down": ("moves downwards", _along(dy=0.1)),
    "growing": ("grows", _along(grow=math.log(2) / 4)),             # twice the radius in 4 s
    "shrinking": ("shrinks", _along(grow=-math.log(2) / 4)),
    "turning": ("turns", _along(turn=math.radians(40))),            # 20 degrees a frame at 2 fps, 30 quickly: a star
    "bouncing": ("bounces", _bounce),                               # looks the same after 72, so its sense shows
    "circling": ("circles around", _circle),
    "swinging": ("swings", _swing),
}
STILL = "standing still"                                            # only ever said of the second thing


def track(motion, u):
    """What a motion has changed u = speed * (t - CENTRE) after the key frame: [4, n] = dx, dy, log growth, angle."""
    u = np.asarray(u, dtype=np.float64)
    return np.stack(MOTIONS[motion][1](u) if motion != STILL else (0 * u,) * 4)


# ---- scenes ---------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Thing:
    """One coloured shape and its motion; `at` says where it is when."""
    shape: str
    colour: str
    motion: str
    speed: str                  # a word of SPEEDS
    x: float                    # where it is and how large, in the key frame
    y: float
    radius: float

    def at(self, times):
        """[4, n]: x, y, radius, angle at these seconds."""
        dx, dy, growth, angle = track(self.motion, SPEEDS[self.speed] * (np.asarray(times) - CENTRE))
        return np.stack([self.x + dx, self.y + dy, self.radius * np.exp(growth), angle])


@dataclass(frozen=True)
class Background:
    """One colour flows into another: along a line ("slope"), around a spot ("glow"), at a soft horizon ("floor")."""
    kind: str
    colours: tuple              # two RGB triples, pale or dark but never vivid: the things must stand out
    x: float                    # the spot; a floor lies at y, a slope falls along (x, y) seen from the middle
    y: float


@dataclass(frozen=True)
class Scene:
    """What a clip shows; `caption` says it in words, `render` draws it."""
    things: tuple               # one or two Things, never touching
    background: Background

    def caption(self, wording=0):
        """The scene in words, WORDINGS ways. Wording 0 is the plain one: "a red circle slowly moving left"."""
        return " and ".join(" ".join(_words(thing, wording).split()) for thing in self.things)


WORDINGS = 5


def _words(thing, wording):
    shape, colour, motion, speed = thing.shape, thing.colour, thing.motion, thing.speed
    verb = "stands still" if motion == STILL else MOTIONS[motion][0]
    a = "an" if colour[0] in "aeiou" else "a"
    return (f"{a} {colour} {shape} {speed} {motion}",
            f"a {shape} that is {colour} {verb} {speed}",
            f"the {colour} {shape} is {speed} {motion}",
            f"{colour} {shape}, {motion} {speed}",
            f"{a} {colour} {shape} {speed} {verb}")[wording % WORDINGS]


def is_held_out(shape, colour, motion):
    """A fixed tenth of the triples, kept from training: of the ten motions of each shape in each colour, one. So every
    pair of words is still learnt, and only the three together are new."""
    if motion == STILL:
        return False
    shape, colour, motion = list(SHAPES).index(shape), list(COLOURS).index(colour), list(MOTIONS).index(motion)
    return (3 * shape + 7 * colour + motion) % 10 == 0


BACKGROUNDS = [((250, 243, 230), (226, 214, 200)), ((236, 242, 248), (196, 208, 222)),       # pale: cream, sky,
               ((246, 232, 230), (222, 204, 208)), ((232, 240, 230), (198, 212, 200)),       # blush, sage,
               ((240, 236, 248), (206, 200, 222)), ((244, 244, 242), (204, 206, 210)),       # lilac, white;
               ((88, 96, 116), (40, 44, 62)), ((94, 88, 104), (44, 40, 54)),                 # dark: navy, plum,
               ((84, 98, 98), (36, 46, 50)), ((150, 158, 170), (108, 114, 128))]             # pine, slate


def _draw_background(rng):
    kind = ("slope", "glow", "floor")[rng.integers(3)]
    light, dark = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    if kind == "slope":
        angle = rng.uniform(-1, 1)                                  # lit from above, more or less
        return Background(kind, (light, dark), math.sin(angle), math.cos(angle))
    return Background(kind, (light, dark), rng.uniform(0.25, 0.75), rng.uniform(0.2, 0.5) + 0.35 * (kind == "floor"))


def _draw_thing(rng, shape, colour, motion, speed, small):
    """A thing whose whole path, with its own radius, lies within the picture."""
    low, high = (0.14, 0.17) if motion in ("growing", "shrinking") else (0.12, 0.18)
    radius = rng.uniform(low, high) * (0.8 if small else 1)
    x, y, r, _ = Thing(shape, colour, motion, speed, 0.0, 0.0, radius).at(np.linspace(0, SECONDS, 65))
    x, y = (rng.uniform((0.02 + r - path).max(), (0.98 - r - path).min()) for path in (x, y))
    return Thing(shape, colour, motion, speed, float(x), float(y), float(radius))


def _draw_words(rng, held_out=False, still=False):
    while True:                                                     # one draw in ten is of the other kind
        motion = STILL if still else list(MOTIONS)[rng.integers(len(MOTIONS))]
        shape, colour = list(SHAPES)[rng.integers(len(SHAPES))], list(COLOURS)[rng.integers(len(COLOURS))]
        if is_held_out(shape, colour, motion) == held_out and not (motion == "turning" and shape in ROUND):
            return shape, colour, motion, "" if still else list(SPEEDS)[rng.integers(len(SPEEDS))]


def sample_scene(seed, held_out=False, things=None):
    """The scene of a seed (an int or a list of ints). A held-out scene's first thing is a held-out triple; no other
    thing, in either kind of scene, is one. things: 1 or 2; left open, a quarter of the scenes has two."""
    rng = np.random.default_rng(seed)
    count = things or 1 + (rng.random() < 0.25)
    if count not in (1, 2):
        raise ValueError(f"a scene has one or two things, not {count}")
    background, times = _draw_background(rng), np.linspace(0, SECONDS, 65)
    while True:
        first = _draw_thing(rng, *_draw_words(rng, held_out), small=count == 2)
        if count == 1:
            return Scene((first,), background)
        for _ in range(20):
            second = _draw_thing(rng, *_draw_words(rng, still=rng.random() < 0.4), small=True)
            (xa, ya, ra, _), (xb, yb, rb, _) = first.at(times), second.at(times)
            if second.colour != first.colour and np.all(np.hypot(xa - xb, ya - yb) > ra + rb + 0.04):
                return Scene((first, second), background)


def scene_of(shape, colour, motion, speed="", seed=0):
    """A scene of this one thing; the seed chooses place, size and background."""
    rng = np.random.default_rng(seed)
    background = _draw_background(rng)
    return Scene((_draw_thing(rng, shape, colour, motion, speed, small=False),), background)


# ---- drawing --------------------------------------------------------------------------------------------------------

def _smooth(x):
    """0 below 0, 1 above 1, and a soft S between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _paint_background(ground, size):
    """float32 [size, size, 3]"""
    at = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = at[None, :], at[:, None]
    if ground.kind == "slope":
        mix = _smooth(0.5 + ((x - 0.5) * ground.x + (y - 0.5) * ground.y) * 0.9)
    elif ground.kind == "glow":
        mix = _smooth(np.hypot(x - ground.x, y - ground.y) * 1.1)
    else:                                                           # the floor, and a little light from the left on it
        mix = 0.8 * _smooth((y - ground.y) / 0.08 + 0.5) + 0.2 * _smooth(0.5 * x + 0.5 * y)
    light, dark = np.float32(ground.colours)
    return light + mix[..., None] * (dark - light)


def _paint(picture, thing, x, y, radius, angle):
    """Draw one thing into a uint8 picture [size, size, 3], in place; only the box around it and its shadow changes."""
    size = len(picture)
    left, top = (max(0, math.floor((p - 1.3 * radius) * size)) for p in (x, y))
    right, bottom = (math.ceil((p + 1.75 * radius) * size) for p in (x, y))
    box = picture[top:bottom, left:right]
    h, w, _ = box.shape
    px = (((np.arange(left, left + w) + 0.5) / size - x) / radius).astype(np.float32)[None, :]     # in units of the
    py = (((np.arange(top, top + h) + 0.5) / size - y) / radius).astype(np.float32)[:, None]       # radius
    cos, sin = math.cos(angle), math.sin(angle)

    def distance(px, py):                                                                   # turned back upright
        return SHAPES[thing.shape](cos * px + sin * py, cos * py - sin * px)

    below = np.maximum(distance(px - 0.16, py - 0.26), np.hypot(px - 0.16, py - 0.26) - 1)  # keeps tips short
    shadow = 0.34 * _smooth(0.5 - below / 0.7)
    inside = np.clip(0.5 - distance(px, py) * (radius * size), 0, 1)[..., None]             # an edge of one pixel
    light = 1.02 - 0.13 * (px + py)                                                         # from the upper left
    shine = 0.22 * np.exp(-5 * ((px + 0.32) ** 2 + (py + 0.36) ** 2))[..., None]
    colour = np.float32(COLOURS[thing.colour]) * light[..., None]
    colour += shine * (255 - colour)
    under = box * (1 - shadow[..., None])
    box[:] = np.clip(under + inside * (colour - under) + 0.5, 0, 255)


def render(scene, times, size=128):
    """The scene at these seconds, each in [0, 4]: uint8 [n, size, size, 3]."""
    times = np.asarray(times, dtype=np.float64).reshape(-1)
    if len(times) and not (times.min() > -1e-6 and times.max() < SECONDS + 1e-6):
        raise ValueError(f"a scene lasts from 0 to {SECONDS:g} s, asked for {times.min():g} to {times.max():g} s")
    ground = (_paint_background(scene.background, size) + 0.5).astype(np.uint8)
    frames = np.repeat(ground[None], len(times), axis=0)            # [n, size, size, 3]
    for thing in scene.things:
        for frame, where in zip(frames, thing.at(times).T):
            _paint(frame, thing, *where)
    return frames


def frame_times(n=9, fps=2.0):
    """Seconds of n frames around the key frame, which is number n // 2: 4 of 9."""
    return CENTRE + (np.arange(n) - n // 2) / fps


def paced(caption, fps):
    """The caption that tells temporal super-resolution at what rate its frames will be: "8 fps, a red circle swinging".

    The two ends alone do not say how long it takes from one to the other: a pendulum seen twice at the same place has
    gone there and back, or has hardly moved. (The rate in front of the text: Hong et al. 2022, CogVideo.)
    """
    return f"{fps:g} fps, {caption}"


class ToySet(torch.utils.data.Dataset):
    """Item i is the same clip whenever and wherever it is drawn. frames=1 gives key frames, for the image model.

    windows: frame rates; if any are named, item i is a window at one of them, anywhere in the 4 s, and not at `fps`;
    its caption says at which.
    """

    def __init__(self, count, frames=9, fps=2.0, size=128, seed=0, held_out=False, windows=()):
        self.count, self.frames, self.fps, self.size, self.seed = count, frames, fps, size, seed
        self.held_out, self.windows = held_out, windows
        rate, steps = (min(windows), frames - 1) if windows else (fps, 2 * (frames // 2))   # both ways from CENTRE
        if steps / rate > SECONDS:
            raise ValueError(f"{frames} frames at {rate:g} fps: a toy clip lasts {SECONDS:g} s; want fewer or faster")

    def __len__(self):
        return self.count

    def scene(self, i):
        return sample_scene([self.seed, i], self.held_out)

    def captions(self):
        """Of all items, in all wordings, for the tokenizer to learn its merges from."""
        return [self.scene(i).caption(i) for i in range(self.count)]

    def times(self, i):
        """The seconds of its frames."""
        if not self.windows:
            return frame_times(self.frames, self.fps)
        fps = self.windows[i % len(self.windows)]
        start = np.random.default_rng([self.seed, i, 2]).uniform(0, SECONDS - (self.frames - 1) / fps)
        return start + np.arange(self.frames) / fps

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(i)
        scene, wording = self.scene(i), np.random.default_rng([self.seed, i, 1]).integers(WORDINGS)
        frames = torch.from_numpy(render(scene, self.times(i), self.size))          # [n, H, W, 3]
        caption = scene.caption(wording)
        return {"frames": frames.permute(3, 0, 1, 2).contiguous(), "name": f"toy clip {i}",
                "caption": paced(caption, self.windows[i % len(self.windows)]) if self.windows else caption}


def main():
    """Draws the contact sheet, or filters a folder of clips; see the top of the file."""
    if sys.argv[1:2] == ["filter"]:
        import filtering                                            # which reads clips.py and clip.py, not needed else
        return filtering.main(sys.argv[2:])
    parser = ArgumentParser(description="Draw a contact sheet of the toy set, one clip a row.")
    parser.add_argument("--out", default="toyset.png", help="the picture to write, a .png (default toyset.png)")
    parser.add_argument("--clips", type=int, default=12, help="how many clips (default 12)")
    parser.add_argument("--frames", type=int, default=9, help="frames of each, n (default 9)")
    parser.add_argument("--fps", type=float, default=2.0, help="frames a second (default 2, so that 9 frames are 4 s)")
    parser.add_argument("--size", type=int, default=128, help="pixels a side of a frame (default 128)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the set (default 0)")
    parser.add_argument("--held-out", action="store_true", help="the triples kept from training")
    args = parser.parse_args()
    out = Path(args.out)
    try:
        if min(args.clips, args.frames, args.size) < 1 or args.seed < 0 or not 0 < args.fps <= 1000:
            raise ValueError("--clips, --frames, --size and --fps must be positive, --fps at most 1000, and --seed not "
                             "negative")
        if out.suffix.lower() != ".png":
            raise ValueError(f"{out}: a contact sheet is a .png")
        check_output(out)
        toys = ToySet(args.clips, args.frames, args.fps, args.size, args.seed, args.held_out)
        clips = [(item["frames"].permute(1, 2, 3, 0).numpy(), item["caption"]) for item in toys]
        with beside(out) as part:
            contact_sheet(*[clip for clip, _ in clips], captions=[caption for _, caption in clips]).save(part)
    except (ValueError, OSError) as error:
        print(f"data.py: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {args.clips} clips of {args.frames} frames")


if __name__ == "__main__":
    sys.exit(main())
