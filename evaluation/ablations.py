"""The paper's ablations in small: Sec. 4.2 and 4.3, Tables 2 to 4, Fig. 6 and 7, with error bars over training seeds.

    python -m evaluation.ablations injection   --out study     Table 2, and a strip like Fig. 7
    python -m evaluation.ablations noise       --out study     Fig. 6: lambda by gamma, with the predicted gamma
    python -m evaluation.ablations prompts     --out study     Table 3: a plain and a well-written prompt
    python -m evaluation.ablations first-stage --out study     Table 4: a weak and a strong image model
    python -m evaluation.ablations rho         --out study     how much of z^c is in a frame; the gamma that follows

Name several at once, and each model is trained once for all of them. evaluation/study.py computes the numbers. For n
GPUs: `prepare` first, then n commands at once with --part 1 n, ..., --part n n, finally one without --part.
our reading  The paper's row without AppearNet is Concat, so it stands for "without AIN" in Fig. 7. Rho is measured
             through 0, over all frames, since gamma z^c goes into the noise of all frames.
"""
import argparse
import itertools
import math
import statistics
import sys
from contextlib import suppress
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from appearnet import INJECTIONS
from data.folder import FolderSet
from data.media import contact_sheet, from_pixels
from data.toyset import ToySet
from evaluation.study import PREPARED, Cell, OutOfTime, Settings, Study
from evaluation.windows import read_window
from sd21.command import ArgumentParser, add_options, fps, from_args, positive_int, run
from sd21.files import atomic_write, read_json, write_json
from training.report import COLOURS

LAMBDAS, GAMMAS = (0.0, 0.03, 0.1), (0.0, 0.01, 0.02, 0.03, 0.05, 0.07)     # Fig. 6
TABLES = {"injection": {inject: Cell(inject) for inject in INJECTIONS},
          "noise": {f"lambda {lam:g}, gamma {g:g}": Cell(lam=lam, gamma=g) for lam in LAMBDAS for g in GAMMAS},
          "prompts": {"plain": Cell(key_frames="strong", prompts="plain"), "caption": Cell(key_frames="strong")},
          "first-stage": {"weak": Cell(key_frames="weak"), "strong": Cell(key_frames="strong"), "true": Cell()}}
REFERENCES = {"injection": INJECTIONS[-1], "noise": "lambda 0, gamma 0", "prompts": "caption", "first-stage": "strong"}
FIG_7 = {"without AppearNet, without prior": Cell("concat", 0.0, 0.0), "without AppearNet": Cell("concat"),
         "without prior": Cell(lam=0.0, gamma=0.0), "AppearNet and prior": Cell()}
PAPER = {"concat": "15.83, 688.92", "add_dec": "27.90, 589.59", "add_encdec": "27.25, 525.02",  # IS, FVD (UCF-101)
         "add_encdec_spade": "29.63, 508.56", "plain": "29.79, 374.05", "caption": "32.07, 336.40",
         "weak": "31.25, 412.53", "strong": "32.07, 336.40"}
COLUMNS = "FVD", "toy FVD", "toy IS", "toy CLIPSIM", "shape", "colour", "motion", "still", "colour_drift", "size_drift"
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}     # Student's t, by the number of seeds


def compute(study, titles, k=1, n=1):
    """Computes all cells of these tables, model by model; of n parts of the models only part k. Returns {cell: [its
    scores, one a seed]}. When --minutes have passed, the lists hold what there is."""
    cells = {cell for title in titles for cell in TABLES[title].values()}
    first_seed_only = set(FIG_7.values()) - cells if "injection" in titles else set()
    results = {cell: [] for cell in cells | first_seed_only}
    numbers = [(seed, cell) for seed, cell in itertools.product(range(study.settings.seeds), sorted(results))
               if seed == 0 or cell in cells]
    models = sorted({(seed, cell.inject, cell.lam) for seed, cell in numbers})
    with suppress(OutOfTime):
        for seed, cell in numbers:
            if models.index((seed, cell.inject, cell.lam)) % n == k - 1:
                results[cell].append(study.result(cell, seed))
    return results


def mean_and_deviation(numbers):
    """As text; without nan, such as the size drift where no thing is found."""
    numbers = [x for x in numbers if not math.isnan(x)]
    deviation = f" ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.2f}{deviation}" if numbers else "-"


def difference(numbers):
    """The mean of paired differences, one a seed, its 95 % interval, and whether 0 lies in it: then it is noise."""
    if len(numbers) < 2:
        return "unknown: fewer than two seeds"
    mean, half = statistics.mean(numbers), T_95[len(numbers)] * statistics.stdev(numbers) / len(numbers) ** 0.5
    return f"{mean:+.2f} ± {half:.2f}{', inside the noise' if abs(mean) <= half else ''}"


