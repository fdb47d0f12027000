"""The weights of a part: compared with what its configuration needs by the files' headers, then loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from freeprompt.contract.errors import CheckpointError
from freeprompt.export.checkpoint.source import Source, Weights

_TYPES = {"F16", "BF16", "F32", "F64"}
# In files, and not in the model: name (without the text encoder's prefix) -> why nothing is lost.
HARMLESS = {
    "text_encoder": {
        "embeddings.position_ids": "the numbers from 0 on, which older versions of transformers saved",
        "text_projection.weight": "projects the pooled output, which Stable Diffusion does not use",
    }
}
_LORA = re.compile(r"(^|\.)(base_layer|lora_[a-z_]+|lora_?[AB]|lora\.(up|down)|hada_\w+|lokr_\w+)(\.|$)", re.IGNORECASE)
_IP_ADAPTER = re.compile(r"to_[kv]_ip\.|^encoder_hid_proj\.")
# What old versions of diffusers called the attention in the middle of an autoencoder.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def locate_weights(source: Source, weights: Weights, model: nn.Module) -> dict[str, tuple[str, str]]:
    """Where each weight of ``model``, which may be on the meta device, lies; no weight is read.

    Returns:
        name in the model -> file and name in it.

    Raises:
        CheckpointError: a file is damaged, or its weights are not those of the model by name, shape or type.
    """
    headers = _read_headers(source, weights)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found: dict[str, tuple[str, str]] = {}
    strange: list[str] = []
    for key, (file, shape, dtype) in headers.items():
        name = _model_name(weights.part, key, expected)
        if name not in expected:
            if key.removeprefix("text_model.") not in HARMLESS.get(weights.part, {}):
                strange.append(key)
            continue
        if dtype not in _TYPES:
            raise CheckpointError(
                f"{file} of {source.name} has {key} as {dtype}: quantized weights are not exported; save the model as "
                "float16 or float32"
            )
        if shape != expected[name]:
            raise CheckpointError(
                f"{file} of {source.name} has {key} with shape {list(shape)}, its configuration needs "
                f"{list(expected[name])}: weights and config.json are of different models"
            )
        found[name] = (file, key)
    missing = [name for name in expected if name not in found]
    if strange or missing:
        raise CheckpointError(_difference(source, weights, strange, missing, len(expected)))
    return found


def load_weights(source: Source, part: str, model: nn.Module, places: dict[str, tuple[str, str]]) -> None:
    """Give ``model`` its weights, in float32.

    Raises:
        CheckpointError: a file is damaged, or a weight is NaN or infinite.
    """
    state: dict[str, torch.Tensor] = {}
    largest = 0.0
    for file in sorted({file for file, _ in places.values()}):
        path = source.folder / file
        try:
            with safe_open(path, "pt") as opened:
                for name, (where, key) in places.items():
                    if where == file:
                        state[name] = opened.get_tensor(key).to(torch.float32)
        except Exception as error:  # safetensors' own class, and whatever reading a mapped file raises
            raise _damaged(source, file, error) from error
    for name, tensor in state.items():
        low, high = (float(bound) for bound in torch.aminmax(tensor))
        if not (math.isfinite(low) and math.isfinite(high)):
            file, key = places[name]
            raise CheckpointError(
                f"the {part} of {source.name} holds NaN or infinity in {key} ({file}): it is damaged, or was trained "
                "or converted past what its type holds; take another copy or an earlier state"
            )
        largest = max(largest, high, -low)
    if largest == 0.0:
        raise CheckpointError(
            f"every weight of the {part} of {source.name} is 0: it was saved without its weights (as from the meta "
            "device, or offloaded); load it whole and save it again"
        )
    model.load_state_dict(state, strict=True, assign=True)
    _fill_buffers(model)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left:
        raise CheckpointError(f"the {part} of {source.name} has no values for {', '.join(left[:3])}")


def _fill_buffers(model: nn.Module) -> None:
    """CLIP's positions are no weight: a model made on the meta device has none."""
    for module in model.modules():
        positions = getattr(module, "position_ids", None)
        if isinstance(positions, torch.Tensor) and positions.is_meta:
            module.register_buffer("position_ids", torch.arange(positions.shape[-1]).expand((1, -1)), persistent=False)


def _read_headers(source: Source, weights: Weights) -> dict[str, tuple[str, tuple[int, ...], str]]:
    headers: dict[str, tuple[str, tuple[int, ...], str]] = {}
    for file in weights.files:
        path = source.folder / file
        try:
            with path.open("rb") as opened:
                if opened.read(24).startswith(b"version https://git-lfs"):
                    raise CheckpointError(
                        f"{file} of {source.name} is a Git LFS pointer and not the weights: run git lfs pull there"
                    )
            with safe_open(path, "pt") as opened:
                for key in opened.keys():  # noqa: SIM118  (it is no mapping)
                    part = opened.get_slice(key)
                    headers[key] = (file, tuple(part.get_shape()), str(part.get_dtype()))
        except CheckpointError:
            raise
        except Exception as error:  # safetensors' own class, or the file system's
            raise _damaged(source, file, error) from error
    return headers


def _damaged(source: Source, file: str, error: Exception) -> CheckpointError:
    path = Path(source.folder / file)
    size = f", {path.stat().st_size:,} bytes" if path.is_file() else ""
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return CheckpointError(
        f"{file} of {source.name} is cut short or damaged ({reason}{size}): copy or download that file again"
    )


def _model_name(part: str, key: str, expected: Collection[str]) -> str:
    """What the model calls a weight; versions of the libraries have called some differently."""
    if key in expected:
        return key
    if part == "text_encoder":
        return key.removeprefix("text_model.") if key.startswith("text_model.") else f"text_model.{key}"
    if part == "vae":
        middle = r"(\.mid_block\.attentions\.\d+\.)(query|key|value|proj_attn)\."
        return re.sub(middle, lambda match: f"{match[1]}{_OLD_ATTENTION[match[2]]}.", key)
    return key


def _difference(source: Source, weights: Weights, strange: list[str], missing: list[str], count: int) -> str:
    what = f"the {weights.part} of {source.name} ({weights.index or weights.files[0]})"
    lora = next((key for key in strange if _LORA.search(key)), None)
    if lora is not None:
        return (
            f"{what} was saved with a LoRA loaded ({lora}): call fuse_lora() to keep it, then unload_lora_weights(), "
            "and save the pipeline again"
        )
    adapter = next((key for key in strange if _IP_ADAPTER.search(key)), None)
    if adapter is not None:
        return f"{what} was saved with an IP-Adapter loaded ({adapter}): call unload_ip_adapter() and save it again"
    found = []
    if missing:
        found.append(f"lacks {len(missing)} of the {count} weights of its configuration, such as {missing[0]}")
    if strange:
        found.append(f"has {len(strange)} that its configuration has not, such as {strange[0]}")
    return f"{what} {' and '.join(found)}: it is not whole, or of another kind than its config.json says"
