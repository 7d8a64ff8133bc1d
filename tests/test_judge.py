"""Exercises on evaluation/judge.py: what do the two networks see, and how far can those in toy/judge be trusted?"""
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from data.toyset import COLOURS, MOTIONS, SHAPES, STILL, frame_times, render, sample_scene, scene_of
from evaluation import judge
from evaluation.judge import CLASSES, ImageTextPair, LabelledClips, ToyScore, VideoClassifier, load_judge
from evaluation.windows import Protocol

JUDGE = Path(__file__).parents[1] / "toy" / "judge"


@pytest.fixture(scope="module")
def classifier():
    """An untrained classifier."""
    torch.manual_seed(0)
    return VideoClassifier().eval()


def test_the_classifier_has_the_call_of_an_i3d_file(classifier):
    """Features for FVD, probabilities for IS, of any number and size of frames; pixels 0-255, or in [-1, 1]."""
    x = 255 * torch.rand(2, 3, 5, 96, 96)
    assert classifier(x, rescale=True, resize=True, return_features=True).shape == (2, 128)
    p = classifier(x, rescale=True, resize=True, return_features=False)
    assert p.shape == (2, 8 * 8 * 11) and torch.allclose(p.sum(1), torch.ones(2))
    small = F.interpolate(x / 127.5 - 1, (5, 64, 64), mode="area")
    assert torch.allclose(classifier(small, rescale=False, resize=False), p, atol=1e-6)     # breaks if ignored
    assert not torch.allclose(classifier(x, resize=False), p, atol=1e-6)


def test_a_class_is_a_shape_a_colour_and_a_motion():
    """A classifier that is sure of shape 3, colour 5, motion 7: is this triple its class?"""
    classifier = VideoClassifier().requires_grad_(False)
    for head, answer in zip(classifier.heads, (3, 5, 7)):
        head.bias[answer] = 100
    p = classifier(255 * torch.rand(2, 3, 5, 64, 64)).unflatten(1, [len(names) for names in CLASSES])
    assert torch.allclose(p[:, 3, 5, 7], torch.ones(2))                      # breaks if colour and shape are swapped


def test_a_text_ends_at_its_end_token():
    """Ids after the end, which has the highest id, change nothing; the last word before it does."""
    pair, ids = ImageTextPair(20).eval(), torch.zeros(3, 77, dtype=torch.long)
    ids[:, :4] = torch.tensor([[18, 5, 6, 19], [18, 5, 6, 19], [18, 5, 7, 19]])
    ids[1, 5:] = 3
    a, b, c = pair.encode_text(ids)
    assert torch.allclose(a, b, atol=1e-6) and not torch.allclose(a, c, atol=1e-3)           # breaks at the last id


def test_contrast_is_clips_loss():
    """By hand, from the embeddings: cross entropy over rows and over columns of the scaled cosines, halved."""
    pair, x, ids = ImageTextPair(20), torch.rand(4, 3, 64, 64), torch.randint(1, 19, (4, 77))
    cosines = F.cosine_similarity(pair.encode_image(x)[:, None], pair.encode_text(ids)[None], dim=-1)
    p = (cosines / 0.07).double()
    by_hand = -(p.log_softmax(0).diag().mean() + p.log_softmax(1).diag().mean()) / 2
    assert pair.contrast(x, ids).item() == pytest.approx(by_hand.item(), rel=1e-3)


def test_labels_say_what_is_seen():
    """Of 60 clips: one thing has the labels of its scene, one that was stopped stands still, two things have none."""
    clips, still = LabelledClips(60, 7), 0
    for i in range(60):
        frames, caption, labels = clips[i]
        scene = sample_scene([7, i])
        assert frames.shape == (3, 17, 64, 64)
        if len(scene.things) == 2:
            assert labels.tolist() == [-100] * 3
            continue
        shape, colour, motion = (names[k] for names, k in zip(CLASSES, labels.tolist()))
        stands = bool((frames == frames[:, :1]).all())
        still += stands
        assert (shape, colour) == scene.things[0][:2] and shape in caption and colour in caption
        assert motion == (STILL if stands else scene.things[0].motion)
    assert 0 < still < 20


@pytest.mark.slow
def test_the_command_trains_a_judge_that_can_be_loaded(tmp_path, capsys):
    """Two steps, and two more by the same command: checkpoints, then the weights that load_judge reads."""
    argv = ["--out", str(tmp_path), "--clips", "4", "--batch", "2", "--save-every", "2", "--device", "cpu"]
    assert judge.main([*argv, "--steps", "2"]) == 0 and judge.main([*argv, "--steps", "4"]) == 0
    assert "going on from" in capsys.readouterr().out
    assert load_judge("cpu", tmp_path)["classifier"](torch.rand(1, 3, 2, 64, 64)).shape == (1, 704)
    assert ToyScore("cpu", tmp_path)(np.zeros((128, 128, 3), np.uint8), "a red star") < 1.001


def test_a_folder_without_a_judge_is_refused_in_one_line(tmp_path):
    """No file: does the message name it, and the command that makes one?"""
    with pytest.raises(ValueError, match="no judge .*; python -m evaluation.judge makes one"):
        load_judge("cpu", tmp_path)


def test_a_judge_with_nan_is_refused_in_one_line(tmp_path):
    """One weight of a copy of the shipped judge is not a number."""
    shutil.copytree(JUDGE, tmp_path / "judge")
    tensors = load_file(JUDGE / "judge.fp16.safetensors")
    tensors["pair.image_projection.weight"][0, 0] = torch.nan
    save_file(tensors, tmp_path / "judge" / "judge.fp16.safetensors")
    with pytest.raises(ValueError, match="judge.fp16.safetensors: holds numbers that are not finite"):
        load_judge("cpu", tmp_path / "judge")


def test_the_shipped_judge_is_small():
    """At most 3 MB, in float16."""
    assert sum(path.stat().st_size for path in JUDGE.iterdir()) < 3e6


@pytest.mark.slow
def test_the_shipped_pair_knows_shape_and_colour():
    """32 held-out pictures: is the right caption nearer than one with another colour, and one with another shape?"""
    score, right = ToyScore("cpu"), []
    for i in range(32):
        scene = sample_scene([5, i], held_out=True, things=1)
        thing, picture = scene.things[0], render(scene, [2.0])[0]
        shapes, colours = list(SHAPES), list(COLOURS)
        shape = shapes[(shapes.index(thing.shape) + 3) % 8]
        colour = colours[(colours.index(thing.colour) + 3) % 8]
        words = (thing.colour, thing.shape), (colour, thing.shape), (thing.colour, shape)
        fits = [score(picture, f"a {c} {s} {thing.motion}") for c, s in words]
        right.append([fits[0] > fits[1], fits[0] > fits[2]])
    assert (np.mean(right, axis=0) >= 0.9).all()                             # chance: 0.5


@pytest.mark.slow
def test_the_shipped_classifier_knows_motion():
    """Each motion once, of a blue cross: how many of ten are recognised? Chance: one."""
    network, right = Protocol(device="cpu").load()[0], []
    for motion in MOTIONS:
        clip = torch.from_numpy(render(scene_of("cross", "blue", motion, seed=3), frame_times(17, 4.0)))
        answers = network.answers(network(clip.permute(3, 0, 1, 2)[None].float(), return_features=True))
        right.append(CLASSES[2][answers[2].argmax()] == motion)
    assert sum(right) >= 9
