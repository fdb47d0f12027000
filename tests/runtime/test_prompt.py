"""Token ids against the checkpoint's own tokenizer."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from freeprompt import Editor, Inversion
from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BundleError, PromptTruncatedWarning, UsageError
from freeprompt.contract.manifest import TextSpec
from freeprompt.engines.fake import FakeBackend
from freeprompt.export.checkpoint.load import quiet
from freeprompt.runtime.inputs.prompt import PromptReader, load_tokenizer, prompts_to_ids
from freeprompt.runtime.inputs.tokenizer_file import MAX_TOKENIZER_BYTES

TEXTS = (
    "",
    " ",
    "a",
    "a red cat",
    "A  Photo\tof\n\n a DOG.",
    "l'été à São Paulo",
    "it's 3.14159 o'clock, isn't it? (50% off!) #1 @home",
    "日本語 русский العربية",
    "🙂🙃 👩‍👩‍👧",
    "e\u0301clair \u00e9clair ﬁ",
    "<|endoftext|> and <|startoftext|> within",
    "\x00 \x7f \ufeff \u200b",
    "'s 't 're 've 'm 'll 'd",
)


@pytest.fixture(scope="module")
def theirs(tiny_checkpoint: Path) -> CLIPTokenizer:
    with quiet():
        return CLIPTokenizer.from_pretrained(tiny_checkpoint, subfolder="tokenizer")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def tokenizer(bundle: Bundle) -> Tokenizer:
    return load_tokenizer(bundle.read(bundle.manifest.tokenizer))


def expected_ids(theirs: CLIPTokenizer, texts: tuple[str, ...]) -> Any:
    return theirs(list(texts), padding="max_length", truncation=True, max_length=77, return_tensors="np")["input_ids"]


def ids_ignoring_cuts(tokenizer: Tokenizer, spec: TextSpec, texts: tuple[str, ...]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptTruncatedWarning)
        return prompts_to_ids(tokenizer, spec, texts)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_the_checkpoints(tokenizer: Tokenizer, theirs: CLIPTokenizer, bundle: Bundle, text: str) -> None:
    ids = prompts_to_ids(tokenizer, bundle.manifest.text, (text,))
    assert ids.dtype == np.int32 and ids.shape == (1, 77)
    np.testing.assert_array_equal(ids, expected_ids(theirs, (text,)))


def test_several_prompts(tokenizer: Tokenizer, theirs: CLIPTokenizer, bundle: Bundle) -> None:
    ids = prompts_to_ids(tokenizer, bundle.manifest.text, TEXTS)
    np.testing.assert_array_equal(ids, expected_ids(theirs, TEXTS))


def test_no_prompts(tokenizer: Tokenizer, bundle: Bundle) -> None:
    assert prompts_to_ids(tokenizer, bundle.manifest.text, ()).shape == (0, 77)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=120))
def test_any_text(tokenizer: Tokenizer, theirs: CLIPTokenizer, bundle: Bundle, text: str) -> None:
    ids = ids_ignoring_cuts(tokenizer, bundle.manifest.text, (text,))
    np.testing.assert_array_equal(ids, expected_ids(theirs, (text,)))


@pytest.mark.parametrize("words", [74, 75, 76, 200])
def test_cut_at_77_tokens_with_a_warning(
    tokenizer: Tokenizer, theirs: CLIPTokenizer, bundle: Bundle, words: int
) -> None:
    spec = bundle.manifest.text
    text = " ".join(["cat"] * (words - 1) + ["dog"])
    if words <= 75:
        ids = prompts_to_ids(tokenizer, spec, (text,))
    else:
        start = "cat cat" if words > 100 else "dog'"
        message = f"the prompt has {words + 2} tokens, the text encoder takes 77; cut at '{start}"
        with pytest.warns(PromptTruncatedWarning, match=message) as caught:
            ids = prompts_to_ids(tokenizer, spec, (text,))
        assert len(caught) == 1
    np.testing.assert_array_equal(ids, expected_ids(theirs, (text,)))
    assert ids[0, 0] == spec.bos_token_id and spec.eos_token_id in ids[0]


def test_only_the_cut_prompt_warns(tokenizer: Tokenizer, bundle: Bundle) -> None:
    with pytest.warns(PromptTruncatedWarning) as caught:
        prompts_to_ids(tokenizer, bundle.manifest.text, ("a cat", "dog " * 90, "a"))
    assert len(caught) == 1


@pytest.mark.parametrize("text", ["\ud800", "a \udcff cat", "\udfff\ud800"])
def test_lone_surrogates_are_refused(tokenizer: Tokenizer, bundle: Bundle, text: str) -> None:
    with pytest.raises(UsageError, match="cannot be encoded"):
        prompts_to_ids(tokenizer, bundle.manifest.text, (text,))


@pytest.mark.parametrize("prompt", [None, 1, b"a cat", ["a cat"], ("a", "b")])
def test_what_is_no_string_is_refused(tokenizer: Tokenizer, bundle: Bundle, prompt: Any) -> None:
    with pytest.raises(UsageError, match=f"must be a string, not {type(prompt).__name__}"):
        prompts_to_ids(tokenizer, bundle.manifest.text, (prompt,))


LONG = "a " + "cat " * 90


def failing_editor(tiny_bundle: Path) -> Editor:
    """An editor with which any work is an error."""

    def run(graph: str, feeds: Any) -> Any:
        raise AssertionError(f"{graph} was run")

    return Editor.load(tiny_bundle, FakeBackend(run), verify=False)


@pytest.mark.parametrize("record", ["none", "exact"])
def test_a_prompt_that_cannot_be_encoded_is_told_before_any_work(tiny_bundle: Path, record: str) -> None:
    """Also the last of many, which would be edited after the others."""
    editor = failing_editor(tiny_bundle)
    prompts = [f"cat {n}" for n in range(9)] + ["\ud800"]
    sha256, trajectory = editor.bundle.sha256, np.zeros((3, 1, 4, 16, 16), np.float32)
    inversion = Inversion.from_trajectory(2, "", sha256, trajectory)
    for work in (
        lambda: editor.plan(prompts, steps=2),
        lambda: editor.edit(inversion, prompts, record=record),
        lambda: editor.edit(inversion, "a cat", negative_prompt="\ud800", record=record),
        lambda: editor.synthesize("a cat", prompts, steps=2),
    ):
        with pytest.raises(UsageError, match="cannot be encoded"):
            work()


def test_a_cut_is_told_once_and_before_the_work(tiny_bundle: Path) -> None:
    editor = failing_editor(tiny_bundle)
    with pytest.warns(PromptTruncatedWarning) as caught:
        editor.plan(["a cat", LONG, LONG])
    assert len(caught) == 1
    working = Editor.load(tiny_bundle, "cpu", threads=1, verify=False)
    with pytest.warns(PromptTruncatedWarning) as caught:
        inversion = working.invert(np.zeros((64, 64, 3), np.uint8), 1)
        working.plan(LONG, inversion=inversion)
        working.edit_latents(inversion, LONG)
    assert len(caught) == 1


def test_a_reader_gives_the_ids_of_prompts_it_has_read_and_of_new_ones(tiny_bundle: Path, bundle: Bundle) -> None:
    spec = bundle.manifest.text
    reader = PromptReader(bundle)
    expected = prompts_to_ids(load_tokenizer(bundle.read(bundle.manifest.tokenizer)), spec, TEXTS)
    np.testing.assert_array_equal(reader.ids(TEXTS[:3]), expected[:3])
    np.testing.assert_array_equal(reader.ids(reversed(TEXTS)), expected[::-1])
    many = tuple(f"cat {n}" for n in range(300))
    first, again = reader.ids(many), reader.ids(many)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(reader.ids(TEXTS), expected)


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
