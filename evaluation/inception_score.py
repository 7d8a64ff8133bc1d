"""Inception Score (Salimans et al. 2016) of videos: Sec. 4 "Evaluation metrics", Tables 1 to 4.

    python -m evaluation.inception_score generated/                     toy IS: the classes of toy/judge
    python -m evaluation.inception_score generated/ --network FILE      the classes of a network of your own

IS is high if each clip belongs clearly to one class, and the clips to many. It never looks at real clips. The field
averages ten splits. A split's IS is at most its number of clips, so small splits bound the score.
our reading  The classes of the toy judge are shape x colour x motion, 704 in all; 62 of them occur in held-out prompts.
"""
import sys
from pathlib import Path

import torch

from evaluation.windows import Protocol, Windows, describe, run_network
from sd21.command import ArgumentParser, add_options, from_args, positive_int, run


def inception_score(p, splits=10):
    """(mean, standard deviation over the splits) of exp(mean KL(p(y|x) || p(y))). p [clips, classes], rows of
    probabilities; the splits are consecutive and as even as they can be. ValueError for fewer clips than splits."""
    if len(p) < splits:
        raise ValueError(f"{len(p)} clips in {splits} splits: want a clip or more in each; see --splits")
    if (p < 0).any() or ((p.sum(1) - 1).abs() > 1e-3).any():
        raise ValueError("the network returns rows that are no probabilities for return_features=False")
    scores = torch.stack([(torch.xlogy(rows, rows) - torch.xlogy(rows, rows.mean(0))).sum(1).mean().exp()
                          for rows in p.double().tensor_split(splits)])
    return scores.mean().item(), scores.std(correction=0).item()


def score(args):
    """The command: prints IS and the protocol."""
    protocol = from_args(Protocol, args)
    (network, settings), windows = protocol.load(), Windows(args.folder, protocol)
    p = torch.cat([run_network(network, frames, protocol.device, False) for frames in windows.batches()])
    mean, deviation = inception_score(p, args.splits)
    print(f"IS {mean:.2f} +- {deviation:.2f} over {args.splits} splits ({len(p)} clips; {describe(settings)})")
    if len(p) < p.shape[1] * args.splits:
        print(f"warning: {len(p) // args.splits} clips a split for {p.shape[1]} classes: the score is at most the "
              "number of clips; compare it only with scores of as many clips and splits")


def main(argv=None):
    """The command line; see the top of the file. Returns the exit code."""
    parser = ArgumentParser("python -m evaluation.inception_score", description="Inception Score of a folder of clips.")
    parser.add_argument("folder", type=Path, help="folder of clips")
    parser.add_argument("--splits", type=positive_int, default=10, help="parts to score one by one (10)")
    add_options(parser, Protocol)
    return run(parser.prog, score, parser.parse_args(argv), out_of_memory="a smaller --batch takes less")


if __name__ == "__main__":
    sys.exit(main())
