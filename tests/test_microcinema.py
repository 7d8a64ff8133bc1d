"""Exercises for microcinema.py: the main job, end to end, and everything a person may get wrong."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_unet3d import golden
from test_vae import golden as golden_vae
from torch.testing import assert_close

from microcinema import MicroCinema, main, noise
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


def test_noise_differs_by_seed_stage_and_call():
    """The two stages of one seed must not share their noise: z_T would then know the key frame's."""
    a, b = noise([3], (4,), "key frame"), noise([3], (4,), "video")
    first = a()
    assert not torch.equal(first, b()) and not torch.equal(first, a())
    assert torch.equal(first, noise([9, 3], (4,), "key frame")()[1:])


def test_latents_of_the_toy_have_unit_variance():
    """lambda and gamma only mean something if z has the scale of the noise. Over 64 key frames?"""
    from data import ToySet, from_pixels
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
             "eta 2": [PROMPT, "--eta", "2"], "nowhere": [PROMPT, "--model", str(tmp_path / "nowhere")],
             "lacking": [PROMPT, "--model", str(tmp_path / "lacking")],
             "cut": [PROMPT, "--model", str(tmp_path / "cut")]}
    for names, argv in wrong.items():
        assert main([*argv, "--out", out]) == 2, argv
        said = capsys.readouterr().err
        assert names in said and said.count("\n") == 1 and "Traceback" not in said, said
    assert main([PROMPT, "--out", str(tmp_path / "no" / "folder.gif")]) == 2
    assert main([PROMPT, "--out", str(tmp_path / "clip.xyz")]) == 2
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
