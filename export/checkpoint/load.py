"""Loading a diffusers checkpoint: safetensors only, and only of a kind whose graphs can be exported."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizerFast

from freeprompt.contract.errors import CheckpointError
from freeprompt.export.checkpoint.configs import Configs, read_config, source_to_configs
from freeprompt.export.checkpoint.families import PARTS, check_configs, check_index
from freeprompt.export.checkpoint.hub import hub_source
from freeprompt.export.checkpoint.scheduler import config_to_scheduler
from freeprompt.export.checkpoint.source import (
    INDEX,
    SINGLE_FILES,
    STEMS,
    Source,
    Weights,
    find_weights,
    folder_source,
    is_lora,
)
from freeprompt.export.checkpoint.tokenizer import FILES, load_tokenizer
from freeprompt.export.checkpoint.weights import load_weights, locate_weights
from freeprompt.export.quiet import quiet
from freeprompt.export.settings import Reporter

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# Not sizes of a model; where one is wrong its class says so with whatever it meets first.
_MODEL_ERRORS = (ValueError, KeyError, TypeError, RuntimeError, AttributeError, IndexError, ZeroDivisionError)


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a checkpoint, in float32 and evaluation mode.

    Attributes:
        scheduler: its configuration, as saved.
        unused: what the checkpoint has and the export does not use, in words.
    """

    name: str
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizerFast
    scheduler: dict[str, Any]
    unused: tuple[str, ...] = ()


def load_checkpoint(source: str, variant: str | None = None, progress: Reporter = lambda line: None) -> Checkpoint:
    """Load a diffusers folder, or a model of the hub by its id (owner/name).

    Everything that can be told from configurations and the headers of weights is told before weights are read. Nothing
    is asked of the hub for a folder, and no code of a checkpoint is run.

    Args:
        variant: of the weights, such as "fp16"; a part that has none of it takes the one without. None: those without,
            or the only variant that a part has.

    Raises:
        CheckpointError: nothing there, weights that are pickles only, a part missing, damaged or of another model, or
            a model that is not of Stable Diffusion 1.x's or 2.x's kind.
    """
    if not Path(source).exists():
        progress(f"there is no folder {source}: looking on the hub")
    with quiet():
        files = open_source(source)
        index = files.json(INDEX)
        unused = list(check_index(files, index))
        files.fetch([INDEX, *_small_files(files)])
        configs = source_to_configs(files)
        check_configs(files, configs)
        scheduler = {"_class_name": index["scheduler"][-1], **read_config(files, "scheduler/scheduler_config.json")}
        config_to_scheduler(scheduler)  # raises, and before gigabytes are read
        weights = [find_weights(files, part, variant) for part in STEMS]
        if variant is not None and all(each.variant != variant for each in weights):
            raise CheckpointError(f"{source} has no weights of the variant {variant!r}; leave --variant out")
        files.fetch([*(name for each in weights for name in each.files)])
        models = _models(files, configs)
        places = {each.part: locate_weights(files, each, models[each.part]) for each in weights}
        embeddings = models["text_encoder"].config.vocab_size
        tokenizer = load_tokenizer(files, embeddings)
    for each in weights:
        _say_variant(each, variant, progress)
    unused += _unused(files, configs, tokenizer, embeddings)
    with quiet():
        for part, model in models.items():
            load_weights(files, part, model, places[part])
            model.eval().requires_grad_(False)
    return Checkpoint(
        source, models["unet"], models["vae"], models["text_encoder"], tokenizer, scheduler, tuple(unused)
    )


def open_source(name: str) -> Source:
    """The files of a folder, or of the hub where there is no such folder and ``name`` is an id.

    Raises:
        CheckpointError: neither, or not of a diffusers checkpoint.
    """
    path = Path(name)
    if path.exists():
        return folder_source(name)
    beside = str(path.parent) != "." and path.parent.exists()
    if not _HUB_ID.fullmatch(name) or beside or name.endswith(SINGLE_FILES):
        raise CheckpointError(
            f"no checkpoint at {name}: there is no such folder; give a diffusers folder, or a hub id (owner/name)"
        )
    return hub_source(name)


def _small_files(source: Source) -> list[str]:
    """Configurations and the tokenizer: what is needed to decide whether the weights are worth fetching."""
    wanted = {f"{part}/config.json" for part in STEMS} | {f"tokenizer/{name}" for name in FILES}
    wanted |= {"scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"}
    return sorted(wanted & source.names)


def _models(source: Source, configs: Configs) -> dict[str, Any]:
    """The three models without weights, on PyTorch's meta device."""
    return {
        "unet": _model(source, "unet", lambda: UNet2DConditionModel(**configs.unet)),
        "vae": _model(source, "vae", lambda: AutoencoderKL(**configs.vae)),
        "text_encoder": _model(source, "text_encoder", lambda: CLIPTextModel(CLIPTextConfig(**configs.text))),
    }


def _model(source: Source, part: str, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        with torch.device("meta"):
            return make()
    except _MODEL_ERRORS as error:
        raise CheckpointError(
            f"{part}/config.json of {source.name} describes no {PARTS[part][1][0]}: {_first_line(error)}"
        ) from error


def _say_variant(weights: Weights, asked: str | None, progress: Reporter) -> None:
    if weights.variant is not None and asked is None:
        progress(f"{weights.part}: weights of the variant {weights.variant}, there are no others")
    elif weights.variant is None and asked is not None:
        progress(f"{weights.part}: weights without a variant, it has none called {asked}")


def _unused(source: Source, configs: Configs, tokenizer: CLIPTokenizerFast, embeddings: int) -> list[str]:
    """What lies in the checkpoint and changes nothing in the bundle, though somebody may think so."""
    found = [f"{key} is unknown here and not used" for key in configs.unknown]
    files = sorted(name for name in source.names if is_lora(name) and name.endswith((".safetensors", ".bin")))
    if files:
        found.append(
            f"the LoRA {', '.join(files)} is not used: to keep it, load it in diffusers, call fuse_lora() and "
            "unload_lora_weights(), save the pipeline and export that"
        )
    more = embeddings - 1 - max(tokenizer.get_vocab().values())
    if more:
        found.append(f"{more} embeddings of the text encoder are not used: its tokenizer has no tokens for them")
    return found


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


__all__ = ["Checkpoint", "load_checkpoint", "open_source", "quiet"]
