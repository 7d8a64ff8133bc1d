"""From a seed to a folder of clips with captions: every number of Sec. 4 is computed on such a folder.

    python -m evaluation.generate ours                        clips of 512 held-out prompts of the toy world
    python -m evaluation.generate ours --key-frames true      stage two alone: the true key frames are given
    python -m evaluation.generate real --truth                the true clips of the same prompts

The folder holds 00000.webp, ... and metadata.jsonl. A command that was stopped goes on where it was.
our reading  WebP at Pillow's quality 92, lossy, for the truth as well: both sides of FVD come from files of one kind.
"""
import argparse
import functools
import itertools
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.media import as_clips, from_pixels, write_video
from data.toyset import CENTRE, frame_times, render, sample_scene, side_of
from evaluation.toy_scores import FIRST_SCENE
from microcinema import MicroCinema, Sampling
from sd21 import command
from sd21.files import atomic_write, read_json, write_json


@functools.cache
def pool():
    """Processes that write and measure clips; None on a machine with few cores. Threads would wait for each other:
    Pillow keeps Python's lock while it encodes."""
    workers = (os.cpu_count() or 1) - 1
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) if workers > 2 else None


def parallel(function, *columns):
    """An iterator of function(*row) for the rows of the columns. All calls are made at once, not when it is read."""
    return pool().map(function, *columns) if pool() else iter([*map(function, *columns)])


def write_clip(clip, path, fps):
    """Writes uint8 [n, H, W, 3] to a file."""
    write_video(torch.from_numpy(clip).permute(3, 0, 1, 2), path, fps)


def fill(folder, captions, make, settings, fps, batch):
    """Writes one clip a caption into a folder, and its metadata. make(numbers) -> uint8 [b, n, H, W, 3]. Makes only
    clips that are not there. ValueError if the folder has clips that were made with other settings."""
    folder, record = Path(folder), Path(folder, "settings.json")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and (not record.exists() or read_json(record) != json.loads(json.dumps(settings))):
        raise ValueError(f"{folder}: its clips were not made with these settings; name a new folder")
    write_json(settings, record)
    paths, writing = [folder / f"{i:05}.webp" for i in range(len(captions))], []
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    for first in tqdm(range(0, len(missing), batch), desc=folder.name, mininterval=2):
        numbers = missing[first:first + batch]
        writing.append(parallel(write_clip, make(numbers), [paths[i] for i in numbers], itertools.repeat(fps)))
    for results in writing:
        list(results)                                               # raises what a process raised
    rows = [{"file_name": path.name, "text": caption} for path, caption in zip(paths, captions)]
    with atomic_write(folder / "metadata.jsonl") as part:
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def held_out_scenes(count, seed=0):
    """Scenes of one thing, whose triple of shape, colour and motion no training shows: those of toy_scores."""
    return [sample_scene([seed, FIRST_SCENE + i], held_out=True, things=1) for i in range(count)]


def prompt_of(scene, kind="caption"):
    """The caption, or Table 3's "simple" prompt: "a video of" and the motion tag."""
    return scene.caption() if kind == "caption" else f"a video of {scene.things[0].motion}"


def draw(scenes, s):
    """The true clips, uint8 [b, n, H, W, 3], of the length, rate and size of a Sampling."""
    return np.stack([render(scene, frame_times(s.frames, s.fps), s.size) for scene in scenes])


def true_key_frames(scenes, size):
    """The key frames of scenes: [b, 3, H, W] in [-1, 1]."""
    pictures = np.concatenate([render(scene, [CENTRE], size) for scene in scenes])
    return from_pixels(torch.from_numpy(pictures)).permute(0, 3, 1, 2)


def maker(cinema, first_stage, scenes, prompts, **changes):
    """make(numbers) for `fill`: clips around the true key frames, or around those that first_stage(prompts, seeds)
    draws, if it is not None. The noise of clip i has the seed i. `changes`: fields of microcinema.Sampling."""
    def make(numbers):
        some, texts = [scenes[i] for i in numbers], [prompts[i] for i in numbers]
        keys = first_stage(texts, numbers) if first_stage else true_key_frames(some, cinema.sampling.size)
        z = cinema.animate_latents(texts, keys, numbers, **changes)
        return as_clips(cinema.decode(z, batch=4 * len(numbers)))   # 4 frames of each at once
    return make


def generate(args):
    """The command: fills the folder."""
    if args.truth and any(x is not None for x in (args.weights, args.steps, args.guidance, args.gamma)):
        raise ValueError("--truth: is drawn, not sampled; leave out --weights, --steps, --guidance and --gamma")
    cinema = MicroCinema.load(args.model, args.device, overlay=args.weights)
    cinema.progress = False
    changes = {key: getattr(args, key) for key in ("steps", "guidance", "gamma", "frames")}
    s, scenes = cinema.settings(**changes), held_out_scenes(args.clips, args.seed)
    side_of(s.size)                                                          # raises ValueError unless it is a square
    prompts = [prompt_of(scene, args.prompts) for scene in scenes]
    settings = {"seed": args.seed, "prompts": args.prompts}
    if args.truth:
        make = lambda numbers: draw([scenes[i] for i in numbers], s)
        settings |= {"frames": s.frames, "fps": s.fps, "size": s.size}
    else:
        first_stage = functools.partial(cinema.key_frame, **changes) if args.key_frames == "generated" else None
        make = maker(cinema, first_stage, scenes, prompts, **changes)
        settings |= asdict(s) | {"key frames": args.key_frames, "model": str(args.model), "weights": str(args.weights)}
    fill(args.out, prompts, make, settings, s.fps, args.batch)
    print(f"{args.out}: {args.clips} clips of {s.frames} frames at {s.fps:g} fps, size {s.size}")


def main(argv=None):
    """The command line; see the top of the file. Returns the exit code."""
    parser = command.ArgumentParser("python -m evaluation.generate", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("out", type=Path, help="folder to fill")
    add("--clips", type=command.positive_int, default=512, help="how many (512)")
    add("--seed", type=command.seed, default=0, help="of the prompts (0)")
    either = parser.add_mutually_exclusive_group().add_argument
    either("--truth", action="store_true", help="write the true clips instead of the model's")
    either("--key-frames", choices=("generated", "true"), default="generated", help="by stage one, or the true ones")
    add("--prompts", choices=("caption", "plain"), default="caption", help="plain: \"a video of\" and a motion")
    add("--model", type=Path, default=Path(__file__).parents[1] / "toy", help="model folder (default: the toy model)")
    add("--weights", type=Path, help="what train.py wrote: its parts replace the model's")
    command.add_options(parser, Sampling, only=("frames", "steps", "guidance", "gamma"), default=None)   # the model's
    add("--batch", type=command.positive_int, default=16, help="clips at once (16)")
    add("--device", type=command.device, default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, ...")
    return command.run(parser.prog, generate, parser.parse_args(argv), stopped="the same command goes on",
                       out_of_memory="a smaller --batch takes less")


if __name__ == "__main__":
    sys.exit(main())
