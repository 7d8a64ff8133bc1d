"""Exercises on evaluation/inception_score.py: which clips score high, and what do the splits do?"""
import math

import numpy as np
import pytest
import torch
from test_fvd import clips

from evaluation import inception_score as command
from evaluation.inception_score import inception_score


class FakeClassifier(torch.nn.Module):
    """Dark clips are of class 0, bright ones of class 1, with certainty; features are the brightness."""
    def forward(self, x, rescale: bool = True, resize: bool = True, return_features: bool = True):
        mean = x.mean((1, 2, 3, 4))[:, None]
        bright = (mean > 100).float()
        return mean if return_features else torch.cat([1 - bright, bright], dim=1)


def test_certain_and_varied_clips_score_the_number_of_classes():
    """Four clips, each surely of a class of its own: 4. All of one class: 1. All undecided: 1."""
    assert inception_score(torch.eye(4), 1)[0] == pytest.approx(4)
    assert inception_score(torch.eye(4)[[0, 0, 0]], 1)[0] == pytest.approx(1)
    assert inception_score(torch.full((3, 4), 0.25), 1)[0] == pytest.approx(1)


def test_one_clip_of_two_by_hand():
    """p = (1, 0) and (1/2, 1/2): the mean is (3/4, 1/4), the KL divergences ln 4/3 and (ln 2/3 + ln 2) / 2."""
    by_hand = math.exp((math.log(4 / 3) + (math.log(2 / 3) + math.log(2)) / 2) / 2)
    assert inception_score(torch.tensor([[1, 0], [0.5, 0.5]]), 1)[0] == pytest.approx(by_hand)       # breaks with nan


@pytest.mark.parametrize("splits, golden", [(1, (2.163070585607364, 0)),
                                            (4, (2.0224444468557365, 0.32776309585368923))])
def test_it_agrees_with_an_independent_implementation(splits, golden):
    """Golden numbers: scipy.stats.entropy (SciPy 1.17.1) over numpy.array_split (NumPy 2.4.6) of these 25 rows."""
    p = np.random.default_rng(6).dirichlet(np.full(7, 0.3), size=25)
    assert inception_score(torch.from_numpy(p), splits) == pytest.approx(golden, rel=1e-10)  # breaks with n - 1


def test_rows_that_are_no_probabilities_are_refused():
    """A network that returns logits, and fewer clips than splits."""
    with pytest.raises(ValueError, match="no probabilities"):
        inception_score(torch.tensor([[3.0, -1.0], [0.5, 0.5]]), 1)
    with pytest.raises(ValueError, match="2 clips in 10 splits"):
        inception_score(torch.eye(2), 10)


def test_the_command_asks_for_classes_not_features(tmp_path, capsys):
    """Two dark clips and two bright ones: IS is 2. Two splits have one kind each: 1, with deviation 0."""
    torch.jit.script(FakeClassifier()).save(tmp_path / "fake.pt")
    folder = clips(tmp_path / "clips", [20, 30, 150, 160])

    def score(splits):
        assert command.main([str(folder), "--network", str(tmp_path / "fake.pt"), "--splits", str(splits), "--device",
                             "cpu", "--frames", "10", "--fps", "10", "--size", "16"]) == 0
        return capsys.readouterr().out
    assert score(1).startswith("IS 2.00 +- 0.00 over 1 splits (4 clips; network fake.pt")
    assert score(2).startswith("IS 1.00 +- 0.00 over 2 splits")
