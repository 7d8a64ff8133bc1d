"""Exercises on training/state.py: checkpoints, runs that resume after any kind of stop, and bfloat16."""
import csv
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import arguments, assert_same, copy_models, last, names_of, run, subprocess_of
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from test_loop import stage_of
from torch import nn
from torch.testing import assert_close

from sd21 import files, weights
from sd21.files import read_json, write_json
from training.loop import Run, make_train_step
from training.state import TrainState

STAGES = ("vae", "image", "video", "tsr")


def contents(folder):
    """{path: bytes} of all files in a folder and in its folders."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- a run that was stopped ----

@pytest.fixture(scope="module")
def stopped_stages(like, tmp_path_factory):
    """A folder in which each of the four stages was stopped after two steps and resumed for two more."""
    out = tmp_path_factory.mktemp("stopped_stages")
    for stage in STAGES:
        for steps in (2, 4):
            assert run(stage, like, out, steps, "--sample-every", 4) == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stopped_stage_ends_with_the_weights_of_an_unbroken_one(four_stages, stopped_stages, stage):
    """Four steps at once, or two, a stop, and two more: are the checkpoints equal bit for bit?"""
    assert_same(four_stages, stopped_stages, stage)                          # breaks if the data starts again from 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stopped_stage_ends_with_the_losses_of_an_unbroken_one(four_stages, stopped_stages, stage):
    """The last rows of both tables, without the seconds: are they equal?"""
    one, other = (list(csv.DictReader((folder / f"{stage}.csv").read_text().splitlines()))[-1]
                  for folder in (four_stages, stopped_stages))
    assert one["step"] == "4" and one | {"seconds": 0} == other | {"seconds": 0}


def seconds_of(checkpoint):
    """The seconds of training that a checkpoint was written after."""
    with safe_open(checkpoint, framework="pt") as file:
        return float(file.metadata()["seconds"])


@pytest.fixture
def twice(like, tmp_path):
    """(folder, the seconds in the checkpoints of a run of two steps and of its next two)."""
    seconds = []
    for steps in (2, 4):
        assert run("vae", like, tmp_path, steps) == 0
        seconds.append(seconds_of(last(tmp_path, "vae")))
    return tmp_path, seconds


def test_seconds_are_those_of_all_runs_together(twice):
    """Do the seconds in a checkpoint grow from run to run?"""
    _, (first, second) = twice
    assert 0 < first < second                                                # breaks if the second run starts at 0


def test_a_run_whose_minutes_are_over_takes_no_step(like, twice):
    """The same command again, with --minutes that the first two runs have used up."""
    folder, (_, seconds) = twice
    before = last(folder, "vae")
    assert run("vae", like, folder, 1000, "--minutes", 0.9 * seconds / 60) == 0
    assert last(folder, "vae") == before


KILLED = """
import os, sys
from sd21 import files
from training import pretrain
save = files.save_file
def save_file(tensors, path, metadata):
    if metadata and metadata.get("step") == "4":
        path.write_bytes(b"half a checkpoint")
        os.kill(os.getpid(), 9)
    save(tensors, path, metadata=metadata)
files.save_file = save_file
pretrain.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no kill -9")
def test_a_killed_run_resumes_as_if_it_had_not_been(like, tmp_path):
    """kill -9 while the second checkpoint is being written, then the same command: is any number or file different?"""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run("vae", like, whole, 6) == 0
    assert subprocess_of("-c", KILLED, *arguments("vae", like, killed, 6)).returncode == -9
    assert [name[4:12] for name in names_of(killed)] == ["00000002"]
    assert run("vae", like, killed, 6) == 0
    assert_same(whole, killed, "vae")                                        # breaks if data or noise start again
    files = [{path.relative_to(folder) for path in folder.rglob("*")} for folder in (whole, killed)]
    assert files[0] == files[1]                                              # breaks if the half checkpoint stays


# ---- checkpoints that cannot be read ----

@pytest.fixture
def eight_steps(like, tmp_path):
    """A folder of a run of eight steps, which writes a checkpoint after every second."""
    assert run("vae", like, tmp_path / "whole", 8) == 0
    return tmp_path / "whole"


def test_the_last_two_checkpoints_are_kept(eight_steps):
    """Eight steps have written four checkpoints: which are left?"""
    assert [name[4:12] for name in names_of(eight_steps)] == ["00000006", "00000008"]


