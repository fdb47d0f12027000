"""Fixtures of the tests of ONNX Runtime."""

from __future__ import annotations

import pytest

from freeprompt.engines.onnxruntime import cuda_check


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Milliseconds that each timed run is said to take, in order: at each shape by the fused form, then by that for
    CUDA; 1 where the list ends."""
    times = [4.0, 8.0, 3.0, 6.0]
    monkeypatch.setattr(cuda_check, "_milliseconds", lambda session, feeds: times.pop(0) if times else 1.0)
    return times
