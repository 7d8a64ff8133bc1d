"""Exercises for upscaler/network.py: one function frames -> frames, and three upscalers behind it."""
import pytest
import torch
from torch.testing import assert_close

from data.media import from_pixels
from data.toyset import render, scene_of
from microcinema import MicroCinema
from upscaler import network
from upscaler.network import SRVGG, load_upscaler


def test_a_network_of_zeros_repeats_each_pixel():
    """The network adds to the picture in which each pixel is repeated. If it adds zero, what is row 5, column 11?"""
    srvgg = SRVGG()
    for p in srvgg.parameters():
        p.data.zero_()
    x = torch.rand(1, 3, 2, 3)
    with torch.no_grad():
        large = srvgg(x)
    assert large.shape == (1, 3, 8, 12) and torch.equal(large[..., 5, 11], x[..., 1, 2])    # breaks with bilinear


def test_pixel_shuffle_puts_the_sixteen_pixels_in_their_places():
    """By hand: channel 16 c + 4 i + j goes to row i, column j of the 4 x 4."""
    srvgg = SRVGG()
    srvgg.body[-1].weight.data.zero_()
    srvgg.body[-1].bias.data = torch.arange(48.0)
    with torch.no_grad():
        large = srvgg(torch.zeros(1, 3, 1, 1))
    assert large[0, 2, 3, 1] == 16 * 2 + 4 * 3 + 1


@pytest.mark.parametrize("name", ["realesrgan", "lanczos"])
def test_enlarged_four_times_it_is_the_same_picture(name):
    """A star is drawn with 64 pixels a side, and again with 256. Is the enlarged star nearer to it than repeating?"""
    scene = scene_of("star", "blue", "turning", seed=3)
    small, large = (from_pixels(torch.from_numpy(render(scene, [2.0], size))).permute(0, 3, 1, 2) for size in (64, 256))
    enlarged = load_upscaler(name, 4)(small)
    repeated = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert enlarged.shape == large.shape and enlarged.abs().max() <= 1
    edge = (repeated - large).abs() > 0.1                                    # resolution shows at the edges
    assert (enlarged - large)[edge].abs().mean() < 0.8 * (repeated - large)[edge].abs().mean()
    assert (enlarged - large).abs().mean() < 0.03                            # breaks with BGR, or [0, 1] for [-1, 1]


def test_frames_are_enlarged_a_few_at_a_time():
    """Five frames, two at a time: how many does the function see? Is the result that of all five at once?"""
    frames, seen = list(torch.rand(5, 3, 8, 8) * 2 - 1), []
    real = load_upscaler()

    def spy(some):
        seen.append(len(some))
        return real(some)
    by_two, at_once = (torch.stack(list(MicroCinema.upscale(iter(frames), spy, batch))) for batch in (2, 5))
    assert seen == [2, 2, 1, 5] and by_two.shape == (5, 3, 32, 32)
    assert_close(by_two, at_once, atol=1e-5, rtol=0)


def test_any_torchscript_file_can_be_the_upscaler(tmp_path):
    """A network of your own takes and returns RGB in [0, 1]. Is the size of its pictures checked?"""
    path = tmp_path / "twice.pt"
    torch.jit.script(torch.nn.Upsample(scale_factor=2.0)).save(path)
    x = torch.rand(1, 3, 4, 4) * 2 - 1
    assert_close(load_upscaler(str(path), 2)(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    with pytest.raises(ValueError, match="not 4 times"):
        load_upscaler(str(path), 4)(x)


def test_a_network_with_other_inputs_is_one_line(tmp_path):
    """A TorchScript network with two inputs: is its long error one line that names the file?"""
    torch.jit.script(torch.nn.Bilinear(2, 2, 2)).save(tmp_path / "two.pt")
    with pytest.raises(ValueError, match="two.pt: .*missing value") as e:    # breaks if a RuntimeError gets through
        load_upscaler(str(tmp_path / "two.pt"), 4)(torch.zeros(1, 3, 4, 4))
    assert "\n" not in str(e.value)


def test_an_impossible_upscaler_is_one_line(tmp_path):
    """Real-ESRGAN by 3, Lanczos by 1 and by far too much, a file that is missing, a file without a network."""
    (tmp_path / "no.pt").write_text("no network")
    for name, scale in (("realesrgan", 3), ("lanczos", 1), ("lanczos", 100_000), ("nowhere.pt", 4),
                        (str(tmp_path / "no.pt"), 4)):
        with pytest.raises(ValueError) as e:
            load_upscaler(name, scale)
        assert "upscale" in str(e.value) and "\n" not in str(e.value)


def test_a_truncated_file_is_one_line(tmp_path, monkeypatch):
    """Real-ESRGAN's file without its last 1000 bytes."""
    half = tmp_path / "half.safetensors"
    half.write_bytes(network.REAL_ESRGAN.read_bytes()[:-1000])
    monkeypatch.setattr(network, "REAL_ESRGAN", half)
    with pytest.raises(ValueError, match="half.safetensors: cannot be read"):
        load_upscaler()


def test_a_lack_of_memory_is_not_the_networks_fault(tmp_path):
    """A network allocates a petabyte. The command knows what to advise, so the error must reach it unchanged."""
    torch.jit.script(Greedy()).save(tmp_path / "greedy.pt")
    with pytest.raises(RuntimeError, match="allocate"):                      # breaks if it becomes a ValueError
        load_upscaler(str(tmp_path / "greedy.pt"))(torch.zeros(1, 3, 4, 4))


class Greedy(torch.nn.Module):
    def forward(self, x):
        return x + torch.zeros(1_000_000_000_000_000)
