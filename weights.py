"""Checkpoints, read and written: Sec. 4.1 "built upon the pre-trained weights of Stable Diffusion 2.1".

    python weights.py PATH      the map: each tensor of a model, its shape, and the class it goes to, by file and line

A model is a folder, laid out like SD2.1's; `video/` and `tsr/` are ours and hold the U-Net grown to 3D with AppearNet:

    unet/  vae/  video/  tsr/      config.json, diffusion_pytorch_model[.fp16].safetensors
    text_encoder/                  config.json, model[.fp16].safetensors
    scheduler/scheduler_config.json    tokenizer/merges.txt

or SD2.1's single file, v2-1_512-ema-pruned.safetensors, whose names RENAME turns into the folder's.

here  locate: where every tensor of a model lies; load_unet, load_vae, load_text_encoder, load_video, load_tsr,
      load_schedule; save, read_json, write_json; family, which says what somebody else's file seems to be

A module's tensor names are the folder's, so loading is reading. It is strict: a tensor that is missing, one that nobody
asked for, a wrong shape or a number that is not finite is a ValueError that names the file and the first difference.
Tensors are read from disk piece by piece into the place where they stay, in the dtype and on the device asked for.
"""

import functools
import inspect
import json
import math
import os
import re
import shutil
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from appearnet import VideoModel, is_new
from clip import TextEncoder
from files import ArgumentParser, beside
from sampler import NoiseSchedule
from unet3d import Encoder, UNet3D
from vae import AutoencoderKL

PARTS = {"text_encoder": TextEncoder, "vae": AutoencoderKL, "unet": UNet3D, "video": VideoModel, "tsr": VideoModel}

# ------------------------------------------------------------------------------------------------------------ names

# SD2.1's single file keeps the names of the code that trained it. These rules turn one into "part/name in the folder";
# each applies to what those above it left. K counts input or output blocks, three a level: ResBlock with attention,
# twice (three times on the way up), and the change of resolution.
RENAME = [(re.compile(pattern), new) for pattern, new in [
    (r"^model\.diffusion_model\.", "unet/"),
    (r"^unet/time_embed\.0", "unet/time_embedding.linear_1"),
    (r"^unet/time_embed\.2", "unet/time_embedding.linear_2"),
    (r"^unet/input_blocks\.0\.0", "unet/conv_in"),
    (r"^unet/out\.0", "unet/conv_norm_out"),
    (r"^unet/out\.2", "unet/conv_out"),
    (r"\binput_blocks\.(\d+)\.0\.op", lambda m: f"down_blocks.{(int(m[1]) - 1) // 3}.downsamplers.0.conv"),
    (r"\binput_blocks\.(\d+)\.0", lambda m: f"down_blocks.{(int(m[1]) - 1) // 3}.resnets.{(int(m[1]) - 1) % 3}"),
    (r"\binput_blocks\.(\d+)\.1", lambda m: f"down_blocks.{(int(m[1]) - 1) // 3}.attentions.{(int(m[1]) - 1) % 3}"),
    (r"\boutput_blocks\.(\d+)\.[12]\.conv", lambda m: f"up_blocks.{int(m[1]) // 3}.upsamplers.0.conv"),
    (r"\boutput_blocks\.(\d+)\.0", lambda m: f"up_blocks.{int(m[1]) // 3}.resnets.{int(m[1]) % 3}"),
    (r"\boutput_blocks\.(\d+)\.1", lambda m: f"up_blocks.{int(m[1]) // 3}.attentions.{int(m[1]) % 3}"),
    (r"\bmiddle_block\.1", "mid_block.attentions.0"),
    (r"\bmiddle_block\.([02])", lambda m: f"mid_block.resnets.{int(m[1]) // 2}"),
    (r"\bin_layers\.0", "norm1"), (r"\bin_layers\.2", "conv1"), (r"\bemb_layers\.1", "time_emb_proj"),
    (r"\bout_layers\.0", "norm2"), (r"\bout_layers\.3", "conv2"), (r"\bskip_connection", "conv_shortcut"),

    (r"^first_stage_model\.", "vae/"),
    (r"(?<=vae/)(en|de)coder\.norm_out", r"\1coder.conv_norm_out"),
    (r"\bmid\.block_([12])", lambda m: f"mid_block.resnets.{int(m[1]) - 1}"),
    (r"\bmid\.attn_1\.norm", "mid_block.attentions.0.group_norm"),
    (r"\bmid\.attn_1\.([qkv])", r"mid_block.attentions.0.to_\1"),
    (r"\bmid\.attn_1\.proj_out", "mid_block.attentions.0.to_out.0"),
    (r"\bdown\.(\d)\.block\.(\d)", r"down_blocks.\1.resnets.\2"),
    (r"\bdown\.(\d)\.downsample", r"down_blocks.\1.downsamplers.0"),
    (r"\bup\.(\d)\.block\.(\d)", lambda m: f"up_blocks.{3 - int(m[1])}.resnets.{m[2]}"),     # counted by resolution
    (r"\bup\.(\d)\.upsample", lambda m: f"up_blocks.{3 - int(m[1])}.upsamplers.0"),          # there, by order here
    (r"\bnin_shortcut", "conv_shortcut"),

    (r"^cond_stage_model\.model\.", "text_encoder/text_model."),
    (r"\btoken_embedding", "embeddings.token_embedding"),
    (r"\bpositional_embedding$", "embeddings.position_embedding.weight"),
    (r"\btransformer\.resblocks\.(\d+)", r"encoder.layers.\1"),
    (r"\bln_final", "final_layer_norm"), (r"\bln_([12])", r"layer_norm\1"),
    (r"\bmlp\.c_fc", "mlp.fc1"), (r"\bmlp\.c_proj", "mlp.fc2"),
    (r"\battn\.out_proj", "self_attn.out_proj"), (r"\battn\.in_proj_", "self_attn.qkv_proj."),
]]

