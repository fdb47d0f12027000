"""Scoring in several single-threaded processes: they share out the scenes of one part at a time."""

from __future__ import annotations

import dataclasses
import multiprocessing
import pathlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor

from benchmarks.embedded import world
from benchmarks.embedded.scoring.editing import Editing
from benchmarks.embedded.scoring.observe import Part, Sections, batches, observe

SHARE = 10
"""Scenes of one task: few, so that no process waits long for the last one."""


@dataclasses.dataclass(frozen=True)
class Model:
    """What is scored, and how each process opens it.

    Attributes:
        bundle: of the runtime; "demo" is the one that ships.
        checkpoint: a pipeline folder; if given, that is scored, by the literal reference.
        threads: of each process.
        cache: folder of the runtime's inversions, which the processes share.
    """

    bundle: str = "demo"
    checkpoint: pathlib.Path | None = None
    threads: int = 1
    cache: pathlib.Path | None = None

    def open(self) -> Editing:
        """Opens it in this process."""
        if self.checkpoint is not None:
            import torch

            from benchmarks.embedded.scoring.literal_editing import LiteralEditing

            torch.set_num_threads(self.threads)
            torch.set_flush_denormal(True)
            return LiteralEditing.open(self.checkpoint)
        from benchmarks.embedded.scoring.runtime_editing import RuntimeEditing

        return RuntimeEditing.open(self.bundle, threads=self.threads, cache=self.cache)

    def described(self) -> dict[str, str]:
        """Which weights through what, to stand beside the figures."""
        if self.checkpoint is not None:
            from benchmarks.embedded.training.denoiser import fingerprint

            return {"through": "the literal reference, PyTorch", "weights": fingerprint(self.checkpoint)["unet"]}
        from freeprompt.contract.bundle import Bundle
        from freeprompt.editor import DEMO, demo_bundle

        bundle = Bundle.open(demo_bundle() if self.bundle == DEMO else self.bundle, verify=False)
        return {"through": "freeprompt, ONNX Runtime on the CPU", "bundle": bundle.sha256}


_opened: dict[Model, Editing] = {}


def _observe(scored: Model, part: Part, scenes: Sequence[world.Scene], first: int) -> Sections:
    """A task, in whichever process; the model is opened by the first one there."""
    if scored not in _opened:
        _opened[scored] = scored.open()
    return observe(_opened[scored], part, scenes, first)


def observe_all(
    scored: Model, parts: Sequence[Part], scenes: Sequence[world.Scene], processes: int = 1
) -> Iterator[tuple[Part, Sections]]:
    """Outcomes of each part as soon as it is done, in the order given; they do not depend on `processes`."""
    if processes == 1:
        for part in parts:
            yield part, _observe(scored, part, scenes, 0)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as executor:
        tasks: list[list[Future[Sections]]] = [
            [executor.submit(_observe, scored, part, scenes[cut], cut.start) for cut in batches(len(scenes), SHARE)]
            for part in parts
        ]
        for part, futures in zip(parts, tasks):
            joined: Sections = {}
            for future in futures:
                for section, outcomes in future.result().items():
                    joined.setdefault(section, []).extend(outcomes)
            yield part, joined
