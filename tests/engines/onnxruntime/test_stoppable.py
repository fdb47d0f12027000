"""A graph that never ends is stopped by Ctrl-C, and what it ran on goes on to be usable."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from freeprompt.engines.onnxruntime import stoppable
from freeprompt.engines.onnxruntime.interrupts import InterruptWatch
from freeprompt.engines.onnxruntime.stoppable import call_stoppable
from tests.cli.runner import finish, names, picture, start
from tests.engines.onnxruntime.test_external_data import write

ROOT = Path(__file__).parents[3]
HANG_SECONDS = 100


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "freeprompt-watch"]


def interrupt_self() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_calls_return_and_raise_as_they_would_directly() -> None:
    assert call_stoppable(lambda: 3, lambda: None) == 3
    assert call_stoppable(threading.current_thread, lambda: None) is not threading.main_thread()

    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        call_stoppable(fail, lambda: None)


def test_other_threads_call_directly() -> None:
    """They hear no signals anyway."""
    found: list[Any] = []

    def both() -> None:
        found.append(call_stoppable(threading.current_thread, lambda: None))
        found.append(InterruptWatch().run(lambda options: threading.current_thread(), Options()))

    thread = threading.Thread(target=both)
    thread.start()
    thread.join()
    assert found == [thread, thread]


def test_a_call_is_told_to_stop_and_waited_for() -> None:
    stopped, ended = threading.Event(), list[str]()

    def work() -> None:
        interrupt_self()
        stopped.wait()
        ended.append("it has")

    with pytest.raises(KeyboardInterrupt):
        call_stoppable(work, stopped.set)
    assert ended == ["it has"]
    assert not stoppable.left_behind()


def test_a_call_that_does_not_stop_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stoppable, "GRACE_SECONDS", 0.05)
    goes_on = threading.Event()

    def work() -> None:
        interrupt_self()
        goes_on.wait()

    with pytest.raises(KeyboardInterrupt):
        call_stoppable(work, lambda: None)
    assert stoppable.left_behind()
    goes_on.set()
    for thread in threading.enumerate():
        if "left" in thread.name:
            thread.join(HANG_SECONDS)
    assert not stoppable.left_behind()


class Options:
    """Stands for ``onnxruntime.RunOptions``: who waits for an end sees it."""

    def __init__(self) -> None:
        self._ended = threading.Event()

    @property
    def terminate(self) -> bool:
        return self._ended.is_set()

    @terminate.setter
    def terminate(self, value: bool) -> None:
        self._ended.set() if value else self._ended.clear()

    def wait(self) -> None:
        """A library's endless work, until it is told."""
        while not self._ended.wait(0.01):
            pass
        raise RuntimeError("terminated")


def test_watched_calls_return_and_raise_as_they_would_directly() -> None:
    watch, options = InterruptWatch(), Options()
    assert watch.run(lambda given: (given, threading.current_thread()), options) == (options, threading.main_thread())

    def fail(options: Any) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        watch.run(fail, options)
    options.terminate = True
    assert watch.run(lambda given: given.terminate, options) is False, "of an earlier run"


def test_a_handler_that_returns_lets_the_run_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a program that counts its Ctrl-Cs; a run depends on nothing but its inputs."""
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        turns: list[int] = []

        def work(options: Options) -> str:
            turns.append(len(turns))
            if len(turns) < 3:
                interrupt_self()
                options.wait()
            return "done"

        assert InterruptWatch().run(work, Options()) == "done"
        assert turns == [0, 1, 2] and heard == [signal.SIGINT] * 2
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_signals_leave_a_run_alone() -> None:
    """A profiler's, say, comes a hundred times a second."""
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        options = Options()

        def work(options: Options) -> bool:
            os.kill(os.getpid(), signal.SIGUSR1)
            return options._ended.wait(0.2)

        assert InterruptWatch().run(work, options) is False
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_whoever_else_listens_for_signals_is_told_and_put_back() -> None:
    """As asyncio does."""
    theirs, ours = socket.socketpair()
    with theirs, ours:
        ours.setblocking(False)
        theirs.settimeout(HANG_SECONDS)
        before = signal.set_wakeup_fd(ours.fileno())
        try:
            with pytest.raises(KeyboardInterrupt):

                def work(options: Options) -> None:
                    interrupt_self()
                    options.wait()

                InterruptWatch().run(work, Options())
            assert theirs.recv(10) == bytes([signal.SIGINT])
        finally:
            assert signal.set_wakeup_fd(before) == ours.fileno()


def test_the_thread_ends_with_its_owner() -> None:
    gc.collect()
    for thread in watchers():
        thread.join(0.2)
    before, watch = watchers(), InterruptWatch()
    assert watch.run(lambda options: 1, Options()) == 1
    assert watch.run(lambda options: 2, Options()) == 2
    (new,) = set(watchers()) - set(before)
    del watch
    gc.collect()
    new.join(HANG_SECONDS)
    assert not new.is_alive()


def graph(nodes: list[Any], constants: list[Any]) -> bytes:
    """A text encoder: ``number`` (0 where all ids are, else 1) goes in, zeros times ``done`` come out."""
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["texts", 77])
    out = helper.make_tensor_value_info("encoder_hidden_states", TensorProto.FLOAT, ["texts", 77, 32])
    values = {"zeros": np.zeros((1, 1, 32), np.float32), "unit": np.int64(1), "two": np.array([2])}
    constants = [*constants, *(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())]
    first = [
        helper.make_node("ReduceMax", ["input_ids"], ["id"], keepdims=0),
        helper.make_node("Cast", ["id"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Min", ["wide", "unit"], ["number"]),
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["ids", "two"], ["tokens"]),
        helper.make_node("Mul", ["tokens", "zeros"], ["states"]),
    ]
    last = helper.make_node("Mul", ["states", "done"], ["encoder_hidden_states"])
    made = helper.make_graph([*first, *nodes, last], "g", [ids], [out], constants)
    model: bytes = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    ).SerializeToString()
    return model


