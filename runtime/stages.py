"""The stages around the denoising loop, each one evaluation of one graph."""

from __future__ import annotations

from freeprompt.engines.session import Array, NumpyArray
from freeprompt.runtime.graphs import Graphs


def ids_to_embeddings(graphs: Graphs, ids: NumpyArray) -> Array:
    """Token ids [prompts, tokens] int32 to text embeddings [prompts, tokens, channels] float32."""
    return graphs["text_encoder"].run({"input_ids": ids})["encoder_hidden_states"]


def image_to_latents(graphs: Graphs, image: NumpyArray) -> Array:
    """Image [B, 3, H, W] float32 in [-1, 1] to latents [B, C, h, w] float32: the posterior's mean, scaled."""
    return graphs["vae_encoder"].run({"image": image})["latents"]


def latents_to_image(graphs: Graphs, latents: Array | NumpyArray) -> Array:
    """Latents [B, C, h, w] float32 to an image [B, 3, H, W] float32, about [-1, 1]."""
    return graphs["vae_decoder"].run({"latents": latents})["image"]
