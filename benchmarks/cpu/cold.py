"""Cold start: from the start of the process to the first edit, and where the time goes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from freeprompt.bench.statistics import summarise

HELP = "import sys; from freeprompt.cli import main; sys.exit(main(['edit', '--help']))"
NOTHING = "pass"
IMPORT = "import freeprompt.editor, freeprompt.engines.onnxruntime.backend"
# Prints when each part was reached, in seconds of the clock that the starter reads too.
EDIT = """
import json, sys, time
marks = {"interpreter": time.time()}
from freeprompt.editor import Editor
import freeprompt.engines.onnxruntime.backend
marks["imports"] = time.time()
editor = Editor.load(sys.argv[1], "cpu", threads=int(sys.argv[2]))
marks["bundle opened and verified"] = time.time()
from freeprompt.bench.measure import picture
spec = editor.manifest.latents
image = picture(spec.width, spec.height)
def first(progress):
    marks.setdefault("first U-Net step", time.time())
inversion = editor.invert(image, int(sys.argv[3]), callback=first)
marks["inversion"] = time.time()
image = editor.edit(inversion, "a red circle")[0]
marks["edit"] = time.time()
print(json.dumps(marks))
"""


def cold_start(bundle: Path, threads: int, steps: int, repeats: int) -> dict[str, Any]:
    """Times of whole processes, in turn, and the parts of one that edits."""
    wholes: dict[str, list[float]] = {"python": [], "edit --help": [], "imports of an edit": []}
    parts: dict[str, list[float]] = {}
    for repetition in range(repeats + 1):
        for (name, samples), code in zip(wholes.items(), (NOTHING, HELP, IMPORT)):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
            if repetition:
                samples.append(time.perf_counter() - start)
            del name
        start = last = time.time()
        command = [sys.executable, "-c", EDIT, str(bundle), str(threads), str(steps)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        marks: dict[str, float] = json.loads(done.stdout)
        if repetition:
            for name, mark in marks.items():
                parts.setdefault(name, []).append(mark - last)
                last = mark
            parts.setdefault("whole, to the first edit", []).append(last - start)
            beyond = marks["first U-Net step"] - marks["imports"]
            parts.setdefault("first U-Net step beyond importing", []).append(beyond)
    return {
        "steps": steps,
        "wholes": {name: vars(summarise(samples)) for name, samples in wholes.items()},
        "parts": {name: vars(summarise(samples)) for name, samples in parts.items()},
        "slowest_imports": slowest_imports(IMPORT),
    }


def slowest_imports(code: str, count: int = 10) -> list[dict[str, Any]]:
    """Modules by their own import time (``-X importtime``)."""
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    found = []
    for line in done.stderr.splitlines():
        own, _, rest = line.removeprefix("import time:").partition("|")
        if own.strip().isdigit():
            found.append({"module": rest.partition("|")[2].strip(), "ms": int(own) / 1e3})
    return sorted(found, key=lambda each: -float(str(each["ms"])))[:count]
