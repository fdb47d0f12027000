"""The checkpoint's tokenizer: loaded if it is CLIP's, and saved as one tokenizer.json that is shown to give the same
ids."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from tokenizers import Tokenizer

# The one of the tokenizers library; transformers 5 has no other, and calls it so too.
from transformers import CLIPTokenizerFast

from freeprompt.contract.errors import CheckpointError, ExportError
from freeprompt.export.checkpoint.configs import read_config
from freeprompt.export.checkpoint.source import Source

CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")
FILES = ("vocab.json", "merges.txt", "tokenizer.json", "added_tokens.json", "special_tokens_map.json")
_CONFIG = "tokenizer_config.json"
# Of tokenizer_config.json; the rest could name other classes and places.
_KEYS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "model_max_length",
    "added_tokens_decoder",
    "additional_special_tokens",
    "extra_special_tokens",
)
START, END = "<|startoftext|>", "<|endoftext|>"

# Each has something tokenizers disagree about: case, spaces, accents, contractions, digits, symbols, length, nothing.
PROBES = (
    "",
    "a photo of a cat",
    "A  Photo\tof\na CAT.",
    "l'été à São Paulo, naïve café",
    "it's 3.14159 o'clock, isn't it? #1 @home (50% off!)",
    "日本語 русский العربية 🙂🙃",
    "e\u0301clair vs \u00e9clair",
    "<|endoftext|> in the middle <|startoftext|>",
    "highly detailed, 8k, trending, " * 20,
)


def load_tokenizer(source: Source, embeddings: int) -> CLIPTokenizerFast:
    """The tokenizer of a checkpoint whose text encoder has so many embeddings.

    Raises:
        CheckpointError: it is not there, is not CLIP's, has tokens without an embedding, or tokens that stand for
            several.
    """
    files = [f"tokenizer/{name}" for name in FILES if f"tokenizer/{name}" in source.names]
    if not {"tokenizer/vocab.json", "tokenizer/merges.txt"} <= {*files} and "tokenizer/tokenizer.json" not in files:
        raise CheckpointError(
            f"{source.name} has no tokenizer: expected tokenizer/vocab.json and merges.txt, or tokenizer.json; copy "
            "the checkpoint again, whole"
        )
    config = read_config(source, f"tokenizer/{_CONFIG}") if f"tokenizer/{_CONFIG}" in source.names else {}
    if config.get("tokenizer_class", CLASSES[0]) not in CLASSES:
        raise CheckpointError(f"the tokenizer of {source.name} is a {config['tokenizer_class']}; export takes CLIP's")
    try:
        with tempfile.TemporaryDirectory(prefix="freeprompt-") as folder:
            for name in files:
                shutil.copyfile(source.folder / name, Path(folder, Path(name).name))
            known = {key: config[key] for key in _KEYS if key in config}
            Path(folder, _CONFIG).write_text(json.dumps(known), encoding="utf-8")
            tokenizer = CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
            model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    except Exception as error:  # the library raises whatever a damaged file makes it meet
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(f"the tokenizer of {source.name} cannot be read: {reason}") from error
    vocabulary = tokenizer.get_vocab()
    _check_clip(source, tokenizer, model, vocabulary)
    _check_added(source, tokenizer, vocabulary, embeddings)
    return tokenizer


def _check_clip(
    source: Source, tokenizer: CLIPTokenizerFast, model: dict[str, object], vocabulary: dict[str, int]
) -> None:
    letters = [f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]
    if (
        model.get("type") != "BPE"
        or model.get("end_of_word_suffix") != "</w>"
        or not {START, END, *letters} <= vocabulary.keys()
        or (tokenizer.bos_token, tokenizer.eos_token) != (START, END)
        or list(tokenizer("")["input_ids"]) != [vocabulary[START], vocabulary[END]]
    ):
        raise CheckpointError(
            f"the tokenizer of {source.name} is not CLIP's (byte pairs that end words with </w>, between {START} and "
            f"{END}): copy the checkpoint again, whole"
        )


def _check_added(source: Source, tokenizer: CLIPTokenizerFast, vocabulary: dict[str, int], embeddings: int) -> None:
    for token in added_tokens(tokenizer):
        if f"{token}_1" in vocabulary:
            raise CheckpointError(
                f"{source.name} has a textual inversion of several vectors, {token}: a prompt's {token} would be its "
                "first vector only; call unload_textual_inversion() and save the pipeline, or train one vector"
            )
    last = max(vocabulary, key=lambda token: vocabulary[token])
    if vocabulary[last] >= embeddings:
        raise CheckpointError(
            f"the tokenizer of {source.name} has {vocabulary[last] + 1} tokens, its text encoder {embeddings} "
            f"embeddings: {last!r} has none; they are of different models, or were saved at different times"
        )


def added_tokens(tokenizer: CLIPTokenizerFast) -> list[str]:
    """What was added to CLIP's vocabulary, as textual inversion does."""
    return sorted({*tokenizer.get_added_vocab()} - {START, END, tokenizer.pad_token, tokenizer.unk_token})


def save_tokenizer(tokenizer: CLIPTokenizerFast, path: Path) -> None:
    """Write ``path`` and read it back.

    Raises:
        ExportError: the file gives other ids than the checkpoint's tokenizer.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    path.write_text(backend.to_str(), encoding="utf-8")
    read = Tokenizer.from_file(str(path))
    for probe in (*PROBES, *(f"a photo of {token}, {token.upper()}s" for token in added_tokens(tokenizer))):
        expected = list(tokenizer(probe, truncation=False, verbose=False)["input_ids"])
        if read.encode(probe).ids != expected:
            raise ExportError(f"the saved tokenizer gives other ids for {probe[:40]!r}")
