"""Checkpoints, in and out: Sec. 4.1 "built upon the pre-trained weights of Stable Diffusion 2.1".

    python -m sd21.weights PATH     prints the map: every tensor of a model, its shape, and the class it belongs to

A model is a folder with the files below, or SD2.1's single file. Loading is strict: a ValueError names the file and the
first tensor that is missing, unknown, of a wrong shape or not finite. Tensors are read piece by piece.
"""

import inspect
from collections import defaultdict, namedtuple
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from sd21.command import height_width
from sd21.files import read_json, write_json, write_tensors
from sd21.names import NOT_NEEDED, OWN_FILES, RENAME, RENAME_OLD, family, rename

# SD2.1's folders; those with weights have a config.json beside them. video/ and tsr/ are ours: 3D U-Net and AppearNet.
COMPONENTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler", "video", "tsr")
MODELS = tuple(name for name in COMPONENTS if name not in ("tokenizer", "scheduler"))       # those with weights
FOLDER_FILES = {"tokenizer": ["merges.txt"], "scheduler": ["scheduler_config.json"]} | dict.fromkeys(MODELS, [
    f"{stem}{half}.safetensors" for stem in ("diffusion_pytorch_model", "model") for half in ("", ".fp16")])
Stored = namedtuple("Stored", "file name dtype shape rows first", defaults=(None, 0))   # rows[first:]: its numbers

# Keys of published configs that are no arguments of our classes. FIXED: the values that this code computes with.
# UNUSED: no difference here (one type of block, float32 sums in attention, our own solvers, averaging of weights).
FIXED = {"act_fn": "silu", "hidden_act": "gelu", "use_linear_projection": True, "flip_sin_to_cos": True,
         "downsample_padding": 1, "mid_block_scale_factor": 1, "norm_eps": 1e-5, "out_channels": 4, "steps_offset": 1,
         "beta_schedule": "scaled_linear", "mid_block_type": "UNetMidBlock2DCrossAttn", "attention_type": "default",
         "resnet_time_scale_shift": "default", "time_embedding_type": "positional", "transformer_layers_per_block": 1,
         "resnet_out_scale_factor": 1, "conv_in_kernel": 3, "conv_out_kernel": 3, "algorithm_type": "dpmsolver++",
         "interpolation_type": "linear", "timestep_type": "discrete", "final_sigmas_type": "zero",
         "use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": True}
UNUSED = set("""sample_size up_block_types down_block_types architectures model_type projection_dim torch_dtype dtype
    transformers_version initializer_factor initializer_range bos_token_id eos_token_id pad_token_id sampling training
    use_cache tie_word_embeddings return_dict timestep_scaling original_inference_steps
    skip_prk_steps clip_sample_range timestep_spacing upcast_attention force_upcast addition_embed_type_num_heads power
    sample_max_value dynamic_thresholding_ratio lambda_min_clipped flow_shift time_shift_type solver_order solver_type
    predict_x0 lower_order_final variance_type decay inv_gamma optimization_step use_ema_warmup""".split())


class Component(namedtuple("Component", "name place config file")):
    """One component of the model folder or single file `place`. config: the path of its config JSON, None for a single
    file that has none. file: of its weights, merges.txt or scheduler_config.json, None if that is missing."""
    def read(self):
        """(its config, where that is from). {} for a single file without one: our defaults are SD2.1's sizes."""
        if not self.config:                 # SD2.1's two single files differ by name only: the 768 one predicts v
            schedule = {"prediction_type": "v_prediction" if "768" in self.place.name else "epsilon"}
            return (schedule if self.name == "scheduler" else {}), self.place
        config = read_json(self.config)
        if not all(isinstance(config.get(key, {}), dict) for key in ("sampling", "training")):
            raise ValueError(f"{self.config}: want JSON objects as sampling and training")
        return config, self.config

    def settings(self, key):
        """The entry "sampling" or "training" of its config in a model folder; {} if there is none."""
        return self.read()[0].get(key, {}) if self.place.is_dir() and self.config.is_file() else {}


