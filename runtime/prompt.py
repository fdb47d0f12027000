"""From a prompt to token ids."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer

from freeprompt.engines.session import NumpyArray
from freeprompt.errors import BundleError, FreePromptError, PromptTruncatedWarning, UsageError
from freeprompt.manifest import TextSpec
from freeprompt.runtime.tokenizer_file import check_tokenizer


def load_tokenizer(data: bytes, name: str = "tokenizer.json") -> Tokenizer:
    """The tokenizer that a tokenizer.json describes.

    Args:
        data: the file's bytes.
        name: its name, for messages.

    Raises:
        BundleError: it is none, or one whose work on a prompt would not be bounded.
    """
    data = check_tokenizer(data, name)
    with _translated(f"{name} is not a tokenizer", BundleError):
        tokenizer = Tokenizer.from_buffer(data)
    # Cutting and padding are done here, where a cut can be told to the user.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def prompts_to_ids(tokenizer: Tokenizer, spec: TextSpec, prompts: tuple[str, ...]) -> NumpyArray:
    """Token ids as the text encoder takes them: framed, cut to ``spec.tokens`` with a warning, padded.

    Returns:
        [prompts, spec.tokens] int32.

    Raises:
        UsageError: a prompt is not a string or cannot be encoded.
    """
    ids = np.full((len(prompts), spec.tokens), spec.pad_token_id, np.int32)
    for row, prompt in zip(ids, prompts):
        if not isinstance(prompt, str):
            raise UsageError(f"a prompt must be a string, not {type(prompt).__name__}")
        with _translated(f"the prompt {prompt[:60]!r} cannot be encoded", UsageError):
            prompt.encode()
            encoding = tokenizer.encode(prompt)
        tokens = encoding.ids
        if len(tokens) > spec.tokens:
            rest = prompt[encoding.offsets[spec.tokens - 1][0] :]
            warnings.warn(
                f"the prompt has {len(tokens)} tokens, the text encoder takes {spec.tokens}; cut at {rest[:60]!r}",
                PromptTruncatedWarning,
                stacklevel=3,
            )
            tokens = [*tokens[: spec.tokens - 1], spec.eos_token_id]
        row[: len(tokens)] = tokens
    return ids


@contextlib.contextmanager
def _translated(message: str, kind: type[FreePromptError]) -> Iterator[None]:
    """The library raises plain Exception, and a panic of its Rust code is no Exception at all."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise kind(f"{message}: {error}") from error
