"""Exercises on training/options.py: the command lines of train.py and training/pretrain.py, and a folder's defaults."""
import os
import shutil
import subprocess
import sys

import pytest
from conftest import run

import train
from sd21.files import read_json, write_json
from training import pretrain
from training.prepare import Clips
from training.state import checkpoints


def refusal(main, argv, capsys):
    """The one line in which a command refuses its arguments."""
    try:
        code = main(list(map(str, argv)))
    except SystemExit as stop:                                               # argparse has refused an option
        code = stop.code
    message = capsys.readouterr().err
    assert code == 2 and message.count("\n") == 1
    return message


# ---- values that make no sense ----

@pytest.mark.parametrize("option", ["--lr nan", "--lr -1", "--fps inf", "--fps 0", "--minutes 0", "--ema 1.5",
                                    "--cooldown -1", "--seed -1", "--seed 99999999999999", "--batch 0", "--steps x",
                                    "--warmup -1", "--model nowhere", "--decoder-of nowhere"])
def test_numbers_that_make_no_sense_are_refused(option, capsys):
    """Before anything is read or written: does one line name the option?"""
    message = refusal(pretrain.parse, ["vae", "--out", "x", *option.split()], capsys)    # breaks if NaN <= 0 is asked
    assert option.split()[0] in message


def test_a_device_that_is_not_there_is_refused(like, tmp_path, capsys):
    """Before the first part is read: does one line name the device?"""
    assert run("video", like, tmp_path, 1, "--device", "nonsense") == 2
    message = capsys.readouterr().err
    assert "--device: nonsense" in message and message.count("\n") == 1


@pytest.mark.parametrize("more, named", [(["--start", ".", "--inject", "concat"], "--inject and --start"),
                                         (["--latents", "x", "--data", "y"], "--data and --latents")])
def test_of_two_options_that_exclude_each_other_none_is_ignored(more, named, capsys):
    """A model that is started from keeps its way to inject. Latents are clips already."""
    assert named in refusal(train.parse, ["video", "--out", "x", *more], capsys)


def test_trained_weights_are_not_overwritten(like, tmp_path, capsys):
    """--out names a folder with somebody's trained weights, and without a checkpoint: are they still there?"""
    (tmp_path / "vae").mkdir()
    file = tmp_path / "vae" / "model.safetensors"
    file.write_bytes(b"precious")
    assert run("vae", like, tmp_path, 1) == 2
    assert "another --out" in capsys.readouterr().err and file.read_bytes() == b"precious"


@pytest.mark.parametrize("stage, name", [
    ("vae", "vae.csv"), ("vae", "vae.png"), ("vae", "vae-000002.png"), ("vae", "vae/config.json"), ("vae", "vae.csv/a"),
    ("image", "tokenizer/merges.txt"), ("image", "scheduler/scheduler_config.json"), ("image", "unet/config.json"),
    ("image", "text_encoder/model.safetensors"), ("video", "video/config.json"), ("tsr", "tsr.csv")])
def test_files_that_no_run_of_the_stage_wrote_are_kept(like, tmp_path, capsys, stage, name):
    """--out names a folder in which somebody has a file that the stage would replace: is it refused before the work?"""
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"precious")
    assert run(stage, like, tmp_path, 1) == 2
    message = capsys.readouterr().err
    assert f"stage {stage} would replace it" in message and message.count("\n") == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file] and file.read_bytes() == b"precious"


def test_trained_weights_without_their_checkpoints_are_kept(like, tmp_path, capsys):
    """Somebody has moved the large checkpoints away. The same command would start at step 0: are the weights kept?"""
    assert run("vae", like, tmp_path, 2) == 0
    for checkpoint in checkpoints(tmp_path, "vae"):
        checkpoint.unlink()
    assert run("vae", like, tmp_path, 2) == 2                                # breaks if the lock file is enough
    assert "another --out" in capsys.readouterr().err


HOLD = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); input()"


@pytest.mark.skipif(os.name == "nt", reason="there are no such locks")
def test_of_the_same_command_twice_at_once_the_second_is_refused(like, tmp_path, capsys):
    """Another process trains the stage in the same folder: it holds the lock. And when that process has been killed?"""
    lock = tmp_path / ".vae.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"\n"
        assert run("vae", like, tmp_path, 1) == 2
        message = capsys.readouterr().err
        assert "another process trains stage vae" in message and message.count("\n") == 1
        assert list(tmp_path.iterdir()) == [lock]
        other.kill()
    assert run("vae", like, tmp_path, 1) == 0                                # breaks if the file itself is the lock


# ---- augmentation ----

