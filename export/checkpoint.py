"""Loading a diffusers checkpoint: safetensors only, and only of a kind whose graphs can be exported."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from freeprompt.errors import CheckpointError

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a checkpoint, in float32 and evaluation mode."""

    name: str
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: dict[str, Any]


def load_checkpoint(source: str) -> Checkpoint:
    """Load a diffusers folder, or a model of the hub by its id.

    Raises:
        CheckpointError: nothing there, weights that are pickles only, a part missing or damaged, or a model that is
        not of
            Stable Diffusion 1.x's or 2.x's kind.
    """
    folder = Path(source)
    if not folder.exists() and not _HUB_ID.fullmatch(source):
        raise CheckpointError(f"no checkpoint at {source}: give a diffusers folder or a hub id")
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise CheckpointError(
            f"{source} is not a diffusers checkpoint: it has no model_index.json; "
            "convert a single-file checkpoint with diffusers first"
        )
    where: dict[str, Any] = {"local_files_only": True} if folder.exists() else {}
    try:
        with quiet():
            _check_index(DiffusionPipeline.load_config(source, **where))
            weights = {"use_safetensors": True, "torch_dtype": torch.float32, **where}
            unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet", **weights)
            vae = AutoencoderKL.from_pretrained(source, subfolder="vae", **weights)
            text = CLIPTextModel.from_pretrained(
                source, subfolder="text_encoder", use_safetensors=True, dtype=torch.float32, **where
            )
            tokenizer = CLIPTokenizer.from_pretrained(source, subfolder="tokenizer", **where)
            scheduler = DDIMScheduler.load_config(source, subfolder="scheduler", **where)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        what = source if folder.exists() else f"{source} (no folder here; asked of the hub)"
        raise CheckpointError(
            f"cannot load {what} as a diffusers checkpoint with safetensors weights: {_first_line(error)}"
        ) from error
    except Exception as error:  # safetensors and the hub client have classes of their own
        raise CheckpointError(f"cannot load {source}: {_first_line(error)}") from error
    checkpoint = Checkpoint(source, unet.eval(), vae.eval(), text.eval(), tokenizer, dict(scheduler))
    for part in (unet, vae, text):
        part.requires_grad_(False)
    _check_kind(checkpoint)
    return checkpoint


def _check_index(index: Any) -> None:
    """Refuse other pipelines by name, before gigabytes are loaded."""
    config = index[0] if isinstance(index, tuple) else index
    name = str(config.get("_class_name"))
    parts = {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
    if not parts <= config.keys() or "text_encoder_2" in config:
        raise CheckpointError(
            f"the checkpoint is a {name}; freeprompt exports Stable Diffusion 1.x and 2.x "
            f"(parts {', '.join(sorted(parts))})"
        )


def _check_kind(checkpoint: Checkpoint) -> None:
    unet, vae = checkpoint.unet.config, checkpoint.vae.config
    reasons = {
        f"its U-Net takes {unet.in_channels} channels, the autoencoder gives {vae.latent_channels} "
        "(inpainting and depth models cannot be inverted)": unet.in_channels != vae.latent_channels,
        "its U-Net takes extra embeddings": unet.addition_embed_type is not None
        or unet.class_embed_type is not None
        or unet.encoder_hid_dim_type is not None,
        "its U-Net has more than one attention block or attends to text only": unet.dual_cross_attention
        or unet.only_cross_attention is True,
        f"its U-Net expects text of width {unet.cross_attention_dim}, the text encoder gives "
        f"{checkpoint.text_encoder.config.hidden_size}": unet.cross_attention_dim
        != checkpoint.text_encoder.config.hidden_size,
    }
    for reason, applies in reasons.items():
        if applies:
            raise CheckpointError(f"{checkpoint.name} cannot be exported: {reason}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars, log lines and deprecation warnings of the libraries inside."""
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "diffusers", "transformers", "torch", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
