"""Records what the code computes, so that a restructuring can show that nothing changed. Not a test: numbers differ
between machines and thread counts, so record and compare on one machine.

    python tests/record.py before.json        the file does not exist: record
    python tests/record.py before.json        the file exists: compute again and compare; exit code 1 if they differ

It records hashes of the shipped model's latents (key frame, video, frames between; three prompts, float32), and of each
training stage ten steps from the shipped folder: the loss of each step, and hashes of weights, average and AdamW state.
`--repository FOLDER` runs the code of another checkout.
"""
import argparse
import csv
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

PROMPTS = ["a red circle moving left", "a blue star turning quickly and a pink moon standing still",
           "a green heart is slowly growing"]
SAMPLE = """
import sys, torch
from safetensors.torch import save_file
from microcinema import MicroCinema
prompts, seeds, out = sys.argv[2:], range(3), sys.argv[1]
cinema = MicroCinema.load("toy", "cpu")
key = cinema.key_frame(prompts, seeds, steps=20, sampler="ddim")
video = cinema.animate_latents(prompts, key, seeds, steps=20, sampler="ddim")
between = cinema.interpolate_latents(video, prompts, seeds, steps=5, sampler="ddim")
tensors = {"key frame": key, "video": video, "between": between, "pixels": cinema.decode(video)}
save_file({name: x.contiguous() for name, x in tensors.items()}, out)
"""
STAGES = {"vae": ["-m", "training.pretrain", "vae"], "image": ["-m", "training.pretrain", "image"],
          "video": ["train.py", "video"], "tsr": ["train.py", "tsr"]}
OPTIONS = "--steps 10 --batch 2 --clips 8 --save-every 1 --sample-every 10 --seed 3 --device cpu".split()


def hashes(file):
    """{kind of tensor: SHA-256 over names and bytes}; the kind is the first word of the name: model, ema, adam."""
    from safetensors.torch import load_file
    digests = {}
    for name, tensor in sorted(load_file(file).items()):
        digest = digests.setdefault(name.partition(".")[0], hashlib.sha256())
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return {kind: digest.hexdigest()[:16] for kind, digest in digests.items()}


def record(repository):
    """Everything that is compared, as JSON."""
    def python(*command):
        done = subprocess.run([sys.executable, *map(str, command)], cwd=repository, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")

    seen = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        python("-c", SAMPLE, folder / "sample.safetensors", *PROMPTS)
        seen["sample"] = hashes(folder / "sample.safetensors")
        for stage, command in STAGES.items():
            if not (Path(repository) / "training").is_dir():                 # a checkout from before the rooms
                command = ["train.py", stage]
            python(*command, "--out", folder / stage, *OPTIONS)
            rows = csv.DictReader((folder / stage / f"{stage}.csv").read_text().splitlines())
            seen[stage] = {"losses": [[v for k, v in row.items() if k != "seconds"] for row in rows]}
            for file in sorted(folder.glob(f"{stage}/*/*.safetensors")):
                seen[stage][f"{file.parent.name}"] = hashes(file)
            seen[stage]["checkpoint"] = hashes(max((folder / stage).glob("*.checkpoint.safetensors")))
    return seen


def main():
    """Records, or compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--repository", type=Path, default=Path(__file__).parents[1])
    args = parser.parse_args()
    seen = record(args.repository)
    if not args.file.exists():
        args.file.write_text(json.dumps(seen, indent=1) + "\n")
        return 0
    before = json.loads(args.file.read_text())
    for name in before:
        print(f"{name}: {'equal' if seen[name] == before[name] else 'DIFFERENT'}")
    return int(seen != before)


if __name__ == "__main__":
    sys.exit(main())
