"""Damaged bundles, opened and used: a clean error, or what the undamaged bundle gives; never anything else.

The bulk is what happens by accident (damage that a hash or the manifest's checksum has to find) and what the loader's
later stages have to stand: manifests with a right checksum and wrong content, tokenizers with right hashes. Graphs and
weights with right hashes and wrong content are run in a process of their own, since ONNX Runtime makes no promise for
them and neither do we: hashes are what protects it.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from freeprompt import Editor
from freeprompt.contract.errors import FreePromptError
from tests.damage import Json, copy_bundle, read_manifest, rehash, write_manifest

ROOT = Path(__file__).parents[2]
FLIPS, STRUCTURES, TOKENIZERS, GRAPHS = 700, 220, 60, 30
PICTURE = np.kron(np.arange(16).reshape(4, 4) * 16, np.ones((16, 16))).astype(np.uint8)

Rng = np.random.Generator


def edit_once(bundle: Path) -> np.ndarray[Any, Any]:
    """One step each of inversion and editing through every graph that an edit uses, and the decoder."""
    editor = Editor.load(bundle, backend="cpu", threads=1)
    inversion = editor.invert(PICTURE, 1)
    latents = editor.edit_latents(inversion, ["a red cat"], replace_fraction=1.0)
    image = np.asarray(editor.decode(latents)[0])
    return np.concatenate([latents.ravel(), image.ravel().astype(np.float32)])


def outcome(bundle: Path) -> np.ndarray[Any, Any] | None:
    """The edit, or None for a clean error. Anything else is raised."""
    try:
        with warnings.catch_warnings():
            # Numbers of a hostile model may overflow; what must not is the program.
            warnings.simplefilter("ignore", RuntimeWarning)
            return edit_once(bundle)
    except FreePromptError as error:
        assert str(error) and len(str(error)) < 5000
        return None


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path) -> np.ndarray[Any, Any]:
    return edit_once(tiny_bundle)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return copy_bundle(tiny_bundle, tmp_path / "bundle")


class Handle:
    """A session to whoever opens it."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@pytest.fixture
