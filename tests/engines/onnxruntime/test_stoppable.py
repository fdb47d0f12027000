"""Calls into a library that never end are stopped by Ctrl-C, and what they ran on goes on to be usable."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from freeprompt.engines.onnxruntime import stoppable
from freeprompt.engines.onnxruntime.interrupts import InterruptWatch
from freeprompt.engines.onnxruntime.stoppable import call_stoppable

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
