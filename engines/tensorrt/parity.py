"""Whether an engine computes what its graph says: measured where it is built, or where it is first loaded."""

from __future__ import annotations

from dataclasses import replace

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.contract.parity import Parity
from freeprompt.contract.session import Session
from freeprompt.engines.comparison import profile_to_sizes
from freeprompt.engines.reference import session_to_parity
from freeprompt.engines.tensorrt.building.progress import Reporter
from freeprompt.engines.tensorrt.library import Flavour
from freeprompt.engines.tensorrt.metadata import EngineMetadata
from freeprompt.engines.tensorrt.store import Machine
from freeprompt.engines.verify import Runner, Verified


def measure_parity(
    bundle: Bundle, metadata: EngineMetadata, session: Session, progress: Reporter = lambda line: None
) -> tuple[Parity, ...]:
    """Compare a session over an engine with ONNX Runtime on the CPU, at every profile.

    Raises:
        BackendError: it differs by more than its metadata allows.
    """
    found = []
    for profile in metadata.profiles:
        progress(f"checking {metadata.graph} at {profile} against ONNX Runtime on the CPU")
        found.append(session_to_parity(bundle, metadata.graph, session, profile_to_sizes(profile)))
    parity = tuple(found)
    if not replace(metadata, parity=parity).passed:
        worst = max(parity, key=lambda p: p.relative_l2)
        raise BackendError(
            f"the engine of graph {metadata.graph} is wrong: it differs from ONNX Runtime by {worst.relative_l2:.1e} "
            f"(relative L2, {worst.shapes}); {metadata.parity_threshold:.0e} is allowed in {metadata.precision}. It "
            f"is not used. Use another TensorRT than {metadata.tensorrt}, --backend cuda, or an export in float32"
        )
    return parity


class Checked:
    """Which engines have shown on this machine that they compute right.

    An engine whose kernels are compiled where it is loaded can be right on one GPU and wrong on another, so that what
    was measured elsewhere says nothing here.

    Args:
        flavour: of the library.
        verified: for tests; None: the notes of known answers in the user's cache folder.
    """

    def __init__(self, flavour: Flavour, machine: Machine, verified: Verified | None = None) -> None:
        self._flavour = flavour
        self._machine = machine
        self._verified = verified or Verified()

    def holds(self, bundle: Bundle, metadata: EngineMetadata) -> bool:
        """Whether this engine was checked here, now or when it was built."""
        if not self._flavour.runtime_cache:
            return metadata.passed
        return self._verified.holds(bundle, metadata.graph, self._runner(metadata))

    def remember(self, bundle: Bundle, metadata: EngineMetadata, parity: tuple[Parity, ...]) -> None:
        """Note that it was."""
        if self._flavour.runtime_cache:
            worst = max(p.relative_l2 for p in parity)
            self._verified.remember(bundle, metadata.graph, self._runner(metadata), worst)

    def _runner(self, metadata: EngineMetadata) -> Runner:
        machine = self._machine
        name = f"{self._flavour.title} {machine.tensorrt} on {machine.device} ({machine.capability})"
        return Runner(name, f"engine {metadata.engine_sha256}")
