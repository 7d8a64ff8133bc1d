"""Exercises on training/loop.py: the gradients of a step, the learning rate, and losses that are not finite."""
import csv
from pathlib import Path

import pytest
import torch
from conftest import last, names_of, run, subprocess_of
from safetensors.torch import load_file
from test_unet3d import TINY, moving_clip, stir
from torch import nn
from torch.testing import assert_close

import train
from appearnet import VideoModel
from sampler import NoiseSchedule
from training import loop
from training.prepare import RECOMPUTED
from training.report import AVERAGE
from training.state import TrainState


def stage_of(model, loss_of, *batch):
    """A Stage that trains a model on the same tensors in each step."""
    return loop.Stage(model, [{"name": "all", "params": list(model.parameters()), "lr": 1e-3}], loss_of=loss_of,
                      pick=lambda step, generator: [0], load=lambda numbers, generator: batch,
                      names=lambda numbers: ["a clip"], save=None)


# ---- the gradients of a step ----

def test_gradient_checkpointing_gives_the_same_gradients():
    """Blocks forget their activations and compute them again, SPADE's too: is any gradient different, or lost?"""
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
    loop.checkpoint_blocks(model, RECOMPUTED)
    recomputed = gradients()
    for name, grad in plain.items():
        assert_close(recomputed[name], grad, rtol=1e-9, atol=1e-12)


@pytest.fixture
def in_parts(like, tmp_path):
    """Two folders of stage vae, two steps: each batch of two clips at once, and in two parts (--accumulate 2)."""
    folders = tmp_path / "whole", tmp_path / "parts"
    assert run("vae", like, folders[0], 2) == run("vae", like, folders[1], 2, "--accumulate", "2") == 0
    return folders


def test_parts_of_a_batch_add_up_to_its_gradient(in_parts):
    """Two clips one by one, or both at once: does AdamW get the same gradients?"""
    whole, parts = (load_file(last(folder, "vae")) for folder in in_parts)
    for name in whole:
        if name.startswith("adam.exp_avg."):                                 # linear in the gradients
            assert_close(whole[name], parts[name], rtol=1e-3, atol=1e-6)     # breaks if a part is left out


def test_parts_of_a_batch_add_up_to_its_loss(in_parts):
    """Are the losses in the two tables the same?"""
    whole, parts = ([float(row["loss"]) for row in csv.DictReader((folder / "vae.csv").read_text().splitlines())]
                    for folder in in_parts)
    assert_close(whole, parts, rtol=1e-5, atol=0)                            # breaks without the division


def test_a_batch_that_has_no_such_parts_is_refused(like, tmp_path, capsys):
    """Two clips in three parts."""
    assert run("vae", like, tmp_path, 2, "--accumulate", "3") == 2
    assert "want a multiple of" in capsys.readouterr().err


def test_attention_is_trained_without_cudnn():
    """Its gradients can be NaN, see make_train_step. After a step is prepared: may attention still use cuDNN?"""
    torch.backends.cuda.enable_cudnn_sdp(True)
    model = nn.Linear(1, 1)
    run = loop.Run("one", Path("x"), batch=1, device="cpu")
    stage = stage_of(model, lambda x: model(x).mean(), torch.ones(1, 1))
    loop.make_train_step(stage, TrainState(stage, run), run)
    assert not torch.backends.cuda.cudnn_sdp_enabled()                       # breaks without that line


@pytest.mark.slow
def test_a_fusion_that_loses_gradients_is_off():
    """Since torch 2.10, see loop.py. Inductor is imported after loop.py: does it read the setting?"""
    done = subprocess_of("-c", "from training import loop; import torch._inductor.config as c; "
                         "print(getattr(c.triton, 'mix_order_reduction', False))")
    assert done.stdout == "False\n", done.stderr                             # breaks without the line in loop.py


# ---- the learning rate ----

