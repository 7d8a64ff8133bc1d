"""Composes layered pixel-art characters into a folder of clips for `train.py --data`. A script, not a test.

    python tests/make_sprites.py path/to/lpc_sprites my_sprites                  1,296 characters, 9 clips of each
    python tests/make_sprites.py path/to/lpc_sprites my_sprites --clips 2000     2,000 of these clips

in   the layers of the "Sprites" set (Li and Mandt 2018; GitHub YingzhenLi/Sprites; CC BY-SA 3.0 or GPL 3.0): a folder
     for each of body, eyes, shoes, bottomwear, topwear and hair with sheets 0.png, 1.png, ... of 13 x 21 cells, and
     attributes.json, which names every layer, the first row of an action, and the directions, one row each
out  my_sprites/clips/NUMBER.webp (8 frames, 8 a second, lossless, on white) and my_sprites/metadata.jsonl

A character is a body, bottomwear, topwear and hair, six of each. A tenth of the characters is held out: with all their
actions and directions. FolderSet holds out every tenth row, so these are the tenth rows of metadata.jsonl.
"""
import functools
import itertools
import json
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from sd21.command import ArgumentParser, positive_int, run
from sd21.files import read_json

GARMENTS = ("body", "bottomwear", "topwear", "hair")                         # these differ; eyes and shoes do not
FIXED = {"eyes": 0, "shoes": 1}
CHOICES, FRAMES, FPS = 6, 8, 8
VERBS = {"walk": "walking", "cast a spell": "casting a spell", "slash": "slashing"}
PLACES = {"down": "towards us", "left": "to the left", "right": "to the right"}


class Layers:
    """The sheets of a folder, read when they are needed."""
    def __init__(self, folder):
        self.folder, self.names = Path(folder), read_json(Path(folder) / "attributes.json")
        self.choices = {garment: min(CHOICES, len(self.names[garment])) for garment in GARMENTS}
        self.sheet = functools.cache(lambda layer, k: Image.open(self.folder / layer / f"{k}.png").convert("RGBA"))

    def cell(self, layer, k, row, column):
        """One cell of the sheet of layer number k."""
        size = self.names["frame"]
        return self.sheet(layer, k).crop((size * column, size * row, size * (column + 1), size * (row + 1)))

    def combinations(self):
        """Every clip as a dict: a number for each garment, an action and a direction; character by character."""
        numbers = itertools.product(*(range(self.choices[garment]) for garment in GARMENTS))
        return [dict(zip(GARMENTS, character)) | {"action": action, "direction": direction}
                for character in numbers for action in VERBS for direction in PLACES]

    def caption(self, clip):
        """The sentence of a clip."""
        looks = ", ".join(self.names[garment][clip[garment]] for garment in ("body", "hair", "topwear", "bottomwear"))
        return f"{VERBS[clip['action']]} {PLACES[clip['direction']]}: {looks}"

    def render(self, clip):
        """The frames of a clip: uint8 [8, size, size, 3]. Shorter actions repeat some frames; walking omits frame 0, in
        which the character stands."""
        action = self.names["actions"][clip["action"]]
        row = action["first_row"] + self.names["directions"].index(clip["direction"])
        first = 1 if clip["action"] == "walk" else 0
        steps, frames = action["frames"] - first, []
        for k in range(FRAMES):
            picture = Image.new("RGBA", (self.names["frame"],) * 2, "white")
            for layer in self.names["layers_bottom_to_top"]:
                number = FIXED[layer] if layer in FIXED else clip[layer]
                picture.alpha_composite(self.cell(layer, number, row, first + k * steps // FRAMES))
            frames.append(np.asarray(picture.convert("RGB")))
        return np.stack(frames)


def split(combinations, clips=None, seed=0):
    """The clips in the order of the metadata: of each ten, the last one shows a held-out character."""
    draw = random.Random(seed)
    character = lambda clip: tuple(clip[garment] for garment in GARMENTS)
    characters = sorted(set(map(character, combinations)))
    held_out = set(draw.sample(characters, max(1, round(len(characters) / 10))))
    draw.shuffle(combinations)
    seen = [clip for clip in combinations if character(clip) not in held_out]
    new = [clip for clip in combinations if character(clip) in held_out]
    tens = min(len(seen) // 9, len(new), *([] if clips is None else [clips // 10]))
    return [clip for k in range(tens) for clip in (*seen[9 * k:9 * k + 9], new[k])]


def write(folder, out, clips):
    """Writes the clips, then the metadata. ValueError if `out` is not empty."""
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: is not empty; name a new folder")
    layers, rows = Layers(folder), []
    (out / "clips").mkdir(parents=True, exist_ok=True)
    for number, clip in enumerate(split(layers.combinations(), clips)):
        name = f"clips/{number:05}.webp"
        first, *others = map(Image.fromarray, layers.render(clip))
        first.save(out / name, save_all=True, append_images=others, duration=1000 // FPS, lossless=True, method=0)
        rows.append({"file_name": name, "text": layers.caption(clip)} | clip)
    (out / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{out}: {len(rows)} clips, every tenth of a held-out character")


def main(argv=None):
    """The command line; see the top of the file. Returns the exit code."""
    parser = ArgumentParser("tests/make_sprites.py", description=__doc__.splitlines()[0])
    parser.add_argument("layers", type=Path, help="folder of layers with attributes.json")
    parser.add_argument("out", type=Path, help="the folder of clips to write")
    parser.add_argument("--clips", type=positive_int, help="how many, a multiple of ten (default: all)")
    args = parser.parse_args(argv)
    return run(parser.prog, write, args.layers, args.out, args.clips)


if __name__ == "__main__":
    sys.exit(main())
