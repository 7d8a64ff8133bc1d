"""Exercises for sd21/weights.py: where a model lies, and a checkpoint that is read completely or not at all."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_unet3d import TINY

from appearnet import VideoModel
from microcinema import COMPONENT_CLASSES, Sampling
from sampler import NoiseSchedule
from sd21 import files, weights
from sd21.files import read_json, write_json
from sd21.text import TextEncoder
from sd21.weights import COMPONENTS, component
from unet3d import UNet3D

ROOT, REFERENCE = Path(__file__).parents[1], Path(__file__).parent / "reference"
LDM_MAP = json.loads((REFERENCE / "sd21_ldm_map.json").read_text())
FILE = "diffusion_pytorch_model.fp16.safetensors"


def load(name, path, **options):
    """A component of the model at `path`."""
    fixed = {"temporal": False} if name == "unet" else {}
    return weights.load(component(name, path), COMPONENT_CLASSES[name], **fixed, **options)


@pytest.fixture
def folder(tmp_path):
    """A tiny image model, saved as unet/ of a model folder; the folder and the model."""
    torch.manual_seed(0)
    model = UNet3D(temporal=False, **TINY)
    weights.save(model.state_dict(), TINY, tmp_path / "unet")
    return tmp_path, model


def test_what_is_saved_is_what_is_loaded(folder):
    """The file holds float16. Is every tensor the saved one, rounded to float16?"""
    path, model = folder
    loaded = load("unet", path).state_dict()
    assert loaded.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor.half().float())              # breaks if any tensor is not read


def test_the_published_layout_of_a_folder_is_read(tmp_path):
    """The golden weights with a published config.json: are its keys without effect here ignored?"""
    config = json.loads((REFERENCE / "unet_tiny.json").read_text())["config"]
    published = {"_class_name": "UNet2DConditionModel", "act_fn": "silu", "attention_head_dim": config["num_heads"],
                 "block_out_channels": config["block_out_channels"], "center_input_sample": False, "norm_eps": 1e-5,
                 "cross_attention_dim": 32, "downsample_padding": 1, "dual_cross_attention": False, "freq_shift": 0,
                 "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "flip_sin_to_cos": True,
                 "layers_per_block": 2, "norm_num_groups": 8, "num_class_embeds": None, "sample_size": 64,
                 "use_linear_projection": True}
    write_json(published, tmp_path / "unet" / "config.json")
    shutil.copy(REFERENCE / "unet_tiny.weights.safetensors", tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    model = load("unet", tmp_path)
    stored = load_file(REFERENCE / "unet_tiny.weights.safetensors")
    assert all(torch.equal(tensor, stored[name].float()) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("key, value", [("act_fn", "gelu"), ("use_linear_projection", False), ("num_class_embeds", 10)])
def test_a_config_that_asks_for_something_else_is_refused(folder, key, value):
    """SD1's convolutions, class labels, another activation: loading them would silently give wrong pictures."""
    path, _ = folder
    write_json(TINY | {key: value}, path / "unet" / "config.json")
    with pytest.raises(ValueError, match=key):
        load("unet", path)


# What diffusers 0.42 writes beside SD2.1's own keys, at SD2.1's values, and another value of each that matters.
SAVED_AGAIN = {
    "unet": {"attention_type": ["default", "gated"], "conv_in_kernel": [3, 5], "conv_out_kernel": [3, 1],
             "resnet_out_scale_factor": [1.0, 2.0], "transformer_layers_per_block": [1, 2], "dropout": [0.0, 0.1],
             "addition_embed_type_num_heads": [64], "addition_embed_type": [None, "text"], "decay": [0.9999],
             "num_attention_heads": [None, 8], "inv_gamma": [1.0], "optimization_step": [37000], "power": [0.6667]},
    "vae": {"mid_block_add_attention": [True, False], "use_quant_conv": [True, False], "shift_factor": [None, 0.1],
            "use_post_quant_conv": [True, False], "latents_mean": [None, [0.1]]},
    "scheduler": {"sample_max_value": [1.0], "dynamic_thresholding_ratio": [0.995], "thresholding": [False, True],
                  "final_sigmas_type": ["zero", "x"], "interpolation_type": ["linear", "x"], "flow_shift": [1.0],
                  "timestep_type": ["discrete", "continuous"], "algorithm_type": ["dpmsolver++", "sde-dpmsolver++"],
                  "solver_order": [2], "solver_type": ["midpoint"], "lower_order_final": [True],
                  "use_karras_sigmas": [False, True], "trained_betas": [None, [0.1]], "predict_x0": [True],
                  "time_shift_type": ["exponential"], "lambda_min_clipped": [float("-inf")], "variance_type": [None],
                  "clip_sample": [False, True]}}


