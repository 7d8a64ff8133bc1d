"""Scores of a model: Sec. 4 "Metrics", as tables in Markdown. No network judges.

in       a model folder
out      the toy world's exact scores, or comparisons with true clips (measure.py)
defines  score_model, score_interpolation, score_clips, and the command:

    python -m evaluation.toy_scores --prompts 128 --steps 15                  prompts of the toy world
    python -m evaluation.toy_scores --prompts 128 --steps 15 --between        its temporal super-resolution
    python -m evaluation.toy_scores --prompts 64 --data my_clips --weights mine --out strip.png   your held-out clips
"""
import math
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from data.folder import FolderSet
from data.media import check_output, contact_sheet, from_pixels, to_pixels
from data.toyset import SECONDS, frame_times, render, sample_scene
from evaluation.measure import COLUMNS, average, average_compared, compare, decibels, find, psnr, score_clip
from evaluation.measure import squared_error
from microcinema import UNTRAINED, MicroCinema, tsr_condition
from sd21 import command, weights
from sd21.files import atomic_write

# Scene i of a table has the seed [seed, FIRST_... + i]. ToySet draws its scene i, for training, from [seed, i] with i
# below --clips (50,000 by default). So the tables share no scene with training, nor with each other.
FIRST_SCENE, FIRST_TSR_SCENE = 1_000_000, 2_000_000


def as_clips(videos):
    """Videos [b, 3, n, H, W] in [-1, 1] -> uint8 [b, n, H, W, 3]."""
    return to_pixels(videos).permute(0, 2, 3, 4, 1).cpu().numpy()


def score_model(cinema, count, seed=0, batch=16, held_out=False, **changes):
    """Scores `count` prompts about one thing, seen in training or held out: ({row: {column: number}}, PSNR in dB).

    Rows: the true clip through the autoencoder; the model, with a key frame that it drew; that key frame repeated; the
    model without AppearNet and noise prior. PSNR: mean over clips, of the centre frame, given the true key frame.
    `changes`: see microcinema.Sampling.
    """
    scores, centre, times = defaultdict(list), [], frame_times(cinema.settings(**changes).frames)
    c = len(times) // 2
    for first in range(0, count, batch):
        ids = range(count)[first:first + batch]                     # also the seeds of the noise
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
        given = as_clips(cinema.animate(prompts, x[:, :, c], ids, **changes))
        centre += [psnr(a[c], b[c]) for a, b in zip(given, true, strict=True)]
    return {row: average(values) for row, values in scores.items()}, float(np.mean(centre))


def against_truth(video, true):
    """(mean squared error, mean distance of the things' centres in pixels) of two clips, uint8 [n, H, W, 3].

    A frame in which `video` shows no thing counts as a distance of half a picture.
    """
    size, distances = true.shape[1], []
    for a, b in zip(map(find, video), map(find, true), strict=True):
        distances.append(np.hypot(a["x"] - b["x"], a["y"] - b["y"]) * size if a else size / 2)
    return squared_error(video, true), float(np.mean(distances))


def score_interpolation(cinema, count, fps, seed=0, batch=16, **changes):
    """Scores temporal super-resolution to `fps` on `count` held-out scenes: {row: (dB, dB of moving things, pixels)}.

    The toy world is continuous, so the three frames between two that are 4 / fps seconds apart are known. The PSNR is
    of the mean squared error of all frames. Things that change place also have a distance from their true place.
    Rows: the true frames through the autoencoder; a cross-fade of the two frames in pixels, and in latents, which is
    the model's condition; the model.
    """
    scores, moves = defaultdict(list), []
    for first in range(0, count, batch):
        ids = range(count)[first:first + batch]                     # also the seeds of the noise
        scenes = [sample_scene([seed, FIRST_TSR_SCENE + i], held_out=True, things=1) for i in ids]
        moves += [scene.things[0].motion not in ("growing", "shrinking", "turning") for scene in scenes]
        starts = [np.random.default_rng([seed, i]).uniform(0, SECONDS - 4 / fps) for i in ids]
        true = np.stack([render(scene, start + np.arange(5) / fps, cinema.sampling.size)
                         for scene, start in zip(scenes, starts)])                              # [b, 5, H, W, 3]
        x = from_pixels(torch.from_numpy(true)).permute(0, 4, 1, 2, 3)
        z = cinema.encode_frames(x)                                                             # [b, 4, 5, h, w]
        videos = {"truth through the autoencoder": cinema.decode(z),
                  "cross-fade of pixels": tsr_condition(x[:, :, 0], x[:, :, 4], 5),
                  "cross-fade of latents": cinema.decode(tsr_condition(z[:, :, 0], z[:, :, 4], 5)),
                  "MicroCinema": cinema.interpolate(x[:, :, [0, 4]], [scene.caption() for scene in scenes], ids,
                                                    pairs=batch, fps=fps / 4, **changes)}
        for row, video in videos.items():
            scores[row] += [against_truth(a[1:4], b[1:4]) for a, b in zip(as_clips(video), true, strict=True)]
    table = {}
    for row, values in scores.items():
        errors, distances = np.array(values).T
        table[row] = decibels(errors.mean()), decibels(errors[moves].mean()), float(distances[moves].mean())
    return table


