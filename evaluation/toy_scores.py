"""Scores of a model: Sec. 4 "Metrics", as tables in Markdown. No network judges.

    python -m evaluation.toy_scores --prompts 128 --steps 15                  prompts of the toy world
    python -m evaluation.toy_scores --prompts 128 --steps 15 --between        its temporal super-resolution
    python -m evaluation.toy_scores --prompts 64 --data my_clips --weights mine --out strip.png   your held-out clips
"""
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from data.folder import FolderSet
from data.media import SIGNED, as_clips, check_output, contact_sheet, from_pixels
from data.toyset import SECONDS, frame_times, render, sample_scene
from evaluation.measure import average, average_compared, compare, decibels, find, psnr, score_clip, squared_error
from microcinema import UNTRAINED, MicroCinema, Sampling, tsr_condition
from sd21 import command, weights
from sd21.files import atomic_write

# Scene i has the seed [seed, FIRST_... + i]. Training has [seed, i] with i below --clips (50,000): no scene is shared.
FIRST_SCENE, FIRST_TSR_SCENE = 1_000_000, 2_000_000
OPTIONS = ("sampler", "steps", "guidance", "gamma")     # of Sampling, on the command line
DB, PERCENT, RATIO = "{:.1f} dB", "{:.1f} %", "{:.2f}"


def score_model(cinema, count, seed=0, batch=16, held_out=False, **changes):
    """Scores `count` prompts about one thing, seen in training or held out: ({row: {column: number}}, mean PSNR in dB
    of the centre frames if the model is given the true key frames). The noise of prompt i has the seed i. `changes`:
    fields of microcinema.Sampling."""
    scores, centre, times = defaultdict(list), [], frame_times(cinema.settings(**changes).frames)
    c = len(times) // 2
    for ids in [range(count)[first:first + batch] for first in range(0, count, batch)]:
        scenes = [sample_scene([seed, FIRST_SCENE + i], held_out, things=1) for i in ids]
        prompts = [scene.caption() for scene in scenes]
        true = np.stack([render(scene, times, cinema.sampling.size) for scene in scenes])       # [b, n, H, W, 3]
        x = from_pixels(torch.from_numpy(true)).permute(0, 4, 1, 2, 3)
        keys = cinema.key_frame(prompts, ids, **changes)
        videos = {"truth through the autoencoder": cinema.decode(cinema.encode_frames(x)),
                  "MicroCinema": cinema.animate(prompts, keys, ids, **changes),
                  "its key frame repeated": keys[:, :, None].expand(-1, -1, len(times), -1, -1),
                  "without AppearNet and prior": cinema.animate(prompts, keys, ids, appearance=False, **changes)}
        for row, video in videos.items():
            scores[row] += [score_clip(a, *scene.things) for a, scene in zip(as_clips(video), scenes, strict=True)]
        centre += map(psnr, as_clips(cinema.animate(prompts, x[:, :, c], ids, **changes))[:, c], true[:, c])
    return {row: average(values) for row, values in scores.items()}, float(np.mean(centre))


def against_truth(video, true):
    """(mean squared error, mean distance of the things' centres in pixels) of two clips, uint8 [n, H, W, 3]. A frame in
    which `video` shows no thing counts as a distance of half a picture."""
    size, things = true.shape[1], zip(map(find, video), map(find, true), strict=True)
    distances = [np.hypot(a["x"] - b["x"], a["y"] - b["y"]) * size if a else size / 2 for a, b in things]
    return squared_error(video, true), float(np.mean(distances))


