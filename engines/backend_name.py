"""Names of backends as users write them: a short one, or ``ort:NAME[,option=value,...]``.

Behind ``ort:`` stands an execution provider of ONNX Runtime, built in or a plug-in; whether it is there is not asked
here, and nothing large is imported, since the command line checks what was typed before anything else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from freeprompt.contract.errors import UsageError

BACKENDS = ("auto", "cpu", "cuda", "tensorrt", "tensorrt-rtx")
PREFIX = "ort:"
# Short names that stand for a provider.
_SHORT = ("cpu", "cuda")
_RENAMED = {
    "ort-tensorrt": "it is called ort:tensorrt now",
    "cuda-graph": "use cuda, or tensorrt, which captures its steps as CUDA graphs",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_DEVICE = re.compile(r"(cpu|gpu|npu)(:\d{1,3})?")
# Told to freeprompt; every other option is the provider's own.
_LIBRARY, _CHOICE = "library", "device"


@dataclass(frozen=True)
class ProviderSpec:
    """An execution provider of ONNX Runtime by name.

    Attributes:
        name: as it was written.
        options: the provider's own, names and values, in the order they were written.
        device: which of a plug-in's devices, "gpu" or "gpu:1" (the second); "": the first that it lists.
        library: path of a plug-in's shared library; "": NAME is built in, or a plug-in that is installed.
    """

    name: str
    options: tuple[tuple[str, str], ...] = ()
    device: str = ""
    library: str = ""

    @property
    def key(self) -> str:
        """The name without what people write differently: "OpenVINOExecutionProvider" and "openvino" are one."""
        return name_to_key(self.name)

    def __str__(self) -> str:
        """The backend's name: "cpu", "cuda", "ort:tensorrt", "ort:openvino,device=gpu"."""
        chosen = [(name, value) for name, value in ((_CHOICE, self.device), (_LIBRARY, self.library)) if value]
        if self.key in _SHORT and not chosen and not self.options:
            return self.key
        return PREFIX + ",".join((self.name.lower(), *(f"{name}={value}" for name, value in (*chosen, *self.options))))

    @classmethod
    def parse(cls, text: str) -> ProviderSpec:
        """Read ``NAME[,option=value,...]``; a value that begins with { or [ is JSON, and may hold commas.

        Raises:
            UsageError: not of this form, or an option is there twice.
        """
        name, comma, rest = text.partition(",")
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{PREFIX + text!r} names no execution provider: expected ort:NAME[,option=value,...], as ort:openvino"
            )
        found: dict[str, str] = {}
        for option, value in _split(name, rest) if comma else ():
            if option in found:
                raise UsageError(f"option {option!r} of ort:{name} is there twice")
            found[option] = value
        device, library = found.pop(_CHOICE, None), found.pop(_LIBRARY, None)
        if device is not None and not _DEVICE.fullmatch(device):
            raise UsageError(f"option device of ort:{name} is cpu, gpu or npu, or gpu:1 for the second, not {device!r}")
        if library == "":
            raise UsageError(f"option library of ort:{name} is the path of a plug-in's shared library")
        return cls(name, tuple(found.items()), device or "", library or "")


def name_to_key(name: str) -> str:
    """What two spellings of one provider's name have in common."""
    return re.sub(r"[-_.]", "", name.lower()).removesuffix("executionprovider")


def parse_backend(name: str) -> ProviderSpec | None:
    """The provider that a backend's name stands for; None: "auto", or one that is not ONNX Runtime's.

    Raises:
        UsageError: unknown, of an earlier version, or malformed.
    """
    if name in _SHORT:
        return ProviderSpec(name)
    if name in BACKENDS:
        return None
    if name.startswith(PREFIX):
        return ProviderSpec.parse(name[len(PREFIX) :])
    if name in _RENAMED:
        raise UsageError(f"there is no backend {name!r} any more: {_RENAMED[name]}")
    raise UsageError(
        f"unknown backend {name!r}; known are {', '.join(BACKENDS)}, and ort:NAME for an execution provider of ONNX "
        "Runtime (freeprompt doctor lists them)"
    )


def _split(name: str, text: str) -> Iterator[tuple[str, str]]:
    """Options and their values."""
    at = 0
    while at <= len(text):
        equals = text.find("=", at)
        option = text[at:equals].strip()
        if equals < 0 or not _NAME.fullmatch(option):
            part = text[at:].partition(",")[0]
            raise UsageError(f"expected option=value of ort:{name}, not {part!r}")
        start = equals + 1
        end = _json_end(name, option, text, start)
        if end is None:
            comma = text.find(",", start)
            end = comma if comma >= 0 else len(text)
        value = text[start:end]
        if not value.isprintable():
            raise UsageError(f"option {option!r} of ort:{name} has characters that cannot be printed: {value!r}")
        yield option, value
        at = end + 1


def _json_end(name: str, option: str, text: str, start: int) -> int | None:
    """Where a value ends that is JSON; None: it is plain."""
    if not text.startswith(("{", "["), start):
        return None
    try:
        _, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"option {option!r} of ort:{name} begins as JSON and is none: {error}") from error
    if end < len(text) and text[end] != ",":
        raise UsageError(f"option {option!r} of ort:{name} has something after its JSON: {text[end:]!r}")
    return end
