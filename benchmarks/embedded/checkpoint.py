"""Joins a run's trained parts into a pipeline folder.

`python -m benchmarks.embedded.checkpoint --run FOLDER --out FOLDER` takes the averaged weights of
`unet.pt` and `vae.pt`, at whatever stage they are, and writes float16 safetensors. With
`--vae-from FOLDER` the autoencoder is that of another pipeline folder, as for a run that went on
from one (`train.py --start-from`).
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.embedded import model
from benchmarks.embedded.training.settings import TrainConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"


def _read(path: pathlib.Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _fill(modules: list[torch.nn.Module], values: list[torch.Tensor]) -> None:
    parameters: list[torch.Tensor] = [parameter for module in modules for parameter in module.parameters()]
    with torch.no_grad():
        torch._foreach_copy_(parameters, values)


def join(
    folder: pathlib.Path, out: pathlib.Path, sizes: model.ModelConfig, vae_from: pathlib.Path | None = None
) -> dict[str, int]:
    """Writes the pipeline folder `out` from the run in `folder`; returns samples seen by part.

    Args:
        folder: of the run.
        out: pipeline folder; its files are overwritten.
        sizes: of the parts.
        vae_from: pipeline folder that gives the autoencoder; None: `vae.pt` of the run.
    """
    tokenizer = model.make_tokenizer()
    unet = model.make_unet(sizes)
    text_encoder = model.make_text_encoder(sizes, tokenizer)
    states = {"unet": _read(folder / "unet.pt")}
    _fill([unet, text_encoder], states["unet"]["average"])
    vae = model.make_vae(sizes)
    if vae_from is None:
        states["vae"] = _read(folder / "vae.pt")
        _fill([vae], states["vae"]["average"])
    else:
        # Not `from_pretrained`: that would write the folder's name into the configuration.
        vae.load_state_dict(load_file(vae_from / "vae" / WEIGHTS))
    model.save_pipeline(
        out,
        unet=unet.half().eval(),
        text_encoder=text_encoder.half().eval(),
        tokenizer=tokenizer,
        vae=vae.half().eval(),
    )
    seen = {}
    for part, state in states.items():
        lines = (folder / f"{part}.settings.jsonl").read_text(encoding="utf-8").splitlines()
        seen[part] = int(state["step_count"]) * int(json.loads(lines[-1]).get("batch", TrainConfig.batch))
    return seen


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--vae-from", type=pathlib.Path, help="pipeline folder whose autoencoder is taken")
    options = parser.parse_args()
    seen = join(options.run, options.out, model.ModelConfig(), options.vae_from)
    print(json.dumps({"samples": seen}))


if __name__ == "__main__":
    main()
