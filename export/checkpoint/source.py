"""What a checkpoint's folder holds, by the names of its files, and which of them are the weights of a part."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freeprompt.contract.errors import CheckpointError

INDEX = "model_index.json"
# Of each part with weights, what its files are called before the suffix.
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
# Far above any configuration's; a file of gigabytes is no configuration.
_MAX_JSON_BYTES = 64 << 20


@dataclass(frozen=True)
class Source:
    """A checkpoint's files.

    Attributes:
        name: as it was asked for.
        folder: where the files are, or will be once they are fetched.
        names: of every file in the folder and in the folders in it, with forward slashes.
        fetch: brings files there by name; a folder on this machine needs none.
    """

    name: str
    folder: Path
    names: frozenset[str]
    fetch: Callable[[Sequence[str]], None] = lambda names: None

    def below(self, part: str) -> list[str]:
        """Names of the files in the folder ``part``."""
        return sorted(name for name in self.names if name.startswith(f"{part}/"))

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in the file ``name``.

        Raises:
            CheckpointError: it is not there, or is no JSON object.
        """
        if name not in self.names:
            raise CheckpointError(f"{self.name} has no {name}: copy the checkpoint again, whole")
        path = self.folder / name
        try:
            if path.stat().st_size > _MAX_JSON_BYTES:
                raise ValueError(f"it has {path.stat().st_size} bytes")
            value = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(value, dict):
                raise ValueError("it holds no object")
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise CheckpointError(f"{name} of {self.name} cannot be read: {reason}") from error
        return value


@dataclass(frozen=True)
class Weights:
    """The weights of a part: safetensors files, and for sharded ones the index that says what is where."""

    part: str
    files: tuple[str, ...]
    index: str | None = None
    variant: str | None = None


def folder_source(name: str) -> Source:
    """The source of a diffusers folder on this machine.

    Raises:
        CheckpointError: it is a single file, or a folder of something else.
    """
    path = Path(name)
    if path.is_file():
        raise CheckpointError(_single_file(name, path.name, path.stem))
    try:
        names = {child.name for child in path.iterdir() if child.is_file()}
        for child in path.iterdir():
            if child.is_dir():
                names |= {f"{child.name}/{file.name}" for file in child.iterdir() if file.is_file()}
    except OSError as error:
        raise CheckpointError(f"cannot read the folder {name}: {error.strerror}") from error
    source = Source(name, path, frozenset(names))
    check_names(source)
    return source


def check_names(source: Source) -> None:
    """Raises CheckpointError, with what to do, where the files are not those of a diffusers checkpoint."""
    if INDEX in source.names:
        return
    top = sorted(name for name in source.names if "/" not in name)
    singles = [name for name in top if name.endswith(SINGLE_FILES) and not is_lora(name)]
    if not source.names:
        reason = f"it is empty; expected {INDEX} and a folder for each part"
    elif "manifest.json" in top and "tokenizer.json" in top:
        reason = "it is a bundle, which is what export makes"
    elif (source.folder.parent / INDEX).is_file():
        reason = f"it is one part of a checkpoint; give the folder above it, {source.folder.parent}"
    elif singles:
        file = f"{source.name}/{singles[0]}"
        reason = f"it has no {INDEX} but the file {singles[0]}. {_single_file(file, singles[0], source.folder.name)}"
    elif any(is_lora(name) or name.startswith("adapter_") for name in top):
        reason = f"it has no {INDEX} but a LoRA; load that into its checkpoint, call fuse_lora() and "
        reason += "unload_lora_weights(), save the pipeline and export what was saved"
    else:
        reason = f"it has no {INDEX}, which DiffusionPipeline.save_pretrained writes"
    raise CheckpointError(f"{source.name} is not a diffusers checkpoint: {reason}")


def is_lora(name: str) -> bool:
    """Whether a file is called a LoRA; "exploration" is none."""
    return re.search(r"(?<![a-z])lora", name.rpartition("/")[2].lower()) is not None


def _single_file(file: str, name: str, folder: str) -> str:
    if not name.endswith(SINGLE_FILES):
        return f"{file} is a file, not a diffusers folder"
    target = f"{folder}-diffusers"
    trust = "" if name.endswith(".safetensors") else ", which runs what is in the pickle: only if you trust it"
    return (
        f"{file} is a single-file checkpoint and export takes a diffusers folder. Convert it (diffusers fetches the "
        f'configuration from the hub{trust}): python -c "from diffusers import StableDiffusionPipeline as P; '
        f'P.from_single_file({file!r}).save_pretrained({target!r})" and export {target}'
    )


def find_weights(source: Source, part: str, variant: str | None) -> Weights:
    """The files of a part's weights: of ``variant`` where the part has it, else those without; without a variant asked
    for, the only variant where there are no others.

    Raises:
        CheckpointError: it has none as safetensors, or several variants and none was asked for.
    """
    names = source.below(part)
    # Longest first, so that an index gives way to one whole file.
    found = {kind: name for name in sorted(names, key=len, reverse=True) if (kind := _variant(name, part)) is not None}
    if variant in found:
        choice = variant
    elif "" in found:
        choice = ""
    elif variant is None and len(found) == 1:
        (choice,) = found
    elif found:
        raise CheckpointError(
            f"the {part} of {source.name} has its weights as the variants {', '.join(sorted(found))} only: choose one "
            "with --variant"
        )
    else:
        raise CheckpointError(_without(source, part, names))
    name = found[choice]
    if not name.endswith(".json"):
        return Weights(part, (name,), None, choice or None)
    source.fetch([name])
    shards = source.json(name).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(file, str) for file in shards.values()):
        raise CheckpointError(f"{name} of {source.name} has no weight_map, which says what is in which file")
    files = tuple(f"{part}/{file}" for file in sorted(set(shards.values())))
    for file in files:
        if file not in source.names:
            raise CheckpointError(
                f"{source.name} has no {file}, which {name} refers to: copy the checkpoint again, whole"
            )
    return Weights(part, files, name, choice or None)


def _variant(name: str, part: str) -> str | None:
    """Which variant a file holds, or a sharded one's index, "" for none; None for any other file."""
    form = rf"{part}/{STEMS[part]}(\.[\w-]+)?\.safetensors(\.index(\.[\w-]+)?\.json)?"
    match = re.fullmatch(form, name)
    if match is None or re.search(r"-\d+-of-\d+$", match[1] or ""):
        return None
    return (match[1] or match[3] or ".")[1:]


def _without(source: Source, part: str, names: list[str]) -> str:
    """Why a part has no weights that can be read."""
    what = f"the {part} of {source.name}"
    if not names:
        return f"{source.name} has no folder {part}: copy the checkpoint again, whole"
    if any(name.endswith(_PICKLES) for name in names):
        return (
            f"{what} has its weights as pickles only ({next(n for n in names if n.endswith(_PICKLES))}), which are "
            'never read, since reading one runs what is in it. If you trust it: python -c "from diffusers import '
            f"StableDiffusionPipeline as P; P.from_pretrained({source.name!r}, use_safetensors=False)"
            f".save_pretrained('{Path(source.name).name}-safetensors', safe_serialization=True)\""
        )
    if any(name.endswith(".msgpack") for name in names):
        return (
            f"{what} has Flax weights only; export reads safetensors. A diffusers that reads Flax (0.35) converts "
            f"them: StableDiffusionPipeline.from_pretrained({source.name!r}, from_flax=True).save_pretrained(...)"
        )
    there = ", ".join(name.partition("/")[2] for name in names[:4])
    return f"{what} has no weights: expected {STEMS[part]}.safetensors, there is {there}"
