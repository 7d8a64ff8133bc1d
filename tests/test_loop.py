"""Exercises for loop.py: a training loop that can be stopped in any way, split in any way, and goes on as if not."""
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import arguments, assert_same, last, names_of, run, subprocess_of
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from test_unet3d import TINY, moving_clip, stir
from torch import nn
from torch.testing import assert_close

import loop
import train
import weights
from appearnet import VideoModel
from sampler import NoiseSchedule

TORCHRUN = "-m torch.distributed.run --standalone --nproc-per-node 2".split()


def test_gradient_checkpointing_gives_the_same_gradients():
    """Blocks that forget and compute again, SPADE's tensors included: is any gradient another, or lost?"""
    model = VideoModel(**TINY).double()
    stir(model)
    z_0, t, text = (x.double() if x.is_floating_point() else x for x in moving_clip())
    eps_n, schedule = torch.randn(z_0.shape, dtype=torch.float64), NoiseSchedule()

    def gradients():
        train.loss(model, z_0, z_0[:, :, 1:2], text, t, eps_n, schedule).backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        model.zero_grad(set_to_none=True)
        return grads
    plain = gradients()
    loop.checkpoint_blocks(model)
    again = gradients()
    for name, grad in plain.items():
        assert_close(again[name], grad, rtol=1e-9, atol=1e-12)


def test_parts_of_a_batch_add_up_to_its_step(like, tmp_path):
    """--accumulate 2: two clips one by one, or both at once. The same gradients?"""
    for name, more in (("whole", ()), ("parts", ("--accumulate", "2"))):
        assert run("vae", like, tmp_path / name, 2, *more) == 0
    whole, parts = (load_file(last(tmp_path / name, "vae")) for name in ("whole", "parts"))
    for name in whole:
        if name.startswith("adam.exp_avg."):
            assert_close(whole[name], parts[name], rtol=1e-3, atol=1e-6)     # breaks without the division
    assert run("vae", like, tmp_path / "odd", 2, "--accumulate", "3") == 2


@pytest.mark.parametrize("way", ["DDP", "FSDP2"])
def test_two_processes_take_the_steps_of_one(like, ready, way):
    """torchrun with two processes, each with half of every batch: are the averaged gradients those of all of it?"""
    alone, together = ready("one"), ready("two")
    def two(steps):
        how = arguments("video", like, together, steps, *(["--fsdp"] if way == "FSDP2" else []))
        done = subprocess_of(*TORCHRUN, train.__file__, *how)
        assert done.returncode == 0, done.stderr

    assert run("video", like, alone, 5) == 0
    two(3)
    assert run("video", like, together, 4) == 0                              # one process goes on where two stopped
    two(5)                                                                   # and two where one stopped
    one, other = (load_file(last(folder, "video")) for folder in (alone, together))
    assert one.keys() == other.keys()
    for name in one:
        if name.startswith("adam.exp_avg."):                                 # linear in the gradients
            assert_close(one[name], other[name], rtol=1e-3, atol=1e-6)       # breaks if both see the same half


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(like, tmp_path, monkeypatch, capsys):
    """At step 3 the loss is NaN. What is said, and which weights are left? Those of step 2."""
    assert run("vae", like, tmp_path, 2) == 0
    before = last(tmp_path, "vae").read_bytes()
    real, steps = torch.Tensor.backward, []

    def poisoned(value, *how):
        steps.append(value.data.fill_(float("nan")) if len(steps) == 1 else None)
        return real(value, *how)
    monkeypatch.setattr(torch.Tensor, "backward", poisoned)
    assert run("vae", like, tmp_path, 6) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "not finite at step 3" in said and "vae.00000002.checkpoint" in said
    assert "toy clip 0, toy clip 1" in said                                  # clips 6 and 7 of 6, which begin again
    assert last(tmp_path, "vae").read_bytes() == before


