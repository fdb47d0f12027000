"""The stages around the denoising loop, each one evaluation of one graph."""

from __future__ import annotations

from freeprompt.contract.errors import BackendError
from freeprompt.contract.graphs import TEXT_ENCODER, VAE_DECODER, VAE_ENCODER
from freeprompt.contract.session import Array, NumpyArray
from freeprompt.runtime.sessions import Graphs


def ids_to_embeddings(graphs: Graphs, ids: NumpyArray) -> Array:
    """Token ids [prompts, tokens] int32 to text embeddings [prompts, tokens, channels] float32."""
    return graphs[TEXT_ENCODER].run({"input_ids": ids})["encoder_hidden_states"]


def image_to_latents(graphs: Graphs, image: NumpyArray) -> Array:
    """Image [B, 3, H, W] float32 in [-1, 1] to latents [B, C, h, w] float32: the posterior's mean, scaled.

    Raises:
        BackendError: the graph failed, or gave latents of another size.
    """
    latents = graphs[VAE_ENCODER].run({"image": image})["latents"]
    _check_sizes(VAE_ENCODER, graphs, image.shape, latents.shape)
    return latents


def latents_to_image(graphs: Graphs, latents: Array | NumpyArray) -> Array:
    """Latents [B, C, h, w] float32 to an image [B, 3, H, W] float32, about [-1, 1].

    Raises:
        BackendError: the graph failed, or gave an image of another size.
    """
    image = graphs[VAE_DECODER].run({"latents": latents})["image"]
    _check_sizes(VAE_DECODER, graphs, image.shape, latents.shape)
    return image


def _check_sizes(graph: str, graphs: Graphs, image: tuple[int, ...], latents: tuple[int, ...]) -> None:
    """Height and width, which have names of their own on both sides of these graphs."""
    scale = graphs.bundle.manifest.latents.scale
    if image[2:] != tuple(scale * size for size in latents[2:]):
        raise BackendError(
            f"graph {graph} goes with an image of {image[3]}x{image[2]} and latents of {latents[3]}x{latents[2]}, the "
            f"manifest says {scale} pixels for each; export the checkpoint again"
        )
