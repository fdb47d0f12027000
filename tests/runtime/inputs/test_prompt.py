"""Token ids against the checkpoint's own tokenizer."""

from __future__ import annotations

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
from freeprompt.contract.errors import PromptTruncatedWarning, UsageError
from freeprompt.contract.manifest import TextSpec
from freeprompt.engines.fake import FakeBackend
from freeprompt.runtime.inputs.prompt import PromptReader, load_tokenizer, prompts_to_ids

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
