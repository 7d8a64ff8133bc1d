"""Exercises for train.py: Eq. 5, the two learning rates, and a loop that can be stopped."""
import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_unet3d import TINY, moving_clip, stir
from torch.testing import assert_close

import loop
import train
import weights
from appearnet import VideoModel
from sampler import NoiseSchedule

SCHEDULE = NoiseSchedule()
SMALL = {"unet": TINY | {"cross_attention_dim": 8},
         "video": TINY | {"cross_attention_dim": 8, "sampling": {"frames": 3}},
         "vae": dict(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4),
         "text_encoder": dict(vocab_size=600, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
                              num_attention_heads=2)}


def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    z_0, eps_n = (torch.randn(2, 4, 3, 4, 6, generator=g, dtype=torch.float64) for _ in range(2))
    return z_0, z_0[:, :, 1:2], torch.zeros(2, 5, 6, dtype=torch.float64), torch.tensor([1, 998]), eps_n


def test_ignoring_the_prior_costs_lambda_squared():
    """Eq. 3, 5. A model that predicts eps_n perfectly but not lam * z_c: what does it pay?"""
    z_0, z_c, text, t, eps_n = batch()
    pays = train.loss(lambda z_t, t, c, text: eps_n, z_0, z_c, text, t, eps_n, SCHEDULE, lam=0.3)
    assert_close(pays.double(), 0.3**2 * z_c.pow(2).mean(), rtol=1e-5, atol=0)          # breaks if the target is eps_n


def test_an_oracle_pays_nothing():
    """Solve Eq. 4 for eps, with z_0 in hand: loss 0, at early and late t. It must be given z_t at that t."""
    z_0, z_c, text, t, eps_n = batch()

    def oracle(z_t, t, condition, text):
        ab = SCHEDULE.at(t, z_t)
        return (z_t - ab ** 0.5 * z_0) / (1 - ab) ** 0.5
    assert train.loss(oracle, z_0, z_c, text, t, eps_n, SCHEDULE) < 1e-12    # breaks if t and alpha_bar part ways


def test_weighting_v_is_the_error_of_v():
    """v = sqrt(ab) eps - sqrt(1 - ab) z_0. From a wrong eps follows a wrong z_0, from both a wrong v: how wrong?"""
    z_0, z_c, text, t, eps = batch()
    wrong = torch.randn(z_0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pays = train.loss(lambda z_t, t, c, text: wrong, z_0, z_c, text, t, eps, SCHEDULE, lam=0, weighting="v")
    ab = SCHEDULE.at(t, z_0)
    z_t = ab ** 0.5 * z_0 + (1 - ab) ** 0.5 * eps
    wrong_z_0 = (z_t - (1 - ab) ** 0.5 * wrong) / ab ** 0.5
    v, wrong_v = (ab ** 0.5 * e - (1 - ab) ** 0.5 * z for e, z in ((eps, z_0), (wrong, wrong_z_0)))
    assert_close(pays.double(), (v - wrong_v).pow(2).mean(), rtol=1e-5, atol=0)     # breaks with 1 / (1 - alpha_bar)


def test_every_parameter_is_in_one_group_and_the_ratio_is_ten(capsys):
    """Sec. 4.1: new 2e-5, spatial 10 times smaller. Is any tensor forgotten, or in both?"""
    model = VideoModel(**TINY)
    new, copied = train.parameter_groups(model)
    assert new["lr"] == 2e-5 and abs(new["lr"] / copied["lr"] - 10) < 1e-9
    ids = [id(p) for group in (new, copied) for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())          # breaks with a name matched twice
    names = {id(p): name for name, p in model.named_parameters()}
    sd = {f"unet.{name}" for name, _ in train.UNet3D(temporal=False, **TINY).named_parameters()}
    assert {names[id(p)] for p in copied["params"] if names[id(p)].startswith("unet.")} == sd
    assert f"{len(new['params'])} tensors" in capsys.readouterr().out


def test_one_clip_can_be_learnt():
    """Sixty steps on one clip and one t: does the loss fall to a fifth? Twice from a seed: the same numbers?"""
    def run():
        torch.manual_seed(0)
        model, losses = VideoModel(**TINY), []
        z_0, _, _, _, eps_n = (x.float() if x.is_floating_point() else x for x in batch())
        text = moving_clip()[2]
        optimizer = torch.optim.AdamW(train.parameter_groups(model, 1e-2, 1e-2))
        for _ in range(60):
            value = train.loss(model, z_0, z_0[:, :, 1:2], text, torch.tensor([500, 500]), eps_n, SCHEDULE)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.item())
        return losses
    first = run()
    assert first[-1] < 0.2 * first[0] and first == run()


