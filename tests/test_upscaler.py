"""Exercises for upscaler.py: one function frames -> frames, three things that can stand behind it."""
import pytest
import torch
from torch.testing import assert_close

import upscaler
from data import render, scene_of
from files import from_pixels
from microcinema import MicroCinema
from upscaler import SRVGG, load_upscaler


def test_a_network_of_zeros_repeats_each_pixel():
    """It adds to the picture enlarged by repetition. With nothing to add, what is the pixel in row 5, column 11?"""
    network = SRVGG()
    for p in network.parameters():
        p.data.zero_()
    x = torch.rand(1, 3, 2, 3)
    with torch.no_grad():
        large = network(x)
    assert large.shape == (1, 3, 8, 12) and torch.equal(large[..., 5, 11], x[..., 1, 2])    # breaks with bilinear


def test_the_sixteen_pixels_of_a_pixel_lie_in_their_places():
    """Pixel shuffle by hand: channel 16 c + 4 i + j goes to row i, column j of the 4 x 4."""
    network = SRVGG()
    network.body[-1].weight.data.zero_()
    network.body[-1].bias.data = torch.arange(48.0)
    with torch.no_grad():
        large = network(torch.zeros(1, 3, 1, 1))
    assert large[0, 2, 3, 1] == 16 * 2 + 4 * 3 + 1


@pytest.mark.parametrize("name", ["realesrgan", "lanczos"])
def test_enlarged_four_times_it_is_the_same_picture(name):
    """A drawn star, 64 pixels a side, and drawn again with 256: how near does enlarging come? Nearer than repeating."""
    scene = scene_of("star", "blue", "turning", seed=3)
    small, large = (from_pixels(torch.from_numpy(render(scene, [2.0], size))).permute(0, 3, 1, 2) for size in (64, 256))
    enlarged = load_upscaler(name, 4)(small)
    repeated = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert enlarged.shape == large.shape and enlarged.abs().max() <= 1
    edge = (repeated - large).abs() > 0.1                                    # where resolution shows
    assert (enlarged - large)[edge].abs().mean() < 0.8 * (repeated - large)[edge].abs().mean()
    assert (enlarged - large).abs().mean() < 0.03                            # breaks with BGR, or [0, 1] for [-1, 1]


def test_frames_are_enlarged_a_few_at_a_time():
    """Five frames, two at a time: what does the function see? And the result does not depend on it."""
    frames, seen = list(torch.rand(5, 3, 8, 8) * 2 - 1), []
    real = load_upscaler()

    def spy(some):
        seen.append(len(some))
        return real(some)
    by_two, at_once = (torch.stack(list(MicroCinema.upscale(iter(frames), spy, batch))) for batch in (2, 5))
    assert seen == [2, 2, 1, 5] and by_two.shape == (5, 3, 32, 32)
    assert_close(by_two, at_once, atol=1e-5, rtol=0)


def test_any_torchscript_file_goes_through_the_same_hook(tmp_path):
    """A network of somebody's: RGB in [0, 1] in and out. Its size is checked."""
    path = tmp_path / "twice.pt"
    torch.jit.script(torch.nn.Upsample(scale_factor=2.0)).save(path)
    x = torch.rand(1, 3, 4, 4) * 2 - 1
    assert_close(load_upscaler(str(path), 2)(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    with pytest.raises(ValueError, match="not 4 times"):
        load_upscaler(str(path), 4)(x)


def test_what_cannot_be_had_is_one_line(tmp_path):
    """Real-ESRGAN by 3, once as large, far too large, a file that is not there, that is no network, of other inputs."""
    (tmp_path / "no.pt").write_text("no network")
    torch.jit.script(torch.nn.Bilinear(2, 2, 2)).save(tmp_path / "two.pt")
    with pytest.raises(ValueError, match="two.pt: .*missing value") as e:    # breaks if a RuntimeError gets through
        load_upscaler(str(tmp_path / "two.pt"), 4)(torch.zeros(1, 3, 4, 4))
    assert "\n" not in str(e.value)
    for name, scale in (("realesrgan", 3), ("lanczos", 1), ("lanczos", 100_000), ("nowhere.pt", 4),
                        (str(tmp_path / "no.pt"), 4)):
        with pytest.raises(ValueError) as e:
            load_upscaler(name, scale)
        assert "upscale" in str(e.value) and "\n" not in str(e.value)


def test_a_cut_file_is_one_line_and_memory_is_not_the_networks_fault(tmp_path, monkeypatch):
    """Half of Real-ESRGAN's file. And a network that asks for a petabyte: microcinema.py knows what to say to that."""
    half = tmp_path / "half.safetensors"
    half.write_bytes(upscaler.REAL_ESRGAN.read_bytes()[:-1000])
    monkeypatch.setattr(upscaler, "REAL_ESRGAN", half)
    with pytest.raises(ValueError, match="half.safetensors: cannot be read"):
        load_upscaler()
    torch.jit.script(Greedy()).save(tmp_path / "greedy.pt")
    with pytest.raises(RuntimeError, match="allocate"):                      # breaks if it becomes a ValueError
        load_upscaler(str(tmp_path / "greedy.pt"))(torch.zeros(1, 3, 4, 4))


class Greedy(torch.nn.Module):
    def forward(self, x):
        return x + torch.zeros(1_000_000_000_000_000)
