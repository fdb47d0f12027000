"""The tokenizer's file: what is no tokenizer, whose work has no bound, what is not used of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BundleError
from freeprompt.runtime.inputs.prompt import load_tokenizer, prompts_to_ids
from freeprompt.runtime.inputs.tokenizer_file import MAX_TOKENIZER_BYTES
from tests.runtime.inputs.test_prompt import TEXTS, expected_ids


def changed(tiny_bundle: Path, **changes: Any) -> bytes:
    data = json.loads((tiny_bundle / "tokenizer.json").read_bytes())
    data.update(changes)
    return json.dumps(data).encode()


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"version": "1.0"}', "\x00"])
def test_what_is_no_tokenizer(text: str) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json is (not a tokenizer|refused)"):
        load_tokenizer(text.encode())


def test_truncation_and_padding_in_the_file_are_not_used(
    tiny_bundle: Path, bundle: Bundle, theirs: CLIPTokenizer
) -> None:
    """They would cut without a warning."""
    data = changed(
        tiny_bundle,
        truncation={
            "direction": "Right",
            "max_length": 4,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        padding={
            "strategy": {"Fixed": 100},
            "direction": "Left",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "a",
        },
    )
    ids = prompts_to_ids(load_tokenizer(data), bundle.manifest.text, TEXTS)
    np.testing.assert_array_equal(ids, expected_ids(theirs, TEXTS))


def replacing(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(key: str, *steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", key: list(steps)}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
DOUBLING = replacing({"String": "a"}, "aa")
TEMPLATE: dict[str, Any] = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}


def split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Removed", "invert": True}


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": sequence("normalizers", *[DOUBLING] * 40)},
        {"normalizer": sequence("normalizers", *[DOUBLING] * 8)},
        {"normalizer": replacing({"String": "a"}, "a" * 1000)},
        {"normalizer": replacing({"Regex": "x*"}, "a" * 1000)},
        {"normalizer": sequence("normalizers", sequence("normalizers", DOUBLING))},
        {"normalizer": sequence("normalizers", *[{"type": "Lowercase"}] * 1000)},
        {"normalizer": {"type": "Prepend", "prepend": "a" * 1000}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
        {"normalizer": sequence("normalizers", *[{"type": "NFKC"}] * 3)},
        {"normalizer": replacing({"Regex": "(a+)+$"}, "b")},
        {"pre_tokenizer": sequence("pretokenizers", *[BYTES] * 30)},
        {"pre_tokenizer": split("(a+)+$")},
        {"pre_tokenizer": split("a+a+a+a+a+a+$")},
        {"pre_tokenizer": split("a{1,1000}")},
        {"pre_tokenizer": split(r"(?<=a)b")},
        {"pre_tokenizer": split("\\p{L}|" * 1000)},
        {"pre_tokenizer": {"type": "Unknown"}},
        {"post_processor": sequence("processors", *[{**TEMPLATE, "single": TEMPLATE["single"] * 2}] * 30)},
        {"post_processor": {**TEMPLATE, "single": TEMPLATE["single"] * 30}},
        {"added_tokens": [{"id": 1, "content": "a" * (1 << 19), "special": True}]},
        {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "a"}},
        {"model": {"type": "BPE", "vocab": {}, "merges": [], "continuing_subword_prefix": "a" * 1000}},
    ],
)
def test_tokenizers_whose_work_has_no_bound_are_refused(tiny_bundle: Path, changes: dict[str, Any]) -> None:
    """Nothing can stop the library once it works on a prompt."""
    with pytest.raises(BundleError, match=r"tokenizer\.json is refused, since it .*; export the checkpoint again"):
        load_tokenizer(changed(tiny_bundle, **changes))


def test_what_is_said_twice_is_read_as_it_was_checked(tiny_bundle: Path, tokenizer: Tokenizer) -> None:
    """JSON leaves open which of two counts; whichever it is, the library is given the one that was looked at."""
    data = json.loads((tiny_bundle / "tokenizer.json").read_bytes())
    doubling = json.dumps(sequence("normalizers", *[DOUBLING] * 4)).encode()
    text = json.dumps(data).encode()
    first = b'{"normalizer": ' + doubling + b", " + text[1:]
    assert load_tokenizer(first).encode("a cat").ids == tokenizer.encode("a cat").ids
    last = text[:-1] + b', "normalizer": ' + doubling + b"}"
    assert len(load_tokenizer(last).encode("a").ids) == len(tokenizer.encode("a" * 16).ids)
    with pytest.raises(BundleError, match="refused"):
        load_tokenizer(
            text[:-1] + b', "normalizer": ' + json.dumps(sequence("normalizers", *[DOUBLING] * 40)).encode() + b"}"
        )


def test_a_file_too_large_to_be_a_tokenizer() -> None:
    with pytest.raises(BundleError, match="larger than"):
        load_tokenizer(b" " * (MAX_TOKENIZER_BYTES + 1))


def test_steps_of_other_clip_tokenizers_are_known(tiny_bundle: Path) -> None:
    """As older versions of transformers write them, as a template frames, and as learned tokens are added."""
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    for changes in (
        {"pre_tokenizer": sequence("pretokenizers", split(pattern), BYTES)},
        {"normalizer": {"type": "Lowercase"}, "pre_tokenizer": BYTES},
        {
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": True,
                "strip_accents": None,
                "lowercase": True,
            }
        },
        {"normalizer": None, "pre_tokenizer": None, "post_processor": None},
        {"post_processor": TEMPLATE},
    ):
        assert load_tokenizer(changed(tiny_bundle, **changes)).encode("a red cat").ids
