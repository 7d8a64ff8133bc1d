"""Exercises on evaluation/ablations.py and generate.py, with very small models: what is made, and what is not again?"""
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.folder import FolderSet
from data.toyset import frame_times, render
from evaluation import ablations, generate
from evaluation import study as study_module
from evaluation.ablations import difference, mean_and_deviation, predicted_gamma, rho_of
from evaluation.study import Cell
from evaluation.windows import Protocol, Windows
from sampler import NoiseSchedule, add_noise, appearance_noise
from sd21.files import read_json

TOY = Path(__file__).parents[1] / "toy"


@pytest.fixture
def model(four_stages):
    """A model folder of very small models that were trained for four steps."""
    return four_stages


def study(what, out, model, *more):
    """The exit code of a study of one training step, two seeds, two clips of three frames."""
    options = ["--steps", 1, "--seeds", 2, "--train-clips", 4, "--train-batch", 2, "--clips", 2, "--frames", 3,
               "--fps", 2, "--sampling-steps", 1, "--batch", 2, "--weak-steps", 1, "--device", "cpu"]
    return ablations.main([*what.split(), *map(str, ["--out", out, "--model", model, *options, *more])])


@pytest.fixture
def calls(monkeypatch):
    """Every command line of a training, as {option: value}."""
    lines = []
    for module in (study_module.train, study_module.pretrain):
        def main(argv, original=module.main):
            lines.append({"stage": argv[0]} | {a: b for a, b in zip(argv, argv[1:]) if a.startswith("--")})
            return original(argv)
        monkeypatch.setattr(module, "main", main)
    return lines


@pytest.mark.slow
def test_rows_of_table_2_differ_in_nothing_but_the_injection(tmp_path, model, calls, capsys):
    """Four rows, two seeds: does every pair of rows have the same seed, data, batch and steps? A table, a strip?"""
    assert study("injection", tmp_path, model) == 0
    for seed in "01":
        rows = [call for call in calls if call.get("--seed") == seed and call["--lam"] == "0.03"]
        assert sorted(row["--inject"] for row in rows) == sorted(ablations.INJECTIONS)
        assert len({str({k: v for k, v in row.items() if k not in ("--inject", "--out")}) for row in rows}) == 1
    table = (tmp_path / "injection.md").read_text()
    assert table in capsys.readouterr().out
    assert "| concat (2) | 15.83, 688.92 |" in table and "- add_dec: " in table and "| the truth (1) |" in table
    assert Image.open(tmp_path / "fig7.webp").height > 10 * 16               # two clips, of the truth and four models


@pytest.mark.slow
def test_nothing_is_made_twice(tmp_path, model, calls):
    """Table 4, then Table 3, then Table 4 without one of its numbers: what is trained, what is generated?"""
    assert study("first-stage", tmp_path, model) == 0
    assert [call["stage"] for call in calls] == ["latents", "video", "image", "video"]
    (result,) = tmp_path.glob("results/*-weak-caption-1.json")
    files = [*tmp_path.glob("clips/*/*.webp"), *tmp_path.glob("results/*.json")]
    made = {path: path.stat().st_mtime_ns for path in files}
    assert len(made) == 2 * 6 + 2 + 6 and study("prompts", tmp_path, model) == 0
    assert len(calls) == 4                                                   # breaks if the tables do not share models
    before = read_json(result)
    result.unlink()
    assert study("first-stage", tmp_path, model) == 0 and len(calls) == 4
    assert {path for path, time in made.items() if path.stat().st_mtime_ns != time} == {result}
    after = read_json(result)
    assert {k: v for k, v in after.items() if k != "seconds"} == pytest.approx({
        k: v for k, v in before.items() if k != "seconds"}, nan_ok=True)
    assert not list(tmp_path.rglob("*.checkpoint.safetensors"))              # they would fill the disk


