"""What a training run shows while it runs: a table that a spreadsheet reads, and a curve to look at.

in    the numbers of a step
out   STAGE.csv (step, seconds, loss, and now and then the loss by diffusion step on clips kept out) and STAGE.png
here  Report, draw_curves
ours  Everything. Eq. 5 is mostly noise that nobody can predict, so its mean hardly moves while a model learns; by
      bucket of t, on the same noise each time, "flat" can be told from "learning".
"""

import csv
import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from files import beside

COLOURS = ("#202020", "#c03028", "#e08a1e", "#3a9a4a", "#2a6fc0", "#8a3ab0")


class Report:
    """A run's table at `path`, a .csv; rows from step `start` on, of a run that was stopped, are written anew."""

    def __init__(self, path, columns, start=0):
        self.path, self.columns, self.rows = Path(path), ["step", "seconds", "loss", *columns], []
        if start and self.path.is_file():
            with open(self.path, newline="", encoding="utf-8") as file:
                self.rows = [row for row in csv.DictReader(file)             # but for half a row, of a full disk
                             if None not in row.values() and set(row) == set(self.columns)
                             and int(row["step"]) <= start]
        with beside(self.path) as part, open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)

    def add(self, step, seconds, loss, **more):
        """One row, written at once."""
        numbers = {"step": step, "seconds": f"{seconds:.1f}", "loss": f"{loss:.6g}"}
        self.rows.append(numbers | {name: f"{value:.6g}" for name, value in more.items()})
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(self.rows[-1])

    def draw(self):
        """The curve beside the table, a .png."""
        lines = {name: [(int(row["step"]), float(row[name])) for row in self.rows if row.get(name)]
                 for name in self.columns[2:]}
        draw_curves(lines, self.path.with_suffix(".png"))


def draw_curves(lines, path, width=900, height=540):
    """Writes a picture of {name: [(step, value > 0), ...]}, values on a logarithmic scale."""
    lines = {name: [(x, math.log10(y)) for x, y in points if y > 0] for name, points in lines.items() if points}
    xs, ys = ([point[axis] for points in lines.values() for point in points] or [0] for axis in (0, 1))
    left, right, top, bottom = 90, width - 20, 20, height - 50
    low, high, last = min(ys) - 0.05, max(ys) + 0.05, max(max(xs), 1)
    at = lambda x, y: (left + (right - left) * x / last, bottom - (bottom - top) * (y - low) / (high - low))
    picture, font = Image.new("RGB", (width, height), "white"), ImageFont.load_default(size=15)
    draw = ImageDraw.Draw(picture)
    for power in range(math.floor(low), math.ceil(high) + 1):
        for digit in (1, 2, 5):
            y = power + math.log10(digit)
            if low <= y <= high:
                draw.line([at(0, y), at(last, y)], "#dddddd")
                draw.text((left - 8, at(0, y)[1]), f"{digit * 10.0**power:g}", "#606060", font, anchor="rm")
    for share in (0, 0.25, 0.5, 0.75, 1):
        draw.text((left + (right - left) * share, bottom + 8), f"{last * share:.0f}", "#606060", font, anchor="ma")
    draw.text(((left + right) / 2, height - 22), "step", "#606060", font, anchor="ma")
    for k, (name, points) in enumerate(lines.items()):
        colour = COLOURS[k % len(COLOURS)]
        draw.line([at(*point) for point in points], colour, 2)
        draw.text((right - 8, top + 4 + 18 * k), name, colour, font, anchor="ra")
    with beside(path) as part:
        picture.save(part)
