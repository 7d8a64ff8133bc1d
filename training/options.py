"""The command lines of train.py and training/pretrain.py: a model folder's own defaults, and the launch of a stage."""

import argparse

import torch

from sd21.command import ArgumentParser, add_options, from_args, run
from sd21.weights import component
from training.distributed import processes
from training.loop import Run
from training.prepare import Clips
from training.state import checkpoints

FOLDER_OF_STAGE = {"vae": "vae", "image": "unet", "video": "video", "tsr": "tsr"}        # in a model folder


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
    defaults = component(FOLDER_OF_STAGE[getattr(args, "stage_for", args.stage)], args.model).settings("training")
    unknown = defaults.keys() - vars(args).keys()
    if unknown and args.stage != "latents":                                  # that has only some options of its stage
        parser.error(f"{args.model}: its config.json names training settings that are none: {', '.join(unknown)}")
    # argparse checks a default that is a string, like the same words on the command line. A flag's is true or false.
    stages[args.stage].set_defaults(**{key: value if isinstance(value, bool) else str(value)
                                       for key, value in defaults.items() if key in args and value is not None})
    args = parser.parse_args(argv)
    if args.data and getattr(args, "latents", None):
        parser.error("--data and --latents: choose one; latents are clips already")
    return args


def launch(prog, parse, stages, recipe_class, argv):
    """Trains the stage that argv names, in this process or in each that torchrun started; returns the exit code."""
    def start():
        args = parse(argv)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True        # tensor cores for float32
        with processes(args.device):
            torch.manual_seed(args.seed)
            folder = args.out / FOLDER_OF_STAGE.get(args.stage, "")
            if args.stage != "latents" and any(folder.glob("*.safetensors")) and not checkpoints(args.out, args.stage):
                raise ValueError(f"{folder}: holds trained weights already; name another --out, or move them away")
            clips = from_args(Clips, args).of_stage(getattr(args, "stage_for", args.stage))
            stages[args.stage][0](from_args(Run, args), clips, from_args(recipe_class, args))
    return run(prog, start, stopped="the same command resumes from the last checkpoint")
