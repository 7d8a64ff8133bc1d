"""Runs every command that README.md shows, the long ones shortened by their own flags, so that none can rot.

The ```sh blocks are run top to bottom in one folder, a copy of the repository: one command a line. The first two make
the virtual environment and run the tests; they are run to the letter.
"""
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

SHORTER = {"microcinema.py": "--steps 3", "metrics.py": "--prompts 2 --steps 2",
           "train.py latents": "--batch 2 --clips 8 --device cpu",
           "train.py": "--steps 2 --batch 2 --clips 8 --device cpu", "data.py": "", "weights.py": "",
           "clips.py": "--rows 2"}

root = Path(__file__).parents[1]
blocks = re.findall(r"^```sh\n(.*?)^```", (root / "README.md").read_text(), re.M | re.S)
commands = [line for block in blocks for line in block.splitlines()]
for name in ("photo.jpg", "first.png", "last.png"):                          # pictures that a person would bring
    Image.effect_noise((300, 200), 80).save(root / name)
(root / "my_clips").mkdir()
for name in "abc":                                                           # and clips of 5 s, with captions
    frames = [Image.effect_noise((60, 40), 10 * k) for k in range(10)]
    frames[0].save(root / "my_clips" / f"{name}.gif", save_all=True, append_images=frames[1:], duration=500)
    (root / "my_clips" / f"{name}.txt").write_text(f"noise, number {name}")
for command in commands[2:]:
    shorter = next(flags for program, flags in SHORTER.items() if program in command)
    print(f"\n$ {command} {shorter}", flush=True)
    if subprocess.run(f"{command} {shorter}", shell=True, cwd=root).returncode:
        sys.exit(f"README.md: this command fails: {command}")
print(f"\n{len(commands)} commands of README.md ran")