@pytest.mark.slow
def test_fig_6_has_a_line_for_each_lambda(tmp_path, model, monkeypatch):
    """Two lambdas by two gammas: the plot, the table and the predicted gamma."""
    monkeypatch.setattr(ablations, "LAMBDAS", (0.0, 0.1))
    monkeypatch.setattr(ablations, "GAMMAS", (0.0, 0.07))
    monkeypatch.setitem(ablations.TABLES, "noise", {f"lambda {lam:g}, gamma {gamma:g}": Cell(lam=lam, gamma=gamma)
                                                    for lam in (0.0, 0.1) for gamma in (0.0, 0.07)})
    assert study("noise", tmp_path, model) == 0
    picture = Image.open(tmp_path / "fig6-toy-FVD.png").convert("RGB")
    colours = {colour for _, colour in picture.getcolors(2**16)}
    assert {(0x20, 0x20, 0x20), (0xc0, 0x30, 0x28), (0x90, 0x90, 0x90)} <= colours
    assert len(list(tmp_path.glob("models/*"))) == 4                         # breaks if each gamma has a model
    assert read_json(tmp_path / "results" / "rho-toy-3-frames-2-fps.json")["rho"] > 0


@pytest.mark.slow
def test_two_parts_are_the_whole(tmp_path, model, calls, capsys):
    """After `prepare`, each of two parts trains the model of one seed; then the table needs nothing more."""
    assert study("prepare", tmp_path, model, "--minutes", 1e-9) == 0
    assert study("prompts", tmp_path, model, "--part", 1, 2) == 2
    printed = capsys.readouterr()
    assert "same command goes on" in printed.out and "first the command with `prepare`" in printed.err
    assert study("prepare", tmp_path, model) == 0
    assert [call["stage"] for call in calls] == ["latents", "image"]
    for k, seed in ((1, "0"), (2, "1")):
        assert study("prompts", tmp_path, model, "--part", k, 2) == 0
        assert calls[-1]["--seed"] == seed and len(calls) == 2 + k           # breaks if a part does everything
    assert "| plain (" not in capsys.readouterr().out
    assert study("prompts", tmp_path, model) == 0 and len(calls) == 4
    assert "| plain (2) |" in capsys.readouterr().out


@pytest.mark.slow
def test_a_study_ends_in_time_with_what_it_has(tmp_path, model, calls, capsys):
    """After no time nothing is begun; the table has the truth alone. Other settings are refused."""
    assert study("prompts", tmp_path, model, "--minutes", 1e-9) == 0
    output = capsys.readouterr().out
    assert "same command goes on" in output and "| plain (0) |" in output and not calls
    assert study("prompts", tmp_path, model, "--guidance", 3) == 2
    assert "was begun with other settings (guidance); name a new --out" in capsys.readouterr().err


@pytest.mark.parametrize("wrong, said", [(["prompts", "--part", 3, 2], "want K from 1 to N"),
                                         (["rho", "--part", 1, 2], "have no parts"),
                                         (["prompts", "--clips", 1], "want 2 or more"),
                                         (["rho", "--data", ".", "x", 2], "--data FOLDER FRAMES FPS: x"),
                                         (["rho", "--data", "none", 9, 2], "none: no such folder of clips")])
def test_a_wrong_option_is_refused_before_anything_is_made(tmp_path, capsys, wrong, said):
    """Part 3 of 2, parts of what has none, one clip, a number of frames that is none, no folder."""
    try:
        code = ablations.main([*map(str, wrong), "--out", str(tmp_path / "study")])
    except SystemExit as stop:
        code = stop.code
    message = capsys.readouterr().err
    assert code == 2 and said in message and message.count("\n") == 1 and not (tmp_path / "study").exists()


def test_a_difference_inside_the_noise_is_called_that():
    """Differences 1, 2, 3: mean 2, deviation 1, t = 4.30 for three: 2 +- 2.48. Then 11, 12, 13."""
    assert difference([1, 2, 3]) == "+2.00 ± 2.48, inside the noise"
    assert difference([11, 12, 13]) == "+12.00 ± 2.48"
    assert difference([1]) == "unknown: fewer than two seeds"
    assert mean_and_deviation([1, math.nan, 3]) == "2.00 ± 1.41" and mean_and_deviation([math.nan]) == "-"


