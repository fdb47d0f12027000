"""A checkpoint of the Hugging Face hub: what its repository holds, and the files of it that are needed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants

from freeprompt.contract.errors import CheckpointError
from freeprompt.export.checkpoint.source import INDEX, Source, check_names, folder_source

# For the one question whether the hub can be reached and has it. The client's timeout does not bound the look-up of
# the host's name.
LOOKUP_SECONDS = 5.0


def hub_source(repo_id: str) -> Source:
    """The source of a repository, of which nothing is fetched yet; offline, what is in the hub client's cache.

    Raises:
        CheckpointError: the hub cannot be reached and nothing is in the cache, the hub has no such repository, or it
            does not hold a diffusers checkpoint.
    """
    if constants.HF_HUB_OFFLINE:
        return _cached(repo_id, "HF_HUB_OFFLINE is set")
    info = _look_up(repo_id)
    if isinstance(info, str):
        return _cached(repo_id, f"the hub ({constants.ENDPOINT}) cannot be reached: {info}")
    names = frozenset(str(file.rfilename) for file in info.siblings or ())
    folder: dict[str, Path] = {}

    def fetch(wanted: Sequence[str]) -> None:
        try:
            path = huggingface_hub.snapshot_download(repo_id, revision=info.sha, allow_patterns=list(wanted))
        except Exception as error:  # whatever the client's HTTP library raises
            raise CheckpointError(
                f"downloading {repo_id} from the hub broke off: {_first_line(error)}; export again to go on"
            ) from error
        folder["path"] = Path(path)

    if INDEX in names:
        fetch([INDEX])
    source = Source(repo_id, folder.get("path", Path(repo_id)), names, fetch)
    check_names(source)
    return source


def _look_up(repo_id: str) -> Any:
    """What the hub says of the repository, or in words why it cannot be asked."""
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(huggingface_hub.HfApi().model_info(repo_id, timeout=LOOKUP_SECONDS))
        except Exception as error:  # whatever the client's HTTP library raises
            answer.append(error)

    thread = threading.Thread(target=ask, name="hub", daemon=True)
    thread.start()
    thread.join(LOOKUP_SECONDS)
    if not answer:
        return f"no answer within {LOOKUP_SECONDS:.0f} s"
    if not isinstance(answer[0], Exception):
        return answer[0]
    if getattr(answer[0], "response", None) is None:
        return _first_line(answer[0])
    raise CheckpointError(
        f"the hub has no checkpoint {repo_id} that can be read: {_first_line(answer[0])}; if it is private or asks for "
        "consent, consent on its page and run: hf auth login"
    ) from answer[0]


def _cached(repo_id: str, reason: str) -> Source:
    index = huggingface_hub.try_to_load_from_cache(repo_id, INDEX)
    if isinstance(index, str):
        found = folder_source(str(Path(index).parent))
        return Source(repo_id, found.folder, found.names)
    raise CheckpointError(
        f"there is no folder {repo_id}, and as a hub id it cannot be fetched, since {reason}; where there is a network "
        f"run: hf download {repo_id} --local-dir {repo_id.rpartition('/')[2]}, bring the folder here and export that"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
