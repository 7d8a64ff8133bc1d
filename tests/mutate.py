"""Mutation testing, by hand: which small changes of a function do exercises and tests notice? See docs/mutation.md.

    python -m tests.mutate                                       every function that carries an equation or a law
    python -m tests.mutate sampler.py:ddim unet3d.py:inject      only these; --all tries all their mutants, not 30

A mutant is the project with one change in one function. It replaces the function in memory, in a forked process; no
file changes. First the function's exercise tries it, then the fast tests of its file. A mutant that passes survives."""
import ast
import copy
import difflib
import importlib
import inspect
import os
import signal
import sys
import textwrap
from types import ModuleType

import pytest
import torch

from exercises.catalogue import EXERCISES, ROOT, certify, cut, find, project_source

TARGETS = {  # file: (its tests, its functions; "" for all)
    "sampler.py": ("sampler", ""), "unet3d.py": ("unet3d appearnet", ""), "appearnet.py": ("appearnet", ""),
    "train.py": ("train", "loss parameter_groups make_batch"),
    "microcinema.py": ("microcinema microcinema_stages", "tsr_condition encode_video noise MicroCinema.sample_video "
                       "MicroCinema.sample MicroCinema.interpolate_latents"),
    "sd21/kernels.py": ("kernels norm unet3d", ""), "sd21/layers.py": ("unet3d kernels", ""),
    "training/state.py": ("state loop", "TrainState.step"), "training/loop.py": ("loop", "learning_rate_scale"),
    "evaluation/fvd.py": ("fvd", "Statistics.add Statistics.covariance frechet_distance")}
OTHER = {ast.Add: ast.Sub, ast.Mult: ast.Div, ast.Lt: ast.LtE, ast.Gt: ast.GtE, ast.Eq: ast.NotEq, ast.In: ast.NotIn,
         ast.Is: ast.IsNot, ast.And: ast.Or}
OTHER |= {b: a for a, b in OTHER.items()} | {ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv}


def functions(file):
    """The names of all functions and methods of a file."""
    for node in ast.parse(project_source(file)).body:
        names = [x.name for x in getattr(node, "body", []) if isinstance(x, ast.FunctionDef)]
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield from [f"{node.name}.{x}" for x in names] if isinstance(node, ast.ClassDef) else [node.name]


def nodes(node):
    """The nodes of a syntax tree whose change could matter: no annotations, no messages of exceptions."""
    yield node
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and field not in ("annotation", "returns", "exc"):
                yield from nodes(child)


def exchanged(items):
    """The lists that arise when two neighbours are exchanged."""
    return [[*items[:i], items[i + 1], items[i], *items[i + 2:]] for i in range(len(items) - 1)]


def variants(node):
    """The nodes that may replace a node."""
    def changed(**fields):
        return type(node)(**{**vars(node), **fields})
    operators = [changed(op=OTHER[type(node.op)]())] if type(getattr(node, "op", None)) in OTHER else []
    match node:
        case ast.BinOp() | ast.BoolOp():
            return [*operators, *(node.values if isinstance(node, ast.BoolOp) else (node.left, node.right))]
        case ast.UnaryOp():
            return [node.operand]
        case ast.Compare():
            return [changed(ops=[OTHER[type(op)]() if op is chosen else op for op in node.ops]) for chosen in node.ops]
        case ast.IfExp():
            return [changed(body=node.orelse, orelse=node.body), node.body, node.orelse]
        case ast.If() | ast.While():
            return [changed(test=ast.UnaryOp(ast.Not(), node.test)), changed(test=ast.Constant(False))]
        case ast.comprehension(ifs=[condition, *_]):
            return [changed(ifs=[]), changed(ifs=[ast.UnaryOp(ast.Not(), condition)])]
        case ast.Constant(value=bool() | int() | float() as x):
            new = {bool: (not x,), int: (x + 1, x - 1), float: (x + 1, 2 * x)}
            return [ast.Constant(value) for value in new[type(x)]]
        case ast.Call(func=function, args=args, keywords=keywords):
            order = [] if getattr(function, "attr", "") == "transpose" else exchanged(args)      # equal in any order
            dropped = [[x for x in keywords if x is not keyword] for keyword in keywords]
            crossed = [[ast.keyword(k.arg, value) for k, value in zip(keywords, values, strict=True)]
                       for values in exchanged([keyword.value for keyword in keywords])]
            return [*args[:1], *([function.value] if isinstance(function, ast.Attribute) else []),
                    *(changed(args=x) for x in order), *(changed(keywords=x) for x in dropped + crossed)]
        case ast.Tuple(ctx=ast.Load()) | ast.List(ctx=ast.Load()):
            return [changed(elts=elements) for elements in exchanged(node.elts)]
        case ast.AugAssign() | ast.Expr(ast.Call()) | ast.Assign([ast.Attribute() | ast.Subscript() | ast.Tuple()]):
            return [ast.Pass()]
    return []


