"""How much memory a call is said to need, how much there is said to be, and that nothing is refused that fits."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from freeprompt import Editor
from freeprompt.contract.errors import LimitError
from freeprompt.contract.host_memory import available_bytes, free_bytes
from freeprompt.engines.fake import FakeBackend
from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend
from freeprompt.runtime.plan import memory as module
from freeprompt.runtime.plan.limits import Limits
from freeprompt.runtime.plan.memory import check_memory, estimate
from freeprompt.runtime.plan.record_size import record_row_bytes

STEPS = 4
PICTURE = np.zeros((64, 64, 3), np.uint8)
MIB = 1 << 20


def test_the_formula(tiny_bundle: Path) -> None:
    """Latents 16 x 16: three layers of 256 tokens x 16 channels, one of 64 x 32, float32."""
    editor = Editor.load(tiny_bundle, OnnxRuntimeBackend("cpu", 1), verify=False)
    row = 4 * (13 * 256 * 16 + (3 * 256 * 16 + 64 * 32) // 2)
    trajectory = 5 * 4 * 16 * 16 * 4
    plans = editor.plan(["a", "b"], steps=STEPS, record="none", replace_fraction=1.0)
    assert estimate(editor.manifest, plans, (16, 16), True) == trajectory + 5 * row
    records = STEPS * record_row_bytes(editor.manifest, 16, 16)
    plans = editor.plan(["a", "b"], steps=STEPS, record="exact", replace_fraction=1.0)
    assert estimate(editor.manifest, plans, (16, 16), True) == trajectory + records + 4 * row
    # Of a device's memory nothing is known; on the host are the levels, and the records that wait there.
    assert estimate(editor.manifest, plans, (16, 16), False) == trajectory
    waiting = tuple(replace(plan, resident=0) if plan.passes else plan for plan in plans)
    assert estimate(editor.manifest, waiting, (16, 16), False) == trajectory + records
    half = replace(editor.manifest, precision="float16")
    assert estimate(half, plans, (16, 16), True) == trajectory + records + 4 * row // 2


def test_what_does_not_fit_is_refused_before_it_is_begun(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend(device="cpu")
    editor = Editor.load(tiny_bundle, backend, verify=False)
    inversion = editor.generate("x", steps=STEPS)
    noise = editor.noise()
    monkeypatch.setattr(module, "available_bytes", lambda: 200_000)
    backend.calls.clear()
    for call in (
        lambda: editor.edit(inversion, "x"),
        lambda: editor.generate("x", steps=STEPS),
        lambda: editor.synthesize_latents("x", "y", noise, steps=STEPS),
        lambda: editor.pipeline.invert(backend.upload(noise), STEPS),
    ):
        with pytest.raises(LimitError, match=r"needs at least 0\.00 GB of memory, of 0\.00 GB that this process can"):
            call()
    assert backend.calls == []
    monkeypatch.setattr(module, "available_bytes", lambda: None)
    assert editor.generate("x", steps=STEPS).steps == STEPS


def test_a_limit_of_ones_own(tiny_bundle: Path) -> None:
    backend = FakeBackend(device="cpu")
    needed = 5 * 4 * 16 * 16 * 4 + 2 * 4 * (13 * 256 * 16 + (3 * 256 * 16 + 64 * 32) // 2)
    Editor.load(tiny_bundle, backend, verify=False, limits=Limits(memory_bytes=needed)).generate("x", steps=STEPS)
    small = Editor.load(tiny_bundle, backend, verify=False, limits=Limits(memory_bytes=needed - 1))
    with pytest.raises(LimitError, match=r"allowed \(memory_bytes\)"):
        small.generate("x", steps=STEPS)


def test_the_figures_are_said() -> None:
    with pytest.raises(LimitError, match=r"needs at least 3\.50 GB of memory, of 1\.25 GB allowed"):
        check_memory(3_500_000_000, 1_250_000_000)
    check_memory(1_250_000_000, 1_250_000_000)


PEAK = """
import sys
import numpy as np
from freeprompt import Editor
from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend
from freeprompt.bench.machine import peak_bytes, resident_bytes
from freeprompt.runtime.plan.memory import estimate

editor = Editor.load(sys.argv[1], OnnxRuntimeBackend("cpu", 1), verify=False)
side, steps = int(sys.argv[2]), 2
for graph in ("text_encoder", "step"):
    editor.pipeline.graphs[graph]
noise = np.random.default_rng(0).standard_normal((1, 4, side, side), np.float32)
latents = editor.pipeline.graphs.backend.upload(noise)
before = resident_bytes()
inversion = editor.pipeline.invert(latents, steps)
editor.edit_latents(inversion, "a", record="none", replace_fraction=1.0)
plans = editor.plan("a", inversion=inversion, record="none", replace_fraction=1.0)
print(estimate(editor.manifest, plans, (side, side), True), peak_bytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("side", [48, 64])
def test_the_estimate_is_below_what_an_edit_really_takes(side: int) -> None:
    """The embedded model; a fourth to a third of it when this was written. Far less would refuse nothing."""
    demo = Path(__file__).parents[3] / "freeprompt" / "demo"
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(demo), str(side)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said, taken = map(int, done.stdout.split())
    assert taken / 10 < said < taken


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machine_tells() -> None:
    """Against what the kernel writes, within what other processes do between two readings."""
    there, free = available_bytes(), free_bytes()
    assert there is not None and free is not None and 10 * MIB < free < there < 1 << 50
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    assert free <= int(lines["MemAvailable"].split()[0]) * 1024 + (1 << 30)
