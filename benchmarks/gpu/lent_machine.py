"""Getting things onto a lent machine and off it again: few uploads of bounded size, few files back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from benchmarks.gpu.lent_plan import FOLDERS, ROOT, Place

KITS = ("ort", "trt")


def take(place: Place) -> None:
    """Keep what this upload carried; each brings one part of a kit."""
    for folder in sorted(place.given.glob("*")) if place.given.is_dir() else ():
        if folder.is_dir():
            shutil.copytree(folder, place.base / "in" / folder.name, dirs_exist_ok=True)
    archive = place.given / "out.tgz"
    if archive.exists() and not any(place.results.iterdir()):
        with tarfile.open(archive) as tar:
            tar.extractall(place.results, filter="data")


def set_up(place: Place) -> None:
    """Code, wheels and whatever kit is complete.

    The code is copied: the repository is written anew with each upload, under the feet of what runs in the background.
    """
    base = place.base
    if not preparing(place):
        copy = base / "view.partial"
        shutil.rmtree(copy, ignore_errors=True)
        for name, target in FOLDERS.items():
            ignored = shutil.ignore_patterns("__pycache__", "demo", "embedded", "results")
            shutil.copytree(ROOT / name, copy / target, ignore=ignored)
        shutil.rmtree(base / "view", ignore_errors=True)
        copy.rename(base / "view")
    if place.dry:
        (base / "site").mkdir(exist_ok=True)
    wheels = sorted((base / "in" / "whl").glob("*.whl"))
    if wheels and not (base / "site").is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*command, "--target", str(base / "site.partial"), *map(str, wheels)], check=True)
        (base / "site.partial").rename(base / "site")
    for kit in KITS:
        came, partial = base / "in" / kit, base / f"{kit}.partial"
        # The hash travels with the last part.
        if (came / "SHA256").exists() and not (base / kit).is_dir():
            shutil.rmtree(partial, ignore_errors=True)
            command = ["bash", str(base / "in" / "tools" / "parts"), "join", str(came), str(partial)]
            if subprocess.run(command, check=False).returncode == 0:
                partial.rename(base / kit)


def preparing(place: Place) -> bool:
    """Whether the preparation runs in the background."""
    path = place.base / "prepare.pid"
    if not path.exists():
        return False
    process = Path("/proc") / path.read_text()
    try:
        state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        command = (process / "cmdline").read_bytes()
    except OSError:
        return False
    # One that has ended, and that nobody waited for, is a zombie; one that has just begun has no command line yet.
    return state not in "ZX" and (not command or b"benchmarks.gpu.lent" in command)


def send(place: Place) -> None:
    """Write what was found where it comes back from: four files, each whole."""
    parts = {p.stem[len("part-") :]: json.loads(p.read_text()) for p in sorted(place.results.glob("part-*.json"))}
    report = place.results / "gpu_check.json"
    merged = json.loads(report.read_text()) if report.exists() else {}
    _write(place.back / "gpu_check.json", (json.dumps({**merged, "parts": parts}, indent=1) + "\n").encode())
    archive = place.base / "out.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted(place.results.iterdir()):
            tar.add(path, path.name)
    _write(place.back / "out.tgz", archive.read_bytes())
    for name in ("log.txt", "prepare.log"):
        if (place.base / name).exists():
            _write(place.back / name, (place.base / name).read_bytes()[-4_000_000:])


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.partial")
    temporary.write_bytes(data)
    temporary.replace(path)