def component(name, place):
    """The Component called `name` of a model folder or single file, whether it is there or not. A single file's config
    may lie beside it in the folder `name`; that of a video model right beside it, where `save` writes it."""
    place = Path(place)
    single, folder = place.is_file(), (place.parent if place.is_file() else place) / name
    files = [place] if single and name in MODELS else [folder / file for file in FOLDER_FILES[name]]
    configs = [folder / ("scheduler_config.json" if name == "scheduler" else "config.json")]
    configs += [place.with_name("config.json")] if single and name == "video" else []
    config = next(filter(Path.is_file, configs), None if single else configs[0])
    return Component(name, place, config, next(filter(Path.is_file, files), None))


def find_file(name, folder):
    """The file that a component of a model folder is read from. Raises ValueError if it is missing."""
    if file := component(name, folder).file:
        return file
    if index := next(Path(folder, name).glob("*.safetensors.index*.json"), None):
        raise ValueError(f"{index}: the weights are in several files; merge them into one {FOLDER_FILES[name][0]}")
    others = " or model.safetensors (or .fp16.safetensors)" if name in MODELS else ""
    raise ValueError(f"{folder / name}: no {FOLDER_FILES[name][0]}{others}")


def resolve_components(model, overlay=None, merges=None):
    """Where each component of a model lies: {name: Component}, without `video` and `tsr` if there is none.
    model: a model folder or single file, else ValueError. overlay: the file of a video model, or the --out folder of
    train.py, whose components replace the model's; it need not exist. merges: merges.txt, which comes before both."""
    model = Path(model)
    if not model.exists():
        raise ValueError(f"{model}: no such model folder or file")
    places = {name: model for name in COMPONENTS if name not in ("video", "tsr") or (model / name).is_dir()}
    places["tokenizer"] = model.parent if model.is_file() else model
    if overlay and Path(overlay).is_file():
        places["video"] = overlay
    elif overlay:                               # a stopped training may have left a tokenizer without its text encoder
        places |= {name: overlay for name in COMPONENTS
                   if component("text_encoder" if name == "tokenizer" else name, overlay).file}
    if merges:
        places["tokenizer"] = merges
    return {name: component(name, place) for name, place in places.items()}


def check_overlay(overlay, merges=None):
    """For --weights: raises ValueError unless `overlay` is a file, or a folder whose components are complete."""
    overlay = Path(overlay)
    folders = [name for name in COMPONENTS if (overlay / name).is_dir()]
    if not overlay.exists():
        raise ValueError(f"{overlay}: no such file of a video model, nor a folder that train.py wrote")
    if overlay.is_dir() and not folders:
        raise ValueError(f"{overlay}: has none of the folders {', '.join(COMPONENTS)}; want one that train.py wrote")
    if ("tokenizer" in folders) != ("text_encoder" in folders) and not merges:
        raise ValueError(f"{overlay}: has one of tokenizer/ and text_encoder/; they belong together, and train.py "
                         "writes both")
    for name in folders:
        find_file(name, overlay)


def describe(components):
    """One line: "tokenizer, text_encoder, vae, unet, scheduler, tsr from toy; video from mine"."""
    places = dict.fromkeys(part.place for part in components.values())
    names = {place: [name for name, part in components.items() if part.place == place] for place in places}
    return "; ".join(f"{', '.join(names[place])} from {place}" for place in places)


