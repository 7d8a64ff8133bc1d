"""Exercises for docs/guide.md, proof.md and teaching.md: is every name, link, figure, block and number still right?"""
import ast
import contextlib
import io
import json
import re
from functools import cache
from pathlib import Path

import pytest
import test_appearnet
import torch
from test_microcinema import load_toy
from test_unet3d import TINY

import appearnet
from appearnet import INJECTIONS, VideoModel, is_new, routes
from data.media import from_pixels
from data.toyset import ToySet
from exercises.__main__ import EXERCISES, certify, project_source
from exercises.figures import DRAWN, PIXELS
from sampler import NoiseSchedule
from unet3d import UNet3D

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("guide", "proof", "teaching")
every_page = pytest.mark.parametrize("page", PAGES)
# Numbers of the paper (Tables 1-4, Fig. 6), and of runs that no test repeats. All others are computed below.
PAPER = {"688.92", "589.59", "525.02", "508.56", "692", "508", "320"}
SETTINGS = {"0.03", "0.02", "0.2", "0.5", "0.1"}                             # of lambda, gamma and a world of numbers
MEASURED = {"48.1", "44.2", "33.4", "16.3", "43.0", "157", "133", "135", "112", "0.04"}


def read(page):
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


def prose(page):
    """A page without its code blocks, in one line."""
    return " ".join(re.sub(r"^```.*?^```", "", read(page), flags=re.M | re.S).split())


def blocks(page, language):
    """The code blocks of a language, from top to bottom."""
    return re.findall(rf"^```{language}\n(.*?)^```", read(page), re.M | re.S)


