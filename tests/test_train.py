"""Exercises on train.py: Eq. 5, the two learning rates, and the stages video and tsr."""
import contextlib
import io
import re
import shutil

import pytest
import torch
from conftest import copy_models, last, run
from PIL import Image
from test_unet3d import TINY, moving_clip
from torch.testing import assert_close

import train
from appearnet import VideoModel, is_new
from data.toyset import ToySet
from microcinema import COMPONENT_CLASSES, encode_video
from sampler import NoiseSchedule
from sd21 import tensor_map, weights
from sd21.files import read_json, write_json
from sd21.vae import AutoencoderKL
from training.prepare import Clips, loss_by_bucket

SCHEDULE = NoiseSchedule()


def batch(seed=0):
    """(z_0, z_c, text, t, eps_n) of two clips, with an early and a late t."""
    g = torch.Generator().manual_seed(seed)
    z_0, eps_n = (torch.randn(2, 4, 3, 4, 6, generator=g, dtype=torch.float64) for _ in range(2))
    return z_0, z_0[:, :, 1:2], torch.zeros(2, 5, 6, dtype=torch.float64), torch.tensor([1, 998]), eps_n


def load_video(folder):
    """The video model of a folder."""
    return weights.load(weights.component("video", folder), VideoModel)


# ---- Eq. 5 ----

def test_ignoring_the_prior_costs_lambda_squared():
    """Eq. 3, 5. A model predicts eps_n perfectly but not lam * z_c: what is its loss?"""
    z_0, z_c, text, t, eps_n = batch()
    loss = train.loss(lambda z_t, t, c, text: eps_n, z_0, z_c, text, t, eps_n, SCHEDULE, lam=0.3)
    assert_close(loss.double(), 0.3**2 * z_c.pow(2).mean(), rtol=1e-5, atol=0)           # breaks if the target is eps_n


def test_the_loss_of_an_oracle_is_zero():
    """Solve Eq. 4 for eps, with z_0 known: is the loss 0, at early and late t? The oracle needs z_t at that t."""
    z_0, z_c, text, t, eps_n = batch()

    def oracle(z_t, t, condition, text):
        ab = SCHEDULE.alpha_bar_at(t, z_t)
        return (z_t - ab ** 0.5 * z_0) / (1 - ab) ** 0.5
    assert train.loss(oracle, z_0, z_c, text, t, eps_n, SCHEDULE) < 1e-12    # breaks if t and alpha_bar do not match


