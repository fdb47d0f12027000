"""From a prompt to token ids."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import Tokenizer

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BundleError, FreePromptError, PromptTruncatedWarning, UsageError
from freeprompt.contract.manifest import TextSpec
from freeprompt.contract.session import NumpyArray
from freeprompt.runtime.inputs.tokenizer_file import check_tokenizer

# A few hundred bytes each, so that a server's memory does not grow with every prompt it has seen.
_KEPT_PROMPTS = 256
# Ids are 32 bits wide in every graph.
MAX_TOKEN_ID = (1 << 31) - 1


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


class PromptReader:
    """Token ids of prompts; the tokenizer is loaded when the first is read.

    What was read is kept for a while and not told again, so that prompts can be checked before the work, and be cut
    with one warning all the same.

    Args:
        bundle: whose tokenizer it is.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._tokenizer: Tokenizer | None = None
        self._rows: dict[str, NumpyArray] = {}

    def ids(self, prompts: Iterable[str]) -> NumpyArray:
        """As ``prompts_to_ids``. Raises BundleError if the tokenizer cannot be read."""
        prompts = tuple(prompts)
        if self._tokenizer is None:
            name = self._bundle.manifest.tokenizer
            self._tokenizer = load_tokenizer(self._bundle.read(name), name)
        missing = tuple(dict.fromkeys(prompt for prompt in prompts if prompt not in self._rows))
        self._rows.update(zip(missing, prompts_to_ids(self._tokenizer, self._bundle.manifest.text, missing)))
        ids = np.stack([self._rows[prompt] for prompt in prompts])
        while len(self._rows) > _KEPT_PROMPTS:
            del self._rows[next(iter(self._rows))]
        return ids


def prompts_to_ids(tokenizer: Tokenizer, spec: TextSpec, prompts: tuple[str, ...]) -> NumpyArray:
    """Token ids as the text encoder takes them: framed, cut to ``spec.tokens`` with a warning, padded.

    Returns:
        [prompts, spec.tokens] int32.

    Raises:
        UsageError: a prompt is not a string or cannot be encoded.
        BundleError: the tokenizer gives ids that are none.
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
        if max(tokens, default=0) > MAX_TOKEN_ID:
            raise BundleError(f"the tokenizer has the id {max(tokens)}, no text encoder takes more than {MAX_TOKEN_ID}")
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
