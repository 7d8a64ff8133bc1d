"""What the exercises on training share: very small models, a run of train.py, and the first two stages, trained."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_unet3d import TINY

import train
import weights

SMALL = {"unet": TINY | {"cross_attention_dim": 8},
         "video": TINY | {"cross_attention_dim": 8, "sampling": {"frames": 3}},
         "vae": dict(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4),
         "text_encoder": dict(vocab_size=600, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
                              num_attention_heads=2)}
TINY_RUN = "--batch 2 --clips 6 --size 16 --save-every 2 --ema 0.9 --device cpu".split()


def write_configs(folder):
    """A model folder that only holds configs, of very small models."""
    for part, config in SMALL.items():
        weights.write_json(config, folder / part / "config.json")
    weights.write_json({"beta_start": 0.00085, "beta_end": 0.012}, folder / "scheduler" / "scheduler_config.json")
    return folder


def arguments(stage, like, out, steps, *more):
    """A command line of train.py for six clips of 16 x 16 pixels."""
    how = TINY_RUN + ["--sample-every", "1000"] + (["--frames", "3"] if stage == "video" else [])
    return [stage, "--model", str(like), "--out", str(out), "--steps", str(steps), *how, *map(str, more)]


def run(stage, like, out, steps, *more):
    return train.main(arguments(stage, like, out, steps, *more))


def subprocess_of(*command, threads=1):
    """A program of Python's in a process of its own. Sums depend on how many threads share them, in the last bit."""
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True,
                          cwd=Path(train.__file__).parent, env=os.environ | {"OMP_NUM_THREADS": str(threads)})


def last(folder, stage):
    """The newest checkpoint of a stage."""
    return max(folder.glob(f"{stage}.*.checkpoint.safetensors"))


def names_of(folder, stage="*"):
    """The checkpoints in a folder by name, the oldest first."""
    return sorted(path.name for path in folder.glob(f"{stage}.*.checkpoint.safetensors"))


def assert_same(one, two, stage):
    """The newest checkpoints of two runs: of one step, and bit for bit the same."""
    paths = [last(folder, stage) for folder in (one, two)]
    one, two = map(load_file, paths)
    assert paths[0].name == paths[1].name and one.keys() == two.keys() and len(one) > 20
    for name, tensor in one.items():
        assert tensor.dtype == two[name].dtype and tensor.equal(two[name]), name


@pytest.fixture(scope="session")
def like(tmp_path_factory):
    return write_configs(tmp_path_factory.mktemp("like"))


@pytest.fixture(scope="session")
def stills(like, tmp_path_factory):
    """A folder with an autoencoder and an image model, trained for two steps. To be copied, not changed."""
    out = tmp_path_factory.mktemp("stills")
    for stage in ("vae", "image"):
        assert run(stage, like, out, 2) == 0
    return out


@pytest.fixture
def ready(stills, tmp_path):
    """A function that gives a new folder, by name, in which the video model can be trained."""
    def folder(name):
        for part in ("vae", "unet", "text_encoder", "tokenizer", "scheduler"):
            shutil.copytree(stills / part, tmp_path / name / part)
        return tmp_path / name
    return folder
