"""Exercises on training/options.py: the command lines of train.py and training/pretrain.py, and a folder's defaults."""
import shutil

import pytest
from conftest import run

import train
from sd21.files import read_json, write_json
from training import pretrain


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

@pytest.mark.parametrize("option", ["--lr nan", "--fps inf", "--fps 0", "--minutes 0", "--ema 1.5", "--cooldown -1",
                                    "--seed -1", "--seed 99999999999999", "--batch 0", "--steps x", "--warmup -1",
                                    "--model nowhere", "--decoder-of nowhere"])
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


@pytest.mark.parametrize("setting", [{"colour": "red"}, {"lr": float("nan")}, {"steps": "many"}])
def test_a_model_folders_settings_are_checked(own, setting, tmp_path, capsys):
    """An option that does not exist, and values that make no sense: is the setting named?"""
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
