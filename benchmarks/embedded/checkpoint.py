"""Joins a run's trained parts into a pipeline folder.

`python -m benchmarks.embedded.checkpoint --run FOLDER --out FOLDER` takes the averaged weights of
`unet.pt` and `vae.pt`, at whatever stage they are, and writes float16 safetensors.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import torch

from benchmarks.embedded import model
from benchmarks.embedded.settings import TrainConfig


def _read(path: pathlib.Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _fill(modules: list[torch.nn.Module], values: list[torch.Tensor]) -> None:
    parameters: list[torch.Tensor] = [parameter for module in modules for parameter in module.parameters()]
    with torch.no_grad():
        torch._foreach_copy_(parameters, values)


def join(folder: pathlib.Path, out: pathlib.Path, sizes: model.ModelConfig) -> dict[str, int]:
    """Writes the pipeline folder `out` from the run in `folder`; returns samples seen by part."""
    tokenizer = model.make_tokenizer()
    unet = model.make_unet(sizes)
    text_encoder = model.make_text_encoder(sizes, tokenizer)
    vae = model.make_vae(sizes)
    denoiser, autoencoder = _read(folder / "unet.pt"), _read(folder / "vae.pt")
    _fill([unet, text_encoder], denoiser["average"])
    _fill([vae], autoencoder["average"])
    model.save_pipeline(
        out,
        unet=unet.half().eval(),
        text_encoder=text_encoder.half().eval(),
        tokenizer=tokenizer,
        vae=vae.half().eval(),
    )
    batches = {}
    for part in ("unet", "vae"):
        lines = (folder / f"{part}.settings.jsonl").read_text(encoding="utf-8").splitlines()
        batches[part] = int(json.loads(lines[-1]).get("batch", TrainConfig.batch))
    return {
        "unet": int(denoiser["step_count"]) * batches["unet"],
        "vae": int(autoencoder["step_count"]) * batches["vae"],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    seen = join(options.run, options.out, model.ModelConfig())
    print(json.dumps({"samples": seen}))


if __name__ == "__main__":
    main()
