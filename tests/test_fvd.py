"""Exercises on evaluation/fvd.py and windows.py: which number is FVD, of which frames, and when is it worth little?"""
import numpy as np
import pytest
import torch
from test_folder import describe, write_clip

from evaluation import fvd
from evaluation.fvd import Statistics, frechet_distance
from evaluation.windows import Protocol, Windows, run_network


class FakeI3D(torch.nn.Module):
    """Stands in for I3D: its features are the mean colour of a clip, in 0-255, and its change from start to end."""
    def forward(self, x, rescale: bool = True, resize: bool = True, return_features: bool = True):
        ends = (x[:, :, -1] - x[:, :, 0]).mean((1, 2, 3))
        return torch.cat([x.mean((2, 3, 4)), ends[:, None]], dim=1)


@pytest.fixture
def network(tmp_path):
    """The file of a network with I3D's call."""
    torch.jit.script(FakeI3D()).save(tmp_path / "fake.pt")
    return tmp_path / "fake.pt"


def clips(folder, shades, count=10, **more):
    """Writes a clip of `count` frames at 10 fps for each shade: frame k has the grey shade + k. Returns the folder."""
    for number, shade in enumerate(shades):
        write_clip(folder / f"{number}.webp", count, shade=lambda k: shade + k, **more)
    return folder


def run(*argv):
    """The exit code of the command."""
    return fvd.main([*map(str, argv), "--device", "cpu"])


def features(seed, count, d, rank, shift):
    """Random features [count, d] whose covariance has this rank."""
    random = np.random.default_rng(seed)
    return random.standard_normal((count, rank)) @ random.standard_normal((rank, d)) + shift * np.arange(d)


def distance(x, y):
    """The Frechet distance of two arrays of features."""
    return frechet_distance(*(Statistics().add(torch.from_numpy(rows)) for rows in (x, y)))


# Golden numbers: means, covariances and eigenvalues of S C_b S with 60 digits, by mpmath 1.4.1, for these features of
# NumPy 2.4.6. scipy.linalg.sqrtm (SciPy 1.17.1) agrees for the first to 14 digits; on the others it loses half of them.
@pytest.mark.parametrize("a, b, golden", [
    ((0, 50, 6, 6, 0), (1, 40, 6, 6, 0.1), 11.3150531768214),
    ((2, 50, 12, 5, 0), (3, 40, 12, 5, 0.1), 71.4315293760823),              # rank 5 of 12
    ((4, 7, 12, 12, 0), (5, 6, 12, 12, 0.1), 228.934174363377)],             # fewer clips than features
    ids=["full rank", "singular", "few clips"])
def test_the_frechet_distance_agrees_with_60_digits(a, b, golden):
    """Is the distance right to 1e-6, if a covariance is singular, too?"""
    assert distance(features(*a), features(*b)) == pytest.approx(golden, rel=1e-7)       # breaks with sqrt(eig(C C))


def test_the_frechet_distance_survives_a_nearly_singular_covariance():
    """Seven of twelve eigenvalues are 1e-14 of the others. SciPy's matrix root errs in the eighth digit here."""
    random = np.random.default_rng(9)
    x, y = (features(*case) + 1e-7 * random.standard_normal((len(features(*case)), 12))
            for case in ((2, 50, 12, 5, 0), (3, 40, 12, 5, 0.1)))
    assert distance(x, y) == pytest.approx(71.4315293554061, rel=1e-7)


def test_one_dimension_by_hand():
    """In one dimension it is (difference of means)^2 + (difference of deviations)^2: 3^2 + (sqrt 8 - sqrt 2)^2."""
    assert distance(np.array([[0.0], [2.0]]), np.array([[2.0], [6.0]])) == pytest.approx(9 + 2)


def test_batches_give_the_statistics_of_all_rows_at_once():
    """Rows far from zero, in batches of 7: the same mean and covariance as NumPy's of all?"""
    x = 1e6 + features(0, 50, 4, 4, 0)                                       # breaks with E[x^2] - E[x]^2
    statistics = Statistics()
    for rows in torch.from_numpy(x).split(7):
        statistics.add(rows)
    np.testing.assert_allclose(statistics.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(x, rowvar=False), rtol=1e-9)


def test_a_window_is_the_middle_of_the_clip(tmp_path):
    """21 frames of 0.1 s, shades 0 to 20: five at 5 fps are a second in the middle, and are seen in their middle."""
    clips(tmp_path, [0, 0], 21)
    shown = Windows(tmp_path, Protocol(frames=5, fps=5.0, size=8))[0]
    assert shown.shape == (5, 8, 8, 3) and shown.dtype == torch.uint8
    assert shown[:, 4, 4, 0].tolist() == [6, 8, 10, 12, 14]                  # breaks if it begins at 0


