"""Exercises on training/report.py: a table that survives a stop, and a curve that shows its numbers."""
import csv

import numpy as np
import pytest
from PIL import Image, ImageColor

from training.report import AVERAGE, COLOURS, Report, draw_curves


def rows_of(path):
    """The rows of a table as dicts."""
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def stopped(tmp_path):
    """A table with rows for steps 50, 100 and 150, and half of the row for step 200: the disk was full."""
    report = Report(tmp_path / "video.csv", ["t 0-499"])
    for step in (50, 100, 150):
        report.add(step, step / 10, 1 / step, **{"t 0-499": 0.5} if step == 100 else {})
    with open(tmp_path / "video.csv", "a") as file:
        file.write("20,1")
    return tmp_path / "video.csv"


def test_a_resumed_run_continues_its_table(stopped):
    """The run resumes from its checkpoint at step 100 and comes to 150 again. Which rows are in the table?"""
    Report(stopped, ["t 0-499"], start=100).add(150, 13.0, 0.25)
    rows = rows_of(stopped)
    assert [row["step"] for row in rows] == ["50", "100", "150"]            # breaks if there is a 20
    assert float(rows[2]["loss"]) == 0.25 and float(rows[2]["seconds"]) == 13
    assert rows[1]["t 0-499"] == "0.5" and rows[0]["t 0-499"] == ""


def test_a_new_run_makes_a_new_table(stopped):
    """No checkpoint, so the run starts at step 0. Is anything of the old table left?"""
    Report(stopped, [], start=0)
    assert stopped.read_text().split() == ["step,seconds,loss"]


def test_a_table_with_old_column_names_is_continued(tmp_path):
    """"held out" was once "kept out". Does a run that started then keep its rows, under the new name?"""
    (tmp_path / "vae.csv").write_text("step,seconds,loss,kept out\n50,1.0,0.5,\n100,2.0,0.25,0.75\n")
    Report(tmp_path / "vae.csv", ["held out"], start=100).add(150, 3.0, 0.125)
    rows = rows_of(tmp_path / "vae.csv")
    assert [row["step"] for row in rows] == ["50", "100", "150"]            # breaks if rows are read by name
    assert [row["held out"] for row in rows] == ["", "0.75", ""]


@pytest.mark.parametrize("row", ["100,2.0,word,", "1e2,2.0,0.5,", "100,2.0,\xff,", f"100,2.0,{'9' * 200_000},",
                                 f"100,2.0,{'w' * 100_000},"])
def test_a_table_that_is_not_of_numbers_is_refused_and_kept(tmp_path, row):
    """A word, half a step, a byte that is no text, a field without end: does one line name the file?"""
    table = tmp_path / "vae.csv"
    table.write_text(f"step,seconds,loss,held out\n50,1.0,0.5,\n{row}\n", encoding="latin-1")
    before = table.read_bytes()
    with pytest.raises(ValueError, match="vae.csv: cannot be continued") as refusal:
        Report(table, ["held out"], start=100)
    assert len(str(refusal.value)) < len(str(table)) + 150 and table.read_bytes() == before


def test_a_folder_in_the_place_of_the_table_is_kept(tmp_path):
    """Somebody's folder is called vae.csv: is it still there?"""
    (tmp_path / "vae.csv" / "theirs").mkdir(parents=True)
    for start in (0, 100):
        with pytest.raises(OSError, match="vae.csv"):
            Report(tmp_path / "vae.csv", [], start)
    assert (tmp_path / "vae.csv" / "theirs").is_dir()                        # breaks if the table replaces it


def test_the_curve_falls_as_the_numbers_do(tmp_path):
    """A loss that falls tenfold in each hundred steps: is it a straight line, from upper left to lower right?"""
    draw_curves({"loss": [(step, 10 ** (-step / 100)) for step in range(0, 301, 10)]}, tmp_path / "a.png")
    black = np.argwhere(np.asarray(Image.open(tmp_path / "a.png").convert("L")) < 60)       # [points, (y, x)]
    black = black[(black[:, 1] > 100) & (black[:, 1] < 800) & (black[:, 0] < 480)]
    y, x = black.T
    slope, height = np.polyfit(x, y, 1)
    assert slope > 0.3 and np.abs(y - slope * x - height).max() < 4          # breaks on a linear scale, or upside down


def test_the_curves_mark_the_best_step(tmp_path):
    """The average weights were best at step 100 of 200: where is the vertical line in the picture?"""
    report = Report(tmp_path / "video.csv", [AVERAGE])
    for step, loss in ((50, 0.5), (100, 0.25), (150, 0.4), (200, 0.3)):
        report.add(step, 1.0, 1 / step, **{AVERAGE: loss})
    report.draw()
    grey = np.all(np.asarray(Image.open(tmp_path / "video.png")) == 0x80, axis=-1)
    columns = np.flatnonzero(grey.mean(0) > 0.8)
    assert len(columns) == 1 and abs(columns[0] - (90 + 880) / 2) <= 1       # breaks if the last step is marked


def test_without_average_losses_no_step_is_marked(tmp_path):
    """--keep last writes no such column."""
    report = Report(tmp_path / "video.csv", ["t 0-499"])
    report.add(100, 1.0, 0.5, **{"t 0-499": 0.25})
    report.draw()
    assert (np.all(np.asarray(Image.open(tmp_path / "video.png")) == 0x80, axis=-1).mean(0) < 0.8).all()


@pytest.mark.parametrize("lines", [{"loss": []}, {"loss": [(50, 0.1)]}, {"loss": [(1, 2.0), (2, 2.0)], "t 0-499": []},
                                   {"loss": [(1, float("inf")), (2, 2.0), (3, float("nan"))]}])
def test_odd_tables_are_drawn_too(tmp_path, lines):
    """No number yet, one number, numbers that are all equal, a loss that is not finite."""
    draw_curves(lines, tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size == (900, 540)


def test_a_single_point_is_seen(tmp_path):
    """After its first checkpoint a run has one loss on held-out clips. Is there a dot at its place, step 4 of 8?"""
    draw_curves({"loss": [(0, 1.0), (8, 1.0)], "held out": [(4, 1.0)]}, tmp_path / "a.png")
    column = np.asarray(Image.open(tmp_path / "a.png"))[:480, 90 + (880 - 90) // 2]          # [480, 3], at step 4
    assert (column == ImageColor.getrgb(COLOURS[1])).all(1).any()            # breaks if only lines are drawn
