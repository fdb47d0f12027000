"""The configurations of a checkpoint's parts: only keys that are known reach diffusers and transformers.

Those libraries let a configuration name code, other packages (attention kernels, quantisers) and places on the hub.
Here the classes are fixed, and what is passed on to them are their own sizes and switches.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel

from freeprompt.contract.errors import CheckpointError
from freeprompt.export.checkpoint.source import Source

# Where a configuration names code beside it, or weights in another form, the model is another than its class.
_REFUSED = {
    "auto_map": "Python code of its own, which is never run",
    "quantization_config": "quantized weights; export takes float16, bfloat16 and float32: save it unquantized",
    "trust_remote_code": "Python code of its own, which is never run",
}
_TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "projection_dim",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
# What training scripts leave in a U-Net's configuration (diffusers.training_utils.EMAModel); it describes no layer.
_TRAINING_KEYS = {
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
    "quant_method",
}


@dataclass(frozen=True)
class Configs:
    """What the parts are made with, as keywords of their classes; and what was in the files and is not used.

    Attributes:
        unet, vae: of UNet2DConditionModel and AutoencoderKL, every keyword, with the defaults of those left out.
        text: of CLIPTextConfig, those given.
        unknown: keys that diffusers does not know, as "part/config.json: key".
    """

    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    unknown: tuple[str, ...]


def source_to_configs(source: Source) -> Configs:
    """Read the three configurations.

    Raises:
        CheckpointError: one is missing, no JSON, of another class, or asks for code or quantized weights.
    """
    unknown: list[str] = []
    unet = _diffusers(source, "unet", UNet2DConditionModel, unknown)
    vae = _diffusers(source, "vae", AutoencoderKL, unknown)
    text = read_config(source, "text_encoder/config.json")
    for name in text.get("architectures") or ["CLIPTextModel"]:
        if name != "CLIPTextModel":
            raise CheckpointError(f"the text encoder of {source.name} is a {name}; export takes CLIPTextModel")
    if text.get("model_type", "clip_text_model") != "clip_text_model":
        raise CheckpointError(
            f"the text encoder of {source.name} is of the kind {text['model_type']!r}; export takes CLIP's text model"
        )
    return Configs(unet, vae, {key: text[key] for key in _TEXT_KEYS if key in text}, tuple(unknown))


def read_config(source: Source, name: str) -> dict[str, Any]:
    """The configuration in the file ``name``.

    Raises:
        CheckpointError: it is missing, no JSON, or asks for code or quantized weights.
    """
    config = source.json(name)
    for key, what in _REFUSED.items():
        if config.get(key):
            raise CheckpointError(f"{name} of {source.name} names {what} ({key})")
    return config


def _diffusers(source: Source, part: str, cls: type, unknown: list[str]) -> dict[str, Any]:
    name = f"{part}/config.json"
    config = read_config(source, name)
    if config.get("_class_name", cls.__name__) != cls.__name__:
        raise CheckpointError(
            f"the {part} of {source.name} is a {config['_class_name']}; export takes {cls.__name__} ({name})"
        )
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    defaults = {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}
    strange = config.keys() - defaults.keys() - _TRAINING_KEYS
    # A switch that is off switches nothing.
    unknown.extend(f"{name}: {key}" for key in sorted(strange) if not key.startswith("_") and config[key])
    return {key: config.get(key, default) for key, default in defaults.items()}
