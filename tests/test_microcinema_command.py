"""Exercises for the command line of microcinema.py: the main job, and everything a person may get wrong."""
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_microcinema import PROMPT, ROOT, load_toy, trained_components
from torch.testing import assert_close

from microcinema import MicroCinema, main
from sd21.weights import describe, resolve_components


def exit_code(*argv):
    """The exit code of the command. argparse exits by itself when an option is wrong."""
    try:
        return main([*map(str, argv)])
    except SystemExit as stop:
        return stop.code


def one_line(captured, message):
    """Whether stderr is one line that matches `message`."""
    return re.search(message, captured.err) and captured.err.count("\n") == 1 and "Traceback" not in captured.err


def untrained(folder):
    """The toy model without its video weights, as SD2.1 is published."""
    shutil.copytree(ROOT / "toy", folder, ignore=shutil.ignore_patterns("video"))
    return folder


@pytest.fixture
def quick(monkeypatch):
    """The command uses the toy model that the tests share. Reading it again would take two seconds."""
    shared = load_toy()
    monkeypatch.setattr(MicroCinema, "load", lambda *_, **__: shared)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """The current folder, with two pictures, a text called .png, a network that enlarges twice, and an old.gif."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (9, 9)).save(name)
    (tmp_path / "not.png").write_text("no picture")
    (tmp_path / "old.gif").write_text("precious, written by MicroCinema")
    torch.jit.script(torch.nn.Upsample(scale_factor=2.0)).save("twice.pt")
    return tmp_path


# ---- the main job ----

@pytest.mark.slow
def test_the_main_job_writes_a_gif_that_reads_back(tmp_path):
    """A sentence, a process of its own, another folder: nine frames of half a second, and something moves."""
    run = subprocess.run([sys.executable, ROOT / "microcinema.py", PROMPT, "--steps", "8"], cwd=tmp_path,
                         capture_output=True, text=True)
    assert run.returncode == 0 and "a-red-circle-moving-left.gif" in run.stdout, run.stderr
    assert "key frame" in run.stderr and "video" in run.stderr               # a progress bar for each stage
    with Image.open(tmp_path / "a-red-circle-moving-left.gif") as gif:
        assert gif.n_frames == 9 and gif.size == (128, 128) and gif.info["duration"] == 500
        first = gif.convert("RGB").tobytes()
        gif.seek(8)
        assert gif.convert("RGB").tobytes() != first
    assert os.listdir(tmp_path) == ["a-red-circle-moving-left.gif"]          # nothing else is left


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="this ffmpeg is a shell script")
def test_a_killed_run_leaves_nothing(tmp_path):
    """In place of ffmpeg, a script writes half a file and sleeps. The run is killed meanwhile. What is left of it?"""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ffmpeg").write_text('#!/bin/sh\nfor last; do :; done\necho half > "$last"\nexec sleep 100\n')
    (tmp_path / "bin" / "ffmpeg").chmod(0o755)
    run = subprocess.Popen([sys.executable, ROOT / "microcinema.py", PROMPT, "--steps", "1", "--frames", "1", "--out",
                            "x.mp4"], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
                           env=os.environ | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"})
    while run.poll() is None and not any(part.read_text() for part in tmp_path.glob(".x.mp4.part/*")):
        time.sleep(0.01)
    run.terminate()
    said = run.communicate()[1]
    assert run.returncode == 130 and said.endswith("stopped; nothing was written\n") and "Traceback" not in said
    assert os.listdir(tmp_path) == ["bin"]                                   # breaks if the system handles SIGTERM


@pytest.mark.slow
def test_without_video_weights_each_frame_is_the_image_model(tmp_path):
    """Law 1 with a model folder: do untrained temporal layers change anything?"""
    cinema, z_t = MicroCinema.load(untrained(tmp_path / "sd")), torch.randn(1, 4, 3, 16, 16)
    text, t = cinema.encode_text([PROMPT]), torch.tensor([500])
    with torch.inference_mode():
        frames = [cinema.unet(z_t[:, :, i:i + 1], t, text) for i in range(3)]
        clip = cinema.video(z_t, t, z_t[:, :, :1], text)
    assert_close(clip, torch.cat(frames, dim=2), atol=1e-5, rtol=1e-4)       # breaks if grow leaves out a layer


@pytest.mark.slow
def test_without_video_weights_a_line_says_so_and_weights_adds_them(tmp_path, capsys):
    """The toy model without video/, the same with --weights, and the whole toy model. Which videos are equal?"""
    folder, options = untrained(tmp_path / "sd"), "--steps 2 --frames 3 --size 128 --guidance 3".split()
    assert exit_code(PROMPT, "--model", folder, "--out", tmp_path / "fresh", *options) == 0
    assert "no trained video weights" in capsys.readouterr().out
    trained = next((ROOT / "toy" / "video").glob("*.safetensors"))
    assert exit_code(PROMPT, "--model", folder, "--weights", trained, "--out", tmp_path / "a", *options) == 0
    assert "no trained" not in capsys.readouterr().out
    assert exit_code(PROMPT, "--out", tmp_path / "b", *options) == 0
    read = lambda name: [Image.open(file).tobytes() for file in sorted((tmp_path / name).iterdir())]
    assert read("a") == read("b") != read("fresh")


@pytest.mark.slow
def test_the_command_says_where_each_component_comes_from(tmp_path, capsys):
    """A folder with a trained video and tsr, and the file of a video model: one line each. Without --weights, none."""
    mine = trained_components(tmp_path / "mine", video={}, tsr={})
    file = next((mine / "video").glob("*.safetensors"))
    options = ["--steps", "1", "--frames", "1", "--size", "64", "--out", tmp_path / "x.png"]
    assert exit_code(PROMPT, *options, "--weights", mine) == 0
    toy = ROOT / "toy"
    assert capsys.readouterr().out.startswith(f"tokenizer, text_encoder, vae, unet, scheduler from {toy}; "
                                              f"video, tsr from {mine}\n")    # breaks if the model's tsr is used
    assert exit_code(PROMPT, *options, "--weights", file) == 0
    assert f"scheduler, tsr from {toy}; video from {file}\n" in capsys.readouterr().out
    assert describe(resolve_components(toy, mine, "m.txt")).startswith("tokenizer from m.txt; ")
    assert exit_code(PROMPT, *options) == 0 and " from " not in capsys.readouterr().out


@pytest.mark.slow
def test_merges_can_lie_elsewhere(tmp_path, capsys):
    """SD2.1's single file comes without a tokenizer: --merges names one."""
    folder = untrained(tmp_path / "sd")
    shutil.move(folder / "tokenizer" / "merges.txt", tmp_path / "elsewhere.txt")
    options = ["--model", folder, "--steps", "1", "--frames", "1", "--size", "64", "--out", tmp_path / "x.png"]
    assert exit_code(PROMPT, *options) == 2 and "merges.txt" in capsys.readouterr().err
    assert exit_code(PROMPT, *options, "--merges", tmp_path / "elsewhere.txt") == 0