def mutants(text, function):
    """{source text of a file with one change in the function: "line -> changed line"}."""
    body, i = find(ast.parse(text), function)
    head, _, tail = cut(text, function)
    found, own = {}, ast.unparse(body[i])
    for node, variant in ((node, variant) for node in nodes(body[i]) for variant in variants(node)):
        changed = ast.unparse(ast.fix_missing_locations(copy.deepcopy(body[i], {id(node): variant})))
        lines = [*difflib.unified_diff(own.splitlines(), changed.splitlines(), n=0, lineterm="")][3:]
        before, after = (" ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")
        if lines:
            found[head + textwrap.indent(changed, " " * body[i].col_offset) + "\n" + tail] = f"{before}  ->  {after}"
    return found


def put(text, file, function):
    """Gives the code and defaults that the function has in `text` to the function of the project."""
    mutant = ModuleType(file.removesuffix(".py").replace("/", "."))
    mutant.__file__ = str(ROOT / file)
    exec(compile(text, file, "exec"), vars(mutant))
    old, new = sys.modules[mutant.__name__], mutant
    for part in function.split("."):
        old, new = vars(old)[part], vars(new)[part]
    old, new = (inspect.unwrap(getattr(x, "fget", getattr(x, "__func__", x))) for x in (old, new))
    old.__code__, old.__defaults__, old.__kwdefaults__ = new.__code__, new.__defaults__, new.__kwdefaults__


def caught(text, file, function, session):
    """True if an exercise or a test fails with this source text of the file. Tries it in a fork, without output."""
    if child := os.fork():
        return os.waitpid(child, 0)[1] != 0
    fails = True
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        if not any(certify(e, text) for e in EXERCISES.values() if (e.file, e.function) == (file, function)):
            signal.alarm(600)                                                # seconds; a mutant may loop for ever
            put(text, file, function)
            for item, following in zip(session.items, [*session.items[1:], None], strict=True):
                if not session.testsfailed:
                    session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            fails = session.testsfailed > 0
    finally:
        os._exit(fails)


class Mutate:
    """A plugin of pytest: instead of running the tests, which are collected once, it tries the mutants of a file."""
    def __init__(self, file, names, most):
        self.file, self.names, self.most = file, names, most

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        own = project_source(self.file)
        for name in self.names:
            if caught(own, self.file, name, session):
                sys.exit(f"{self.file} {name}: its tests fail without a change")
            found = [*mutants(own, name).items()]
            count = min(self.most, len(found))
            tried = [found[i * len(found) // count] for i in range(count)]   # evenly spread
            left = [line for text, line in tried if not caught(text, self.file, name, session)]
            print(f"| `{self.file}` `{name}` | {len(found)} | {count} | {count - len(left)} | {len(left)} |",
                  *left, sep="\n      ", flush=True)
        return True


def main(argv):
    """Prints a row for each function; below it, `line -> changed line` of each survivor."""
    torch.set_num_threads(1)
    print("| function | mutants | tried | caught | survived |\n| --- | ---: | ---: | ---: | ---: |")
    for file, (tests, some) in TARGETS.items():
        names = [name.split(":")[1] for name in argv if name.startswith(f"{file}:")]
        names = names if argv not in ([], ["--all"]) else some.split() or [*functions(file)]
        if names:
            importlib.import_module(file.removesuffix(".py").replace("/", "."))
            pytest.main([*(f"{ROOT}/tests/test_{test}.py" for test in tests.split()), "-sqqm", "not slow", "-p",
                         "no:cacheprovider"], [Mutate(file, names, 10 ** 6 if "--all" in argv else 30)])


if __name__ == "__main__":
    main(sys.argv[1:])