def test_a_gradient_that_is_not_finite_is_never_saved(tmp_path):
    """sqrt(w - w) is 0, its slope infinite: a fine loss, a gradient of NaN, and a checkpoint is due. What is left?"""
    args = SimpleNamespace(bf16=False, fsdp=False, ema=0.0, device="cpu", world=1, rank=0, accumulate=1, seed=0,
                           batch=1, cuda_graph=False, steps=3, minutes=None, warmup=0, cooldown=0, save_every=1,
                           sample_every=9, out=tmp_path)
    model = nn.Linear(1, 1)
    task = loop.Task("one", model, [{"name": "all", "params": list(model.parameters()), "lr": 1e-3}],
                     lambda x: (model(x) - model(x)).sqrt().sum(), draw=lambda step, generator: [torch.ones(1, 1)],
                     names=lambda step, generator: ["a clip"], save=None)
    with pytest.raises(ValueError, match="not finite at step 0; the clips of its batch: a clip; there is no"):
        loop.fit(task, args)                                                 # breaks if the loss alone is looked at
    assert not list(tmp_path.glob("*.safetensors"))


SCATTERED = """
import os, sys
import train
os.chdir(os.path.join(sys.argv[1], os.environ["RANK"]))
sys.exit(train.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("stage", ["vae", "image"])
def test_hosts_that_do_not_share_a_folder_are_told_so(like, tmp_path, stage):
    """Two processes, each in a folder of its own; --out is relative. One finds the checkpoint of an earlier run, or the
    autoencoder that the image model needs."""
    assert run("vae", like, tmp_path / "0" / "out", 2) == 0
    (tmp_path / "1").mkdir()
    (tmp_path / "scattered.py").write_text(f"import sys; sys.path.insert(0, {str(Path(train.__file__).parent)!r})"
                                           + SCATTERED)
    done = subprocess_of(*TORCHRUN, tmp_path / "scattered.py", tmp_path, *arguments(stage, like, "out", 4))
    assert done.returncode and done.stderr.count(": not all processes see the same") == 2
    assert names_of(tmp_path / "1" / "out") == []                            # breaks if each trains a model of its own


# ---- stopped in any way

def test_minutes_are_those_of_all_runs_together(like, tmp_path):
    """The seconds in a checkpoint grow from run to run. When --minutes are over, what does the same command do?"""
    taken = []
    for steps in (2, 4):
        assert run("vae", like, tmp_path, steps) == 0
        with safe_open(last(tmp_path, "vae"), framework="pt") as file:
            taken.append(float(file.metadata()["seconds"]))
    assert 0 < taken[0] < taken[1]                                           # breaks if they begin anew
    before = last(tmp_path, "vae")
    assert run("vae", like, tmp_path, 1000, "--minutes", 0.9 * taken[1] / 60) == 0
    assert last(tmp_path, "vae") == before                                   # breaks if a step is taken


def test_of_the_last_two_checkpoints_the_older_serves_when_the_newer_is_cut(like, tmp_path, capsys):
    """Eight steps leave how many checkpoints? A run stopped at 6, its last one cut in half: where does it go on?"""
    for name, steps in (("whole", 8), ("cut", 6)):
        assert run("vae", like, tmp_path / name, steps) == 0
    assert [name[4:12] for name in names_of(tmp_path / "whole")] == ["00000006", "00000008"]
    newest = last(tmp_path / "cut", "vae")
    newest.write_bytes(newest.read_bytes()[:newest.stat().st_size // 2])
    capsys.readouterr()
    assert run("vae", like, tmp_path / "cut", 8) == 0
    said = capsys.readouterr().out
    assert f"{newest}: not whole" in said and "vae.00000004.checkpoint.safetensors, step 4" in said
    assert_same(tmp_path / "whole", tmp_path / "cut", "vae")                 # breaks if half of step 6 was loaded
    assert names_of(tmp_path / "cut") == names_of(tmp_path / "whole")


def contents(folder):
    """What is in a folder, all the way down."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_a_whole_checkpoint_nothing_is_touched(like, tmp_path, capsys):
    """Both are cut, one to nothing. Starting anew would overwrite what somebody may still want to look at."""
    assert run("vae", like, tmp_path, 4) == 0
    for path, size in zip(sorted(tmp_path.glob("*.checkpoint.safetensors")), (0, 100), strict=True):
        path.write_bytes(path.read_bytes()[:size])
    before = contents(tmp_path)
    capsys.readouterr()
    assert run("vae", like, tmp_path, 6) == 2
    said = capsys.readouterr().err
    assert "no checkpoint of stage vae can be read" in said and said.count("\n") == 1
    assert contents(tmp_path) == before                                      # breaks if it begins at step 0


