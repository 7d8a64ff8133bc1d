"""How far can the toy judge be trusted? Its accuracy, and the toy metrics of clips that were harmed on purpose.

    python -m evaluation.trust                      of toy/judge, on 512 held-out clips: a table in Markdown
    python -m evaluation.trust --judge mine         of a judge of your own

FVD compares the harmed clips with as many true clips of other scenes, so that the truth's own number is not 0.
"""
import sys

import numpy as np
import torch
import torch.nn.functional as F

from data.toyset import CENTRE, COLOURS, SHAPES, frame_times, render
from evaluation.clipsim import cosines
from evaluation.fvd import frechet_distance
from evaluation.generate import held_out_scenes
from evaluation.inception_score import inception_score
from evaluation.judge import CLASSES, FPS, FRAMES, ToyScore, load_judge, measure
from evaluation.toy_scores import print_table
from evaluation.windows import JUDGE
from sd21.command import ArgumentParser, device, existing_path, positive_int, run, seed


def draw(scenes):
    """The true clips of scenes, uint8 [b, 17, 128, 128, 3]."""
    return torch.from_numpy(np.stack([render(scene, frame_times(FRAMES, FPS)) for scene in scenes]))


def blur(scenes, width=6):
    """The true clips without details smaller than `width` pixels of 128."""
    frames = draw(scenes).flatten(0, 1).permute(0, 3, 1, 2).float()
    frames = F.interpolate(F.avg_pool2d(frames, width), frames.shape[2:], mode="bilinear")
    return frames.round().to(torch.uint8).permute(0, 2, 3, 1).unflatten(0, (len(scenes), FRAMES))


def shuffle(scenes):
    """The true clips with their frames in random order."""
    random = torch.Generator().manual_seed(0)
    return torch.stack([clip[torch.randperm(FRAMES, generator=random)] for clip in draw(scenes)])


def recolour(scenes):
    """The clips of scenes in which every thing has the next of the eight colours."""
    next_colour = dict(zip(COLOURS, [*COLOURS][1:] + [*COLOURS][:1]))
    return draw([scene._replace(things=[thing._replace(colour=next_colour[thing.colour]) for thing in scene.things])
                 for scene in scenes])


HARMS = {"the truth": draw, "frozen at the key frame": lambda scenes: draw(scenes)[:, [FRAMES // 2] * FRAMES],
         "frames shuffled": shuffle, "blurred": blur, "the next colour": recolour, "caption of another clip": draw}


@torch.inference_mode()
def trust(args):
    """Prints the accuracies on held-out clips, and the toy metrics of clips that were harmed on purpose."""
    if args.clips < 2:
        raise ValueError("--clips 1: want 2 or more")
    score, classifier = ToyScore(args.device, args.judge), load_judge(args.device, args.judge)["classifier"]
    scenes = held_out_scenes(2 * args.clips, args.seed)
    results = {}

    def judged(scenes, harm, captions):
        rows = (harm(scenes[k:k + 16]) for k in range(0, len(scenes), 16))
        return measure(rows, captions, {"toy FVD": classifier}, score, args.device)
    scenes, others = scenes[:args.clips], scenes[args.clips:]
    captions = [scene.caption() for scene in scenes]
    reference, *_ = judged(others, draw, captions)
    for name, harm in HARMS.items():
        features, p, fits = judged(scenes, harm, captions[1:] + captions[:1] if "caption" in name else captions)
        results[name] = (frechet_distance(reference["toy FVD"], features["toy FVD"]), inception_score(p, 1)[0],
                         fits.mean().item())
        if name == "the truth":
            true = torch.tensor([[names.index(word) for names, word in zip(CLASSES, s.things[0])] for s in scenes])
            answers = torch.stack(torch.unravel_index(p.argmax(1), [len(names) for names in CLASSES]), dim=1)
            shape, colour, motion = (100 * (answers == true).double().mean(0)).tolist()
    options, right = [(shape, colour) for shape in SHAPES for colour in COLOURS], 0
    for scene in scenes:
        thing, picture = scene.things[0], torch.from_numpy(render(scene, [CENTRE]))[None]      # [1, 1, H, W, 3]
        texts = [f"a {colour} {shape} {thing.motion}" for shape, colour in options]
        right += options[cosines(score, picture, texts).argmax()] == (thing.shape, thing.colour)
    print(f"{args.clips} held-out clips. Right are shape {shape:.1f} %, colour {colour:.1f} %, motion {motion:.1f} % "
          f"(chance 12.5, 12.5, 9.1), and of 64 captions the nearest in {100 * right / len(scenes):.1f} % (1.6).\n")
    print_table(f"{args.clips} held-out clips | toy FVD to as many others | toy IS | toy CLIPSIM",
                ["{:.3f}", "{:.1f}", "{:.3f}"], results)


def main(argv=None):
    """The command line; see the top of the file. Returns the exit code."""
    parser = ArgumentParser("python -m evaluation.trust", description="How far can the toy judge be trusted?")
    add = parser.add_argument
    add("--judge", type=existing_path, default=JUDGE.parent, help="folder of the judge (default: toy/judge)")
    add("--clips", type=positive_int, default=512, help="clips a row (512)")
    add("--seed", type=seed, default=0, help="of the clips (0)")
    add("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, ...")
    return run(parser.prog, trust, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
