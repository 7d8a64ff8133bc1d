"""Exercises on training/distributed.py: two processes that train one model, with DDP or FSDP2.

The processes are forked from one that has imported PyTorch already, which saves seconds for each. They get the
environment variables that torchrun sets. The last exercise starts torchrun itself.
"""
import multiprocessing
import os
import socket
import sys

import pytest
import torch
from conftest import ROOT, arguments, copy_models, last, names_of, run, subprocess_of
from safetensors.torch import load_file
from torch.testing import assert_close

import train
from training import pretrain

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="there is no fork")]
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["train", "training.pretrain", "torch._dynamo"])


def start(rank, port, main, argv, folder):
    """Runs a command in process `rank` of two, in the current folder `folder`, with stderr to a file there."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.chdir(folder)
    sys.stderr = open(f"stderr-{rank}", "w")
    sys.exit(main(argv))


def two_processes(main, argv, folders):
    """Runs a command in two processes, each in its folder. Returns their exit codes and what they wrote to stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [PROCESSES.Process(target=start, args=(rank, port, main, argv, folders[rank])) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        process.kill()                                                       # if it waits for one that has failed
    return [process.exitcode for process in both], [(folders[rank] / f"stderr-{rank}").read_text() for rank in (0, 1)]


FEW_CHECKS = ("--clips", 4, "--save-every", 1000)                           # only two losses on held-out clips


@pytest.fixture(scope="module")
def alone(like, stills, tmp_path_factory):
    """The last checkpoint of stage video, trained by one process for three steps."""
    folder = copy_models(stills, tmp_path_factory.mktemp("alone"))
    assert run("video", like, folder, 3, *FEW_CHECKS) == 0
    return load_file(last(folder, "video"))


@pytest.mark.parametrize("more", [(), ("--fsdp",)], ids=["DDP", "FSDP2"])
def test_two_processes_take_the_steps_of_one(like, alone, ready, tmp_path, more):
    """Each process computes half of every batch: are the averaged gradients those of the whole batch?

    Two processes take the first step, one the second, two the third: a checkpoint fits any number of processes.
    """
    out = ready("out")
    for steps in (1, 2, 3):
        if steps == 2:
            assert run("video", like, out, steps, *FEW_CHECKS) == 0
        else:
            argv = arguments("video", like, out, steps, *FEW_CHECKS, *more)
            codes, errors = two_processes(train.main, argv, [tmp_path, tmp_path])
            assert codes == [0, 0], errors
    together = load_file(last(out, "video"))
    assert alone.keys() == together.keys()
    for name in alone:
        if name.startswith("adam.exp_avg."):                                 # linear in the gradients
            assert_close(alone[name], together[name], rtol=1e-3, atol=1e-6)  # breaks if both see the same half


@pytest.mark.parametrize("stage", ["vae", "image"])
def test_hosts_that_do_not_share_a_folder_are_told_so(like, tmp_path, stage):
    """Two processes, each in a folder of its own, and --out is relative. One of them finds the checkpoint of an earlier
    run, or the autoencoder that the image model needs: is a model trained?"""
    folders = [tmp_path / "0", tmp_path / "1"]
    assert run("vae", like, folders[0] / "out", 2) == 0
    folders[1].mkdir()
    codes, errors = two_processes(pretrain.main, arguments(stage, like, "out", 4), folders)
    assert codes == [2, 2] and all(": not all processes see the same" in error for error in errors)
    assert names_of(folders[1] / "out") == []                                # breaks if each trains a model of its own


def test_torchrun_starts_the_processes_and_one_of_them_prints(like, ready):
    """`torchrun --nproc-per-node 2 train.py video`, one step: does it end well, and is each line printed once?"""
    out = ready("out")
    done = subprocess_of(*"-m torch.distributed.run --standalone --nproc-per-node 2".split(), ROOT / "train.py",
                         *arguments("video", like, out, 1, *FEW_CHECKS))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("first loss") == 1 and names_of(out) == ["video.00000001.checkpoint.safetensors"]