@pytest.mark.parametrize("name, key", [(name, key) for name, keys in SAVED_AGAIN.items() for key in keys])
def test_a_key_of_todays_diffusers_is_taken_at_sd21s_value_and_refused_at_another(name, key):
    """Keys that did not exist when SD2.1 was published. Is only a value refused that means what this code does not?"""
    model_class = (COMPONENT_CLASSES | {"scheduler": NoiseSchedule})[name]
    right, *wrong = SAVED_AGAIN[name][key]
    assert weights.arguments(model_class, {key: right}, "config.json") == {}
    for value in wrong:
        with pytest.raises(ValueError, match=f"config.json: '{key}' = "):      # breaks if every unknown key is ignored
            weights.arguments(model_class, {key: value}, "config.json")


@pytest.mark.parametrize("name, key, value", [
    ("unet", "layers_per_block", 10**9), ("unet", "layers_per_block", 1.0), ("unet", "layers_per_block", True),
    ("unet", "layers_per_block", None), ("unet", "block_out_channels", 64), ("unet", "block_out_channels", []),
    ("unet", "block_out_channels", [8] * 11), ("unet", "block_out_channels", [8, -16]), ("unet", "temporal", 1),
    ("unet", "down_block_types", [1, 2]), ("unet", "norm_num_groups", 0), ("unet", "cross_attention_dim", [6]),
    ("text_encoder", "num_hidden_layers", 10**9), ("text_encoder", "vocab_size", 10**400), ("video", "inject", 5),
    ("vae", "scaling_factor", 0), ("vae", "scaling_factor", float("nan")), ("vae", "layers_per_block", 10**9),
    ("scheduler", "beta_start", -1), ("scheduler", "beta_end", 1), ("scheduler", "beta_end", "x"),
    ("scheduler", "num_train_timesteps", 10**12), ("scheduler", "rescale_betas_zero_snr", "yes"),
    ("sampling", "guidance", "7"), ("sampling", "lam", float("inf")), ("sampling", "fps", 0),
    ("sampling", "size", None)])
def test_a_value_of_a_wrong_type_or_size_is_named(name, key, value):
    """Each would end in a traceback, in NaN, or never. The types are those of the classes' defaults."""
    model_class = (COMPONENT_CLASSES | {"scheduler": NoiseSchedule, "sampling": Sampling})[name]
    with pytest.raises(ValueError, match=f"config.json: '{key}' = .{{1,60}} is not supported") as e:
        weights.arguments(model_class, {key: value}, "config.json")
    assert "\n" not in str(e.value)


def test_a_long_key_of_several_lines_is_still_one_short_line():
    """A file from elsewhere: its keys may hold line breaks, terminal escapes, a megabyte."""
    with pytest.raises(ValueError) as e:
        weights.arguments(UNet3D, {"x\n\x1b[2J" * 9000: "y\n" * 9000}, "config.json")
    assert len(str(e.value)) < 200 and str(e.value).isprintable()            # breaks if the key is not quoted


def test_sampling_takes_zero_and_less():
    """Guidance 0 ignores the text, lambda 0 is the noise of DDPM, -0.03 an experiment."""
    settings = {"guidance": 0, "lam": -0.03, "gamma": 0.0, "eta": 0}
    assert weights.arguments(Sampling, settings, "config.json") == settings