# In the folder, names changed twice: the autoencoder's attention, and a prefix that some text encoders are without.
RENAME_OLD = [(re.compile(pattern), new) for pattern, new in [
    (r"^(vae/.*attentions\.0\.)(query|key|value)\b", lambda m: f"{m[1]}to_{m[2][0]}"),
    (r"^(vae/.*attentions\.0\.)proj_attn\b", r"\1to_out.0"),
    (r"^text_encoder/(?=embeddings|encoder|final_layer_norm)", "text_encoder/text_model."),
]]

# Tensors that a checkpoint may hold and that nobody needs: the schedule's tables, which follow from four numbers, the
# average's book-keeping, OpenCLIP's last layer and its way to pictures, and the numbers 0 to 76.
NOT_NEEDED = re.compile(r"""
    betas | (sqrt_|log_)?(one_minus_)?(recip_|recipm1_)?alphas_cumprod(_prev)? | posterior_\w+ |
    model_ema\.decay | model_ema\.num_updates |
    cond_stage_model\.model\.(transformer\.resblocks\.23\..+ | text_projection | logit_scale) |
    text_encoder/(text_model\.)?embeddings\.position_ids""", re.VERBOSE)


def rename(name, rules):
    """A tensor's name after all rules."""
    for pattern, new in rules:
        name = pattern.sub(new, name)
    return name


def own_names(header):
    """The one rule that a file of ours needs: what its stage trained goes to that part. None if it is not ours."""
    if any(name.startswith("text_encoder.text_model.") for name in header):              # stage image: two parts
        return [(re.compile(r"^(unet|text_encoder)\."), r"\1/")]
    ours = {"unet.conv_in.weight": "video/", "encoder.conv_in.weight": "vae/"}
    return next(([(re.compile("^"), part)] for name, part in ours.items() if name in header), None)


FAMILIES = [("an AnimateDiff motion module", r"motion_modules\."),
            ("a ControlNet", r"controlnet_|control_model\.|zero_convs\."),
            ("SDXL", r"conditioner\.|add_embedding\.|label_emb\."),
            ("LoRA weights", r"lora_"),
            ("a video model of ours", r"temporal_|appearnet\.")]
