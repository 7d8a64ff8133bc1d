"""Exercises on training/pretrain.py: the stages vae and image, which replace SD2.1 in small."""
import contextlib
import csv
import io
import re
import shutil

import pytest
import torch
from conftest import run
from torch.testing import assert_close

from data.toyset import ToySet
from sd21 import weights
from sd21.files import read_json, write_json
from sd21.vae import AutoencoderKL
from training import pretrain


def load_vae(folder):
    """The autoencoder of a folder."""
    return weights.load(weights.component("vae", folder), AutoencoderKL)


# ---- the autoencoder ----

@pytest.fixture(scope="module")
def sixty_steps(like, tmp_path_factory):
    """(folder, what was printed) of stage vae, sixty steps."""
    folder = tmp_path_factory.mktemp("sixty")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert run("vae", like, folder, 60, "--lr", "1e-2") == 0
    return folder, output.getvalue()


def printed_number(words, output):
    """The number that is printed behind these words."""
    return float(re.search(rf"{words}: ([\d.]+)", output)[1])


@pytest.mark.slow
def test_an_autoencoder_is_compared_with_grey(sixty_steps):
    """The loss of answering grey on three held-out clips: is it what comes out by hand?"""
    x = torch.stack([item["frames"] for item in ToySet(3, frames=9, size=16, held_out=True)]) / 127.5 - 1
    by_hand = (x.abs().mean() + 4 * x.pow(2).mean()).item()
    assert_close(printed_number("always answers grey", sixty_steps[1]), by_hand, rtol=1e-3, atol=0)


@pytest.mark.slow
def test_a_new_autoencoder_is_about_as_good_as_grey(sixty_steps):
    """The loss before the first step, on held-out clips: within a factor of 2 of answering grey?"""
    grey, first = (printed_number(words, sixty_steps[1]) for words in ("always answers grey", "held-out clips"))
    assert 0.5 * grey < first < 2 * grey


@pytest.mark.slow
def test_an_autoencoder_learns(sixty_steps):
    """Sixty steps: has the loss on held-out clips halved?"""
    folder, output = sixty_steps
    *_, last = csv.DictReader((folder / "vae.csv").read_text().splitlines())
    assert float(last["held out"]) < 0.5 * printed_number("held-out clips", output)


@pytest.mark.parametrize("more", [(), ("--bf16",)])
def test_a_decoder_alone_can_be_trained_further(like, stills, tmp_path, more):
    """--decoder-of: which parts have moved? The encoder must keep every bit, in bfloat16 too, and the scale as well."""
    assert run("vae", like, tmp_path, 2, "--decoder-of", stills, "--seed", 9, *more) == 0
    old, new = load_vae(stills), load_vae(tmp_path)
    before, after = old.state_dict(), new.state_dict()
    moved = {name.partition(".")[0] for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert old.scale == new.scale and moved == {"decoder", "post_quant_conv"}


def test_an_autoencoder_can_begin_with_another(like, stills, tmp_path):
    """--start, at a learning rate of nearly 0: is it the other one still, with a scale that was measured anew?"""
    write_json(read_json(stills / "vae" / "config.json") | {"scaling_factor": 0.5}, tmp_path / "other/vae/config.json")
    shutil.copy(next((stills / "vae").glob("*.safetensors")), tmp_path / "other" / "vae")
    assert run("vae", like, tmp_path / "out", 1, "--start", tmp_path / "other", "--lr", 1e-12) == 0
    old, new = load_vae(stills), load_vae(tmp_path / "out")
    for name, tensor in old.state_dict().items():
        assert_close(new.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)   # float16 files; breaks if it begins anew
    assert 0.8 < new.scale / old.scale < 1.25                                # breaks if 0.5 is kept


def test_a_stopped_autoencoder_has_no_scale_of_another(like, stills, tmp_path, monkeypatch):
    """Begun with --start, and stopped before the scale is measured: null, so that no model is trained on it?"""
    monkeypatch.setattr(pretrain, "write_scale", lambda *_: None)
    assert run("vae", like, tmp_path, 1, "--start", stills) == 0
    assert read_json(tmp_path / "vae" / "config.json")["scaling_factor"] is None


def test_an_autoencoder_begins_with_one_other(like, stills, tmp_path, capsys):
    """--start and --decoder-of: one line?"""
    assert run("vae", like, tmp_path, 1, "--start", stills, "--decoder-of", stills) == 2
    assert "--start and --decoder-of: choose one" in capsys.readouterr().err


# ---- the image model, and what it needs ----

def test_a_stage_without_the_one_before_it_says_so(like, tmp_path, capsys):
    """The image model needs the autoencoder: does the message name it?"""
    assert run("image", like, tmp_path, 1) == 2
    message = capsys.readouterr().err
    assert "vae" in message and message.count("\n") == 1


def test_the_scale_of_the_latents_is_measured(stills):
    """SD2.1's scale is 0.18215. Is that of a small autoencoder its own?"""
    assert 0.1 < read_json(stills / "vae" / "config.json")["scaling_factor"] != 0.18215


@pytest.fixture
def without_scale(stills, tmp_path):
    """A folder whose autoencoder was stopped in training: it has weights, but no scale yet."""
    shutil.copytree(stills / "vae", tmp_path / "vae")
    write_json(read_json(stills / "vae" / "config.json") | {"scaling_factor": None}, tmp_path / "vae" / "config.json")
    return tmp_path


def test_latents_without_a_scale_are_not_trained_on(like, without_scale, capsys):
    """The autoencoder in --out has no scale. SD2.1's would be a wrong guess: is it refused?"""
    assert run("image", like, without_scale, 1) == 2                         # breaks if a default is used
    assert "stage vae again" in capsys.readouterr().err


def test_a_model_folder_without_a_scale_is_not_trained_on(without_scale, tmp_path, capsys):
    """The same, for the autoencoder in --model."""
    assert run("image", without_scale, tmp_path / "new", 1) == 2             # breaks if a default is used
    assert "stage vae again" in capsys.readouterr().err


def test_a_v_prediction_model_is_not_trained_by_eq_5(like, stills, tmp_path, capsys):
    """SD2.1's 768-pixel sibling predicts v. Eq. 5 would teach it eps: is it refused before anything is written?"""
    shutil.copytree(like, tmp_path / "v")
    write_json({"prediction_type": "v_prediction"}, tmp_path / "v" / "scheduler" / "scheduler_config.json")
    shutil.copytree(stills / "vae", tmp_path / "out" / "vae")
    assert run("image", tmp_path / "v", tmp_path / "out", 1) == 2
    assert "v-prediction" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out" / "unet").exists()


@pytest.mark.slow
def test_a_resumed_run_keeps_its_tokenizer(like, stills, tmp_path):
    """The embeddings belong to merges that were learnt from 6 captions. The run resumes with 60: are they replaced?"""
    out = shutil.copytree(stills, tmp_path / "out")
    before = (out / "tokenizer" / "merges.txt").read_bytes()
    assert run("image", like, out, 4, "--clips", "60") == 0
    assert (out / "tokenizer" / "merges.txt").read_bytes() == before         # breaks if every start learns them


@pytest.mark.slow
def test_sixty_captions_give_other_merges_than_six(like, stills, tmp_path):
    """So that the exercise before this one means something."""
    shutil.copytree(stills / "vae", tmp_path / "vae")
    assert run("image", like, tmp_path, 1, "--clips", "60") == 0
    assert (tmp_path / "tokenizer" / "merges.txt").read_bytes() != (stills / "tokenizer" / "merges.txt").read_bytes()
