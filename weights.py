"""Checkpoints, read and written: Sec. 4.1 "built upon the pre-trained weights of Stable Diffusion 2.1".

A model folder is laid out like SD2.1's published one; `video/` is ours and holds the U-Net grown to 3D with AppearNet.

    unet/  vae/  video/            config.json, diffusion_pytorch_model[.fp16].safetensors
    text_encoder/                  config.json, model[.fp16].safetensors
    scheduler/scheduler_config.json    tokenizer/merges.txt

here  load_unet, load_vae, load_text_encoder, load_video, load_schedule; save; read_json, write_json

A module's tensor names are the file's, so loading is reading. It is strict: a tensor that is missing, one that nobody
asked for, a wrong shape or a number that is not finite is a ValueError that names the file and the first difference.
"""

import inspect
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from appearnet import VideoModel
from clip import TextEncoder
from sampler import NoiseSchedule
from unet3d import Encoder, UNet3D
from vae import AutoencoderKL

# What a published config.json may say beside our constructors' arguments: one value only, or nothing that matters here.
FIXED = {"act_fn": ("silu",), "hidden_act": ("gelu",), "use_linear_projection": (True,), "flip_sin_to_cos": (True,),
         "downsample_padding": (1,), "mid_block_scale_factor": (1,), "norm_eps": (1e-5,), "out_channels": (4,),
         "beta_schedule": ("scaled_linear",), "steps_offset": (1,), "mid_block_type": ("UNetMidBlock2DCrossAttn",),
         "resnet_time_scale_shift": ("default",), "time_embedding_type": ("positional",)}
UNUSED = {"sample_size", "up_block_types", "architectures", "model_type", "projection_dim", "torch_dtype",
          "transformers_version", "initializer_factor", "initializer_range", "bos_token_id", "eos_token_id",
          "pad_token_id", "scaling_factor", "sampling", "skip_prk_steps", "clip_sample_range", "timestep_spacing"}


def read_json(path):
    """The JSON object in a file. ValueError in one line if it is missing or is none."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as e:
        raise ValueError(f"{path}: {e.strerror}; is this a model folder?") from None
    except ValueError as e:
        raise ValueError(f"{path}: not JSON ({e})") from None


def write_json(content, path):
    """Writes beside, then renames: never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)


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


def find_weights(folder):
    """The one weight file of a component's folder; ValueError if there is none."""
    for stem in ("diffusion_pytorch_model", "model"):
        for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
            if (folder / name).is_file():
                return folder / name
    raise ValueError(f"{folder}: no diffusion_pytorch_model.safetensors or model.safetensors (or .fp16.safetensors)")


def read_tensors(path, shapes, dtype):
    """{name: tensor} of a safetensors file that holds exactly the names and shapes given, in `dtype`."""
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            missing, extra = shapes.keys() - names, names - shapes.keys()
            for odd, what in ((missing, "is missing"), (extra, "belongs to no part of the model")):
                if odd:
                    raise ValueError(f"{path}: tensor {min(odd)} {what} ({len(odd)} such)")
            tensors = {}
            for name, shape in shapes.items():
                tensor = file.get_tensor(name)
                if tensor.shape != shape or not tensor.is_floating_point():
                    found = f"{tensor.dtype} {list(tensor.shape)}"
                    raise ValueError(f"{path}: tensor {name} is {found}, want a float {list(shape)}")
                if not tensor.isfinite().all():
                    raise ValueError(f"{path}: tensor {name} holds NaN or infinity")
                tensors[name] = tensor.to(dtype)
            return tensors
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{path}: not a readable safetensors file ({str(e).splitlines()[0]}); copy it again") from None


def load(model_class, folder, dtype=torch.float32, **more):
    """The model in a component's folder, in eval mode: built from config.json and `more`, filled from the file."""
    folder, where = Path(folder), Path(folder) / "config.json"
    config = arguments(model_class, read_json(where), where)
    try:
        with torch.device("meta"):                                           # no memory, no random numbers
            model = model_class(**config, **more)
    except (TypeError, ValueError, RuntimeError, IndexError, ZeroDivisionError) as e:
        raise ValueError(f"{where}: describes no possible model ({str(e).splitlines()[0]})") from None
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    model.load_state_dict(read_tensors(find_weights(folder), shapes, dtype), assign=True)
    return model.to(memory_format=torch.channels_last).eval()


def load_unet(path, dtype=torch.float32):
    """SD2.1's image model (Sec. 3.1): UNet3D without temporal layers. VideoModel.grow makes the 3D one of it."""
    return load(UNet3D, Path(path) / "unet", dtype, temporal=False)


def load_vae(path, dtype=torch.float32):
    """The autoencoder, and the factor that its latents are multiplied by (0.18215 where the config has none)."""
    folder = Path(path) / "vae"
    vae = load(AutoencoderKL, folder, dtype)
    return vae, read_json(folder / "config.json").get("scaling_factor", 0.18215)


def load_text_encoder(path, dtype=torch.float32):
    """CLIP's text encoder."""
    return load(TextEncoder, Path(path) / "text_encoder", dtype)


def load_video(path, dtype=torch.float32):
    """The trained video model, f_theta of Eq. 5."""
    return load(VideoModel, Path(path) / "video", dtype)


def load_schedule(path):
    """The noise schedule of scheduler/scheduler_config.json."""
    file = Path(path) / "scheduler" / "scheduler_config.json"
    return NoiseSchedule(**arguments(NoiseSchedule, read_json(file), file))


def save(tensors, config, folder, stem="diffusion_pytorch_model"):
    """Writes a component's folder: config.json and float16 weights, each beside and then renamed."""
    folder = Path(folder)
    write_json(config, folder / "config.json")
    path = folder / f"{stem}.fp16.safetensors"
    beside = path.with_name(path.name + ".part")
    save_file({name: tensor.detach().half().cpu().contiguous() for name, tensor in tensors.items()}, beside)
    os.replace(beside, path)
