"""Saved inversions made by hand, whose checksum is right: a clean error, or an edit; never anything else."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from freeprompt import Editor, Inversion
from freeprompt.contract.errors import FreePromptError, InversionError, PromptTruncatedWarning
from freeprompt.contract.session import NumpyArray
from freeprompt.runtime.source import inversion_file
from tests.damage import Json
from tests.nasty import MARKER, NASTY, NO_NUMBERS, places, with_second_key, with_value, without

PICTURE = np.kron(np.arange(16).reshape(4, 4) * 16, np.ones((16, 16))).astype(np.uint8)
STEPS = 3
Tensors = dict[str, NumpyArray]


@dataclass(frozen=True)
class Saved:
    """What a file holds: the header of ours, and the tensors."""

    header: Json
    tensors: Tensors = field(repr=False)

    def write(self, path: Path, text: str | None = None) -> None:
        """With the right checksum. ``text`` instead of the header."""
        text = json.dumps(self.header) if text is None else text
        digest = hashlib.sha256(text.encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype.str} {tensor.shape}".encode() + tensor.tobytes())
        metadata = {"freeprompt.inversion": text, "sha256": digest.hexdigest()}
        path.write_bytes(safetensors.numpy.save(self.tensors, metadata))


@pytest.fixture(scope="module")
def editor() -> Editor:
    return Editor.load("demo", "cpu", threads=1, verify=False)


@pytest.fixture(scope="module")
def source(editor: Editor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    inversion = editor.invert(PICTURE, STEPS)
    editor.edit_latents(inversion, "a cat", record="exact", replace_fraction=1.0)
    path = tmp_path_factory.mktemp("inversions") / "whole.inversion"
    inversion.save(path, records=True)
    return path


@pytest.fixture(scope="module")
def saved(source: Path) -> Saved:
    data = source.read_bytes()
    outer = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return Saved(json.loads(outer["__metadata__"]["freeprompt.inversion"]), safetensors.numpy.load(data))


def outcome(editor: Editor, path: Path, run: bool = True) -> str:
    """ "refused" when it was opened, "failed" cleanly when it was used, or "used". Anything else is raised."""
    try:
        inversion = Inversion.load(path)
    except InversionError as error:
        assert str(path) in str(error) and len(str(error)) < 2000
        return "refused"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # latents of 1e308, say, overflow
            warnings.simplefilter("ignore", PromptTruncatedWarning)  # the source's prompt may be anything
            editor.plan("a red cat", inversion=inversion, record="exact")
            if run:
                editor.edit_latents(inversion, "a red cat", record="exact", replace_fraction=1.0)
    except FreePromptError as error:
        assert str(error) and len(str(error)) < 2000
        return "failed"
    return "used"


def test_what_was_taken_apart_is_used_when_it_is_put_together(editor: Editor, saved: Saved, tmp_path: Path) -> None:
    path = tmp_path / "a.inversion"
    saved.write(path)
    assert outcome(editor, path) == "used"


def test_every_place_of_the_header(editor: Editor, saved: Saved, tmp_path: Path) -> None:
    path = tmp_path / "a.inversion"
    count = {"refused": 0, "failed": 0, "used": 0}
    for place in places(saved.header):
        for value in NASTY:
            # What UTF-8 cannot say arrives as an escape, as it would from any writer.
            replace(saved, header=with_value(saved.header, place, value)).write(path)
            count[outcome(editor, path, run=False)] += 1
        replace(saved, header=without(saved.header, place)).write(path)
        count[outcome(editor, path)] += 1
        if isinstance(place[-1], str):
            saved.write(path, with_second_key(saved.header, place))
            with pytest.raises(InversionError, match="is there twice"):
                Inversion.load(path)
        text = json.dumps(with_value(saved.header, place, MARKER))
        for number in NO_NUMBERS:
            saved.write(path, text.replace(json.dumps(MARKER), number))
            assert outcome(editor, path) == "refused", (place, number)
    assert count["refused"] > 500 and count["used"] > 0


def test_every_place_of_the_files_own_header(editor: Editor, source: Path, tmp_path: Path) -> None:
    data, path = source.read_bytes(), tmp_path / "a.inversion"
    length = int.from_bytes(data[:8], "little")
    outer, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    whole = json.dumps(outer).encode()
    chosen = {name: outer[name] for name in ("__metadata__", "trajectory", "0/record_01")}
    for place in places(chosen):
        for value in NASTY:
            header = json.dumps(with_value(outer, place, value)).encode()
            path.write_bytes(len(header).to_bytes(8, "little") + header + rest)
            assert outcome(editor, path) == ("used" if header == whole else "refused"), (place, value)
        header = with_second_key(outer, place).encode() if isinstance(place[-1], str) else b"[]"
        path.write_bytes(len(header).to_bytes(8, "little") + header + rest)
        assert outcome(editor, path) == "refused", place


def of_row(change: Callable[[NumpyArray], Any]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, "0/record_01": np.ascontiguousarray(change(tensors["0/record_01"]))}


def of_trajectory(change: Callable[[NumpyArray], Any]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, "trajectory": np.ascontiguousarray(change(tensors["trajectory"]))}


def not_finite(values: NumpyArray, number: float) -> NumpyArray:
    changed = values.copy()
    changed.reshape(-1)[-1] = number
    return changed


OF_TENSORS: list[tuple[Callable[[Tensors], Tensors], str]] = [
    (of_row(lambda row: row[1:]), "must be finite rows"),
    (of_row(lambda row: row[:, :0]), "must be finite rows"),
    (of_row(lambda row: row[..., None]), "must be finite rows"),
    (of_row(lambda row: not_finite(row, np.nan)), "must be finite rows"),
    (of_row(lambda row: not_finite(row, -np.inf)), "must be finite rows"),
    (of_row(lambda row: row.astype(np.int8)), "not a saved inversion"),
    (of_row(lambda row: row[:, :-1]), "recorded 'record_01' as"),
    (of_row(lambda row: row[..., :-1]), "recorded 'record_01' as"),
    (of_row(lambda row: row.astype(np.float16)), "recorded 'record_01' as .*float16"),
    (lambda tensors: {n: t for n, t in tensors.items() if n != "0/record_01"}, "recorded 'record_01' as None"),
    (lambda tensors: {**tensors, "0/other": tensors["0/record_01"]}, "recorded 'other' as"),
    (lambda tensors: {n: t for n, t in tensors.items() if n == "trajectory"}, "has no rows"),
    (lambda tensors: {**tensors, "7/record_01": tensors["0/record_01"]}, "belong to nothing"),
    (lambda tensors: {**tensors, "0": tensors["0/record_01"]}, "belong to nothing"),
    (of_trajectory(lambda values: not_finite(values, np.nan)), "must be finite float32 latents"),
    (of_trajectory(lambda values: not_finite(values, np.inf)), "must be finite float32 latents"),
    (of_trajectory(lambda values: values.astype(np.float16)), "must be finite float32 latents"),
    (of_trajectory(lambda values: values[..., :0, :0]), "must be finite float32 latents"),
    (of_trajectory(lambda values: values[:, 0]), "a trajectory of shape"),
    (of_trajectory(lambda values: values[1:]), "a trajectory of shape"),
    (of_trajectory(lambda values: values[:, :, :3]), "latents of 3 channels, the model of 4"),
    (of_trajectory(lambda values: values[..., :12]), "no size that the model takes"),
    (of_trajectory(lambda values: values[..., :1, :1]), "no size that the model takes"),
    (of_trajectory(lambda values: values[..., :8, :]), "recorded 'record_01' as"),
    (lambda tensors: {n: t for n, t in tensors.items() if n != "trajectory"}, "trajectory"),
]


@pytest.mark.parametrize(("change", "message"), OF_TENSORS)
def test_tensors_that_do_not_fit(
    editor: Editor, saved: Saved, tmp_path: Path, change: Callable[[Tensors], Tensors], message: str
) -> None:
    path = tmp_path / "a.inversion"
    replace(saved, tensors=change(saved.tensors)).write(path)
    with pytest.raises(InversionError, match=message):
        editor.edit_latents(Inversion.load(path), "a red cat", record="exact")
    assert outcome(editor, path) in ("refused", "failed")


OF_PASSES: list[tuple[str, Any, str]] = [
    ("levels", [64, 2, 3], "levels that 3 steps do not have"),
    ("levels", [1 << 62, 2, 3], "not a saved inversion"),
    ("levels", [0, 2, 3], "not a saved inversion"),
    ("levels", [-1, 2, 3], "not a saved inversion"),
    ("levels", [2, 2, 3], "one twice"),
    ("levels", [3, 2], "no level for each timestep"),
    ("levels", [], "no level for each timestep"),
    ("levels", [1, 2, 3], "which are not its levels'"),
    ("timesteps", [1, 2, 3], "which are not its levels'"),
    ("timesteps", [1 << 20, 2, 3], "not a saved inversion"),
    ("mode", "auto", "not a saved inversion"),
    ("mode", "none", "not a saved inversion"),
]


@pytest.mark.parametrize(("name", "value", "message"), OF_PASSES)
def test_passes_that_do_not_fit(
    editor: Editor, saved: Saved, tmp_path: Path, name: str, value: Any, message: str
) -> None:
    path = tmp_path / "a.inversion"
    assert saved.header["passes"][0]["levels"] == [3, 2, 1]
    replace(saved, header=with_value(saved.header, ("passes", 0, name), value)).write(path)
    with pytest.raises(InversionError, match=message):
        editor.edit_latents(Inversion.load(path), "a red cat", record="exact")


def test_a_level_that_two_passes_have(editor: Editor, saved: Saved, tmp_path: Path) -> None:
    passes = [*saved.header["passes"], saved.header["passes"][0]]
    again = {name.replace("0/", "1/"): tensor for name, tensor in saved.tensors.items() if name != "trajectory"}
    Saved({**saved.header, "passes": passes}, {**saved.tensors, **again}).write(tmp_path / "a.inversion")
    with pytest.raises(InversionError, match=r"record pass 1 .* one twice"):
        Inversion.load(tmp_path / "a.inversion")


def test_only_regular_files_of_the_size_they_say_are_read(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, large, long = tmp_path / "pipe.inversion", tmp_path / "large.inversion", tmp_path / "long.inversion"
    os.mkfifo(pipe)
    for special in (pipe, Path("/dev/zero")):
        with pytest.raises(InversionError, match="not a regular file"):
            Inversion.load(special)
    with large.open("wb") as file:
        file.truncate(inversion_file.MAX_FILE_BYTES + 1)
    with pytest.raises(InversionError, match="larger than"):
        Inversion.load(large)
    with long.open("wb") as file:
        file.write(source.read_bytes())
        file.truncate(inversion_file.MAX_FILE_BYTES)  # as large as is read, and nothing of that described
    with pytest.raises(InversionError, match="its header describes"):
        Inversion.load(long)
    with long.open("r+b") as file:
        file.write((1 << 62).to_bytes(8, "little"))
    with pytest.raises(InversionError, match="no header"):
        Inversion.load(long)
    (tmp_path / "link.inversion").symlink_to(source)
    assert Inversion.load(tmp_path / "link.inversion").steps == STEPS
