"""Turns of an editor: calls never overlap, callbacks cannot start another, whatever ends a call ends its turn."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freeprompt import Editor, Inversion
from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import Cancelled, UsageError
from freeprompt.contract.manifest import Manifest
from freeprompt.contract.session import NumpyArray
from freeprompt.editor import Progress
from freeprompt.engines.fake import FakeBackend


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns some thousand times as often as usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


STEPS = 5


THREADS = 4


def answer(manifest: Manifest, graph: str, feeds: Mapping[str, NumpyArray]) -> dict[str, NumpyArray]:
    """Zeros in the shapes of the small model."""
    if graph == "text_encoder":
        return {"encoder_hidden_states": np.zeros((len(feeds["input_ids"]), 77, 32), np.float32)}
    if graph == "vae_encoder":
        return {"latents": np.zeros((1, 4, 16, 16), np.float32)}
    if graph == "vae_decoder":
        return {"image": np.zeros((1, 3, 64, 64), np.float32)}
    if graph == "record":
        rows = len(feeds["row_latent"])
        return {
            f"record_{layer.number:02}": np.zeros((rows, layer.tokens, layer.channels), np.float32)
            for layer in manifest.layers
        }
    return {"next_latents": np.zeros_like(feeds["latents"])}


@pytest.fixture
def fake_editor(tiny_bundle: Path) -> Editor:
    bundle = Bundle.open(tiny_bundle, verify=False)
    return Editor(bundle, FakeBackend(partial(answer, bundle.manifest)))


CALLS: dict[str, Callable[[Editor, Inversion, Any], Any]] = {
    "invert": lambda editor, inversion, callback: editor.invert(
        np.zeros((64, 64, 3), np.uint8), STEPS, callback=callback
    ),
    "edit": lambda editor, inversion, callback: editor.edit(inversion, "x", callback=callback),
    "edit_latents": lambda editor, inversion, callback: editor.edit_latents(inversion, "x", callback=callback),
    "generate": lambda editor, inversion, callback: editor.generate("x", steps=STEPS, callback=callback),
    "synthesize": lambda editor, inversion, callback: editor.synthesize("x", "y", steps=STEPS, callback=callback),
}


@pytest.mark.parametrize("inner", CALLS)
@pytest.mark.parametrize("outer", CALLS)
def test_a_callback_cannot_start_another_call(fake_editor: Editor, outer: str, inner: str) -> None:
    inversion = fake_editor.invert(np.zeros((64, 64, 3), np.uint8), STEPS)

    def callback(progress: Progress) -> None:
        CALLS[inner](fake_editor, inversion, None)

    with pytest.raises(UsageError, match="in the middle of a call, and a callback cannot start another"):
        CALLS[outer](fake_editor, inversion, callback)
    CALLS[outer](fake_editor, inversion, None)


@pytest.mark.parametrize("outer", CALLS)
def test_a_callback_may_decode_and_plan(fake_editor: Editor, outer: str) -> None:
    """In its own thread, or in another one that it waits for."""
    inversion = fake_editor.invert(np.zeros((64, 64, 3), np.uint8), STEPS)
    seen = []

    def callback(progress: Progress) -> None:
        seen.append(progress.preview()[0].size)
        seen.append(fake_editor.decode(inversion.trajectory[0])[0].size)
        assert fake_editor.plan("x", inversion=inversion) and fake_editor.noise().shape == (1, 4, 16, 16)
        with ThreadPoolExecutor(1) as pool:
            seen.append(pool.submit(lambda: progress.preview()[0].size).result(60))

    CALLS[outer](fake_editor, inversion, callback)
    assert seen == [(64, 64)] * 3 * STEPS


def test_calls_of_one_editor_never_overlap(fake_editor: Editor, hasty: None) -> None:
    """Nor do decoding and a step: sessions are not for two threads at once."""
    inside: list[str] = []
    clashes: list[list[str]] = []

    def behave(graph: str, feeds: Mapping[str, NumpyArray]) -> dict[str, NumpyArray]:
        inside.append(graph)
        if len(inside) > 1:
            clashes.append(list(inside))
        ended.wait(1e-4)
        inside.remove(graph)
        return answer(fake_editor.manifest, graph, feeds)

    ended = threading.Event()
    editor = Editor(fake_editor.bundle, FakeBackend(behave))
    inversion = editor.invert(np.zeros((64, 64, 3), np.uint8), STEPS)
    jobs = [partial(call, editor, inversion, lambda progress: None) for call in CALLS.values()]
    jobs += [partial(editor.decode, inversion.trajectory[0])] * len(jobs)
    with ThreadPoolExecutor(THREADS) as pool:
        for future in [pool.submit(job) for job in jobs * 2]:
            future.result()
    assert clashes == []


def test_whatever_ends_a_call_ends_its_turn(fake_editor: Editor) -> None:
    inversion = fake_editor.invert(np.zeros((64, 64, 3), np.uint8), STEPS)
    for kind in (Cancelled, KeyboardInterrupt, ZeroDivisionError):

        def callback(progress: Progress, kind: type[BaseException] = kind) -> None:
            raise kind

        for call in CALLS.values():
            with pytest.raises(kind):
                call(fake_editor, inversion, callback)
    with pytest.raises(UsageError):
        fake_editor.edit(inversion, [])
    with ThreadPoolExecutor(1) as pool:
        assert len(pool.submit(fake_editor.edit, inversion, "x").result(60)) == 1


def test_cancelling_from_asyncio(fake_editor: Editor) -> None:
    """A cancelled task does not stop its thread; an event that the callback looks at does, after the step."""
    inversion = fake_editor.invert(np.zeros((64, 64, 3), np.uint8), STEPS)
    steps: list[int] = []

    async def edit(started: asyncio.Event) -> Any:
        stop, loop = threading.Event(), asyncio.get_running_loop()

        def callback(progress: Progress) -> None:
            steps.append(progress.step)
            loop.call_soon_threadsafe(started.set)
            stop.wait(60 if progress.step == 2 else 0)
            if stop.is_set():
                raise Cancelled("the client has gone")

        running = asyncio.ensure_future(asyncio.to_thread(fake_editor.edit, inversion, "x", callback=callback))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            stop.set()
            with pytest.raises(Cancelled):
                await running
            raise

    async def main() -> None:
        started = asyncio.Event()
        task = asyncio.create_task(edit(started))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(await asyncio.to_thread(fake_editor.edit, inversion, "x")) == 1

    asyncio.run(main())
    assert steps in ([1], [1, 2])