def kept_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where graphs are not what is damaged, loading each anew for every case would be nearly all of the time."""
    create, kept = ort.InferenceSession, dict[bytes, Any]()
    handles: list[Handle] = []

    def cached(model: bytes, *args: Any, **kwargs: Any) -> Handle:
        if model not in kept:
            kept[model] = create(model, *args, **kwargs)
        # Never let go: with the first handle of a session goes the memory of its weights.
        handles.append(Handle(kept[model]))
        return handles[-1]

    monkeypatch.setattr(ort, "InferenceSession", cached)


def damage(data: bytes, rng: Rng) -> bytes:
    at = int(rng.integers(len(data)))
    kind = int(rng.integers(5))
    if kind < 2:
        changed = bytearray(data)
        changed[at] ^= 1 << int(rng.integers(8))
        return bytes(changed)
    if kind == 2:
        return data[:at]
    if kind == 3:
        return data[:at] + data[at + int(rng.integers(1, 9)) :]
    return data[:at] + rng.bytes(int(rng.integers(1, 9))) + data[at:]


def test_damaged_bytes_are_found(bundle: Path, expected: np.ndarray[Any, Any]) -> None:
    files = sorted(path for path in bundle.iterdir() if path.is_file())
    # The manifest is where a byte has most meaning; every other file has its hash.
    turns = [files[i // 2 % len(files)] if i % 2 else bundle / "manifest.json" for i in range(FLIPS)]
    errors = 0
    for case, path in enumerate(turns):
        whole = path.read_bytes()
        damaged = damage(whole, np.random.default_rng([1, case]))
        path.write_bytes(damaged)
        got = outcome(bundle)
        assert (got is None) == (damaged != whole), (case, path.name)
        errors += got is None
        path.write_bytes(whole)
    assert errors > FLIPS * 0.99
    np.testing.assert_array_equal(outcome(bundle), expected)


def test_swapped_files_are_found(bundle: Path) -> None:
    names = [file["path"] for file in read_manifest(bundle)["files"]]
    for one, other in itertools.pairwise(names):
        (bundle / one).rename(bundle / "held")
        (bundle / other).rename(bundle / one)
        (bundle / "held").rename(bundle / other)
        assert outcome(bundle) is None, (one, other)
        (bundle / one).rename(bundle / "held")
        (bundle / other).rename(bundle / one)
        (bundle / "held").rename(bundle / other)


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything below; of the schedule's thousand numbers only a few."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:40])
    found: list[tuple[Any, Any]] = []
    for key, item in items:
        found.append((value, key))
        if isinstance(item, (dict, list)):
            found += places(item)
    return found


WRONG: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 63, 10**30),
    *(0.0, 0.5, -1.5, 1e-320, 1e308, "", "x", "rows", "step.onnx", "../x", "float16", "int64", [], {}),
)


def mutate(manifest: Json, rng: Rng) -> None:
    """Replace, remove, duplicate or swap something anywhere."""
    every = places(manifest)
    container, key = every[int(rng.integers(len(every)))]
    kind = int(rng.integers(6))
    if kind < 3:
        container[key] = WRONG[int(rng.integers(len(WRONG)))]
    elif kind == 3:
        del container[key]
    elif kind == 4 and isinstance(container, list):
        container.insert(key, container[key])
    else:
        other, name = every[int(rng.integers(len(every)))]
        container[key], other[name] = (json.loads(json.dumps(v)) for v in (other[name], container[key]))


def test_manifests_with_a_right_checksum_and_wrong_content(
    bundle: Path, expected: np.ndarray[Any, Any], kept_sessions: None
) -> None:
    """Some say something else that is possible (another schedule, say): they give another result, and no harm."""
    original = (bundle / "manifest.json").read_bytes()
    errors = 0
    for case in range(STRUCTURES):
        manifest = json.loads(original)
        mutate(manifest, np.random.default_rng([2, case]))
        write_manifest(bundle, manifest)
        got = outcome(bundle)
        errors += got is None
        assert got is None or np.isfinite(got).all(), case
    assert STRUCTURES * 0.5 < errors < STRUCTURES
    (bundle / "manifest.json").write_bytes(original)
    np.testing.assert_array_equal(outcome(bundle), expected)


def test_tokenizers_with_right_hashes_and_wrong_content(bundle: Path, kept_sessions: None) -> None:
    path = bundle / "tokenizer.json"
    original = path.read_bytes()
    errors = 0
    for case in range(TOKENIZERS):
        rng = np.random.default_rng([3, case])
        if case % 2:
            data = json.loads(original)
            mutate(data, rng)
            path.write_text(json.dumps(data))
        else:
            path.write_bytes(damage(original, rng))
        rehash(bundle)
        errors += outcome(bundle) is None
    assert 10 < errors < TOKENIZERS


def run_damaged_graph(tiny_bundle: Path, folder: Path, case: int) -> None:
    """In the worker: one case, whose outcome is printed."""
    target = copy_bundle(tiny_bundle, folder / str(case))
    names = tuple(f"{name}.fused.onnx" for name in ("step", "text_encoder", "vae_encoder", "vae_decoder"))
    names = (*names, "step.onnx", "unet.weights")
    path = target / names[case % len(names)]
    path.write_bytes(damage(path.read_bytes(), np.random.default_rng([4, case])))
    rehash(target)
    print(case, "error" if outcome(target) is None else "done", flush=True)  # noqa: T201


def test_graphs_with_right_hashes_and_wrong_content(tiny_bundle: Path, tmp_path: Path) -> None:
    """No traceback. Where ONNX Runtime takes its process down, the worker is started again after that case."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom tests.contract.test_bundle_fuzz import run_damaged_graph\n"
        "bundle, folder, first, last = sys.argv[1:]\n"
        "for case in range(int(first), int(last)):\n"
        "    run_damaged_graph(Path(bundle), Path(folder), case)\n"
    )
    first, results, crashes = 0, list[str](), list[int]()
    while first < GRAPHS:
        command = [sys.executable, "-c", script, str(tiny_bundle), str(tmp_path), str(first), str(GRAPHS)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
        results += done.stdout.split("\n")[:-1]
        first = len(results) + len(crashes)
        if done.returncode:
            assert done.returncode < 0, done.stderr[-3000:]  # a signal; a traceback would give 1
            crashes.append(first)
            first += 1
    assert len(results) + len(crashes) == GRAPHS
    assert any("error" in line for line in results) and any("done" in line for line in results)
    # Measured: none. A few would be ONNX Runtime's affair; many would mean that something of ours invites them.
    assert len(crashes) <= 3, crashes


def test_there_are_a_thousand() -> None:
    assert FLIPS + STRUCTURES + TOKENIZERS + GRAPHS >= 1000