def test_weighting_v_is_the_error_of_v():
    """v = sqrt(ab) eps - sqrt(1 - ab) z_0. A wrong eps gives a wrong z_0, and both give a wrong v: how wrong?"""
    z_0, z_c, text, t, eps = batch()
    wrong = torch.randn(z_0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = train.loss(lambda z_t, t, c, text: wrong, z_0, z_c, text, t, eps, SCHEDULE, lam=0, weighting="v")
    ab = SCHEDULE.alpha_bar_at(t, z_0)
    z_t = ab ** 0.5 * z_0 + (1 - ab) ** 0.5 * eps
    wrong_z_0 = (z_t - (1 - ab) ** 0.5 * wrong) / ab ** 0.5
    v, wrong_v = (ab ** 0.5 * e - (1 - ab) ** 0.5 * z for e, z in ((eps, z_0), (wrong, wrong_z_0)))
    assert_close(loss.double(), (v - wrong_v).pow(2).mean(), rtol=1e-5, atol=0)     # breaks with 1 / (1 - alpha_bar)


def losses_on_one_clip(steps):
    """The losses of a new video model that is trained on one batch, always at t = 500."""
    torch.manual_seed(0)
    model, losses = VideoModel(**TINY), []
    z_0, _, _, _, eps_n = (x.float() if x.is_floating_point() else x for x in batch())
    text = moving_clip()[2]
    optimizer = torch.optim.AdamW(train.parameter_groups(model, 1e-2, 1e-2))
    for _ in range(steps):
        loss = train.loss(model, z_0, z_0[:, :, 1:2], text, torch.tensor([500, 500]), eps_n, SCHEDULE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def sixty_losses():
    return losses_on_one_clip(60)


@pytest.mark.slow
def test_one_clip_can_be_learnt(sixty_losses):
    """Sixty steps on one clip and one t: does the loss fall to a fifth?"""
    assert sixty_losses[-1] < 0.2 * sixty_losses[0]


@pytest.mark.slow
def test_one_seed_gives_one_training(sixty_losses):
    """The first ten steps again: are their losses equal to the last bit?"""
    assert losses_on_one_clip(10) == sixty_losses[:10]


def test_the_loss_by_bucket_tells_where_a_model_is_wrong():
    """An oracle for t below 400 that knows nothing above: which of five buckets are zero?"""
    z, ids = torch.randn(6, 4, 3, 4, 4).half(), torch.zeros(6, 5, dtype=torch.long)
    losses = loss_by_bucket(oracle_below_400, z, ids, 1000)
    assert list(losses) == ["t 0-199", "t 200-399", "t 400-599", "t 600-799", "t 800-999"]
    assert [round(loss) for loss in losses.values()] == [0, 0, 1, 1, 1]      # breaks if a bucket draws all t


def test_the_loss_by_bucket_uses_the_same_noise_each_time():
    """The same model, twice: is the loss the same? Only so can two steps of a training be compared."""
    z, ids = torch.randn(6, 4, 3, 4, 4).half(), torch.zeros(6, 5, dtype=torch.long)
    assert loss_by_bucket(oracle_below_400, z, ids, 1000) == loss_by_bucket(oracle_below_400, z, ids, 1000)


def oracle_below_400(z_0, ids, t, eps_n):
    """The loss of a model that is right for t below 400, and predicts 0 above."""
    return ((eps_n * (t >= 400).view(-1, 1, 1, 1, 1)) ** 2).mean()


# ---- the two learning rates ----

def test_the_learning_rates_differ_by_ten():
    """Sec. 4.1: 2e-5 for new tensors, and a rate ten times smaller for those of the image model."""
    new, copied = train.parameter_groups(VideoModel(**TINY))
    assert new["lr"] == 2e-5 and abs(new["lr"] / copied["lr"] - 10) < 1e-9


def test_every_parameter_is_in_one_group():
    """Is any tensor forgotten, or in both groups?"""
    model = VideoModel(**TINY)
    ids = [id(p) for group in train.parameter_groups(model) for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())          # breaks if a name matches twice


def test_the_tensors_of_sd_are_copied_and_no_others():
    """The names of the image model's tensors: are they, in the U-Net, those with the small learning rate?"""
    model = VideoModel(**TINY)
    _, copied = train.parameter_groups(model)
    names = {id(p): name for name, p in model.named_parameters()}
    sd = {f"unet.{name}" for name, _ in train.UNet3D(temporal=False, **TINY).named_parameters()}
    assert {names[id(p)] for p in copied["params"] if names[id(p)].startswith("unet.")} == sd


def test_the_channels_that_concat_adds_are_trained_at_the_small_rate():
    """Row "concat" of Table 2 widens conv_in.weight, a tensor of SD, from 4 to 8 channels: in which group is it?"""
    model = VideoModel("concat", **TINY)
    _, copied = train.parameter_groups(model)
    assert any(p is model.unet.conv_in.weight for p in copied["params"]) and model.unet.conv_in.in_channels == 8


# ---- what the stages leave in their folder ----

@pytest.mark.slow
def test_a_video_model_is_a_unet_and_appearnet(four_stages):
    """Which parts does the model have that stage video saved?"""
    names = {name.partition(".")[0] for name, _ in load_video(four_stages).named_parameters()}
    assert names == {"unet", "appearnet"}


@pytest.mark.slow
def test_a_video_model_remembers_how_it_was_trained(four_stages):
    """Size, frames, frame rate and lambda belong to the trained weights: does its config.json hold them?"""
    assert read_json(four_stages / "video" / "config.json")["sampling"] == {
        "size": 16, "frames": 3, "fps": 2.0, "lam": 0.03}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vae", "image", "video", "tsr"])
def test_a_stage_leaves_pictures_to_look_at(four_stages, stage):
    """The curves of the losses, and a sample picture at step 4."""
    for picture in (f"{stage}.png", f"{stage}-000004.png"):
        assert (four_stages / picture).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vae", "image", "video", "tsr"])
def test_the_map_of_a_checkpoint_can_be_printed(four_stages, stage, capsys):
    """`python -m sd21.weights CHECKPOINT`: which class does each tensor belong to?"""
    assert tensor_map.main(COMPONENT_CLASSES, is_new, [str(last(four_stages, stage))]) == 0
    assert "conv_in.weight" in capsys.readouterr().out


# ---- what a stage says before its first step ----

@pytest.fixture(scope="module")
def header(like, stills, tmp_path_factory):
    """(folder, what was printed) of stage video: two steps at lambda 0.5, with a sample picture at each step."""
    folder = copy_models(stills, tmp_path_factory.mktemp("header"))
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert run("video", like, folder, 2, "--lam", "0.5", "--clips", "16", "--sample-every", "1") == 0
    return folder, output.getvalue()


def printed_number(words, output):
    """The number that is printed behind these words."""
    return float(re.search(rf"{words}: ([\d.]+)", output)[1])


@pytest.mark.slow
def test_the_header_has_the_loss_of_a_network_that_answers_0(header):
    """It is the mean of eps^2, with eps = lam z_c + eps_n: how much is that, by hand, at lam = 0.5?"""
    folder, output = header
    vae = weights.load(weights.component("vae", folder), AutoencoderKL)
    centres = torch.stack([item["frames"][:, 1:2] for item in ToySet(16, frames=3, size=16, held_out=True)])
    with torch.no_grad():
        z_c = encode_video(vae, centres / 127.5 - 1)
    loss = printed_number("always answers 0", output)
    assert_close(loss, 1 + 0.5**2 * z_c.pow(2).mean().item(), rtol=0.02, atol=0)         # breaks without the prior
    assert abs(loss - 1) > 0.1                                               # so the prior makes a difference here


@pytest.mark.slow
def test_the_first_loss_is_near_that_of_answering_0(header):
    """The outputs of a new network are small: how far is its loss from that of 0?"""
    _, output = header
    assert abs(printed_number("held-out clips", output) - printed_number("always answers 0", output)) < 0.5


@pytest.mark.slow
def test_the_header_says_how_many_captions_stay(header):
    """10 % of the captions are emptied."""
    assert "90%" in header[1]


@pytest.mark.slow
def test_the_header_counts_the_tensors_of_both_learning_rates(header):
    """266 tensors of this small model are new, 310 are copied from the image model."""
    assert "266 tensors" in header[1] and "310 tensors" in header[1]


@pytest.mark.slow
def test_a_sample_picture_shows_truth_and_model(header):
    """Three clips of three frames of 16 pixels, and under each what the model makes of it: how large is the picture?"""
    folder, _ = header
    for step in (1, 2):
        with Image.open(folder / f"video-{step:06}.png") as picture:
            assert picture.size == (3 * 20 + 4, 6 * 20 + 4)
    assert not (folder / "video-000003.png").exists()


# ---- the stages video and tsr ----

@pytest.mark.slow
def test_tsr_is_given_both_ends(like, ready, monkeypatch):
    """Sec. 3.1. Of five frames, what does the condition hold?"""
    out, seen, loss = ready("out"), [], train.loss
    assert run("video", like, out, 1) == 0

    def watched_loss(f_theta, z_0, condition, *more):
        seen.append((z_0, condition))
        return loss(f_theta, z_0, condition, *more)
    monkeypatch.setattr(train, "loss", watched_loss)
    assert run("tsr", like, out, 1) == 0
    assert seen
    for z_0, condition in seen:
        first, last = z_0[:, :, :1], z_0[:, :, 4:]
        assert z_0.shape[2] == 5
        for i in range(5):
            z_bar = (1 - i / 4) * first + i / 4 * last
            assert_close(condition[:, :, i:i + 1], z_bar, atol=1e-6, rtol=0)  # breaks with the centre frame


def test_tsr_is_trained_at_both_of_its_rates():
    """It is used from 2 to 8 fps, then from 8 to 32: at which rates does it see clips, and how many frames?"""
    clips = Clips(fps=2).of_stage("tsr")
    assert (clips.frames, clips.windows) == (5, (8, 32))


@pytest.mark.slow
def test_a_video_model_can_start_from_another(like, ready):
    """--start, and one step at learning rate 0: is the result the model it started from?"""
    first, second = ready("first"), ready("second")
    assert run("video", like, first, 2) == 0
    assert run("video", like, second, 1, "--start", first, "--lr-temporal", "0", "--lr-spatial", "0") == 0
    before, after = (load_video(folder).state_dict() for folder in (first, second))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())      # breaks if it grows a new one


def test_a_video_model_of_another_size_is_no_start(like, ready, tmp_path, capsys):
    """The video model reads text vectors 16 wide, the image model 8: does the message name the difference?"""
    config = read_json(like / "video" / "config.json") | {"cross_attention_dim": 16}
    write_json(config, tmp_path / "other" / "video" / "config.json")
    assert run("video", like, ready("out"), 1, "--start", tmp_path / "other") == 2
    assert "cross_attention_dim is 16" in capsys.readouterr().err


def test_merges_of_another_model_are_refused_before_training(like, ready, tmp_path, capsys):
    """One merge less than the text encoder was trained with: is that said, in one line?"""
    out = ready("out")
    lines = (out / "tokenizer" / "merges.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "merges.txt").write_text("".join(lines[:-1]), encoding="utf-8")
    assert run("video", like, out, 1, "--merges", tmp_path / "merges.txt") == 2
    assert "merges.txt: the tokenizer has" in capsys.readouterr().err        # breaks if that is trained


@pytest.mark.slow
def test_the_noise_schedule_is_that_of_the_out_folder(like, ready, capsys):
    """MicroCinema reads it there too. A schedule for v in --out: does stage tsr refuse it?"""
    out = ready("out")
    assert run("video", like, out, 1) == 0
    write_json({"prediction_type": "v_prediction"}, out / "scheduler" / "scheduler_config.json")
    assert run("tsr", like, out, 1) == 2
    assert "v-prediction" in capsys.readouterr().err


def test_a_size_that_cannot_be_sampled_is_refused_before_training(like, ready, capsys):
    """The U-Net cannot halve latents of odd size: is that said before the first step?"""
    assert run("video", like, ready("odd"), 1, "--size", "18") == 2
    message = capsys.readouterr().err
    assert "multiple of 4" in message and message.count("\n") == 1           # breaks if it comes to the first sample


def test_every_diffusion_step_is_trained_and_no_other():
    """Nine thousand draws: is t never below 0, never 1000, and both ends among them?"""
    z_0, ids = torch.zeros(9999, 4, 1, 1, 1), torch.zeros(9999, 77)
    t = train.make_batch(z_0, ids, ids[:1], 0.1, 1000, torch.Generator().manual_seed(0))[2]
    assert t.min() == 0 and t.max() == 999                                   # breaks with steps from 1, or one too many


def test_a_model_folder_does_not_choose_files_or_the_stage(like, ready, tmp_path, capsys):
    """Its training settings name another stage and a folder of somebody's: one line, nothing is trained."""
    for key, value in (("stage", "tsr"), ("data", "/etc")):
        folder = tmp_path / key
        shutil.copytree(like, folder)
        config = read_json(folder / "video" / "config.json")
        write_json(config | {"training": {key: value}}, folder / "video" / "config.json")
        assert run("video", folder, ready(f"out-{key}"), 1) == 2
        assert f"wrong training settings: {key}" in capsys.readouterr().err


def test_a_tenth_of_the_captions_is_emptied():
    """Ten thousand captions of ones: how many become the empty caption of zeros? Whole captions, never a part."""
    z_0, ids, empty = torch.zeros(9999, 4, 1, 1, 1), torch.ones(9999, 77), torch.zeros(1, 77)
    for share in (0.0, 0.1, 1.0):
        kept = train.make_batch(z_0, ids, empty, share, 1000, torch.Generator().manual_seed(0))[1].mean(1)
        assert abs((kept == 0).float().mean() - share) < 0.01                # breaks if nine tenths are emptied
        assert ((kept == 0) | (kept == 1)).all()