def loop() -> bytes:
    """2 to the 60th turns, or none."""
    scalars = {"i": TensorProto.INT64, "c": TensorProto.BOOL, "v": TensorProto.FLOAT}
    inputs = [helper.make_tensor_value_info(name, kind, []) for name, kind in scalars.items()]
    outputs = [helper.make_tensor_value_info(f"{name}o", scalars[name], []) for name in ("c", "v")]
    body = [helper.make_node("Identity", ["c"], ["co"]), helper.make_node("Add", ["v", "one"], ["vo"])]
    turns = helper.make_graph(body, "body", inputs, outputs)
    constants = {"one": np.float32(1), "true": np.bool_(True), "many": np.int64(1 << 60)}
    return graph(
        [
            helper.make_node("Mul", ["number", "many"], ["turns"]),
            helper.make_node("Loop", ["turns", "true", "one"], ["done"], body=turns),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )


def constants_without_end() -> bytes:
    """What the library computes while it loads: minutes of sines of a constant."""
    nodes = [helper.make_node("ConstantOfShape", ["size"], ["s0"])]
    nodes += [helper.make_node("Sin", [f"s{i}"], [f"s{i + 1}"]) for i in range(20000)]
    nodes += [helper.make_node("ReduceSum", ["s20000"], ["done"], keepdims=0)]
    return graph(nodes, [numpy_helper.from_array(np.array([1 << 22]), "size")])


# Prints what happens; the alarm comes while the library works, as Ctrl-C would.
SCRIPT = """
import os, signal, sys, threading
import numpy as np
from freeprompt.contract.bundle import Bundle
from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend
from freeprompt.contract.errors import BackendError

def interrupt(): os.kill(os.getpid(), getattr(signal, sys.argv[2]))
def handle(number, frame): raise KeyboardInterrupt
signal.signal(signal.SIGTERM, handle)
bundle, backend = Bundle.open(sys.argv[1]), OnnxRuntimeBackend("cpu", threads=1)
threading.Timer(1.0, interrupt).start()
try:
    session = backend.open(bundle, "text_encoder")
    session.run({"input_ids": np.ones((1, 77), np.int32)})
    print("ran to its end")
except KeyboardInterrupt:
    print("interrupted")
if sys.argv[3] == "again":
    out = session.run({"input_ids": np.zeros((1, 77), np.int32)})["encoder_hidden_states"]
    print(out.shape, threading.active_count())
"""


def interrupted(tiny_bundle: Path, folder: Path, model: bytes, name: str, again: str = "") -> Any:
    bundle = write(tiny_bundle, folder, model)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(bundle), name, again],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=HANG_SECONDS,
    )


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_loop_without_end(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    done = interrupted(tiny_bundle, tmp_path / "bundle", loop(), name, "again")
    assert (done.returncode, done.stdout) == (0, "interrupted\n(1, 77, 32) 2\n"), done.stderr


LOADS_STOP = pytest.mark.skipif(
    tuple(int(part) for part in ort.__version__.split(".")[:2]) < (1, 32),
    reason="onnxruntime 1.21 to 1.26 hold Python's lock while they load; what is between was not looked at",
)


@pytest.mark.parametrize("model", [loop, pytest.param(constants_without_end, marks=LOADS_STOP)])
def test_the_command_ends_in_a_graph_without_end(tiny_bundle: Path, tmp_path: Path, model: Callable[[], bytes]) -> None:
    """Where the library does not hear that it should stop, as while it loads, it is left behind."""
    bundle = write(tiny_bundle, tmp_path / "bundle", model())
    picture(tmp_path / "in.png")
    process = start("edit", "in.png", "a cat", "--bundle", bundle, "--steps", 2, "--threads", 1, cwd=tmp_path)
    threading.Timer(3.0, process.terminate).start()
    outcome = finish(process, HANG_SECONDS)
    assert (outcome.code, outcome.err.splitlines()[-1]) == (143, "freeprompt: terminated"), outcome
    assert names(tmp_path) == ["bundle", "in.png"]


def test_a_child_process_has_a_thread_of_its_own() -> None:
    """That of its parent is not there after a fork, and would not hear."""
    script = (
        "import os, warnings\n"
        "warnings.simplefilter('ignore')\n"  # Python 3.12 warns of forks beside threads
        "import onnxruntime as ort, signal, sys, time\n"
        "from freeprompt.engines.onnxruntime.interrupts import InterruptWatch\n"
        "watch = InterruptWatch()\n"
        "watch.run(lambda options: 0, ort.RunOptions())\n"
        "turns = []\n"
        "def work(options):\n"
        "    turns.append(0)\n"
        "    if len(turns) == 2: return 7\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    while not options.terminate: time.sleep(0.01)\n"
        "    raise RuntimeError\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    signal.signal(signal.SIGINT, lambda *_: None)\n"
        "    os._exit(watch.run(work, ort.RunOptions()))\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False, timeout=HANG_SECONDS
    )
    assert done.stdout == "7\n", done.stderr