WIDTHS = {768: "SD1", 1024: "SD2", 1280: "SDXL", 2048: "SDXL"}              # of the text that the U-Net attends to


def family(header, prediction_type=None):
    """What a file with these tensors seems to be, in words. `prediction_type` of its schedule tells SD2's siblings."""
    for name, pattern in FAMILIES:
        if any(re.search(pattern, tensor) for tensor in header):
            return name
    for tensor, stored in header.items():
        if re.search(r"attn2\.to_k\.weight$|token_embedding\.weight$", tensor) and len(stored.shape) == 2:
            name = WIDTHS.get(stored.shape[1], "a model of its own size")
            return {"epsilon": "SD2 base (eps)", "v_prediction": "SD2 768 (v-prediction)"}.get(prediction_type, name) \
                if name == "SD2" else name
    return "a Stable Diffusion autoencoder" if any("quant_conv" in tensor for tensor in header) else "none that we know"


# ------------------------------------------------------------------------------------------------------------- files

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: under which name, in which file, from which byte."""
    file: Path
    name: str
    dtype: str
    shape: tuple
    start: int

    def thirds(self):
        """Query, key and value of a fused tensor: its upper, middle and lower rows."""
        shape = (self.shape[0] // 3, *self.shape[1:])
        size = math.prod(shape) * DTYPES[self.dtype].itemsize
        return [replace(self, name=f"{self.name} ({q} of q, k, v)", shape=shape, start=self.start + i * size)
                for i, q in enumerate("qkv")]


def read_header(path):
    """{name: Stored} of a safetensors file; nothing but its header is read. ValueError in one line if it is none."""
    try:
        with safe_open(path, framework="pt"):                                # the library checks every offset and size
            pass
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(size))
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{path}: not a readable safetensors file ({str(e).splitlines()[0]}); "
                         "copy it again (a .bin or .ckpt is never read, whatever it is called)") from None
    return {name: Stored(Path(path), name, entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0])
            for name, entry in entries.items() if name != "__metadata__"}


def find_weights(folder):
    """The one weight file of a component's folder; ValueError if there is none."""
    for stem in ("diffusion_pytorch_model", "model"):
        for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
            if (folder / name).is_file():
                return folder / name
    raise ValueError(f"{folder}: no diffusion_pytorch_model.safetensors or model.safetensors (or .fp16.safetensors)")


def locate(path, parts=tuple(PARTS)):
    """Where every tensor of a model lies: {part: {name in the folder: Stored}}, of these parts where it has them.

    `path` is a model folder, or a single file: SD2.1's, a video model's, or a training checkpoint, of which the average
    (`ema`) counts, if it has one.
    """
    path = Path(path)
    if path.is_dir():
        files = {part: find_weights(path / part) for part in parts if (path / part).is_dir()}
        if not files:
            raise ValueError(f"{path}: holds no folder {' or '.join(parts)}; is this a model folder?")
        names = {f"{part}/{name}": stored for part, file in files.items() for name, stored in read_header(file).items()}
    else:
        header = read_header(path)
        if any(name.startswith("adam.") for name in header):
            prefix = "ema." if any(name.startswith("ema.") for name in header) else "model."
            header = {name.removeprefix(prefix): stored for name, stored in header.items() if name.startswith(prefix)}
        names = {rename(name, own_names(header) or RENAME): stored for name, stored in header.items()}
    located = defaultdict(dict)
    for name, stored in names.items():
        if NOT_NEEDED.fullmatch(name) or NOT_NEEDED.fullmatch(stored.name):
            continue
        name = rename(name, RENAME_OLD)
        part, _, tensor = name.partition("/")
        if part not in PARTS:
            raise ValueError(f"{path}: tensor {stored.name} belongs to no part of SD2.1; "
                             f"the file looks like {family(names)}")
        if "qkv_proj" in tensor and len(stored.shape) and stored.dtype in DTYPES:
            for q, third in zip("qkv", stored.thirds(), strict=True):
                located[part][tensor.replace("qkv", q)] = third
        else:
            located[part][tensor] = stored
    return located