def test_rho_is_the_slope_of_a_frame_on_the_key_frame():
    """Frames 0.5, 1 and 0.9 times the key frame: their mean is 0.8."""
    z_c = torch.randn(2, 4, 1, 5, 6)
    assert rho_of(torch.cat([0.5 * z_c, z_c, 0.9 * z_c], dim=2)) == pytest.approx(0.8)       # breaks with frame 0


def test_the_predicted_gamma_gives_the_first_noise_its_mean():
    """Frames are 0.7 z^c and more; z_T by Eq. 3 and 4. Its slope on z^c, by regression, is lam + gamma."""
    random, alpha_bar = torch.Generator().manual_seed(0), NoiseSchedule().alpha_bar[-1]
    z_c, other, eps_n = torch.randn(3, 4_000_000, generator=random, dtype=torch.float64)
    for lam in (0.0, 0.03, 5.0):
        z_T = add_noise(0.7 * z_c + 0.5 * other, appearance_noise(eps_n, z_c, lam), alpha_bar)
        slope = (z_T * z_c).mean() / z_c.square().mean()
        assert lam + predicted_gamma(0.7, alpha_bar.item(), lam) == pytest.approx(slope.item(), abs=0.002)
    assert predicted_gamma(0.7, alpha_bar.item(), 0) == pytest.approx(0.0478, abs=1e-4)


# ---------------------------------------------------------------------------------------------------------- generate.py

def make(out, model, *more):
    """The exit code of evaluation.generate with one denoising step, on the CPU."""
    return generate.main([*map(str, [out, "--model", model, "--clips", 3, "--batch", 2, "--device", "cpu", *more])])


@pytest.mark.slow
def test_one_command_makes_a_folder_of_clips_with_captions(tmp_path, model):
    """Are the clips read as a dataset, is each caption that of its scene, and is a missing clip made again, alike?"""
    assert make(tmp_path / "ours", model, "--steps", 1) == 0
    windows = Windows(tmp_path / "ours", Protocol(frames=3, fps=2.0, size=16), with_captions=True)
    captions = [scene.caption() for scene in generate.held_out_scenes(3)]
    assert windows.captions == captions and len({windows[i].numpy().tobytes() for i in range(3)}) == 3
    assert sorted(FolderSet(tmp_path / "ours", 1, frames=2, fps=2.0, size=16).captions()) == sorted(captions)
    before = {path: path.read_bytes() for path in tmp_path.glob("ours/*.webp")}
    (tmp_path / "ours" / "00001.webp").unlink()
    assert make(tmp_path / "ours", model, "--steps", 1) == 0
    assert {path: path.read_bytes() for path in tmp_path.glob("ours/*.webp")} == before      # breaks with one seed


@pytest.mark.slow
def test_clips_of_two_settings_never_share_a_folder(tmp_path, model, capsys):
    """Another gamma, or a folder of somebody else's files: one line, and nothing is written."""
    assert make(tmp_path / "ours", model, "--steps", 1, "--key-frames", "true") == 0
    assert make(tmp_path / "ours", model, "--steps", 1, "--key-frames", "true", "--gamma", 0.5) == 2
    assert "were not made with these settings" in capsys.readouterr().err
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("mine")
    assert make(tmp_path / "theirs", model, "--truth") == 2 and len(list((tmp_path / "theirs").iterdir())) == 1
    assert make(tmp_path / "truth", model, "--truth", "--gamma", 0.1) == 2


@pytest.mark.slow
def test_the_truth_is_what_toyset_draws(tmp_path):
    """--truth: the files show the scenes, up to what WebP loses; plain prompts are Table 3's."""
    assert make(tmp_path, TOY, "--truth", "--frames", 5, "--prompts", "plain") == 0
    windows, scenes = Windows(tmp_path, Protocol(frames=5, fps=2.0)), generate.held_out_scenes(3)
    assert windows.captions[0] == f"a video of {scenes[0].things[0].motion}"
    true = render(scenes[2], frame_times(5, 2.0)).astype(float)
    assert np.abs(windows[2].numpy() - true).mean() < 3                      # breaks if frames are a half second off
