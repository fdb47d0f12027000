"""What a manifest must agree with itself about: it may have been made by hand, with a right checksum."""

from __future__ import annotations

import itertools
import re
import unicodedata
from pathlib import PurePosixPath
from typing import Any

import msgspec

from freeprompt.contract.graphs import RECORDING_GRAPHS, manifest_to_signatures
from freeprompt.contract.manifest import Manifest

# Bounds far above any model's: a damaged number is an error here and not an allocation of terabytes later.
MAX_NATIVE_PIXELS = 64 << 20
MAX_LAYERS = 1024
MAX_TIMESTEPS = 1 << 16
MAX_TOKENIZER_BYTES = 64 << 20
_TEXT_CHARACTERS = 2000
_NAME_BYTES = 255
# Below this a coefficient of the schedule would leave single precision.
_LEAST_ALPHA = 1e-20
# Graphs name files of engines.
_GRAPH_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
# What a bundle holds besides the files that its manifest lists.
_RESERVED = ("manifest.json", "engines")


def contradiction(manifest: Manifest) -> str | None:
    """What is wrong with it; None: nothing."""
    for check in (
        _wrong_text,
        _wrong_latents,
        _wrong_layers,
        _wrong_files,
        _wrong_schedule,
        _wrong_graphs,
        _wrong_answers,
    ):
        problem = check(manifest)
        if problem is not None:
            return problem
    return None


def _wrong_text(manifest: Manifest) -> str | None:
    """Names are printed and become names of files: no line ends, no escapes, nothing that turns the writing round."""
    values = msgspec.to_builtins(manifest)
    del values["notes"]
    for text in _texts(values):
        if not text.isprintable() or len(text) > _TEXT_CHARACTERS:
            return f"{text[:60]!a} has characters that cannot be printed, or too many"
    return None


def _texts(value: Any) -> list[str]:
    found: list[str] = []
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            found.append(each)
        elif isinstance(each, dict):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, (list, tuple)):
            waiting += each
    return found


def _wrong_latents(manifest: Manifest) -> str | None:
    latents = manifest.latents
    block = latents.scale * latents.multiple
    if latents.height % block or latents.width % block:
        return f"the native size {latents.width}x{latents.height} is not a multiple of {block}"
    if latents.height * latents.width > MAX_NATIVE_PIXELS:
        return f"the native size {latents.width}x{latents.height} is above {MAX_NATIVE_PIXELS} pixels"
    if not 1e-9 <= latents.scaling_factor <= 1e9:
        return f"scaling_factor is {latents.scaling_factor:g}, no factor of an autoencoder"
    return None


def _wrong_layers(manifest: Manifest) -> str | None:
    numbers = [layer.number for layer in manifest.layers]
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        return "layers must be numbered 1, 2, 3, ..."
    if max(len(numbers), manifest.cross_layers) > MAX_LAYERS:
        return f"it has more than {MAX_LAYERS} attention layers"
    latents = manifest.latents
    height, width = latents.height // latents.scale, latents.width // latents.scale
    for layer in manifest.layers:
        # The side of what the level leaves must be whole at every size that the model takes.
        if layer.level > 20 or latents.multiple % 2**layer.level:
            return f"layer {layer.number} is at level {layer.level}, sizes are multiples of {latents.multiple} latents"
        tokens = height * width // 4**layer.level
        if layer.tokens != tokens:
            return f"layer {layer.number} has {layer.tokens} tokens, level {layer.level} has {tokens}"
        if layer.channels % layer.heads:
            return f"layer {layer.number} has {layer.channels} channels for {layer.heads} heads"
    return None


