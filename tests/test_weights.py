"""Exercises for weights.py: every name of SD2.1's two layouts, and a checkpoint that is read whole or not at all."""
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

import weights
from appearnet import VideoModel
from clip import TextEncoder
from microcinema import main
from unet3d import UNet3D
from vae import AutoencoderKL

ROOT, REFERENCE = Path(__file__).parents[1], Path(__file__).parent / "reference"
LDM_MAP = json.loads((REFERENCE / "sd21_ldm_map.json").read_text())
FILE = "diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture
def folder(tmp_path):
    """A tiny image model, saved as unet/ of a model folder; returns its folder and the model."""
    torch.manual_seed(0)
    model = UNet3D(temporal=False, **TINY)
    weights.save(model.state_dict(), TINY, tmp_path / "unet")
    return tmp_path, model


def test_what_is_saved_is_what_is_loaded(folder):
    """Float16 on disk. Which digits survive?"""
    path, model = folder
    loaded = weights.load_unet(path).state_dict()
    assert loaded.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor.half().float())              # breaks if any tensor is left as it starts


def test_the_published_layout_of_a_folder_is_read(tmp_path):
    """The golden weights with a published config.json: keys that say nothing new are passed over."""
    config = json.loads((REFERENCE / "unet_tiny.json").read_text())["config"]
    published = {"_class_name": "UNet2DConditionModel", "act_fn": "silu", "attention_head_dim": config["num_heads"],
                 "block_out_channels": config["block_out_channels"], "center_input_sample": False, "norm_eps": 1e-5,
                 "cross_attention_dim": 32, "downsample_padding": 1, "dual_cross_attention": False, "freq_shift": 0,
                 "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "flip_sin_to_cos": True,
                 "layers_per_block": 2, "norm_num_groups": 8, "num_class_embeds": None, "sample_size": 64,
                 "use_linear_projection": True}
    weights.write_json(published, tmp_path / "unet" / "config.json")
    shutil.copy(REFERENCE / "unet_tiny.weights.safetensors", tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    model = weights.load_unet(tmp_path)
    stored = load_file(REFERENCE / "unet_tiny.weights.safetensors")
    assert all(torch.equal(tensor, stored[name].float()) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("key, value", [("act_fn", "gelu"), ("use_linear_projection", False), ("num_class_embeds", 10)])
def test_a_config_that_asks_for_something_else_is_refused(folder, key, value):
    """SD1's convolutions, class labels, another activation: reading on would give wrong pictures without a word."""
    path, _ = folder
    weights.write_json(TINY | {key: value}, path / "unet" / "config.json")
    with pytest.raises(ValueError, match=key):
        weights.load_unet(path)


def test_a_config_that_describes_no_model_is_refused(folder):
    """A width that is a word, groups that do not divide: one line, that names the file."""
    path, _ = folder
    for wrong in ({"block_out_channels": ["wide", 16]}, {"norm_num_groups": 3}, {"attention_head_dim": [2]}):
        weights.write_json(TINY | wrong, path / "unet" / "config.json")
        with pytest.raises(ValueError, match="config.json"):
            weights.load_unet(path)


def broken(tensors, how):
    """The tensors of a checkpoint with one thing wrong, and what the message must name."""
    first = "conv_in.weight"
    if how == "missing":
        del tensors[first]
    elif how == "renamed":
        tensors["conv_first.weight"] = tensors.pop(first)
    elif how == "one too many":
        tensors["extra.weight"] = torch.zeros(1)
        return "extra.weight"
    elif how == "shape":
        tensors[first] = tensors[first][:-1].clone()
    elif how == "integers":
        tensors[first] = tensors[first].int()
    elif how == "nan":
        tensors[first][0, 0, 0, 0] = float("nan")
    return first


@pytest.mark.parametrize("how", ["missing", "renamed", "one too many", "shape", "integers", "nan"])
def test_a_wrong_tensor_is_named(folder, how):
    """Law 5: none is read by half. Which tensor is wrong?"""
    path, _ = folder
    file = path / "unet" / FILE
    tensors = load_file(file)
    name = broken(tensors, how)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=name) as e:                         # breaks if loading is not strict
        weights.load_unet(path)
    assert str(file) in str(e.value) and "\n" not in str(e.value)


def test_saving_never_leaves_half_a_file(folder, monkeypatch):
    """The disk fills up while the new weights are written. What is left? The old ones, whole."""
    path, model = folder
    before = (path / "unet" / FILE).read_bytes()

    def full_disk(tensors, file, **more):
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")
    monkeypatch.setattr(weights, "save_file", full_disk)
    with pytest.raises(OSError):
        weights.save(model.state_dict(), TINY, path / "unet")
    assert (path / "unet" / FILE).read_bytes() == before                     # breaks if it writes in place
    assert sorted(os.listdir(path / "unet")) == ["config.json", FILE]        # breaks if the half file stays


def test_the_toy_model_is_whole_and_within_its_size():
    """Every part loads; all files together under 32 MiB, none above 12; and the video model is a grown image model."""
    toy = Path(__file__).parents[1] / "toy"
    for load in (weights.load_unet, weights.load_text_encoder, weights.load_video, weights.load_tsr):
        assert all(p.isfinite().all() for p in load(toy).parameters())
    sizes = [file.stat().st_size for file in toy.rglob("*") if file.is_file()]
    assert sum(sizes) < 32 * 2**20 and max(sizes) < 12 * 2**20
    config = weights.read_json(toy / "unet" / "config.json")
    grown = VideoModel.grow(weights.load_unet(toy), **weights.arguments(VideoModel, config, toy))
    assert {n: p.shape for n, p in grown.state_dict().items()} == \
        {n: p.shape for n, p in weights.load_video(toy).state_dict().items()}


# ---- SD2.1's names ----

def test_the_rename_table_is_the_published_map():
    """1228 tensors of the single file, one by one: where does the table send them, where diffusers' converters?"""
    for name, target in LDM_MAP.items():
        ours = weights.rename(weights.rename(name, weights.RENAME), weights.RENAME_OLD)
        if isinstance(target, list):                                         # fused query, key and value
            assert [ours.replace("qkv", q) for q in "qkv"] == target
        elif target:
            assert ours == target                                            # breaks if decoder levels are not mirrored
        else:
            assert weights.NOT_NEEDED.fullmatch(name)
    needed = [name for name in LDM_MAP if not weights.NOT_NEEDED.fullmatch(name)]
    assert len(needed) == 1214 and len(LDM_MAP) == 1228


@pytest.mark.parametrize("part, model_class, manifest",
                         [("unet", lambda: UNet3D(temporal=False), "unet"), ("vae", AutoencoderKL, "vae"),
                          ("text_encoder", TextEncoder, "text")])
def test_full_size_names_and_shapes(part, model_class, manifest):
    """With the default arguments, each part has SD2.1's tensors and no others. No memory is needed to see it."""
    with torch.device("meta"):
        model = model_class()
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == json.loads((REFERENCE / f"sd21_{manifest}.json").read_text())
    assert sorted(f"{part}/{name}" for name in shapes) == sorted(
        t for target in LDM_MAP.values() for t in (target if isinstance(target, list) else [target])
        if t and t.startswith(part))


def golden_single_file(path):
    """The golden tiny U-Net and autoencoder, and a text encoder of SD2.1's depth, in the single file's layout."""
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
            single[name] = single[name][:, :, None, None]                    # there, the autoencoder has convolutions
    save_file(single, path)
    return parts


def test_the_single_file_holds_the_same_numbers(tmp_path):
    """Written in the one layout, read for the other: which number moved? Fused rows, 1x1 convolutions, levels."""
    parts = golden_single_file(tmp_path / "v2-1.safetensors")
    located = weights.locate(tmp_path / "v2-1.safetensors")
    for part, stored in parts.items():
        read = {name: torch.empty(tensor.shape) for name, tensor in stored.items()}
        weights.fill(read, located[part], piece=100)                         # breaks if thirds start at the wrong byte
        assert located[part].keys() == stored.keys()
        assert all(torch.equal(read[name], stored[name].float()) for name in stored)


def test_both_generations_of_names_are_read(tmp_path):
    """query or to_q, with or without `text_model.`, with or without position_ids, no scaling_factor: the same model."""
    shutil.copytree(ROOT / "toy", tmp_path / "old")
    vae, text = (next((tmp_path / "old" / part).glob("*.safetensors")) for part in ("vae", "text_encoder"))
    old = json.loads(json.dumps(dict(to_q="query", to_k="key", to_v="value", to_out="proj_attn")))
    rename = lambda name: re.sub(r"attentions\.0\.(to_\w+)(\.0)?", lambda m: f"attentions.0.{old[m[1]]}", name)
    save_file({rename(name): tensor for name, tensor in load_file(vae).items()}, vae)
    save_file({name.removeprefix("text_model."): tensor for name, tensor in load_file(text).items()}
              | {"embeddings.position_ids": torch.arange(77)[None]}, text)
    config = weights.read_json(tmp_path / "old" / "vae" / "config.json")
    weights.write_json({k: v for k, v in config.items() if k != "scaling_factor"}, tmp_path / "old/vae/config.json")
    assert "decoder.mid_block.attentions.0.query.weight" in load_file(vae)
    for load in (weights.load_text_encoder, lambda path: weights.load_vae(path)[0]):
        new, old = load(ROOT / "toy").state_dict(), load(tmp_path / "old").state_dict()
        assert all(torch.equal(new[name], old[name]) for name in new)
    assert weights.load_vae(tmp_path / "old")[1] == 0.18215


def test_a_file_says_what_family_it_is_of():
    """Six files that people mix up, by the tensors that give them away."""
    stored = lambda *shape: weights.Stored(Path("x"), "x", "F16", shape, 0)
    to_k = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    assert weights.family({to_k: stored(320, 768)}) == "SD1"
    assert weights.family({to_k: stored(320, 1024)}) == "SD2"
    assert weights.family({to_k: stored(320, 1024)}, "v_prediction") == "SD2 768 (v-prediction)"
    assert weights.family({to_k: stored(320, 1024)}, "epsilon") == "SD2 base (eps)"
    assert weights.family({to_k: stored(640, 2048), "conditioner.embedders.0.x": stored(1)}) == "SDXL"
    assert weights.family({"controlnet_cond_embedding.conv_in.weight": stored(1)}) == "a ControlNet"
    motion = "down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight"
    assert weights.family({motion: stored(1)}) == "an AnimateDiff motion module"
    assert weights.family(weights.locate(ROOT / "toy")["video"]) == "a video model of ours"


def test_an_sd1_file_is_refused_by_name(tmp_path):
    """SD1 has its text encoder elsewhere and a width of 768: the line says SD1, not just that a tensor is odd."""
    file = tmp_path / "v1-5.safetensors"
    to_k = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    text = "cond_stage_model.transformer.text_model.final_layer_norm.weight"
    save_file({text: torch.zeros(768), to_k: torch.zeros(320, 768)}, file)
    with pytest.raises(ValueError, match="looks like SD1"):
        weights.load_unet(file)


def test_an_sd1_folder_is_refused_by_name(tmp_path):
    """Its config counts heads by one number and its projections are convolutions: which family is it, says the line."""
    weights.write_json({"cross_attention_dim": 768, "attention_head_dim": 8}, tmp_path / "unet" / "config.json")
    to_k = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    save_file({to_k: torch.zeros(320, 768)}, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match="looks like SD1") as e:
        weights.load_unet(tmp_path)
    assert "\n" not in str(e.value)


def test_the_single_file_tells_its_prediction_by_its_name_or_a_schedule_beside_it(tmp_path):
    """Both SD2.1 files hold the same tensors; 768 in the name means v. A schedule that lies beside it is believed."""
    for name, prediction in (("v2-1_512-ema-pruned", "epsilon"), ("v2-1_768-ema-pruned", "v_prediction")):
        (tmp_path / f"{name}.safetensors").touch()
        assert weights.load_schedule(tmp_path / f"{name}.safetensors").prediction_type == prediction
    weights.write_json({"prediction_type": "v_prediction"}, tmp_path / "scheduler" / "scheduler_config.json")
    assert weights.load_schedule(tmp_path / "v2-1_512-ema-pruned.safetensors").prediction_type == "v_prediction"


# ---- the map ----

def test_the_map_shows_every_tensor_and_the_line_of_its_class(capsys):
    """`python weights.py toy`: each tensor once, what the paper adds apart, and each file:line holds the class."""
    assert weights.main([str(ROOT / "toy")]) == 0
    said = capsys.readouterr().out
    rows = re.findall(r"^  (\S+) +\[.*\] +F16 +(\w+) +(\w+\.py):(\d+)$", said, re.M)
    located = weights.locate(ROOT / "toy")
    assert sorted(row[0] for row in rows) == sorted(name for part in located.values() for name in part)
    for _, name, file, line in set(row[:] for row in rows):
        assert (ROOT / file).read_text().splitlines()[int(line) - 1].startswith(f"class {name}(")
    ours = said.split("video, what the paper adds")[1].split("\n\n")[0]
    assert "temporal_conv1.conv.weight" in ours and "appearnet.zero_conv.weight" in ours
    assert "attn1.to_q" not in re.sub(r"temporal_attentions\S+", "", ours)


def test_the_map_can_be_cut_short():
    """`python weights.py toy | head -n 1`: no traceback, and no complaint, once nobody reads on."""
    run = subprocess.Popen([sys.executable, ROOT / "weights.py", ROOT / "toy"], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True)
    assert run.stdout.readline().startswith(f"{ROOT / 'toy'}: looks like")
    run.stdout.close()
    assert run.stderr.read() == "" and run.wait() == 0                       # breaks without BrokenPipeError


# ---- damage ----

def edit_header(file, change):
    """Rewrites a safetensors file with its header, a dict, changed; the numbers stay."""
    whole = file.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:8 + size])
    text = json.dumps(change(header) or header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + size:])


