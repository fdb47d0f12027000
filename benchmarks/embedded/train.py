"""Trains the embedded model: `python -m benchmarks.embedded.train unet|vae --run FOLDER`.

Batches are a pure function of the seed and the step, so a checkpoint is weights, optimiser and a
counter, and a run that is stopped and resumed gives bit for bit the weights of one that is not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import signal
import time
from typing import Any, Protocol

import numpy as np
import torch

from benchmarks.embedded import model, world


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of a run; written beside its checkpoints.

    Attributes:
        seed: of weights and data.
        samples: samples to see in all; the learning rate's schedule ends there.
        batch: samples a step.
        rate: peak learning rate.
        warmup: samples of linear warm-up.
        decay: last part of the run, 0..1, in which the rate falls (cosine) to a hundredth.
        ema: decay of the average of the weights, which is what is scored and shipped.
        drop: probability of an empty caption; it trains the empty prompt that inversion uses.
        short: probability of a caption without background.
        late: part of the timesteps drawn from 400..999 and not from 0..999.
        snr_cap: min-SNR weighting's gamma.
        noise_cap: largest extra weight of steps that are mostly noise.
        clip: largest norm of the gradient.
    """

    seed: int = 1
    samples: int = 150_000
    batch: int = 32
    rate: float = 1.5e-3
    warmup: int = 6_400
    decay: float = 0.4
    ema: float = 0.998
    drop: float = 0.17
    short: float = 0.05
    late: float = 0.5
    snr_cap: float = 5.0
    noise_cap: float = 4.0
    clip: float = 1.0


def learning_rate(config: TrainConfig, samples: int) -> float:
    """Rate after `samples` samples: linear warm-up, constant, cosine fall."""
    warm = min(1.0, (samples + config.batch) / max(config.warmup, 1))
    left = max(0.0, 1 - samples / config.samples) / config.decay
    fall = 1.0 if left >= 1 else 0.01 + 0.99 * (0.5 - 0.5 * float(np.cos(np.pi * left)))
    return config.rate * warm * fall


class Training(Protocol):
    """One trainable part, as the loop sees it."""

    step_count: int

    def step(self) -> dict[str, float]:
        """Takes one step and returns what to log."""

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""

    def load(self, state: dict[str, Any]) -> None:
        """Takes up a state."""


