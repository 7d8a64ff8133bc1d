"""Exercises for microcinema.py: the three stages and how a model folder is read. test_microcinema_command.py has the
command line."""
import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_unet3d import error, golden
from test_vae import golden as golden_vae
from torch import nn
from torch.testing import assert_close

from data.media import from_pixels
from data.toyset import ToySet, render, sample_scene
from microcinema import MicroCinema, encode_video, noise, tsr_condition
from sampler import NoiseSchedule, ddim, guide
from sd21.weights import COMPONENTS, resolve_components

ROOT, REFERENCE = Path(__file__).parents[1], Path(__file__).parent / "reference"
PROMPT = "a red circle moving left"


@cache
def load_toy():
    """The model that ships, read once for all tests. No test changes it."""
    return MicroCinema.load(ROOT / "toy")


def toy(**changes):
    """The toy model, with some of its parts replaced."""
    parts = {name: part for name, part in vars(load_toy()).items() if name != "replay"}
    return MicroCinema(**parts | changes)


def spy(asked):
    """An f_theta that predicts zeros and records what it is asked: (z_t, condition)."""
    return lambda z_t, t, condition, text: asked.append((z_t, condition)) or 0 * z_t


def pictures(*seconds):
    """Frames of a toy scene at these seconds: [1, 3, n, 128, 128] in [-1, 1]."""
    frames = torch.from_numpy(render(sample_scene(3, things=1), seconds))
    return from_pixels(frames).permute(3, 0, 1, 2)[None]


def trained_components(folder, **changes):
    """A folder as train.py might write it: these components of the toy model, with every tensor halved, and these
    changes of their configs."""
    for name, change in changes.items():
        shutil.copytree(ROOT / "toy" / name, folder / name)
        for file in (folder / name).glob("*.safetensors"):
            save_file({tensor: x / 2 for tensor, x in load_file(file).items()}, file)
        for file in (folder / name).glob("*.json"):
            file.write_text(json.dumps(json.loads(file.read_text()) | change))
    return folder


# ---- key frame and video ----

@torch.no_grad()
def test_the_golden_pipeline():
    """Guided DDIM with the golden U-Net and autoencoder, four leading steps at 7.5, against diffusers: each latent."""
    (unet, _, _), (vae, _, _) = golden(temporal=False), golden_vae()
    io = load_file(REFERENCE / "pipeline_tiny.io.safetensors")
    schedule = NoiseSchedule()
    model = guide(unet, 7.5, io["cond"], io["uncond"])
    timesteps = schedule.timesteps(4, "leading")
    for i, z in enumerate(ddim(model, io["latents.0"][:, :, None], timesteps, schedule)):
        assert error(z[:, :, 0], io[f"latents.{i + 1}"]) < 1e-4              # breaks: cond + w (cond - uncond)
    assert error(vae.decode(z[:, :, 0] / 0.18215), io["image"]) < 1e-4


