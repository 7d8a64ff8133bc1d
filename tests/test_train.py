"""Exercises for train.py: Eq. 5, the two learning rates, the stages one after the other, and the command line."""
import csv
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import assert_same, last, run
from PIL import Image
from test_unet3d import TINY, moving_clip
from torch.testing import assert_close

import train
import weights
from appearnet import VideoModel
from data import ToySet
from sampler import NoiseSchedule

SCHEDULE = NoiseSchedule()


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


def test_every_parameter_is_in_one_group_and_the_ratio_is_ten():
    """Sec. 4.1: new 2e-5, spatial 10 times smaller. Is any tensor forgotten, or in both?"""
    model = VideoModel(**TINY)
    new, copied = train.parameter_groups(model)
    assert new["lr"] == 2e-5 and abs(new["lr"] / copied["lr"] - 10) < 1e-9
    ids = [id(p) for group in (new, copied) for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())          # breaks with a name matched twice
    names = {id(p): name for name, p in model.named_parameters()}
    sd = {f"unet.{name}" for name, _ in train.UNet3D(temporal=False, **TINY).named_parameters()}
    assert {names[id(p)] for p in copied["params"] if names[id(p)].startswith("unet.")} == sd


def test_one_clip_can_be_learnt():
    """Sixty steps on one clip and one t: does the loss fall to a fifth? Twice from a seed: the same numbers?"""
    def run(steps):
        torch.manual_seed(0)
        model, losses = VideoModel(**TINY), []
        z_0, _, _, _, eps_n = (x.float() if x.is_floating_point() else x for x in batch())
        text = moving_clip()[2]
        optimizer = torch.optim.AdamW(train.parameter_groups(model, 1e-2, 1e-2))
        for _ in range(steps):
            value = train.loss(model, z_0, z_0[:, :, 1:2], text, torch.tensor([500, 500]), eps_n, SCHEDULE)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.item())
        return losses
    first = run(60)
    assert first[-1] < 0.2 * first[0] and first[:10] == run(10)


def test_the_four_stages_in_a_row_and_each_can_be_stopped(like, tmp_path):
    """Four steps at once, or two, a stop, and two more: are the checkpoints bit for bit the same?"""
    for stage in ("vae", "image", "video", "tsr"):
        for half, steps in (("whole", 4), ("halves", 2), ("halves", 4)):
            assert run(stage, like, tmp_path / half, steps, "--sample-every", 4) == 0
        assert_same(tmp_path / "whole", tmp_path / "halves", stage)          # breaks if the data starts again from 0
        assert weights.main([str(last(tmp_path / "whole", stage))]) == 0     # the map can be drawn of it, too
        tables = [list(csv.DictReader(open(tmp_path / half / f"{stage}.csv"))) for half in ("whole", "halves")]
        for row in tables[0] + tables[1]:
            del row["seconds"]
        assert tables[0][-1] == tables[1][-1] and tables[0][-1]["step"] == "4"
        for picture in (f"{stage}.png", f"{stage}-000004.png"):
            assert (tmp_path / "whole" / picture).is_file()
    video = weights.load_video(tmp_path / "whole")
    assert {name.partition(".")[0] for name, _ in video.named_parameters()} == {"unet", "appearnet"}
    assert weights.read_json(tmp_path / "whole" / "video" / "config.json")["sampling"] == {
        "size": 16, "frames": 3, "fps": 2.0, "lam": 0.03}


def test_tsr_is_given_both_ends_at_both_rates(like, ready, monkeypatch):
    """Sec. 3.1. Of five frames, what does the condition hold? At which rates are clips seen, to go from 2 fps to 32?"""
    out, seen, plain = ready("out"), [], train.loss
    assert run("video", like, out, 1) == 0
    monkeypatch.setattr(train, "loss", lambda f, z_0, condition, *more: seen.append((z_0, condition)) or plain(
        f, z_0, condition, *more))
    assert run("tsr", like, out, 1) == 0
    for z_0, condition in seen:
        ends = z_0[:, :, :1], z_0[:, :, 4:]
        assert z_0.shape[2] == 5
        for i in range(5):
            z_bar = (1 - i / 4) * ends[0] + i / 4 * ends[1]
            assert_close(condition[:, :, i:i + 1], z_bar, atol=1e-6, rtol=0)  # breaks with the centre frame
    assert train.shape_of_clips("tsr", SimpleNamespace(fps=2)) == (5, (8, 32)) and seen