def score_interpolation(cinema, count, fps, seed=0, batch=16, **changes):
    """Scores temporal super-resolution to `fps` on `count` held-out scenes: {row: (dB, dB of moving things, pixels)}.
    The toy world is continuous, so the three frames between two that are 4 / fps seconds apart are known. The PSNR is
    of the mean squared error of all frames; pixels: mean distance from the true place of things that change place."""
    scores, moves = defaultdict(list), []
    for ids in [range(count)[first:first + batch] for first in range(0, count, batch)]:
        scenes = [sample_scene([seed, FIRST_TSR_SCENE + i], held_out=True, things=1) for i in ids]
        moves += [scene.things[0].motion not in ("growing", "shrinking", "turning") for scene in scenes]
        times = [np.random.default_rng([seed, i]).uniform(0, SECONDS - 4 / fps) + np.arange(5) / fps for i in ids]
        true = np.stack([render(scene, at, cinema.sampling.size) for scene, at in zip(scenes, times)])
        x = from_pixels(torch.from_numpy(true)).permute(0, 4, 1, 2, 3)                          # [b, 3, 5, H, W]
        z, prompts = cinema.encode_frames(x), [scene.caption() for scene in scenes]             # [b, 4, 5, h, w]
        videos = {"truth through the autoencoder": cinema.decode(z),
                  "cross-fade of pixels": tsr_condition(x[:, :, 0], x[:, :, 4], 5),
                  "cross-fade of latents": cinema.decode(tsr_condition(z[:, :, 0], z[:, :, 4], 5)),
                  "MicroCinema": cinema.interpolate(x[:, :, [0, 4]], prompts, ids, pairs=batch, fps=fps / 4, **changes)}
        for row, video in videos.items():
            scores[row] += [against_truth(a[1:4], b[1:4]) for a, b in zip(as_clips(video), true, strict=True)]
    rows = {row: np.array(values).T for row, values in scores.items()}
    return {row: (decibels(errors.mean()), decibels(errors[moves].mean()), float(distances[moves].mean()))
            for row, (errors, distances) in rows.items()}


