"""Training of the autoencoder: its encoder towards the analytic latents, its decoder from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from benchmarks.embedded import model, world
from benchmarks.embedded.training.average import Average
from benchmarks.embedded.training.settings import TrainConfig, learning_rate

LATENT_NOISE = 0.03
"""Standard deviation of the noise on the latents that the decoder learns from (before scaling):
it has to bear what a denoised latent is off by."""

ENCODER_RATE = 0.02
"""Learning rate of the encoder, which starts almost right, relative to the decoder's."""

ENCODER_LEVEL, DECODER_LEVEL = 30.0, 8.0
"""Constants in the last group norms, far above the signals; see `start_linear`."""

ENCODER_DAMP, DECODER_DAMP = 0.05, 0.1
"""What is left at first of the branches that are not linear."""


@torch.no_grad()
def start_linear(vae: AutoencoderKL) -> None:
    """Starts both halves as linear maps, up to their other branches, damped.

    The way through shortcuts and resamplings is linear and can hold block means exactly. Only the
    last norm and activation of a half are not: there each signal x travels in a group of its own
    as (x, -x, c, -c) with a large constant c, so that the group's mean is 0 and its deviation
    constant, and silu(x) - silu(-x) = x. So the encoder starts as the analytic map and the decoder
    as an interpolation, and training has to add to them and not to find them: absolute colours,
    which group norms hide from what comes after them, would otherwise take most of the time.
    """
    signals = model.LATENT_CHANNELS
    encoder: Any = vae.encoder
    decoder: Any = vae.decoder
    _damp([*encoder.down_blocks, encoder.mid_block], ENCODER_DAMP)
    _damp([*decoder.up_blocks, decoder.mid_block], DECODER_DAMP)

    first, second = (block.downsamplers[0].conv for block in encoder.down_blocks[:2])
    _carry(encoder.conv_in, 3, 1)
    for conv in (first, second):
        conv.weight[:signals] = 0
        conv.bias[:signals] = 0
        for channel in range(3):
            conv.weight[channel, channel, :2, :2] = 0.25
    second.weight[3, :3, :2, 0] = 1 / 3
    second.weight[3, :3, :2, 1] = -1 / 3
    if encoder.down_blocks[1].resnets[0].conv_shortcut is not None:
        _carry(encoder.down_blocks[1].resnets[0].conv_shortcut, 3, 0)
    _protect(
        encoder.down_blocks[2].resnets[0].conv_shortcut,
        encoder.conv_norm_out,
        encoder.conv_out,
        signals,
        ENCODER_LEVEL,
    )
    quant: Any = vae.quant_conv
    _carry(quant, 2 * signals, 0)
    # Log-variances: the posterior is as good as its mean.
    encoder.conv_out.weight[signals:] *= 0.1
    quant.bias[signals:] = -10

    after: Any = vae.post_quant_conv
    _carry(after, signals, 0)
    _carry(decoder.conv_in, signals, 1)
    # Nearest-neighbour upsampling and this kernel make a nearly bilinear one.
    kernel = torch.tensor([0.25, 0.5, 0.25])
    for block in decoder.up_blocks[:2]:
        conv = block.upsamplers[0].conv
        _carry(conv, signals, 1)
        for channel in range(signals):
            conv.weight[channel, channel] = kernel[:, None] * kernel
    if decoder.up_blocks[1].resnets[0].conv_shortcut is not None:
        _carry(decoder.up_blocks[1].resnets[0].conv_shortcut, signals, 0)
    _protect(
        decoder.up_blocks[2].resnets[0].conv_shortcut,
        decoder.conv_norm_out,
        decoder.conv_out,
        3,
        DECODER_LEVEL,
    )


def _damp(blocks: list[Any], by: float) -> None:
    """Shrinks the branches beside the identity of residual blocks and attentions."""
    for block in blocks:
        for resnet in block.resnets:
            resnet.conv2.weight.mul_(by)
            resnet.conv2.bias.zero_()
        for attention in getattr(block, "attentions", None) or []:
            attention.to_out[0].weight.mul_(by)
            attention.to_out[0].bias.zero_()