@pytest.mark.parametrize("key", ["sampling", "training"])
def test_settings_that_are_no_object_are_refused(tmp_path, key):
    """A list, a word, null. An empty object is fine."""
    for value in ([], "x", None, 5):
        write_json({key: value}, tmp_path / "video" / "config.json")
        with pytest.raises(ValueError, match="config.json: want JSON objects as sampling and training"):
            component("video", tmp_path).settings(key)
    write_json({key: {}}, tmp_path / "video" / "config.json")
    assert component("video", tmp_path).settings(key) == {}


@pytest.mark.parametrize("name, config, problem", [
    ("unet", {"in_channels": 9}, "in_channels 9: want 4"), ("unet", {"in_channels": 5}, "in_channels 5: want 4"),
    ("unet", {"attention_head_dim": [3, 4]}, "8 channels"), ("vae", {"latent_channels": 16}, "latent_channels 16"),
    ("text_encoder", {"hidden_size": 8, "num_attention_heads": 3}, "heads that divide")])
def test_an_impossible_component_is_refused_at_load_and_its_config_named(tmp_path, name, config, problem):
    """SD2-inpainting, SD2-depth, a newer autoencoder: one line before anything is computed."""
    sizes = {"unet": TINY, "vae": dict(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4)}
    write_json(sizes.get(name, {}) | config, tmp_path / name / "config.json")
    save_file({"conv_in.weight": torch.zeros(8, 9, 3, 3)}, tmp_path / name / FILE)
    with pytest.raises(ValueError, match=f"{tmp_path / name}/config.json: .*{problem}"):
        load(name, tmp_path)


def test_what_is_saved_opens_in_diffusers_as_the_same_network(folder):
    """Its defaults are other networks: convolutions instead of linear layers, four levels. So the config names ours.

    By hand, with diffusers 0.42.1 (2026-11-28): both folders of toy/ open, and compute the same to 1e-5."""
    path, _ = folder
    vae = dict(block_out_channels=(4, 8, 8), layers_per_block=1, norm_num_groups=4)
    weights.save(COMPONENT_CLASSES["vae"](**vae).state_dict(), vae, path / "vae")
    unet, vae = (read_json(path / name / "config.json") for name in ("unet", "vae"))
    assert unet["use_linear_projection"] is True and unet["up_block_types"] == ["UpBlock2D", "CrossAttnUpBlock2D"]
    assert vae["down_block_types"] == ["DownEncoderBlock2D"] * 3 and "use_linear_projection" not in vae
    assert vae["up_block_types"] == ["UpDecoderBlock2D"] * 3


def test_the_toy_model_opens_in_diffusers():
    """The same keys in the repository's own model."""
    for name in ("unet", "vae"):
        config = read_json(ROOT / "toy" / name / "config.json")
        levels = len(config["block_out_channels"])
        assert len(config["up_block_types"]) == len(config["down_block_types"]) == levels
    assert read_json(ROOT / "toy" / "unet" / "config.json")["use_linear_projection"] is True


def test_a_config_that_describes_no_model_is_refused(folder):
    """A width that is a word, groups that do not divide the channels: is it one line that names the file?"""
    path, _ = folder
    for wrong in ({"block_out_channels": ["wide", 16]}, {"norm_num_groups": 3}, {"attention_head_dim": [2]}):
        write_json(TINY | wrong, path / "unet" / "config.json")
        with pytest.raises(ValueError, match="config.json"):
            load("unet", path)


def break_one(tensors, problem):
    """Changes one tensor of a checkpoint; returns the name that the message must give."""
    first = "conv_in.weight"
    if problem == "missing":
        del tensors[first]
    elif problem == "renamed":
        tensors["conv_first.weight"] = tensors.pop(first)
    elif problem == "one too many":
        tensors["extra.weight"] = torch.zeros(1)
        return "extra.weight"
    elif problem == "shape":
        tensors[first] = tensors[first][:-1].clone()
    elif problem == "integers":
        tensors[first] = tensors[first].int()
    elif problem == "nan":
        tensors[first][0, 0, 0, 0] = float("nan")
    return first