def write_table(study, title, results):
    """Prints a table, mean and deviation over seeds, and writes it to OUT/TITLE.md."""
    rows, (_, truth) = {row: results[cell] for row, cell in TABLES[title].items()}, study.truth
    columns = [column for column in COLUMNS if column in study.networks or column in truth]
    lines = [f"| {title} (seeds) | paper: IS, FVD | {' | '.join(columns)} |", "|" + " --- |" * (len(columns) + 2)]
    for row, scores in (rows | {"the truth": [truth]}).items():
        cells = [mean_and_deviation([score.get(column, math.nan) for score in scores]) for column in columns]
        lines.append(f"| {row} ({len(scores)}) | {PAPER.get(row, '')} | {' | '.join(cells)} |")
    first, reference = columns[0], REFERENCES[title]
    lines += ["", f"{first} minus that of {reference}, mean over seeds with its 95 % interval:", ""]
    lines += [f"- {row}: {difference([a[first] - b[first] for a, b in zip(scores, rows[reference])])}"
              for row, scores in rows.items() if row != reference]
    with atomic_write(study.settings.out / f"{title}.md") as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(*lines, sep="\n", end="\n\n")


# ---------------------------------------------------------------------------------------------------------- the figures

def draw_strip(study):
    """Fig. 7: the truth and four models of seed 0, every second frame of two clips."""
    out, clips, captions = study.settings.out, [], []
    for i in range(2):
        files = {"truth": out / "clips" / "truth" / f"{i:05}.webp"} | {
            name: out / "results" / f"{'-'.join(map(str, (*cell, 0)))}-{i:05}.webp" for name, cell in FIG_7.items()}
        clips += [read_window(path, study.protocol).numpy()[::2] for path in files.values()]
        captions += [f"{name}: {study.captions[i]}" for name in files]
    with atomic_write(study.settings.out / "fig7.webp") as part:
        contact_sheet(*clips, captions=captions).save(part, quality=90)


def draw_plot(lines, title, predicted, path, width=760, height=480):
    """Fig. 6: {name: [(gamma, [a number a seed])]} as means with bars of one deviation; a grey line at `predicted`."""
    (left, right, top, bottom), last = (80, width - 20, 20, height - 60), 1.05 * max(GAMMAS[-1], predicted)
    high = 1.05 * max(y for line in lines.values() for _, ys in line for y in ys)
    at = lambda x, y: (left + (right - left) * x / last, bottom - (bottom - top) * y / high)
    picture, font = Image.new("RGB", (width, height), "white"), ImageFont.load_default(size=15)
    pen = ImageDraw.Draw(picture)
    step = 10 ** math.floor(math.log10(high / 2))
    for y in [k * step for k in range(math.floor(high / step) + 1)]:
        pen.line([at(0, y), at(last, y)], "#dddddd")
        pen.text((left - 8, at(0, y)[1]), f"{y:g}", "#606060", font, anchor="rm")
    for gamma in GAMMAS:
        pen.text((at(gamma, 0)[0], bottom + 8), f"{gamma:g}", "#606060", font, anchor="ma")
    pen.line([at(predicted, 0), at(predicted, high)], "#909090", 2)
    pen.text(((left + right) / 2, height - 26), f"{title} by gamma; grey: predicted", "#606060", font, anchor="ma")
    for k, (name, line) in enumerate(lines.items()):
        pen.line([at(gamma, statistics.mean(ys)) for gamma, ys in line], COLOURS[k], 2)
        for gamma, ys in line:
            mean, deviation = statistics.mean(ys), statistics.stdev(ys)
            ends = [at(gamma, mean - deviation), at(gamma, mean + deviation)]
            pen.line([(x + 4 * k, y) for x, y in ends], COLOURS[k], 2)       # beside the bars of the other lines
        pen.text((left + 10, bottom - 20 * (len(lines) - k)), name, COLOURS[k], font, anchor="lm")
    with atomic_write(path) as part:
        picture.save(part)


# -------------------------------------------------------------------------------------------------- gamma, by theory

