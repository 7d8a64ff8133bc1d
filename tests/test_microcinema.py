"""Exercises for microcinema.py: the main job, end to end, and everything a person may get wrong."""
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_unet3d import golden
from test_vae import golden as golden_vae
from torch.testing import assert_close

from data import render, sample_scene
from files import from_pixels
from microcinema import PARTS, MicroCinema, between, from_where, main, noise, sources
from sampler import NoiseSchedule, ddim, guide

ROOT, REFERENCE = Path(__file__).parents[1], Path(__file__).parent / "reference"
TOY = MicroCinema.load(ROOT / "toy")
PROMPT = "a red circle moving left"


def test_the_main_job_writes_a_gif_that_reads_back(tmp_path):
    """A sentence, a fresh process, another folder: nine frames of half a second, and something moves."""
    run = subprocess.run([sys.executable, ROOT / "microcinema.py", PROMPT, "--steps", "8"], cwd=tmp_path,
                         capture_output=True, text=True)
    assert run.returncode == 0 and "a-red-circle-moving-left.gif" in run.stdout, run.stderr
    assert "key frame" in run.stderr and "video" in run.stderr               # a progress bar for each stage
    with Image.open(tmp_path / "a-red-circle-moving-left.gif") as gif:
        assert gif.n_frames == 9 and gif.size == (128, 128) and gif.info["duration"] == 500
        first = gif.convert("RGB").tobytes()
        gif.seek(8)
        assert gif.convert("RGB").tobytes() != first
    assert os.listdir(tmp_path) == ["a-red-circle-moving-left.gif"]          # nothing else is left behind


@torch.no_grad()
def test_the_golden_pipeline():
    """Guided DDIM with the golden U-Net and autoencoder, four leading steps at 7.5, against diffusers: each latent."""
    (unet, _, _), (vae, _, _) = golden(temporal=False), golden_vae()
    io = load_file(REFERENCE / "pipeline_tiny.io.safetensors")
    schedule = NoiseSchedule()
    model = guide(unet, 7.5, io["cond"], io["uncond"])
    error = lambda ours, reference: ((ours - reference).abs().max() / reference.abs().max()).item()
    for i, z in enumerate(ddim(model, io["latents.0"][:, :, None], schedule.path(4, "leading"), schedule)):
        assert error(z[:, :, 0], io[f"latents.{i + 1}"]) < 1e-4              # breaks: cond + w (cond - uncond)
    assert error(vae.decode(z[:, :, 0] / 0.18215), io["image"]) < 1e-4


def test_law_4_a_seed_gives_its_video_in_any_batch():
    """Seed 5 alone, and seed 5 as the second of two: to float32 rounding the same key frame and the same video."""
    how = dict(steps=3, frames=3)
    keys = TOY.key_frame([PROMPT, "a blue star turning"], [4, 5], steps=3)
    alone = TOY.key_frame(["a blue star turning"], [5], steps=3)
    assert_close(keys[1:], alone, atol=1e-3, rtol=0)
    both = TOY.animate([PROMPT, "a blue star turning"], keys, [4, 5], eta=0.7, **how)
    assert_close(both[1:], TOY.animate(["a blue star turning"], keys[1:], [5], eta=0.7, **how), atol=1e-3, rtol=0)
    other = TOY.animate([PROMPT], keys[:1], [6], eta=0.7, **how)
    assert (both[:1] - other).abs().max() > 0.01    # breaks if seeds are ignored


def test_no_result_remembers_how_it_was_made():
    """Outside torch.no_grad(), as a user calls them: a picture that keeps the graph behind it keeps all layers' outputs
    in memory, 24 GiB of them for 16 videos."""
    picture = TOY.key_frame([PROMPT], steps=1)
    video = TOY.animate([PROMPT], picture, steps=1)
    assert not any(x.requires_grad for x in (picture, video, TOY.encode(picture), TOY.decode(TOY.encode(picture))))