# ---- prompts and pictures ----

def test_a_prompt_that_is_too_long_is_cut_and_says_so(tmp_path, capsys, quick):
    """More than 75 tokens: what is cut off?"""
    words = "a red circle moving left " * 20 + "zebra"
    assert exit_code(words, "--steps", "1", "--frames", "1", "--out", tmp_path / "x.png") == 0
    assert re.search("cut off: .*zebra", capsys.readouterr().out)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16", "CMYK"])
def test_any_picture_can_be_the_key_frame(tmp_path, capsys, quick, mode):
    """A small wide picture of any mode: a line says how it is cropped and resized."""
    picture = Image.new("RGB", (50, 30), (200, 40, 60)).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        picture = Image.fromarray(torch.full((30, 50), 40000).numpy().astype("uint16"))
    path = tmp_path / ("photo.tiff" if mode in ("CMYK", "I;16") else "photo.png")
    picture.save(path)
    assert exit_code(PROMPT, "--image", path, "--steps", "1", "--frames", "3", "--out", tmp_path / "x.webp") == 0
    assert re.search("50x30.*30x30.*128x128", capsys.readouterr().out)
    with Image.open(tmp_path / "x.webp") as video:
        assert video.size == (128, 128)


def test_even_numbers_of_frames_have_no_centre_and_say_so(tmp_path, capsys, quick):
    """Four frames: the key frame is number 2 of 0 to 3."""
    assert exit_code(PROMPT, "--frames", "4", "--steps", "1", "--out", tmp_path / "frames") == 0
    assert "no centre" in capsys.readouterr().out and len(os.listdir(tmp_path / "frames")) == 4


# ---- the cascade ----

@pytest.mark.slow
def test_between_two_photographs(tmp_path, capsys):
    """--between: two pictures of different sizes and modes, five frames. Are the first and the last the pictures?"""
    Image.new("RGB", (200, 128), (200, 40, 60)).save(tmp_path / "a.png")
    Image.fromarray(torch.full((300, 300), 40000).numpy().astype("uint16")).save(tmp_path / "b.tiff")
    options = [PROMPT, "--between", tmp_path / "a.png", tmp_path / "b.tiff", "--steps", "1", "--out"]
    assert exit_code(*options, tmp_path / "out") == 0
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == 5 and "5 frames of 128x128 at 8 fps" in capsys.readouterr().out
    assert exit_code(*options, tmp_path / "large", "--fps", "32", "--upscale", "4") == 0     # Real-ESRGAN
    assert "17 frames of 512x512 at 32 fps" in capsys.readouterr().out
    with Image.open(files[0]) as first, Image.open(files[4]) as last:
        assert first.getpixel((64, 64)) == (200, 40, 60) and last.getpixel((64, 64)) == (156, 156, 156)


