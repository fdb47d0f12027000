"""Messages of the API in the words of the command line."""

from __future__ import annotations

import re

# Arguments of the API whose options have other names; "replace_fraction" is no word of ordinary text.
OPTIONS = {
    "replace_fraction": "--replace-fraction",
    "replace_layers": "--replace-layers",
    "negative_prompt": "--negative-prompt",
    "max_rows": "--max-rows",
    "record_bytes": "--record-megabytes",
    "device_record_bytes": "--device-record-megabytes",
}
_NAMES = re.compile(
    r"\b(?P<option>fit|record)='(?P<value>\w+)'"
    # Ordinary words are arguments where a message begins by them.
    r"|^(?P<argument>guidance|steps|seed|size)(?= must )"
    # What a user wrote is quoted, and stays as it is.
    r"|(?<!\w)(?:'[^']*'|\"[^\"]*\")"
    rf"|(?<![\w./-])(?:{'|'.join(OPTIONS)})(?![\w/-]|\.\w)"
)


def in_options(message: str) -> str:
    """A message of the API in the words of the command line: "replace_fraction must be ..." names the option."""

    def name(match: re.Match[str]) -> str:
        if match["option"]:
            return f"--{match['option']} {match['value']}"
        if match["argument"]:
            return f"--{match['argument']}"
        return OPTIONS.get(match[0], match[0])

    return _NAMES.sub(name, message)