def check(model, found, path):
    """ValueError that names the first difference between a model's tensors and those found."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    looks = f"; the file looks like {family(found)}"
    for odd, what in ((wanted.keys() - found.keys(), "is missing"),
                      (found.keys() - wanted.keys(), "belongs to no part of the model")):
        if odd:
            raise ValueError(f"{path}: tensor {min(odd)} {what} ({len(odd)} such){looks}")
    for name, shape in wanted.items():
        stored = found[name]
        single = stored.shape == (*shape, 1, 1) and ".attentions.0.to_" in name     # VAE: a 1x1 convolution there
        if not (stored.shape == shape or single) or stored.dtype not in DTYPES:
            raise ValueError(f"{path}: tensor {stored.name} is {stored.dtype} {list(stored.shape)}, "
                             f"want a float {list(shape)}{looks}")


@torch.no_grad()
def fill(parameters, found, piece=2**24):
    """Reads stored tensors into {name: parameter}, cast and moved, never more than about `piece` bytes at a time."""
    row = {name: DTYPES[found[name].dtype].itemsize * parameter[0].numel() for name, parameter in parameters.items()}
    buffer = bytearray(max(piece, *row.values()))
    for name, parameter in parameters.items():
        stored, dtype = found[name], DTYPES[found[name].dtype]
        with open(stored.file, "rb") as file:
            file.seek(stored.start)
            for part in parameter.split(max(1, piece // row[name])):
                file.readinto(memoryview(buffer)[:part.numel() * dtype.itemsize])
                numbers = torch.frombuffer(buffer, dtype=dtype, count=part.numel()).to(part.dtype)
                if not all(extreme.isfinite() for extreme in numbers.aminmax()):
                    raise ValueError(f"{stored.file}: tensor {stored.name} holds NaN or infinity"
                                     + (" in float16; try bfloat16" if part.dtype == torch.float16 else ""))
                part.copy_(numbers.view(part.shape))


# ------------------------------------------------------------------------------------------------------------ configs

# What a published config.json may say beside our constructors' arguments: one value only, or nothing that matters here.
FIXED = {"act_fn": ("silu",), "hidden_act": ("gelu",), "use_linear_projection": (True,), "flip_sin_to_cos": (True,),
         "downsample_padding": (1,), "mid_block_scale_factor": (1,), "norm_eps": (1e-5,), "out_channels": (4,),
         "beta_schedule": ("scaled_linear",), "steps_offset": (1,), "mid_block_type": ("UNetMidBlock2DCrossAttn",),
         "resnet_time_scale_shift": ("default",), "time_embedding_type": ("positional",)}
UNUSED = {"sample_size", "up_block_types", "down_block_types",               # those of the autoencoder: all alike
          "architectures", "model_type", "projection_dim", "torch_dtype", "dtype", "transformers_version",
          "initializer_factor", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id", "scaling_factor",
          "sampling", "training", "skip_prk_steps", "clip_sample_range", "timestep_spacing",
          "upcast_attention", "force_upcast"}      # PyTorch's attention weighs in float32, whatever the dtype


def read_json(path):
    """The JSON object in a file. ValueError in one line if it is missing or is none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as e:
        raise ValueError(f"{path}: {e.strerror}; is this a model folder?") from None
    except ValueError as e:
        raise ValueError(f"{path}: not JSON ({e})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: want a JSON object, found {type(content).__name__}")
    return content