@pytest.mark.parametrize("more, changes", [("", None), ("--data x", None), ("--data x --augment none", ()),
                                           ("--data x --augment zoom,rate", ("zoom", "rate"))])
def test_no_augmentation_is_a_choice_and_no_answer_is_none(more, changes):
    """Without the option the number of clips will decide (test_prepare.py); `none` decides it."""
    assert train.parse(["video", "--out", "x", *more.split()]).augment == changes


@pytest.mark.parametrize("choice", ["zoom", "none"])
@pytest.mark.parametrize("more", [[], ["--latents", "x"]])
def test_augmentation_that_would_be_ignored_is_refused(more, choice, capsys):
    """The toy set is drawn without; latents were encoded already."""
    argv = ["video", "--out", "x", "--augment", choice, *more]
    assert "--augment: needs --data" in refusal(train.parse, argv, capsys)


# ---- which weights are kept ----

@pytest.mark.parametrize("clips, own", [({}, False), ({"data": "my_clips"}, True), ({"latents": "toy set"}, False),
                                        ({"latents": "my_clips"}, True)])
def test_clips_of_ones_own_are_told_from_the_toy_set(tmp_path, clips, own):
    """--keep is "best" for them by default. As files, as latents of files or of the toy set: are they known?"""
    if "latents" in clips:
        write_json({"data": clips["latents"]}, tmp_path / "latents.json")
        clips = {"latents": tmp_path}
    assert Clips(**clips).of_ones_own() == own


@pytest.mark.parametrize("more, named", [(("--keep", "worst"), "--keep"), (("--patience", "2"), "--patience")])
def test_of_the_toy_set_the_last_weights_are_kept(like, tmp_path, capsys, more, named):
    """An unknown --keep is refused, and so is --patience without --keep best, which is not the toy set's default."""
    assert run("vae", like, tmp_path, 1, *more) == 2
    assert named in capsys.readouterr().err


# ---- the defaults of a model folder ----

@pytest.fixture
def own(like, tmp_path):
    """A function that makes a model folder with these "training" settings for a component. Returns the folder."""
    def folder(**settings):
        model = shutil.copytree(like, tmp_path / "own", dirs_exist_ok=True)
        for name, training in settings.items():
            file = model / name / "config.json"
            write_json(read_json(file) | {"training": training}, file)
        return model
    return folder


def test_a_model_folders_settings_come_between(own):
    """The folder says steps and batch, the command line says batch, nobody says clips: which numbers count?"""
    model = own(vae={"steps": 3, "batch": 5})
    args = pretrain.parse(["vae", "--model", str(model), "--out", "x", "--batch", "7"])
    assert (args.steps, args.batch, args.clips) == (3, 7, 50_000)            # breaks if the folder comes last


def test_a_model_folder_may_ask_for_wide_clips(own):
    """"size": "32x16" among its training settings: is it the option?"""
    args = pretrain.parse(["vae", "--model", str(own(vae={"size": "32x16"})), "--out", "x"])
    assert args.size == "32x16"                                              # breaks if --size takes only a number


@pytest.mark.parametrize("setting", [{"colour": "red"}, {"lr": float("nan")}, {"lr": -1}, {"steps": "many"},
                                     {"steps": True}, {"bf16": "false"}, {"bf16": 0}, {"size": "wide"}])
def test_a_model_folders_settings_are_checked(own, setting, tmp_path, capsys):
    """An option that does not exist, values that make no sense, a flag that is a word: is the setting named?"""
    argv = ["vae", "--model", own(vae=setting), "--out", tmp_path / "x"]
    assert next(iter(setting)) in refusal(pretrain.parse, argv, capsys)      # breaks if it is ignored


def test_a_damaged_config_is_one_line(own, tmp_path, capsys):
    """config.json holds half of a file: what is said, and is --out still untouched?"""
    model = own()
    (model / "vae" / "config.json").write_text("{")
    message = refusal(pretrain.main, ["vae", "--model", model, "--out", tmp_path / "x"], capsys)
    assert message.startswith("python -m training.pretrain: ") and "not JSON" in message
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("stage, clips", [("image", 40), ("video", 8)])
def test_latents_are_made_by_the_settings_of_their_stage(own, tmp_path, stage, clips):
    """`train.py latents --for image`: as many clips as the image stage trains on, not as the video stage does."""
    model = own(unet={"clips": 40, "lr": 1.0}, video={"clips": 8, "lr": 1.0})
    argv = ["latents", "--for", stage, "--model", str(model), "--out", str(tmp_path / "x")]
    assert train.parse(argv).clips == clips                                  # breaks if all are the video model's