def anchors(file):
    """What a code host makes of the headings of a page, to link to."""
    headings = re.findall(r"^#+ (.*)", file.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def defined(file):
    """The names of all functions and classes of a file, methods as "Class.method"."""
    tree = ast.parse((DOCS.parent / file).read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    names = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    return names | {f"{c.name}.{node.name}" for c in classes for node in c.body if isinstance(node, ast.FunctionDef)}


# ---- names, links, figures ----

@every_page
def test_every_function_that_a_page_names_exists(page):
    """`file.py: function`. Broken by: a function that moves to another file, or gets another name."""
    named = re.findall(r"`([\w/]+\.py): ([\w.]+)`", prose(page))
    assert [f"{file}: {name}" for file, name in named if name not in defined(file)] == []
    assert len(named) > 20 or page != "guide"


@every_page
def test_every_file_that_a_page_names_exists(page):
    """`sampler.py`, `sd21/layers.py`. Copies in first_hour are made by the reader."""
    files = re.findall(r"`((?!first_hour)[\w/]+\.(?:py|md))[:`]", prose(page))
    assert [file for file in files if not (DOCS.parent / file).is_file()] == []


@every_page
def test_every_link_leads_somewhere(page):
    """Files and headings. Broken by: a heading that gets other words, in any of the pages."""
    for target in re.findall(r"\]\(([^)]+)\)", read(page)):
        path, _, anchor = target.partition("#")
        file = DOCS / path if path else DOCS / f"{page}.md"
        assert target.startswith("https://") or file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_each_figure_is_small_and_stands_beside_its_command():
    """A picture without the command that drew it cannot be drawn again."""
    text = prose("guide")
    drawn = dict(re.findall(r"`python -m exercises\.figures (\S+) (?:--seed 0 )?--out docs/(\S+)`", text))
    assert drawn.keys() == {*PIXELS, *DRAWN}                                  # breaks if a figure is not in the guide
    for file in drawn.values():
        assert f"]({file})" in text and (DOCS / file).stat().st_size < 150_000


# ---- exercises ----

def test_each_exercise_has_one_paragraph():
    """`python -m exercises show ID` prints it. Broken by: an exercise that the guide forgets."""
    paragraphs = re.findall(r"^\*\*Exercise\*\* `(\w+)`", read("guide"), re.M)
    assert sorted(paragraphs) == sorted(EXERCISES)


def rows_with_minutes():
    """The rows of the courses in docs/teaching.md: [(heading or None, ids, minutes)]."""
    text = read("teaching").partition("## How to grade")[0]
    rows = re.findall(r"^(?:### (.*)|\|(.*)\| (\d+) \|)$", text, re.M)
    return [(heading, re.findall(r"`(\w+)`", cells), int(minutes or 0)) for heading, cells, minutes in rows]


def test_every_exercise_that_a_teacher_is_told_about_exists():
    """docs/teaching.md. Broken by: an exercise that gets another id."""
    in_courses = {id for _, ids, _ in rows_with_minutes() for id in ids}
    mistakes = set(re.findall(r"^\| [^|`]+ \| `(\w+)` \|", read("teaching"), re.M))
    assert in_courses == set(EXERCISES)                                      # the seminar has all of them
    assert mistakes - set(EXERCISES) == set() and len(mistakes) > 10


def test_the_minutes_of_the_courses_are_those_of_the_exercises():
    """Each row with exercises, and the sum in the heading of a course. Broken by: an exercise that gets longer."""
    courses = []
    for heading, ids, minutes in rows_with_minutes():
        courses += [[heading, 0]] if heading else []
        courses[-1][1] += minutes
        assert not ids or minutes == sum(EXERCISES[id].minutes for id in ids), ids
    assert [f"{minutes} minutes" in heading for heading, minutes in courses] == [True, True, False]


def test_the_check_of_eq_2_says_what_the_pages_say():
    """The mistake of the first hour, and the line of JSON in docs/teaching.md."""
    source = project_source("appearnet.py")
    broken = source.replace("return (gamma_a + 1) * h_bar + beta_a", "return gamma_a * h_bar + beta_a")
    problem = certify(EXERCISES["eq2"], broken)
    assert broken != source and "`return gamma_a * h_bar + beta_a`" in prose("guide")
    assert json.dumps([{"id": "eq2", "right": False, "problem": problem}]) in read("teaching")


# ---- Python blocks ----

def expected(block):
    """What a block says that it prints: comments behind a print or, as "prints: one, two", behind a loop."""
    lines = []
    for line in block.splitlines():
        code, _, comment = line.partition("  # ")
        if comment.startswith("prints: "):
            lines += comment.removeprefix("prints: ").split(", ")
        elif comment and code.strip().startswith("print("):
            lines.append(comment)
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("page", ["guide", "proof"])
def test_every_block_runs_and_prints_what_it_says(page, monkeypatch):
    """In one process, top to bottom, in the root, as a reader runs them. Broken by: a wrong sign in the proof."""
    monkeypatch.chdir(DOCS.parent)
    variables = {}
    for block in blocks(page, "python"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(block, variables)
        assert printed.getvalue().splitlines() == expected(block), block
    assert len(blocks(page, "python")) >= 5


def test_every_equation_has_its_dollars_and_braces():
    """A code host shows a formula with an odd brace, or a $ without its partner, as a red error."""
    for page in PAGES:
        for paragraph in re.sub(r"^```.*?^```", "", read(page), flags=re.M | re.S).split("\n\n"):
            text = re.sub(r"`[^`]*`", "", paragraph)
            assert text.count("$") % 2 == 0, paragraph
        for formula in re.findall(r"\$([^$]+)\$", prose(page)) + blocks(page, "math"):
            assert formula.count("{") == formula.count("}") and formula.count("(") == formula.count(")"), formula
            assert formula.strip() == formula or "\n" in formula, formula    # "$ x $" is no formula there


# ---- numbers ----

def parameters(model):
    """(U-Net from SD2.1, temporal layers in it, AppearNet, together), as in the guide's table."""
    count = lambda part, new: sum(p.numel() for name, p in part.named_parameters() if new in (None, is_new(name)))
    return count(model.unet, False), count(model.unet, True), count(model.appearnet, None), count(model, None)


@cache
def computed():
    """{page: the sentences of it with a number that can be computed, with that number}"""
    ab = NoiseSchedule().alpha_bar
    root, linear = ab[999].sqrt().item(), (1 - torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64)).prod().item()
    with torch.device("meta"):
        large = VideoModel()
    rows = {"toy": parameters(load_toy().video), "SD2.1": parameters(large)}
    leading = NoiseSchedule().timesteps(50, "leading")
    guide = [
        *(f"| {name} | {' | '.join(f'{x:,}' for x in numbers)} |" for name, numbers in rows.items()),
        f"expects ${root:.3f} z_0$ in its input", f"for a picture {1 / root:.1f} times too strong",
        f"$\\bar\\alpha$ ends at {ab[999]:.6f}", f"it would end at {linear:.6f}",
        f"ends at {ab[999]:.6f}, whose root is {root:.3f}", f"gamma {root:.3f} shows the key frame",
        f"asks for {root:.3f} rho", f"gamma 0.02 shows {0.02 / root:.0%} of it".replace("%", " %"),
        f"start at {leading[0][0]} and stop at $\\bar\\alpha_0$ = {leading[-1][2]:.5f}", "start at 999, where training",
        f"rho would be {0.02 / root:.2f} to {0.03 / root:.2f}"]
    return {"guide": guide, "proof": [f"lambda would become w lambda, {7.5 * 0.03:g} for w = 7.5",
                                      f"about ${root:.3f} \\rho$ whatever lambda is"]}


@pytest.mark.parametrize("page", ["guide", "proof"])
def test_numbers_are_those_of_the_code(page):
    """Broken by: another schedule, or a layer with more parameters."""
    assert [sentence for sentence in computed()[page] if sentence not in prose(page)] == []


@pytest.mark.parametrize("page", ["guide", "proof"])
def test_every_number_is_computed_or_known_as_measured(page):
    """All numbers with a dot, a comma or three digits. Broken by: a number that somebody adds without a source."""
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|\d{4}-\d\d-\d\d|(Sec\.|Eq\.|SD|arXiv) ?\d[\d.]*|[tr] = [\d, ]+|_\{\d+\}", "",
                  prose(page))
    numbers = set(re.findall(r"\d[\d,]*\.\d+|\d[\d,]*\d\d\d|\d{3,}", text))
    known = set(re.findall(r"\d[\d,]*\.\d+|\d[\d,]*\d\d\d|\d{3,}", " ".join(computed()[page])))
    checked_elsewhere = {"guide": {"576", "0.85"}, "proof": {"0.7", "0.44"}}     # by tests below, and by Python blocks
    assert numbers - known - PAPER - MEASURED - SETTINGS - checked_elsewhere[page] == set()


def test_table_2_of_the_guide_counts_the_routes():
    """How many features does each row send, at SD2.1's size?"""
    with torch.device("meta"):
        unet = UNet3D()
    counts = dict(re.findall(r"\| (\w+) \| [^|]+ \| (\d+) \| [\d.]+ \|", read("guide")))
    assert counts == {row: str(len(routes(unet, row))) for row in INJECTIONS}


def test_how_many_tensors_never_learn_without_the_1_of_eq_2(monkeypatch):
    """The first hour says so. They are in the SPADE layers; the group norms' biases still learn."""
    monkeypatch.setattr(appearnet, "spade", lambda h_bar, gamma_a, beta_a: gamma_a * h_bar + beta_a)
    torch.manual_seed(0)
    model = VideoModel(**TINY)
    names = {name for name, _ in model.named_parameters()}
    dead = names - test_appearnet.moved_by(model, steps=3)
    assert f"of the {len(names)} tensors of the tests' small model, {len(dead)} would never learn" in prose("guide")


@pytest.mark.slow
@torch.inference_mode()
def test_rho_of_the_toy_world():
    """The regression coefficient of a frame's latent on the key frame's, over 32 clips."""
    clips = ToySet(32, seed=5)
    z = torch.cat([load_toy().encode_frames(from_pixels(clips[i]["frames"])[None]) for i in range(32)])
    z_c, others = z[:, :, 4:5], z[:, :, [0, 1, 2, 3, 5, 6, 7, 8]]
    rho = (others * z_c).sum() / (8 * z_c.square().sum())
    assert f"stands still, it is {rho:.2f}" in prose("guide")
