"""Nothing is sent and nothing is left: what a command does besides writing its outputs, seen from outside.

What freeprompt remembers on purpose, which runtimes have shown to compute right, has a folder of its own here.

Commands run in a process of their own with an empty home and an empty temporary folder, and without the variables by
which libraries recognise continuous integration, where some of them are silent of their own accord.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from freeprompt.privacy import TELEMETRY, be_silent

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "freeprompt" / "examples" / "example-1.png"
# What compiled libraries do is not audited; what Python does is, wherever it is called from.
AUDITED = """
import json, os, sys

seen = []

def hook(event, arguments):
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    makes = event in ("os.mkdir", "os.rename", "os.link", "os.symlink")
    if event.startswith("socket.") or writes or makes:
        seen.append([event, [str(argument) for argument in arguments]])

sys.addaudithook(hook)
from freeprompt.cli import main

code = main(sys.argv[2:])
events, seen = seen, []
with open(sys.argv[1], "w") as file:
    json.dump(events, file)
sys.exit(code)
"""
# Calls of the system that make or change something at a path.
CHANGES = re.compile(r"^(creat|mkdir|mkdirat|mknod|mknodat|rename\w*|link|linkat|symlink|symlinkat|truncate)\(")
OPENS = re.compile(r"^(open|openat|openat2)\(.*\b(O_WRONLY|O_RDWR|O_CREAT)\b")
NETWORK = re.compile(r"^(socket|connect|bind|listen|accept4?|send\w*|recv\w*)\(")
PATHS = re.compile(r"(?:AT_FDCWD|\d+)<([^>]*)>, \"([^\"]*)\"|\"([^\"]*)\"")


@dataclass(frozen=True)
class Place:
    """An empty home, an empty folder for temporary files, and a folder for outputs, which is the current one."""

    path: Path

    @property
    def output(self) -> Path:
        return self.path / "output"

    def run(self, *command: object) -> None:
        """Run to its end; it must succeed."""
        names = ("home", "temporary", "output")
        for name in names:
            (self.path / name).mkdir()
        environment = {
            **{name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ},
            "HOME": str(self.path / "home"),
            "USERPROFILE": str(self.path / "home"),
            "TMPDIR": str(self.path / "temporary"),
            "FREEPROMPT_CACHE": str(self.cache),
            "OMP_NUM_THREADS": "1",
            # Python's own cache of compiled modules lies beside the sources.
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        words = [str(word) for word in command]
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, cwd=self.output, env=environment, timeout=300
        )
        assert done.returncode == 0, done.stderr

    @property
    def cache(self) -> Path:
        """Where it is remembered which runtimes compute right (``freeprompt.engines.verify``)."""
        return self.path / "cache"

    def left(self) -> list[str]:
        """Everything in the home and among the temporary files."""
        return [
            str(path.relative_to(self.path)) for name in ("home", "temporary") for path in (self.path / name).rglob("*")
        ]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "outputs"),
    [
        (("edit", EXAMPLE, "a red circle", "--steps", 2, "-q", "-o", "edited.png"), ["edited.png"]),
        (("bench", "--edits", 1, "--steps", 1, "--prompts", 1, "-q", "--plot", "plot.png"), ["plot.png"]),
        (("doctor", "demo"), []),
    ],
    ids=lambda value: str(value[0]) if value and isinstance(value, tuple) else None,
)
def test_a_command_opens_no_connection_and_leaves_its_outputs_only(
    place: Place, arguments: tuple[object, ...], outputs: list[str]
) -> None:
    place.run(sys.executable, "-c", AUDITED, place.path / "events.json", *arguments)
    assert place.left() == []
    assert sorted(path.name for path in place.output.iterdir()) == outputs
    events: list[tuple[str, list[str]]] = json.loads((place.path / "events.json").read_text())
    assert [event for event, _ in events if event.startswith("socket.")] == []
    # Finding a shared library runs the system's own command, whose output nobody wants.
    written = [path for _, (path, *_) in events if path != os.devnull]
    assert bool(written) == bool(outputs), "an audit that sees nothing proves nothing"
    # matplotlib has a temporary folder, which is gone by the end.
    allowed = (place.output, place.cache, *([place.path / "temporary"] if "--plot" in arguments else []))
    paths = [Path(place.output, path) for _, (path, *_) in events]
    assert [path for path in paths if not _may_be_written(path, *allowed)] == []


def test_an_edit_makes_no_call_of_the_network_and_writes_its_output_only(place: Place) -> None:
    """The same by the system's own account, which compiled libraries cannot evade."""
    strace = shutil.which("strace")
    if strace is None or not _can_trace(strace):
        pytest.skip("strace is not installed, or may not trace")
    trace = place.path / "trace"
    calls = "trace=?open,?creat,?mkdir,?mknod,?rename,?link,?symlink,%network,%file"
    place.run(
        *(strace, "-f", "-y", "-o", trace, "-e", calls, sys.executable, "-m", "freeprompt"),
        *("edit", EXAMPLE, "a red circle", "--steps", 2, "-q", "-o", "edited.png"),
    )
    calls_made = list(_traced(trace.read_text(errors="replace")))
    assert [call for call in calls_made if NETWORK.match(call)] == []
    written = [path for call in calls_made for path in _written(call, place)]
    assert place.output / "edited.png" in written, "a trace that sees nothing proves nothing"
    assert [path for path in written if not _may_be_written(path, place.output, place.cache)] == []
    assert place.left() == []
    kept = {path.relative_to(place.cache).parts[0] for path in place.cache.rglob("*") if path.is_file()}
    assert kept == {"verified"}, "what runtimes have shown to compute right, and nothing else"


def _may_be_written(path: Path, *folders: Path) -> bool:
    around = {path, *path.parents}
    return not around.isdisjoint({*folders, Path("/dev"), Path("/proc/self")})


@functools.cache
def _can_trace(strace: str) -> bool:
    """In some containers no process may trace another."""
    return subprocess.run([strace, "-f", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0


def _traced(text: str) -> Iterator[str]:
    """Calls without the process number before them."""
    for line in text.splitlines():
        yield re.sub(r"^\d+ +", "", line)


def _written(call: str, place: Place) -> Iterator[Path]:
    """Paths that a call makes or opens for writing, if it succeeds."""
    if (CHANGES.match(call) or OPENS.match(call)) and " = -1 " not in call:
        for folder, within, path in PATHS.findall(call):
            yield Path(place.output, folder, within or path)


@pytest.mark.parametrize("module", ["freeprompt", "freeprompt.contract.errors", "benchmarks", "tests.conftest"])
@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("", "1"), ("0", "0")])
def test_importing_turns_telemetry_off_unless_the_user_has_decided(
    module: str, before: str | None, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TELEMETRY)
    environment = dict(os.environ) if before is None else {**os.environ, TELEMETRY: before}
    code = f"import os, sys, {module}; print(os.environ[{TELEMETRY!r}], 'onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert (done.stdout, done.stderr) == (f"{after} False\n", "")
    if before is not None:
        monkeypatch.setenv(TELEMETRY, before)
    be_silent()
    assert os.environ[TELEMETRY] == after