def test_a_clip_of_one_picture_stands_still(tmp_path):
    """WebP stores equal frames as one, without a duration. Is such a clip as long as any window?"""
    for name in ("a.webp", "b.webp"):
        write_clip(tmp_path / name, 12, shade=lambda k: 90)
    shown = Windows(tmp_path, Protocol(frames=12, fps=10.0, size=8))[1]
    assert shown.shape == (12, 8, 8, 3) and (shown == shown[0]).all()


def test_the_network_sees_pixels_from_0_to_255(network):
    """White clips: is the mean colour that the network is given 255, for each channel?"""
    x = torch.full((2, 10, 8, 8, 3), 255, dtype=torch.uint8)
    assert run_network(torch.jit.load(network), x, "cpu").tolist() == [[255, 255, 255, 0]] * 2     # breaks in [-1, 1]


def test_the_command_prints_number_and_protocol(tmp_path, network, capsys):
    """Two sides whose mean grey differs by 20 in three channels: 3 * 20^2. Is the protocol printed, too?"""
    real, ours = clips(tmp_path / "real", [40, 50, 60]), clips(tmp_path / "ours", [60, 70, 80])
    assert run(real, ours, "--network", network, "--frames", 10, "--fps", 10, "--size", 16) == 0
    output = capsys.readouterr().out
    assert float(output.split()[1]) == pytest.approx(1200, rel=0.02)
    for words in ("3 against 3 clips", "network fake.pt (sha256 ", "frames 10, fps 10.0, size 16, window one a clip"):
        assert words in output
    assert "3 clips for 4 features: a covariance is singular" in output


def test_saved_statistics_stand_for_their_folder(tmp_path, network, capsys):
    """The first command saves. Does a second one, with the file instead of the folder, print the same number?"""
    real, ours = clips(tmp_path / "real", [40, 50, 70]), clips(tmp_path / "ours", [60, 70, 80])
    options = "--network", network, "--frames", 10, "--fps", 10, "--size", 16
    assert run(real, ours, *options, "--save", tmp_path / "real.safetensors") == 0
    first = capsys.readouterr().out
    assert run(tmp_path / "real.safetensors", ours, *options) == 0
    assert capsys.readouterr().out == first
    assert run(tmp_path / "real.safetensors", ours, *options[:-1], 8) == 2                   # breaks if none compares
    assert "was computed with size 16, not 8" in capsys.readouterr().err


def test_a_difference_between_the_sides_is_warned_of(tmp_path, network, capsys):
    """Other sizes, other numbers of clips, and a side at half the rate, in which every second frame is a repetition."""
    real = clips(tmp_path / "real", [40, 50, 60], 24)
    ours = clips(tmp_path / "ours", [60, 70], 14, size=(24, 24), milliseconds=200)
    assert run(real, ours, "--network", network, "--frames", 12, "--fps", 10, "--size", 16) == 0
    output = capsys.readouterr().out
    for words in ("pixels, ", "3 clips against 2", "repeat the one before"):
        assert words in output


@pytest.mark.parametrize("words, frames, folder", [
    ("wants 10 frames or more", 9, "real"), ("ends before", 40, "real"), ("no such folder", 10, "nowhere"),
    ("has 0 clips; want 2 or more", 10, "empty")])
def test_a_wrong_request_is_refused_in_one_line(tmp_path, network, capsys, words, frames, folder):
    """Too few frames for I3D, too many for the clips, no folder, no clips."""
    clips(tmp_path / "real", [40, 50])
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / folder, tmp_path / "real", "--network", network, "--frames", frames, "--fps", 10) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("python -m evaluation.fvd: ") and words in message


def test_a_file_that_is_no_network_is_refused(tmp_path, capsys):
    """A text file as --network: one line, and no traceback?"""
    clips(tmp_path / "real", [40, 50])
    (tmp_path / "net.pt").write_text("no network")
    assert run(tmp_path / "real", tmp_path, "--network", tmp_path / "net.pt") == 2
    assert "not a TorchScript file" in capsys.readouterr().err


def test_a_note_beside_the_clips_is_no_clip(tmp_path):
    """Two clips without captions, and a README.txt: which paths are clips?"""
    (clips(tmp_path, [0, 100]) / "README.txt").write_text("two clips")
    names = [path.name for path in Windows(tmp_path, Protocol(None, 10, 10, 8)).paths]
    assert names == ["0.webp", "1.webp"]                                     # breaks if the note is a caption


def test_captions_say_which_clips_count(tmp_path):
    """Three clips, two named in metadata.jsonl, one of them without a caption. CLIPSIM needs captions, FVD does not."""
    clips(tmp_path, [10, 20, 30])
    describe(tmp_path, **{"1__webp": "a dusk", "2__webp": ""})
    assert [path.name for path in Windows(tmp_path, Protocol()).paths] == ["1.webp", "2.webp"]
    with pytest.raises(ValueError, match="has 1 clips with captions"):
        Windows(tmp_path, Protocol(), with_captions=True)
