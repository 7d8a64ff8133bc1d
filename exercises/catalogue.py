"""What an exercise is, how its function is cut from the project's source, and how an answer is certified.

An exercise is a function of the project, whose source is the only copy of the solution. The exercises stand in
section_*.py, each with its check. tests/test_exercises.py holds the wrong answers that the checks must tell apart. A
check gets a module with the student's function. All other functions in it that are exercises are the project's own: a
wrong answer does not spoil the next exercise."""

import ast
import contextlib
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).parents[1]
EXERCISES = {}                                      # by id, in the order of the paper
SECONDS = 20                                        # checks take 1 or 2; a loop that never ends is stopped here


@dataclass(frozen=True)
class Exercise:
    """A function to write again. Its id is the name of its check."""
    section: str                                    # of the paper, such as "3.2"
    source: str                                     # "Eq. 2", a figure, a table, or ""
    file: str
    function: str                                   # "spade" or "Spade.forward"
    difficulty: int                                 # 1: a line or two, 2: a function, 3: several ideas
    minutes: int
    task: str
    hint: str
    id: str
    check: Callable                                 # (module with the answer); its AssertionError names the idea


def exercise(*fields):
    """Decorates a check: enters the exercise into EXERCISES. The fields are those of Exercise, in order."""
    def enter(check):
        EXERCISES[check.__name__] = Exercise(*fields, check.__name__, check)
        return check
    return enter


def project_source(file):
    """The text of a file of the project."""
    return (ROOT / file).read_text(encoding="utf-8")


def find(tree, function):
    """(list of statements, index) of a function in a syntax tree, such as "Spade.forward". ValueError if missing."""
    *classes, name = function.split(".")
    body = tree.body
    for part in classes:
        body = next((node.body for node in body if isinstance(node, ast.ClassDef) and node.name == part), [])
    for i, node in enumerate(body):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return body, i
    raise ValueError(f"there is no function {function}")


def cut(text, function):
    """The lines of a source text before, in and after a function, as three texts. Its decorators belong to it."""
    body, i = find(ast.parse(text), function)
    first = min([body[i].lineno, *(decorator.lineno for decorator in body[i].decorator_list)]) - 1
    lines = text.splitlines(keepends=True)
    return "".join(lines[:first]), "".join(lines[first:body[i].end_lineno]), "".join(lines[body[i].end_lineno:])


def blank(text, exercise):
    """The source text with the exercise's body replaced by a hint and NotImplementedError; its docstring stays."""
    body, i = find(ast.parse(text), exercise.function)
    first, lines = body[i].body[0], text.splitlines(keepends=True)
    start, indent = first.end_lineno if ast.get_docstring(body[i]) else first.lineno - 1, " " * first.col_offset
    hint = textwrap.fill(f"Hint: {exercise.hint}", 118, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
    hole = f'{hint}\n{indent}raise NotImplementedError("{exercise.id}: {exercise.task}")\n'
    return "".join([*lines[:start], hole, *lines[body[i].end_lineno:]])


def certify(exercise, text):
    """Tries an answer: `text` is the whole text of the exercise's file. Returns "" if it is right, else the problem.

    It runs the code in `text` in this process."""
    own = ast.parse(project_source(exercise.file))
    try:
        tree = ast.parse(text)
        find(tree, exercise.function)
        for other in EXERCISES.values():
            if other.file == exercise.file and other is not exercise:
                (own_body, own_i), (body, i) = find(own, other.function), find(tree, other.function)
                body[i] = own_body[own_i]
        module = ModuleType(exercise.file.removesuffix(".py").replace("/", "."))
        module.__file__ = str(ROOT / exercise.file)
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(sys.stderr), time_limit():
            torch.manual_seed(0)
            exec(compile(tree, "answer", "exec"), vars(module))
            exercise.check(module)
    except AssertionError as error:
        return f"{exercise.source if exercise.source.startswith('Eq.') else exercise.function}: {error}"
    except NotImplementedError as error:
        return f"still blank. {str(error).partition(': ')[2] or error}"
    except (Exception, SystemExit) as error:                                 # anything may go wrong in an answer
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "answer"]
        lines += [error.lineno] if isinstance(error, SyntaxError) else []
        where = f"{exercise.file}, line {lines[-1]}" if lines else exercise.file
        return f"{where}: {type(error).__name__}: {error}"
    return ""


@contextlib.contextmanager
def time_limit():
    """Raises TimeoutError in the block after SECONDS. Windows has no such alarm: no limit there."""
    def stop(*_):
        raise TimeoutError(f"it still runs after {SECONDS} seconds; does a loop never end?")
    alarm = getattr(signal, "alarm", lambda seconds: None)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, stop)
    alarm(SECONDS)
    try:
        yield
    finally:
        alarm(0)


# ---------------------------------------------------------------------------------------------- helpers of the checks

TINY = dict(block_out_channels=(8, 16), layers_per_block=1, attention_head_dim=(2, 4), cross_attention_dim=6,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=4)


def close(got, want, message, tolerance=1e-5):
    """AssertionError with `message` unless two tensors are equal up to rounding; NaN is never equal."""
    assert isinstance(got, torch.Tensor), f"{message} (you return {type(got).__name__}, want a tensor)"
    assert got.shape == want.shape, f"{message} (your shape is {list(got.shape)}, want {list(want.shape)})"
    assert ((got - want).abs() <= tolerance * (1 + want.abs())).all(), message


def normal(*shape, seed=1):
    """Random numbers, float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def frames_of(clip):
    """[b, c, n, h, w] -> [(b n), c, h, w], frame by frame."""
    return torch.stack([clip[b, :, k] for b in range(len(clip)) for k in range(clip.shape[2])])


def moving_clip():
    """z_t [2, 4, 3, 4, 6] with frames that differ, t [2], text [2, 5, 6], and a key frame z_c [2, 4, 1, 4, 6]."""
    return normal(2, 4, 3, 4, 6).float(), torch.tensor([3, 700]), normal(2, 5, 6).float(), normal(2, 4, 1, 4, 6).float()


@torch.no_grad()
def stir(model):
    """Adds random numbers to every parameter: as after training, none is zero any more. Returns the model."""
    for p in model.parameters():
        p.add_(0.2 * torch.randn_like(p))
    return model


def last(states):
    """The last state that a sampler yields."""
    *_, z = states
    return z
