"""The embedded model's parts: exactly Stable Diffusion 1.x's architecture, a few sizes smaller."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import re
import tempfile
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.embedded import world

if TYPE_CHECKING:
    from collections.abc import Iterable

SCALING_FACTOR = 1.0 / 0.6
"""Takes the linear latents of `linear_latents` to about unit standard deviation."""

LATENT_CHANNELS = 4
FACTOR = 4
MAX_TOKENS = 77
BOS, EOS = "<|startoftext|>", "<|endoftext|>"

EXTRA_WORDS = (
    "image",
    "with",
    "the",
    "and",
    "of",
    "in",
    "at",
    "to",
    "is",
    "big",
    "small",
    "orange",
)
"""Words outside the world that users are likely to type; only to keep their prompts short."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of the parts.

    Attributes:
        channels: U-Net channels per level, multiples of 16; heads must divide them into dims
            that are multiples of 8 so that fused attention kernels take them.
        heads: attention heads at every level.
        text_width: width of the text encoder and of cross-attention.
        text_layers: layers of the text encoder.
        vae_channels: autoencoder channels per level; three levels give a factor of 4.
        groups: groups of the U-Net's group norms.
        vae_groups: groups of the autoencoder's group norms.
    """

    channels: tuple[int, int, int, int] = (32, 48, 64, 96)
    heads: int = 2
    text_width: int = 64
    text_layers: int = 2
    vae_channels: tuple[int, int, int] = (16, 32, 48)
    groups: int = 16
    vae_groups: int = 4


def make_unet(config: ModelConfig) -> UNet2DConditionModel:
    """U-Net over [N, 4, 16, 16] latents with 16 self- and 16 cross-attention layers."""
    return UNet2DConditionModel(
        sample_size=world.SIZE // FACTOR,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=config.channels,
        layers_per_block=2,
        # diffusers reads this argument as the number of heads for this class.
        attention_head_dim=config.heads,
        cross_attention_dim=config.text_width,
        norm_num_groups=config.groups,
    )


def make_text_encoder(config: ModelConfig, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Text encoder giving [N, 77, text_width] from token ids."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_width,
            intermediate_size=4 * config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.heads,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=config.text_width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_vae(config: ModelConfig) -> AutoencoderKL:
    """Autoencoder between [N, 3, 64, 64] images in -1..1 and [N, 4, 16, 16] latents."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=config.vae_channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=config.vae_groups,
        sample_size=world.SIZE,
        scaling_factor=SCALING_FACTOR,
    )


def make_scheduler() -> DDIMScheduler:
    """DDIM with the settings of the method's reference (steps_offset 1: timesteps end at 1)."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def world_words() -> list[str]:
    """Every word that captions of the world use, sorted, without repetition."""
    words = {*world.SHAPES, *world.COLOURS, *world.BACKGROUNDS, *EXTRA_WORDS}
    for template in (*world.TEMPLATES, world.SHORT_TEMPLATE):
        words.update(re.findall(r"[a-z]+", re.sub(r"\{.*?\}", "", template)))
    return sorted(words)


def byte_symbols() -> list[str]:
    """The 256 printable stand-ins for bytes that byte-level BPE uses, in byte order.

    Bytes that print as themselves stand for themselves, the others are moved above U+0100.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    moved = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(moved)) for byte in range(256)]


def tokenizer_tables(words: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges that make every word one token and spell out everything else.

    Byte-pair encoding trained on the words, all equally frequent, until each is one token: since
    a tokenizer replays the merges in the order of training, it then finds the same segmentation.
    """
    symbols = byte_symbols()
    vocab: dict[str, int] = {}
    for token in [*symbols, *(symbol + "</w>" for symbol in symbols)]:
        vocab[token] = len(vocab)
    merges: list[tuple[str, str]] = []
    split = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))]
    while any(len(parts) > 1 for parts in split):
        counts: dict[tuple[str, str], int] = {}
        for parts in split:
            for pair in itertools.pairwise(parts):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        vocab.setdefault("".join(best), len(vocab))
        split = [_merge(parts, best) for parts in split]
    for token in (BOS, EOS):
        vocab[token] = len(vocab)
    return vocab, merges


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == pair and not out[-1].endswith("</w>"):
            out[-1] += part
        else:
            out.append(part)
    return out


def write_tables(folder: pathlib.Path, vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
    """Writes `vocab.json` and `merges.txt`."""
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_tokenizer(words: Iterable[str] | None = None) -> CLIPTokenizer:
    """CLIP tokenizer for any text, with one token for each word of the world."""
    vocab, merges = tokenizer_tables(world_words() if words is None else words)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        write_tables(path, vocab, merges)
        (path / "tokenizer_config.json").write_text(
            json.dumps(
                {
                    "tokenizer_class": "CLIPTokenizer",
                    "model_max_length": MAX_TOKENS,
                    "bos_token": BOS,
                    "eos_token": EOS,
                    "unk_token": EOS,
                    "pad_token": EOS,
                }
            ),
            encoding="utf-8",
        )
        return CLIPTokenizer.from_pretrained(folder)


def linear_latents(images: torch.Tensor) -> torch.Tensor:
    """The analytic latents that the U-Net is trained on and the encoder learns to give.

    Three channels are 4x4 block means of R, G, B; the fourth is how much brighter the left half
    of a block is than the right half, which tells where in the block an edge runs; it is doubled
    since it is zero away from edges and would otherwise be learned last.

    Args:
        images: [N, 3, H, W] float in -1..1.

    Returns:
        [N, 4, H/4, W/4] float, before the scaling factor.
    """
    means = torch.nn.functional.avg_pool2d(images, FACTOR)
    halves = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), (FACTOR, FACTOR // 2))
    difference = halves[..., 0::2] - halves[..., 1::2]
    return torch.cat([means, 2 * difference], 1)


def to_tensor(images: world.ByteArray) -> torch.Tensor:
    """[N, H, W, 3] uint8 to [N, 3, H, W] float32 in -1..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_bytes(images: torch.Tensor) -> world.ByteArray:
    """[N, 3, H, W] float in -1..1 (clipped) to [N, H, W, 3] uint8."""
    scaled = (images.float().clamp(-1, 1) + 1) * 127.5
    array: world.ByteArray = scaled.round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return array


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
    """Token ids [N, 77] int64, padded and truncated as Stable Diffusion pipelines do."""
    batch: Any = tokenizer(prompts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    ids: torch.Tensor = batch["input_ids"]
    return ids


def make_pipeline(
    *,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    vae: AutoencoderKL,
) -> StableDiffusionPipeline:
    """The parts together."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_pipeline(folder: pathlib.Path, **parts: Any) -> None:
    """Writes the parts (see `make_pipeline`) as a folder that `StableDiffusionPipeline.from_pretrained` opens."""
    make_pipeline(**parts).save_pretrained(folder, safe_serialization=True)
    # transformers 5 writes tokenizer.json alone, and others read these two.
    vocab, merges = tokenizer_tables(world_words())
    write_tables(folder / "tokenizer", vocab, merges)
