"""Figures of ``freeprompt bench``. The only module of the installed package that imports matplotlib."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from freeprompt.contract.errors import UsageError
from freeprompt.contract.files import atomic_path
from freeprompt.contract.graphs import (
    RECORD,
    STEP,
    STEP_RECORDED,
    STEP_RECORDING,
    TEXT_ENCODER,
    VAE_DECODER,
    VAE_ENCODER,
)

# Where matplotlib keeps what it writes, by its own documentation.
_FOLDER = "MPLCONFIGDIR"
COLOURS = {
    STEP: "#4477aa",
    STEP_RECORDED: "#66ccee",
    STEP_RECORDING: "#228833",
    RECORD: "#ee6677",
    TEXT_ENCODER: "#ccbb44",
    VAE_ENCODER: "#aa3377",
    VAE_DECODER: "#aa3377",
}


def plot_report(report: Mapping[str, Any], path: Path) -> None:
    """Samples of each figure above, the timeline of the last first edit below.

    Raises:
        UsageError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    plt = import_pyplot()
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 6.5), height_ratios=(3, 1), layout="constrained")
    names = list(report["samples"])
    for place, name in enumerate(names):
        samples = [1e3 * sample for sample in report["samples"][name]]
        above.plot(samples, [place] * len(samples), "o", color="#4477aa", alpha=0.4, markersize=4)
        above.plot(1e3 * report["summary"][name]["p50"], place, "|", color="#ee6677", markersize=16)
    above.set_yticks(range(len(names)), names)
    above.invert_yaxis()
    above.set_xscale("log")
    above.set_xlabel("milliseconds; each sample, and the median")
    settings = report["settings"]
    above.set_title(f"{report['bundle']['model']} on {settings['backend']}, {settings['steps']} steps", fontsize=10)
    draw_timeline(below, report["timeline"])
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def draw_timeline(axes: Any, timeline: list[Mapping[str, Any]]) -> None:
    """Every evaluation of one first edit: when, which graph, how many rows high."""
    seen = set()
    for one in timeline:
        graph = one["graph"]
        label = None if graph in seen else graph
        seen.add(graph)
        axes.bar(
            one["start"],
            max(one["rows"], 1),
            one["seconds"],
            align="edge",
            color=COLOURS.get(graph, "grey"),
            label=label,
        )
    axes.set_xlabel("seconds since the start of a first edit; a bar is one evaluation")
    axes.set_ylabel("rows")
    axes.legend(fontsize=7, ncols=4, loc="upper left")


def import_pyplot() -> Any:
    """matplotlib.pyplot, drawing to files. Raises UsageError if it is not installed."""
    with _settings_of_its_own():
        try:
            import matplotlib
        except ImportError as error:
            raise UsageError("--plot needs matplotlib: pip install 'freeprompt[bench]'") from error
        matplotlib.use("Agg")
        from matplotlib import pyplot

    return pyplot


@contextlib.contextmanager
def _settings_of_its_own() -> Iterator[None]:
    """Let matplotlib keep its list of fonts and its settings in a folder that goes, not in the user's home."""
    if os.environ.get(_FOLDER):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="freeprompt-") as folder:
        os.environ[_FOLDER] = folder
        try:
            yield
        finally:
            del os.environ[_FOLDER]
