"""Exercises for microcinema.py: what the stages pass on. Stubs and spies replace the networks, so nothing is drawn."""
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_microcinema import PROMPT, load_toy, spy, toy
from torch.testing import assert_close

from microcinema import Sampling, noise
from sampler import SAMPLERS

STAGES = ["key frame", "video", "tsr"]


def picture(b=1, size=128):
    """Key frames [b, 3, size, size]."""
    return torch.rand(b, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def run(stage, cinema, prompts=PROMPT, seeds=(1,), **options):
    """Runs one stage on small inputs: three frames, or two pairs of frames."""
    if stage == "key frame":
        return cinema.key_frame(prompts, seeds, **options)
    if stage == "video":
        return cinema.animate_latents(prompts, picture(len(seeds)), seeds, frames=3, **options)
    return cinema.interpolate_latents(torch.ones(len(seeds), 4, 3, 4, 4), prompts, seeds, **options)


def listening(said):
    """The toy model, with networks that predict zeros and record the text that they read."""
    model = lambda z_t, t, *rest: said.append(rest[-1]) or 0 * z_t
    model.down_blocks = load_toy().unet.down_blocks                          # settings() counts the levels
    return toy(unet=model, video=model, tsr=model)


@pytest.mark.parametrize("stage", STAGES)
def test_guidance_compares_the_prompt_with_the_empty_text(stage):
    """Scale 2: the rows of the empty text, then those of the prompt. Scale 1: the prompt alone."""
    said = []
    cinema = listening(said)
    for guidance in (2.0, 1.0):
        run(stage, cinema, steps=1, guidance=guidance)
    caption = f"8 fps, {PROMPT}" if stage == "tsr" else PROMPT
    text, empty = cinema.encode_text([caption]), cinema.encode_text([""])
    pairs = 2 if stage == "tsr" else 1
    both, one = said
    assert torch.equal(both, torch.cat([empty] * pairs + [text] * pairs))    # breaks if the prompt is its own opposite
    assert torch.equal(one, torch.cat([text] * pairs))


@pytest.mark.parametrize("stage, shift", [("key frame", 0.0), ("video", 0.5), ("tsr", 0.5)])
def test_the_settings_reach_the_solver(stage, shift, monkeypatch):
    """Steps, spacing, eta; lam z_c as the mean of fresh noise, without gamma; noise that z_T does not contain."""
    given = []
    monkeypatch.setitem(SAMPLERS, "ddim", lambda *inputs, **options: given.append((inputs, options)) or [inputs[1]])
    run(stage, toy(), sampler="ddim", steps=4, spacing="leading", eta=0.5, lam=0.5, gamma=0.25)
    (_, z_T, timesteps, schedule), options = given[0]
    z_c = {"key frame": 0 * z_T, "tsr": torch.ones_like(z_T), "video": load_toy().encode(picture())}[stage]
    assert timesteps == schedule.timesteps(4, "leading") and options["eta"] == 0.5
    assert_close(torch.as_tensor(options["shift"]).expand_as(z_T), (shift * z_c).expand_as(z_T))     # breaks with gamma
    assert options["noise"]().shape == z_T.shape
    assert not torch.equal(options["noise"](), z_T - 1.5 * shift * z_c)      # breaks if each step repeats the noise


def test_the_solver_is_the_one_that_was_asked_for(monkeypatch):
    """dpm++ takes neither eta nor noise."""
    asked = []
    monkeypatch.setitem(SAMPLERS, "dpm++", lambda *inputs, **options: asked.append(options) or [inputs[1]])
    run("video", toy(), sampler="dpm++", steps=3)
    assert asked == [{}]


def test_without_appearance_the_unet_is_alone_and_the_noise_plain():
    """appearance=False, lam = 0.5: is there anything of z_c left in the first z_t?"""
    asked = []
    video = SimpleNamespace(concat=False, unet=lambda z_t, t, text: asked.append(z_t) or 0 * z_t)
    run("video", toy(video=video), appearance=False, steps=1, lam=0.5, gamma=0.25)
    assert torch.equal(asked[0][:1], noise([1], (4, 3, 16, 16), "video")())


def test_without_appearance_a_concat_model_sees_zeros():
    """The U-Net of row "concat" has 8 channels in. appearance=False: which condition fills the last four?"""
    asked = []
    video = lambda z_t, t, z_c, text: asked.append(z_c) or 0 * z_t
    video.concat = True
    run("video", toy(video=video), appearance=False, steps=1)
    assert asked[0].abs().max() == 0                                         # breaks if the U-Net alone is called


def test_guidance_is_computed_in_float32():
    """The network computes in bfloat16, which has no number between 1 and 1 + 2^-7. With scale 1.1 the answer lies a
    tenth of that step above 1 + 2^-7."""
    network = lambda z_t, t, text: torch.tensor([1, 1 + 2**-7], dtype=z_t.dtype).view(2, 1, 1, 1, 1).expand_as(z_t)
    cinema, text, z_T = toy(), torch.zeros(1, 77, 4, dtype=torch.bfloat16), torch.zeros(1, 4, 1, 2, 2)
    s = replace(cinema.sampling, guidance=1.1, steps=1, sampler="ddim")
    z_0 = cinema.sample(network, z_T, text, text, s, None, 0.0, "test")
    ab = cinema.schedule.alpha_bar[999].item()
    assert_close(z_0, torch.full_like(z_T, -((1 - ab) / ab) ** 0.5 * (1 + 1.1 * 2**-7)))     # breaks in bfloat16


def test_in_a_batch_both_passes_have_each_clips_own_condition():
    """Two clips, two passes: z_c of the first, of the second, and again. Not two of the first and two of the second."""
    asked = []
    run("video", toy(video=spy(asked)), [PROMPT] * 2, [1, 2], steps=1, guidance=2.0)
    z_c = load_toy().encode(picture(2))
    assert torch.equal(asked[0][1], torch.cat([z_c, z_c]))                   # breaks with repeat_interleave


def test_in_a_batch_each_pair_of_frames_reads_its_own_clips_prompt():
    """Two clips of two pairs each: the rows are clip by clip."""
    said = []
    cinema = listening(said)
    run("tsr", cinema, ["a blue star", PROMPT], [1, 2], steps=1, guidance=1.0)
    one, two = (cinema.encode_text([f"8 fps, {prompt}"]) for prompt in ("a blue star", PROMPT))
    assert torch.equal(said[0], torch.cat([one, one, two, two]))             # breaks with repeat


def test_temporal_super_resolution_has_settings_of_its_own():
    """Its solver takes three steps, the video's one. A video of 3 frames a second becomes one of 12."""
    asked, said = [], []
    cinema = toy(tsr=spy(asked), video=None, sampling=replace(load_toy().sampling, steps=1, fps=3.0),
                 tsr_sampling=Sampling(frames=5, steps=3))
    cinema.encode_text = lambda prompts: said.extend(filter(None, prompts)) or load_toy().encode_text(prompts)
    run("tsr", cinema)
    assert len(asked) == 3 and said == [f"12 fps, {PROMPT}"]                 # breaks with tsr_sampling's own fps


def test_three_frames_go_between_two_whatever_the_length_of_the_video():
    """The command line passes on --frames, which is the video's. Two pairs become 4 + 4 + 1 frames."""
    assert run("tsr", toy(tsr=spy([])), steps=1, frames=7).shape[2] == 9     # breaks if 7 go between


@pytest.mark.parametrize("stage", STAGES)
def test_latents_that_are_not_finite_are_refused(stage):
    """A network that predicts infinity. Is it one line that says which stage?"""
    model = lambda z_t, *rest: z_t + float("inf")
    model.down_blocks = load_toy().unet.down_blocks
    with pytest.raises(ValueError, match="numbers grew"):
        run(stage, toy(unet=model, video=model, tsr=model), steps=2)


# ---- settings ----

@pytest.mark.parametrize("change", [{"size": 0}, {"size": 8}, {"size": 100}, {"steps": 0}, {"frames": 0}, {"eta": 1.5},
                                    {"eta": -0.5}, {"eta": 0.5, "sampler": "dpm++"}, {"sampler": "euler"},
                                    {"lam": float("inf")}, {"gamma": float("nan")}, {"guidance": -float("inf")}],
                         ids=str)
def test_impossible_settings_are_refused(change):
    """Each of them before any network is asked."""
    with pytest.raises(ValueError, match="want"):
        load_toy().settings(**change)


def test_none_leaves_a_setting_as_it_is():
    """The command line gives None for an option that is not there."""
    assert load_toy().settings(steps=None, eta=None) == load_toy().sampling


def test_a_key_frame_too_small_for_the_unet_is_refused():
    """8 pixels are one latent, which the U-Net cannot halve."""
    with pytest.raises(ValueError, match="size 8: want a multiple"):
        load_toy().animate_latents(PROMPT, picture(size=8))


# ---- from latents to frames ----

def decoder():
    """The toy model with an autoencoder that shows the first three channels of z as they are. Its scale is 0.5."""
    return toy(vae=SimpleNamespace(scale=0.5, decode=lambda z: z[:, :3], parameters=lambda: iter([torch.zeros(1)])))


def test_decode_undoes_the_scale_and_clamps():
    """Eleven frames, more than are decoded at once. Is every frame there, divided by 0.5, and within -1 to 1?"""
    z = torch.linspace(-2, 2, 2 * 4 * 11 * 2 * 3).view(2, 4, 11, 2, 3)
    assert_close(decoder().decode(z, batch=2), (2 * z[:, :3]).clamp(-1, 1))  # breaks with z * scale


@pytest.mark.parametrize("batch", [2, 9])
def test_given_frames_are_not_decoded(batch):
    """Nine frames; pictures for 0, 4 and 8. Which frames are pictures, and which come from z?"""
    z = torch.linspace(-0.4, 0.4, 4 * 9 * 2 * 2).view(4, 9, 2, 2)
    given = (7 + torch.arange(3.0)).view(1, 3, 1, 1).expand(3, 3, 2, 2)
    frames = list(decoder().decode_frames(z, given, 4, batch))
    assert len(frames) == 9
    for k, frame in enumerate(frames):
        assert_close(frame, 2 * z[:3, k] if k % 4 else given[:, k // 4])     # breaks with the other frames decoded


def test_the_upscaler_gets_a_batch_at_a_time():
    """Five frames, four at once: four, and then one."""
    sizes = []
    upscaled = list(load_toy().upscale(torch.ones(5, 3, 2, 2), lambda x: sizes.append(len(x)) or 2 * x))
    assert sizes == [4, 1] and len(upscaled) == 5 and upscaled[4].eq(2).all()
