"""The constants of a checkpoint that the manifest holds."""

from __future__ import annotations

from freeprompt.contract.manifest import LatentSpec, TextSpec
from freeprompt.export.checkpoint.load import Checkpoint


def checkpoint_to_latents(checkpoint: Checkpoint) -> LatentSpec:
    """Latents and images, from the configurations of autoencoder and U-Net."""
    vae, unet = checkpoint.vae.config, checkpoint.unet.config
    scale = 2 ** (len(vae.block_out_channels) - 1)
    size = unet.sample_size
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return LatentSpec(
        channels=vae.latent_channels,
        scale=scale,
        scaling_factor=float(vae.scaling_factor),
        height=height * scale,
        width=width * scale,
        multiple=2 ** (len(unet.block_out_channels) - 1),
    )


def checkpoint_to_text(checkpoint: Checkpoint) -> TextSpec:
    """Tokens and embeddings, from the tokenizer and the text encoder's configuration."""
    tokenizer, config = checkpoint.tokenizer, checkpoint.text_encoder.config
    return TextSpec(
        tokens=config.max_position_embeddings,
        channels=config.hidden_size,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
