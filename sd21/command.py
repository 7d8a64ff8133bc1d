"""What all commands share: options and the checks of their values (argparse types), one-line errors, exit codes."""

import argparse
import math
import os
import re
import sys
from contextlib import suppress
from dataclasses import field, fields
from pathlib import Path

import torch


class ArgumentParser(argparse.ArgumentParser):
    """Reports a wrong option in one line. argparse alone would print the whole usage first."""
    def error(self, message):
        self.exit(2, f"{self.prog}: {one_line(message)}\n")


def _checked(kind, allowed, problem):
    """An argparse type: kind(text), if that is a value for which allowed(value) is true."""
    def parse(text):
        with suppress(ValueError, OverflowError):               # of kind, if the text is no number, or too large a one
            if allowed(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text}: {problem}")
    return parse


positive_int = _checked(int, lambda x: 1 <= x < 2**31, "want a whole number, 1 or more")
natural = _checked(int, lambda x: 0 <= x < 2**31, "want a whole number, 0 or more")
seed = _checked(int, lambda x: 0 <= x < 2**32, "want a whole number from 0 to 4294967295")
positive_float = _checked(float, lambda x: 0 < x < math.inf, "want a finite number more than 0")
learning_rate = _checked(float, lambda x: 0 <= x < math.inf, "want a finite number, 0 or more")
finite_float = _checked(float, math.isfinite, "want a finite number")
share = _checked(float, lambda x: 0 <= x <= 1, "want a share, from 0 to 1")
fps = _checked(float, lambda x: 0 < x <= 1000, "want more than 0 and at most 1000 frames a second")
existing_path = _checked(Path, Path.exists, "there is no such folder or file")


def height_width(size):
    """(height, width) in pixels of a size: 320 (square) or "320x192" (width x height). Raises ValueError."""
    numbers = re.fullmatch("([1-9][0-9]{0,3})(?:x([1-9][0-9]{0,3}))?", str(size))
    if not numbers:
        raise ValueError(f"size {size}: want 1 to 9999 pixels, such as 320, or 320x192 (width x height)")
    return int(numbers[2] or numbers[1]), int(numbers[1])


def size_of(height, width):
    """The size, as options, settings and JSON files hold it: 320 if both sides are equal, else "320x192"."""
    return width if width == height else f"{width}x{height}"


def size(text):
    """An argparse type: the `size_of` a text, so that 320x320 is 320."""
    try:
        return size_of(*height_width(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(error) from None


def check_multiple(size, multiple):
    """ValueError, with the nearest sizes below and above, unless both sides are multiples of so many pixels."""
    sides = height_width(size)
    if any(side % multiple for side in sides):
        nearest = [size_of(*(min(max(1, rounded(side / multiple)), 9999 // multiple) * multiple for side in sides))
                   for rounded in (math.floor, math.ceil)]
        raise ValueError(f"size {size}: want a multiple of {multiple} pixels a side (autoencoder x U-Net levels), such "
                         f"as {' or '.join(map(str, dict.fromkeys(nearest)))}")


def device(text):
    """An argparse type: the name of a device that PyTorch can compute on."""
    # Under torchrun, try the GPU of this process: otherwise every process would take memory on GPU 0.
    one = f"cuda:{os.environ['LOCAL_RANK']}" if text == "cuda" and "LOCAL_RANK" in os.environ else text
    try:
        torch.empty(1, device=one).cpu()                        # .cpu() fails on `meta`, which holds no numbers
    except (RuntimeError, AssertionError, ImportError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {str(error).splitlines()[0]}") from None
    return text


def option(default, help, type=str, **more):
    """A dataclass field that is a command-line option too: name, default, check and help stand in one place."""
    kind = {"action": "store_true"} if type is bool else {"type": type}
    return field(default=default, metadata={"help": help} | kind | more)


def add_options(parser, settings_class, only=None, without=(), **more):
    """Adds the options of a settings class to a parser: all, those in `only`, or all but `without`."""
    for item in fields(settings_class):
        if item.metadata and item.name not in without and (only is None or item.name in only):
            parser.add_argument(f"--{item.name.replace('_', '-')}", **{"default": item.default} | item.metadata | more)


def from_args(settings_class, args):
    """The settings in parsed arguments. A field without an argument keeps its default."""
    names = [item.name for item in fields(settings_class) if hasattr(args, item.name)]
    return settings_class(**{name: getattr(args, name) for name in names})


def is_out_of_memory(error):
    """Whether an exception means that memory ran out. On a CPU, PyTorch raises a plain RuntimeError for that."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and ("allocate" in str(error) or "overflow" in str(error)))


def one_line(error):
    """The text of an exception, or any text, in one line and without terminal escapes; if empty, its class's name."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(error)).split()) or type(error).__name__


def run(name, function, *args, stopped="nothing was written", out_of_memory=""):
    """Calls function(*args); returns the exit code of the command `name`: 0, or the int that the function returned.
    ValueError, OSError and a lack of memory become one line on stderr and code 2, Ctrl-C one line and 130. Any other
    exception is a bug and passes through. stopped: what a stopped command leaves; out_of_memory: what to try."""
    with suppress(AttributeError):                              # a notebook's stdout cannot be changed
        sys.stdout.reconfigure(errors="replace")                # a terminal that has no such letter shows "?"
    try:
        code = function(*args) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:                                     # the reader has read enough, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        message, code = f"stopped; {stopped}", 130
    except (ValueError, OSError) as error:
        message, code = error, 2
    except (RuntimeError, MemoryError) as error:
        message, code = f"takes more memory than there is; {out_of_memory}".removesuffix("; "), 2
        if any(words in str(error) for words in ("working C++ compiler", "find C compiler", "working triton")):
            message = "--compile needs a C++ compiler, on a GPU triton too; install it or leave --compile out"
        elif "shared memory(shm)" in str(error) or "out of shared memory" in str(error):
            message = "the workers that read clips ran out of shared memory; enlarge /dev/shm (docker: --shm-size)"
        elif not is_out_of_memory(error):
            raise
    print(f"{name}: {one_line(message)}", file=sys.stderr)
    return code
