"""Tensor names: from those of SD2.1's single file, of older folders and of our checkpoints to COMPONENT/NAME. Defines
RENAME, RENAME_OLD, OWN_FILES, rename; NOT_NEEDED; family: which kind of model a file seems to hold."""

import re

# SD2.1's single file keeps the names of the code that trained it. These rules turn them into the folder's; each applies
# to the result of those above it. Layers with one name each come last.
LAYERS = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "out_layers.0": "norm2", "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj", "skip_connection": "conv_shortcut", "nin_shortcut": "conv_shortcut",
    "middle_block.0": "mid_block.resnets.0", "middle_block.1": "mid_block.attentions.0", "mlp.c_fc": "mlp.fc1",
    "middle_block.2": "mid_block.resnets.1", "mid.block_1": "mid_block.resnets.0", "mid.block_2": "mid_block.resnets.1",
    "mid.attn_1.norm": "mid_block.attentions.0.group_norm", "mid.attn_1.proj_out": "mid_block.attentions.0.to_out.0",
    "transformer.resblocks": "encoder.layers", "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_proj": "mlp.fc2",
    "attn.in_proj_": "self_attn.qkv_proj.", "attn.out_proj": "self_attn.out_proj", "ln_final": "final_layer_norm",
    "token_embedding": "embeddings.token_embedding", "positional_embedding": "embeddings.position_embedding.weight",
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "downsample.conv": "downsamplers.0.conv", "upsample.conv": "upsamplers.0.conv",
    "out.0": "conv_norm_out", "out.2": "conv_out", "norm_out": "conv_norm_out"}
RENAME = [
    (r"^model\.diffusion_model\.", "unet/"), (r"^unet/input_blocks\.0\.0", "unet/conv_in"),
    # K of input_blocks.K and output_blocks.K counts over all levels, three a level: twice a ResBlock (0) with attention
    # (1), then the change of resolution (0); on the way up three, the last with a change of resolution (1 or 2).
    (r"\binput_blocks\.(\d+)(?=\.[01])", lambda m: f"down_blocks.{(int(m[1]) - 1) // 3}.entry.{(int(m[1]) - 1) % 3}"),
    (r"\boutput_blocks\.(\d+)(?=\.[01]|\.2\.conv)", lambda m: f"up_blocks.{int(m[1]) // 3}.entry.{int(m[1]) % 3}"),
    (r"\bentry\.\d\.0\.op", "downsamplers.0.conv"), (r"\bentry\.\d\.[12]\.conv", "upsamplers.0.conv"),
    (r"\bentry\.(\d)\.0", r"resnets.\1"), (r"\bentry\.(\d)\.1", r"attentions.\1"),
    (r"^first_stage_model\.", "vae/"), (r"^cond_stage_model\.model\.", "text_encoder/text_model."),
    (r"\bmid\.attn_1\.([qkv])", r"mid_block.attentions.0.to_\1"), (r"\bdown\.(\d)", r"down_blocks.\1"),
    # The single file counts the decoder's levels from the highest resolution, the folder in the order of use.
    (r"\bup\.(\d)", lambda m: f"up_blocks.{3 - int(m[1])}"), (r"\bblock\.(\d)", r"resnets.\1"),
    *((rf"\b{re.escape(layer)}", new) for layer, new in LAYERS.items())]

# Older model folders name the autoencoder's attention differently, and some text encoders lack the prefix text_model.
RENAME_OLD = [
    (r"^(vae/.*attentions\.0\.)(query|key|value)\b", lambda m: f"{m[1]}to_{m[2][0]}"),
    (r"^(vae/.*attentions\.0\.)proj_attn\b", r"\1to_out.0"),
    (r"^text_encoder/(?=embeddings|encoder|final_layer_norm)", "text_encoder/text_model.")]

# Our own files: a tensor that marks one, and its rules. The first mark counts: stage image's file has the second too.
OWN_FILES = {
    "text_encoder.text_model.final_layer_norm.weight": [(r"^(unet|text_encoder)\.", r"\1/")],
    "unet.conv_in.weight": [("^", "video/")], "encoder.conv_in.weight": [("^", "vae/")]}

# Tensors that a checkpoint may hold and no model needs: the tables of the noise schedule, which follow from three
# numbers; the counters of the average; OpenCLIP's last layer, text projection, scale; the position ids 0 to 76.
NOT_NEEDED = re.compile(r"""
    betas | (sqrt_|log_)?(one_minus_)?(recip_|recipm1_)?alphas_cumprod(_prev)? | posterior_\w+ |
    model_ema\.decay | model_ema\.num_updates | text_encoder/(text_model\.)?embeddings\.position_ids |
    cond_stage_model\.model\.(transformer\.resblocks\.23\..+ | text_projection | logit_scale)""", re.VERBOSE)

FAMILIES = {
    r"motion_modules\.": "an AnimateDiff motion module", r"controlnet_|control_model\.|zero_convs\.": "a ControlNet",
    r"conditioner\.|add_embedding\.|label_emb\.": "SDXL", "lora_": "LoRA weights",
    r"temporal_|appearnet\.": "a video model of ours"}
WIDTHS = {768: "SD1", 1024: "SD2", 1280: "SDXL", 2048: "SDXL"}   # of the text vectors that the U-Net attends to
SD2_VERSIONS = {"epsilon": "SD2 base (eps)", "v_prediction": "SD2 768 (v-prediction)"}  # told by prediction_type only


def rename(name, rules):
    """The tensor name after all rules, in order."""
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def family(tensors, prediction_type=None):
    """What kind of model a file with these tensors, {name: something with .shape}, seems to hold, in words."""
    for pattern, name in FAMILIES.items():
        if any(re.search(pattern, tensor) for tensor in tensors):
            return name
    for tensor, stored in tensors.items():
        if re.search(r"attn2\.to_k\.weight$|token_embedding\.weight$", tensor) and len(stored.shape) == 2:
            name = WIDTHS.get(stored.shape[1], "a model of its own size")
            return SD2_VERSIONS.get(prediction_type, name) if name == "SD2" else name
    return "a Stable Diffusion autoencoder" if any("quant_conv" in name for name in tensors) else "none that we know"
