"""Known answers: whatever runs a graph first shows, once on each machine, that it computes what the model computes.

Runtimes have been wrong without a word: ONNX Runtime 1.20.0 to 1.21.0 compute attention with a bias as input wrong, by
0.53 of its magnitude. A bundle brings small inputs and outputs of each of its graphs; a session is believed when it has
given them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
import safetensors.numpy
from safetensors import SafetensorError

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError, BundleError, OutputError
from freeprompt.contract.files import atomic_path
from freeprompt.contract.manifest import GraphSpec
from freeprompt.contract.session import NumpyArray, Session
from freeprompt.engines.comparison import THRESHOLDS, compare, seeded_inputs, small_sizes

# Names the folder of what has been shown before; for tests, and for machines whose home is not to be written to.
CACHE_VARIABLE = "FREEPROMPT_CACHE"
# Stable Diffusion 1.5's take 2 MB; a file of gigabytes at their place must not be read into memory.
MAX_ANSWER_BYTES = 64 << 20
_CPU_BYTES = 4096
ADVICE = "install another version of it, or choose another backend (freeprompt doctor lists what is there)"


@dataclass(frozen=True)
class Runner:
    """What executes a graph.

    Attributes:
        name: for messages, as "ONNX Runtime 1.32.0 (CPUExecutionProvider)".
        build: whatever else decides what it computes: how the library was built, the form of the graph, the provider's
            options, the hash of a plug-in.
        advice: what to do if it computes something else.
    """

    name: str
    build: str
    advice: str = ADVICE


Reference = Callable[[Bundle, str], Session | None]


def _no_reference(bundle: Bundle, graph: str) -> None:
    return None


class Verified:
    """Which graphs have given their known answer: a small file for each in the user's cache folder.

    Kept outside the bundle, since it says something of this machine. Where it cannot be written nothing is remembered,
    and every session shows its answer again.

    Args:
        folder: None: that of ``FREEPROMPT_CACHE``, else freeprompt in the user's cache folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        if folder is None:
            chosen = os.environ.get(CACHE_VARIABLE)
            folder = Path(chosen) if chosen else platformdirs.user_cache_path("freeprompt", appauthor=False)
        self._folder = folder / "verified"

    def holds(self, bundle: Bundle, graph: str, runner: Runner) -> bool:
        """Whether this runner gave the answer of this graph on this machine before."""
        return self._path(bundle, graph, runner).is_file()

    def remember(self, bundle: Bundle, graph: str, runner: Runner, relative_l2: float) -> None:
        """Note that it did."""
        path = self._path(bundle, graph, runner)
        known = {
            "bundle": bundle.sha256,
            "graph": graph,
            "runner": runner.name,
            "build": runner.build,
            "relative_l2": relative_l2,
        }
        with suppress(OSError, OutputError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")

    def _path(self, bundle: Bundle, graph: str, runner: Runner) -> Path:
        parts = (bundle.sha256, graph, runner.name, runner.build, _machine())
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        return self._folder / f"{digest[:32]}.json"


def verify_session(
    bundle: Bundle,
    graph: str,
    session: Session,
    runner: Runner,
    verified: Verified | None = None,
    reference: Reference = _no_reference,
) -> None:
    """Let a session give its graph's known answer, unless this runner has given it on this machine before.

    Args:
        reference: opens another session, whose results for seeded inputs take the answer's place in a bundle without
            known answers; where it gives None the session passes.

    Raises:
        BackendError: it fails, or gives something else.
        BundleError: the answer is missing from the bundle's file.
    """
    spec = bundle.manifest.graph(graph)
    verified = verified or Verified()
    if verified.holds(bundle, graph, runner):
        return
    if spec.known_answer is not None:
        inputs, expected = _read_answer(bundle, graph, spec)
        other, on = "the model", "the bundle's known answer"
    else:
        opened = reference(bundle, graph)
        if opened is None:
            return
        inputs = seeded_inputs(bundle.manifest, graph, small_sizes(bundle.manifest, graph))
        expected = {name: array.numpy() for name, array in opened.run(inputs).items()}
        del opened
        other, on = "ONNX Runtime on the CPU", "seeded inputs"
    try:
        got = {name: array.numpy() for name, array in session.run(inputs).items()}
        difference = compare(graph, expected, got).relative_l2
    except BackendError as error:
        raise BackendError(f"{runner.name} cannot run this bundle: {error}; {runner.advice}") from error
    bound = THRESHOLDS[_precision(spec)]
    if not difference <= bound:
        raise BackendError(
            f"{runner.name} computes graph {graph} wrong here: it differs from {other} by {difference:.1e} "
            f"(relative L2 on {on}, {bound:.0e} is allowed); {runner.advice}"
        )
    verified.remember(bundle, graph, runner, difference)


def _precision(spec: GraphSpec) -> str:
    """The export allows a graph of float32 less; one that stays so in a float16 bundle is among them."""
    return "float32" if spec.parity_threshold < THRESHOLDS["float32"] else "float16"


def _read_answer(bundle: Bundle, graph: str, spec: GraphSpec) -> tuple[dict[str, NumpyArray], dict[str, NumpyArray]]:
    assert spec.known_answer is not None and bundle.manifest.known_answers is not None
    name = bundle.manifest.known_answers
    try:
        if any(spec.path == name and spec.bytes > MAX_ANSWER_BYTES for spec in bundle.manifest.files):
            raise BundleError(f"{name} is larger than {MAX_ANSWER_BYTES} bytes: no known answers")
        tensors = safetensors.numpy.load(bundle.read(name))
        found = [
            {key: tensors[tensor] for key, tensor in tensors_by_name.items()}
            for tensors_by_name in (spec.known_answer.inputs, spec.known_answer.outputs)
        ]
    except KeyError as error:
        raise BundleError(f"{name} has no tensor {error} of graph {graph}; export the checkpoint again") from error
    except (SafetensorError, ValueError, TypeError, OverflowError) as error:
        raise BundleError(f"{name} holds no known answers: {error}") from error
    for values in found:
        if not all(np.isfinite(value).all() for value in values.values()):
            raise BundleError(f"the known answer of graph {graph} in {name} is not finite; export the checkpoint again")
    return found[0], found[1]


@functools.cache
def _machine() -> str:
    """What decides which kernels a library chooses: the processor's features, the GPU and its driver.

    With the machine's name, since a home folder may be shared by several.
    """
    parts = [platform.node(), platform.system(), platform.machine()]
    sources = [Path("/proc/cpuinfo"), Path("/proc/driver/nvidia/version")]
    with suppress(OSError):
        sources += sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    for source in sources:
        with suppress(OSError), source.open("rb") as file:
            text = file.read(_CPU_BYTES).decode(errors="replace").split("\n\n")[0]
            # The clock's speed changes from one reading to the next.
            parts += [line for line in text.splitlines() if not line.startswith(("cpu MHz", "bogomips"))]
    return "\n".join(parts)