def write_configs(folder):
    """A model folder that only holds configs, of very small models."""
    for part, config in SMALL.items():
        weights.write_json(config, folder / part / "config.json")
    weights.write_json({"beta_start": 0.00085, "beta_end": 0.012}, folder / "scheduler" / "scheduler_config.json")
    return folder


@pytest.fixture(scope="module")
def like(tmp_path_factory):
    return write_configs(tmp_path_factory.mktemp("like"))


def run(stage, like, out, steps, *more):
    how = "--batch 2 --clips 6 --size 32 --save-every 2 --sample-every 4 --ema 0.9 --device cpu".split()
    how += ["--frames", "3"] if stage == "video" else []
    return train.main([stage, "--model", str(like), "--out", str(out), "--steps", str(steps), *how, *more])


def last(folder, stage):
    """The newest checkpoint of a stage."""
    return max(folder.glob(f"{stage}.*.checkpoint.safetensors"))


def test_the_four_stages_in_a_row_and_each_can_be_stopped(like, tmp_path):
    """Four steps at once, or two, a stop, and two more: are the checkpoints bit for bit the same?"""
    for stage in ("vae", "image", "video", "tsr"):
        assert run(stage, like, tmp_path / "whole", 4) == 0
        assert run(stage, like, tmp_path / "halves", 2) == 0
        assert run(stage, like, tmp_path / "halves", 4) == 0
        name = f"{stage}.00000004.checkpoint.safetensors"
        whole, halves = (load_file(tmp_path / half / name) for half in ("whole", "halves"))
        assert whole.keys() == halves.keys() and len(whole) > 20
        for key, tensor in whole.items():                                    # breaks if the data starts again from 0
            assert torch.equal(tensor, halves[key]), (stage, key)
        assert weights.main([str(tmp_path / "whole" / name)]) == 0           # the map can be drawn of it, too
        tables = [list(csv.DictReader(open(tmp_path / half / f"{stage}.csv"))) for half in ("whole", "halves")]
        for row in tables[0] + tables[1]:
            del row["seconds"]
        assert tables[0][-1] == tables[1][-1] and tables[0][-1]["step"] == "4"
        for picture in (f"{stage}.png", f"{stage}-000004.png"):
            assert (tmp_path / "whole" / picture).is_file()
    video = weights.load_video(tmp_path / "whole")
    assert {name.partition(".")[0] for name, _ in video.named_parameters()} == {"unet", "appearnet"}
    assert weights.read_json(tmp_path / "whole" / "video" / "config.json")["sampling"] == {
        "size": 32, "frames": 3, "fps": 2.0, "lam": 0.03}


def test_gradient_checkpointing_gives_the_same_gradients():
    """Blocks that forget and compute again, SPADE's tensors included: is any gradient another, or lost?"""
    model = VideoModel(**TINY).double()
    stir(model)
    z_0, t, text = (x.double() if x.is_floating_point() else x for x in moving_clip())
    eps_n = torch.randn(z_0.shape, dtype=torch.float64)

    def gradients():
        train.loss(model, z_0, z_0[:, :, 1:2], text, t, eps_n, SCHEDULE).backward()
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