def _carry(conv: Any, channels: int, middle: int) -> None:
    """Makes a convolution hand on its first channels; the others stay random."""
    conv.weight[:channels] = 0
    conv.bias[:channels] = 0
    for channel in range(channels):
        conv.weight[channel, channel, middle, middle] = 1


def _protect(shortcut: Any, norm: Any, out: Any, signals: int, level: float) -> None:
    """Takes `signals` channels linearly through the last norm and activation."""
    width = norm.num_channels // norm.num_groups
    deviation = level * (2 / width) ** 0.5
    out.weight[:signals] = 0
    out.bias.zero_()
    for signal in range(signals):
        start = signal * width
        rows = slice(start, start + width)
        shortcut.weight[rows] = 0
        shortcut.bias[rows] = 0
        shortcut.weight[start, signal] = 1
        shortcut.weight[start + 1, signal] = -1
        shortcut.bias[start + 2] = level
        shortcut.bias[start + 3] = -level
        out.weight[signal, start, 1, 1] = deviation
        out.weight[signal, start + 1, 1, 1] = -deviation


class AutoencoderTraining:
    """The autoencoder's two halves, each trained on its own against the analytic latents."""

    def __init__(self, config: TrainConfig, sizes: model.ModelConfig, device: str = "cpu") -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.device = torch.device(device)
        vae = model.make_vae(sizes)
        start_linear(vae)
        self.vae = vae.to(self.device).train()
        self.parameters = list(self.vae.parameters())
        self.average = Average(self.parameters, config.ema)
        encoder = [*self.vae.encoder.parameters(), *self.vae.quant_conv.parameters()]
        mine = {id(parameter) for parameter in encoder}
        decoder = [parameter for parameter in self.parameters if id(parameter) not in mine]
        self.optimizer = torch.optim.AdamW(
            [{"params": encoder}, {"params": decoder}],
            lr=config.rate,
            betas=(0.9, 0.99),
            weight_decay=0.0,
            fused=True,
        )
        self.step_count = 0
        self.start: dict[str, str] = {}
        self.asked = self.stopping = False

    def step(self) -> dict[str, float]:
        """One optimiser step of both halves; the encoder sees a quarter of the batch."""
        rate = learning_rate(self.config, self.step_count * self.config.batch)
        for group, part in zip(self.optimizer.param_groups, (ENCODER_RATE, 1.0)):
            group["lr"] = part * rate
        rng = np.random.default_rng([self.config.seed, 1, self.step_count])
        scenes = [world.sample_scene(rng) for _ in range(self.config.batch)]
        images = model.to_tensor(world.render(scenes)).to(self.device)
        latents = model.linear_latents(images)
        noise = rng.standard_normal(latents.shape, dtype=np.float32)
        strength = rng.uniform(0, 2 * LATENT_NOISE, (len(scenes), 1, 1, 1)).astype(np.float32)
        noisy = latents + torch.from_numpy(noise * strength).to(self.device)
        quarter = max(1, self.config.batch // 4)
        found = self.vae.encode(images[:quarter]).latent_dist.mean
        encoding = functional.mse_loss(found, latents[:quarter])
        decoding = functional.l1_loss(self.vae.decode(noisy).sample, images)
        loss = encoding + decoding
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimizer.step()
        self.average.update(self.step_count)
        self.step_count += 1
        self.stopping = self.asked
        return {
            "loss": float(loss.detach()),
            "encoder": float(encoding.detach()) ** 0.5,
            "decoder": float(decoding.detach()),
            "norm": float(norm),
            "rate": rate,
        }

    def state(self) -> dict[str, Any]:
        """Weights, their average, optimiser and step counter."""
        return {
            "vae": self.vae.state_dict(),
            "average": self.average.values,
            "optimizer": self.optimizer.state_dict(),
            "step_count": self.step_count,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes up a state of `state`."""
        self.vae.load_state_dict(state["vae"])
        for mine, saved in zip(self.average.values, state["average"]):
            mine.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step_count = int(state["step_count"])
