"""What a training run shows while it runs: STAGE.csv, a table that a spreadsheet can open (step, seconds, loss; at each
checkpoint also losses on held-out clips), and STAGE.png, a picture of its curves."""

import csv
import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sd21.files import atomic_write

COLOURS = ("#202020", "#c03028", "#e08a1e", "#3a9a4a", "#2a6fc0", "#8a3ab0", "#808080")
AVERAGE = "average weights"         # the column of their mean loss on held-out clips, which --keep best compares


class Report:
    """The table of a run: the .csv file at `path`, and its curves. `columns` names the losses on held-out clips. A
    resumed run continues the table: the rows up to step `start` stay, later ones go, since their steps come again."""

    def __init__(self, path, columns, start=0):
        self.path, self.columns, self.rows = Path(path), ["step", "seconds", "loss", *columns], []
        if start and self.path.exists():        # older versions named columns differently; a full disk may cut a row
            try:
                rows = list(csv.reader(self.path.read_text(encoding="utf-8").splitlines()))[1:]
                self.rows = [row for row in rows if len(row) == len(self.columns) and int(row[0]) <= start]
                self.draw()                     # a killed run may not have
            except (csv.Error, ValueError) as error:
                raise ValueError(f"{self.path}: cannot be continued ({str(error)[:80]}); move it away") from None
        with atomic_write(self.path) as part, open(part, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self.columns, *self.rows])

    def add(self, step, seconds, loss, **more):
        """Adds a row and writes it to the file. `more`: losses on held-out clips, by column."""
        losses = {"loss": loss, **more}
        cells = [f"{losses[name]:.6g}" if name in losses else "" for name in self.columns[2:]]
        self.rows.append([str(step), f"{seconds:.1f}", *cells])
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(self.rows[-1])

    def draw(self):
        """Draws the curves of all losses into a .png file beside the table."""
        lines = {name: [(int(row[0]), float(row[k])) for row in self.rows if row[k]]
                 for k, name in enumerate(self.columns) if k >= 2}
        best = min(lines.get(AVERAGE) or [(None, 0)], key=lambda point: point[1])[0]
        draw_curves(lines, self.path.with_suffix(".png"), best)


def draw_curves(lines, path, best=None, width=900, height=540):
    """Draws the curves {name: [(step, value), ...]} into the picture `path`. The vertical axis is logarithmic: values
    that are not positive, or infinite, are left out. A curve may be empty or a single point. A line marks step `best`.
    """
    lines = {name: [(x, math.log10(y)) for x, y in line if 0 < y < 1e300] for name, line in lines.items() if line}
    xs, ys = ([point[axis] for points in lines.values() for point in points] or [0] for axis in (0, 1))
    left, right, top, bottom = 90, width - 20, 20, height - 50
    low, high, last = min(ys) - 0.05, max(ys) + 0.05, max(max(xs), 1)
    at = lambda x, y: (left + (right - left) * x / last, bottom - (bottom - top) * (y - low) / (high - low))
    picture, font = Image.new("RGB", (width, height), "white"), ImageFont.load_default(size=15)
    draw = ImageDraw.Draw(picture)
    ticks = [power + math.log10(digit) for power in range(math.floor(low), math.ceil(high) + 1) for digit in (1, 2, 5)]
    for y in [y for y in ticks if low <= y <= high]:
        draw.line([at(0, y), at(last, y)], "#dddddd")
        draw.text((left - 8, at(0, y)[1]), f"{10**y:g}", "#606060", font, anchor="rm")
    for share in (0, 0.25, 0.5, 0.75, 1):
        draw.text((left + (right - left) * share, bottom + 8), f"{last * share:.0f}", "#606060", font, anchor="ma")
    draw.text(((left + right) / 2, height - 22), "step", "#606060", font, anchor="ma")
    if best is not None:
        draw.line([at(best, low), at(best, high)], COLOURS[-1])
        draw.text(at(best, low), f"best: {best}", COLOURS[-1], font, anchor="ld" if best < last / 2 else "rd")
    for k, (name, points) in enumerate(lines.items()):
        colour = COLOURS[k % len(COLOURS)]
        draw.line([at(*point) for point in points], colour, 2)
        for x, y in [at(*point) for point in points[-1:]]:                   # a single point is seen, too
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], colour)
        draw.text((right - 8, top + 4 + 18 * k), name, colour, font, anchor="ra")
    with atomic_write(path) as part:
        picture.save(part)
