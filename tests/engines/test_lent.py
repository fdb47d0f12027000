"""The driver for a lent machine, on this one: uploads, calls that end in time, going on, giving up, coming back."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import lent, lent_plan
from benchmarks.gpu.lent import ATTEMPTS, Driver
from benchmarks.gpu.lent_machine import preparing, set_up, take
from benchmarks.gpu.lent_plan import ORT, PLAIN, SESSIONS, TRT, Part, Place

SESSION = "onnxruntime"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "base", tmp_path / "given", tmp_path / "back", dry=True)


class Scripted(Place):
    """A place whose parts are small programs: name -> code."""

    scripts: dict[str, str]

    def command(self, part: Part) -> tuple[list[str], dict[str, str]]:
        code = self.scripts.get(part.name, "")
        return [sys.executable, "-c", f"import json, pathlib, time\nout = {str(self.results)!r}\n{code}"], {}


def scripted(place: Place, **scripts: str) -> Scripted:
    made = Scripted(place.base, place.given, place.back, dry=True)
    object.__setattr__(made, "scripts", scripts)
    return made


def ready(place: Place) -> None:
    """What the preparation makes."""
    for path in place.made():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    place.base.joinpath("prepared.json").write_text(
        json.dumps({part.key: {"done": True, "failures": 0} for part in place.preparation(SESSION)})
    )


def state(place: Place) -> Any:
    return json.loads((place.results / f"state-{SESSION}.json").read_text())


def test_upload_prepare_run(
    place: Place,
    tiny_bundle: Path,
    tiny_checkpoint: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A session of the dry run with one part; the export is brought along."""
    monkeypatch.setattr(lent_plan, "DRY", lent_plan.DRY[:1])
    shutil.copytree(tiny_bundle, place.work / "bundle")
    shutil.copytree(tiny_checkpoint, place.work / "checkpoint")
    (place.given / "ort").mkdir(parents=True)
    (place.given / "ort" / "000").write_bytes(b"first")
    Driver(place, SESSION).upload()
    assert (place.base / "in" / "ort" / "000").read_bytes() == b"first"
    assert preparing(place)
    end = time.monotonic() + 120
    while preparing(place) and time.monotonic() < end:
        Driver(place, SESSION).upload()  # the next upload comes while it works, and does not begin it again
        time.sleep(0.5)
    assert (place.base / "prepare.log").read_text().count("references, plain: done") == 1
    assert Driver(place, SESSION).run()
    assert "left: nothing" in capfd.readouterr().out
    found = json.loads((place.back / "gpu_check.json").read_text())
    assert found["parts"]["references"]["edit"] == {"steps": 10}
    assert any("packages" in facts for facts in found["parts"]["machine"].values())
    assert found["macs_per_row"] > 0
    names = {path.name for path in place.back.iterdir()}
    assert names == {"gpu_check.json", "out.tgz", "log.txt", "prepare.log"}, "eight files come back at most"
    # On another machine, from what came back: what was measured stays, what was prepared is made again.
    other = Place(place.base.with_name("other"), place.given, place.back.with_name("back2"), dry=True)
    shutil.copy(place.back / "out.tgz", other.given / "out.tgz")
    driver = Driver(other, SESSION)
    take(other)
    assert (other.results / "part-machine.json").read_bytes() == (place.results / "part-machine.json").read_bytes()
    assert not driver._prepared() and all(driver._settled(part) for part in other.parts(SESSION))


def test_a_call_ends_in_time_and_the_next_goes_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lent, "LEAST_SECONDS", 1.0)
    slow = scripted(place, **{"machine": "time.sleep(60)"})
    ready(slow)
    start = time.monotonic()
    assert not Driver(slow, SESSION, seconds=3).run()
    assert time.monotonic() - start < 15
    assert state(slow)["machine, plain"] == {"done": False, "failures": 0}, "cut off is not failed"
    slow.scripts["machine"] = ""
    assert Driver(slow, SESSION).run()
    assert state(slow)["machine, plain"]["done"]


def test_a_part_that_fails_is_left_alone_after_a_while(place: Place) -> None:
    """By its exit code, or by an item that is an error; the others run."""
    broken = scripted(
        place,
        **{
            "machine": "raise SystemExit(3)",
            "ort-cpu": "pathlib.Path(out, 'part-ort-cpu.json').write_text(json.dumps({'a': {'error': 'no memory'}}))",
        },
    )
    ready(broken)
    for call in range(1, ATTEMPTS + 1):
        assert Driver(broken, SESSION).run() == (call == ATTEMPTS)
        assert state(broken)["machine, plain"]["failures"] == call
        assert state(broken)["ort-cpu, plain"]["failures"] == call
        assert state(broken)["profile, plain"]["done"]
    assert Driver(broken, SESSION).run()
    assert state(broken)["machine, plain"]["failures"] == ATTEMPTS
    log = (broken.back / "log.txt").read_text()
    assert "machine, plain: code 3" in log and "a: no memory" in log


def test_a_kit_is_put_together_when_its_last_part_has_come(place: Place) -> None:
    (place.given / "tools").mkdir(parents=True)
    (place.given / "tools" / "parts").write_text('mkdir -p "$3"; cat "$2"/[0-9]* > "$3/whole"\n')
    for number, name in enumerate(("000", "001")):
        shutil.rmtree(place.given / "ort", ignore_errors=True)
        (place.given / "ort").mkdir()
        (place.given / "ort" / name).write_text(name)
        if number:
            (place.given / "ort" / "SHA256").write_text("x")
        Driver(place, SESSION)
        take(place)
        set_up(place)
        assert (place.base / "ort").is_dir() == bool(number)
    assert (place.base / "ort" / "whole").read_text() == "000001"


def test_which_python_finds_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path, tmp_path, tmp_path)
    path = {python: place.command(Part("x", python, 1))[1]["PYTHONPATH"].split(":") for python in (PLAIN, ORT, TRT)}
    assert path[ORT] == [str(tmp_path / "ort"), *path[PLAIN]], "onnxruntime-gpu comes before the image's"
    assert path[TRT] == [str(tmp_path / "view")], "wheels for another Python must not be found"
    assert place.command(Part("x", TRT, 1))[0][0] == str(tmp_path / "trt" / "python")
    for package in ("cudnn", "cu13"):
        (tmp_path / "nvidia" / package / "lib").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path)])
    monkeypatch.setenv("LD_LIBRARY_PATH", "/before")
    libraries = place.command(Part("x", ORT, 1))[1]["LD_LIBRARY_PATH"]
    assert libraries == f"{tmp_path}/nvidia/cu13/lib:{tmp_path}/nvidia/cudnn/lib:/before"
    assert place.command(Part("x", TRT, 1))[1]["LD_LIBRARY_PATH"] == "/before"
    for session, parts in SESSIONS.items():
        assert len({part.key for part in parts}) == len(parts)
        assert all(part.seconds < lent.CALL_SECONDS for part in parts), session


def test_what_comes_back_is_whole(place: Place) -> None:
    ready(place)
    driver = Driver(scripted(place), SESSION)
    driver.run()
    with tarfile.open(place.back / "out.tgz") as tar:
        assert "state-onnxruntime.json" in tar.getnames()
    assert not list(place.back.glob("*.partial"))
