"""Trains the embedded model: `python -m benchmarks.embedded.train unet|vae --run FOLDER`.

Started again on the same folder it goes on from the last checkpoint, and ends with bit for bit the
weights of a run that was never stopped. `unet` also trains the text encoder; the two parts do not
need each other (see `denoiser` and `autoencoder`) and `checkpoint` joins them into a pipeline folder.
With `--start-from` the U-Net and the text encoder start from a pipeline folder's weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import pathlib
import signal
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO

import torch

from benchmarks.embedded import model
from benchmarks.embedded.training import progress
from benchmarks.embedded.training.autoencoder import AutoencoderTraining
from benchmarks.embedded.training.denoiser import DenoiserTraining
from benchmarks.embedded.training.replicas import Replicas
from benchmarks.embedded.training.settings import TrainConfig

LOG_STEPS = 50
"""Steps between log lines."""

VAE_DEFAULTS = {"samples": 6_000, "batch": 4, "rate": 1e-3, "warmup": 200, "ema": 0.99}
"""What differs for the autoencoder, whose every sample is 64x64 pixels of supervision."""

STEERABLE = ("samples", "seed", "rate", "decay", "ema", "drop", "late", "late_from", "noise_cap", "ahead", "warmup")
"""Fields of `TrainConfig` that are options of the command."""


class Training(Protocol):
    """One trainable part, as the loop sees it.

    Attributes:
        step_count: steps taken.
        asked: set, at any moment, to have the run stopped.
        stopping: set by a step in which the replicas saw that one of them was asked.
        start: SHA-256 by part of the weights that it started from; empty if they were random.
    """

    step_count: int
    start: dict[str, str]
    asked: bool
    stopping: bool

    def step(self) -> dict[str, float]:
        """Takes one step and returns what to log."""

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""

    def load(self, state: dict[str, Any]) -> None:
        """Takes up a state."""


def save(training: Training, path: pathlib.Path) -> None:
    """Writes a checkpoint; the file is either the old or the new one, never half of one."""
    part = path.with_suffix(".part")
    torch.save(training.state(), part)
    part.replace(path)


def resume(training: Training, path: pathlib.Path) -> bool:
    """Takes up a checkpoint if there is one."""
    if not path.exists():
        return False
    training.load(torch.load(path, map_location="cpu", weights_only=True))
    return True


def write(log: TextIO, samples: int, values: dict[str, float]) -> None:
    """Appends one JSON line."""
    entry = {"samples": samples, "time": round(time.time(), 1), **values}
    log.write(json.dumps(entry) + "\n")
    log.flush()


def run(
    training: Training,
    config: TrainConfig,
    folder: pathlib.Path,
    name: str,
    every: float,
    score: Callable[[], dict[str, float]] | None = None,
    score_samples: int = 0,
) -> None:
    """Trains to the end of the schedule, with a log line and a checkpoint every so often.

    Args:
        training: what to train; it may have been resumed.
        config: settings of the schedule.
        folder: where `NAME.pt` and `NAME.jsonl` are written.
        name: of the part.
        every: seconds between checkpoints.
        score: gives figures to log, called every `score_samples` samples.
        score_samples: see `score`; 0 is never.
    """

    def stop(number: int, frame: object) -> None:
        del number, frame
        training.asked = True

    previous = signal.signal(signal.SIGTERM, stop)
    saved = logged = time.monotonic()
    losses: list[float] = []
    with (folder / f"{name}.jsonl").open("a", encoding="utf-8") as log:
        while training.step_count * config.batch < config.samples and not training.stopping:
            values = training.step()
            losses.append(values["loss"])
            now = time.monotonic()
            if len(losses) == LOG_STEPS:
                values["loss"] = sum(losses) / len(losses)
                values["per_second"] = len(losses) * config.batch / (now - logged)
                write(log, training.step_count * config.batch, values)
                losses, logged = [], now
            steps = score_samples // config.batch
            if score and steps and training.step_count % steps == 0:
                write(log, training.step_count * config.batch, score())
                losses, logged = [], time.monotonic()
            if now - saved > every:
                save(training, folder / f"{name}.pt")
                saved = now
    save(training, folder / f"{name}.pt")
    signal.signal(signal.SIGTERM, previous)


def work(options: argparse.Namespace, rank: int, port: int) -> None:
    """Trains as one of the replicas; the first one logs, scores and saves."""
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    options.run.mkdir(parents=True, exist_ok=True)
    config = TrainConfig()
    if options.part == "vae":
        config = dataclasses.replace(config, **VAE_DEFAULTS)  # type: ignore[arg-type]
    given = {name: getattr(options, name) for name in STEERABLE if getattr(options, name) is not None}
    config = dataclasses.replace(config, **given)
    sizes = model.ModelConfig()
    score: Callable[[], dict[str, float]] | None = None
    training: DenoiserTraining | AutoencoderTraining
    if options.part == "unet":
        training = DenoiserTraining(
            config,
            sizes,
            options.device,
            compiled=options.compile,
            replicas=Replicas(rank, options.replicas, port),
            start_from=options.start_from,
        )
        score = progress.Progress(training, options.run) if rank == 0 else None
    else:
        training = AutoencoderTraining(config, sizes, options.device)
    resumed = resume(training, options.run / f"{options.part}.pt")
    if rank:
        while training.step_count * config.batch < config.samples and not training.stopping:
            training.step()
        return
    settings = {
        **dataclasses.asdict(config),
        "resumed_at": training.step_count * config.batch if resumed else None,
        "replicas": options.replicas,
        "start": training.start,
        "time": round(time.time(), 1),
        "torch": torch.__version__,
    }
    with (options.run / f"{options.part}.settings.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(settings) + "\n")
    run(training, config, options.run, options.part, options.every, score, options.score_every)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("unet", "vae"))
    parser.add_argument("--run", type=pathlib.Path, required=True, help="folder of the run")
    parser.add_argument("--start-from", type=pathlib.Path, help="pipeline folder of first weights (unet only)")
    for name in STEERABLE:
        kind = type(getattr(TrainConfig, name))
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="see settings.TrainConfig")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of each replica")
    parser.add_argument("--replicas", type=int, default=1, help="processes (unet only)")
    parser.add_argument("--every", type=float, default=180.0, help="seconds between checkpoints")
    parser.add_argument("--score-every", type=int, default=20_000, help="samples; 0 is never")
    parser.add_argument("--compile", action="store_true", help="minutes at first, then 10 %% faster")
    options = parser.parse_args()
    if options.part == "vae" and (options.start_from or options.replicas > 1):
        parser.error("--start-from and --replicas are of unet only")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=work, args=(options, rank, port), daemon=True) for rank in range(1, options.replicas)
    ]
    for process in others:
        process.start()
    work(options, 0, port)
    for process in others:
        process.join()


if __name__ == "__main__":
    main()
