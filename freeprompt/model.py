"""A bundle opened on a backend: what is common to all that is done with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.manifest import Manifest
from freeprompt.contract.session import Array, Backend, NumpyArray
from freeprompt.engines.select import create_backend
from freeprompt.runtime import stages
from freeprompt.runtime.inputs import arguments
from freeprompt.runtime.inputs.arguments import Size
from freeprompt.runtime.inputs.image import tensor_to_images
from freeprompt.runtime.pipeline import Observer, Pipeline
from freeprompt.runtime.plan.limits import Limits
from freeprompt.runtime.progress import Callback, callback_to_observer
from freeprompt.runtime.sessions import Graphs
from freeprompt.runtime.turns import Turns

if TYPE_CHECKING:
    from typing_extensions import Self

DEMO = "demo"


class Model:
    """The model of one bundle on one backend. Any thread may call it: calls wait for each other.

    Args:
        bundle: an open bundle.
        backend: where its graphs run.
        limits: what a call may ask for and use; a call that needs more memory or time than there is raises LimitError.
    """

    def __init__(self, bundle: Bundle, backend: Backend, limits: Limits | None = None) -> None:
        self.bundle = bundle
        self.pipeline = Pipeline(Graphs(bundle, backend))
        self.limits = limits or Limits()
        self._turns = Turns()

    @classmethod
    def load(
        cls,
        bundle: str | Path = DEMO,
        backend: str | Backend = "auto",
        *,
        threads: int | None = None,
        verify: bool = True,
        limits: Limits | None = None,
    ) -> Self:
        """Open a bundle.

        Args:
            bundle: its folder, or "demo" for the one that freeprompt brings.
            backend: "auto", "cpu", "cuda", "tensorrt", "ort:NAME[,option=value,...]" for any execution provider of ONNX
                Runtime (see ``freeprompt.engines.select.create_backend``), or a ``Backend`` object.
            threads: CPU threads within an operator; None: every core.
            verify: compare the SHA-256 of every file.
            limits: see ``freeprompt.runtime.plan.limits.Limits``.

        Raises:
            BundleError: missing or damaged.
            BackendError: not installed, or it cannot be used here.
            UsageError: unknown backend, or a malformed name of one.
        """
        opened = Bundle.open(demo_bundle() if str(bundle) == DEMO else bundle, verify)
        made = create_backend(backend, threads, opened) if isinstance(backend, str) else backend
        return cls(opened, made, limits)

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def noise(self, seed: int = 0, size: Size = None) -> NumpyArray:
        """Starting noise [1, C, h, w] float32 from NumPy's PCG64 generator; not PyTorch's noise of that seed.

        Raises:
            UsageError: seed is negative or not a whole number, or the size does not suit the model.
        """
        generator, spec = np.random.default_rng(arguments.check_seed(seed)), self.manifest.latents
        return generator.standard_normal((1, spec.channels, *arguments.size_to_latents(spec, size))).astype(np.float32)

    def decode(self, latents: NumpyArray | Array) -> list[Image.Image]:
        """Latents [B, C, h, w] float32 to images, one at a time to bound memory."""
        values = latents if isinstance(latents, np.ndarray) else latents.numpy()
        images = []
        for one in values:
            with self._turns.graphs():
                image = stages.latents_to_image(self.pipeline.graphs, np.ascontiguousarray(one[None])).numpy()
            images += tensor_to_images(image)
        return images

    @contextlib.contextmanager
    def _call(self, callback: Callback | None) -> Iterator[Observer]:
        with self._turns.call():
            yield callback_to_observer(callback, self.decode, self._turns.pause)


def demo_bundle() -> Path:
    """Folder of the bundle that freeprompt brings."""
    return Path(__file__).parent / DEMO