def test_a_run_does_not_go_on_from_another_models_checkpoint(like, tmp_path, capsys):
    """Other widths, or an average that was not there before: refused in one line, not a traceback nor a half-truth."""
    assert run("vae", like, tmp_path / "out", 2) == 0
    config = weights.read_json(like / "vae" / "config.json")
    weights.write_json(config | {"block_out_channels": [4, 12]}, tmp_path / "wider" / "vae" / "config.json")
    capsys.readouterr()
    for model, more in ((tmp_path / "wider", ()), (like, ("--ema", "0"))):
        assert run("vae", model, tmp_path / "out", 4, *more) == 2            # breaks if only missing tensors are seen
        said = capsys.readouterr().err
        assert "is of another model, or --ema was another" in said and said.count("\n") == 1


KILLED = """
import os, sys
import train, weights
save = weights.save_file
def save_file(tensors, path, metadata):
    if metadata and metadata.get("step") == "4":
        path.write_bytes(b"half a checkpoint")
        os.kill(os.getpid(), 9)
    save(tensors, path, metadata=metadata)
weights.save_file = save_file
train.main(sys.argv[1:])
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no kill -9")
def test_a_run_that_was_killed_goes_on_as_if_not(like, tmp_path):
    """kill -9 in the middle of writing the second checkpoint. The same command again: is anything another, or left?"""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run("vae", like, whole, 6) == 0
    threads = torch.get_num_threads()
    assert subprocess_of("-c", KILLED, *arguments("vae", like, killed, 6), threads=threads).returncode == -9
    assert [name[4:12] for name in names_of(killed)] == ["00000002"]
    assert run("vae", like, killed, 6) == 0
    assert_same(whole, killed, "vae")                                        # breaks if data or noise begin anew
    files = [{path.relative_to(folder) for path in folder.rglob("*")} for folder in (whole, killed)]
    assert files[0] == files[1]                                              # breaks if the half checkpoint stays


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error:\n no space")])
def test_a_full_disk_leaves_the_checkpoints_before(like, tmp_path, monkeypatch, capsys, error):
    """Half of step 6 is written when the disk is full. What is said, and what is left?"""
    assert run("vae", like, tmp_path, 4) == 0
    before = {path: data for path, data in contents(tmp_path).items() if path.suffix == ".safetensors"}

    def full(tensors, path, metadata):
        path.write_bytes(b"half a checkpoint")
        raise error
    monkeypatch.setattr(weights, "save_file", full)
    capsys.readouterr()
    assert run("vae", like, tmp_path, 6) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("train.py: ") and f"the last good checkpoint is {last(tmp_path, 'vae')}" in said
    after = contents(tmp_path)
    assert {path: after[path] for path in before} == before and not list(tmp_path.rglob("*.part"))
    assert {path.suffix for path in after} == {".safetensors", ".json", ".csv", ".png"}  # breaks if the half stays


def test_weights_that_were_not_written_are_when_the_run_goes_on(like, tmp_path, monkeypatch, capsys):
    """The last checkpoint is whole, then the disk is full: the model folder has the weights of step 2. And again?"""
    assert run("vae", like, tmp_path / "whole", 4) == 0
    assert run("vae", like, tmp_path / "full", 2) == 0
    with monkeypatch.context() as broken:
        broken.setattr(weights, "save", lambda *what: (_ for _ in ()).throw(OSError(28, "full")))
        assert run("vae", like, tmp_path / "full", 4) == 2
    assert run("vae", like, tmp_path / "full", 4) == 0                       # breaks if it finds nothing left to do
    whole, full = (contents(tmp_path / name / "vae").values() for name in ("whole", "full"))
    assert sorted(whole) == sorted(full)


# ---- bfloat16

def test_a_rate_that_bfloat16_would_lose_moves_float32_masters(like, ready):
    """Sec. 4.1's 2e-6, in bfloat16, two steps: do weights move? And if every update were rounded to bfloat16's 8 bits?
    Stopped at 2 and gone on, is it the unbroken run, bit for bit?"""
    how = ("--bf16", "--lr-temporal", "2e-6", "--lr-spatial", "2e-6")
    folders = [ready("whole"), ready("halves")]
    for folder, steps in ((folders[0], 4), (folders[1], 2), (folders[1], 4)):
        assert run("video", like, folder, steps, *how) == 0
    assert_same(*folders, "video")                                           # breaks if masters are made of the copies
    two, four = (load_file(folders[0] / name) for name in names_of(folders[0], "video"))
    assert all(x.dtype == torch.float32 for x in four.values())
    name = "model.unet.down_blocks.0.resnets.0.conv1.weight"
    before, after = two[name], four[name]
    large = before.abs() > 0.01                                              # where bfloat16's steps are 3e-5 or more
    assert (after != before)[large].float().mean() > 0.99 and large.float().mean() > 0.5
    rounded = before.bfloat16() + (after - before).bfloat16()
    assert torch.equal(rounded[large], before.bfloat16()[large])


def one_step():
    """--bf16 --accumulate 2 on one weight, whose gradients are 1/2 and 2^-11: (model, loop.Weights) after a step."""
    args = SimpleNamespace(bf16=True, fsdp=False, ema=0.0, device="cpu", world=1, rank=0, accumulate=2, seed=0,
                           cuda_graph=False)
    model = nn.Linear(1, 1, bias=False)
    batch = torch.tensor([[1], [2**-10]], dtype=torch.bfloat16)
    task = loop.Task("one", model, [{"params": list(model.parameters()), "lr": 1e-3}], lambda x: model(x).mean(),
                     draw=lambda step, generator: [batch], names=None, save=None)
    held = loop.Weights(task, args)
    loop.steps(task, held, args)(0)
    return model, held


def test_parts_of_a_batch_are_summed_in_float32():
    """Gradients of 1/2 and 2^-11, whose sum bfloat16 does not have. What does AdamW get?"""
    model, held = one_step()
    assert model.weight.grad is None and torch.tensor(0.5 + 2**-11).bfloat16() == 0.5
    assert_close(held.tensors()["adam.exp_avg.weight"].item(), 0.1 * (0.5 + 2**-11), rtol=1e-6, atol=0)   # 1 - beta_1


def test_a_fusion_that_loses_gradients_is_off():
    """torch 2.10 and later, see loop.py. Does Inductor, imported after loop.py, know?"""
    seen = subprocess_of("-c", "import loop, torch._inductor.config as c; "
                         "print(getattr(c.triton, 'mix_order_reduction', False))")
    assert seen.stdout == "False\n", seen.stderr                             # breaks without the line in loop.py


def test_attention_is_trained_without_cudnn():
    """Its gradients can be NaN, see loop.py. Whoever takes a step: may attention's way back still be cuDNN's?"""
    torch.backends.cuda.enable_cudnn_sdp(True)
    one_step()
    assert not torch.backends.cuda.cudnn_sdp_enabled()                       # breaks without the line in loop.steps