def edit_entry(key, value):
    """A header in which one entry of the tensor conv_in.weight is another: (start, end) may be computed from it."""
    def change(header):
        entry = header["conv_in.weight"]
        entry[key] = value(entry[key]) if callable(value) else value
    return lambda file: edit_header(file, change)


def edit_tensors(change):
    """The file with its tensors, a dict, changed."""
    def edit(file):
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)
    return edit


def overwrite(old, new):
    """The file with `old` replaced by `new` in its header."""
    return lambda file: file.write_bytes(file.read_bytes().replace(old, new, 1))


def keep(count):
    """Only the first `count` bytes; a negative number leaves out the last."""
    return lambda file: file.write_bytes(file.read_bytes()[:count])


def swap(tensors):
    tensors["conv_in.weight"], tensors["conv_out.weight"] = tensors["conv_out.weight"], tensors["conv_in.weight"]


def one_number(x):
    def change(tensors):
        tensors["mid_block.resnets.1.conv2.weight"].view(-1)[-1] = x
    return edit_tensors(change)


def length(size):
    """The file with another length of its header in its first eight bytes."""
    return lambda file: file.write_bytes(size.to_bytes(8, "little") + file.read_bytes()[8:])


def config(**changes):
    """The config.json beside it with these entries."""
    def edit(file):
        path = file.with_name("config.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return edit


def other_file(name, content=None):
    """Another file of the model with this content, or without that file."""
    def edit(file):
        path = file.parents[1] / name
        path.unlink() if content is None else path.write_bytes(content)
    return edit


def other_family(file):
    """A text encoder of another width than the U-Net reads, whole in itself."""
    folder = file.parents[1] / "text_encoder"
    settings = weights.read_json(folder / "config.json") | {"hidden_size": 64}
    model = TextEncoder(**weights.arguments(TextEncoder, settings, folder))
    weights.save(model.state_dict(), settings, folder, stem="model")


def as_directory(file):
    file.unlink()
    file.mkdir()


def dangling(file):
    file.unlink()
    file.symlink_to("nowhere")


DAMAGE = {
    **{f"cut at {n}": keep(n) for n in (0, 1, 7, 8, 9, 1000, 50_000, -2_000_000, -1)},
    "one byte more": lambda file: file.write_bytes(file.read_bytes() + b"0"),
    "header longer than the file": length(1 << 40), "header of 2^64 - 1": length(2**64 - 1), "no header": length(0),
    "header one short": lambda file: length(int.from_bytes(file.read_bytes()[:8], "little") - 1)(file),
    "header not JSON": overwrite(b'{"', b'["'), "header not UTF-8": overwrite(b"conv_in", b"conv\xff\xffn"),
    "header a list": lambda file: edit_header(file, lambda header: list(header)),
    "header empty": lambda file: edit_header(file, lambda header: {"__metadata__": {}}),
    "overlapping": edit_entry("data_offsets", lambda ends: [ends[0] - 8, ends[1] - 8]),
    "a gap": edit_entry("data_offsets", lambda ends: [ends[0] + 8, ends[1] + 8]),
    "end before start": edit_entry("data_offsets", lambda ends: ends[::-1]),
    "negative offset": edit_entry("data_offsets", lambda ends: [-8, ends[1]]),
    "offset behind the end": edit_entry("data_offsets", lambda ends: [ends[0], 10**12]),
    "offsets are words": edit_entry("data_offsets", ["a", "b"]),
    "shape without its bytes": edit_entry("shape", [64, 4, 3, 4]),
    "a negative size": edit_entry("shape", [-64, 4, 3, 3]),
    "unknown dtype": edit_entry("dtype", "F99"), "integers": edit_entry("dtype", "I16"),
    "dtype of another size": edit_entry("dtype", "F32"), "transposed": edit_entry("shape", [4, 64, 3, 3]),
    "flat": edit_entry("shape", [64 * 4 * 9]),
    "renamed": edit_tensors(lambda tensors: tensors.update({"conv_first.weight": tensors.pop("conv_in.weight")})),
    "missing": edit_tensors(lambda tensors: tensors.pop("mid_block.attentions.0.norm.bias")),
    "one too many": edit_tensors(lambda tensors: tensors.update(extra=torch.zeros(1))),
    "swapped": edit_tensors(swap),
    "zero-sized": edit_tensors(lambda tensors: tensors.update({"conv_in.weight": torch.zeros(0, 4, 3, 3)})),
    "a number": edit_tensors(lambda tensors: tensors.update({"conv_in.bias": torch.tensor(1.0)})),
    "NaN": one_number(float("nan")), "infinity": one_number(float("inf")),
    "a pickle": lambda file: torch.save({"conv_in.weight": torch.zeros(3)}, file),
    "a web page": lambda file: file.write_text("<!DOCTYPE html><title>404</title>"),
    "a pointer of git lfs": lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "a folder": as_directory, "a dangling link": dangling, "no file": Path.unlink,
    "only a .bin": lambda file: file.rename(file.with_suffix(".bin")),
    "no folder": lambda file: shutil.rmtree(file.parent),
    "no config": other_file("unet/config.json"), "half a config": other_file("unet/config.json", b'{"in_channels": 4'),
    "config is a list": other_file("unet/config.json", b"[]"),
    "config is no text": other_file("unet/config.json", b"\xff"),
    "config of SD1": config(use_linear_projection=False), "another width": config(block_out_channels=[64, 72, 96]),
    "impossible groups": config(norm_num_groups=7), "width is a word": config(block_out_channels=["wide", 72, 80]),
    "two families": other_family, "no merges": other_file("tokenizer/merges.txt"),
    "half the merges": other_file("tokenizer/merges.txt", b"#version: 0.2\ni n\n"),
    "no schedule": other_file("scheduler/scheduler_config.json"),
    "no such schedule": other_file("scheduler/scheduler_config.json", b'{"beta_schedule": "linear"}'),
    "no such injection": other_file("video/config.json", b'{"inject": "everywhere"}'),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_gives_one_line_and_exit_2(how, tmp_path, capsys):
    """Something happened to the U-Net's file, or to one beside it. What does a person read? One line and the place."""
    model = tmp_path / "model"
    shutil.copytree(ROOT / "toy", model, copy_function=os.symlink)           # no bytes copied; what changes is replaced
    for file in (model / "unet").iterdir():
        file.unlink()
        shutil.copy(ROOT / "toy" / "unet" / file.name, file)
    for name in ("tokenizer/merges.txt", "scheduler/scheduler_config.json", "video/config.json"):
        (model / name).unlink()
        shutil.copy(ROOT / "toy" / name, model / name)
    DAMAGE[how](model / "unet" / FILE)
    assert main(["a red circle moving left", "--model", str(model), "--out", str(tmp_path / "out.gif")]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("microcinema.py: ") and said.err.count("\n") == 1 and str(model) in said.err, said.err
    assert not (tmp_path / "out.gif").exists()
    print(said.err)                                                          # pytest -rP shows what a person would read


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_is_one_line(folder):
    """Another user's file."""
    path, _ = folder
    (path / "unet" / FILE).chmod(0)
    with pytest.raises(ValueError, match="ermission"):
        weights.load_unet(path)
