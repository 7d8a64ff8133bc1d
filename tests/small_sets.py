"""Which recipe helps on small sets: trains and scores them, one change at a time. A script for a GPU, not a test.

    python tests/make_sprites.py path/to/lpc_sprites sprites
    python tests/small_sets.py results --emoji path/to/emoji --babyai path/to/babyai --sprites sprites --gpus 8
    python tests/small_sets.py results                                       only prints the tables, in Markdown

A run is a set, a recipe and a seed. It writes results/SET-RECIPE-SEED.json; with the first seed also two strips. The
same command trains only what is missing, and resumes what was stopped. --recipes, --seeds: some of them. --gpus N: N
runs at once on as many GPUs. `--device cpu --share 0.002` tries everything in minutes; its scores mean nothing.

The autoencoder and the image model of a set are trained once, with seed 0; the seeds are those of stage video.
"""
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from data.folder import FolderSet
from data.media import SIGNED, contact_sheet
from evaluation.toy_scores import score_clips
from microcinema import MicroCinema
from sd21.command import ArgumentParser, device, natural, positive_int, run, share
from sd21.files import atomic_write, read_json, write_json

SETS = {"emoji": {"fps": 5, "frames": 9}, "babyai": {"fps": 8, "frames": 9}, "sprites": {"fps": 8, "frames": 8}}
TOY = ROOT / "toy"
STAGES = {"vae": f"--steps 1500 --batch 16 --clips 10000 --start {TOY}",
          "image": "--steps 6000 --batch 128 --clips 6000",
          "video": "--steps 1200 --batch 32 --clips 6000 --lr-temporal 2e-3 --lr-spatial 1.2e-3"}
ALL_STAGES = "--ema 0.995 --warmup 100 --cooldown 0.4 --save-every 200 --sample-every 100000 --keep last --augment none"
# What stage video adds to the above; the first adds nothing. "from toy": with the autoencoder of the set, since the
# shipped one gives these clips back at 12 to 16 dB.
RECIPES = {"baseline": "", "best": "--keep best", "shift and colour": "--augment shift,colour",
           "zoom": "--augment shift,colour,zoom", "rate": "--augment rate", "drop text 0.3": "--drop-text 0.3",
           "weight decay 0.1": "--weight-decay 0.1", "narrow": "", "from toy": f"--start {TOY}",
           "best + from toy, longer": f"--keep best --steps 3600 --start {TOY}",
           "best + shift and colour + from toy": f"--keep best --augment shift,colour --start {TOY}",
           "best + shift and colour + from toy, drop text 0.5":
               f"--keep best --augment shift,colour --drop-text 0.5 --start {TOY}",
           "best + shift and colour + from toy, longer":
               f"--keep best --augment shift,colour --steps 3600 --clips 12000 --start {TOY}"}
NARROW = {"block_out_channels": [32, 40, 48], "attention_head_dim": [2, 2, 3]}           # a third of the parameters
SAMPLING = {"guidance 1": {"guidance": 1.0, "steps": 15}, "guidance 3": {"guidance": 3.0, "steps": 15},
            "guidance 1, 4 steps": {"guidance": 1.0, "steps": 4}, "guidance 1, 2 steps": {"guidance": 1.0, "steps": 2}}
COLUMNS = {"other frames": "{:.1f} dB", "motion": "{:.2f}", "agreement": "{:.2f}", "colour drift": "{:.1f} %"}
REFERENCES = ("truth through the autoencoder", "its key frame repeated")


def one_of(choices):
    """An argparse type: one of the keys of `choices`."""
    def parse(text):
        if text not in choices:
            raise ArgumentTypeError(f"{text}: want one of {', '.join(choices)}")
        return text
    return parse


def file_of(args, name, recipe, seed):
    """The file with the row of a run."""
    return args.results / f"{name}-{recipe.replace(' ', '_')}-{seed}.json"


def narrow_model(folder):
    """A model folder with the toy's configs and a narrower U-Net. Returns the folder."""
    for part in ("vae", "text_encoder", "scheduler", "unet", "video"):
        for file in (ROOT / "toy" / part).glob("*.json"):
            changes = NARROW if part in ("unet", "video") else {}
            write_json(read_json(file) | changes, folder / part / file.name)
    return folder


def train(args, stage, name, seed, model, out, more=""):
    """Trains a stage by the command that a person would use. Of an option that is given twice, the last one counts."""
    module = ["train.py"] if stage == "video" else ["-m", "training.pretrain"]
    options = f"{STAGES[stage]} {ALL_STAGES} {more}".split()
    options += ["--bf16"] if args.device == "cuda" else []
    options += ["--cuda-graph"] if args.device == "cuda" and stage != "vae" else []
    options += ["--compile"] if args.device == "cuda" and stage != "image" else []
    options += ["--frames", str(SETS[name]["frames"])] if stage == "video" else []
    for k, option in enumerate(options):                                     # --share
        if option in ("--steps", "--clips", "--batch", "--save-every"):
            options[k + 1] = str(max(2, round(int(options[k + 1]) * args.share)))
    fps = SETS[name]["fps"] * (2 if stage == "vae" else 1)                   # 9 frames must fit into a clip
    subprocess.run([sys.executable, *module, stage, "--model", model, "--data", getattr(args, name), "--out", out,
                    "--device", args.device, "--seed", str(seed), "--fps", str(fps), *options], check=True, cwd=ROOT)


