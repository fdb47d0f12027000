"""Inputs and outputs of every graph: names, dtypes, and which dimensions vary together."""

from __future__ import annotations

from freeprompt.contract.manifest import DataType, LatentSpec, LayerSpec, Manifest, TensorSpec, TextSpec

Signature = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]


def manifest_to_signatures(manifest: Manifest) -> dict[str, Signature]:
    """The graphs that a bundle must have: those of every edit, and where layers are recordable those that record."""
    latents, text, layers = manifest.latents, manifest.text, manifest.layers
    step_in, step_out = step_signature(latents, text, len(layers), manifest.cross_layers)
    found = {
        "text_encoder": text_encoder_signature(text),
        "vae_encoder": vae_encoder_signature(latents),
        "vae_decoder": vae_decoder_signature(latents),
        "step": (step_in, step_out),
    }
    if any(layer.recordable for layer in layers):
        rows_in = record_tensors(layers, "record_rows", manifest.precision)
        record = record_signature(latents, text, layers, manifest.precision)
        found["step_recorded"] = ((*step_in, *rows_in), step_out)
        found["step_recording"] = (step_in, (*step_out, *record[1]))
        found["record"] = record
    return found


def record_name(layer: int) -> str:
    """Name of a layer's recorded hidden states, alike as output of the record graph and input of the step graph."""
    return f"record_{layer:02d}"


def text_encoder_signature(text: TextSpec) -> Signature:
    return (
        (TensorSpec("input_ids", "int32", ("texts", text.tokens)),),
        (TensorSpec("encoder_hidden_states", "float32", ("texts", text.tokens, text.channels)),),
    )


def vae_encoder_signature(latents: LatentSpec) -> Signature:
    return (
        (TensorSpec("image", "float32", ("images", 3, "image_height", "image_width")),),
        (_latents("latents", "images", latents),),
    )


def vae_decoder_signature(latents: LatentSpec) -> Signature:
    return (
        (_latents("latents", "images", latents),),
        (TensorSpec("image", "float32", ("images", 3, "image_height", "image_width")),),
    )


def step_signature(latents: LatentSpec, text: TextSpec, layers: int, cross_layers: int) -> Signature:
    """One evaluation of the U-Net and one step of the schedule.

    ``pinned_latents`` are read by rows but not stepped: the source's trajectory.
    """
    inputs = (
        _latents("latents", "latents", latents),
        _latents("pinned_latents", "pinned", latents),
        TensorSpec("encoder_hidden_states", "float32", ("texts", text.tokens, text.channels)),
        TensorSpec("row_latent", "int32", ("rows",)),
        TensorSpec("row_text", "int32", ("rows",)),
        TensorSpec("timestep", "float32", ("rows",)),
        TensorSpec("map_row", "int32", (layers, "rows")),
        TensorSpec("cross_map_row", "int32", (cross_layers, "rows")),
        TensorSpec("row_weight", "float32", ("latents", "rows")),
        TensorSpec("latent_scale", "float32", ("latents",)),
        TensorSpec("noise_scale", "float32", ("latents",)),
    )
    return inputs, (_latents("next_latents", "latents", latents),)


def record_signature(latents: LatentSpec, text: TextSpec, layers: tuple[LayerSpec, ...], dtype: DataType) -> Signature:
    """The record graph: hidden states of every recordable layer for rows that use their own maps."""
    inputs = (
        _latents("latents", "latents", latents),
        TensorSpec("encoder_hidden_states", "float32", ("texts", text.tokens, text.channels)),
        TensorSpec("row_latent", "int32", ("rows",)),
        TensorSpec("row_text", "int32", ("rows",)),
        TensorSpec("timestep", "float32", ("rows",)),
    )
    return inputs, record_tensors(layers, "rows", dtype)


def record_tensors(layers: tuple[LayerSpec, ...], rows: str, dtype: DataType) -> tuple[TensorSpec, ...]:
    """[rows, tokens of the layer's level, channels] for each recordable layer."""
    return tuple(
        TensorSpec(record_name(layer.number), dtype, (rows, f"tokens_{layer.level}", layer.channels))
        for layer in layers
        if layer.recordable
    )


def _latents(name: str, count: str, latents: LatentSpec) -> TensorSpec:
    return TensorSpec(name, "float32", (count, latents.channels, "height", "width"))