@pytest.mark.slow
def test_the_whole_cascade_from_the_command(tmp_path, capsys):
    """A sentence, 33 frames, each enlarged twice by Lanczos. Does a bar show each group of pairs?"""
    options = ["--steps", "1", "--fps", "8", "--upscale", "2", "--upscaler", "lanczos", "--pairs", "3"]
    assert exit_code(PROMPT, *options, "--out", tmp_path / "x.gif") == 0
    said = capsys.readouterr()
    assert "33 frames of 256x256 at 8 fps" in said.out
    assert all(f"to 8 fps, pairs {pairs} of 8: 100%" in said.err for pairs in ("1-3", "4-6", "7-8"))
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.size == (256, 256)


# ---- what a person may get wrong ----

@pytest.mark.parametrize("options, message", [
    ("--image missing.png", "missing.png"), ("--image not.png", "not.png"), ("--size 100", "size 100"),
    ("--steps 0", "0 steps"), ("--steps 1001", "1001 steps"), ("--frames 0", "0 frames"),
    ("--device nonsense", "--device: nonsense"), ("--device meta", "--device: meta"), ("--eta 2", "eta 2"),
    ("--guidance nan", "guidance nan"), ("--lam inf", "lambda inf"),
    ("--size 6400000000", "want 1 to 9999 pixels"), ("--size 64x", "320x192 .width x height"),
    ("--model nowhere", "nowhere"),
    ("--between a.png", "two or more"), ("--fps 5", "5 fps"), ("--fps 0", "0 fps"), ("--fps nan", "nan fps"),
    ("--upscaler lanczos", "--upscaler: say"), ("--upscale 4 --upscaler twice.pt", "not 4 times"),
    ("--upscale 3", "does 4"), ("--between a.png b.png --image a.png", "--image: not allowed with argument --between"),
    ("--pairs 0", "--pairs: 0: want a whole number, 1 or more"), ("--pairs 3", "--pairs: at 2 fps"),
    ("--between a.png b.png --fps 2", "nothing to set between"), ("--frames 1 --fps 8", "--frames 2 or more"),
    ("--between a.png b.png --frames 3", "--frames: with --between")])
def test_a_wrong_option_is_one_line_and_no_file_changes(options, message, desk, capsys, request):
    """Exit code 2, and one line on stderr that names the option. Is old.gif as it was?"""
    if "--model" not in options:
        request.getfixturevalue("quick")
    assert exit_code(PROMPT, *options.split(), "--out", "old.gif") == 2
    captured = capsys.readouterr()
    assert one_line(captured, message), captured.err                         # breaks if it samples before it checks
    assert (desk / "old.gif").read_text().startswith("precious")             # breaks if it writes before it checks


@pytest.mark.parametrize("options, out", [("--image a.png", "a.png"), ("--between a.png b.png", "b.png")])
def test_the_output_never_replaces_a_given_picture(options, out, desk, capsys):
    """--out names the picture that the video begins with. Is that refused before the model is read?"""
    before = (desk / out).read_bytes()
    assert exit_code(PROMPT, *options.split(), "--out", out) == 2 and (desk / out).read_bytes() == before
    assert one_line(capsys.readouterr(), f"{out}: would replace {out}")      # breaks without inputs=


def test_every_prompt_and_seed_has_its_own_file_name(desk, monkeypatch):
    """Chinese, Russian, signs alone, two seeds, a mixture: are these eight names, and is the plain one as ever?"""
    names = []

    def stop(out, **_):
        names.append(str(out))
        raise ValueError("stop")
    monkeypatch.setattr("microcinema.check_output", stop)
    for prompt, seed in (("一只红色的圆圈", 0), ("красный круг", 0), ("☀ ☀", 0), ("☂", 0), ("a red circle", 0),
                         ("a red circle", 2), ("一只 cat", 0), ("两只 cat", 0)):
        exit_code(prompt, "--seed", seed)
    assert len(set(names)) == 8 and names[4] == "a-red-circle.gif"           # breaks if only a to z count
    exit_code("𐐀" * 80, "--seed", 4_294_967_295)                            # four bytes a letter
    assert len(f".{names[-1]}.part".encode()) <= 255