def torchrun(processes, *command):
    """train.py in several processes."""
    how = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run([*how, str(Path(train.__file__)), *map(str, command)], capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("way", ["DDP", "FSDP2"])
def test_two_processes_take_the_steps_of_one(like, tmp_path, way):
    """torchrun with two processes, each with half of every batch: are the averaged gradients those of all of it?"""
    for stage in ("vae", "image"):
        assert run(stage, like, tmp_path / "one", 1) == 0
    for part in ("vae", "unet", "text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(tmp_path / "one" / part, tmp_path / "two" / part)
    assert run("video", like, tmp_path / "one", 3) == 0
    how = "--steps 3 --batch 2 --clips 6 --size 32 --frames 3 --ema 0.9 --device cpu --sample-every 9".split()
    how += ["--fsdp"] if way == "FSDP2" else []
    torchrun(2, "video", "--model", like, "--out", tmp_path / "two", *how)
    one, two = (load_file(last(tmp_path / name, "video")) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        if name.startswith("adam.exp_avg."):                                 # linear in the gradients
            assert_close(one[name], two[name], rtol=1e-3, atol=1e-6)         # breaks if both see the same half
    assert run("video", like, tmp_path / "two", 4) == 0                      # one process goes on where two stopped


def test_a_video_model_can_start_from_another(like, tmp_path, capsys):
    """--start: one step at learning rate 0 gives the weights it started with back, not those of a grown image model."""
    for stage in ("vae", "image", "video"):
        assert run(stage, like, tmp_path / "first", 2) == 0
    for part in ("vae", "unet", "text_encoder", "tokenizer", "scheduler"):
        for name in ("second", "third"):
            shutil.copytree(tmp_path / "first" / part, tmp_path / name / part)
    still = ["--start", str(tmp_path / "first"), "--lr-temporal", "0", "--lr-spatial", "0"]
    assert run("video", like, tmp_path / "second", 1, *still) == 0
    first, second = (weights.load_video(tmp_path / name).state_dict() for name in ("first", "second"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())      # breaks if it grows anew
    config = weights.read_json(tmp_path / "first" / "video" / "config.json")
    weights.write_json(config | {"cross_attention_dim": 16}, tmp_path / "other" / "video" / "config.json")
    assert run("video", like, tmp_path / "third", 1, "--start", str(tmp_path / "other")) == 2
    assert "cross_attention_dim is 16" in capsys.readouterr().err


def test_trained_weights_are_not_overwritten(like, tmp_path, capsys):
    """--out names a folder with somebody's trained weights and no checkpoint of ours."""
    (tmp_path / "vae").mkdir()
    file = tmp_path / "vae" / "model.safetensors"
    file.write_bytes(b"precious")
    assert run("vae", like, tmp_path, 1) == 2
    assert "another --out" in capsys.readouterr().err and file.read_bytes() == b"precious"


def test_a_stage_without_the_one_before_it_says_so(like, tmp_path, capsys):
    """The image model needs the autoencoder."""
    assert run("image", like, tmp_path, 1) == 2
    said = capsys.readouterr().err
    assert "vae" in said and said.count("\n") == 1


def test_a_v_prediction_model_is_not_trained_by_eq_5(like, tmp_path, capsys):
    """SD2.1's 768-pixel sibling puts out v. Eq. 5 would teach it eps: refused, before any work is done."""
    shutil.copytree(like, tmp_path / "v")
    weights.write_json({"prediction_type": "v_prediction"}, tmp_path / "v" / "scheduler" / "scheduler_config.json")
    assert run("vae", like, tmp_path / "out", 1) == 0
    assert run("image", tmp_path / "v", tmp_path / "out", 1) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "v-prediction" in said and not (tmp_path / "out" / "unet").exists()


def test_the_loss_by_bucket_tells_where_a_model_is_wrong():
    """An oracle for t below 400 that knows nothing above: which of five buckets are zero? Twice the same?"""
    z, ids = torch.randn(6, 4, 3, 4, 4).half(), torch.zeros(6, 5, dtype=torch.long)

    def loss_of(z_0, ids, t, eps_n):
        return ((eps_n * (t >= 400).view(-1, 1, 1, 1, 1)) ** 2).mean()
    losses = train.by_bucket(loss_of, z, ids, SCHEDULE)
    assert list(losses) == ["t 0-199", "t 200-399", "t 400-599", "t 600-799", "t 800-999"]
    assert [round(loss) for loss in losses.values()] == [0, 0, 1, 1, 1]      # breaks if a bucket draws all t
    assert losses == train.by_bucket(loss_of, z, ids, SCHEDULE)


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