@pytest.mark.parametrize("problem", ["missing", "renamed", "one too many", "shape", "integers", "nan"])
def test_a_wrong_tensor_is_named(folder, problem):
    """Law 5: no model is loaded in part. Does the message name the tensor?"""
    path, _ = folder
    file = path / "unet" / FILE
    tensors = load_file(file)
    name = break_one(tensors, problem)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=name) as e:                         # breaks if loading is not strict
        load("unet", path)
    assert str(file) in str(e.value) and "\n" not in str(e.value)


def test_fused_rows_that_are_no_three_parts_are_refused(tmp_path):
    """q, k and v are thirds of one tensor. With one row more, is it cut into thirds all the same?"""
    golden_single_file(tmp_path / "v2-1.safetensors")
    tensors, fused = load_file(tmp_path / "v2-1.safetensors"), "transformer.resblocks.3.attn.in_proj_weight"
    name = next(name for name in tensors if name.endswith(fused))
    tensors[name] = torch.cat([tensors[name], tensors[name][:1]])
    save_file(tensors, tmp_path / "v2-1.safetensors")
    sizes = dict(vocab_size=520, hidden_size=8, intermediate_size=12, num_attention_heads=2)
    write_json(sizes, tmp_path / "text_encoder" / "config.json")
    with pytest.raises(ValueError, match="layers.3.self_attn.k_proj.weight is missing"):     # breaks without the check
        load("text_encoder", tmp_path / "v2-1.safetensors")


@pytest.mark.parametrize("index", ["diffusion_pytorch_model.safetensors.index.json",
                                   "model.safetensors.index.fp16.json"])
def test_weights_in_several_files_are_refused_with_the_reason(folder, index):
    """model-00001-of-00002.safetensors and an index: is the line about that, and not about a missing file?"""
    path, _ = folder
    (path / "unet" / FILE).rename(path / "unet" / "diffusion_pytorch_model-00001-of-00002.safetensors")
    write_json({"weight_map": {}}, path / "unet" / index)
    with pytest.raises(ValueError, match=f"{index}: the weights are in several files; merge them into one diffusion"):
        load("unet", path)                                                   # breaks if the index is not looked for


def test_saving_never_leaves_half_a_file(folder, monkeypatch):
    """The disk fills up while new weights are written. Are the old ones still complete?"""
    path, model = folder
    before = (path / "unet" / FILE).read_bytes()

    def full_disk(tensors, file, **more):
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")
    monkeypatch.setattr(files, "save_file", full_disk)
    with pytest.raises(OSError):
        weights.save(model.state_dict(), TINY, path / "unet")
    assert (path / "unet" / FILE).read_bytes() == before                     # breaks if it writes in place
    assert sorted(os.listdir(path / "unet")) == ["config.json", FILE]        # breaks if the half file stays


@pytest.mark.slow
def test_the_toy_model_is_complete_and_small():
    """Does every component load? Are all files together under 36 MiB, and none above 12? Is the video model a grown
    image model?"""
    toy = ROOT / "toy"
    models = {name: load(name, toy) for name in COMPONENT_CLASSES}
    assert all(p.isfinite().all() for model in models.values() for p in model.parameters())
    sizes = [file.stat().st_size for file in toy.rglob("*") if file.is_file()]
    assert sum(sizes) < 36 * 2**20 and max(sizes) < 12 * 2**20
    grown = VideoModel.grow(models["unet"])
    assert {n: p.shape for n, p in grown.state_dict().items()} == \
        {n: p.shape for n, p in models["video"].state_dict().items()}


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_is_one_line(folder):
    """A file of another user."""
    path, _ = folder
    (path / "unet" / FILE).chmod(0)
    with pytest.raises(ValueError, match="ermission"):
        load("unet", path)


# ---- other layouts ----