def test_the_older_checkpoint_serves_when_the_newer_is_cut(like, eight_steps, tmp_path, capsys):
    """A run that was stopped at 6, its last checkpoint cut in half: where does it resume?"""
    cut = tmp_path / "cut"
    assert run("vae", like, cut, 6) == 0
    newest = last(cut, "vae")
    newest.write_bytes(newest.read_bytes()[:newest.stat().st_size // 2])
    capsys.readouterr()
    assert run("vae", like, cut, 8) == 0
    output = capsys.readouterr().out
    assert f"{newest}: not whole" in output and "vae.00000004.checkpoint.safetensors, step 4" in output
    assert_same(eight_steps, cut, "vae")                                     # breaks if half of step 6 was loaded
    assert names_of(cut) == names_of(eight_steps)


@pytest.mark.parametrize("metadata", [None, {"seconds": "1"}, {"step": "inf", "seconds": "1"},
                                      {"step": "-4", "seconds": "1"}, {"step": "4", "seconds": "nan"}])
def test_the_older_checkpoint_serves_when_the_newer_does_not_tell_its_step(like, tmp_path, capsys, metadata):
    """The tensors of the checkpoint at 4 are whole, its metadata missing or nonsense. Where does the run resume?"""
    assert run("vae", like, tmp_path, 4) == 0
    newest = last(tmp_path, "vae")
    save_file(load_file(newest), newest, metadata=metadata)
    capsys.readouterr()
    assert run("vae", like, tmp_path, 6) == 0
    output = capsys.readouterr().out
    assert f"{newest}: not whole" in output and "vae.00000002.checkpoint.safetensors, step 2" in output


def test_a_checkpoint_of_an_earlier_version_without_seconds_still_serves(like, tmp_path, capsys):
    """Earlier versions wrote only the step. Does the run resume there?"""
    assert run("vae", like, tmp_path, 4) == 0
    newest = last(tmp_path, "vae")
    save_file(load_file(newest), newest, metadata={"step": "4"})
    capsys.readouterr()
    assert run("vae", like, tmp_path, 6) == 0
    assert f"going on from {newest}, step 4" in capsys.readouterr().out


def test_a_copy_of_a_checkpoint_is_not_taken_for_an_old_one(like, tmp_path):
    """A person keeps the checkpoint of step 2 under another name. The last two are kept: is the copy still there?"""
    assert run("vae", like, tmp_path, 2) == 0
    copy = tmp_path / "vae.best.checkpoint.safetensors"
    copy.write_bytes(last(tmp_path, "vae").read_bytes())
    assert run("vae", like, tmp_path, 8) == 0
    assert copy.is_file()                                                    # breaks if any name counts as a step


def test_without_a_readable_checkpoint_nothing_is_touched(like, tmp_path, capsys):
    """Both checkpoints are cut, one to nothing. A new start would overwrite what somebody may still want to look at."""
    assert run("vae", like, tmp_path, 4) == 0
    for path, size in zip(sorted(tmp_path.glob("*.checkpoint.safetensors")), (0, 100), strict=True):
        path.write_bytes(path.read_bytes()[:size])
    before = contents(tmp_path)
    capsys.readouterr()
    assert run("vae", like, tmp_path, 6) == 2
    message = capsys.readouterr().err
    assert "no checkpoint of stage vae can be read" in message and message.count("\n") == 1
    assert contents(tmp_path) == before                                      # breaks if it starts at step 0


@pytest.mark.parametrize("difference", ["other widths", "no average"])
def test_a_run_does_not_resume_from_another_models_checkpoint(like, tmp_path, capsys, difference):
    """Is it refused in one line, before a part of it is loaded?"""
    assert run("vae", like, tmp_path / "out", 2) == 0
    wider = read_json(like / "vae" / "config.json") | {"block_out_channels": [4, 12]}
    write_json(wider, tmp_path / "wider" / "vae" / "config.json")
    model, more = (tmp_path / "wider", ()) if difference == "other widths" else (like, ("--ema", "0"))
    capsys.readouterr()
    assert run("vae", model, tmp_path / "out", 4, *more) == 2                # breaks if only missing tensors are seen
    message = capsys.readouterr().err
    assert "is of another model, or --ema was another" in message and message.count("\n") == 1


# ---- what a stop may leave behind ----

def test_a_picture_of_the_curves_that_a_kill_has_left_stale_is_drawn_again(like, tmp_path):
    """A run was killed between its last checkpoint and the picture. The same command has no step left to do."""
    assert run("vae", like, tmp_path, 2) == 0
    picture = tmp_path / "vae.png"
    drawn = picture.read_bytes()
    picture.write_bytes(b"stale")
    assert run("vae", like, tmp_path, 2) == 0
    assert picture.read_bytes() == drawn                                     # breaks if only a new step draws


def test_a_run_without_a_checkpoint_yet_starts_again_among_its_own_files(like, tmp_path, monkeypatch, capsys):
    """The disk is full at the first checkpoint: the table lies there already. Is it taken for somebody else's?"""
    def full_disk(*arguments):
        raise OSError(28, "full")
    with monkeypatch.context() as patch:
        patch.setattr("training.state.write_tensors", full_disk)
        assert run("vae", like, tmp_path, 2) == 2
    assert "there is no checkpoint yet" in capsys.readouterr().err and (tmp_path / "vae.csv").is_file()
    assert run("vae", like, tmp_path, 2) == 0                                # breaks if only a checkpoint counts


# ---- a full disk ----

@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error:\n no space")])
def test_a_full_disk_leaves_the_checkpoints_before(like, tmp_path, monkeypatch, capsys, error):
    """The disk is full when half of the checkpoint of step 6 is written. What is said, and what is left?"""
    assert run("vae", like, tmp_path, 4) == 0
    before = {path: data for path, data in contents(tmp_path).items() if path.suffix == ".safetensors"}

    def full_disk(tensors, path, metadata):
        path.write_bytes(b"half a checkpoint")
        raise error
    monkeypatch.setattr(files, "save_file", full_disk)
    capsys.readouterr()
    assert run("vae", like, tmp_path, 6) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("python -m training.pretrain: ")
    assert f"the last good checkpoint is {last(tmp_path, 'vae')}" in message
    after = contents(tmp_path)
    assert {path: after[path] for path in before} == before and not list(tmp_path.rglob("*.part"))
    assert {path.suffix for path in after} == {".safetensors", ".json", ".csv", ".png", ".lock"}  # breaks with a half


def test_a_resumed_run_writes_the_model_that_a_full_disk_has_stopped(like, tmp_path, monkeypatch):
    """The last checkpoint is complete, but the model folder has the weights of step 2. And after the same command?"""
    whole, full = tmp_path / "whole", tmp_path / "full"
    assert run("vae", like, whole, 4) == 0
    assert run("vae", like, full, 2) == 0

    def full_disk(*arguments):
        raise OSError(28, "full")
    with monkeypatch.context() as patch:
        patch.setattr(weights, "save", full_disk)
        assert run("vae", like, full, 4) == 2
    assert run("vae", like, full, 4) == 0                                    # breaks if it finds nothing left to do
    assert sorted(contents(whole / "vae").values()) == sorted(contents(full / "vae").values())


# ---- bfloat16 ----

@pytest.fixture(scope="module")
def bfloat16_runs(like, stills, tmp_path_factory):
    """Two folders of stage video in bfloat16, at the small rate of Sec. 4.1: four steps at once, and two and two."""
    options = ("--bf16", "--lr-temporal", "2e-6", "--lr-spatial", "2e-6")
    whole, halves = (copy_models(stills, tmp_path_factory.mktemp(name)) for name in ("whole", "halves"))
    for folder, steps in ((whole, 4), (halves, 2), (halves, 4)):
        assert run("video", like, folder, steps, *options) == 0
    return whole, halves


@pytest.mark.slow
def test_a_stopped_bfloat16_run_ends_with_the_weights_of_an_unbroken_one(bfloat16_runs):
    """Are the checkpoints equal bit for bit?"""
    assert_same(*bfloat16_runs, "video")                                     # breaks if the copies become the masters


@pytest.mark.slow
def test_a_rate_that_bfloat16_would_lose_moves_the_float32_masters(bfloat16_runs):
    """2e-6, two steps: does nearly every weight move? And if each update were rounded to bfloat16's 8 bits?"""
    folder, _ = bfloat16_runs
    two, four = (load_file(folder / name) for name in names_of(folder, "video"))
    assert all(x.dtype == torch.float32 for x in four.values())
    name = "model.unet.down_blocks.0.resnets.0.conv1.weight"
    before, after = two[name], four[name]
    large = before.abs() > 0.01                                              # where bfloat16's steps are 3e-5 or more
    assert (after != before)[large].float().mean() > 0.99 and large.float().mean() > 0.5
    rounded = before.bfloat16() + (after - before).bfloat16()
    assert torch.equal(rounded[large], before.bfloat16()[large])


def test_parts_of_a_batch_are_summed_in_float32():
    """--accumulate 2, with gradients 1/2 and 2^-11, whose sum is no bfloat16. Which gradient does AdamW get?"""
    model = nn.Linear(1, 1, bias=False)
    stage = stage_of(model, lambda x: model(x).mean(), torch.tensor([[1], [2**-10]], dtype=torch.bfloat16))
    run = Run("one", Path("x"), batch=2, accumulate=2, device="cpu", bf16=True)
    state = TrainState(stage, run)
    make_train_step(stage, state, run)(0)
    assert model.weight.grad is None and torch.tensor(0.5 + 2**-11).bfloat16() == 0.5
    _, moment = state.state_dict()["adam.exp_avg.weight"]                    # of the first step: (1 - beta_1) gradient
    assert_close(moment.item(), 0.1 * (0.5 + 2**-11), rtol=1e-6, atol=0)


def test_sums_over_parts_start_again_at_each_step():
    """bfloat16, --accumulate 2: gradients of 1 and 2 in both steps. The sum is 3 each time, not 6 in the second."""
    model = torch.nn.Linear(2, 1, bias=False)
    run = Run("parts", batch=2, accumulate=2, bf16=True, device="cpu")
    state = TrainState(SimpleNamespace(model=model, groups=[{"lr": 0.1, "params": [model.weight]}]), run)
    for step in range(2):
        for part in (1.0, 2.0):
            model.weight.grad = torch.full((1, 2), part, dtype=torch.bfloat16)
            state.collect_gradients()
        assert state.step(step, 1.0).item() == pytest.approx(3 * 2 ** 0.5)   # breaks if step() leaves the sums
