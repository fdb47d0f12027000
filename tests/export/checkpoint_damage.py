"""Checkpoints that are damaged: cut, spoiled, empty, without data or code of their own."""

from __future__ import annotations

import struct
from pathlib import Path

import torch

from tests.export.checkpoint_edits import UNET, Make, Tensors, edit_weights


def spoil(path: str, value: float) -> Make:
    """One weight has this value."""

    def edit(tensors: Tensors) -> Tensors:
        next(iter(tensors.values())).view(-1)[0] = value
        return tensors

    return lambda folder: edit_weights(folder / path, edit)


def zeros(folder: Path) -> None:
    """What is saved of a model whose weights were elsewhere."""
    edit_weights(folder / UNET, lambda t: {k: torch.zeros_like(v) for k, v in t.items()})


def without_data(folder: Path) -> None:
    """Names and shapes, and no values: what a header alone is."""
    data = (folder / UNET).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    (folder / UNET).write_bytes(data[: 8 + length])


def cut(path: str) -> Make:
    """A download that broke off."""

    def make(folder: Path) -> None:
        (folder / path).write_bytes((folder / path).read_bytes()[:-1000])

    return make


def no_json(folder: Path) -> None:
    """A configuration that broke off."""
    (folder / "unet" / "config.json").write_text("{")
