"""Metadata on disk: what a version wrote must be found, read and believed by whatever reads that version."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from freeprompt.contract.errors import BackendError
from freeprompt.contract.parity import Parity
from freeprompt.engines.artifacts.signature import Signature
from freeprompt.engines.onnxruntime.cuda_notes import CudaTiming, note_from_json
from freeprompt.engines.shapes import Profile
from freeprompt.engines.tensorrt.metadata import metadata_from_json

# Written and signed by the first version that reads them, with the key 00 01 02 ... 1f.
PARITY = '[{"shapes":"rows 1","relative_l2":0.001,"max_abs":0.25}]'
ENGINE = f"""
{{"graph":"step","graph_sha256":"ab","backend":"tensorrt-rtx","tensorrt":"1.7.1.116","capabilities":["8.6","12.0"],
"precision":"float16","profiles":[{{"dims":{{"rows":[1,1,1]}},"slack":["texts","pinned","record_rows"]}}],"baked":true,
"optimization_level":3,"workspace_bytes":null,"device":"GPU","engine_sha256":"cd","engine_bytes":7,
"build_seconds":1.5,"peak_memory_bytes":5,"warnings":["w"],"device_memory_bytes":4096,"layers":2,"attention_layers":8,
"fused_attention":1,"parity":{PARITY},"parity_threshold":0.02,
"seal":"2394ad1934d8ca90f5466f48502bdb71252e49c873940243c0945634e67d4e06","version":2}}"""
# Before TensorRT-RTX: an engine of one library for one GPU.
FIRST = f"""
{{"graph":"step","graph_sha256":"ab","tensorrt":"10.3.0","capability":"9.0","precision":"float16",
"profiles":[{{"dims":{{"rows":[1,1,1]}},"slack":["texts"]}}],"baked":true,"optimization_level":3,"workspace_bytes":null,
"parity":{PARITY},"parity_threshold":0.02,"seal":"","version":1}}"""
# Of the second version of notes, which the first that describes the bundle's own forms wrote.
NOTE = f"""
{{"graph":"step","forms_sha256":"ab","onnxruntime":"1.32.0","device":"GPU","seconds":1.5,
"parity":{PARITY},"parity_threshold":0.02,"timings":[{{"shapes":"rows 1","fused_ms":2.0,"cuda_ms":1.5}}],"failure":"",
"seal":"7a50d8805b5b5dd2a5fdebb1806d13d1c721cf0569410c60121dcc823fd5830d","version":2}}"""
# Of the first, on a graph that was rewritten on the device and lay beside it.
PREPARED = """
{"graph":"step","graph_sha256":"ab","onnxruntime":"1.32.0","device":"GPU","operators":{"GroupNorm":2},
"model_sha256":"cd","timings":[{"shapes":"rows 1","exported_ms":2.0,"prepared_ms":1.5}],"seal":"","version":1}"""


@pytest.fixture
def signature(tmp_path: Path) -> Signature:
    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_bytes(bytes(range(32)))
    return Signature(key)


def test_an_engine_of_the_second_version_is_found_read_and_believed(signature: Signature) -> None:
    found = metadata_from_json(ENGINE.encode())
    assert found.name == "step-e96c7cd63dde2b9a.engine"
    assert found.parity == (Parity("rows 1", 0.001, 0.25),) and found.passed
    assert found.profiles == (Profile({"rows": (1, 1, 1)}),)
    assert signature.holds(found)


def test_an_engine_of_the_first_version_is_to_be_built_again() -> None:
    with pytest.raises(BackendError, match="its metadata"):
        metadata_from_json(FIRST.encode())


def test_a_note_on_a_form_for_cuda_is_found_read_and_believed(signature: Signature) -> None:
    found = note_from_json(NOTE.encode())
    assert found.name == "step-69b09b74c46c7d34.json"
    assert found.parity == (Parity("rows 1", 0.001, 0.25),) and found.problem is None
    assert found.timings == (CudaTiming("rows 1", 2.0, 1.5),)
    assert signature.holds(found)


def test_a_note_of_the_first_version_is_refused_by_its_version() -> None:
    """Its other fields say nothing to this one."""
    with pytest.raises(BackendError, match="its metadata has version 1, this freeprompt reads 2; build it again"):
        note_from_json(PREPARED.encode())


@pytest.mark.parametrize(("read", "text"), [(metadata_from_json, ENGINE), (note_from_json, NOTE)])
def test_no_difference_is_below_none(read: Callable[[bytes], object], text: str) -> None:
    """A negative one would be within every bound."""
    content = json.loads(text)
    content["parity"][0]["relative_l2"] = -1.0
    with pytest.raises(BackendError, match="its metadata cannot be read"):
        read(json.dumps(content).encode())
