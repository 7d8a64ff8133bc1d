"""Exercises for report.py: a table that survives a stop, and a curve that is where the numbers are."""
import csv

import numpy as np
from PIL import Image

from report import Report, draw_curves


def test_a_stopped_run_goes_on_in_its_table(tmp_path):
    """Rows for steps 50, 100 and 150; the run died and goes on from its checkpoint at 100. Which rows are there?"""
    first = Report(tmp_path / "video.csv", ["t 0-499"])
    for step in (50, 100, 150):
        first.add(step, step / 10, 1 / step, **{"t 0-499": 0.5} if step == 100 else {})
    with open(tmp_path / "video.csv", "a") as file:
        file.write("20,1")                                                   # of step 200: the disk was full
    second = Report(tmp_path / "video.csv", ["t 0-499"], start=100)
    second.add(150, 13.0, 0.25)
    rows = list(csv.DictReader(open(tmp_path / "video.csv")))
    assert [row["step"] for row in rows] == ["50", "100", "150"]            # breaks if there is a 20
    assert float(rows[2]["loss"]) == 0.25
    assert float(rows[2]["seconds"]) == 13 and rows[1]["t 0-499"] == "0.5" and rows[0]["t 0-499"] == ""
    Report(tmp_path / "video.csv", [], start=0)                              # a new run: a new table
    assert (tmp_path / "video.csv").read_text().split() == ["step,seconds,loss"]


def test_the_curve_falls_as_the_numbers_do(tmp_path):
    """A loss that falls tenfold each hundred steps is a straight line, from upper left to lower right."""
    draw_curves({"loss": [(step, 10 ** (-step / 100)) for step in range(0, 301, 10)]}, tmp_path / "a.png")
    black = np.argwhere(np.asarray(Image.open(tmp_path / "a.png").convert("L")) < 60)       # [points, (y, x)]
    black = black[(black[:, 1] > 100) & (black[:, 1] < 800) & (black[:, 0] < 480)]
    y, x = black.T
    slope, height = np.polyfit(x, y, 1)
    assert slope > 0.3 and np.abs(y - slope * x - height).max() < 4          # breaks on a linear scale, or upside down


def test_odd_tables_are_drawn_too(tmp_path):
    """No number yet, one number, numbers that are all alike."""
    for lines in ({"loss": []}, {"loss": [(50, 0.1)]}, {"loss": [(1, 2.0), (2, 2.0)], "t 0-499": []}):
        draw_curves(lines, tmp_path / "a.png")
        assert Image.open(tmp_path / "a.png").size == (900, 540)