@pytest.mark.slow
def test_law_4_a_seed_gives_the_same_key_frame_in_any_batch():
    """Seed 5 alone, and seed 5 as the second of two: the same, to float32 rounding?"""
    keys = toy().key_frame([PROMPT, "a blue star turning"], [4, 5], steps=3)
    alone = toy().key_frame(["a blue star turning"], [5], steps=3)
    assert_close(keys[1:], alone, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_law_4_a_seed_gives_the_same_video_in_any_batch():
    """The same with fresh noise at every step. Does another seed give another video?"""
    options = dict(sampler="ddim", steps=3, frames=3, eta=0.7)
    keys = toy().key_frame([PROMPT, "a blue star turning"], [4, 5], steps=3)
    both = toy().animate([PROMPT, "a blue star turning"], keys, [4, 5], **options)
    assert_close(both[1:], toy().animate(["a blue star turning"], keys[1:], [5], **options), atol=1e-3, rtol=0)
    other = toy().animate([PROMPT], keys[:1], [6], **options)
    assert (both[:1] - other).abs().max() > 0.01                             # breaks if seeds are ignored


@pytest.mark.slow
def test_no_result_keeps_its_graph():
    """Called outside torch.no_grad(), as a user calls them. A result that keeps its graph keeps the outputs of all
    layers in memory: 24 GiB for 16 videos."""
    picture = toy().key_frame([PROMPT], steps=1)
    video = toy().animate([PROMPT], picture, steps=1)
    z = toy().encode(picture)
    assert not any(x.requires_grad for x in (picture, video, z, toy().decode(z)))


def test_a_string_is_a_list_of_one_prompt():
    """One string, or a list that holds it: the same picture?"""
    one, other = (toy().key_frame(prompts, steps=1) for prompts in (PROMPT, [PROMPT]))
    assert torch.equal(one, other)                                           # breaks if every letter is a prompt


@pytest.mark.parametrize("call", [
    lambda toy: toy.key_frame([PROMPT, PROMPT]), lambda toy: toy.animate(PROMPT, torch.zeros(2, 3, 128, 128)),
    lambda toy: toy.interpolate(torch.zeros(1, 3, 2, 128, 128), [PROMPT, PROMPT], [1, 2])],
    ids=["key_frame", "animate", "interpolate"])
def test_each_prompt_needs_its_seed_and_picture(call):
    """Two sentences for one seed, two pictures for one sentence, two sentences for one video."""
    with pytest.raises(ValueError, match="want as many of each"):
        call(toy())


def test_noise_differs_by_stage_and_call():
    """The two stages of one seed must not share their noise: z_T would then know the noise of the key frame."""
    a, b = noise([3], (4,), "key frame"), noise([3], (4,), "video")
    first = a()
    assert not torch.equal(first, b()) and not torch.equal(first, a())


def test_a_seed_has_the_same_noise_in_any_batch():
    """Seed 3 alone, and behind seed 9."""
    assert torch.equal(noise([3], (4,), "key frame")(), noise([9, 3], (4,), "key frame")()[1:])


@pytest.mark.slow
def test_latents_of_the_toy_have_unit_variance():
    """lambda and gamma have a meaning only if z has the scale of the noise. Over 64 key frames?"""
    dataset = ToySet(64, frames=1, seed=9)
    with torch.inference_mode():
        z = toy().encode(torch.stack([from_pixels(dataset[i]["frames"][:, 0]) for i in range(64)]))
    assert 0.85 < z.pow(2).mean().sqrt() < 1.15                              # breaks with SD2.1's factor, 0.18215


@torch.no_grad()
def test_encode_video_encodes_frame_by_frame():
    """Two videos of three frames that differ: is each frame's latent where the frame was, and scaled?"""
    vae, x = load_toy().vae, torch.randn(2, 3, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    z = encode_video(vae, x)
    assert z.shape == (2, 4, 3, 2, 3)
    for i in range(3):
        assert_close(z[:, :, i], vae.encode(x[:, :, i])[0] * vae.scale, atol=1e-5, rtol=1e-5)    # breaks: x.reshape


def test_the_noise_prior_is_in_the_start_and_stays_in_both_passes():
    """Record what f_theta is asked first: z_T - eps_n = (lam + gamma) z_c, and both passes have the same condition."""
    key, asked = toy().key_frame([PROMPT], [1], steps=2), []
    toy(video=spy(asked)).animate([PROMPT], key, [1], steps=1, lam=0.5, gamma=0.25)
    z_t, condition = asked[0]
    with torch.inference_mode():
        z_c, eps_n = toy().encode(key), noise([1], (4, 9, 16, 16), "video")()
    assert len(z_t) == 2 and torch.equal(condition[0], condition[1])
    assert_close(z_t[:1], eps_n + 0.75 * z_c, atol=1e-5, rtol=1e-5)          # breaks if gamma is forgotten


@pytest.mark.slow
def test_a_v_prediction_model_can_be_sampled():
    """A network that predicts v is the same as one that predicts eps = sqrt(ab) v + sqrt(1 - ab) z_t: same video?"""
    schedule = NoiseSchedule(prediction_type="v_prediction")

    def predicts_v(unet):
        def model(z_t, t, *rest):
            ab = schedule.alpha_bar_at(t, z_t)
            return (unet(z_t, t, *rest) - (1 - ab) ** 0.5 * z_t) / ab ** 0.5
        model.down_blocks = load_toy().unet.down_blocks                      # settings() counts the levels
        return model
    v = toy(unet=predicts_v(load_toy().unet), video=predicts_v(load_toy().video), schedule=schedule)
    options = dict(steps=6, guidance=1.0)                                    # w > 1 would exaggerate rounding
    key = toy().key_frame([PROMPT], [2], **options)
    assert_close(v.key_frame([PROMPT], [2], **options), key, atol=2e-2, rtol=0)
    assert_close(v.animate([PROMPT], key, [2], **options), toy().animate([PROMPT], key, [2], **options), atol=2e-2,
                 rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype, most", [(torch.bfloat16, 0.08), (torch.float16, 0.02)])
def test_half_precision_draws_the_same_picture(dtype, most):
    """Networks in 16 bits, the steps of the sampler in 32. How far is a key frame from float32's? Pixels in [-1, 1]."""
    key = toy().key_frame([PROMPT], [1], steps=4)
    half = MicroCinema.load(ROOT / "toy", dtype=dtype).key_frame([PROMPT], [1], steps=4)
    assert half.dtype == torch.float32
    assert 0 < (half - key).abs().mean() < most


# ---- model folders ----

@pytest.mark.slow
@pytest.mark.parametrize("changes", [
    {"video": {"sampling": {"steps": 7, "size": 64}}, "tsr": {"sampling": {"guidance": 2.5}}},
    {"vae": {"scaling_factor": 0.3}, "scheduler": {"prediction_type": "v_prediction"}},
    {"unet": {}, "text_encoder": {}, "tokenizer": {}}], ids=", ".join)
def test_an_overlay_is_the_model_with_these_folders_copied_into_it(tmp_path, changes):
    """The same by hand: copy the toy model, and the trained folders over it. Are all tensors and settings the same?"""
    mine, by_hand = trained_components(tmp_path / "mine", **changes), tmp_path / "by hand"
    for folder in (ROOT / "toy", mine):
        shutil.copytree(folder, by_hand, dirs_exist_ok=True)
    places = {name: component.place for name, component in resolve_components(ROOT / "toy", mine).items()}
    assert places == {name: mine if name in changes else ROOT / "toy" for name in COMPONENTS}
    overlaid, copied = MicroCinema.load(ROOT / "toy", overlay=mine), MicroCinema.load(by_hand)
    for name in ("text_encoder", "vae", "unet", "video", "tsr"):
        assert_close(getattr(overlaid, name).state_dict(), getattr(copied, name).state_dict(), rtol=0, atol=0)
    settings = lambda cinema: (cinema.vae.scale, cinema.schedule.prediction_type, cinema.sampling, cinema.tsr_sampling)
    assert settings(overlaid) == settings(copied)                            # breaks if the scale is the model's own


# ---- temporal super-resolution ----

def test_the_condition_goes_from_one_frame_to_the_other_in_even_steps():
    """Five frames from 0 to 8, by hand."""
    z_bar = tsr_condition(torch.zeros(2, 4, 3, 1), torch.full((2, 4, 3, 1), 8.0), 5)
    assert z_bar.shape == (2, 4, 5, 3, 1) and z_bar[1, 2, :, 0, 0].tolist() == [0, 2, 4, 6, 8]


def test_nine_frames_become_33_become_129():
    """Sec. 3.1, 2 to 8 to 32 fps: 8 pairs of 4 and the last, 32 of 4 and the last. Where are the given frames?"""
    z, cinema = torch.randn(1, 4, 9, 4, 4), toy(tsr=spy([]))
    first = cinema.interpolate_latents(z, [PROMPT], steps=1)
    second = cinema.interpolate_latents(first, [PROMPT], steps=1, fps=8)
    assert first.shape[2] == 33 and second.shape[2] == 129
    assert torch.equal(first[:, :, ::4], z) and torch.equal(second[:, :, ::16], z)     # breaks if a seam is off by one


@pytest.mark.slow
def test_given_pictures_come_back_untouched_and_nothing_is_done_twice():
    """Three pictures, two rounds: 33 frames. How many pictures are encoded, how many frames decoded?"""
    given, counts = pictures(0.0, 2.0, 4.0), {"encode": 0, "decode": 0}
    vae = load_toy().vae

    class Counting:
        factor, scale, parameters = vae.factor, vae.scale, vae.parameters

        def encode(self, x):
            counts["encode"] += len(x)
            return vae.encode(x)

        def decode(self, z):
            counts["decode"] += len(z)
            return vae.decode(z)
    video = toy(vae=Counting()).interpolate(given, [PROMPT], rounds=2, steps=1)
    assert video.shape == (1, 3, 33, 128, 128) and torch.equal(video[:, :, ::16], given)
    assert counts == {"encode": 3, "decode": 30}                             # breaks if rounds go through pixels


def test_one_picture_has_nothing_to_interpolate():
    """A video of one frame has no pair."""
    with pytest.raises(ValueError, match="2 or more"):
        toy().interpolate(pictures(1.0), [PROMPT])


@pytest.mark.slow
def test_law_4_how_many_pairs_at_once_does_not_matter():
    """Four pairs: one by one, three and one, all at once, with fresh noise at each step. The same frames?"""
    z, options = torch.randn(1, 4, 5, 16, 16), dict(sampler="ddim", steps=2, eta=0.5)
    one, three, all_four = (toy().interpolate_latents(z, [PROMPT], [7], pairs, **options) for pairs in (1, 3, 4))
    assert_close(one, three, atol=1e-3, rtol=0)
    assert_close(one, all_four, atol=1e-3, rtol=0)
    other = toy().interpolate_latents(z, [PROMPT], [8], 4, **options)
    assert (one - other).abs().max() > 0.01                                  # another seed: other frames


def test_each_pair_has_its_own_noise():
    """Twice the same pair of frames in one clip. Are the frames between them the same?"""
    z = torch.randn(1, 4, 2, 16, 16)
    twice = toy().interpolate_latents(torch.cat([z, z], dim=2), [PROMPT], [7], 4, steps=2, sampler="ddim", eta=0.5)
    assert (twice[:, :, 1:4] - twice[:, :, 9:12]).abs().max() > 0.01         # breaks if all pairs share their noise


def test_the_prior_follows_the_condition():
    """TSR: eps^i = (lam + gamma) z_bar^i + eps_n^i at the start, and z_bar is the condition in both passes."""
    z, asked = torch.randn(1, 4, 2, 4, 4), []
    toy(tsr=spy(asked)).interpolate_latents(z, [PROMPT], [1], steps=1, lam=0.5, gamma=0.25, guidance=2.0)
    z_t, condition = asked[0]
    z_bar, eps_n = tsr_condition(z[:, :, 0], z[:, :, 1], 5), noise(["1, pair 0"], (4, 5, 4, 4), "8 fps")()
    assert len(condition) == 2 and torch.equal(condition[:1], z_bar) and torch.equal(condition[1:], z_bar)
    assert_close(z_t[:1], eps_n + 0.75 * z_bar, atol=1e-5, rtol=1e-5)        # breaks if only frame 0 has z_bar


def test_each_round_is_told_its_rate():
    """Two ends of a pendulum's path look alike half a second and an eighth apart. Which rate does the prompt name: by
    default, in the second round, and between pictures that are 5 a second?"""
    said, cinema = [], toy(tsr=spy([]))
    cinema.encode_text = lambda prompts: said.extend(filter(None, prompts)) or toy().encode_text(prompts)
    cinema.interpolate(pictures(0.0, 2.0), [PROMPT], rounds=2, steps=1)
    cinema.interpolate(pictures(0.0, 2.0), [PROMPT], steps=1, fps=5)
    assert said == [f"{rate} fps, {PROMPT}" for rate in (8, 32, 20)]         # breaks if it names the rate it starts at


def test_compile_compiles_each_model_once(monkeypatch):
    """Untrained, one network is the video model and the TSR model. A model without TSR has no third one."""
    asked = []
    monkeypatch.setattr("microcinema.compile_for_sampling", asked.append)
    toy(video=(one := nn.Linear(1, 1)), tsr=one).compile()
    toy(tsr=None).compile()
    assert len(asked) == 4 and asked.count(one) == 1                         # breaks if None or a twin is compiled


def test_each_stage_samples_by_its_own_settings():
    """The folder's config files name sampler and steps of each stage; a change from outside reaches all of them."""
    cinema = load_toy()
    steps = [s.steps for s in (cinema.image_sampling, cinema.sampling, cinema.tsr_sampling)]
    assert steps == [20, 10, 8] and {cinema.image_sampling.sampler, cinema.sampling.sampler} == {"dpm++"}
    seen = []
    model = lambda z_t, *rest: seen.append(len(z_t)) or 0 * z_t
    model.down_blocks = cinema.unet.down_blocks
    toy(unet=model).key_frame([PROMPT])
    toy(unet=model).key_frame([PROMPT], steps=3)
    assert len(seen) == 20 + 3                                               # breaks if stage one takes the video's


def test_tsr_is_read_only_where_it_is_needed():
    """Reading it takes a tenth of a second of every command."""
    assert MicroCinema.load(ROOT / "toy", tsr=False).tsr is None and load_toy().tsr is not None


def test_the_size_of_tsr_is_that_of_its_latents():
    """Six latents a side are 48 pixels, too odd for the U-Net. Four, the number of channels, would be 32: all right."""
    with pytest.raises(ValueError, match="size 48"):
        toy().interpolate_latents(torch.zeros(1, 4, 2, 6, 6), [PROMPT], [1], steps=1)
