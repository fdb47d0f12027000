"""Drives gpu_check on a lent machine: bare, without network, ten minutes a call, a handful of files back.

    python3 -m benchmarks.gpu.lent upload SESSION     with each upload: keeps what came, prepares in the background
    python3 -m benchmarks.gpu.lent run SESSION        the parts in order, as far as the call allows; call it again

From the repository's root. SESSION is "onnxruntime" or "tensorrt": one machine's time does not hold both (README.md
has the minutes). Needs nothing but Python 3.12; everything is under /tmp/lent there. After each part $OUT holds
gpu_check.json (all parts), out.tgz (the same with the references: carried as .kit/out.tgz, a later session goes on from
it) and the logs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Optional

from benchmarks.gpu.lent_machine import preparing, send, set_up, take
from benchmarks.gpu.lent_plan import REPORT, ROOT, SESSIONS, Part, Place

# Of a call's ten minutes: the rest is for the last copies, and for a part that takes a moment to end.
CALL_SECONDS = 560.0
# A part that has failed this often is left alone.
ATTEMPTS = 2
# No part is begun with less time left than this, or than it gets.
LEAST_SECONDS = 60.0


class Driver:
    """One call on one machine."""

    def __init__(self, place: Place, session: str, seconds: float = CALL_SECONDS) -> None:
        self.place = place
        self.session = session
        self._end = time.monotonic() + seconds
        for folder in (place.base, place.results, place.work, place.back):
            folder.mkdir(parents=True, exist_ok=True)
        # What a machine has prepared is lost with it; what was measured is not measured again on the next.
        self._states = {True: place.base / "prepared.json", False: place.results / f"state-{session}.json"}

    def upload(self) -> None:
        """Keep what was carried, and let the preparation begin once the wheels are there."""
        take(self.place)
        set_up(self.place)
        if (self.place.base / "site").is_dir() and not preparing(self.place) and not self._prepared():
            command = [sys.executable, "-m", "benchmarks.gpu.lent", "prepare", self.session]
            command += ["--base", str(self.place.base), "--seconds", "1600"]
            command += ["--dry-run"] if self.place.dry else []
            with (self.place.base / "prepare.log").open("ab") as log:
                # A process session of its own: it goes on when the call has returned. Its code is the copy's.
                view = self.place.base / "view"
                process = subprocess.Popen(command, cwd=view, stdout=log, stderr=log, start_new_session=True)
            (self.place.base / "prepare.pid").write_text(str(process.pid))
            process.returncode = 0  # nobody waits for it
            self._say("preparing in the background")
        came = sorted(str(p.relative_to(self.place.base / "in")) for p in (self.place.base / "in").glob("*/*"))
        self._say(f"here: {' '.join(came)}")
        send(self.place)

    def prepare(self) -> None:
        """Run what of the preparation is not done."""
        for part in self.place.preparation(self.session):
            if not self._settled(part, True):
                self._run(part, preparation=True)

    def run(self) -> bool:
        """Run what is not done, in order, until the call's time is up. True if nothing is left."""
        take(self.place)
        while preparing(self.place):
            if self._left() < LEAST_SECONDS:
                self._say("still preparing; call again")
                send(self.place)
                return False
            time.sleep(1)
        set_up(self.place)
        if not self._prepared():
            self.prepare()
            send(self.place)
        for part in self.place.parts(self.session):
            if self._left() < min(LEAST_SECONDS, part.seconds):
                break
            if not self._settled(part):
                self._run(part)
                send(self.place)
        self._run(REPORT, printed=True)
        send(self.place)
        left = [part.key for part in self.place.parts(self.session) if not self._settled(part)]
        self._say(f"left: {'; '.join(left) or 'nothing'}")
        return not left

    def _prepared(self) -> bool:
        return all(path.exists() for path in self.place.made()) and all(
            self._settled(part, True) for part in self.place.preparation(self.session)
        )

    def _left(self) -> float:
        return self._end - time.monotonic()

    def _state(self, preparation: bool) -> dict[str, Any]:
        path = self._states[preparation]
        state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return state

    def _settled(self, part: Part, preparation: bool = False) -> bool:
        """Done, or failed often enough."""
        entry = self._state(preparation).get(part.key, {})
        return bool(entry.get("done")) or entry.get("failures", 0) >= ATTEMPTS

    def _run(self, part: Part, preparation: bool = False, printed: bool = False) -> None:
        command, environment = self.place.command(part)
        seconds = max(1.0, min(part.seconds, self._left()))
        start, cut = time.monotonic(), False
        with self.place.log.open("ab") as log:
            log.write(f"\n== {part.key}, at most {seconds:.0f} s\n".encode())
            log.flush()
            try:
                # Not in the repository's root: its folder "freeprompt" would hide the view.
                code = subprocess.run(
                    command,
                    env=environment,
                    cwd=self.place.base,
                    stdout=None if printed else log,
                    stderr=log,
                    timeout=seconds,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                code, cut = 124, True
            except OSError as error:
                log.write(f"{error}\n".encode())
                code = 127
        errors = self._errors(part)
        state = self._state(preparation)
        entry = state.setdefault(part.key, {"done": False, "failures": 0})
        entry["done"] = code == 0 and not errors
        entry["failures"] += not entry["done"] and not cut  # what was cut off has not failed
        self._states[preparation].write_text(json.dumps(state, indent=1) + "\n")
        verdict = "cut off" if cut else f"code {code}" if code else f"{len(errors)} failed" if errors else "done"
        self._say(f"{part.key}: {verdict}, {time.monotonic() - start:.0f} s")
        for line in errors[:3]:
            self._say(f"  {line[:200]}")

    def _errors(self, part: Part) -> list[str]:
        path = self.place.results / f"part-{part.name}.json"
        items = json.loads(path.read_text()) if path.exists() else {}
        return [f"{name}: {value['error']}" for name, value in items.items() if "error" in value]

    def _say(self, line: str) -> None:
        print(line, flush=True)
        with self.place.log.open("a") as log:
            log.write(f"{line}\n")


def main(arguments: Optional[list[str]] = None) -> int:
    """Do what one call asks for; 0 also where something is left, which is said in the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("upload", "prepare", "run"))
    parser.add_argument("session", choices=tuple(SESSIONS))
    parser.add_argument("--base", type=Path, default=Path("/tmp/lent"), help="everything that is made")
    parser.add_argument("--given", type=Path, default=ROOT / ".kit", help="what the upload carried")
    parser.add_argument("--seconds", type=float, default=CALL_SECONDS, help="of this call")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on this CPU, in this Python")
    options = parser.parse_args(arguments)
    back = Path(os.environ.get("OUT") or options.base / "back")
    driver = Driver(Place(options.base, options.given, back, options.dry_run), options.session, options.seconds)
    {"upload": driver.upload, "prepare": driver.prepare, "run": driver.run}[options.verb]()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
