"""Results of ``freeprompt bench``: as text, as files, and two of them compared."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from freeprompt.bench.statistics import FALSE_ALARMS, LEAST_CHANGE, compare, needed, needed_of_both
from freeprompt.contract.errors import UsageError
from freeprompt.contract.files import atomic_path
from freeprompt.contract.text import escaped

FORMAT = 1
KIND = "freeprompt bench"
# A thousand repetitions of a thousand steps are a tenth of it.
MAX_BYTES = 64 << 20
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
Report = Mapping[str, Any]
Seconds = Annotated[float, msgspec.Meta(ge=0.0, lt=1e9)]
# A difference in these makes a comparison one of something else than the code.
_ALIKE = ("machine.processor", "machine.cores", "device.name", "threads.threads", "bundle.model", "bundle.precision")


@dataclass(frozen=True)
class _Shape:
    """What a comparison reads."""

    kind: Literal["freeprompt bench"]
    format: int
    samples: dict[str, list[Seconds]]
    machine: dict[str, Any]
    threads: dict[str, Any]
    bundle: dict[str, Any]
    settings: dict[str, Any]
    device: dict[str, Any] | None = None


def write_report(report: Report, path: Path) -> None:
    """Raises OutputError."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_report(path: Path) -> Report:
    """Raises UsageError if it is not what ``write_report`` writes."""
    try:
        # Not waited for, as a pipe without a writer would be.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UsageError(f"cannot read {path}: it is not a file")
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in a path
        raise UsageError(f"cannot read {path}: {error}") from error
    try:
        if len(data) > MAX_BYTES or msgspec.json.decode(data, type=_Shape).format != FORMAT:
            raise ValueError
        report: Report = msgspec.json.decode(data)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        raise UsageError(f"{path} is not a result of freeprompt bench --json of this version") from None
    return report


def report_to_text(report: Report) -> str:
    """Everything but the samples, for people."""
    machine, settings = report["machine"], report["settings"]
    threads = report["threads"]["threads"] or "every core"
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, load {machine.get('load', 'unknown')}; "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
        f"{report['bundle']['model']} ({report['bundle']['precision']}) on {settings['backend']}, threads: {threads}; "
        f"{settings['width']}x{settings['height']}, {settings['steps']} steps, record {settings['record']}",
    ]
    device = report.get("device")
    if device:
        lines.append(", ".join(f"{key} {value}" for key, value in device.items()))
    warm = report["warm_up"]
    lines.append(f"not counted: first load {_time(warm['load'])}, warm-up {_time(warm['repetition'])}")
    lines += ["", f"{'':14}{'p50':>11}{'p90':>11}{'p99':>11}{'spread':>11}{'n':>6}"]
    for name, each in report["summary"].items():
        row = "".join(f"{_time(each[key]):>11}" for key in ("p50", "p90", "p99", "mad"))
        lines.append(f"{name:14}{row}{each['count']:>6}")
    lines += ["", "spread: median absolute deviation. U-Net rows executed (predicted):"]
    for name, rows in report["rows"].items():
        graphs = ", ".join(f"{graph} {count}" for graph, count in rows["executed"].items())
        lines.append(
            f"  {name}: {rows['total']} ({rows['predicted']:g}) = {graphs}; {rows['row_equivalents']:g} whole rows"
        )
    lines.append(f"prompts in one call: {report['prompts_per_second']:.2f} images/s")
    peak = report["memory"]["host_peak_bytes"]
    if peak is not None:
        lines.append(f"peak memory of the host: {peak / 1e6:.0f} MB")
    return "\n".join(lines)


def comparison_to_text(old: Report, new: Report) -> str:
    """Change of each figure and whether it exceeds the noise. What the old run's file holds is escaped."""
    found = compare(old["samples"], new["samples"])
    lines = ["", f"compared with the old run (slower or faster: p is at most {FALSE_ALARMS:g}, of a Mann-Whitney test"]
    lines.append(f"corrected for {len(found)} figures, and the change is beyond {LEAST_CHANGE:.0%} and twice the drift")
    lines.append("within a run, which is its noise; unclear: only one of both):")
    lines += [f"  not alike: {escaped(line)}" for line in differences(old, new)]
    lines.append(f"{'':14}{'old':>11}{'new':>11}{'change':>9}{'noise':>8}{'p':>10}")
    for one in found:
        lines.append(
            f"{escaped(one.name):14}{_time(one.old):>11}{_time(one.new):>11}{one.change:>+9.1%}{one.noise:>8.1%}"
            f"{one.p:>10.2g}  {one.verdict}"
        )
    problem = too_few(old, _edits(new), len(found))
    return "\n".join([*lines, problem] if problem else lines)


def too_few(old: Report, edits: int, figures: int | None = None) -> str | None:
    """Why a run of so many edits cannot differ from ``old`` whatever it measures, and what to do; None: it can.

    Args:
        figures: how many are compared; None: as many as ``old`` has.
    """
    figures = len(old["samples"]) if figures is None else figures
    if not figures:
        return "the old run has no figure of this one's; it has to be made with the same --prompts and --record"
    before = _edits(old)
    enough = needed(before, figures)
    if enough is not None and edits >= enough:
        return None
    runs = f"{edits} edits against the old run's {before} cannot show a difference at this level: "
    if enough is not None and edits < before:
        return f"{runs}use --edits {enough} or more"
    both = needed_of_both(figures)
    again = f"make the old run again, both with --edits {both} or more"
    return runs + (again if enough is None else f"use --edits {enough} or more, or {again}")


def _edits(report: Report) -> int:
    return max((len(samples) for samples in report["samples"].values()), default=0)


def differences(old: Report, new: Report) -> list[str]:
    """What differs between two runs besides their figures."""
    settings = [f"settings.{name}" for name in new["settings"]]
    found = []
    for path in (*_ALIKE, *settings):
        before, after = _at(old, path), _at(new, path)
        if before != after and path != "settings.edits":
            found.append(f"{path} {before} -> {after}")
    return found


def _at(report: Report, path: str) -> Any:
    part, _, name = path.partition(".")
    value = (report.get(part) or {}).get(name)
    # JSON has no tuples.
    return list(value) if isinstance(value, tuple) else value


def _time(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
