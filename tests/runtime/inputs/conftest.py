"""The tiny bundle's tokenizer, and the one of the checkpoint that it was exported from."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from freeprompt.contract.bundle import Bundle
from freeprompt.export.checkpoint.load import quiet
from freeprompt.runtime.inputs.prompt import load_tokenizer


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