def score_clips(cinema, clips, seed=0, batch=16, shown=8, **changes):
    """Scores the model on the windows of a FolderSet, given their key frames: ({row: {column: number}}, strip). strip:
    (caption, true clip, model's clip) of the first `shown` windows, uint8 [n, H, W, 3]. Seed of noise i: seed + i."""
    scores, strip = defaultdict(list), []
    for ids in [range(len(clips))[first:first + batch] for first in range(0, len(clips), batch)]:
        items = [clips[i] for i in ids]
        prompts, x = [item["caption"] for item in items], from_pixels(torch.stack([item["frames"] for item in items]))
        true, keys = as_clips(x), x[:, :, x.shape[2] // 2]                                      # x [b, 3, n, H, W]
        videos = {"truth through the autoencoder": cinema.decode(cinema.encode_frames(x)),
                  "MicroCinema": cinema.animate(prompts, keys, [seed + i for i in ids], **changes),
                  "its key frame repeated": keys[:, :, None].expand_as(x)}
        for row, video in videos.items():
            scores[row] += [compare(a, b) for a, b in zip(as_clips(video), true, strict=True)]
        strip += list(zip(prompts, true, as_clips(videos["MicroCinema"]), strict=True))[:shown - len(strip)]
    return {row: average_compared(values) for row, values in scores.items()}, strip


def print_table(head, formats, rows):
    """Prints a table in Markdown: `head` with " | " between its cells, then {name: numbers}; a nan becomes "-"."""
    print(f"| {head} |\n|{' --- |' * (head.count('|') + 1)}")
    for name, numbers in rows.items():
        cells = ["-" if np.isnan(x) else style.format(x) for style, x in zip(formats, numbers, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")


def score(args):
    """Checks the flags that depend on each other, loads the model and prints its table."""
    if args.prompts < 2 and not (args.data or args.between):
        raise ValueError("--prompts: want 2 or more, half of them seen in training and half held out")
    if (args.fps or args.out) and not args.data:
        raise ValueError(f"--{'fps' if args.fps else 'out'} needs --data")
    if args.out:
        check_output(args.out, (".png", ".webp"), [args.data])
    cinema = MicroCinema.load(args.model, args.device, overlay=args.weights)
    if args.weights:
        print(weights.describe(weights.resolve_components(args.model, args.weights)), end="\n\n")
    if not cinema.trained:
        print(UNTRAINED, end="\n\n")
    changes = {name: getattr(args, name) for name in OPTIONS}
    options, s = dict(seed=args.seed, batch=args.batch, **changes), cinema.settings(**changes)
    if args.between:
        slow, fast = (score_interpolation(cinema, args.prompts, fps, **options) for fps in (8, 32))
        columns = "PSNR | of moving things | position error"
        print_table(f"{args.prompts} held-out clips | 2 to 8 fps: {columns} | 8 to 32 fps: {columns}",
                    [DB, DB, "{:.3f} pixels"] * 2, {row: slow[row] + fast[row] for row in slow})
    elif args.data:
        if s.frames < 2:
            raise ValueError(f"{args.model}: makes videos of {s.frames} frame; want 2 or more to compare")
        clips = FolderSet(args.data, args.prompts, s.frames, args.fps or s.fps, s.size, args.seed, held_out=True)
        rows, strip = score_clips(cinema, clips, **options)
        kind = "held out" if clips.spared else "trained on, too few to hold some out"
        print_table(f"{len(clips)} windows of {len(clips.clips)} clips {kind} | {' | '.join(rows['MicroCinema'])}",
                    [DB, DB, PERCENT, RATIO, RATIO, PERCENT], {row: scores.values() for row, scores in rows.items()})
        if args.out:
            captions = [text for caption, *_ in strip for text in (f"the truth: {caption}", "MicroCinema")]
            with atomic_write(args.out) as part:
                contact_sheet(*[clip for _, *pair in strip for clip in pair], captions=captions).save(part, **SIGNED)
            print(f"\n{args.out}: {len(strip)} of them, the truth above and the model's below")
    else:
        half, rows, centres = args.prompts // 2, {}, []
        for name in ("seen", "held out"):
            scores, centre = score_model(cinema, half, held_out=name == "held out", **options)
            rows |= {f"{row} | {name}": columns.values() for row, columns in scores.items()}
            centres.append(f"{centre:.1f} dB {name}")
        print_table(f"{half} prompts each | | shape | colour | motion | still | speed | colour drift | size drift",
                    [PERCENT] * 4 + [RATIO] + [PERCENT] * 2, rows)
        print("\nCentre frame, true key frame given:", ", ".join(centres))


def main(argv=None):
    """Scores a model and prints a table in Markdown; see the top of the file."""
    parser = command.ArgumentParser("python -m evaluation.toy_scores", description=__doc__.splitlines()[0])
    add, choice = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add("--model", type=Path, default=Path(__file__).parents[1] / "toy", help="model folder (default: the toy model)")
    add("--weights", type=Path, help="what train.py wrote: a folder, whose parts replace the model's, or a video model")
    choice("--data", type=Path, help="score on the held-out clips of a folder with captions (data/folder.py)")
    choice("--between", action="store_true", help="score temporal super-resolution, on held-out clips of the toy world")
    add("--prompts", type=command.positive_int, default=256, help="how many; in the toy world half seen, half held out")
    add("--batch", type=command.positive_int, default=16, help="videos at once")
    add("--seed", type=command.seed, default=0, help="of the prompts or windows, and of the noise")
    sampling = parser.add_argument_group("sampling", "defaults: the model folder's, else the paper's or SD2.1's")
    command.add_options(sampling, Sampling, only=OPTIONS, default=None)
    add("--fps", type=command.fps, help="with --data: frames a second of a window (default: the model's)")
    add("--out", type=Path, help="with --data: a .png or .webp to draw eight windows to, the truth above the model's")
    add("--device", type=command.device, default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, ...")
    return command.run(parser.prog, score, parser.parse_args(argv), out_of_memory="a smaller --batch takes less")


if __name__ == "__main__":
    sys.exit(main())
