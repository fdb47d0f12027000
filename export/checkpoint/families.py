"""Which checkpoints are Stable Diffusion 1.x and 2.x, and what the others are."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from freeprompt.contract.errors import CheckpointError
from freeprompt.export.checkpoint.configs import Configs
from freeprompt.export.checkpoint.source import INDEX, Source

SUPPORTED = "freeprompt exports Stable Diffusion 1.x and 2.x"
# Class of each part; nothing else has the layers that the routing of attention is made for.
PARTS = {
    "unet": ("diffusers", ("UNet2DConditionModel",)),
    "vae": ("diffusers", ("AutoencoderKL",)),
    "text_encoder": ("transformers", ("CLIPTextModel",)),
    "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    "scheduler": ("diffusers", ()),
}
# Beginnings of pipelines' names, the longer before the shorter.
_FAMILIES = (
    ("StableDiffusionXLInstructPix2Pix", "InstructPix2Pix on Stable Diffusion XL"),
    ("StableDiffusionXL", "Stable Diffusion XL, which has two text encoders and size embeddings"),
    ("StableDiffusion3", "Stable Diffusion 3, a transformer with three text encoders"),
    ("StableDiffusionUpscale", "an upscaler"),
    ("StableDiffusionLatentUpscale", "an upscaler"),
    ("StableDiffusionImageVariation", "an image variation model, which takes an image for a text"),
    ("StableDiffusionLDM3D", "LDM3D, which makes images with depth"),
    ("StableUnCLIP", "unCLIP, which takes an image's embedding"),
    ("UnCLIP", "unCLIP, which takes an image's embedding"),
    ("AltDiffusion", "AltDiffusion, which has a multilingual text encoder of its own"),
    ("Flux", "FLUX, a transformer trained by flow matching"),
    ("PixArt", "PixArt, a transformer with a T5 text encoder"),
    ("Kandinsky", "Kandinsky, whose U-Net takes image embeddings"),
    ("IF", "DeepFloyd IF, which works on pixels"),
    ("LDMTextToImage", "latent diffusion with BERT"),
    ("AnimateDiff", "AnimateDiff, whose U-Net has motion layers"),
)
# Parts that a pipeline may have and that change what it makes, but not what its U-Net computes.
_UNUSED = {
    "controlnet": "the ControlNet is not used: edits are made by the U-Net alone",
    "adapter": "the T2I-Adapter is not used: edits are made by the U-Net alone",
    "image_encoder": "the image encoder is not used: edits take text only",
}
_IGNORED = {"safety_checker", "feature_extractor", "requires_safety_checker", "requires_aesthetics_score"}

# Keywords of UNet2DConditionModel that may have any value: sizes, and switches that its own layers obey.
_FREE = {
    "sample_size",
    "in_channels",
    "out_channels",
    "flip_sin_to_cos",
    "freq_shift",
    "block_out_channels",
    "layers_per_block",
    "downsample_padding",
    "mid_block_scale_factor",
    "dropout",
    "act_fn",
    "norm_num_groups",
    "norm_eps",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
    "attention_head_dim",
    "use_linear_projection",
    "upcast_attention",
    "time_embedding_dim",
    "addition_embed_type_num_heads",
}
_BLOCKS: dict[str, set[str | None]] = {
    "down_block_types": {"CrossAttnDownBlock2D", "DownBlock2D"},
    "up_block_types": {"CrossAttnUpBlock2D", "UpBlock2D"},
    # Distilled models leave the middle out.
    "mid_block_type": {"UNetMidBlock2DCrossAttn", None},
}
_REASONS = {
    "time_cond_proj_dim": "a latent consistency model (LCM): its U-Net embeds the guidance, which is no input of the "
    "graphs; export the Stable Diffusion that it was distilled from",
    "attention_type": "GLIGEN: its U-Net has gated attention layers for boxes",
    "class_embed_type": "conditioned on a class or an image besides the text",
    "num_class_embeds": "conditioned on a class or a noise level besides the text",
    "addition_embed_type": "conditioned on embeddings besides the text, as Stable Diffusion XL is",
    "encoder_hid_dim_type": "conditioned on embeddings that are no CLIP text, as Kandinsky is, and whatever was saved "
    "with an IP-Adapter loaded (then call unload_ip_adapter() and save it again)",
    "encoder_hid_dim": "conditioned on embeddings that are no CLIP text, as Kandinsky is",
}
_CHANNELS = {
    9: "an inpainting model: its U-Net takes 9 channels, mask and masked image among them, and cannot be inverted",
    8: "InstructPix2Pix or an image-conditioned model: its U-Net takes 8 channels, the source image among them, and "
    "cannot be inverted",
    7: "an upscaler: its U-Net takes 7 channels, the small image among them",
    5: "a depth model: its U-Net takes 5 channels, the depth among them, and cannot be inverted",
}


def check_index(source: Source, index: Mapping[str, Any]) -> tuple[str, ...]:
    """Refuse other pipelines by name, from ``model_index.json`` alone.

    Returns:
        in words, what the pipeline has that is not used.

    Raises:
        CheckpointError: it is of another kind.
    """
    pipeline = index.get("_class_name")
    if isinstance(pipeline, list):
        raise _refusal(source, f"its pipeline is {pipeline[-1]} in the folder, and code of a checkpoint is never run")
    parts = {key: value for key, value in index.items() if isinstance(value, list) and value and value[0] is not None}
    if str(pipeline).startswith("StableDiffusionXL") and "text_encoder" not in parts:
        raise _refusal(source, f"it is the Stable Diffusion XL refiner ({pipeline})")
    for beginning, what in _FAMILIES:
        if str(pipeline).startswith(beginning):
            raise _refusal(source, f"it is {what} ({pipeline})")
    for part, (library, classes) in PARTS.items():
        if part not in parts:
            raise _refusal(source, f"it is a {pipeline} without {part} ({INDEX})")
        theirs, name = str(parts[part][0]), str(parts[part][-1])
        if theirs not in (library, "diffusers", "transformers"):
            raise _refusal(source, f"its {part} is {name} of {theirs}, and other packages' code is never run")
        if classes and name not in classes:
            raise _refusal(source, f"its {part} is {name} and has to be {classes[0]}")
    if not str(pipeline).startswith(("StableDiffusion", "LatentConsistencyModel")):
        raise _refusal(source, f"it is a {pipeline}")
    more = sorted(parts.keys() - PARTS.keys() - _UNUSED.keys() - _IGNORED)
    if more:
        raise _refusal(source, f"it is a {pipeline} with {', '.join(more)}")
    return tuple(line for part, line in _UNUSED.items() if part in parts)


def check_configs(source: Source, configs: Configs) -> None:
    """Refuse what the graphs would compute wrongly, or could not take.

    Raises:
        CheckpointError: the parts are not those of a Stable Diffusion 1.x or 2.x.
    """
    _check_vae(source, configs.vae)
    _check_unet(source, configs.unet, configs.vae)
    width, given = configs.unet["cross_attention_dim"], configs.text.get("hidden_size")
    if width != given:
        raise _refusal(source, f"its U-Net takes text of width {width} and its text encoder gives {given}")


def _check_unet(source: Source, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    for key, reason in _REASONS.items():
        if unet[key] and unet[key] != "default":
            raise _refusal(source, f"it is {reason} ({key}={unet[key]!r} in unet/config.json)")
    channels, latents = unet["in_channels"], vae["latent_channels"]
    if channels != latents:
        what = (
            f"it is {_CHANNELS[channels]}"
            if latents == 4 and channels in _CHANNELS
            else (f"its U-Net takes {channels} channels")
        )
        raise _refusal(source, f"{what} (its autoencoder gives {latents})")
    if unet["out_channels"] != latents:
        learned = ": learned variance cannot be inverted with DDIM" if unet["out_channels"] == 2 * latents else ""
        raise _refusal(source, f"its U-Net gives {unet['out_channels']} channels for latents of {latents}{learned}")
    for key, known in _BLOCKS.items():
        value = unet[key]
        for block in value if isinstance(value, (list, tuple)) else [value]:
            if block not in known:
                raise _refusal(source, f"its U-Net has blocks whose attention is not routed ({key}: {block})")
    for key, value in unet.items():
        # As diffusers has it: "positional", "default", 3, 1.0, False, None.
        if key not in _FREE and key not in _BLOCKS and not _is_default(key, value):
            raise _refusal(source, f"its U-Net has {key}={value!r}, which the graphs do not follow (unet/config.json)")
    if not isinstance(unet["cross_attention_dim"], int):
        raise _refusal(source, "its U-Net takes texts of several widths (cross_attention_dim in unet/config.json)")
    size = unet["sample_size"]
    block = 2 ** (len(unet["block_out_channels"]) - 1)
    sizes = size if isinstance(size, (list, tuple)) else [size, size]
    if len(sizes) != 2 or not all(isinstance(n, int) and n > 0 and n % block == 0 for n in sizes):
        raise CheckpointError(
            f"unet/config.json of {source.name} has sample_size {size!r}; it has to be the latents' height and width, "
            f"a multiple of {block} (64 for images of 512 pixels)"
        )


_DEFAULTS: dict[str, Any] = {
    "time_embedding_type": "positional",
    "resnet_time_scale_shift": "default",
    "attention_type": "default",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "resnet_out_scale_factor": 1,
}


def _is_default(key: str, value: Any) -> bool:
    if key in _DEFAULTS:
        return bool(value == _DEFAULTS[key])
    return not any(value) if isinstance(value, (list, tuple)) else not value


def _check_vae(source: Source, vae: Mapping[str, Any]) -> None:
    if (vae["in_channels"], vae["out_channels"]) != (3, 3):
        raise _refusal(source, f"its autoencoder takes {vae['in_channels']} channels and not RGB")
    for key, beginning in (("down_block_types", "Down"), ("up_block_types", "Up")):
        for block in vae[key]:
            if not re.fullmatch(rf"(Attn)?{beginning}(En|De)coderBlock2D", str(block)):
                raise _refusal(source, f"its autoencoder has blocks of another kind ({key}: {block})")
    for key in ("shift_factor", "latents_mean", "latents_std"):
        if vae[key]:
            raise _refusal(source, f"its autoencoder shifts its latents ({key} in vae/config.json)")
    factor = vae["scaling_factor"]
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
        raise CheckpointError(f"vae/config.json of {source.name} has scaling_factor {factor!r}; it has to be above 0")


def _refusal(source: Source, reason: str) -> CheckpointError:
    return CheckpointError(f"{source.name} cannot be exported: {reason}; {SUPPORTED}")
