"""The command lines of train.py and training/pretrain.py: a model folder's own defaults, and the launch of a stage."""

import argparse

import torch

from sd21.command import ArgumentParser, add_options, from_args, run
from sd21.weights import component
from training.distributed import all_gather, processes, rank
from training.loop import Run
from training.prepare import Clips
from training.state import checkpoints

FOLDERS_OF_STAGE = {"vae": ["vae"], "image": ["unet", "text_encoder", "tokenizer", "scheduler"],
                    "video": ["video"], "tsr": ["tsr"]}                       # the first has the defaults of the stage
# A model folder may not choose these: files that nobody named would be read.
NOT_OF_A_MODEL = ("stage", "stage_for", "out", "model", "data", "latents", "start", "merges", "decoder_of", "device")


def command_line(prog, description, stages, recipe_class):
    """(the parser, {stage: its own parser}) for {stage: (the function that trains it, only= or without= options)}."""
    parser = ArgumentParser(prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands, parsers = parser.add_subparsers(dest="stage", required=True, metavar="STAGE"), {}
    for name, (train, selection) in stages.items():
        parsers[name] = commands.add_parser(name, help=train.__doc__.splitlines()[0], description=train.__doc__)
        for settings_class in (Run, Clips, recipe_class):
            add_options(parsers[name], settings_class, **selection)
    return parser, parsers


def parse(parser, stages, argv):
    """The arguments: the command line's, else the model folder's own "training" settings, else the defaults."""
    args = parser.parse_args(argv)
    asked = args.augment                                                     # by the person, not by the model folder
    defaults = component(FOLDERS_OF_STAGE[getattr(args, "stage_for", args.stage)][0], args.model).settings("training")
    wrong = [key for key in defaults if key in NOT_OF_A_MODEL]
    if args.stage != "latents":                                              # that has only some options of its stage
        wrong += [key for key, value in defaults.items() if key not in args or (
            isinstance(value, bool) != isinstance(getattr(args, key), bool) and value is not None)]
    if wrong:
        parser.error(f"{args.model}: its config.json has wrong training settings: {', '.join(wrong)}")
    # argparse checks a default that is a string, like the same words on the command line. A flag's is true or false.
    stages[args.stage].set_defaults(**{key: value if isinstance(value, bool) else str(value)
                                       for key, value in defaults.items() if key in args and value is not None})
    args = parser.parse_args(argv)
    if args.data and getattr(args, "latents", None):
        parser.error("--data and --latents: choose one; latents are clips already")
    if (args.augment or asked is not None) and not args.data:
        parser.error("--augment: needs --data; latents were augmented when they were made, and the toy set has no need")
    return args


def claim(out, stage):
    """Returns an open file: while it is open, no other process trains `stage` in folder `out`. ValueError if one does,
    or if the stage would replace files of others: a run makes the lock file first, and a checkpoint before weights."""
    lock, folders = out / f".{stage}.lock", FOLDERS_OF_STAGE[stage]
    patterns = [f"{folder}/*.safetensors" for folder in folders] if lock.exists() else [
        f"{stage}.csv", f"{stage}.png", f"{stage}-[0-9]*.png", *(f"{folder}/[!.]*" for folder in folders)]
    if (files := [file for pattern in patterns for file in out.glob(pattern)]) and not checkpoints(out, stage):
        raise ValueError(f"{files[0]}: stage {stage} would replace it; name another --out, or move it away")
    out.mkdir(parents=True, exist_ok=True)
    file = open(lock, "a")
    try:
        import fcntl
        free = rank() > 0 or fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB) is None
    except (ImportError, OSError) as error:                                  # Windows, some network disks: no locks
        free = not isinstance(error, (BlockingIOError, PermissionError))
    if not all(all_gather(free)):
        raise ValueError(f"{out}: another process trains stage {stage} there; wait for it, or name another --out")
    return file


def launch(prog, parse, stages, recipe_class, argv):
    """Trains the stage that argv names, in this process or in each that torchrun started; returns the exit code."""
    def start():
        args = parse(argv)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True        # tensor cores for float32
        with processes(args.device):
            torch.manual_seed(args.seed)
            clips = from_args(Clips, args).of_stage(getattr(args, "stage_for", args.stage))
            args.keep = getattr(args, "keep", None) or ("best" if clips.of_ones_own() else "last")
            settings = from_args(Run, args), clips, from_args(recipe_class, args)
            lock = args.stage == "latents" or claim(args.out, args.stage)    # held to the end
            stages[args.stage][0](*settings)
    return run(prog, start, stopped="the same command resumes from the last checkpoint")
