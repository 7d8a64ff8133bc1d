"""The command lines of train.py and training/pretrain.py: shared options, a model folder's defaults, and the launch.

defines  command_line, add_run_options, add_latent_options, parse, launch

The values that options allow are checked by their types (sd21/command.py), what goes together by Run and the stages.
"""

import argparse
from dataclasses import fields
from pathlib import Path

import torch

from sd21.command import (
    ArgumentParser, device, existing_path, fps, natural, positive_float, positive_int, run, seed, share
)
from sd21.weights import component
from training.distributed import processes
from training.loop import Run
from training.prepare import Clips
from training.state import checkpoints

FOLDER_OF_STAGE = {"vae": "vae", "image": "unet", "video": "video", "tsr": "tsr"}       # in a model folder


def command_line(prog, description, stages):
    """(the parser, {stage: its own parser}) for {stage: help}."""
    parser = ArgumentParser(prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    return parser, {name: commands.add_parser(name, help=text, description=text) for name, text in stages.items()}


def add_clip_options(add, with_frames):
    """What is read and written, and the options of Clips."""
    add("--out", type=Path, required=True, help="folder to collect the trained parts in, and the checkpoints")
    add("--model", type=existing_path, default=Path(__file__).parents[1] / "toy",
        help="model folder, or SD2.1's single file, to begin with (toy)")
    add("--data", type=Path, help="folder of clips with captions, see data/folder.py (default: the toy set)")
    add("--clips", type=positive_int, default=Clips.clips, help="how many clips of the toy set, or windows of yours")
    add("--fps", type=fps, default=Clips.fps, help="frames a second of a clip (2, Sec. 4.1); shorter clips need more")
    add("--size", type=positive_int, default=Clips.size, help="height and width in pixels (320, Sec. 3.1)")
    add("--seed", type=seed, default=0, help="of the data, the first weights and all noise")
    add("--batch", type=positive_int, default=Run.batch, help="clips a step (16, Sec. 4.2)")
    add("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    add("--bf16", action="store_true", help="compute in bfloat16; AdamW updates float32 master weights")
    if with_frames:
        add("--frames", type=positive_int, default=Clips.frames,
            help="N, frames of a clip (9, Sec. 4.1; 17 in the ablations)")


def add_run_options(add):
    """The options of Run."""
    add("--steps", type=positive_int, default=Run.steps, help="optimizer steps (64K, Sec. 4.2)")
    add("--minutes", type=positive_float, help="end after this time, if it comes before --steps")
    add("--ema", type=share, default=Run.ema, help="decay of the averaged weights, which are saved; 0: no average")
    add("--warmup", type=natural, default=Run.warmup, help="steps over which the learning rate rises from 0")
    add("--cooldown", type=share, default=Run.cooldown, help="share of the steps, at the end, over which it falls to 0")
    add("--save-every", type=positive_int, default=Run.save_every, help="steps between checkpoints")
    add("--sample-every", type=positive_int, default=Run.sample_every,
        help="steps between sample pictures, OUT/STAGE-STEP.png")
    add("--accumulate", type=positive_int, default=Run.accumulate,
        help="compute each batch in this many parts: less memory, the same step")
    add("--cuda-graph", action="store_true", help="record a step once and replay it: faster for small models (cuda)")
    add("--compile", action="store_true", help="torch.compile the model: minutes to start, then faster")


def add_latent_options(add):
    """The options of stages that train on latents by Eq. 5: image, video, tsr."""
    add("--latents", type=Path, help="folder that `train.py latents` wrote: train on it instead of --data")
    add("--weighting", choices=("epsilon", "v"), default="epsilon", help="Eq. 5 as it is, or v: divided by alpha_bar")
    add("--drop-text", type=share, default=0.1, help="share of captions emptied, for classifier-free guidance")
    add("--checkpointing", action="store_true", help="gradient checkpointing: less memory for more time")
    add("--fsdp", action="store_true", help="FSDP2 instead of DDP: every process keeps a part (torchrun)")


def parse(parser, stages, argv):
    """The arguments. A model folder's own "training" settings replace the paper's defaults; the command line comes
    first."""
    args = parser.parse_args(argv)
    stage = getattr(args, "stage_for", args.stage)
    try:
        defaults = component(FOLDER_OF_STAGE[stage], args.model).settings("training")
    except ValueError as error:                                              # a damaged config.json
        parser.error(error)
    if args.stage == "latents":                                              # which has only some options of the stage
        defaults = {key: value for key, value in defaults.items() if hasattr(args, key)}
    if unknown := defaults.keys() - vars(args).keys():
        parser.error(f"{args.model}: its config.json names training settings that are none: {', '.join(unknown)}")
    # argparse checks a default that is a string, like the same words on the command line. A flag's is true or false.
    stages[args.stage].set_defaults(**{key: value if isinstance(value, bool) else str(value)
                                       for key, value in defaults.items() if value is not None})
    args = parser.parse_args(argv)
    if args.data and getattr(args, "latents", None):
        parser.error("--data and --latents: choose one; latents are clips already")
    return args


def pick_fields(dataclass, args):
    """An instance of a dataclass from the arguments of the same names."""
    names = [field.name for field in fields(dataclass)]
    return dataclass(**{name: getattr(args, name) for name in names if hasattr(args, name)})


def launch(prog, train, recipe_class, args):
    """Runs a stage in this process, or in each process that torchrun started; returns the exit code.

    train(run, clips, recipe): the stage, with the three dataclasses that its options make.
    """
    def start():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True       # tensor cores, for float32
        torch.backends.cudnn.benchmark = True
        with processes(args.device):
            torch.manual_seed(args.seed)
            folder = FOLDER_OF_STAGE.get(args.stage)
            if folder and any((args.out / folder).glob("*.safetensors")) and not checkpoints(args.out, args.stage):
                raise ValueError(f"{args.out / folder}: holds trained weights already; name another --out, or move "
                                 "them away")
            clips = pick_fields(Clips, args).of_stage(getattr(args, "stage_for", args.stage))
            train(pick_fields(Run, args), clips, pick_fields(recipe_class, args))

    return run(prog, start, stopped="the same command resumes from the last checkpoint")
