"""Runs every command of README.md and docs/*.md, shortened by the command's own flags, so that no command can rot.

The ```sh blocks run top to bottom in one folder, a copy of the repository: one command a line, README.md first. A
command that appears twice runs once. .ci/run itself runs the first two commands of README.md, as they are written.
"""
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

# The first entry whose text is in the command shortens it, so the special cases come first.
SHORTER = {"--upscale 4": "--steps 3 --frames 3", "microcinema.py": "--steps 3",
           "-m evaluation.toy_scores": "--prompts 2 --steps 2",
           "-m evaluation.generate real": "--clips 20",
           "-m evaluation.generate ours": "--clips 20 --steps 1 --key-frames true", "-m evaluation.fvd": "",
           "-m evaluation.inception_score": "", "-m evaluation.clipsim": "",
           "train.py latents": "--batch 2 --clips 4 --frames 3 --device cpu",
           "train.py video": "--steps 2 --batch 2 --clips 4 --frames 3 --device cpu",
           "train.py tsr": "--steps 2 --batch 2 --clips 4 --device cpu",
           "-m training.pretrain": "--steps 2 --batch 2 --clips 4 --device cpu",
           "-m data.folder": "--rows 2", "-m data.toyset": "", "-m data.filter": "", "-m sd21.weights": "",
           "-m exercises": ""}


def commands_in(document):
    """The lines of a document's sh blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", document.read_text(encoding="utf-8"), re.M | re.S)
    return [line for block in blocks for line in block.splitlines()]


def write_what_a_person_would_bring(root):
    """Three pictures, and three clips of 5 s with captions."""
    for name in ("photo.jpg", "first.png", "last.png"):
        Image.effect_noise((300, 200), 80).save(root / name)
    (root / "my_clips").mkdir()
    for name in "abc":
        frames = [Image.effect_noise((60, 40), 10 * k) for k in range(10)]
        frames[0].save(root / "my_clips" / f"{name}.gif", save_all=True, append_images=frames[1:], duration=500)
        (root / "my_clips" / f"{name}.txt").write_text(f"noise, number {name}")


root = Path(__file__).parents[1]
readme = root / "README.md"
shortened = {}                                      # the command that runs -> the command as written, and where
for document in (readme, *sorted((root / "docs").glob("*.md"))):
    for command in commands_in(document)[2 if document == readme else 0:]:
        flags = next((flags for text, flags in SHORTER.items() if text in command), None)
        if flags is None:
            sys.exit(f"{document.name}: .ci/readme.py does not know how to shorten: {command}")
        shortened.setdefault(f"{command} {flags}".strip(), f"{document.name}: {command}")
write_what_a_person_would_bring(root)
for command, written in shortened.items():
    print(f"\n$ {command}", flush=True)
    if subprocess.run(command, shell=True, cwd=root).returncode:
        sys.exit(f"this command fails: {written}")
print(f"\n{len(shortened)} commands of README.md and docs/ ran")