def golden_single_file(path):
    """Writes the golden tiny U-Net and autoencoder, and a text encoder of SD2.1's depth, as a single file.

    Returns {component: its tensors}."""
    torch.manual_seed(0)
    text = TextEncoder(vocab_size=520, hidden_size=8, intermediate_size=12, num_attention_heads=2).state_dict()
    parts = {"unet": load_file(REFERENCE / "unet_tiny.weights.safetensors"), "text_encoder": text,
             "vae": load_file(REFERENCE / "vae_tiny.weights.safetensors")}
    single = {"betas": torch.zeros(3), "model_ema.num_updates": torch.tensor(3, dtype=torch.int32)}
    for name, target in LDM_MAP.items():
        targets = [target] if isinstance(target, str) else target or []
        if targets:
            single[name] = torch.cat([parts[t.partition("/")[0]][t.partition("/")[2]] for t in targets])
        else:
            single[name] = torch.zeros(2)
        if ".attn_1." in name and single[name].dim() == 2:
            single[name] = single[name][:, :, None, None]                    # 1x1 convolutions
    save_file(single, path)
    return parts


def test_the_single_file_holds_the_same_numbers(tmp_path):
    """Written as a single file, read as a folder: is any number elsewhere? Fused rows, 1x1 convolutions, levels."""
    parts = golden_single_file(tmp_path / "v2-1.safetensors")
    located = weights.locate(tmp_path / "v2-1.safetensors")
    for part, stored in parts.items():
        read = {name: torch.empty(tensor.shape) for name, tensor in stored.items()}
        weights.fill(read, located[part], piece=25)                          # breaks if thirds start at the wrong row
        assert located[part].keys() == stored.keys()
        assert all(torch.equal(read[name], stored[name].float()) for name in stored)


@pytest.mark.slow
def test_older_names_are_read(tmp_path):
    """query or to_q, with or without `text_model.`, with or without position_ids: is it the same model?"""
    shutil.copytree(ROOT / "toy", tmp_path / "old")
    vae, text = (next((tmp_path / "old" / part).glob("*.safetensors")) for part in ("vae", "text_encoder"))
    old = dict(to_q="query", to_k="key", to_v="value", to_out="proj_attn")
    rename = lambda name: re.sub(r"attentions\.0\.(to_\w+)(\.0)?", lambda m: f"attentions.0.{old[m[1]]}", name)
    save_file({rename(name): tensor for name, tensor in load_file(vae).items()}, vae)
    save_file({name.removeprefix("text_model."): tensor for name, tensor in load_file(text).items()}
              | {"embeddings.position_ids": torch.arange(77)[None]}, text)
    config = read_json(tmp_path / "old" / "vae" / "config.json")
    write_json({k: v for k, v in config.items() if k != "scaling_factor"}, tmp_path / "old/vae/config.json")
    assert "decoder.mid_block.attentions.0.query.weight" in load_file(vae)
    for name in ("text_encoder", "vae"):
        new, old = load(name, ROOT / "toy").state_dict(), load(name, tmp_path / "old").state_dict()
        assert all(torch.equal(new[tensor], old[tensor]) for tensor in new)
    assert load("vae", tmp_path / "old").scale == 0.18215                    # a config without scaling_factor: SD2.1's


def test_the_prediction_type_of_a_single_file_follows_from_its_name_or_a_schedule(tmp_path):
    """SD2.1's two files hold the same tensors; 768 in the name means v. Does a schedule beside the file come first?"""
    schedule = lambda path: weights.read_settings(component("scheduler", path), None, NoiseSchedule)
    for name, prediction in (("v2-1_512-ema-pruned", "epsilon"), ("v2-1_768-ema-pruned", "v_prediction")):
        (tmp_path / f"{name}.safetensors").touch()
        assert schedule(tmp_path / f"{name}.safetensors").prediction_type == prediction
    write_json({"prediction_type": "v_prediction"}, tmp_path / "scheduler" / "scheduler_config.json")
    assert schedule(tmp_path / "v2-1_512-ema-pruned.safetensors").prediction_type == "v_prediction"


def test_no_model_is_imported_to_read_checkpoints():
    """The caller says which class to fill. Does `import sd21.weights` import one?"""
    program = "import sys, sd21.weights; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    models = {"unet3d", "appearnet", "sampler", "microcinema", "sd21.vae", "sd21.text", "sd21.layers"}
    assert not models & set(done.stdout.split())