class Average:
    """Exponential moving average of a list of parameters."""

    def __init__(self, parameters: list[torch.nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self.values = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves towards the parameters, faster in the first steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, self.parameters, 1 - decay)

    @torch.no_grad()
    def copy_to(self, parameters: list[torch.nn.Parameter]) -> None:
        """Writes the average into parameters of the same shapes."""
        torch._foreach_copy_(parameters, self.values)


class UNetTraining:
    """U-Net and text encoder, trained together on the analytic latents."""

    def __init__(
        self,
        config: TrainConfig,
        sizes: model.ModelConfig,
        device: str = "cpu",
        *,
        compiled: bool = False,
        channels_last: bool = False,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.sizes = sizes
        self.device = torch.device(device)
        self.tokenizer = model.make_tokenizer()
        self.unet = model.make_unet(sizes).to(self.device).train()
        self.text_encoder = model.make_text_encoder(sizes, self.tokenizer).to(self.device).train()
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
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
        ids: torch.Tensor,
    ) -> torch.Tensor:
        """Weighted error of the predicted noise; a scalar."""
        alpha = self.alphas[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        text = self.text_encoder(ids)[0]
        predicted = self.unet(noisy, timesteps, text).sample
        ratio = (alpha / (1 - alpha)).flatten()
        weight = (self.config.snr_cap / ratio).clamp(max=1.0)
        # What is mostly noise decides colour and layout, and its error in noise is small.
        weight = weight * (1 + 1 / ratio).sqrt().clamp(max=self.config.noise_cap)
        return (weight * (predicted - noise).square().mean((1, 2, 3))).mean()

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents and noise [N, 4, 16, 16], timesteps [N] and token ids [N, 77] of a step."""
        config = self.config
        rng = np.random.default_rng([config.seed, 0, step])
        scenes = [world.sample_scene(rng) for _ in range(config.batch)]
        captions = [world.sample_caption(s, rng, config.drop, config.short) for s in scenes]
        images = model.to_tensor(world.render(scenes))
        latents = model.linear_latents(images) * model.SCALING_FACTOR
        noise = rng.standard_normal(latents.shape, dtype=np.float32)
        first = np.where(rng.uniform(size=config.batch) < config.late, 400, 0)
        timesteps = rng.integers(first, 1000)
        ids = model.tokenize(self.tokenizer, captions)
        parts = (latents, torch.from_numpy(noise), torch.from_numpy(timesteps), ids)
        a, b, c, d = (part.to(self.device) for part in parts)
        return a, b, c, d

    def step(self) -> dict[str, float]:
        """One optimiser step."""
        rate = learning_rate(self.config, self.step_count * self.config.batch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss(*self.batch(self.step_count))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimizer.step()
        self.average.update(self.step_count)
        self.step_count += 1
        return {"loss": float(loss.detach()), "norm": float(norm), "rate": rate}

    def state(self) -> dict[str, Any]:
        """Weights, their average, optimiser and step counter."""
        return {
            "unet": self.unet.state_dict(),
            "text_encoder": self.text_encoder.state_dict(),
            "average": self.average.values,
            "optimizer": self.optimizer.state_dict(),
            "step_count": self.step_count,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes up a state of `state`."""
        self.unet.load_state_dict(state["unet"])
        self.text_encoder.load_state_dict(state["text_encoder"])
        for mine, saved in zip(self.average.values, state["average"], strict=True):
            mine.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step_count = int(state["step_count"])


def save(training: Training, path: pathlib.Path) -> None:
    """Writes a checkpoint; the file is either the old or the new one, never half of one."""
    part = path.with_suffix(".part")
    torch.save(training.state(), part)
    os.replace(part, path)


def resume(training: Training, path: pathlib.Path) -> bool:
    """Takes up a checkpoint if there is one."""
    if not path.exists():
        return False
    training.load(torch.load(path, map_location="cpu", weights_only=True))
    return True


def run(
    training: Training, config: TrainConfig, folder: pathlib.Path, name: str, every: float
) -> None:
    """Trains to the end of the schedule, with a log line and a checkpoint every so often.

    Args:
        training: what to train; it may have been resumed.
        config: settings of the schedule.
        folder: where `NAME.pt` and `NAME.jsonl` are written.
        name: of the part.
        every: seconds between checkpoints.
    """
    stopped: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    saved = logged = time.monotonic()
    losses: list[float] = []
    with (folder / f"{name}.jsonl").open("a", encoding="utf-8") as log:
        while training.step_count * config.batch < config.samples and not stopped:
            values = training.step()
            losses.append(values["loss"])
            now = time.monotonic()
            if len(losses) == 50:
                values["loss"] = sum(losses) / len(losses)
                values["per_second"] = len(losses) * config.batch / (now - logged)
                entry = {"samples": training.step_count * config.batch, "time": time.time()}
                log.write(json.dumps({**entry, **values}) + "\n")
                log.flush()
                losses, logged = [], now
            if now - saved > every:
                save(training, folder / f"{name}.pt")
                saved = now
    save(training, folder / f"{name}.pt")
    signal.signal(signal.SIGTERM, previous)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("unet",))
    parser.add_argument("--run", type=pathlib.Path, required=True)
    parser.add_argument("--samples", type=int, default=TrainConfig.samples)
    parser.add_argument("--seed", type=int, default=TrainConfig.seed)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=float, default=180.0, help="seconds between checkpoints")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    options.run.mkdir(parents=True, exist_ok=True)
    config = TrainConfig(seed=options.seed, samples=options.samples)
    training = UNetTraining(
        config,
        model.ModelConfig(),
        options.device,
        compiled=options.compile,
        channels_last=options.channels_last,
    )
    resumed = resume(training, options.run / f"{options.part}.pt")
    settings = {**dataclasses.asdict(config), "resumed": resumed, "time": time.time()}
    with (options.run / f"{options.part}.settings.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(settings) + "\n")
    run(training, config, options.run, options.part, options.every)


if __name__ == "__main__":
    main()
