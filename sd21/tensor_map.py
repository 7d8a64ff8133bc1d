"""The map: which class each tensor of a checkpoint belongs to, by file and line. `python -m sd21.weights PATH`."""

import inspect
import math
from pathlib import Path

from torch import device, nn

from sd21.command import ArgumentParser, run
from sd21.names import family
from sd21.weights import MODELS, Stored, build, component, locate, read_settings


def print_table(title, model, names, tensors):
    """Prints these names of `tensors`, {name: Stored}, each with its owner: the class of the innermost module that
    holds it and is more than one layer of PyTorch's. Returns how many parameters they have."""
    layers, owner = (nn.Linear, nn.Conv2d, nn.GroupNorm), {}     # also those that only start at zero or run faster
    for path, module in model.named_modules():                   # from the outside in
        if not isinstance(module, layers) and not type(module).__module__.startswith("torch."):
            owner |= dict.fromkeys(module.state_dict(prefix=f"{path}." if path else ""), type(module))
    count = sum(math.prod(tensors[name].shape) for name in names)
    print(f"\n{title}: {len(names)} tensors, {count:,} parameters")
    labels = {name: name if tensors[name].name == name else f"{tensors[name].name} -> {name}" for name in names}
    width = max(map(len, labels.values()), default=0)
    where = {kind: f"{kind.__name__:18} {kind.__module__.replace('.', '/')}.py:{inspect.getsourcelines(kind)[1]}"
             for kind in {owner[name] for name in names}}
    for name, label in labels.items():
        print(f"  {label:{width}}  {str(list(tensors[name].shape)):18} {tensors[name].dtype:4}  {where[owner[name]]}")
    return count


def print_map(path, classes, is_new):
    """Prints where each tensor goes. classes: {component: model class}; is_new(tensor name): the paper adds it."""
    located, total, prediction = locate(path), 0, None
    if "unet" in located or "text_encoder" in located:
        prediction = component("scheduler", path).read()[0].get("prediction_type", "epsilon")
    print(f"{path}: looks like {family(next(iter(located.values())), prediction)}")
    for name in [name for name in MODELS if name in located]:
        fixed = {"temporal": False} if name == "unet" else {}
        model = build(component(name, path), classes[name], located[name], **fixed)
        copied = [tensor for tensor in model.state_dict() if not is_new(tensor)]
        added = [tensor for tensor in model.state_dict() if is_new(tensor)]
        total += print_table(f"{name}, from the image model" if added else name, model, copied, located[name])
        total += print_table(f"{name}, what the paper adds", model, added, located[name]) if added else 0
    print(f"\nall: {total:,} parameters")
    if "unet" in located and "video" not in located:
        with device("meta"):                                      # shapes, but no memory
            model = read_settings(component("unet", path), None, classes["video"])
        added = {name: Stored(None, name, "-", x.shape) for name, x in model.state_dict().items() if is_new(name)}
        print_table("what the paper adds, not in this checkpoint", model, added, added)


def main(classes, is_new, argv=None):
    """The command `python -m sd21.weights PATH`; returns its exit code. See print_map for classes and is_new."""
    parser = ArgumentParser("python -m sd21.weights", description="Print each tensor of a checkpoint, and its class.")
    parser.add_argument("path", type=Path, help="a model folder, SD2.1's single file, or a checkpoint of train.py")
    return run(parser.prog, print_map, parser.parse_args(argv).path, classes, is_new)
