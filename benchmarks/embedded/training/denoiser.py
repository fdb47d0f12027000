"""Training of the U-Net and the text encoder on the analytic latents.

Batches are a pure function of the seed and the step, so a checkpoint is weights, optimiser and a
counter, and a run that is stopped and resumed gives bit for bit the weights of one that is not.
"""

from __future__ import annotations

import hashlib
import pathlib
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.embedded import model, world
from benchmarks.embedded.training.average import Average
from benchmarks.embedded.training.replicas import Replicas
from benchmarks.embedded.training.settings import TrainConfig, learning_rate

WEIGHTS = {"unet": "diffusion_pytorch_model.safetensors", "text_encoder": "model.safetensors"}
"""Where a pipeline folder keeps what is trained here, below a folder of the same name."""


def fingerprint(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 (hexadecimal) of the weights in a pipeline folder that a run may start from."""
    return {part: hashlib.sha256((folder / part / name).read_bytes()).hexdigest() for part, name in WEIGHTS.items()}


class DenoiserTraining:
    """U-Net and text encoder, trained together on the analytic latents.

    Args:
        config: settings of the run.
        sizes: of the parts.
        device: where they are trained.
        compiled: compile the loss.
        replicas: this process's place among those that train together.
        start_from: pipeline folder whose weights are the first ones (in place of random ones); the
            optimiser starts fresh.
    """

    def __init__(
        self,
        config: TrainConfig,
        sizes: model.ModelConfig,
        device: str = "cpu",
        *,
        compiled: bool = False,
        replicas: Replicas | None = None,
        start_from: pathlib.Path | None = None,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.sizes = sizes
        self.replicas = replicas or Replicas()
        self.asked = self.stopping = False
        self.device = torch.device(device)
        self.tokenizer = model.make_tokenizer()
        self.unet = model.make_unet(sizes).to(self.device).train()
        self.text_encoder = model.make_text_encoder(sizes, self.tokenizer).to(self.device).train()
        self.start: dict[str, str] = {}
        if start_from is not None:
            self.start = fingerprint(start_from)
            for part, module in (("unet", self.unet), ("text_encoder", self.text_encoder)):
                # Loading copies into the parameters, so float16 weights become float32 here.
                module.load_state_dict(load_file(start_from / part / WEIGHTS[part]))
        self.parameters = [*self.unet.parameters(), *self.text_encoder.parameters()]
        self.average = Average(self.parameters, config.ema)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.alphas = model.make_scheduler().alphas_cumprod.to(self.device)
        self.step_count = 0
        self._loss = torch.compile(self.loss) if compiled else self.loss

    def loss(
        self,
        latents: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        told: torch.Tensor,
        ids: torch.Tensor,
    ) -> torch.Tensor:
        """Weighted error of the predicted noise; a scalar."""
        alpha = self.alphas[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        text = self.text_encoder(ids)[0]
        predicted = self.unet(noisy, told, text).sample
        ratio = (alpha / (1 - alpha)).flatten()
        weight = (self.config.snr_cap / ratio).clamp(max=1.0)
        # What is mostly noise decides colour and layout, and its error in noise is small.
        weight = weight * (1 + 1 / ratio).sqrt().clamp(max=self.config.noise_cap)
        error: torch.Tensor = (weight * (predicted - noise).square().mean((1, 2, 3))).mean()
        return error

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """This replica's part of a step's batch.

        Returns:
            Latents and noise [N, 4, 16, 16], timesteps of the noise and those that the U-Net is
            told [N], and token ids [N, 77].
        """
        config = self.config
        rng = np.random.default_rng([config.seed, 0, step])
        scenes = [world.sample_scene(rng) for _ in range(config.batch)]
        captions = [world.sample_caption(s, rng, config.drop, config.short) for s in scenes]
        side = world.SIZE // model.FACTOR
        shape = (config.batch, model.LATENT_CHANNELS, side, side)
        noise = rng.standard_normal(shape, dtype=np.float32)
        first = np.where(rng.uniform(size=config.batch) < config.late, config.late_from, 0)
        timesteps = rng.integers(first, 1000)
        told = timesteps
        if config.ahead:
            by = rng.integers(0, config.ahead_most + 1, config.batch)
            told = np.minimum(timesteps + by * (rng.uniform(size=config.batch) < config.ahead), 999)
        # Drawn for the whole batch, so that it does not depend on how many share it.
        mine = self.replicas.share(config.batch)
        images = model.to_tensor(world.render(scenes[mine]))
        latents = model.linear_latents(images) * model.SCALING_FACTOR
        ids = model.tokenize(self.tokenizer, captions[mine])
        parts = (
            latents,
            torch.from_numpy(noise[mine]),
            torch.from_numpy(timesteps[mine]),
            torch.from_numpy(told[mine]),
            ids,
        )
        a, b, c, d, e = (part.to(self.device) for part in parts)
        return a, b, c, d, e

    def step(self) -> dict[str, float]:
        """One optimiser step."""
        rate = learning_rate(self.config, self.step_count * self.config.batch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss(*self.batch(self.step_count))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        grads = [p.grad for p in self.parameters if p.grad is not None]
        extra = self.replicas.average(grads, [float(loss.detach()), float(self.asked)])
        self.stopping = extra[1] > 0
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimizer.step()
        self.average.update(self.step_count)
        self.step_count += 1
        return {"loss": extra[0], "norm": float(norm), "rate": rate}

    def state(self) -> dict[str, Any]:
        """Weights, their average, optimiser and step counter."""
        return {
            "unet": self.unet.state_dict(),
            "text_encoder": self.text_encoder.state_dict(),
            "average": self.average.values,
            "optimizer": self.optimizer.state_dict(),
            "step_count": self.step_count,
            "start": self.start,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes up a state of `state`; ValueError if its run started from other weights."""
        if state.get("start", {}) != self.start:
            raise ValueError(
                f"this run started from weights {state.get('start') or '(random)'}, not {self.start or '(random)'}: "
                "give the same --start-from, or another --run"
            )
        self.unet.load_state_dict(state["unet"])
        self.text_encoder.load_state_dict(state["text_encoder"])
        for mine, saved in zip(self.average.values, state["average"]):
            mine.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step_count = int(state["step_count"])
