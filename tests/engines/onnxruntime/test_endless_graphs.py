"""Commands and sessions on graphs that never end: Ctrl-C and SIGTERM end them."""

from __future__ import annotations

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

from tests.cli.runner import finish, names, picture, start
from tests.engines.onnxruntime.test_external_data import write

ROOT = Path(__file__).parents[3]
HANG_SECONDS = 100


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
