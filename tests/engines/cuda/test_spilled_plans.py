"""Records that wait in host memory: the plan, the option, and backends without a stream for copies."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freeprompt import Editor
from freeprompt.cli import options
from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import UsageError
from freeprompt.engines.fake import FakeBackend
from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend
from freeprompt.runtime.pipeline import Limits
from freeprompt.runtime.plan import records
from freeprompt.runtime.plan.plan import RecordPass, plan_to_text
from tests.engines.cuda.test_spill import PASS, PROMPT, ROW, edit


@pytest.fixture
def start() -> Any:
    return np.random.default_rng(3).standard_normal((1, 4, 16, 16)).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "budget", "resident"),
    [
        ((4, 4, 2), None, 3),
        ((4, 4, 2), 100, 3),
        ((4, 4, 2), 99, 0),
        ((4, 4, 4, 4), 159, 1),
        ((4, 4, 4, 4), 120, 1),
        ((4, 4, 4, 4), 119, 0),
        ((4, 4, 4, 4), 0, 0),
        ((1,) * 10, 99, 7),
        ((), 0, 0),
    ],
)
def test_how_many_passes_stay(rows: tuple[int, ...], budget: int | None, resident: int) -> None:
    """Ten bytes a row; two of the largest passes are kept free where not all stay."""
    passes = [RecordPass(tuple(range(n)), tuple(range(n))) for n in rows]
    assert records.resident_passes(passes, 10, budget) == resident


def test_the_plan_says_where_the_record_lies(bundle: Bundle) -> None:
    """Forty rows are ten passes; six passes' worth of budget keeps four of them and two that move."""
    editor = Editor(bundle, FakeBackend(), Limits(device_record_bytes=6 * PASS))
    (plan,) = editor.plan(PROMPT, record="exact")[1:]
    assert (plan.resident, plan.total_record_bytes) == (4, 40 * ROW)
    assert plan.host_record_bytes == 6 * PASS
    assert plan.device_record_bytes == 6 * PASS
    text = plan_to_text((plan,))
    assert f"of it {6 * PASS / 1e6:.2f} MB wait in host memory" in text
    assert f"on the device are at most {6 * PASS / 1e6:.2f} MB" in text
    assert "wait in host memory" not in plan_to_text(Editor(bundle, FakeBackend()).plan(PROMPT, record="exact"))
    on_cpu = Editor(bundle, OnnxRuntimeBackend("cpu", 1), Limits(device_record_bytes=0))
    assert "wait in host memory" not in plan_to_text(on_cpu.plan(PROMPT, record="exact")), "it is host memory anyway"


def test_the_command_lines_option(tiny_bundle: Path) -> None:
    parser = argparse.ArgumentParser()
    options.add_model_options(parser)
    options.add_limit_options(parser)
    given = ["--bundle", str(tiny_bundle), "--backend", "cpu", "--device-record-megabytes"]
    for megabytes in (0, 5):
        editor = options.load_editor(parser.parse_args([*given, str(megabytes)]), verify=False)
        assert editor.limits == Limits(device_record_bytes=megabytes * 1_000_000)
    assert options.load_editor(parser.parse_args(given[:-1]), verify=False).limits == Limits()
    for wrong in (-1, True, 1.5):
        with pytest.raises(UsageError, match="device_record_bytes"):
            Limits(device_record_bytes=wrong)  # type: ignore[arg-type]


def test_backends_without_a_copy_stream_spill_too(bundle: Bundle, start: Any) -> None:
    """A device in name alone: arrays go by way of NumPy."""

    class Elsewhere(OnnxRuntimeBackend):
        device = "elsewhere"

    plain = edit(Editor(bundle, Elsewhere("cpu", 1)), start)
    spilled = edit(Editor(bundle, Elsewhere("cpu", 1), Limits(device_record_bytes=0)), start)
    np.testing.assert_array_equal(plain, spilled)
