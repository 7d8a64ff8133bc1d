"""Settings that are dataclasses and command-line options at once, so that name, default, check and help stand together."""

from dataclasses import field, fields


def option(default, help, type=str, **more):
    """A dataclass field that is also an option, with its argparse type (sd21/command.py). type=bool makes a flag."""
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
