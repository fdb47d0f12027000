"""A tokenizer.json as a bundle may have it: one whose work on a prompt is bounded by the prompt.

The file describes steps that a library carries out where nothing can stop it: texts that double, and double again, and
patterns that try every way to match. What a CLIP tokenizer is made of does neither; other steps are refused.
"""

from __future__ import annotations

from typing import Any

import msgspec

from freeprompt.contract.errors import BundleError

# CLIP's has 2 to 4 MB.
MAX_TOKENIZER_BYTES = 16 << 20
# By how much all steps together may lengthen a text. CLIP's lower case and bytes are within 16; NFKC alone makes up to
# 18 characters of one.
MAX_EXPANSION = 256
_MAX_STEPS = 32
_MAX_PATTERN = 1024
_MAX_AFFIX = 64
# Characters of all added tokens: of thousands of learned ones.
_MAX_ADDED = 1 << 18
# By how much a step may lengthen a text, in characters or bytes, whichever grows more; "Replace" is looked at.
_NORMALIZERS = {
    **{"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 3, "Strip": 1, "StripAccents": 1, "Nmt": 1},
    **{"BertNormalizer": 12, "ByteLevel": 2},
}
_PRE_TOKENIZERS = {
    **{"ByteLevel": 3, "Split": 1, "Whitespace": 1, "WhitespaceSplit": 1, "BertPreTokenizer": 1, "Digits": 1},
    **{"Punctuation": 1, "CharDelimiterSplit": 1, "UnicodeScripts": 1, "Metaspace": 4},
}
# They frame a text with a token on each side. A template may say the text many times over.
_POST_PROCESSORS = ("RobertaProcessing", "BertProcessing", "ByteLevel")

Json = dict[str, Any]


def check_tokenizer(data: bytes, name: str) -> bytes:
    """The same tokenizer as JSON that says everything once, so that what was checked is what a library reads.

    Args:
        data: the file.
        name: its name, for messages.

    Raises:
        BundleError: it is too large, no JSON object, or has steps that no CLIP tokenizer has.
    """
    if len(data) > MAX_TOKENIZER_BYTES:
        raise BundleError(f"{name} is larger than {MAX_TOKENIZER_BYTES} bytes: not a tokenizer")
    try:
        described = msgspec.json.decode(data, type=Json)
        encoded = msgspec.json.encode(described)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BundleError(f"{name} is not a tokenizer: {error}") from error
    problem = _problem(described)
    if problem is not None:
        raise BundleError(f"{name} is refused, since it {problem}; export the checkpoint again")
    return encoded


def _problem(described: Json) -> str | None:
    expansion = 1
    for part, key, known in (
        ("normalizer", "normalizers", _NORMALIZERS),
        ("pre_tokenizer", "pretokenizers", _PRE_TOKENIZERS),
    ):
        steps = _steps(described.get(part), key)
        if steps is None:
            return f"has a {part} that cannot be read"
        for step in steps:
            factor = _factor(step, known)
            if isinstance(factor, str):
                return f"has a {part} {factor}"
            expansion *= factor
    if expansion > MAX_EXPANSION:
        return f"may make a text {expansion} times as long ({MAX_EXPANSION} is allowed)"
    processors = _steps(described.get("post_processor"), "processors")
    if processors is None:
        return "has a post_processor that cannot be read"
    for step in processors:
        if step.get("type") not in _POST_PROCESSORS and not _is_plain_template(step):
            return f"has a post_processor of type {str(step.get('type'))[:80]!r}"
    return _model_problem(described)


def _model_problem(described: Json) -> str | None:
    model, added = described.get("model"), described.get("added_tokens") or []
    if not isinstance(model, dict) or model.get("type") != "BPE":
        return "has another model than BPE"
    # The library puts them to each piece of a text.
    affixes = [model.get(key) or "" for key in ("continuing_subword_prefix", "end_of_word_suffix")]
    if not all(isinstance(affix, str) and len(affix) <= _MAX_AFFIX for affix in affixes):
        return f"has a prefix or suffix of subwords that is longer than {_MAX_AFFIX} characters"
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        return "has added_tokens that cannot be read"
    if sum(len(str(token.get("content"))) for token in added) > _MAX_ADDED:
        return f"has more than {_MAX_ADDED} characters of added tokens"
    return None


def _steps(part: Any, key: str) -> list[Json] | None:
    """The steps of a part, a sequence's one by one; None: too many, nested, or no such thing."""
    if part is None:
        return []
    steps = part.get(key) if isinstance(part, dict) and part.get("type") == "Sequence" else [part]
    if not isinstance(steps, list) or len(steps) > _MAX_STEPS or not all(isinstance(step, dict) for step in steps):
        return None
    return steps


def _factor(step: Json, known: dict[str, int]) -> int | str:
    """By how much a step may lengthen a text, or what speaks against it."""
    kind = step.get("type")
    if kind == "Replace" and known is _NORMALIZERS:
        content = step.get("content")
        if not isinstance(content, str) or not _is_simple(step.get("pattern")):
            return f"that replaces {str(step.get('pattern'))[:80]}, a pattern that is not simple"
        # Of each character, and where a pattern matches nothing at all, of each place between two.
        return 1 + len(content.encode())
    if not isinstance(kind, str) or kind not in known:
        return f"of type {str(kind)[:80]!r}"
    if kind == "Split" and not _is_simple(step.get("pattern")):
        return f"that splits at {str(step.get('pattern'))[:80]}, a pattern that is not simple"
    return known[kind]


def _is_simple(pattern: Any) -> bool:
    """A text, or alternatives without groups, each with one repetition at most: no way to try again and again.

    As CLIP's: <\\|startoftext\\|>|'s|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+
    """
    if not isinstance(pattern, dict) or len(pattern) != 1:
        return False
    (kind, text), *_ = pattern.items()
    if not isinstance(text, str) or kind not in ("String", "Regex") or len(text) > _MAX_PATTERN:
        return False
    if kind == "String":
        return bool(text)
    repetitions, within, at = 0, False, 0
    while at < len(text):
        char = text[at]
        if char == "\\":
            at += 1
            escaped = text[at : at + 1]
            if escaped in ("p", "P") and text[at + 1 : at + 2] == "{":
                at = text.find("}", at)
                if at < 0:
                    return False
            elif escaped.isalnum() and escaped not in "sSdDwWnrt":
                return False  # references back, and what else may be meant
        elif within:
            within = char != "]"
            if char in "[&":  # classes within classes
                return False
        elif char == "[":
            within = True
        elif char in "({":
            return False
        elif char == "|":
            repetitions = 0
        elif char in "*+?":
            repetitions += 1
            if repetitions > 1:
                return False
        at += 1
    return not within


def _is_plain_template(step: Json) -> bool:
    """A template that says the text once and is short."""
    if step.get("type") != "TemplateProcessing":
        return False
    single, tokens = step.get("single"), step.get("special_tokens")
    if not isinstance(single, list) or not isinstance(tokens, dict) or len(single) > _MAX_STEPS:
        return False
    texts = sum(isinstance(piece, dict) and "Sequence" in piece for piece in single)
    ids = [token.get("ids") if isinstance(token, dict) else None for token in tokens.values()]
    return texts == 1 and all(isinstance(found, list) and len(found) <= _MAX_STEPS for found in ids)
