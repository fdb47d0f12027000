"""Which inversions hold recorded rows, and whose are dropped when there are too many."""

from __future__ import annotations

import weakref
from dataclasses import replace

from freeprompt.runtime.plan.limits import Limits
from freeprompt.runtime.plan.records import EXACT, FROM_INVERSION
from freeprompt.runtime.source.inversion import Inversion


class RecordBudget:
    """The living inversions that an editor has worked on, the least recently used first. Keeps none of them alive."""

    def __init__(self) -> None:
        self._used: list[weakref.ref[Inversion]] = []

    def use(self, inversion: Inversion) -> None:
        """Note that an inversion is worked on now."""
        self._used = [*(weakref.ref(other) for other in self._others(inversion)), weakref.ref(inversion)]

    def room(self, inversion: Inversion | None, mode: str, total: int) -> int:
        """Bytes that records of a mode of an inversion may take, once all that can be made anew is dropped.

        Args:
            inversion: None: one that is being made.
            total: bytes of all records together.
        """
        fixed = sum(other.records[FROM_INVERSION].nbytes for other in self._others(inversion))
        if inversion is not None and mode != FROM_INVERSION:
            fixed += inversion.records[FROM_INVERSION].nbytes
        return max(0, total - fixed)

    def limits_for(self, inversion: Inversion | None, mode: str, limits: Limits) -> Limits:
        """The same with the bytes that the records of other inversions leave to this one's; None: one being made."""
        room = self.room(inversion, mode, limits.total_record_bytes)
        return replace(limits, record_bytes=min(limits.record_bytes, room))

    def make_room(self, inversion: Inversion | None, wanted: int, total: int) -> None:
        """Drop records of others, the least recently used first, until ``wanted`` more bytes are within ``total``."""
        others = self._others(inversion)
        held = wanted + sum(other.record_bytes for other in others)
        for other in others:
            if held <= total:
                return
            held -= other.drop_record(EXACT)

    def _others(self, inversion: Inversion | None) -> list[Inversion]:
        living = [reference() for reference in self._used]
        return [other for other in living if other is not None and other is not inversion]