def train_parts(args, name, recipe):
    """(model folder, folder with autoencoder and image model) for a recipe. Trains them unless they are there."""
    folder, model = args.results / "parts" / name, TOY
    if not (folder / "vae.done").exists():
        train(args, "vae", name, 0, model, folder)
        (folder / "vae.done").touch()
    if recipe == "narrow":
        model, wide = narrow_model(args.results / "parts" / "narrow"), folder
        folder = folder.with_name(f"{folder.name}-narrow")
        if not (folder / "vae").exists():
            shutil.copytree(wide / "vae", folder / "vae")
    if not (folder / "image.done").exists():
        train(args, "image", name, 0, model, folder)
        (folder / "image.done").touch()
    return model, folder


def train_and_score(args, name, recipe, seed):
    """One run: trains stage video, scores it, writes its row."""
    model, parts = train_parts(args, name, recipe)
    out = args.results / "runs" / file_of(args, name, recipe, seed).stem
    for part in ("vae", "unet", "text_encoder", "tokenizer", "scheduler"):
        if not (out / part).exists():
            shutil.copytree(parts / part, out / part)
    train(args, "video", name, seed, model, out, RECIPES[recipe])
    with safe_open(max(out.glob("video.*.checkpoint.safetensors")), framework="pt") as file:
        trained = file.metadata()
    began, cinema = time.monotonic(), MicroCinema.load(model, args.device, overlay=out)
    s = cinema.sampling
    clips = FolderSet(getattr(args, name), args.windows, s.frames, s.fps, s.size, held_out=True)
    row = {"set": name, "recipe": recipe, "seed": seed, "steps": int(trained["step"]), "scores": {},
           "minutes": float(trained["seconds"]) / 60, "best step": int(trained.get("best_step", 0))}
    for sampling, changes in SAMPLING.items():
        rows, strip = score_clips(cinema, clips, **changes)
        row["scores"][sampling] = rows.pop("MicroCinema")
        row["scores"] |= rows                                                # the references
        if seed == args.seeds[0]:
            captions = [text for caption, *_ in strip for text in (f"the truth: {caption}", sampling)]
            with atomic_write(args.results / f"{out.name}-{re.sub(r'[ ,]+', '-', sampling)}.webp") as part:
                contact_sheet(*[clip for _, *pair in strip for clip in pair], captions=captions).save(part, **SIGNED)
    if args.layers and name == "sprites":
        row["attributes"] = score_attributes(args, cinema)
    row["minutes of scoring"] = (time.monotonic() - began) / 60
    write_json(row, file_of(args, name, recipe, seed))


def score_attributes(args, cinema):
    """{attribute: share that is right} of held-out sprites that were drawn from their captions alone. A video has the
    attributes of the nearest rendered sprite. The search begins with the caption's and changes one attribute at a
    time, in two passes."""
    from make_sprites import GARMENTS, PLACES, VERBS, Layers
    from PIL import Image
    layers, size = Layers(args.layers), cinema.sampling.size
    rows = [json.loads(line) for line in (args.sprites / "metadata.jsonl").read_text().splitlines()]
    rows = rows[9::10][:args.windows]                                        # held out
    right = {attribute: [] for attribute in (*GARMENTS, "action", "direction")}

    def truth(clip):                                                         # [8, size, size, 3]
        return np.stack([np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.LANCZOS))
                         for frame in layers.render(clip)]).astype(np.float32)

    def nearest(video, candidates):
        return min(candidates, key=lambda clip: float(np.square(truth(clip) - video).mean()))
    for first in range(0, len(rows), 16):
        some = rows[first:first + 16]
        prompts, seeds = [clip["text"] for clip in some], range(first, first + len(some))
        videos = cinema.animate(prompts, cinema.key_frame(prompts, seeds), seeds, steps=15)
        for clip, video in zip(some, (videos + 1) * 127.5):
            video = video.permute(1, 2, 3, 0).cpu().numpy()
            seen = clip
            for _ in range(2):
                seen = nearest(video, [seen | {"action": a, "direction": d} for a in VERBS for d in PLACES])
                for garment in GARMENTS:
                    seen = nearest(video, [seen | {garment: k} for k in range(layers.choices[garment])])
            for attribute in right:
                right[attribute].append(seen[attribute] == clip[attribute])
    return {attribute: float(np.mean(answers)) for attribute, answers in right.items()}


