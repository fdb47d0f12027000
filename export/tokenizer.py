"""The checkpoint's tokenizer as one tokenizer.json, shown to give the same ids."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from freeprompt.errors import ExportError

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


def save_tokenizer(tokenizer: CLIPTokenizer, path: Path) -> None:
    """Write ``path`` and read it back.

    Raises:
        ExportError: it has no tokenizers backend, or the file gives other ids than the checkpoint's tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError(f"the checkpoint's {type(tokenizer).__name__} has no backend of the tokenizers library")
    backend.no_padding()
    backend.no_truncation()
    path.write_text(backend.to_str(), encoding="utf-8")
    read = Tokenizer.from_file(str(path))
    for probe in PROBES:
        expected = list(tokenizer(probe, truncation=False, verbose=False)["input_ids"])
        if read.encode(probe).ids != expected:
            raise ExportError(f"the saved tokenizer gives other ids for {probe[:40]!r}")
