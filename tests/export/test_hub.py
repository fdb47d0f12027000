"""What export asks of the hub: nothing for a folder, one short question for an id, and only the files it needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from freeprompt.contract.errors import CheckpointError
from freeprompt.export.checkpoint import hub
from freeprompt.export.checkpoint.load import load_checkpoint
from tests.export.checkpoint_edits import UNET

# No connection, and no look-up of a name either, whatever the environment says of being online.
OFFLINE = """
import os, socket, sys
for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
    os.environ.pop(name, None)
def refuse(*arguments, **keywords):
    print("asked for", *arguments, file=sys.stderr)
    os._exit(3)
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
from freeprompt.export.checkpoint.load import load_checkpoint
from huggingface_hub import constants
assert constants.HF_HUB_DISABLE_TELEMETRY
print(load_checkpoint(sys.argv[1]).name)
"""


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def answer(monkeypatch: pytest.MonkeyPatch, reply: Any) -> None:
    """The hub's reply to the one question: an error to raise, a function, or the files of a repository."""

    def model_info(self: object, repo_id: str, timeout: float) -> Any:
        assert timeout <= 5
        if callable(reply):
            reply()
        if isinstance(reply, Exception):
            raise reply
        return SimpleNamespace(sha="f" * 40, siblings=[SimpleNamespace(rfilename=name) for name in reply])

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)


def test_a_folder_is_loaded_without_any_connection(tiny_checkpoint: Path) -> None:
    done = subprocess.run([sys.executable, "-c", OFFLINE, tiny_checkpoint], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{tiny_checkpoint}\n"), done.stderr


def test_what_a_user_says_of_telemetry_stays() -> None:
    code = "import os, freeprompt.export; print(os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    for given in ("0", "1"):
        environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": given}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        assert done.stdout == f"{given}\n"


def test_what_looks_like_a_folder_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, online: None) -> None:
    """A wrong path is told at once and never asked of the hub."""
    answer(monkeypatch, AssertionError("asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in ("./sd", "../sd/x", "/none/sd", "models/sd", "sd", "a/b/c", "a/b.safetensors", "~/sd", "a\\b", "a b/c"):
        with pytest.raises(CheckpointError, match="there is no such folder"):
            load_checkpoint(name)


def test_offline_by_choice() -> None:
    with pytest.raises(CheckpointError, match=r"HF_HUB_OFFLINE is set; .* hf download owner/sd --local-dir sd"):
        load_checkpoint("owner/sd")


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, online: None) -> None:
    answer(monkeypatch, ConnectionError("[Errno -2] Name or service not known"))
    with pytest.raises(CheckpointError, match=r"huggingface.co\) cannot be reached: \[Errno -2\] Name or service"):
        load_checkpoint("owner/sd")


@pytest.fixture
def silence() -> Iterator[threading.Event]:
    """A hub that does not answer before the test is over."""
    over = threading.Event()
    yield over
    over.set()


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, online: None, silence: threading.Event) -> None:
    monkeypatch.setattr(hub, "LOOKUP_SECONDS", 0.01)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **k: silence.wait())
    with pytest.raises(CheckpointError, match="cannot be reached: no answer within"):
        load_checkpoint("owner/sd")


def test_a_hub_that_says_no(monkeypatch: pytest.MonkeyPatch, online: None) -> None:
    refusal = OSError("401 Client Error.\nRepository Not Found")
    refusal.response = object()  # type: ignore[attr-defined]
    answer(monkeypatch, refusal)
    with pytest.raises(CheckpointError, match=r"owner/sd that can be read: 401 Client Error\.; .* hf auth"):
        load_checkpoint("owner/sd")


def test_only_what_is_needed_is_fetched(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, online: None
) -> None:
    files = [path.relative_to(tiny_checkpoint).as_posix() for path in tiny_checkpoint.rglob("*") if path.is_file()]
    more = [
        "v1-5.ckpt",
        "unet/diffusion_pytorch_model.bin",
        UNET.replace(".safe", ".fp16.safe"),
        "safety_checker/x.bin",
    ]
    answer(monkeypatch, [*files, *more])
    fetched: list[str] = []

    def snapshot_download(repo_id: str, revision: str, allow_patterns: list[str]) -> str:
        for name in allow_patterns:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tiny_checkpoint / name, tmp_path / name)
            fetched.append(name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load_checkpoint("owner/sd").name == "owner/sd"
    assert set(fetched) == set(files)
    assert fetched.index("unet/config.json") < fetched.index(UNET), "weights last, when they are known to be wanted"


def test_a_repository_of_another_kind_is_not_fetched(monkeypatch: pytest.MonkeyPatch, online: None) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("fetched"))
    answer(monkeypatch, ["README.md", "v1-5-pruned.safetensors"])
    with pytest.raises(CheckpointError, match=r"no model_index\.json but the file v1-5-pruned\.safetensors"):
        load_checkpoint("owner/sd")


def test_a_download_that_breaks_off(monkeypatch: pytest.MonkeyPatch, online: None) -> None:
    def broken(*_: object, **__: object) -> str:
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    answer(monkeypatch, ["model_index.json"])
    with pytest.raises(CheckpointError, match="broke off: reset by peer; export again to go on"):
        load_checkpoint("owner/sd")


def test_what_is_in_the_cache_is_used_offline(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--owner--sd"
    shutil.copytree(tiny_checkpoint, repository / "snapshots" / ("f" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("f" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert load_checkpoint("owner/sd").name == "owner/sd"