def score_clips(cinema, clips, seed=0, batch=16, shown=8, **changes):
    """Scores the model on the windows of a FolderSet, given their key frames: ({row: {column: number}}, strip).

    Rows: the true window through the autoencoder; the model; the true key frame repeated. strip: (caption, true clip,
    the model's) of the first `shown` windows, uint8 [n, H, W, 3]. The noise of window i has the seed `seed` + i.
    """
    scores, strip = defaultdict(list), []
    for first in range(0, len(clips), batch):
        ids = range(len(clips))[first:first + batch]
        items = [clips[i] for i in ids]
        prompts, x = [item["caption"] for item in items], from_pixels(torch.stack([item["frames"] for item in items]))
        true, keys = as_clips(x), x[:, :, x.shape[2] // 2]                                      # x [b, 3, n, H, W]
        videos = {"truth through the autoencoder": cinema.decode(cinema.encode_frames(x)),
                  "MicroCinema": cinema.animate(prompts, keys, [seed + i for i in ids], **changes),
                  "its key frame repeated": keys[:, :, None].expand_as(x)}
        for row, video in videos.items():
            scores[row] += [compare(a, b) for a, b in zip(as_clips(video), true, strict=True)]
        pairs = zip(prompts, true, as_clips(videos["MicroCinema"]), strict=True)
        strip += list(pairs)[:shown - len(strip)]
    return {row: average_compared(values) for row, values in scores.items()}, strip


# ---- the command --------------------------------------------------------------------------------------------------

def print_table(head, rows):
    """Prints a table in Markdown. The head and each row are texts with " | " between the cells."""
    for line in (head, " | ".join(["---"] * (head.count("|") + 1)), *rows):
        print(f"| {line} |")


def cells(values, **formats):
    """{column: number} as the cells of a row: "-" for nan, else in the column's format, which is percent by default."""
    return " | ".join("-" if math.isnan(value) else formats.get(column, "{:.1f} %").format(value)
                      for column, value in values.items())


def print_model(cinema, count, **options):
    """Prints the table of score_model; half of the prompts are seen in training and half held out."""
    half = count // 2
    tables = {"seen": score_model(cinema, half, held_out=False, **options),
              "held out": score_model(cinema, half, held_out=True, **options)}
    print_table(f"{half} prompts each | | {' | '.join(COLUMNS).replace('_', ' ')}",
                [f"{row} | {name} | {cells(values, speed='{:.2f}')}"
                 for name, (rows, _) in tables.items() for row, values in rows.items()])
    print("\nCentre frame, true key frame given:", ", ".join(f"{dB:.1f} dB {name}" for name, (_, dB) in tables.items()))


def print_interpolation(cinema, count, **options):
    """Prints the table of score_interpolation, both rounds side by side."""
    slow, fast = (score_interpolation(cinema, count, fps, **options) for fps in (8, 32))
    columns, numbers = "of moving things | position error", "{:.1f} dB | {:.1f} dB | {:.3f} pixels"
    print_table(f"{count} held-out clips | 2 to 8 fps: PSNR | {columns} | 8 to 32 fps: PSNR | {columns}",
                [f"{row} | {numbers.format(*slow[row])} | {numbers.format(*fast[row])}" for row in slow])


def print_clips(cinema, clips, out, **options):
    """Prints the table of score_clips and, unless `out` is None, draws the strip to `out`."""
    rows, strip = score_clips(cinema, clips, **options)
    if out:
        captions = [line for caption, _, _ in strip for line in (f"the truth: {caption}", "MicroCinema")]
        with atomic_write(out) as part:
            contact_sheet(*[clip for _, *pair in strip for clip in pair], captions=captions).save(part)
    kind = "held out" if clips.spared else "trained on, too few to hold some out"
    formats = {"centre frame": "{:.1f} dB", "other frames": "{:.1f} dB", "motion": "{:.2f}", "agreement": "{:.2f}"}
    print_table(f"{len(clips)} windows of {len(clips.clips)} clips {kind} | {' | '.join(rows['MicroCinema'])}",
                [f"{row} | {cells(values, **formats)}" for row, values in rows.items()])
    if out:
        print(f"\n{out}: {len(strip)} of them, the truth above and the model's below")


def score(args):
    """Checks the flags that depend on each other, loads the model and prints its table."""
    if args.prompts < 2 and not (args.data or args.between):
        raise ValueError("--prompts: want 2 or more, half of them seen in training and half held out")
    for flag in ("fps", "out"):
        if getattr(args, flag) is not None and not args.data:
            raise ValueError(f"--{flag} needs --data")
    if args.out:
        check_output(args.out)
        if args.out.suffix.lower() not in (".png", ".webp"):
            raise ValueError(f"{args.out}: the strip is one picture; want .png or .webp")
    if args.weights:
        weights.check_overlay(args.weights)
    cinema = MicroCinema.load(args.model, args.device, overlay=args.weights)
    if args.weights:
        print(weights.describe(weights.resolve_components(args.model, args.weights)), end="\n\n")
    if not cinema.trained:
        print(UNTRAINED, end="\n\n")
    changes = dict(steps=args.steps, guidance=args.guidance, gamma=args.gamma)
    options, s = dict(seed=args.seed, batch=args.batch, **changes), cinema.settings(**changes)
    if args.between:
        print_interpolation(cinema, args.prompts, **options)
    elif not args.data:
        print_model(cinema, args.prompts, **options)
    elif s.frames < 2:
        raise ValueError(f"{args.model}: makes videos of {s.frames} frame; want 2 or more to compare")
    else:
        clips = FolderSet(args.data, args.prompts, s.frames, args.fps or s.fps, s.size, args.seed, held_out=True)
        print_clips(cinema, clips, args.out, **options)


def main(argv=None):
    """Scores a model and prints a table in Markdown; see the top of the file."""
    parser = command.ArgumentParser("python -m evaluation.toy_scores",
                                    description="Score a model; see the top of evaluation/toy_scores.py.")
    add, choice = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add("--model", type=Path, default=Path(__file__).parents[1] / "toy", help="model folder (default: the toy model)")
    add("--weights", type=Path, help="a folder that train.py wrote, whose components replace the model's, or the file "
                                     "of a video model")
    choice("--data", type=Path, help="score on the held-out clips of a folder with captions (data/folder.py)")
    choice("--between", action="store_true", help="score temporal super-resolution, on held-out clips of the toy world")
    add("--prompts", type=command.positive_int, default=256,
        help="how many; of the toy world, half of them seen in training and half held out")
    add("--batch", type=command.positive_int, default=16, help="videos at once")
    add("--seed", type=command.seed, default=0, help="of the prompts or windows, and of the noise")
    add("--steps", type=int, help="denoising steps (default: the model's)")
    add("--guidance", type=command.finite_float, help="guidance scale (default: the model's)")
    add("--gamma", type=command.finite_float, help="gamma of Sec. 4.2.2 (default: the model's)")
    add("--fps", type=command.fps, help="with --data: frames a second of a window (default: the model's)")
    add("--out", type=Path, help="with --data: a .png or .webp to draw eight windows to, the truth above the model's")
    add("--device", type=command.device, default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, ...")
    return command.run(parser.prog, score, parser.parse_args(argv), out_of_memory="a smaller --batch takes less")


if __name__ == "__main__":
    sys.exit(main())
