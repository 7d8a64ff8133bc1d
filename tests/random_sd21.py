"""Writes a stand-in for SD2.1-base: every name, shape and config of the published model, with seeded random weights.

    python tests/random_sd21.py FOLDER [--dtype float16]    -> FOLDER/, with the published layout: 5.2 GB in float32
    python tests/random_sd21.py FILE.safetensors            -> the same weights as a single file, 5.2 GB, float32

Both are the same model: a tensor's numbers follow from its name, scaled so that activations keep their size from layer
to layer. Its pictures are noise. Only those of the tokenizer's merges are real that the golden prompts need.
"""

import argparse
import json
import math
import sys
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from sd21.text import save_merges
from test_text import clip_tokenizer

REFERENCE = Path(__file__).parent / "reference"
MANIFEST = {part: json.loads((REFERENCE / f"sd21_{file}.json").read_text())
            for part, file in (("unet", "unet"), ("vae", "vae"), ("text_encoder", "text"))}
CONFIG = {
    "unet": {
        "_class_name": "UNet2DConditionModel", "act_fn": "silu", "attention_head_dim": [5, 10, 20, 20],
        "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False, "cross_attention_dim": 1024,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "downsample_padding": 1,
        "dual_cross_attention": False, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4,
        "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32,
        "num_class_embeds": None, "only_cross_attention": False, "out_channels": 4, "sample_size": 64,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, "use_linear_projection": True},
    "vae": {
        "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3, "latent_channels": 4, "layers_per_block": 2,
        "norm_num_groups": 32, "out_channels": 3, "sample_size": 768, "up_block_types": ["UpDecoderBlock2D"] * 4},
    "text_encoder": {
        "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0,
        "eos_token_id": 2, "hidden_act": "gelu", "hidden_size": 1024, "initializer_factor": 1.0,
        "initializer_range": 0.02, "intermediate_size": 4096, "layer_norm_eps": 1e-05, "max_position_embeddings": 77,
        "model_type": "clip_text_model", "num_attention_heads": 16, "num_hidden_layers": 23, "pad_token_id": 1,
        "projection_dim": 512, "torch_dtype": "float32", "vocab_size": 49408},
    "scheduler": {
        "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
        "clip_sample": False, "num_train_timesteps": 1000, "prediction_type": "epsilon", "set_alpha_to_one": False,
        "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None}}


def random_tensor(name, shape):
    """The float32 tensor called `name` in the folder layout, e.g. "unet/conv_in.weight"."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if len(shape) == 1:
        return 0.02 * x + (1 if name.endswith("weight") else 0)              # norms: about 1; biases: about 0
    if "embedding.weight" in name:
        return 0.1 * x
    return x / math.sqrt(math.prod(shape[1:]))


def write_merges(path):
    """Writes 48,894 merges: CLIP's where the golden prompts need them, otherwise pairs that never occur."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_merges(list(clip_tokenizer().rank), path)


def write_folder(path, dtype=torch.float32):
    """Writes the published folder, position_ids included. Float16 files have `.fp16` in their names."""
    write_merges(path / "tokenizer" / "merges.txt")
    for part, config in CONFIG.items():
        (path / part).mkdir(parents=True, exist_ok=True)
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (path / part / name).write_text(json.dumps(config, indent=2))
    for part, shapes in MANIFEST.items():
        tensors = {name: random_tensor(f"{part}/{name}", shape).to(dtype) for name, shape in shapes.items()}
        if part == "text_encoder":
            tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        save_file(tensors, path / part / f"{stem}{'.fp16' if dtype == torch.float16 else ''}.safetensors")


def write_single(path):
    """Writes the single file, with all its tensors that no model needs, and merges.txt beside it."""
    tensors = {}
    for name, target in json.loads((REFERENCE / "sd21_ldm_map.json").read_text()).items():
        targets = [target] if isinstance(target, str) else target or []
        pieces = [random_tensor(t, MANIFEST[t.partition("/")[0]][t.partition("/")[2]]) for t in targets]
        if pieces:
            tensors[name] = torch.cat(pieces)
        if name.startswith("first_stage_model") and ".attn_1." in name and tensors[name].dim() == 2:
            tensors[name] = tensors[name][:, :, None, None]
    layer = "cond_stage_model.model.transformer.resblocks."
    for name in [name for name in tensors if name.startswith(f"{layer}22.")]:
        tensors[name.replace(f"{layer}22.", f"{layer}23.")] = tensors[name].clone()
    tensors |= {"cond_stage_model.model.text_projection": torch.eye(1024), "model_ema.decay": torch.tensor(0.9999),
                "cond_stage_model.model.logit_scale": torch.tensor(4.6), "betas": torch.linspace(0.00085, 0.012, 1000),
                "model_ema.num_updates": torch.tensor(0, dtype=torch.int32), "alphas_cumprod": torch.ones(1000)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    write_merges(path.parent / "merges.txt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the folder")
    args = parser.parse_args()
    if args.path.suffix == ".safetensors":
        write_single(args.path)
    else:
        write_folder(args.path, getattr(torch, args.dtype))