def test_a_decoder_alone_can_be_trained_further(like, ready, tmp_path):
    """--decoder-of: every latent stays what it is, bit for bit, and so does their scale; what decodes them has moved.
    In bfloat16, too, which the encoder must not be rounded to."""
    old = ready("first")
    for how in ((), ("--bf16",)):
        out = tmp_path / f"out{len(how)}"
        assert run("vae", like, out, 2, "--decoder-of", old, "--seed", 9, *how) == 0
        (one, scale), (two, same) = weights.load_vae(old), weights.load_vae(out)
        before, after = one.state_dict(), two.state_dict()
        moved = {name.partition(".")[0] for name, tensor in before.items() if not torch.equal(tensor, after[name])}
        assert scale == same and moved == {"decoder", "post_quant_conv"}


def test_a_video_model_can_start_from_another(like, ready, tmp_path, capsys):
    """--start: one step at learning rate 0 gives the weights it started with back, not those of a grown image model."""
    assert run("video", like, ready("first"), 2) == 0
    for name in ("second", "third"):
        ready(name)
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


def test_latents_without_a_scale_are_not_trained_on(like, stills, tmp_path, capsys):
    """The autoencoder's training was stopped: weights, but no scale yet. SD2.1's 0.18215 would be a wrong guess."""
    shutil.copytree(stills / "vae", tmp_path / "vae")
    config = weights.read_json(tmp_path / "vae" / "config.json")
    assert 0.1 < config["scaling_factor"] != 0.18215
    weights.write_json(config | {"scaling_factor": None}, tmp_path / "vae" / "config.json")
    for model, out in ((like, tmp_path), (tmp_path, tmp_path / "new")):
        assert run("image", model, out, 1) == 2                              # breaks if a default steps in
        assert "stage vae again" in capsys.readouterr().err


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


def test_the_introduction_says_what_to_expect(like, ready, capsys):
    """A network that answers 0 pays the mean of eps^2, eps = lam z_c + eps_n: how much, by hand, at lam = 0.5?"""
    folder = ready("introduced")
    capsys.readouterr()
    assert run("video", like, folder, 2, "--lam", "0.5", "--clips", "16", "--sample-every", "1") == 0
    said = capsys.readouterr().out
    pays, first = (float(re.search(rf"{words}: ([\d.]+)", said)[1]) for words in ("always answers 0", "kept out"))
    vae, scale = weights.load_vae(folder)
    centres = torch.stack([item["frames"][:, 1] for item in ToySet(16, frames=3, size=16, held_out=True)])
    with torch.no_grad():
        z_c = vae.encode(centres / 127.5 - 1)[0] * scale
    assert_close(pays, 1 + 0.5**2 * z_c.pow(2).mean().item(), rtol=0.02, atol=0)         # breaks without the prior
    assert abs(pays - 1) > 0.1 and abs(first - pays) < 0.5                   # a new network's answers are small
    assert "90%" in said and "266 tensors" in said and "310 tensors" in said
    for step in (1, 2):
        with Image.open(folder / f"video-{step:06}.png") as picture:         # truth and ours, three clips, three frames
            assert picture.size == (3 * 20 + 4, 6 * 20 + 4)
    assert not (folder / "video-000003.png").exists()


def test_an_autoencoder_is_compared_with_grey(like, tmp_path, capsys):
    """On what is kept out: the loss of answering grey, by hand, and the first and last of the autoencoder's own."""
    assert run("vae", like, tmp_path, 60, "--lr", "1e-2") == 0
    said = capsys.readouterr().out
    grey, first = (float(re.search(rf"{words}: ([\d.]+)", said)[1]) for words in ("always answers grey", "kept out"))
    x = torch.stack([item["frames"] for item in ToySet(3, frames=9, size=16, held_out=True)]) / 127.5 - 1
    assert_close(grey, (x.abs().mean() + 4 * x.pow(2).mean()).item(), rtol=1e-3, atol=0)
    *_, last = csv.DictReader((tmp_path / "vae.csv").read_text().splitlines())
    assert 0.5 * grey < first < 2 * grey and float(last["kept out"]) < 0.5 * first


