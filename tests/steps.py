"""Which sampler and how many steps does the shipped model need? A script, not a test; docs and config files have its
results.

    python tests/steps.py --seed 0 ddim:50 dpm++:10        solver and steps, of all three stages
    python tests/steps.py --seed 5 ddim:50 shipped         "shipped": the settings in the config.json of each part

A row of each half (prompts seen in training, held out): shape, colour and motion that are right, of its own key frames;
with the true key frame given, the motion and the PSNR of all frames; and of TSR, the PSNR of frames between.
"""
import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from data.media import as_clips, from_pixels
from data.toyset import frame_times, render, sample_scene
from evaluation.measure import average, decibels, score_clip, squared_error
from evaluation.toy_scores import FIRST_SCENE, score_interpolation
from microcinema import MicroCinema


def score_half(cinema, count, seed, held_out, batch, **changes):
    """The cells of a row: {name: number}."""
    scores, errors = {"own": [], "given": []}, []
    for ids in [range(count)[first:first + batch] for first in range(0, count, batch)]:
        scenes = [sample_scene([seed, FIRST_SCENE + i], held_out, things=1) for i in ids]
        prompts, true = [scene.caption() for scene in scenes], np.stack([render(s, frame_times()) for s in scenes])
        x = from_pixels(torch.from_numpy(true[:, 4])).permute(0, 3, 1, 2)    # the true key frames
        for kind, keys in (("own", cinema.key_frame(prompts, ids, **changes)), ("given", x)):
            clips = as_clips(cinema.animate(prompts, keys, ids, **changes))
            scores[kind] += [score_clip(clip, *scene.things) for clip, scene in zip(clips, scenes)]
        errors += [squared_error(*pair) for pair in zip(clips, true)]
    own, given = average(scores["own"]), average(scores["given"])
    return {**{name: own[name] for name in ("shape", "colour", "motion")}, "motion, key given": given["motion"],
            "dB, key given": decibels(np.mean(errors))}


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=128, help="prompts of each half")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    cinema = MicroCinema.load(Path(__file__).parents[1] / "toy", args.device)
    cinema.progress = False
    for settings in args.settings:
        sampler, _, steps = settings.partition(":")
        changes = {"sampler": sampler, "steps": int(steps)} if steps else {}
        for half, held_out in (("seen", False), ("held out", True)):
            cells = score_half(cinema, args.count, args.seed, held_out, args.batch, **changes)
            print(f"{settings} {half}: " + ", ".join(f"{name} {x:.2f}" for name, x in cells.items()), flush=True)
        for fps in (8, 32):
            rows = score_interpolation(cinema, args.count, fps, args.seed, args.batch, **changes)
            print(f"{settings} TSR to {fps} fps: {rows['MicroCinema'][0]:.2f} dB, {rows['MicroCinema'][2]:.3f} pixels")


if __name__ == "__main__":
    main()