def test_an_empty_prompt_is_refused(desk, capsys, quick):
    """Two spaces."""
    assert exit_code("  ", "--out", "old.gif") == 2
    assert one_line(capsys.readouterr(), "the prompt is empty")
    assert (desk / "old.gif").read_text().startswith("precious")


@pytest.mark.parametrize("out", ["no/folder.gif", "clip.xyz"])
def test_an_output_that_cannot_be_written_is_refused(out, tmp_path, quick):
    """A folder that does not exist, a format that does not exist."""
    assert exit_code(PROMPT, "--out", tmp_path / out) == 2


def test_numbers_beyond_all_bounds_are_not_a_picture(desk, capsys, quick):
    """A guidance of 1e38 overflows in the second step. Is that a message, or a black video?"""
    assert exit_code(PROMPT, "--guidance", "1e38", "--steps", "2", "--out", "old.gif") == 2
    assert "beyond all bounds" in capsys.readouterr().err.splitlines()[-1]   # breaks if NaN becomes a black picture
    assert (desk / "old.gif").read_text().startswith("precious")


def without(name):
    """Makes a folder with the toy model, but without this component."""
    return lambda folder: shutil.copytree(ROOT / "toy", folder, ignore=shutil.ignore_patterns(name))


def with_a_cut_file(folder):
    shutil.copytree(ROOT / "toy", folder)
    file = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.slow
@pytest.mark.parametrize("make, options, message", [
    (without("vae"), [], "broken_toy"), (with_a_cut_file, [], "broken_toy"),
    (without("tsr"), ["--fps", "8"], "lacks tsr/|has no temporal")], ids=["no vae", "cut", "no tsr"])
def test_a_broken_model_folder_is_one_line_that_names_it(make, options, message, desk, capsys):
    """The toy model without a vae; with a U-Net's file that is too short; without tsr/, for 8 fps."""
    make(desk / "broken_toy")
    assert exit_code(PROMPT, "--model", "broken_toy", *options, "--out", "old.gif") == 2
    captured = capsys.readouterr()
    assert one_line(captured, message), captured.err
    assert (desk / "old.gif").read_text().startswith("precious")


def too_few_words(folder):
    trained_components(folder, tokenizer={}, text_encoder={})
    merges = folder / "tokenizer" / "merges.txt"
    merges.write_text("".join(merges.read_text().splitlines(keepends=True)[:-1]))


def too_wide_a_text_encoder(folder):
    trained_components(folder, text_encoder={"hidden_size": 132}, tokenizer={})
    file = next((folder / "text_encoder").glob("*.safetensors"))
    wider = {name: torch.zeros([{128: 132}.get(n, n) for n in x.shape]) for name, x in load_file(file).items()}
    save_file(wider, file)


@pytest.mark.slow
@pytest.mark.parametrize("message, make", {
    "no such file": lambda folder: None,
    "none of the folders tokenizer": lambda folder: (folder / "clips").mkdir(parents=True),
    "no diffusion_pytorch_model": lambda folder: (folder / "vae").mkdir(parents=True),
    "they belong together": lambda folder: trained_components(folder, tokenizer={}),
    "646 tokens, the text encoder 647": too_few_words,
    "132 wide, its unet reads 128": too_wide_a_text_encoder,
    "holds no video": lambda folder: shutil.copy(next((ROOT / "toy" / "vae").glob("*.safetensors")), folder)}.items())
def test_weights_that_do_not_fit_are_one_line(message, make, tmp_path, capsys):
    """Nothing there; nothing trained in it; a component without its file; a tokenizer without its text encoder; the
    sizes of two families; the file of another component."""
    make(tmp_path / "mine")
    assert exit_code(PROMPT, "--weights", tmp_path / "mine", "--out", tmp_path / "x.png") == 2
    captured = capsys.readouterr()
    assert one_line(captured, message) and not captured.out, captured.err
    assert not (tmp_path / "x.png").exists()                                 # breaks if the model's own is used instead


def test_what_lies_beyond_the_training_is_said(desk, quick, capsys):
    """Three frames for a model of nine, a smaller size, a word it never read: a line each, and a video all the same."""
    assert main([PROMPT, "--steps", "1", "--out", "a.gif"]) == 0
    assert "trained" not in capsys.readouterr().out
    assert main(["a crimson circle", "--steps", "1", "--frames", "3", "--size", "64", "--out", "b.gif"]) == 0
    out = capsys.readouterr().out
    assert "trained on 9 frames of size 128;" in out and "never had: crimson; it knows" in out
    assert "b.gif: 3 frames" in out
