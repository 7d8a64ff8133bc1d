"""The map: which class each tensor of a checkpoint belongs to, by file and line. `python -m sd21.weights PATH`.

defines  print_map, main; the caller tells them the classes, since this folder imports no video model
"""

import functools
import inspect
import math
from pathlib import Path

from torch import nn

from sd21.command import ArgumentParser, run
from sd21.names import family
from sd21.weights import MODELS, Stored, build, check, component, locate


@functools.cache
def where(model_class):
    """Where a class is written: "ResBlock           sd21/vae.py:22"."""
    line = inspect.getsourcelines(model_class)[1]
    return f"{model_class.__name__:18} {model_class.__module__.replace('.', '/')}.py:{line}"


def owners(model):
    """{tensor name: the class of the innermost module that holds it and is more than one layer of PyTorch's}."""
    layers = (nn.Linear, nn.Conv2d, nn.GroupNorm)                # also those that only start at zero or run faster
    classes = {name: type(module) for name, module in model.named_modules()
               if not isinstance(module, layers) and not type(module).__module__.startswith("torch.")}

    def owner(name):
        while name not in classes:
            name = name.rpartition(".")[0]
        return classes[name]
    return {name: owner(name) for name in model.state_dict()}


def print_table(title, names, tensors, classes):
    """Prints these names of `tensors`, {name: Stored}, with their classes; returns how many parameters they have."""
    count = sum(math.prod(tensors[name].shape) for name in names)
    print(f"\n{title}: {len(names)} tensors, {count:,} parameters")
    labels = [name if tensors[name].name == name else f"{tensors[name].name} -> {name}" for name in names]
    width = max(map(len, labels), default=0)
    for label, name in zip(labels, names, strict=True):
        stored = tensors[name]
        print(f"  {label:{width}}  {str(list(stored.shape)):18} {stored.dtype:4}  {where(classes[name])}")
    return count


def print_map(path, classes, is_new):
    """Prints where each tensor of a checkpoint goes, component by component, with what the paper adds apart.

    classes: {component name: model class}; is_new(tensor name): whether the paper adds it. Raises ValueError.
    """
    located, total, prediction = locate(path), 0, None
    if "unet" in located or "text_encoder" in located:
        prediction = component("scheduler", path).read()[0].get("prediction_type", "epsilon")
    print(f"{path}: looks like {family(next(iter(located.values())), prediction)}")
    for name in [name for name in MODELS if name in located]:
        model = build(component(name, path), classes[name], **({"temporal": False} if name == "unet" else {}))
        check(model, located[name], path)
        tables = {name: list(model.state_dict())}
        if name in ("video", "tsr"):
            tables = {f"{name}, from the image model": [tensor for tensor in model.state_dict() if not is_new(tensor)],
                      f"{name}, what the paper adds": [tensor for tensor in model.state_dict() if is_new(tensor)]}
        for title, names in tables.items():
            total += print_table(title, names, located[name], owners(model))
    print(f"\nall: {total:,} parameters")
    if "unet" in located and "video" not in located:
        model = build(component("unet", path), classes["video"])
        added = {name: Stored(None, name, "-", tensor.shape, 0)
                 for name, tensor in model.state_dict().items() if is_new(name)}
        print_table("what the paper adds, not in this checkpoint", added, added, owners(model))


def main(classes, is_new, argv=None):
    """The command `python -m sd21.weights PATH`; returns its exit code. See print_map for classes and is_new."""
    parser = ArgumentParser("python -m sd21.weights", description="Print each tensor of a checkpoint, and its class.")
    parser.add_argument("path", type=Path, help="a model folder, SD2.1's single file, or a checkpoint of train.py")
    return run(parser.prog, print_map, parser.parse_args(argv).path, classes, is_new)
