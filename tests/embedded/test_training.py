"""Training resumes exactly, the schedule is what it says, and replicas change nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import pathlib
from collections.abc import Callable

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from benchmarks.embedded import checkpoint, model, train, world
from benchmarks.embedded.scoring import figures
from benchmarks.embedded.scoring.editing import Method, edit
from benchmarks.embedded.scoring.literal_editing import LiteralEditing
from benchmarks.embedded.training import progress
from benchmarks.embedded.training.autoencoder import AutoencoderTraining
from benchmarks.embedded.training.denoiser import DenoiserTraining
from benchmarks.embedded.training.settings import TrainConfig, learning_rate

SIZES = model.ModelConfig(
    channels=(16, 16, 16, 16),
    text_width=16,
    text_layers=1,
    vae_channels=(16, 20, 24),
    groups=8,
    vae_groups=4,
)
CONFIG = TrainConfig(samples=24, batch=4, warmup=8)

Training = DenoiserTraining | AutoencoderTraining


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("kind", [DenoiserTraining, AutoencoderTraining])
def test_resumes_exactly(kind: Callable[..., Training], tmp_path: pathlib.Path) -> None:
    whole = kind(CONFIG, SIZES)
    train.run(whole, CONFIG, tmp_path, "whole", 1e9)
    assert whole.step_count == 6
    first = kind(CONFIG, SIZES)
    for _ in range(2):
        first.step()
    train.save(first, tmp_path / "part.pt")
    second = kind(CONFIG, SIZES)
    # Whatever happens in between must not count.
    torch.manual_seed(123)
    assert train.resume(second, tmp_path / "part.pt")
    train.run(second, CONFIG, tmp_path, "part", 1e9)
    assert second.step_count == 6
    for one, two in zip(whole.parameters, second.parameters):
        assert torch.equal(one, two)
    for one, two in zip(whole.average.values, second.average.values):
        assert torch.equal(one, two)
    assert not train.resume(second, tmp_path / "none.pt")


def test_progress_does_not_touch_training(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SCENES", 3)
    monkeypatch.setattr(progress, "STEPS", 2)
    whole, watched = DenoiserTraining(CONFIG, SIZES), DenoiserTraining(CONFIG, SIZES)
    train.run(whole, CONFIG, tmp_path, "whole", 1e9)
    seen: list[dict[str, float]] = []
    score = progress.Progress(watched, tmp_path)

    def scored() -> dict[str, float]:
        seen.append(score())
        return seen[-1]

    train.run(watched, CONFIG, tmp_path, "watched", 1e9, scored, 8)
    assert [set(figures) for figures in seen] == [{"generated", "reconstructed", "recoloured"}] * 3
    assert all(0 <= value <= 1 for figures in seen for value in figures.values())
    assert (tmp_path / "samples_000008.png").exists()
    for one, two in zip(whole.parameters, watched.parameters):
        assert torch.equal(one, two)


def _pipeline_folder(folder: pathlib.Path, seed: int) -> pathlib.Path:
    """A folder with tiny random weights in float16, as a first stage leaves it."""
    torch.manual_seed(seed)
    tokenizer = model.make_tokenizer()
    model.save_pipeline(
        folder,
        unet=model.make_unet(SIZES).half(),
        text_encoder=model.make_text_encoder(SIZES, tokenizer).half(),
        tokenizer=tokenizer,
        vae=model.make_vae(SIZES).half(),
    )
    return folder


def test_second_stage_starts_from_a_folder_and_resumes_exactly(tmp_path: pathlib.Path) -> None:
    start = _pipeline_folder(tmp_path / "start", 5)
    pipe = StableDiffusionPipeline.from_pretrained(str(start), safety_checker=None, local_files_only=True)
    config = dataclasses.replace(CONFIG, seed=2, drop=0.25, ema=0.999)
    whole = DenoiserTraining(config, SIZES, start_from=start)
    wanted = [*pipe.unet.parameters(), *pipe.text_encoder.parameters()]
    assert len(wanted) == len(whole.parameters) == len(whole.average.values)
    for parameter, average, given in zip(whole.parameters, whole.average.values, wanted):
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, given.float()) and torch.equal(average, given.float())
    assert not whole.optimizer.state, "the optimiser starts fresh"
    train.run(whole, config, tmp_path, "whole", 1e9)

    first = DenoiserTraining(config, SIZES, start_from=start)
    for _ in range(2):
        first.step()
    train.save(first, tmp_path / "part.pt")
    second = DenoiserTraining(config, SIZES, start_from=start)
    torch.manual_seed(123)
    assert train.resume(second, tmp_path / "part.pt")
    train.run(second, config, tmp_path, "part", 1e9)
    for one, two in zip(whole.parameters, second.parameters):
        assert torch.equal(one, two)
    for one, two in zip(whole.average.values, second.average.values):
        assert torch.equal(one, two)


def test_a_run_keeps_its_starting_weights(tmp_path: pathlib.Path) -> None:
    start = _pipeline_folder(tmp_path / "start", 5)
    training = DenoiserTraining(CONFIG, SIZES, start_from=start)
    file = start / "unet" / "diffusion_pytorch_model.safetensors"
    assert training.start["unet"] == hashlib.sha256(file.read_bytes()).hexdigest()
    train.save(training, tmp_path / "unet.pt")
    for other in (None, _pipeline_folder(tmp_path / "other", 6)):
        with pytest.raises(ValueError, match="--start-from"):
            train.resume(DenoiserTraining(CONFIG, SIZES, start_from=other), tmp_path / "unet.pt")


def test_stops_when_told(tmp_path: pathlib.Path) -> None:
    training = DenoiserTraining(CONFIG, SIZES)
    training.asked = True
    train.run(training, CONFIG, tmp_path, "unet", 1e9)
    assert training.step_count == 1
    assert (tmp_path / "unet.pt").exists()


def test_replicas_share_a_batch() -> None:
    training = DenoiserTraining(CONFIG, SIZES)
    whole = training.batch(3)
    for rank in range(2):
        training.replicas.rank, training.replicas.count = rank, 2
        half = training.batch(3)
        for all_rows, rows in zip(whole, half):
            assert torch.equal(all_rows[2 * rank : 2 * rank + 2], rows)


def test_timesteps_are_told_ahead_of_the_noise() -> None:
    """And the batch is otherwise the same, so that a run without it is what it was."""
    plain = DenoiserTraining(CONFIG, SIZES).batch(0)
    assert torch.equal(plain[2], plain[3])
    config = dataclasses.replace(CONFIG, batch=400, ahead=0.5, ahead_most=100)
    latents, noise, timesteps, told, ids = DenoiserTraining(config, SIZES).batch(0)
    base = DenoiserTraining(dataclasses.replace(config, ahead=0.0), SIZES).batch(0)
    for one, two in zip((latents, noise, timesteps, ids), (base[0], base[1], base[2], base[4])):
        assert torch.equal(one, two)
    by = told - timesteps
    assert int(by.min()) == 0 and 90 < int(by.max()) <= 100 and int(told.max()) <= 999
    # Half of 400, less one in 101 and those at the end: three standard deviations are 30.
    assert 160 < int((by > 0).sum()) < 230


def test_the_loss_is_told_what_the_noise_is_not() -> None:
    """The noise is that of `timesteps`, the U-Net sees `told`."""
    training = DenoiserTraining(CONFIG, SIZES)
    latents, noise, timesteps, _, ids = training.batch(0)
    seen: list[torch.Tensor] = []
    training.unet.register_forward_pre_hook(lambda module, given: seen.extend(given[:2]))
    training.loss(latents, noise, timesteps, timesteps + 5, ids)
    alpha = training.alphas[timesteps][:, None, None, None]
    assert torch.equal(seen[0], alpha.sqrt() * latents + (1 - alpha).sqrt() * noise)
    assert torch.equal(seen[1], timesteps + 5)


def test_learning_rate() -> None:
    config = TrainConfig(samples=1000, batch=10, warmup=100, rate=1.0, decay=0.4)
    rates = [learning_rate(config, samples) for samples in range(0, 1000, 10)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:60] == [1.0] * 50
    assert all(a >= b for a, b in itertools.pairwise(rates[60:]))
    assert rates[-1] < 0.03


def test_checkpoint_opens_and_edits(tmp_path: pathlib.Path) -> None:
    config = dataclasses.replace(CONFIG, samples=8)
    parts: dict[str, Training] = {
        "unet": DenoiserTraining(config, SIZES),
        "vae": AutoencoderTraining(config, SIZES),
    }
    for name, training in parts.items():
        train.run(training, config, tmp_path, name, 1e9)
        (tmp_path / f"{name}.settings.jsonl").write_text('{"batch": 4}\n', encoding="utf-8")
    seen = checkpoint.join(tmp_path, tmp_path / "out", SIZES)
    assert seen == {"unet": 8, "vae": 8}
    editing = LiteralEditing.open(tmp_path / "out")
    scenes = world.sample_scenes(2, 0)
    images = world.render(scenes)
    prompts = [world.caption(scene) for scene in scenes]
    layers = tuple(range(16))
    for method in (
        Method("self", layers, (), 0.5, 3.0),
        Method("both", layers, layers, 1.0, 1.0),
        Method("reused", layers, (), 1.0, 3.0, reuse=True),
    ):
        colour, shape = edit(editing, images, prompts, [prompts, prompts[::-1]], 4, method)
        assert colour.shape == shape.shape == images.shape
    assert editing.generate(prompts, 2, 3.0).shape == images.shape
    assert editing.reconstruct(images, 2).shape == images.shape


def test_checkpoint_keeps_the_autoencoder_that_a_run_started_beside(tmp_path: pathlib.Path) -> None:
    start = _pipeline_folder(tmp_path / "start", 5)
    training = DenoiserTraining(CONFIG, SIZES, start_from=start)
    train.run(training, CONFIG, tmp_path, "unet", 1e9)
    (tmp_path / "unet.settings.jsonl").write_text('{"batch": 4}\n', encoding="utf-8")
    assert checkpoint.join(tmp_path, tmp_path / "out", SIZES, start) == {"unet": 24}
    made = StableDiffusionPipeline.from_pretrained(str(tmp_path / "out"), safety_checker=None, local_files_only=True)
    vae = "vae/diffusion_pytorch_model.safetensors"
    before, after = (load_file(folder / vae) for folder in (start, tmp_path / "out"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    for part in ("vae", "unet", "text_encoder"):
        configurations = [(folder / part / "config.json").read_text() for folder in (start, tmp_path / "out")]
        assert configurations[0] == configurations[1]
    kept = [*made.unet.parameters(), *made.text_encoder.parameters()]
    for mine, average in zip(kept, training.average.values):
        assert torch.equal(mine, average.half().to(mine.dtype))


def test_encoder_starts_near_the_analytic_latents() -> None:
    training = AutoencoderTraining(CONFIG, model.ModelConfig())
    images = model.to_tensor(world.render(world.sample_scenes(4, 0)))
    with torch.no_grad():
        found = training.vae.encode(images).latent_dist.mean
    wanted = model.linear_latents(images)
    assert float((found - wanted).square().mean().sqrt()) < 0.1


def test_intervals() -> None:
    half = figures.rate([True] * 50 + [False] * 50)
    assert (round(half.low, 3), round(half.high, 3)) == (0.404, 0.596)
    assert figures.rate([True] * 200).low == pytest.approx(0.9812, abs=1e-3)
    assert figures.rate([]).count == 0
    level = figures.mean([1.0, 2.0, 3.0] * 30)
    assert level.low < 2.0 < level.high
    assert level == figures.mean([1.0, 2.0, 3.0] * 30)
