"""Tensor names: from those of SD2.1's single file, of older folders and of our checkpoints to COMPONENT/NAME. Defines
RENAME, RENAME_OLD, own_names, rename; NOT_NEEDED; family: which kind of model a file seems to hold."""

import re

# SD2.1's single file keeps the names of the code that trained it. These rules turn them into the folder's; each applies
# to the result of those above it. K of input_blocks.K and output_blocks.K counts over all levels, three a level: twice
# a ResBlock with attention, then the change of resolution; on the way up three, the last with a change of resolution.
RENAME = [(re.compile(pattern), new) for pattern, new in [
    (r"^model\.diffusion_model\.", "unet/"), (r"^unet/input_blocks\.0\.0", "unet/conv_in"),
    (r"^unet/time_embed\.([02])", lambda m: f"unet/time_embedding.linear_{1 + int(m[1]) // 2}"),
    (r"^unet/out\.0", "unet/conv_norm_out"), (r"^unet/out\.2", "unet/conv_out"),
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
    (r"^first_stage_model\.", "vae/"), (r"(?<=vae/)(en|de)coder\.norm_out", r"\1coder.conv_norm_out"),
    (r"\bmid\.block_([12])", lambda m: f"mid_block.resnets.{int(m[1]) - 1}"),
    (r"\bmid\.attn_1\.norm", "mid_block.attentions.0.group_norm"),
    (r"\bmid\.attn_1\.([qkv])", r"mid_block.attentions.0.to_\1"),
    (r"\bmid\.attn_1\.proj_out", "mid_block.attentions.0.to_out.0"), (r"\bnin_shortcut", "conv_shortcut"),
    (r"\bdown\.(\d)\.block\.(\d)", r"down_blocks.\1.resnets.\2"),
    (r"\bdown\.(\d)\.downsample", r"down_blocks.\1.downsamplers.0"),
    # The single file counts the decoder's levels from the highest resolution, the folder in the order of use.
    (r"\bup\.(\d)\.block\.(\d)", lambda m: f"up_blocks.{3 - int(m[1])}.resnets.{m[2]}"),
    (r"\bup\.(\d)\.upsample", lambda m: f"up_blocks.{3 - int(m[1])}.upsamplers.0"),
    (r"^cond_stage_model\.model\.", "text_encoder/text_model."), (r"\btoken_embedding", "embeddings.token_embedding"),
    (r"\bpositional_embedding$", "embeddings.position_embedding.weight"), (r"\bln_final", "final_layer_norm"),
    (r"\btransformer\.resblocks\.(\d+)", r"encoder.layers.\1"), (r"\bln_([12])", r"layer_norm\1"),
    (r"\bmlp\.c_fc", "mlp.fc1"), (r"\bmlp\.c_proj", "mlp.fc2"),
    (r"\battn\.out_proj", "self_attn.out_proj"), (r"\battn\.in_proj_", "self_attn.qkv_proj."),
]]

# Older model folders name the autoencoder's attention differently, and some text encoders lack the prefix text_model.
RENAME_OLD = [(re.compile(pattern), new) for pattern, new in [
    (r"^(vae/.*attentions\.0\.)(query|key|value)\b", lambda m: f"{m[1]}to_{m[2][0]}"),
    (r"^(vae/.*attentions\.0\.)proj_attn\b", r"\1to_out.0"),
    (r"^text_encoder/(?=embeddings|encoder|final_layer_norm)", "text_encoder/text_model."),
]]

# Tensors that a checkpoint may hold and no model needs: the tables of the noise schedule, which follow from four
# numbers; the counters of the average; OpenCLIP's last layer and image projection; the position ids 0 to 76.
NOT_NEEDED = re.compile(r"""
    betas | (sqrt_|log_)?(one_minus_)?(recip_|recipm1_)?alphas_cumprod(_prev)? | posterior_\w+ |
    model_ema\.decay | model_ema\.num_updates | text_encoder/(text_model\.)?embeddings\.position_ids |
    cond_stage_model\.model\.(transformer\.resblocks\.23\..+ | text_projection | logit_scale)""", re.VERBOSE)

FAMILIES = {
    r"motion_modules\.": "an AnimateDiff motion module", r"controlnet_|control_model\.|zero_convs\.": "a ControlNet",
    r"conditioner\.|add_embedding\.|label_emb\.": "SDXL", r"lora_": "LoRA weights",
    r"temporal_|appearnet\.": "a video model of ours"}
WIDTHS = {768: "SD1", 1024: "SD2", 1280: "SDXL", 2048: "SDXL"}   # of the text vectors that the U-Net attends to
SD2_VERSIONS = {"epsilon": "SD2 base (eps)", "v_prediction": "SD2 768 (v-prediction)"}      # by prediction_type


def rename(name, rules):
    """The tensor name after all rules, in order."""
    for pattern, new in rules:
        name = pattern.sub(new, name)
    return name


def own_names(tensors):
    """The rules for a file that this project wrote, from its tensor names; None for a file of anyone else."""
    if any(name.startswith("text_encoder.text_model.") for name in tensors):     # stage image trains two components
        return [(re.compile(r"^(unet|text_encoder)\."), r"\1/")]
    if "unet.conv_in.weight" in tensors:
        return [(re.compile("^"), "video/")]
    return [(re.compile("^"), "vae/")] if "encoder.conv_in.weight" in tensors else None


def family(tensors, prediction_type=None):
    """What kind of model a file with these tensors, {name: something with .shape}, seems to hold, in words.
    SD2's two versions hold the same tensors; the prediction_type of their schedule tells them apart."""
    for pattern, name in FAMILIES.items():
        if any(re.search(pattern, tensor) for tensor in tensors):
            return name
    for tensor, stored in tensors.items():
        if re.search(r"attn2\.to_k\.weight$|token_embedding\.weight$", tensor) and len(stored.shape) == 2:
            name = WIDTHS.get(stored.shape[1], "a model of its own size")
            return SD2_VERSIONS.get(prediction_type, name) if name == "SD2" else name
    return "a Stable Diffusion autoencoder" if any("quant_conv" in name for name in tensors) else "none that we know"