def rho_of(z):
    """The regression coefficient, through 0, of a frame's latent on the key frame's: z [b, 4, n, h, w]."""
    z_c = z[:, :, z.shape[2] // 2, None]
    return ((z * z_c).sum() / (z_c.square().sum() * z.shape[2])).item()


def predicted_gamma(rho, alpha_bar, lam=0.03):
    """The gamma that gives the first noise the mean that z_T has in training. By Eq. 4 that is sqrt(alpha_bar) rho z^c,
    since z_0 is rho z^c on average, and sqrt(1 - alpha_bar) lam z^c; sampling begins with (lam + gamma) z^c."""
    return alpha_bar ** 0.5 * rho + ((1 - alpha_bar) ** 0.5 - 1) * lam


def measure_rho(study, frames, fps, data=None):
    """{"data", "rho", "gamma"} of 256 held-out windows of the toy set or of a folder, kept in results/."""
    s, name = study.settings, f"rho-{data.stem if data else 'toy'}-{frames}-frames-{fps:g}-fps"
    path, source = s.out / "results" / f"{name}.json", str(data.resolve()) if data else "toy set"
    if not path.exists() or read_json(path).get("data") != source:          # two folders may have one name
        options = {"count": min(256, s.clips), "frames": frames, "fps": fps, "size": study.size, "held_out": True}
        clips, cinema = FolderSet(data, **options) if data else ToySet(**options), study.load()
        z = torch.cat([cinema.encode_frames(from_pixels(clips[i]["frames"][None])).cpu() for i in range(len(clips))])
        alpha_bar = cinema.schedule.timesteps(s.sampling_steps)[0][1]        # at the first step, t = 999
        write_json({"data": source, "rho": rho_of(z), "gamma": predicted_gamma(rho_of(z), alpha_bar)}, path)
    return read_json(path)


def work(args):
    """The command: the tables that were named, then their figures, then the predicted gammas."""
    if args.part and not (args.out / PREPARED).exists():
        raise ValueError("--part: first the command with `prepare`, for everything that the parts share")
    if args.data:
        FolderSet(args.data[0], 1, *args.data[1:], held_out=True)           # fail here, not after minutes
    study, titles = Study(from_args(Settings, args)), [title for title in TABLES if title in args.what]
    if args.part:
        compute(study, titles, *args.part)
        return
    if "prepare" in args.what:
        with suppress(OutOfTime):
            study.prepare()
    results = compute(study, titles) if titles else {}
    for title in titles:
        write_table(study, title, results)
    if "injection" in titles and all(results[cell] for cell in FIG_7.values()):
        draw_strip(study)
    if "noise" in titles and all(len(results[cell]) > 1 for cell in TABLES["noise"].values()):
        predicted = measure_rho(study, args.frames, args.fps)["gamma"]
        for column in study.networks:
            lines = {f"lambda {lam:g}": [(gamma, [score[column] for score in results[Cell(lam=lam, gamma=gamma)]])
                                         for gamma in GAMMAS] for lam in LAMBDAS}
            draw_plot(lines, column, predicted, args.out / f"fig6-{column.replace(' ', '-')}.png")
    if "rho" in args.what:
        for frames, fps in ((9, 2.0), (args.frames, args.fps)):
            measure_rho(study, frames, fps)
        if args.data:
            folder, *window = args.data
            measure_rho(study, *window, folder)
        print("| windows | rho | predicted gamma |\n| --- | --- | --- |")
        for path in sorted((args.out / "results").glob("rho-*.json")):
            print("| {} | {rho:.3f} | {gamma:.4f} |".format(path.stem[4:], **read_json(path)))


def main(argv=None):
    """The command line; see the top of the file. Returns the exit code."""
    parser = ArgumentParser("python -m evaluation.ablations", description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=(*TABLES, "rho", "prepare"), help="what to compute")
    parser.add_argument("--data", nargs=3, metavar=("FOLDER", "FRAMES", "FPS"), help="rho: a folder of clips as well")
    parser.add_argument("--part", nargs=2, type=positive_int, metavar=("K", "N"),
                        help="compute the k-th of n parts of the numbers, and no tables: for n processes at once")
    add_options(parser, Settings)
    args = parser.parse_args(argv)
    if args.data and "rho" not in args.what:
        parser.error("--data: goes with rho")
    if args.part and (args.part[0] > args.part[1] or not {*args.what} <= {*TABLES}):
        parser.error("--part K N: want K from 1 to N, and tables; rho and prepare have no parts")
    if args.data:
        try:
            args.data = Path(args.data[0]), positive_int(args.data[1]), fps(args.data[2])
        except argparse.ArgumentTypeError as error:
            parser.error(f"--data FOLDER FRAMES FPS: {error}")
    return run(parser.prog, work, args, stopped="the same command goes on",
               out_of_memory="a smaller --batch takes less")


if __name__ == "__main__":
    sys.exit(main())
