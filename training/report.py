"""What a training run shows while it runs: a table that a spreadsheet can open, and a picture of its curves.

in    the numbers of a step
out   STAGE.csv (step, seconds, loss; at each checkpoint also losses on held-out clips) and STAGE.png
defines  Report, draw_curves
"""

import csv
import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sd21.files import atomic_write

COLOURS = ("#202020", "#c03028", "#e08a1e", "#3a9a4a", "#2a6fc0", "#8a3ab0")


class Report:
    """The table of a run: the .csv file at `path`, and its curves. `columns` names the losses on held-out clips.

    A resumed run continues the table: the rows up to step `start` stay, later ones go, since their steps come again.
    """

    def __init__(self, path, columns, start=0):
        self.path, self.columns, self.rows = Path(path), ["step", "seconds", "loss", *columns], []
        if start and self.path.is_file():
            with open(self.path, newline="", encoding="utf-8") as file:
                rows = list(csv.reader(file))[1:]
            # By position: some columns had other names in older tables. A full disk may have cut the last row.
            complete = [row for row in rows if len(row) == len(self.columns)]
            self.rows = [dict(zip(self.columns, row, strict=True)) for row in complete if int(row[0]) <= start]
        with atomic_write(self.path) as part, open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)

    def add(self, step, seconds, loss, **more):
        """Adds a row and writes it to the file. `more`: losses on held-out clips, by column."""
        numbers = {"step": step, "seconds": f"{seconds:.1f}", "loss": f"{loss:.6g}"}
        self.rows.append(numbers | {name: f"{value:.6g}" for name, value in more.items()})
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(self.rows[-1])

    def draw(self):
        """Draws the curves of all losses into a .png file beside the table."""
        lines = {name: [(int(row["step"]), float(row[name])) for row in self.rows if row.get(name)]
                 for name in self.columns[2:]}
        draw_curves(lines, self.path.with_suffix(".png"))


def draw_curves(lines, path, width=900, height=540):
    """Draws the curves {name: [(step, value), ...]} into the picture `path`. The vertical axis is logarithmic.

    Values that are not positive are left out. A curve may be empty or a single point.
    """
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
    with atomic_write(path) as part:
        picture.save(part)