def read_header(path):
    """{name: Stored} of a safetensors file, from its header alone. Raises ValueError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:                        # checks every offset and size
            slices = {name: file.get_slice(name) for name in file.keys()}    # they stay open; no number is read yet
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({str(error).splitlines()[0]}); "
                         "copy it again (a .bin or .ckpt is never read, whatever it is called)") from None
    return {name: Stored(Path(path), name, x.get_dtype(), tuple(x.get_shape()), x) for name, x in slices.items()}


def locate(path, names=MODELS):
    """Where every tensor lies: {component: {name in the folder: Stored}}, for those of `names` that `path`, a model
    folder or single file, has. Takes the averaged weights of a training checkpoint if it has any. Raises ValueError."""
    path, located = Path(path), defaultdict(dict)
    if path.is_dir():
        folders = [name for name in names if (path / name).is_dir()]
        if not folders:
            raise ValueError(f"{path}: holds no folder {' or '.join(names)}; is this a model folder?")
        tensors = {f"{name}/{tensor}": stored for name in folders
                   for tensor, stored in read_header(find_file(name, path)).items()}
    else:
        tensors = read_header(path)
        if any(name.startswith("adam.") for name in tensors):   # AdamW's state: a training checkpoint
            prefix = "ema." if any(name.startswith("ema.") for name in tensors) else "model."
            tensors = {name.removeprefix(prefix): stored for name, stored in tensors.items() if name.startswith(prefix)}
        rules = next((OWN_FILES[name] for name in OWN_FILES if name in tensors), RENAME)
        tensors = {rename(name, rules): stored for name, stored in tensors.items()}
    for name, stored in tensors.items():
        if NOT_NEEDED.fullmatch(name) or NOT_NEEDED.fullmatch(stored.name):
            continue
        owner, _, tensor = rename(name, RENAME_OLD).partition("/")
        if owner not in MODELS:
            raise ValueError(f"{path}: tensor {stored.name} belongs to no part of SD2.1; "
                             f"the file looks like {family(tensors)}")
        if "qkv_proj" in tensor and stored.shape and stored.shape[0] % 3 == 0:
            third = stored.shape[0] // 3                                     # upper, middle and lower rows: q, k, v
            for i, q in enumerate("qkv"):
                located[owner][tensor.replace("qkv", q)] = stored._replace(
                    name=f"{stored.name} ({q} of q, k, v)", shape=(third, *stored.shape[1:]), first=i * third)
        else:
            located[owner][tensor] = stored
    return located


@torch.no_grad()
def fill(parameters, tensors, piece=2**22):
    """Reads `tensors`, {name: Stored}, into {name: parameter}, `piece` numbers at a time. ValueError if not finite."""
    for name, parameter in parameters.items():
        stored, first = tensors[name], tensors[name].first
        for target in parameter.split(max(1, piece // parameter[0].numel())):
            numbers = stored.rows[first:first + len(target)].view(target.shape).to(target.dtype)
            first += len(target)
            if not all(extreme.isfinite() for extreme in numbers.aminmax()):
                raise ValueError(f"{stored.file}: tensor {stored.name} holds NaN or infinity"
                                 + (" in float16; try bfloat16" if target.dtype == torch.float16 else ""))
            target.copy_(numbers)


def fits(key, value, default):
    """Whether a config's value has the type of our default: a number, a text, true or false, a list of 1 to 10."""
    if key == "size" and type(value) in (int, str):                          # 320, or "320x192"
        with suppress(ValueError):
            return bool(height_width(value))
        return False
    if isinstance(default, tuple):
        return type(value) in (list, tuple) and 0 < len(value) <= 10 and all(fits(key, x, default[0]) for x in value)
    if isinstance(default, float):
        low, high = (-1e9 if key in ("guidance", "lam", "gamma", "eta") else 0), (1 if key.startswith("beta") else 1e9)
        number = type(value) in (int, float)
        return (low < value < high) if number else (value is None and key == "scaling_factor")       # null: see `load`
    most = 64 if "layers" in key else 2**20                                  # a layer takes time, even on `meta`
    return type(value) is type(default) and (type(value) is not int or 0 < value <= most)


def arguments(model_class, config, where):
    """The entries of a config that are parameters of model_class.Config, or of the class itself if it has none.
    ValueError, which names `where`, for an entry of a wrong type, or that asks for what this code does not do."""
    wanted = inspect.signature(getattr(model_class, "Config", model_class)).parameters
    for key, value in config.items():
        harmless = [FIXED[key]] if key in FIXED else [None, False, 0, [], ""]
        known = key in UNUSED or key.startswith("_") or value in harmless
        if not (fits(key, value, wanted[key].default) if key in wanted else known):
            raise ValueError(f"{where}: {key!r:.60} = {value!r:.60} is not supported")
    return {key: value for key, value in config.items() if key in wanted}