def _wrong_files(manifest: Manifest) -> str | None:
    listed = {file.path: file for file in manifest.files}
    # What is one file on some systems must not be two on others.
    if len({_folded(path) for path in listed}) != len(manifest.files):
        return "a file is listed twice"
    for path in listed:
        if not _is_inside(path):
            return f"it names {path[:60]!r}, which is not inside the bundle, or not in the shortest way"
        if any(len(part.encode()) > _NAME_BYTES for part in path.split("/")):
            return f"the name {path[:60]!r}... is too long for a file"
        if _folded(path).split("/")[0] in _RESERVED:
            return f"{path} cannot be a file of the model"
    used = [manifest.tokenizer, *(file for graph in manifest.graphs.values() for file in graph.files)]
    if manifest.known_answers is not None:
        used.append(manifest.known_answers)
    for path in used:
        if path not in listed:
            return f"{path} is used but not listed in files"
    if len(set(used)) != len(used):
        twice = next(path for path in used if used.count(path) > 1)
        return f"{twice} is used for two things"
    if not manifest.tokenizer.endswith(".json"):
        return f"{manifest.tokenizer} cannot be a tokenizer, which is JSON"
    if listed[manifest.tokenizer].bytes > MAX_TOKENIZER_BYTES:
        return f"the tokenizer {manifest.tokenizer} is above {MAX_TOKENIZER_BYTES} bytes"
    return None


def _is_inside(path: str) -> bool:
    pure = PurePosixPath(path)
    return (
        str(pure) == path
        and not pure.is_absolute()
        and not {"..", "."} & {*pure.parts, path}
        and not {*"\\:"} & {*path}
    )


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _wrong_schedule(manifest: Manifest) -> str | None:
    scheduler = manifest.scheduler
    alphas = scheduler.alphas_cumprod
    if len(alphas) > MAX_TIMESTEPS:
        return f"alphas_cumprod has {len(alphas)} timesteps, more than {MAX_TIMESTEPS}"
    if any(later >= earlier for earlier, later in itertools.pairwise(alphas)):
        return "alphas_cumprod must fall strictly"
    # Zero at the end is a schedule of its own kind; ``Schedule`` knows where it can be used.
    if min(alphas[:-1]) < _LEAST_ALPHA or 0.0 < alphas[-1] < _LEAST_ALPHA:
        return f"alphas_cumprod falls below {_LEAST_ALPHA}"
    if scheduler.steps_offset >= len(alphas):
        return f"steps_offset {scheduler.steps_offset} is past the schedule's {len(alphas)} timesteps"
    return None


def _wrong_graphs(manifest: Manifest) -> str | None:
    """Compare what graphs take and give with what is fed to them and read."""
    expected = manifest_to_signatures(manifest)
    for name in expected:
        if name not in manifest.graphs:
            return f"the model has no graph {name}, which its layers need"
    for name in RECORDING_GRAPHS:
        if name in manifest.graphs and name not in expected:
            return f"there is a graph {name}, and no layer is recordable"
    for name in manifest.graphs:
        if not _GRAPH_NAME.fullmatch(name):
            return f"{name[:60]!r} cannot be a graph's name"
    for name, (inputs, outputs) in expected.items():
        graph = manifest.graphs[name]
        for what, have, want in (("inputs", graph.inputs, inputs), ("outputs", graph.outputs, outputs)):
            if [tensor.name for tensor in have] != [tensor.name for tensor in want]:
                names = (", ".join(tensor.name[:40] for tensor in tensors[:40]) for tensors in (have, want))
                return "graph {} has the {} {}; the model's constants need {}".format(name, what, *names)
            for one, other in zip(have, want):
                if one != other:
                    return f"graph {name} has {str(one)[:200]}, the model's constants need {other}"
    return None


def _wrong_answers(manifest: Manifest) -> str | None:
    """Compare the tensors of known answers with what the graphs take and give."""
    for name, graph in manifest.graphs.items():
        answer = graph.known_answer
        if answer is None:
            continue
        if manifest.known_answers is None:
            return f"graph {name} has a known answer, but there is no file of known answers"
        for specs, tensors in ((graph.inputs, answer.inputs), (graph.outputs, answer.outputs)):
            odd = {spec.name for spec in specs} ^ tensors.keys()
            if odd:
                return f"graph {name} has {min(odd)}, its known answer has not, or the other way round"
    return None
