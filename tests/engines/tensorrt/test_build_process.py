"""``freeprompt build --backend tensorrt-rtx`` as a user has it: interrupted, killed, twice at once, on a full disk."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError, Cancelled
from freeprompt.engines.shapes import Profile
from freeprompt.engines.tensorrt.building import process as module
from freeprompt.engines.tensorrt.building.process import build_in_child
from freeprompt.engines.tensorrt.building.request import BuilderSettings, BuildRequest
from tests.cli.runner import assert_fails, call, finish, picture, start
from tests.damage import edit_manifest

pytestmark = pytest.mark.usefixtures("rtx")
Capture = pytest.CaptureFixture[str]
SHORT = ("--backend", "tensorrt-rtx", "--graph", "text_encoder")
LONG = ("--backend", "tensorrt-rtx", "--graph", "step", "--rows", "1,2,3,4")


def kept(out: Path) -> list[str]:
    """What is in the folder of engines, but for locks."""
    folder = out / "engines" / "tensorrt-rtx"
    return (
        sorted(path.suffix for path in folder.iterdir() if not path.name.endswith(".lock")) if folder.exists() else []
    )


def started(out: Path, bundle: Path) -> tuple[subprocess.Popen[str], psutil.Process]:
    """A build that takes seconds, in the middle of it, and the process that builds for it."""
    process = start("build", bundle, "-o", out, *LONG)
    assert process.stderr is not None
    while "building step" not in process.stderr.readline():
        assert process.poll() is None
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for child in psutil.Process(process.pid).children():
            # It has begun when the library is loaded and the graph read.
            if child.memory_info().rss > 150 << 20:
                return process, child
        time.sleep(0.05)
    raise AssertionError("the build did not begin")


def gone(child: psutil.Process) -> bool:
    try:
        child.wait(timeout=30)
    except psutil.NoSuchProcess:
        return True
    return not child.is_running()


def test_a_bundle_with_engines_to_be_shipped(tiny_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "shipped"
    before = sorted(path.name for path in tiny_bundle.iterdir())
    first = call(capsys, "build", tiny_bundle, "-o", out, *SHORT, "--for", "sm86,sm120")
    assert first.code == 0 and "built text_encoder-" in first.out and "for sm86, sm120, not yet checked" in first.out
    assert "no GPU can be used here" in first.err and "[W]" not in first.err + first.out
    assert Bundle.open(out).sha256 == Bundle.open(tiny_bundle).sha256
    assert kept(out) == [".engine", ".json"]
    assert sorted(path.name for path in tiny_bundle.iterdir()) == before
    again = call(capsys, "build", tiny_bundle, "-o", out, *SHORT, "--for", "sm120,sm86", "-q")
    assert (again.code, again.out, again.err) == (0, "", "")
    assert kept(out) == [".engine", ".json"]
    told = call(capsys, "inspect", out, "--all").out
    metadata = json.loads(next(out.rglob("text_encoder-*.json")).read_text())
    assert "1 TensorRT-RTX engines" in told
    assert f"for sm86, sm120, {metadata['engine_bytes'] / 1e6:.1f} MB, SHA-256 {metadata['engine_sha256']}" in told
    assert "not yet checked: built without a GPU" in told
    assert "TensorRT-RTX or the GPU cannot be used here" in call(capsys, "doctor", out).out


def test_another_bundle_in_the_way(tiny_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_bundle, other)
    edit_manifest(other, lambda manifest: manifest["notes"].update(a="b"))
    assert_fails(call(capsys, "build", tiny_bundle, "-o", other, *SHORT, "-q"), 1, "is another bundle than")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    outcome = call(capsys, "build", tiny_bundle, "-o", tmp_path / "mine", *SHORT, "-q")
    assert_fails(outcome, 1, "exists and is no bundle")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--for", "sm99x"), 2, "cannot build for 'sm99x'; it builds for sm75, sm80, sm86, sm89, sm120"),
        (("--for", "sm90"), 2, "cannot build for 'sm90'"),
        (("--for", ""), 2, "cannot build for ''"),
        (("--for", "sm75"), 1, "FP32 GEMM is not supported on Turing (sm75), and node"),
        (("--dynamic", "--static"), 2, "not allowed with"),
    ],
)
def test_targets_that_cannot_be(
    tiny_bundle: Path, tmp_path: Path, capsys: Capture, options: tuple[str, ...], code: int, words: str
) -> None:
    out = tmp_path / "out"
    assert_fails(call(capsys, "build", tiny_bundle, "-o", out, *SHORT, *options, "-q"), code, words)
    assert kept(out) == []
    assert code == 1 or not out.exists(), "told before anything is copied"


def test_options_of_tensorrt_rtx_alone(tiny_bundle: Path, capsys: Capture) -> None:
    for backend in ("tensorrt", "cuda", "ort:tensorrt"):
        outcome = call(capsys, "build", tiny_bundle, "--backend", backend, "--for", "sm86")
        assert_fails(outcome, 2, f"--for means nothing to --backend {backend}")


def test_ctrl_c_in_the_middle(tiny_bundle: Path, tmp_path: Path) -> None:
    """At once, although the compiler hears of nothing, and with nothing left behind; the next build goes on."""
    out = tmp_path / "out"
    process, child = started(out, tiny_bundle)
    process.send_signal(signal.SIGINT)
    outcome = finish(process)
    assert outcome.code == 130 and outcome.err.splitlines()[-1] == "freeprompt: interrupted"
    assert gone(child) and kept(out) == []
    Bundle.open(out)


def test_killed_in_the_middle(tiny_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    """What builds for it ends with it, and what it left half-written is removed by the next build."""
    out = tmp_path / "out"
    process, child = started(out, tiny_bundle)
    process.kill()
    finish(process)
    assert gone(child)
    assert ".json" not in kept(out)
    outcome = call(capsys, "build", tiny_bundle, "-o", out, "--backend", "tensorrt-rtx", "--graph", "step", "--rows", 1)
    assert outcome.code == 0, outcome.err
    assert kept(out).count(".json") == 1


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, "ended from outside, as the system does when memory runs out"),
        (signal.SIGSEGV, "TensorRT-RTX crashed while it built the engine (signal 11"),
    ],
)
def test_a_compiler_that_dies(tiny_bundle: Path, tmp_path: Path, number: signal.Signals, said: str) -> None:
    out = tmp_path / "out"
    process, child = started(out, tiny_bundle)
    child.send_signal(number)
    outcome = finish(process)
    assert outcome.code == 1 and said in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err and kept(out) == []


def test_two_builds_at_once(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(tiny_bundle, out)
    command = ("build", out, "--backend", "tensorrt-rtx", "--graph", "step", "--rows", 2)
    outcomes = [finish(process) for process in (start(*command), start(*command))]
    assert [outcome.code for outcome in outcomes] == [0, 0]
    assert sorted(outcome.out.split()[0] for outcome in outcomes) == ["built", "kept"]
    assert kept(out) == [".engine", ".json"]


def test_a_disk_that_fills_while_the_engine_is_written(tiny_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    """A limit on the size of files stands for the full disk, as elsewhere: weights are below it, the engine above."""
    out = tmp_path / "out"
    shutil.copytree(tiny_bundle, out)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        outcome = call(capsys, "build", out, *SHORT, "-q")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_fails(outcome, 1, "cannot write the engine of text_encoder: File too large")
    assert kept(out) == []
    assert call(capsys, "build", out, *SHORT, "-q").code == 0
    assert kept(out) == [".engine", ".json"]


def request(bundle: Bundle, folder: Path) -> BuildRequest:
    inputs = bundle.manifest.graph("text_encoder").inputs
    model, profile = str(bundle.graph_path("text_encoder")), Profile({"texts": (2, 2, 2)})
    return BuildRequest("tensorrt-rtx", model, str(folder / "engine"), inputs, (profile,), BuilderSettings())


def test_whoever_hears_of_the_progress_can_stop_it(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a callback of the API does; here a process that says something at once stands for the compiler."""
    bundle = Bundle.open(tiny_bundle, verify=False)
    script = 'import sys, time; print(\'{"type": "progress", "text": "1 %"}\', flush=True); time.sleep(600)'
    monkeypatch.setattr(module, "_START", script)

    def stop(line: str) -> None:
        assert line == "1 %"
        raise Cancelled("enough")

    begin = psutil.Process().children()
    with pytest.raises(Cancelled):
        build_in_child(request(bundle, tmp_path), stop)
    assert psutil.Process().children() == begin


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("raise SystemExit(3)", r"crashed.*\(exit code 3\)"),
        ("import os; os.abort()", r"crashed.*\(signal 6\)"),
        ("import sys; sys.stderr.write('line one\\nlast words\\n'); sys.exit(1)", r"exit code 1: last words"),
    ],
)
def test_a_process_that_says_nothing(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    monkeypatch.setattr(module, "_START", script)
    with pytest.raises(BackendError, match=said):
        build_in_child(request(Bundle.open(tiny_bundle, verify=False), tmp_path))


def test_a_process_that_does_not_listen(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is longer than what the system keeps for one who has not read yet."""
    monkeypatch.setattr(module, "_START", "import os; os.close(0); raise SystemExit(4)")
    asked = request(Bundle.open(tiny_bundle, verify=False), tmp_path)
    with pytest.raises(BackendError, match=r"crashed.*\(exit code 4\)"):
        build_in_child(replace(asked, profiles=asked.profiles * 10_000))


def test_the_library_is_found_whatever_the_folder_is(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module of the same name in the user's folder is not taken for the library."""
    for name in ("polygraphy", "tensorrt_rtx", "tensorrt_rtx_bindings", "msgspec"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this')")
    monkeypatch.chdir(tmp_path)
    assert build_in_child(request(Bundle.open(tiny_bundle, verify=False), tmp_path)).warnings == ()


@pytest.mark.parametrize("missing", ["polygraphy", "tensorrt_rtx"])
def test_what_is_missing_is_said(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    blocked = "import sys\nfor name in ('polygraphy', 'tensorrt_rtx', 'tensorrt_rtx_bindings'):\n"
    blocked += f"    sys.modules.update({{name: None}} if name.startswith({missing!r}) else {{}})\n"
    monkeypatch.setattr(module, "_START", blocked + module._START)
    said = {"polygraphy": "polygraphy is not installed.*pip install polygraphy", "tensorrt_rtx": "is not installed"}
    with pytest.raises(BackendError, match=said[missing]):
        build_in_child(request(Bundle.open(tiny_bundle, verify=False), tmp_path))


QUICK = """
import sys
from freeprompt.cli import main
code = main(sys.argv[1:])
loaded = sorted({name.split(".")[0] for name in sys.modules} & {"polygraphy", "tensorrt_rtx", "tensorrt_rtx_bindings"})
print("loaded", code, loaded, file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "BUNDLE"], ["edit", "in.png", "a cat", "--steps", "1"]])
def test_nothing_of_it_is_loaded_by_other_commands(tiny_bundle: Path, tmp_path: Path, arguments: list[str]) -> None:
    picture(tmp_path / "in.png")
    named = [str(tiny_bundle) if argument == "BUNDLE" else argument for argument in arguments]
    if named[0] == "edit":
        named += ["--bundle", str(tiny_bundle), "-o", "out.png", "-q"]
    done = subprocess.run(
        [sys.executable, "-c", QUICK, *named], cwd=tmp_path, capture_output=True, text=True, env=os.environ, check=True
    )
    assert done.stderr.splitlines()[-1] == "loaded 0 []"
