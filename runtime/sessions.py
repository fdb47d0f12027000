"""The open sessions of one bundle on one backend."""

from __future__ import annotations

from dataclasses import dataclass, field

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.session import Backend, Session


@dataclass
class Graphs:
    """Opens each graph when it is first asked for and keeps it."""

    bundle: Bundle
    backend: Backend
    _open: dict[str, Session] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Session:
        if name not in self._open:
            self._open[name] = self.backend.open(self.bundle, name)
        return self._open[name]