def test_each_prompt_has_its_seed():
    """One sentence is a list of one. Two sentences for one seed are refused, and two pictures for one sentence."""
    assert torch.equal(TOY.key_frame(PROMPT, steps=1), TOY.key_frame([PROMPT], steps=1))   # breaks if letters are read
    for wrong in (lambda: TOY.key_frame([PROMPT, PROMPT]), lambda: TOY.animate(PROMPT, torch.zeros(2, 3, 128, 128)),
                  lambda: TOY.interpolate(torch.zeros(1, 3, 2, 128, 128), [PROMPT, PROMPT], [1, 2])):
        with pytest.raises(ValueError, match="want as many of each"):
            wrong()


def test_noise_differs_by_seed_stage_and_call():
    """The two stages of one seed must not share their noise: z_T would then know the key frame's."""
    a, b = noise([3], (4,), "key frame"), noise([3], (4,), "video")
    first = a()
    assert not torch.equal(first, b()) and not torch.equal(first, a())
    assert torch.equal(first, noise([9, 3], (4,), "key frame")()[1:])


def test_latents_of_the_toy_have_unit_variance():
    """lambda and gamma only mean something if z has the scale of the noise. Over 64 key frames?"""
    from data import ToySet
    toy = ToySet(64, frames=1, seed=9)
    with torch.inference_mode():
        z = TOY.encode(torch.stack([from_pixels(toy[i]["frames"][:, 0]) for i in range(64)]))
    assert 0.85 < z.pow(2).mean().sqrt() < 1.15                              # breaks with SD2.1's factor, 0.18215


def test_the_noise_prior_is_in_the_start_and_stays_in_both_passes():
    """Record what f_theta is asked first: z_T - eps_n = (lam + gamma) z_c, and the same condition in both halves."""
    key = TOY.key_frame([PROMPT], [1], steps=2)
    asked = []
    spy = lambda z_t, t, condition, text: asked.append((z_t, condition)) or 0 * z_t
    cinema = MicroCinema(**vars(TOY) | {"video": spy})
    cinema.animate([PROMPT], key, [1], steps=1, lam=0.5, gamma=0.25)
    z_t, condition = asked[0]
    with torch.inference_mode():
        z_c, eps_n = TOY.encode(key), noise([1], (4, 9, 16, 16), "video")()
    assert len(z_t) == 2 and torch.equal(condition[0], condition[1])
    assert_close(z_t[:1], eps_n + 0.75 * z_c, atol=1e-5, rtol=1e-5)          # breaks if gamma is forgotten


def test_bad_input_is_one_line_and_nothing_is_lost(tmp_path, capsys):
    """Exit code 2, one line on stderr that says what and where, and no file written."""
    shutil.copytree(ROOT / "toy", tmp_path / "lacking")
    shutil.rmtree(tmp_path / "lacking" / "vae")
    shutil.copytree(ROOT / "toy", tmp_path / "cut")
    weight = tmp_path / "cut" / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    weight.write_bytes(weight.read_bytes()[:-1000])
    (tmp_path / "not.png").write_text("no picture")
    (tmp_path / "old.gif").write_text("precious")
    out = str(tmp_path / "old.gif")
    wrong = {"the prompt is empty": ["  "], "missing.png": [PROMPT, "--image", str(tmp_path / "missing.png")],
             "not.png": [PROMPT, "--image", str(tmp_path / "not.png")], "size 100": [PROMPT, "--size", "100"],
             "0 steps": [PROMPT, "--steps", "0"], "1001 steps": [PROMPT, "--steps", "1001"],
             "0 frames": [PROMPT, "--frames", "0"], "device nonsense": [PROMPT, "--device", "nonsense"],
             "eta 2": [PROMPT, "--eta", "2"], "guidance nan": [PROMPT, "--guidance", "nan"],
             "lambda inf": [PROMPT, "--lam", "inf"], "device meta": [PROMPT, "--device", "meta"],
             "more memory than there is": [PROMPT, "--size", "6400000000"],
             "nowhere": [PROMPT, "--model", str(tmp_path / "nowhere")],
             "lacking": [PROMPT, "--model", str(tmp_path / "lacking")],
             "cut": [PROMPT, "--model", str(tmp_path / "cut")]}
    for names, argv in wrong.items():
        assert main([*argv, "--out", out]) == 2, argv
        said = capsys.readouterr().err
        assert names in said and said.count("\n") == 1 and "Traceback" not in said, said
    assert main([PROMPT, "--out", str(tmp_path / "no" / "folder.gif")]) == 2
    assert main([PROMPT, "--out", str(tmp_path / "clip.xyz")]) == 2
    assert main([PROMPT, "--guidance", "1e38", "--steps", "2", "--out", out]) == 2
    assert "beyond all bounds" in capsys.readouterr().err.splitlines()[-1]   # breaks if NaN becomes a black picture
    assert Path(out).read_text() == "precious"                               # breaks if it writes before it checks


