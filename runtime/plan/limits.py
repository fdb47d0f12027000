"""What a call may ask for, what it may use, and for how long."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from freeprompt.contract.errors import LimitError, UsageError
from freeprompt.contract.manifest import LatentSpec

# Names of the whole numbers and the least of each.
_LEAST = {
    "rows": 3,
    "record_bytes": 0,
    "device_record_bytes": 0,
    "total_record_bytes": 0,
    "memory_bytes": 1,
    "pixels": 1,
    "steps": 1,
    "prompts": 1,
    "prompt_length": 0,
}
_OPTIONAL = {"device_record_bytes", "memory_bytes", "pixels", "steps"}


@dataclass(frozen=True)
class Limits:
    """What a call may ask for and use. What exceeds ``rows`` or a number of recorded bytes is done in another way, with
    the same result; what exceeds any other limit is refused, before anything is computed where that can be known.

    Attributes:
        rows: most rows of one evaluation; more targets than fit are edited in chunks.
        record_bytes: most bytes of recorded rows that one inversion holds; steps that do not fit are given a
            source row instead.
        device_record_bytes: most bytes of these that are in the device's memory; what is beyond waits in page-locked
            host memory and comes back while earlier steps run. Two passes (of ``record_size.record_rows`` rows) are on
            the device in any case. None: all of them. Says nothing on the CPU.
        total_record_bytes: most bytes of recorded rows of all living inversions that an editor has worked on. Beyond
            it the rows of the least recently used are dropped, and recorded anew by its next edit. Those that were
            recorded while inverting (``record="inversion"``) cannot be made anew: they stay, and leave less for others.
            Four times ``record_bytes``: some twenty pictures at Stable Diffusion 1.5's size.
        memory_bytes: most bytes that a call may be estimated to need (``runtime.plan.memory``). None: what the machine
            has.
        pixels: most pixels, width times height, of the size worked at. None: 64 times the native area.
        steps: most DDIM steps. None: as many as the training schedule has.
        prompts: most target prompts of one call. They are edited in chunks, but every result is held: more in one call
            are a mistake, or not meant for one call.
        prompt_length: most characters of a prompt. A text encoder reads some hundred at most, and the tokenizer takes
            a second for a million.
        seconds: most seconds that a call may take from when its turn comes, looked at before each step and each pass
            that records: a step that has begun is ended. None: any.
    """

    rows: int = 8
    record_bytes: int = 2 << 30
    device_record_bytes: int | None = None
    total_record_bytes: int = 8 << 30
    memory_bytes: int | None = None
    pixels: int | None = None
    steps: int | None = None
    prompts: int = 256
    prompt_length: int = 10_000
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                said = "max_rows" if name == "rows" else name
                raise UsageError(f"{said} must be a whole number from {least} on, not {value!r}")
        seconds = self.seconds
        if seconds is not None and not (
            isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and 0 < seconds < math.inf
        ):
            raise UsageError(f"seconds must be a number above 0, not {seconds!r}")

    def check(
        self,
        spec: LatentSpec,
        steps: int,
        size: tuple[int, int],
        targets: Sequence[str] = (),
        texts: Sequence[str] = (),
    ) -> None:
        """Refuse what is asked for and exceeds a limit.

        Args:
            spec: of the bundle.
            steps: DDIM steps.
            size: (height, width) of the latents.
            targets: the target prompts.
            texts: every other prompt.

        Raises:
            UsageError: with the number asked for, and the limit.
        """
        for asked, most, what in (
            (steps, self.steps, "steps"),
            (size[0] * size[1] * spec.scale**2, self.pixels, "pixels"),
            (len(targets), self.prompts, "prompts"),
            (max(map(len, (*targets, *texts)), default=0), self.prompt_length, "characters in a prompt"),
        ):
            if most is not None and asked > most:
                raise UsageError(f"{asked} {what} are more than the limit of {most}")


class Deadline:
    """When a call has to have ended.

    Args:
        seconds: from now; None: never.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._start = time.monotonic()

    def check(self) -> None:
        """Raises LimitError if it is over."""
        if self._seconds is not None and time.monotonic() - self._start >= self._seconds:
            raise LimitError(
                f"the time limit of {self._seconds:g} s has passed before the last step; allow more time, or use fewer "
                "steps or prompts, or a smaller size"
            )
