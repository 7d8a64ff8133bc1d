"""Exercises on tests/make_sprites.py, with layers of 4 x 4 pixels whose colours tell where they come from."""
import itertools
import json

import numpy as np
import pytest
from make_sprites import GARMENTS, Layers, main, split
from PIL import Image

from data.folder import FolderSet

ORDER = ["body", "eyes", "shoes", "bottomwear", "topwear", "hair"]


@pytest.fixture
def sheets(tmp_path):
    """A folder of layers, two or three of each. A cell of layer L, number k, at row r and column c has one pixel of the
    colour (40 k, 10 r, 15 c): pixel L of the first row of the cell. Hair covers the pixel of topwear in its sheet 1."""
    folder = tmp_path / "layers"
    for place, layer in enumerate(ORDER):
        for k in range(3 if layer == "hair" else 2):
            sheet = np.zeros((21 * 4, 13 * 4, 4), np.uint8)
            for row, column in itertools.product(range(21), range(13)):
                pixels = [place] + [4] * (layer == "hair" and k == 1)
                for pixel in pixels:
                    sheet[4 * row + pixel // 4, 4 * column + pixel % 4] = 40 * k, 10 * row, 15 * column, 255
            (folder / layer).mkdir(parents=True, exist_ok=True)
            Image.fromarray(sheet).save(folder / layer / f"{k}.png")
    names = {garment: [f"{garment} {k}" for k in range(3 if garment == "hair" else 2)] for garment in GARMENTS}
    actions = {"cast a spell": {"first_row": 0, "frames": 7}, "walk": {"first_row": 8, "frames": 9},
               "slash": {"first_row": 12, "frames": 6}}
    (folder / "attributes.json").write_text(json.dumps(
        {"frame": 4, "layers_bottom_to_top": ORDER, "actions": actions,
         "directions": ["up", "left", "down", "right"]} | names))
    return folder


def clip_of(action="walk", direction="down", **numbers):
    return dict.fromkeys(GARMENTS, 0) | {"action": action, "direction": direction} | numbers


@pytest.mark.parametrize("action, direction, row, columns", [
    ("walk", "left", 9, [1, 2, 3, 4, 5, 6, 7, 8]), ("cast a spell", "down", 2, [0, 0, 1, 2, 3, 4, 5, 6]),
    ("slash", "right", 15, [0, 0, 1, 2, 3, 3, 4, 5])])
def test_an_action_is_a_row_of_the_sheets(sheets, action, direction, row, columns):
    """Eight frames: from which row, and from which columns in turn? A walk begins after the standing frame."""
    frames = Layers(sheets).render(clip_of(action, direction))
    assert frames[:, 0, 0].tolist() == [[0, 10 * row, 15 * column] for column in columns]    # the pixel of the body


def test_every_garment_is_the_one_that_is_asked_for(sheets):
    """Bodies, bottoms and tops number 1, hair number 2; shoes 1 and eyes 0 always: which sheets are the pixels from?"""
    frame = Layers(sheets).render(clip_of(body=1, bottomwear=1, topwear=1, hair=2))[0]
    numbers = [frame[place // 4, place % 4, 0] // 40 for place in range(6)]
    assert dict(zip(ORDER, numbers)) == {"body": 1, "eyes": 0, "shoes": 1, "bottomwear": 1, "topwear": 1, "hair": 2}


def test_hair_covers_clothes(sheets):
    """Hair 1 has a pixel at the place of topwear's. Which one is seen?"""
    assert Layers(sheets).render(clip_of(hair=1))[0, 1, 0, 0] == 40          # breaks if the order is turned around


def test_what_is_transparent_is_white(sheets):
    """No layer paints the last pixel."""
    assert Layers(sheets).render(clip_of())[0, 3, 3].tolist() == [255, 255, 255]


def test_a_caption_names_everything_that_differs(sheets):
    """Action, direction, and the four garments by their names."""
    assert Layers(sheets).caption(clip_of("slash", "left", hair=2)) == (
        "slashing to the left: body 0, hair 2, topwear 0, bottomwear 0")


def all_combinations():
    """1,296 characters, without their sheets."""
    layers = Layers.__new__(Layers)
    layers.choices = dict.fromkeys(GARMENTS, 6)
    return layers.combinations()


def test_there_are_11664_clips():
    """Six of each of four garments, three actions, three directions."""
    combinations = all_combinations()
    assert len(combinations) == 1296 * 9 == len({tuple(clip.values()) for clip in combinations})


@pytest.fixture(scope="module")
def order():
    return split(all_combinations())


def character(clip):
    return tuple(clip[garment] for garment in GARMENTS)


def test_a_held_out_character_is_never_trained_on(order):
    """Every tenth row is held out. Does any of those characters occur in the other rows?"""
    held_out = {character(clip) for clip in order[9::10]}
    assert len(held_out) == 130 and len(order) > 11_600
    assert not held_out & {character(clip) for k, clip in enumerate(order) if k % 10 != 9}


def test_every_pair_of_garments_is_trained_on(order):
    """A held-out character is new as a whole only: does training show each two of its garments together?"""
    for one, other in itertools.combinations(GARMENTS, 2):
        assert len({(clip[one], clip[other]) for k, clip in enumerate(order) if k % 10 != 9}) == 36


def test_fewer_clips_have_the_same_shares():
    """200 clips: are twenty held out, and are they the first of all?"""
    some = split(all_combinations(), 200)
    assert len(some) == 200 and some == split(all_combinations())[:200]


def test_the_command_writes_a_folder_that_training_reads(sheets, tmp_path, capsys):
    """24 characters with 9 clips each: does FolderSet hold the same clips out, in windows of eight frames?"""
    main([str(sheets), str(tmp_path / "out"), "--clips", "40"])
    rows = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    held_out = FolderSet(tmp_path / "out", 4, frames=8, fps=8, size=4, held_out=True)
    assert held_out.captions() == [row["text"] for row in rows[9::10]] and len(rows) == 40
    true = Layers(sheets).render(rows[9])
    assert (held_out[0]["frames"].permute(1, 2, 3, 0).numpy() == true).all()     # breaks if the files lose colours


def test_a_folder_that_is_not_empty_is_kept(sheets, tmp_path, capsys):
    """Somebody's diary lies there."""
    (tmp_path / "diary.txt").write_text("dear diary")
    assert main([str(sheets), str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "is not empty" in message and message.count("\n") == 1 and (tmp_path / "diary.txt").is_file()


def test_a_folder_without_layers_is_one_line(tmp_path, capsys):
    """There is no attributes.json."""
    assert main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "attributes.json" in capsys.readouterr().err and not (tmp_path / "out").exists()