def read_settings(component, key, settings_class, **fixed):
    """A settings_class from the entry `key` (None: all) of a component's config, and `fixed`. Raises ValueError."""
    config, where = component.read()
    settings = arguments(settings_class, config.get(key, {}) if key else config, where) | fixed
    try:
        return settings_class(**settings)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def build(component, model_class, tensors, **fixed):
    """The model of a component's config, on `meta`: shapes, no memory. Raises ValueError, which names the first
    difference, unless `tensors`, {name: Stored}, are exactly the model's."""
    try:
        with torch.device("meta"):
            model = read_settings(component, None, model_class, **fixed).to(memory_format=torch.channels_last)
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        if names := (wanted.keys() - tensors.keys()) or (tensors.keys() - wanted.keys()):
            problem = "belongs to no part of the model" if min(names) in tensors else "is missing"
            raise ValueError(f"{component.file}: tensor {min(names)} {problem} ({len(names)} such)")
        for name, shape in wanted.items():
            stored = tensors[name]
            # The single file stores the linear layers of the autoencoder's attention as 1x1 convolutions.
            allowed = [shape, (*shape, 1, 1)] if ".attentions.0.to_" in name else [shape]
            if stored.shape not in allowed or stored.dtype not in ("F64", "F32", "F16", "BF16"):
                raise ValueError(f"{component.file}: tensor {stored.name} is {stored.dtype} {list(stored.shape)}, "
                                 f"want a float {list(shape)}")
    except ValueError as error:
        raise ValueError(f"{error}; the file looks like {family(tensors)}") from None
    return model


def load(component, model_class, dtype=torch.float32, device="cpu", **fixed):
    """A component as a model_class, in eval mode, from its files; `fixed` overrides its config. Raises ValueError."""
    tensors = locate(component.place, [component.name]).get(component.name)
    if not tensors:
        raise ValueError(f"{component.place}: holds no {component.name}; "
                         f"the file looks like {family(read_header(component.file))}")
    model = build(component, model_class, tensors, **fixed).eval()
    memory = {name: torch.empty_strided(x.shape, x.stride(), dtype=dtype, device=device)     # model.to_empty() would
              for name, x in model.state_dict().items()}                                     # import SymPy: 0.5 s
    fill(memory, tensors)
    model.load_state_dict(memory, assign=True)
    if getattr(model, "scale", 1) is None:                      # stage vae writes null until it has measured it
        raise ValueError(f"{component.config}: the training of this autoencoder was stopped before the scale of its "
                         "latents was measured; give the command of stage vae again")
    return model


def check_sizes_match(parts, components):
    """Raises ValueError if tokenizer, text encoder and the models that read its text, of {name: part}, differ in size.
    A video model works only with the autoencoder it was trained with; nothing in the files can check that."""
    known, width = parts["text_encoder"].text_model["embeddings"]["token_embedding"].weight.shape
    if parts["tokenizer"].vocab_size != known:
        raise ValueError(f"{components['tokenizer'].place}: the tokenizer has {parts['tokenizer'].vocab_size} tokens, "
                         f"the text encoder {known}; merges.txt is cut short, or another model's")
    for name in [name for name in ("unet", "video", "tsr") if name in parts]:
        reads = getattr(parts[name], "unet", parts[name]).config.cross_attention_dim
        if reads != width:
            raise ValueError(f"{components[name].place}: the text encoder's vectors are {width} wide, its {name} reads "
                             f"{reads}; they are of different families")


def save(tensors, config, folder, stem="diffusion_pytorch_model"):
    """Writes a component's folder: config.json, and {name: tensor} in float16. Each file is written atomically."""
    if Path(folder).name in ("unet", "vae") and "block_out_channels" in config:      # diffusers needs more keys than we
        downs = config.get("down_block_types", ["DownEncoderBlock2D"] * len(config["block_out_channels"]))
        ups = [block.replace("DownEnc", "UpDec").replace("Down", "Up") for block in reversed(downs)]
        more = {"use_linear_projection": True} if Path(folder).name == "unet" else {}
        config = config | more | {"down_block_types": downs, "up_block_types": ups}
    write_json(config, Path(folder, "config.json"))
    half = {name: tensor.detach().half().cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(half, Path(folder, f"{stem}.fp16.safetensors"))


if __name__ == "__main__":
    from appearnet import is_new                                # only the command knows the classes
    from microcinema import COMPONENT_CLASSES
    from sd21.tensor_map import main
    raise SystemExit(main(COMPONENT_CLASSES, is_new))