def test_the_learning_rate_rises_and_falls():
    """A warm-up of 3 steps, then ten steps of which the last half cools down: which factors, by hand?"""
    factors = [loop.learning_rate_scale(step, 1 - step / 10, warmup=3, cooldown=0.5) for step in range(10)]
    assert_close(factors, [0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_without_warmup_and_cooldown_the_learning_rate_stays():
    """At each of ten steps: is the factor 1?"""
    assert [loop.learning_rate_scale(step, 1 - step / 10, warmup=0, cooldown=0.0) for step in range(10)] == [1] * 10


# ---- the best average weights ----

def falling(folder, steps, target=0.7, save=None, **options):
    """Trains one weight that starts at 1 and falls by 0.1 a step. Held out, it should be `target`. Checkpoints after
    each step. Returns the weights that were saved, in turn."""
    model, saved = nn.Linear(1, 1, bias=False), []
    nn.init.ones_(model.weight)
    options = {"keep": "best", "weight_decay": 0.0, "batch": 1, "device": "cpu", "save_every": 1} | options
    loop.fit(loop.Stage(model, [{"name": "all", "params": [model.weight], "lr": 0.1}], pick=lambda *_: [0],
                        load=lambda *_: [torch.ones(1, 1)], loss_of=lambda x: model(x).mean(), names=lambda _: ["a"],
                        save=save or (lambda tensors: saved.append(round(tensors["weight"].item(), 4))),
                        validate=lambda: {"held out": (model.weight.item() - target) ** 2}),
             loop.Run("one", folder, steps=steps, **options))
    return saved


def test_the_best_weights_are_kept(tmp_path):
    """AdamW moves by its rate while the gradient stays 1: 0.9, 0.8, ... Which of six does the folder get?"""
    assert falling(tmp_path, 6) == [0.9, 0.8, 0.7]                           # breaks if a worse one replaces them


def test_the_last_weights_are_kept_on_demand(tmp_path):
    """--keep last: which of six?"""
    assert falling(tmp_path, 6, keep="last") == [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]


def test_the_average_weights_are_compared_not_the_current_ones(tmp_path):
    """The average lags behind the weights. By hand: which average is nearest to 0.2?"""
    averages = [1.0]
    for step in range(12):
        decay = min(0.9, (1 + step) / (10 + step))
        averages.append(decay * averages[-1] + (1 - decay) * (1 - 0.1 * (step + 1)))
    best = min(averages[1:], key=lambda average: abs(average - 0.2))
    assert averages.index(best) != 8                                         # where the current weight is best
    assert falling(tmp_path, 12, target=0.2, ema=0.9)[-1] == round(best, 4)  # breaks if validate sees the current one


def test_the_loss_of_the_average_weights_is_in_the_table(tmp_path):
    """After two steps the weight is 0.8, held out it should be 0.7: which losses does the last row have?"""
    falling(tmp_path, 2)
    row = list(csv.DictReader((tmp_path / "one.csv").read_text().splitlines()))[-1]
    assert_close([float(row[name]) for name in ("held out", AVERAGE)], [0.01, 0.01], rtol=1e-4, atol=0)


def test_a_run_ends_when_its_patience_is_over(tmp_path):
    """Best at step 3, patience for two more checkpoints, 100 steps allowed: where does it end?"""
    falling(tmp_path, 100, patience=2)
    assert names_of(tmp_path, "one")[-1] == "one.00000005.checkpoint.safetensors"        # breaks if all are counted


def test_a_run_whose_patience_is_over_takes_no_further_step(tmp_path):
    """The same command again."""
    falling(tmp_path, 100, patience=2)
    assert falling(tmp_path, 100, patience=2) == [] and "00000005" in names_of(tmp_path, "one")[-1]


def test_a_resumed_run_knows_the_best(tmp_path):
    """Best at step 3; it resumes at step 4. Does it replace the best weights by those of step 5?"""
    falling(tmp_path, 4)
    assert falling(tmp_path, 6) == []                                        # breaks if the best is forgotten


def test_a_resumed_run_writes_the_best_weights_that_a_stop_has_lost(tmp_path):
    """The disk is full when the best weights of step 2 should be saved; their checkpoint is written already."""
    def full_disk(tensors):
        if tensors["weight"].item() < 0.85:
            raise OSError(28, "full")
    with pytest.raises(ValueError, match="full"):
        falling(tmp_path, 6, target=0.8, save=full_disk)
    assert falling(tmp_path, 6, target=0.8) == [0.8]                         # breaks if only a new step exports


def test_patience_without_the_best_weights_is_refused():
    """--patience counts checkpoints that were not better, and nothing is compared: is the option refused?"""
    with pytest.raises(ValueError, match="--patience: needs --keep best"):
        loop.Run("one", Path("x"), keep="last", patience=3)


def test_weight_decay_shrinks_a_weight_that_has_no_gradient():
    """A weight of 1, learning rate 0.1, decay 0.5, a loss that does not depend on it. AdamW: 1 - 0.1 * 0.5."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    stage = stage_of(model, lambda x: 0 * model(x).mean(), torch.ones(1, 1))
    stage.groups[0]["lr"] = 0.1
    run = loop.Run("one", Path("x"), batch=1, device="cpu", weight_decay=0.5)
    loop.make_train_step(stage, TrainState(stage, run), run)(0)
    assert_close(model.weight.item(), 0.95, rtol=1e-6, atol=0)               # breaks if the option is ignored


# ---- losses and gradients that are not finite ----

@pytest.fixture
def poisoned(like, tmp_path, monkeypatch, capsys):
    """The error message of a run that resumes from a checkpoint at step 2, and whose loss is NaN at step 3."""
    assert run("vae", like, tmp_path, 2) == 0
    before, backward, steps = last(tmp_path, "vae").read_bytes(), torch.Tensor.backward, []

    def poisoned_backward(loss, *options):
        steps.append(loss.data.fill_(float("nan")) if len(steps) == 1 else None)
        return backward(loss, *options)
    monkeypatch.setattr(torch.Tensor, "backward", poisoned_backward)
    assert run("vae", like, tmp_path, 6) == 2
    assert last(tmp_path, "vae").read_bytes() == before                      # breaks if a step of NaN is saved
    return capsys.readouterr().err.splitlines()[-1]


def test_a_loss_that_is_not_finite_names_its_step(poisoned):
    """What does a person read?"""
    assert "not finite at step 3" in poisoned


def test_a_loss_that_is_not_finite_names_its_clips(poisoned):
    """Step 3 takes clips 6 and 7 of 6: the set has begun again."""
    assert "toy clip 0, toy clip 1" in poisoned


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(poisoned):
    """Where can the person resume?"""
    assert "vae.00000002.checkpoint" in poisoned


def test_a_gradient_that_is_not_finite_is_never_saved(tmp_path):
    """sqrt(w - w) is 0 with an infinite slope: the loss is fine, its gradient NaN. Is the checkpoint written?"""
    model = nn.Linear(1, 1)
    stage = stage_of(model, lambda x: (model(x) - model(x)).sqrt().sum(), torch.ones(1, 1))
    with pytest.raises(ValueError, match="not finite at step 0, with clips a clip; there is no"):
        loop.fit(stage, loop.Run("one", tmp_path, steps=3, batch=1, device="cpu", save_every=1))
    assert not list(tmp_path.glob("*.safetensors"))                          # breaks if only the loss is checked


def test_the_rate_never_falls_below_zero():
    """A step that begins after --minutes are over: nothing is left, or less. Without cool-down the rate stays."""
    assert loop.learning_rate_scale(9, -0.1, warmup=0, cooldown=0.5) == 0    # breaks without the max: a step backwards
    assert loop.learning_rate_scale(9, 0.001, warmup=0, cooldown=0.0) == 1
