"""What the exercises on training share: very small models, one run of a stage, and folders with trained stages."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_unet3d import TINY

import train
from sd21.files import write_json
from training import pretrain

# The models of the exercises are so small that a second thread gains nothing. On a busy machine threads wait for each
# other, and the same training took 77 seconds instead of 4.
torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
SMALL = {"unet": TINY | {"cross_attention_dim": 8},
         "video": TINY | {"cross_attention_dim": 8, "sampling": {"frames": 3}},
         "vae": dict(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4),
         "text_encoder": dict(vocab_size=600, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
                              num_attention_heads=2)}
TINY_RUN = "--batch 2 --clips 6 --size 16 --save-every 2 --sample-every 1000 --ema 0.9 --device cpu".split()


def write_configs(folder):
    """Makes a model folder that holds only configs, of very small models. Returns the folder."""
    for name, config in SMALL.items():
        write_json(config, folder / name / "config.json")
    write_json({"beta_start": 0.00085, "beta_end": 0.012}, folder / "scheduler" / "scheduler_config.json")
    return folder


def arguments(stage, like, out, steps, *more):
    """A command line that trains a stage on six clips of 16 x 16 pixels. `like` is the model folder."""
    frames = ["--frames", "3"] if stage == "video" else []
    return [stage, "--model", str(like), "--out", str(out), "--steps", str(steps), *TINY_RUN, *frames, *map(str, more)]


def run(stage, like, out, steps, *more):
    """Trains a stage in this process. Returns the exit code."""
    main = pretrain.main if stage in ("vae", "image") else train.main
    try:
        return main(arguments(stage, like, out, steps, *more))
    except SystemExit as stop:                                               # argparse has refused an option
        return stop.code


def subprocess_of(*command):
    """Runs Python in a process of its own, on one thread as here: more would change the last bit of sums."""
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, cwd=ROOT,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})


def last(folder, stage):
    """The newest checkpoint of a stage."""
    return max(folder.glob(f"{stage}.*.checkpoint.safetensors"))


def names_of(folder, stage="*"):
    """The names of the checkpoints in a folder, oldest first."""
    return sorted(path.name for path in folder.glob(f"{stage}.*.checkpoint.safetensors"))


def assert_same(one, two, stage):
    """Asserts that the newest checkpoints of two folders are of one step, and equal bit for bit."""
    paths = [last(folder, stage) for folder in (one, two)]
    one, two = map(load_file, paths)
    assert paths[0].name == paths[1].name and one.keys() == two.keys() and len(one) > 20
    for name, tensor in one.items():
        assert tensor.dtype == two[name].dtype and tensor.equal(two[name]), name


@pytest.fixture(scope="session")
def like(tmp_path_factory):
    """A model folder that says how large the models are."""
    return write_configs(tmp_path_factory.mktemp("like"))


@pytest.fixture(scope="session")
def stills(like, tmp_path_factory):
    """A folder with an autoencoder and an image model that were trained for two steps. Copy it, do not change it."""
    out = tmp_path_factory.mktemp("stills")
    for stage in ("vae", "image"):
        assert run(stage, like, out, 2) == 0
    return out


@pytest.fixture(scope="session")
def four_stages(like, tmp_path_factory):
    """A folder in which all four stages were trained, one after the other, for four steps each. Do not change it."""
    out = tmp_path_factory.mktemp("four_stages")
    for stage in ("vae", "image", "video", "tsr"):
        assert run(stage, like, out, 4, "--sample-every", 4) == 0
    return out


@pytest.fixture
def ready(stills, tmp_path):
    """A function that makes a new folder, by name, in which the video model can be trained."""
    return lambda name: copy_models(stills, tmp_path / name)


def copy_models(stills, folder):
    """Copies the models of `stills`, but no checkpoints, into a new folder. Returns the folder."""
    for name in ("vae", "unet", "text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(stills / name, folder / name)
    return folder