def write_json(content, path):
    """Writes beside, then renames: never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def arguments(model_class, config, where):
    """The entries of a config that the constructor takes. A known key with another value, or an unknown one that is
    not null, false, 0 or empty, asks for something this code does not do: ValueError."""
    wanted = set(inspect.signature(model_class).parameters)
    if model_class in (UNet3D, VideoModel):                        # they pass their **config on to Encoder
        wanted |= set(inspect.signature(Encoder).parameters)
    for key, value in config.items():
        if key in wanted or key in UNUSED or key.startswith("_"):
            continue
        if value not in FIXED.get(key, (None, False, 0, [], "")):
            raise ValueError(f"{where}: {key} = {value!r} is not supported")
    return {key: value for key, value in config.items() if key in wanted}


def read_config(path, part):
    """(config.json of a part, where it is from). A file may lie in a model folder, as SD2.1's and our checkpoints do,
    or beside the config.json that it was saved with; if not, it is of SD2.1's size, our defaults."""
    path = Path(path)
    if path.is_dir():
        return read_json(path / part / "config.json"), path / part / "config.json"
    near = [path.parent / part / "config.json", *([path.parent / "config.json"] if part == "video" else [])]
    return next(((read_json(file), file) for file in near if file.is_file()), ({}, path))


# ------------------------------------------------------------------------------------------------------- whole models

def build(path, part):
    """A part as its config.json describes it, on PyTorch's `meta` device: shapes, but no memory."""
    config, where = read_config(path, part)
    more = {"temporal": False} if part == "unet" else {}
    try:
        with torch.device("meta"):                                           # no memory, no random numbers
            return PARTS[part](**arguments(PARTS[part], config, where), **more).to(memory_format=torch.channels_last)
    except (TypeError, ValueError, RuntimeError, IndexError, ZeroDivisionError, AttributeError) as e:
        says = str(e).splitlines()[0]
        raise ValueError(says if says.startswith(str(where)) else
                         f"{where}: describes no possible model ({says})") from None


def load(path, part, dtype=torch.float32, device="cpu"):
    """A part of the model at `path`, in eval mode: built from its config.json, filled from its file."""
    path = Path(path)
    found = locate(path, [part]).get(part)
    if not found:
        raise ValueError(f"{path}: holds no {part}; the file looks like {family(read_header(path))}")
    try:
        model = build(path, part)
    except ValueError as e:
        raise ValueError(f"{e}; the file looks like {family(found)}") from None
    check(model, found, find_weights(path / part) if path.is_dir() else path)
    model = model.to(dtype).to_empty(device=device).eval()
    fill(model.state_dict(), found)
    return model


def load_unet(path, dtype=torch.float32, device="cpu"):
    """SD2.1's image model (Sec. 3.1): UNet3D without temporal layers. VideoModel.grow makes the 3D one of it."""
    return load(path, "unet", dtype, device)


def load_vae(path, dtype=torch.float32, device="cpu"):
    """The autoencoder, and the factor that its latents are multiplied by (0.18215 where the config has none).

    ValueError if train.py has written the autoencoder, but not yet measured the factor.
    """
    vae, (config, file) = load(path, "vae", dtype, device), read_config(path, "vae")
    if (scale := config.get("scaling_factor", 0.18215)) is None:
        raise ValueError(f"{file}: the training of this autoencoder was stopped before the scale of its latents was "
                         "measured; give the command of stage vae again")
    return vae, scale


def load_text_encoder(path, dtype=torch.float32, device="cpu"):
    """CLIP's text encoder."""
    return load(path, "text_encoder", dtype, device)


def load_video(path, dtype=torch.float32, device="cpu"):
    """The trained video model, f_theta of Eq. 5: of a model folder, or a file that `save` wrote, as it lies."""
    return load(path, "video", dtype, device)


def load_tsr(path, dtype=torch.float32, device="cpu"):
    """The temporal super-resolution model (Sec. 3.1) of a model folder: the same network, other weights."""
    return load(path, "tsr", dtype, device)


