"""Frechet Video Distance (Unterthiner et al. 2018): Sec. 4 "Evaluation metrics", Tables 1 to 4, Fig. 6.

    python -m evaluation.fvd real/ generated/                          toy FVD: features of toy/judge
    python -m evaluation.fvd real/ generated/ --network i3d.pt         the field's FVD, with its I3D as TorchScript
    python -m evaluation.fvd real/ generated/ --save real.safetensors  keeps the statistics of real/ for another time

FVD compares two Gaussians that have the mean and covariance of the features of each side. It shrinks as clips are
added, and with fewer clips than features a covariance is singular: compare numbers of equal protocol and counts only.
"""
import json
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from data.media import MARK, check_output
from evaluation.windows import Protocol, Windows, describe, run_network
from sd21.command import ArgumentParser, add_options, from_args, run
from sd21.files import write_tensors


class Statistics:
    """Count, mean [d] and covariance [d, d] of feature rows, added batch by batch, in float64 (Chan et al. 1983): ten
    thousand clips take no more memory than ten. Sums of squares, minus the squared mean, would cancel instead."""
    def __init__(self, mean=0.0, scatter=0.0, count=0):
        self.mean, self.scatter, self.count = mean, scatter, count  # scatter [d, d]: (count - 1) times the covariance

    def add(self, x):
        """Adds features x [b, d]; returns itself."""
        x, total = x.double(), self.count + len(x)
        shift, centred = x.mean(0) - self.mean, x - x.mean(0)
        self.scatter = self.scatter + centred.T @ centred + torch.outer(shift, shift) * self.count * len(x) / total
        self.mean, self.count = self.mean + shift * len(x) / total, total
        return self

    @property
    def covariance(self):
        return self.scatter / (self.count - 1)


def frechet_distance(a, b):
    """|mu_a - mu_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a C_b)^(1/2)) of two Statistics.

    C_a C_b is not symmetric, but with roots S_a, S_b of both, (C_a C_b)^(1/2) has the trace of |S_a S_b|: the sum of
    its singular values. A root of the product itself would lose half of its digits if a covariance is nearly singular.
    Eigenvalues that rounding has made negative become 0."""
    def root(covariance):
        values, vectors = torch.linalg.eigh(covariance)
        return vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.svdvals(root(a.covariance) @ root(b.covariance)).sum()
    return ((a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross).item()


def statistics_of(folder, protocol, network):
    """(the Statistics of a folder's features, notes on its clips for `warnings`)."""
    windows, statistics, repeated = Windows(folder, protocol), Statistics(), 0
    for frames in windows.batches():
        statistics.add(run_network(network, frames, protocol.device))
        repeated += (frames[:, 1:] == frames[:, :-1]).flatten(2).all(-1).double().mean(1).sum().item()
    return statistics, {"sizes": windows.sizes(), "repeated": repeated / len(windows)}


def save(path, statistics, settings, notes):
    """Writes Statistics as safetensors, with the protocol they were computed by."""
    write_tensors({"mean": statistics.mean, "scatter": statistics.scatter}, path,
                  {"count": str(statistics.count), "settings": json.dumps(settings), "notes": json.dumps(notes),
                   "software": MARK})


def load(path, settings):
    """(Statistics, notes) that `save` wrote. ValueError unless they were computed by the protocol in `settings`."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors, about = [file.get_tensor(name) for name in ("mean", "scatter")], file.metadata()
        count, saved, notes = int(about["count"]), json.loads(about["settings"]), json.loads(about["notes"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: holds no statistics of this command ({error})") from None
    for key, value in settings.items():
        if saved.get(key) != value:
            raise ValueError(f"{path}: was computed with {key} {saved.get(key)}, not {value}; FVD compares only sides "
                             "that were read and judged alike")
    return Statistics(*tensors, count), notes


def warnings(settings, sides):
    """Yields the reasons for which the number is worth less. sides: {name: (Statistics, notes)}, two of them."""
    (name_a, (a, notes_a)), (name_b, (b, notes_b)) = sides.items()
    if (least := min(a.count, b.count)) <= len(a.mean):
        yield (f"{least} clips for {len(a.mean)} features: a covariance is singular, so the number is too large; "
               "compare it only with numbers from as many clips")
    if a.count != b.count:
        yield f"{a.count} clips against {b.count}: FVD falls as clips are added; compare it only with equal counts"
    if notes_a["sizes"] != notes_b["sizes"]:
        yield (f"{name_a} has clips of {notes_a['sizes']} pixels, {name_b} of {notes_b['sizes']}: the number also "
               f"counts the sharpness that they differ by at size {settings['size']}")
    if abs(notes_a["repeated"] - notes_b["repeated"]) > 0.2:
        yield (f"{notes_a['repeated']:.0%} of the frames of {name_a} repeat the one before, {notes_b['repeated']:.0%} "
               f"of {name_b}: one side has a lower rate than {settings['fps']:g} fps, or stands still")


def compare(args):
    """The command: prints FVD, the protocol and the warnings."""
    protocol = from_args(Protocol, args)
    if args.save:
        check_output(args.save, [".safetensors"], [args.real, args.generated, args.network])
    network, settings = protocol.load()
    sides = {str(path): load(path, settings) if path.suffix == ".safetensors" else
             statistics_of(path, protocol, network) for path in (args.real, args.generated)}
    if len(sides) == 1:
        raise ValueError(f"{args.real}: is on both sides")
    (a, notes), (b, _) = sides.values()
    if args.save:
        save(args.save, a, settings, notes)
    print(f"FVD {frechet_distance(a, b):.2f} ({a.count} against {b.count} clips; {describe(settings)})")
    for line in warnings(settings, sides):
        print(f"warning: {line}")


def main(argv=None):
    """The command line; see the top of the file. Returns the exit code."""
    parser = ArgumentParser("python -m evaluation.fvd", description="Frechet Video Distance of two folders of clips.")
    parser.add_argument("real", type=Path, help="folder of clips, or statistics that --save wrote (.safetensors)")
    parser.add_argument("generated", type=Path, help="likewise")
    parser.add_argument("--save", type=Path, help="write the statistics of `real` to this .safetensors file")
    add_options(parser, Protocol)
    return run(parser.prog, compare, parser.parse_args(argv), out_of_memory="a smaller --batch takes less")


if __name__ == "__main__":
    sys.exit(main())
