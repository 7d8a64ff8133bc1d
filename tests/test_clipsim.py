"""Exercises on evaluation/clipsim.py: whose cosine with what?"""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_filter import Judge
from test_folder import describe
from test_fvd import clips

from evaluation import clipsim
from evaluation.clipsim import cosines
from sd21.text import save_merges


def fake_score(images, texts):
    """Embeddings that were given, in the order of the frames and of the captions."""
    network = SimpleNamespace(encode_image=lambda x: images.flatten(0, 1), encode_text=lambda ids: texts)
    return SimpleNamespace(network=network, tokenizer=lambda captions: torch.zeros(len(captions), 77), device="cpu")


def test_every_frame_meets_the_caption_of_its_own_clip():
    """Golden number: 1 - scipy.spatial.distance.cosine (SciPy 1.17.1), over 4 clips of 3 frames, from NumPy 2.4.6."""
    random = np.random.default_rng(7)
    images, texts = (torch.from_numpy(random.standard_normal(shape)) for shape in ((4, 3, 5), (4, 5)))
    score = fake_score(images, texts)
    result = cosines(score, torch.zeros(4, 3, 8, 8, 3, dtype=torch.uint8), ["a"] * 4)
    assert result.shape == (4, 3) and result.mean().item() == pytest.approx(0.15529260224588926, rel=1e-6)


def test_the_command_averages_over_frames(tmp_path, capsys):
    """The stand-in for CLIP embeds a picture as (brightness, 1) and a text as (1, 1). Clip of shades 0 to 9 by hand."""
    torch.jit.script(Judge()).save(tmp_path / "clip.pt")
    save_merges([], tmp_path / "merges.txt")
    folder = clips(tmp_path / "clips", [100, 100])
    describe(folder, **{"0__webp": "a dawn", "1__webp": "a dusk"})
    argv = [folder, "--network", tmp_path / "clip.pt", "--merges", tmp_path / "merges.txt", "--frames", 10, "--fps", 10,
            "--size", 224, "--device", "cpu"]
    assert clipsim.main([*map(str, argv)]) == 0
    means, deviations = (torch.tensor(x) for x in (clipsim.MEAN, clipsim.DEVIATION))
    bright = [((torch.full((3,), (100 + k) / 255) - means) / deviations).mean().item() for k in range(10)]
    by_hand = np.mean([(x + 1) / np.sqrt(2 * (x**2 + 1)) for x in bright])
    output = capsys.readouterr().out
    assert float(output.split()[1].rstrip(",")) == pytest.approx(by_hand, abs=1e-4)
    assert "(2 clips; network clip.pt, frames 10, fps 10, size 224)" in output


@pytest.mark.parametrize("more, words", [([], "takes both --network FILE and --merges FILE"),
                                         (["--merges", "merges.txt"], "add --size 224")])
def test_clip_needs_its_merges_and_its_size(tmp_path, capsys, more, words):
    """--network without --merges, or with frames of 128 pixels: one line?"""
    assert clipsim.main([str(tmp_path), "--network", "clip.pt", "--device", "cpu", *more]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("text, words", [(5, "a.webp: has a caption that cannot be read as text"), ("", "has 1 clips")])
def test_a_caption_that_is_no_text_is_refused(tmp_path, capsys, text, words):
    """A number as one of two captions, and an empty one: one line?"""
    rows = [{"file_name": "a.webp", "text": text}, {"file_name": "b.webp", "text": "a dawn"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert clipsim.main([str(tmp_path), "--device", "cpu"]) == 2
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1
