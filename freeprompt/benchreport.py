"""Results of ``freeprompt bench``: as text, as files, and two of them compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freeprompt.benchstats import FALSE_ALARMS, LEAST_CHANGE, compare
from freeprompt.errors import UsageError
from freeprompt.files import atomic_path

FORMAT = 1
KIND = "freeprompt bench"
Report = Mapping[str, Any]
# A difference in these makes a comparison one of something else than the code.
_ALIKE = ("machine.processor", "machine.cores", "device.name", "threads.threads", "bundle.model", "bundle.precision")


def write_report(report: Report, path: Path) -> None:
    """Raises OutputError."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_report(path: Path) -> Report:
    """Raises UsageError if it is not what ``write_report`` writes."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        known = report["kind"] == KIND and report["format"] == FORMAT
        samples = report["samples"]
        known = known and all(isinstance(v, float) for values in samples.values() for v in values)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        known = False
    if not known:
        raise UsageError(f"{path} is not a result of freeprompt bench --json of this version")
    result: Report = report
    return result


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
    """Change of each figure and whether it exceeds the noise."""
    lines = ["", f"compared with the old run (slower or faster: Mann-Whitney at {FALSE_ALARMS:.0%} over all figures,"]
    lines.append(f"and beyond {LEAST_CHANGE:.0%} and twice the drift within a run):")
    lines += [f"  not alike: {line}" for line in differences(old, new)]
    lines.append(f"{'':14}{'old':>11}{'new':>11}{'change':>9}{'noise':>8}{'p':>10}")
    for one in compare(old["samples"], new["samples"]):
        lines.append(
            f"{one.name:14}{_time(one.old):>11}{_time(one.new):>11}{one.change:>+9.1%}{one.noise:>8.1%}"
            f"{one.p:>10.2g}  {one.verdict}"
        )
    return "\n".join(lines)


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