def run_all(args, work, task):
    """Runs this script once for each (set, recipe, seed) of `work`, --each at a time on each of --gpus."""
    free = queue.Queue()
    for gpu in args.each * [*range(args.gpus)]:
        free.put(gpu)

    def one(name, recipe, seed):
        gpu, log = free.get(), args.results / "logs" / f"{task}-{file_of(args, name, recipe, seed).stem}.txt"
        log.parent.mkdir(exist_ok=True)
        try:
            with open(log, "a") as file:
                command = [sys.executable, __file__, *sys.argv[1:], "--only", task, name, recipe, str(seed)]
                done = subprocess.run(command, stdout=file, stderr=file,
                                      env=os.environ | {"CUDA_VISIBLE_DEVICES": str(gpu)})
            print(f"{task} {name}, {recipe}, seed {seed}: {'done' if done.returncode == 0 else f'failed, see {log}'}")
        finally:
            free.put(gpu)
    with ThreadPoolExecutor(args.gpus * args.each) as pool:
        list(pool.map(lambda item: one(*item), work))


def print_tables(results):
    """A table a set: the mean over the seeds of each recipe, for each way to sample; then the references."""
    rows = [read_json(file) for file in sorted(results.glob("*.json"))]
    for name in [name for name in SETS if any(row["set"] == name for row in rows)]:
        here = [row for row in rows if row["set"] == name]
        print(f"\n| {name}, held out | seeds | sampling | {' | '.join(COLUMNS)} | best step | steps | minutes |\n"
              f"|{' --- |' * (len(COLUMNS) + 6)}")
        for recipe in [recipe for recipe in RECIPES if any(row["recipe"] == recipe for row in here)]:
            runs = [row for row in here if row["recipe"] == recipe]
            mean = lambda key, digits=0: f"{np.mean([row[key] for row in runs]):.{digits}f}"
            best = mean("best step") if all(row["best step"] for row in runs) else "-"
            for sampling in SAMPLING:
                scores = [row["scores"][sampling] for row in runs]
                print(f"| {recipe} | {len(runs)} | {sampling} | {cells(scores)} | {best} | {mean('steps')} | "
                      f"{mean('minutes', 1)} |")
        for reference in REFERENCES:
            print(f"| {reference} | | | {cells([row['scores'][reference] for row in here])} | | | |")
        judged = [row for row in here if "attributes" in row]
        if judged:
            names = list(judged[0]["attributes"])
            print(f"\n| {name}, from the caption alone | {' | '.join(names)} |\n|{' --- |' * (len(names) + 1)}")
        for row in judged:
            shares = " | ".join(f"{100 * row['attributes'][name]:.0f} %" for name in names)
            print(f"| {row['recipe']}, seed {row['seed']} | {shares} |")


def cells(scores):
    """The cells of a row: means over runs; a nan becomes "-"."""
    means = {column: np.mean([score[column] for score in scores]) for column in COLUMNS}
    return " | ".join("-" if np.isnan(x) else COLUMNS[column].format(x) for column, x in means.items())


def work_on(args):
    """Trains what is missing, then prints the tables."""
    MicroCinema.load(TOY)                                                    # fail here rather than after a training
    sets = [name for name in SETS if getattr(args, name)]
    if args.only:
        task, name, recipe, seed = args.only
        if task == "parts":
            train_parts(args, name, recipe)
        else:
            train_and_score(args, name, recipe, int(seed))
        return
    args.results.mkdir(parents=True, exist_ok=True)
    todo = [(name, recipe, seed) for seed in args.seeds for name in sets for recipe in args.recipes
            if not file_of(args, name, recipe, seed).exists()]
    # First the autoencoders and image models, which the recipes share; the narrow image model needs the autoencoder.
    run_all(args, sorted({(name, "baseline", 0) for name, *_ in todo}), "parts")
    run_all(args, sorted({(name, recipe, 0) for name, recipe, _ in todo if recipe == "narrow"}), "parts")
    run_all(args, todo, "run")
    print_tables(args.results)


def main(argv=None):
    """The command line; see the top of the file. Returns the exit code."""
    parser = ArgumentParser("tests/small_sets.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    folder = lambda text: Path(text).resolve()                               # stages run in the root of the repository
    add("results", type=folder, help="folder of the rows, one JSON file a run")
    for name in SETS:
        add(f"--{name}", type=folder, help=f"folder of the clips of {name}; without it the set is left out")
    add("--layers", type=folder, help="folder of the sprites' layers: also judges garments, action and direction")
    add("--recipes", nargs="+", type=one_of(RECIPES), default=list(RECIPES), help="some of them (default: all)")
    add("--seeds", nargs="+", type=natural, default=[0, 1], help="seeds of the runs (default: 0 1)")
    add("--windows", type=positive_int, default=64, help="held-out windows to score (default 64)")
    add("--gpus", type=positive_int, default=1, help="how many GPUs share the runs (default 1)")
    add("--each", type=positive_int, default=1, help="runs at once on each GPU (default 1)")
    add("--share", type=share, default=1.0, help="share of the steps, windows and batch, to try the script (default 1)")
    add("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    add("--only", nargs=4, metavar=("TASK", "SET", "RECIPE", "SEED"), help="one run, as this script starts it itself")
    return run(parser.prog, work_on, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