def test_a_model_folders_own_settings_come_between(like, tmp_path, capsys):
    """Its "training" says steps and batch, the command line says batch, nobody says clips: which numbers count?"""
    model = shutil.copytree(like, tmp_path / "own")
    file = model / "vae" / "config.json"
    config = weights.read_json(file)
    weights.write_json(config | {"training": {"steps": 3, "batch": 5}}, file)
    args = train.parse(["vae", "--model", str(model), "--out", "x", "--batch", "7"])
    assert (args.steps, args.batch, args.clips) == (3, 7, 50_000)            # breaks if the folder comes last
    for setting in ({"colour": "red"}, {"lr": float("nan")}, {"steps": "many"}):
        weights.write_json(config | {"training": setting}, file)
        with pytest.raises(SystemExit) as stop:
            train.parse(["vae", "--model", str(model), "--out", str(tmp_path / "x")])    # breaks if it is ignored
        said = capsys.readouterr().err
        assert stop.value.code == 2 and next(iter(setting)) in said and said.count("\n") == 1
    file.write_text("{")
    assert train.main(["vae", "--model", str(model), "--out", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err
    assert "not JSON" in said and said.count("\n") == 1 and not (tmp_path / "x").exists()


def test_latents_are_made_by_the_settings_of_their_stage(like, tmp_path):
    """`train.py latents --for image`: as many clips as the image stage trains on, not as the video stage does."""
    model = shutil.copytree(like, tmp_path / "own")
    for part, clips in (("unet", 40), ("video", 8)):
        file = model / part / "config.json"
        weights.write_json(weights.read_json(file) | {"training": {"clips": clips, "lr": 1.0}}, file)
    for stage, clips in (("image", 40), ("video", 8)):
        argv = ["latents", "--for", stage, "--model", str(model), "--out", str(tmp_path / "x")]
        assert train.parse(argv).clips == clips                              # breaks if all are the video model's


@pytest.mark.parametrize("option", ["--lr nan", "--fps inf", "--fps 0", "--minutes 0", "--ema 1.5", "--cooldown -1",
                                    "--seed -1", "--seed 99999999999999", "--batch 0", "--steps x", "--warmup -1",
                                    "--model nowhere", "--decoder-of nowhere"])
def test_numbers_that_make_no_sense_are_refused(option, capsys):
    """One line that names the option, before anything is read or written."""
    with pytest.raises(SystemExit) as stop:
        train.parse(["vae", "--out", "x", *option.split()])                  # breaks if NaN <= 0 is what is asked
    said = capsys.readouterr().err
    assert stop.value.code == 2 and option.split()[0] in said and said.count("\n") == 1


@pytest.mark.parametrize("more, said", [(["--start", ".", "--inject", "concat"], "--inject and --start"),
                                        (["--latents", "x", "--data", "y"], "--data and --latents")])
def test_of_two_that_exclude_each_other_none_is_ignored(more, said, capsys):
    """A model to start from injects as it does; latents are clips already."""
    with pytest.raises(SystemExit):
        train.parse(["video", "--out", "x", *more])
    assert said in capsys.readouterr().err


def test_what_cannot_be_sampled_or_computed_on_is_refused_before_training(like, ready, capsys):
    """Latents of odd size, that the U-Net cannot halve, and a device that is not there."""
    folder = ready("odd")
    for more, says in ((("--size", "18"), "multiple of 4"), (("--device", "nonsense"), "device nonsense")):
        assert run("video", like, folder, 1, *more) == 2
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1                       # breaks if it comes to the first sample


def test_a_run_that_goes_on_keeps_its_tokenizer(like, stills, tmp_path):
    """Its merges were learnt on the captions of 6 clips, its embeddings with them. It goes on with 60: others?"""
    out = shutil.copytree(stills, tmp_path / "out")
    before = (out / "tokenizer" / "merges.txt").read_bytes()
    assert run("image", like, out, 4, "--clips", "60") == 0
    assert (out / "tokenizer" / "merges.txt").read_bytes() == before         # breaks if they are learnt at every start
    (fresh := tmp_path / "fresh").mkdir()
    shutil.copytree(stills / "vae", fresh / "vae")
    assert run("image", like, fresh, 1, "--clips", "60") == 0
    assert (fresh / "tokenizer" / "merges.txt").read_bytes() != before       # so the question means something
