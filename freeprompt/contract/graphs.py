"""Every graph of a bundle: its name, what it takes and gives, and which of its dimensions vary together.

Whoever must tell graphs apart asks here: nothing else knows their names by heart.
"""

from __future__ import annotations

from freeprompt.contract.manifest import DataType, LatentSpec, LayerSpec, Manifest, TensorSpec, TextSpec

TEXT_ENCODER = "text_encoder"
VAE_ENCODER = "vae_encoder"
VAE_DECODER = "vae_decoder"
STEP = "step"
STEP_RECORDED = "step_recorded"  # takes recorded rows
STEP_RECORDING = "step_recording"  # also gives the rows to record
RECORD = "record"  # gives the rows to record and stops there

# What every edit runs; the other graphs make some edits faster.
NEEDED_GRAPHS = (TEXT_ENCODER, VAE_ENCODER, VAE_DECODER, STEP)
# Of bundles with recordable layers.
RECORDING_GRAPHS = (STEP_RECORDED, STEP_RECORDING, RECORD)
# One whole evaluation of the U-Net; the record graph stops after its last recordable layer.
STEP_GRAPHS = (STEP, STEP_RECORDED, STEP_RECORDING)
# Cut from one traced model: they share every weight, and what is said of "unet" holds for all of them.
UNET = "unet"
UNET_GRAPHS = (*STEP_GRAPHS, RECORD)

# Dimensions of which a run may have fewer than an engine was built for: rows refer to these by index.
PADDED = ("texts", "pinned", "record_rows")
# Where rows do not mix at all.
_PADDED_BY_GRAPH = {RECORD: (*PADDED, "rows", "latents"), VAE_ENCODER: ("images",), VAE_DECODER: ("images",)}

# Inputs and outputs.
GraphSignature = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]


def padded_dimensions(graph: str) -> tuple[str, ...]:
    """Dimensions along which a graph's inputs may be padded; each is the first axis wherever it occurs."""
    return _PADDED_BY_GRAPH.get(graph, PADDED)


def weights_owner(graph: str) -> str:
    """What a manifest's ``half_precision`` calls the graph: "unet" for all that are cut from it, else its name."""
    return UNET if graph in UNET_GRAPHS else graph


def manifest_to_signatures(manifest: Manifest) -> dict[str, GraphSignature]:
    """The graphs that a bundle must have: those of every edit, and where layers are recordable those that record."""
    latents, text, layers = manifest.latents, manifest.text, manifest.layers
    step_in, step_out = step_signature(latents, text, len(layers), manifest.cross_layers)
    found = {
        TEXT_ENCODER: text_encoder_signature(text),
        VAE_ENCODER: vae_encoder_signature(latents),
        VAE_DECODER: vae_decoder_signature(latents),
        STEP: (step_in, step_out),
    }
    if any(layer.recordable for layer in layers):
        rows_in = record_tensors(layers, "record_rows", manifest.precision)
        record = record_signature(latents, text, layers, manifest.precision)
        found[STEP_RECORDED] = ((*step_in, *rows_in), step_out)
        found[STEP_RECORDING] = (step_in, (*step_out, *record[1]))
        found[RECORD] = record
    return found


def record_name(layer: int) -> str:
    """Name of a layer's recorded hidden states, alike as output of the record graph and input of the step graph."""
    return f"record_{layer:02d}"


def text_encoder_signature(text: TextSpec) -> GraphSignature:
    return (
        (TensorSpec("input_ids", "int32", ("texts", text.tokens)),),
        (TensorSpec("encoder_hidden_states", "float32", ("texts", text.tokens, text.channels)),),
    )


def vae_encoder_signature(latents: LatentSpec) -> GraphSignature:
    return (
        (TensorSpec("image", "float32", ("images", 3, "image_height", "image_width")),),
        (_latents("latents", "images", latents),),
    )


def vae_decoder_signature(latents: LatentSpec) -> GraphSignature:
    return (
        (_latents("latents", "images", latents),),
        (TensorSpec("image", "float32", ("images", 3, "image_height", "image_width")),),
    )


def step_signature(latents: LatentSpec, text: TextSpec, layers: int, cross_layers: int) -> GraphSignature:
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


def record_signature(
    latents: LatentSpec, text: TextSpec, layers: tuple[LayerSpec, ...], dtype: DataType
) -> GraphSignature:
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
