"""One edit of the demo with each of several ONNX Runtimes: right, refused, or wrong.

Each version is installed in an environment of its own. The edit is made twice: as anybody would, and with the check of
the version left out, which shows whether the bundle's known answers find a wrong library by themselves.

    python -m benchmarks.cpu.onnxruntime_versions --json benchmarks/results/onnxruntime_versions.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "freeprompt" / "examples" / "example-1.png"
VERSIONS = (
    *("1.17.3", "1.18.1", "1.19.2", "1.20.0", "1.20.1", "1.21.0"),
    *("1.21.1", "1.22.1", "1.23.2", "1.24.4", "1.25.1", "1.26.0", "1.27.0", "1.28.0", "1.29.0", "1.30.0", "1.31.1"),
    "1.32.0",
)
# The first that take NumPy 2.
NUMPY_2 = (1, 19)
STEPS = 10
# Of the latents of the newest version: other kernels sum in another order, and ten steps amplify that.
RIGHT = 1e-4
EDIT = f"""
import sys
import numpy as np
from freeprompt import Editor
from freeprompt.engines.onnxruntime import library
if sys.argv[1] == "unchecked":
    library.OLDEST = (0, 0, 0)
editor = Editor.load(sys.argv[2])
inversion = editor.invert({str(PICTURE)!r}, steps={STEPS})
np.save(sys.argv[3], editor.edit_latents(inversion, "a cyan square on a gray background", guidance=3.0))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--json", type=Path)
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference = folder / "reference.npy"
        outcome = _edit(Path(sys.executable), "checked", arguments.bundle, reference)
        assert outcome is None, outcome
        rows = [_try(version, arguments.bundle, folder, reference) for version in arguments.versions]
    if arguments.json:
        arguments.json.write_text(json.dumps({"steps": STEPS, "bound": RIGHT, "versions": rows}, indent=1) + "\n")


def _try(version: str, bundle: str, folder: Path, reference: Path) -> dict[str, Any]:
    home = folder / version
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    numpy = "numpy<2" if tuple(map(int, version.split(".")[:2])) < NUMPY_2 else "numpy"
    needed = [numpy, f"onnxruntime=={version}", "pillow", "platformdirs", "safetensors", "tokenizers", "msgspec"]
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *needed], check=True, stderr=subprocess.DEVNULL)
    subprocess.run([*pip, "--no-deps", str(ROOT)], check=True, stderr=subprocess.DEVNULL)
    row: dict[str, Any] = {"onnxruntime": version}
    for check in ("checked", "unchecked"):
        file = folder / f"{version}-{check}.npy"
        refused = _edit(python, check, bundle, file)
        if refused is not None:
            row[check] = f"refused: {refused}"
        else:
            expected, got = np.load(reference), np.load(file)
            error = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
            row[check] = f"{'right' if error <= RIGHT else 'WRONG'} ({error:.1e})"
    print(f"{version:<8} {row['checked'][:60]:<62} {row['unchecked'][:150]}", flush=True)
    return row


def _edit(python: Path, check: str, bundle: str, file: Path) -> str | None:
    """Make the edit; the last line of what it says where it fails."""
    # What was shown before must not count: each run asks for the known answers anew.
    environment = {
        "FREEPROMPT_CACHE": tempfile.mkdtemp(dir=file.parent),
        "PATH": "/usr/bin:/bin",
        "OMP_NUM_THREADS": "1",
    }
    command = [str(python), "-c", EDIT, check, bundle, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=file.parent, env=environment, check=False)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]


if __name__ == "__main__":
    main()