def load_schedule(path):
    """The noise schedule of scheduler/scheduler_config.json, in the model folder or beside the single file.

    Without one, SD2.1's: v-prediction if the file's name says 768, as the published one does, else epsilon.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    file = folder / "scheduler" / "scheduler_config.json"
    if path.is_file() and not file.is_file():
        return NoiseSchedule(prediction_type="v_prediction" if "768" in path.name else "epsilon")
    return NoiseSchedule(**arguments(NoiseSchedule, read_json(file), file))


def write_tensors(tensors, path, metadata=None):
    """A safetensors file, whole or none: written beside, flushed to disk, renamed. OSError, in one line.

    Beside is a folder, for save_file has files of its own while it writes, and a killed run leaves them all. The next
    one clears it.
    """
    part = path.with_name(f".{path.name.partition('.')[0]}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        save_file(tensors, part / path.name, metadata=metadata)
        with open(part / path.name, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part / path.name, path)
    except (SafetensorError, OSError) as error:
        raise OSError(f"{path}: cannot be written ({' '.join(str(error).split())})") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def save(tensors, config, folder, stem="diffusion_pytorch_model"):
    """Writes a component's folder: config.json and float16 weights, whole or none each."""
    folder = Path(folder)
    write_json(config, folder / "config.json")
    half = {name: tensor.detach().half().cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(half, folder / f"{stem}.fp16.safetensors")


# ------------------------------------------------------------------------------------------------------------ the map

@functools.cache
def written(module_class):
    """Where a class is written: "ResnetBlock  unet3d.py:192"."""
    name, file = module_class.__name__, Path(inspect.getsourcefile(module_class))
    line = next(i for i, text in enumerate(file.read_text().splitlines(), 1) if text.startswith(f"class {name}("))
    return f"{name:18} {file.name}:{line}"


def owners(model):
    """{name of a tensor: the innermost module with a class of ours that holds it}."""
    modules = dict(model.named_modules())
    ours = {path: module for path, module in modules.items() if not type(module).__module__.startswith("torch.")}

    def owner(name):
        while name not in ours:
            name = name.rpartition(".")[0]
        return ours[name]
    return {name: owner(name) for name in model.state_dict()}


def print_map(path):
    """Prints where each tensor of a checkpoint goes, part by part, and what the paper adds, apart."""
    def table(title, rows):
        count, width = sum(math.prod(row[1]) for row in rows), max((len(row[0]) for row in rows), default=0)
        print(f"\n{title}: {len(rows)} tensors, {count:,} parameters")
        for name, shape, dtype, holder in rows:
            print(f"  {name:{width}}  {str(list(shape)):18} {dtype:4}  {written(type(holder))}")
        return count

    path, located = Path(path), locate(path)
    prediction = load_schedule(path).prediction_type if {"unet", "text_encoder"} & located.keys() else None
    print(f"{path}: looks like {family(next(iter(located.values())), prediction)}")
    total = 0
    for part in [part for part in PARTS if part in located]:
        found, model = located[part], build(path, part)
        check(model, found, path)
        rows = [(found[name].name if found[name].name == name else f"{found[name].name} -> {name}",
                 found[name].shape, found[name].dtype, holder, name) for name, holder in owners(model).items()]
        ours = PARTS[part] is VideoModel
        total += table(f"{part}, from the image model" if ours else part,
                       [row[:4] for row in rows if not ours or not is_new(row[4])])
        if ours:
            total += table(f"{part}, what the paper adds", [row[:4] for row in rows if is_new(row[4])])
    print(f"\nall: {total:,} parameters")
    if "unet" in located and "video" not in located:
        config, where = read_config(path, "unet")
        with torch.device("meta"):
            model = VideoModel(**arguments(VideoModel, config, where))
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        table("what the paper adds, not in this checkpoint",
              [(name, shapes[name], "-", holder) for name, holder in owners(model).items() if is_new(name)])


def main(argv=None):
    """The command line; see the top of the file."""
    parser = ArgumentParser(description="Print the map of a checkpoint: each tensor, and its class.")
    parser.add_argument("path", type=Path, help="a model folder, SD2.1's single file, or a checkpoint of train.py")
    try:
        print_map(parser.parse_args(argv).path)
        sys.stdout.flush()
    except BrokenPipeError:                                                  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as e:
        print(f"weights.py: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