# ---- where each component lies ----

def lay_out(folder, *names):
    """A model folder with empty files in the place of these components'."""
    files = {"tokenizer": "merges.txt", "scheduler": "scheduler_config.json", "text_encoder": "model.safetensors"}
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / files.get(name, FILE)).touch()
    return folder


def test_an_overlay_replaces_the_components_it_has(tmp_path):
    """A folder with a vae and a video, over a model without a video. Which component comes from where?"""
    model = lay_out(tmp_path / "model", "tokenizer", "text_encoder", "vae", "unet", "scheduler")
    mine = lay_out(tmp_path / "mine", "vae", "video")
    alone, both = weights.resolve_components(model), weights.resolve_components(model, mine, tmp_path / "m.txt")
    assert list(alone) == list(COMPONENTS[:5]) and {part.place for part in alone.values()} == {model}
    assert both["vae"].file == mine / "vae" / FILE and both["video"].config == mine / "video" / "config.json"
    assert weights.describe(both) == (f"tokenizer from {tmp_path / 'm.txt'}; "
                                      f"text_encoder, unet, scheduler from {model}; vae, video from {mine}")
    file = weights.resolve_components(model, mine / "video" / FILE)
    assert file["video"].file == file["video"].place == mine / "video" / FILE and file["vae"].place == model


def test_what_a_stopped_training_left_is_not_used(tmp_path):
    """Stage image writes its tokenizer first, stage vae its config. Stopped then, both are still the model's."""
    model = lay_out(tmp_path / "model", "tokenizer", "text_encoder", "vae", "unet", "scheduler")
    out = lay_out(tmp_path / "out", "tokenizer")
    write_json({"scaling_factor": None}, out / "vae" / "config.json")
    assert {part.place for part in weights.resolve_components(model, out).values()} == {model}
    assert weights.resolve_components(model, tmp_path / "not yet") == weights.resolve_components(model)
    lay_out(out, "text_encoder")
    assert weights.resolve_components(model, out)["tokenizer"].place == out  # breaks if it is never the --out folder's


def test_an_overlay_with_a_gap_is_refused(tmp_path):
    """For --weights: no folder, nothing trained in it, a component without its file, a tokenizer without encoder."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "half" / "vae").mkdir(parents=True)
    lone, merges = lay_out(tmp_path / "lone", "tokenizer"), lay_out(tmp_path / "text", "text_encoder")
    for problem, overlay in {"no such file": tmp_path / "nowhere", "none of the folders tokenizer": tmp_path / "empty",
                             "no diffusion_pytorch_model": tmp_path / "half", "they belong together": lone}.items():
        with pytest.raises(ValueError, match=f"{overlay}.*: .*{problem}"):   # breaks if the model's is taken instead
            weights.check_overlay(overlay)
    weights.check_overlay(merges, merges=tmp_path / "m.txt")                 # the merges are given
    weights.check_overlay(merges / "text_encoder" / "model.safetensors")     # a file is a video model


def test_the_config_of_a_single_file_lies_beside_it(tmp_path):
    """A training checkpoint in a model folder, and the file of a video model where `save` wrote it."""
    checkpoint = tmp_path / "vae.00000004.checkpoint.safetensors"
    checkpoint.touch()
    assert component("vae", checkpoint).config is None and component("vae", checkpoint).read() == ({}, checkpoint)
    write_json({"scaling_factor": 0.5, "training": {"steps": 4}}, tmp_path / "vae" / "config.json")
    assert component("vae", checkpoint).read()[0]["scaling_factor"] == 0.5
    assert component("vae", tmp_path).settings("training") == {"steps": 4}
    assert component("vae", checkpoint).settings("training") == {}           # only a model folder has default settings
    assert component("unet", tmp_path).settings("training") == {}            # no config at all
    video = lay_out(tmp_path / "mine", "video") / "video" / FILE
    write_json({"inject": "concat"}, video.with_name("config.json"))
    assert component("video", video).read() == ({"inject": "concat"}, video.with_name("config.json"))
    assert component("unet", video).config is None                           # breaks if it is taken for any component