def test_a_prompt_that_is_too_long_is_cut_and_says_so(tmp_path, capsys):
    """More than 75 tokens: what was cut?"""
    words = "a red circle moving left " * 20 + "zebra"
    assert main([words, "--steps", "1", "--out", str(tmp_path / "x.png")]) == 0
    assert "zebra" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16", "CMYK"])
def test_any_picture_can_be_the_key_frame(tmp_path, capsys, mode):
    """Wide, tiny, of any mode: it is cropped to the centre and resized, in one line."""
    picture = Image.new("RGB", (50, 30), (200, 40, 60)).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        picture = Image.fromarray(torch.full((30, 50), 40000).numpy().astype("uint16"))
    path = tmp_path / ("photo.tiff" if mode in ("CMYK", "I;16") else "photo.png")
    picture.save(path)
    assert main([PROMPT, "--image", str(path), "--steps", "1", "--frames", "3", "--out", str(tmp_path / "x.webp")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "50x30" in said[0] and "30x30" in said[0] and "128x128" in said[0]
    with Image.open(tmp_path / "x.webp") as video:
        assert video.size == (128, 128)


def test_even_numbers_of_frames_have_no_centre_and_say_so(tmp_path, capsys):
    """Four frames: the key frame is number 2 of 0 to 3."""
    assert main([PROMPT, "--frames", "4", "--steps", "1", "--out", str(tmp_path / "frames")]) == 0
    assert "no centre" in capsys.readouterr().out and len(os.listdir(tmp_path / "frames")) == 4


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for ffmpeg is a shell script")
def test_a_kill_in_the_middle_leaves_nothing(tmp_path):
    """A stand-in for ffmpeg has written half a file, and sleeps; now the run is killed. What is left of it?"""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ffmpeg").write_text('#!/bin/sh\nfor last; do :; done\necho half > "$last"\nexec sleep 100\n')
    (tmp_path / "bin" / "ffmpeg").chmod(0o755)
    run = subprocess.Popen([sys.executable, ROOT / "microcinema.py", PROMPT, "--steps", "1", "--frames", "1", "--out",
                            "x.mp4"], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
                           env=os.environ | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"})
    while run.poll() is None and not any(part.read_text() for part in tmp_path.glob(".part-*")):
        time.sleep(0.01)
    run.terminate()
    said = run.communicate()[1]
    assert run.returncode == 130 and said.endswith("stopped; nothing was written\n") and "Traceback" not in said
    assert os.listdir(tmp_path) == ["bin"]                                   # breaks if SIGTERM is left to the system


def untrained(folder):
    """The toy model without its video weights, as SD2.1 is published."""
    shutil.copytree(ROOT / "toy", folder, ignore=shutil.ignore_patterns("video"))
    return folder


def test_without_video_weights_each_frame_is_the_image_model(tmp_path, capsys):
    """Law 1, through the command: fresh temporal layers do nothing, and a line says so. --weights has trained ones."""
    folder, how = untrained(tmp_path / "sd"), ["--steps", "2", "--frames", "3", "--size", "128", "--guidance", "3"]
    assert main([PROMPT, "--model", str(folder), "--out", str(tmp_path / "fresh"), *how]) == 0
    assert "no trained video weights" in capsys.readouterr().out
    trained = next((ROOT / "toy" / "video").glob("*.safetensors"))
    assert main([PROMPT, "--model", str(folder), "--weights", str(trained), "--out", str(tmp_path / "a"), *how]) == 0
    assert "no trained" not in capsys.readouterr().out
    assert main([PROMPT, "--out", str(tmp_path / "b"), *how]) == 0
    read = lambda name: [file.read_bytes() for file in sorted((tmp_path / name).iterdir())]
    assert read("a") == read("b") != read("fresh")
    cinema, noises = MicroCinema.load(folder), torch.randn(1, 4, 3, 16, 16)
    text, t = cinema.encode_text([PROMPT]), torch.tensor([500])
    with torch.inference_mode():
        frames = [cinema.unet(noises[:, :, i:i + 1], t, text) for i in range(3)]
        clip = cinema.video(noises, t, noises[:, :, :1], text)
    assert_close(clip, torch.cat(frames, dim=2), atol=1e-5, rtol=1e-4)       # breaks if grow leaves a layer as made


def trained_parts(folder, **changes):
    """What train.py might have written: these parts of the toy model, each tensor halved, and their config changed."""
    for part, change in changes.items():
        shutil.copytree(ROOT / "toy" / part, folder / part)
        for file in (folder / part).glob("*.safetensors"):
            save_file({name: tensor / 2 for name, tensor in load_file(file).items()}, file)
        for file in (folder / part).glob("*.json"):
            file.write_text(json.dumps(json.loads(file.read_text()) | change))
    return folder


@pytest.mark.parametrize("changes", [
    {"video": {"sampling": {"steps": 7, "size": 64}}, "tsr": {"sampling": {"guidance": 2.5}}},
    {"vae": {"scaling_factor": 0.3}, "scheduler": {"prediction_type": "v_prediction"}},
    {"unet": {}, "text_encoder": {}, "tokenizer": {}}], ids=", ".join)
def test_a_folder_laid_over_the_model_is_a_model_with_these_folders_copied(tmp_path, changes):
    """The same by hand: copy the toy model, and what was trained over it. Are all tensors and settings the same?"""
    mine, by_hand = trained_parts(tmp_path / "mine", **changes), tmp_path / "by hand"
    for folder in (ROOT / "toy", mine):
        shutil.copytree(folder, by_hand, dirs_exist_ok=True)
    assert sources(ROOT / "toy", mine) == {part: mine if part in changes else ROOT / "toy" for part in PARTS}
    ours, theirs = MicroCinema.load(ROOT / "toy", overlay=mine), MicroCinema.load(by_hand)
    for part in ("text_encoder", "vae", "unet", "video", "tsr"):
        assert_close(getattr(ours, part).state_dict(), getattr(theirs, part).state_dict(), rtol=0, atol=0)
    same = lambda cinema: (cinema.scale, cinema.schedule.prediction_type, cinema.sampling, cinema.tsr_sampling)
    assert same(ours) == same(theirs)                                        # breaks if the scale is the model's own


def test_the_command_says_which_part_is_whose(tmp_path, capsys):
    """A folder that has trained a video and a tsr, and a file of a video: one line each. Without --weights, none."""
    mine = trained_parts(tmp_path / "mine", video={}, tsr={})
    file = next((mine / "video").glob("*.safetensors"))
    how = ["--steps", "1", "--frames", "1", "--size", "64", "--out", str(tmp_path / "x.png")]
    assert main([PROMPT, *how, "--weights", str(mine)]) == 0
    toy = ROOT / "toy"
    assert capsys.readouterr().out.startswith(f"tokenizer, text_encoder, vae, unet, scheduler from {toy}; "
                                              f"video, tsr from {mine}\n")    # breaks if the model's tsr is kept
    assert main([PROMPT, *how, "--weights", str(file)]) == 0
    assert f"scheduler, tsr from {toy}; video from {file}\n" in capsys.readouterr().out
    assert from_where(sources(toy, mine, "m.txt")).startswith("tokenizer from m.txt; ")
    assert main([PROMPT, *how]) == 0 and " from " not in capsys.readouterr().out


def test_weights_that_do_not_fit_are_one_line(tmp_path, capsys):
    """No folder; nothing trained; a part without its file; words without their encoder, or too few; one too wide."""
    (tmp_path / "empty" / "clips").mkdir(parents=True)
    (tmp_path / "half" / "vae").mkdir(parents=True)
    few = trained_parts(tmp_path / "few", tokenizer={}, text_encoder={})
    merges = few / "tokenizer" / "merges.txt"
    merges.write_text("".join(merges.read_text().splitlines(keepends=True)[:-1]))
    wide = trained_parts(tmp_path / "wide", text_encoder={"hidden_size": 132}, tokenizer={})
    lone = trained_parts(tmp_path / "lone", tokenizer={})
    file = next((wide / "text_encoder").glob("*.safetensors"))
    save_file({name: torch.zeros([{128: 132}.get(n, n) for n in x.shape]) for name, x in load_file(file).items()}, file)
    wrong = {"no such file": tmp_path / "none", "none of the folders tokenizer": tmp_path / "empty",
             "no diffusion_pytorch_model": tmp_path / "half", "they belong together": lone,
             "646 tokens, the text encoder 647": few,
             "132 wide, its unet reads 128": wide, "holds no video": next((ROOT / "toy" / "vae").glob("*.safetensors"))}
    for names, weights in wrong.items():
        assert main([PROMPT, "--weights", str(weights), "--out", str(tmp_path / "x.png")]) == 2, names
        said = capsys.readouterr()
        assert names in said.err and said.err.count("\n") == 1 and not said.out, said
    assert not (tmp_path / "x.png").exists()                                 # breaks if what lacks a file is passed by


def test_merges_can_lie_elsewhere(tmp_path, capsys):
    """SD2.1's single file comes without a tokenizer: --merges names one."""
    folder = untrained(tmp_path / "sd")
    shutil.move(folder / "tokenizer" / "merges.txt", tmp_path / "elsewhere.txt")
    how = ["--model", str(folder), "--steps", "1", "--frames", "1", "--size", "64", "--out", str(tmp_path / "x.png")]
    assert main([PROMPT, *how]) == 2 and "merges.txt" in capsys.readouterr().err
    assert main([PROMPT, *how, "--merges", str(tmp_path / "elsewhere.txt")]) == 0


def test_a_v_prediction_model_can_be_sampled():
    """A network that tells v is the same network as one that tells eps = sqrt(ab) v + sqrt(1 - ab) z_t: same video."""
    schedule = NoiseSchedule(prediction_type="v_prediction")

    def tells_v(unet):
        def model(z_t, t, *rest):
            ab = schedule.at(t, z_t)
            return (unet(z_t, t, *rest) - (1 - ab) ** 0.5 * z_t) / ab ** 0.5
        model.down_blocks = TOY.unet.down_blocks                             # settings() asks how many levels there are
        return model
    changes = {"unet": tells_v(TOY.unet), "video": tells_v(TOY.video), "schedule": schedule}
    v = MicroCinema(**vars(TOY) | changes)
    how = dict(steps=6, guidance=1.0)                                        # with w > 1, rounding is exaggerated
    key = TOY.key_frame([PROMPT], [2], **how)
    assert_close(v.key_frame([PROMPT], [2], **how), key, atol=2e-2, rtol=0)
    assert_close(v.animate([PROMPT], key, [2], **how), TOY.animate([PROMPT], key, [2], **how), atol=2e-2, rtol=0)


@pytest.mark.parametrize("dtype, most", [(torch.bfloat16, 0.08), (torch.float16, 0.02)])
def test_half_precision_draws_the_same_picture(dtype, most):
    """Networks in 16 bits, the way from noise to picture in 32: how far is a key frame from float32's, of [-1, 1]?"""
    key = TOY.key_frame([PROMPT], [1], steps=4)
    half = MicroCinema.load(ROOT / "toy", dtype=dtype).key_frame([PROMPT], [1], steps=4)
    assert half.dtype == torch.float32
    assert 0 < (half - key).abs().mean() < most


# ---- temporal super-resolution ----

def pictures(*seconds):
    """Frames of a toy scene at these seconds: [1, 3, n, 128, 128] in [-1, 1]."""
    frames = torch.from_numpy(render(sample_scene(3, things=1), seconds))
    return from_pixels(frames).permute(3, 0, 1, 2)[None]


def test_the_condition_goes_from_one_frame_to_the_other_in_even_steps():
    """Five frames from 0 to 8, by hand."""
    z_bar = between(torch.zeros(2, 4, 3, 1), torch.full((2, 4, 3, 1), 8.0), 5)
    assert z_bar.shape == (2, 4, 5, 3, 1) and z_bar[1, 2, :, 0, 0].tolist() == [0, 2, 4, 6, 8]


def test_nine_frames_become_33_become_129():
    """Sec. 3.1, 2 to 8 to 32 fps: 8 pairs of 4 and the last, 32 of 4 and the last. Which of them were given?"""
    z = torch.randn(1, 4, 9, 4, 4)
    cinema = MicroCinema(**vars(TOY) | {"tsr": lambda z_t, t, condition, text: 0 * z_t})
    first = cinema.interpolate_latents(z, [PROMPT], steps=1)
    second = cinema.interpolate_latents(first, [PROMPT], steps=1, fps=8)
    assert first.shape[2] == 33 and second.shape[2] == 129
    assert torch.equal(first[:, :, ::4], z) and torch.equal(second[:, :, ::16], z)     # breaks if a seam is off by one


def test_given_pictures_come_back_untouched_and_nothing_is_done_twice():
    """Three pictures, two rounds: 33 frames. How often is a picture encoded, a frame decoded?"""
    given, counts = pictures(0.0, 2.0, 4.0), {"encode": 0, "decode": 0}

    class Counting:
        factor, parameters = TOY.vae.factor, TOY.vae.parameters

        def encode(self, x):
            counts["encode"] += len(x)
            return TOY.vae.encode(x)

        def decode(self, z):
            counts["decode"] += len(z)
            return TOY.vae.decode(z)
    cinema = MicroCinema(**vars(TOY) | {"vae": Counting()})
    video = cinema.interpolate(given, [PROMPT], rounds=2, steps=1)
    assert video.shape == (1, 3, 33, 128, 128) and torch.equal(video[:, :, ::16], given)
    assert counts == {"encode": 3, "decode": 30}                             # breaks if rounds go through pixels


def test_law_4_how_many_pairs_at_once_does_not_matter():
    """Four pairs: one by one, three and one, all at once; with fresh noise at each step. The same frames?"""
    z = torch.randn(1, 4, 5, 16, 16)
    how = dict(steps=2, eta=0.5)
    one, three, all_four = (TOY.interpolate_latents(z, [PROMPT], [7], pairs, **how) for pairs in (1, 3, 4))
    assert_close(one, three, atol=1e-3, rtol=0)
    assert_close(one, all_four, atol=1e-3, rtol=0)
    assert (one - TOY.interpolate_latents(z, [PROMPT], [8], 4, **how)).abs().max() > 0.01   # the seed does
    twice = TOY.interpolate_latents(torch.cat([z[:, :, :2], z[:, :, :2]], dim=2), [PROMPT], [7], 4, **how)
    assert (twice[:, :, 1:4] - twice[:, :, 9:12]).abs().max() > 0.01         # breaks if all pairs share their noise


def test_the_prior_follows_the_condition():
    """Ledger 5: eps^i = (lam + gamma) z_bar^i + eps_n^i at the start, and z_bar is the condition in both passes."""
    asked = []
    spy = lambda z_t, t, condition, text: asked.append((z_t, condition)) or 0 * z_t
    z = torch.randn(1, 4, 2, 4, 4)
    cinema = MicroCinema(**vars(TOY) | {"tsr": spy})
    cinema.interpolate_latents(z, [PROMPT], [1], steps=1, lam=0.5, gamma=0.25, guidance=2.0)
    z_t, condition = asked[0]
    z_bar, eps_n = between(z[:, :, 0], z[:, :, 1], 5), noise(["1, pair 0"], (4, 5, 4, 4), "8 fps")()
    assert len(condition) == 2 and torch.equal(condition[:1], z_bar) and torch.equal(condition[1:], z_bar)
    assert_close(z_t[:1], eps_n + 0.75 * z_bar, atol=1e-5, rtol=1e-5)        # breaks if only the first frame is in it


def test_each_round_is_told_its_rate():
    """Two ends of a pendulum's path look alike half a second and an eighth apart. What is the model told, by default,
    in the second round, and between pictures that are 5 a second?"""
    said, cinema = [], MicroCinema(**vars(TOY) | {"tsr": lambda z_t, t, condition, text: 0 * z_t})
    cinema.encode_text = lambda prompts: said.extend(filter(None, prompts)) or TOY.encode_text(prompts)
    cinema.interpolate(pictures(0.0, 2.0), [PROMPT], rounds=2, steps=1)
    cinema.interpolate(pictures(0.0, 2.0), [PROMPT], steps=1, fps=5)
    assert said == [f"{rate} fps, {PROMPT}" for rate in (8, 32, 20)]         # breaks if a round is told where it starts


def test_between_two_photographs(tmp_path, capsys):
    """--between: two pictures of different sizes and modes, five frames; the first and the last are the pictures."""
    Image.new("RGB", (200, 128), (200, 40, 60)).save(tmp_path / "a.png")
    Image.fromarray(torch.full((300, 300), 40000).numpy().astype("uint16")).save(tmp_path / "b.tiff")
    how = [PROMPT, "--between", str(tmp_path / "a.png"), str(tmp_path / "b.tiff"), "--steps", "1", "--out"]
    assert main([*how, str(tmp_path / "out")]) == 0
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == 5 and "5 frames of 128x128 at 8 fps" in capsys.readouterr().out
    assert main([*how, str(tmp_path / "large"), "--fps", "32", "--upscale", "4"]) == 0   # Real-ESRGAN, photographs too
    assert "17 frames of 512x512 at 32 fps" in capsys.readouterr().out
    with Image.open(files[0]) as first, Image.open(files[4]) as last:
        assert first.getpixel((64, 64)) == (200, 40, 60) and last.getpixel((64, 64)) == (156, 156, 156)


def test_the_whole_cascade_from_the_command(tmp_path, capsys):
    """A sentence, 33 frames, each twice as large by Lanczos, in a file that plays as long as nine frames do."""
    how = ["--steps", "1", "--fps", "8", "--upscale", "2", "--upscaler", "lanczos", "--pairs", "3"]
    assert main([PROMPT, *how, "--out", str(tmp_path / "x.gif")]) == 0
    said = capsys.readouterr()
    assert "33 frames of 256x256 at 8 fps" in said.out
    assert all(f"to 8 fps, pairs {pairs} of 8: 100%" in said.err for pairs in ("1-3", "4-6", "7-8"))
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.size == (256, 256)


def test_what_the_cascade_cannot_do_is_one_line(tmp_path, capsys):
    """One picture, a frame rate that no round reaches, two sources of a key frame, no tsr/, enlarging by 3."""
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    a, bare = str(tmp_path / "a.png"), tmp_path / "bare"
    shutil.copytree(ROOT / "toy", bare, ignore=shutil.ignore_patterns("tsr"))
    torch.jit.script(torch.nn.Upsample(scale_factor=2.0)).save(tmp_path / "twice.pt")
    wrong = {"two or more": ["--between", a], "5 fps": ["--fps", "5"], "0 fps": ["--fps", "0"],
             "--upscaler: say": ["--upscaler", "lanczos"],
             "not 4 times": ["--upscale", "4", "--upscaler", str(tmp_path / "twice.pt")],
             "choose one": ["--between", a, a, "--image", a],
             "lacks tsr/|has no temporal": ["--fps", "8", "--model", str(bare)], "does 4": ["--upscale", "3"],
             "--pairs 0": ["--pairs", "0"], "nothing to set between": ["--between", a, a, "--fps", "2"],
             "--pairs: at 2 fps": ["--pairs", "3"], "--frames 2 or more": ["--frames", "1", "--fps", "8"],
             "--frames: with --between": ["--between", a, a, "--frames", "3"]}
    for names, argv in wrong.items():
        assert main([PROMPT, *argv, "--out", str(tmp_path / "x.gif")]) == 2, argv
        said = capsys.readouterr().err
        assert re.search(names, said) and said.count("\n") == 1, said        # breaks if it samples before it asks
    with pytest.raises(ValueError, match="2 or more"):
        TOY.interpolate(pictures(1.0), [PROMPT])
    assert not (tmp_path / "x.gif").exists()
