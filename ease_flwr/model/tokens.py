"""How captions become tokens: the tokenizer that a model came with, or our small one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from ease_flwr.config import TOKENIZER, ConfigError, DataError
from ease_flwr.model.hub import at_once_or_not, line

LONGEST = 65536
"""Tokens of text that a model can look at."""
CONTEXT = 77
"""Tokens that open_clip looks at where a configuration says no number."""
EOS = 2
"""The token that open_clip looks for where a configuration pools the last one and says no number."""


class Tokenizer(Protocol):
    """Sentences to token ids, int64 (n, length)."""

    def __call__(self, texts: Sequence[str]) -> torch.Tensor: ...


@dataclass(frozen=True)
class WordTokenizer:
    """One token a word. The last two entries of the vocabulary are the start and the end; the first is the padding."""

    vocabulary: tuple[str, ...]
    context_length: int

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids, int64 (n, context_length). Raises DataError at a word that is not in the vocabulary."""
        index = {w: i for i, w in enumerate(self.vocabulary)}
        out = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in zip(out, texts, strict=True):
            words = text.split()
            unknown = [w for w in words if w not in index]
            if unknown or len(words) + 2 > self.context_length:
                raise DataError(f"tokenizer: {text!r} has unknown words {unknown} or more than {self.context_length - 2}")
            ids = [len(index) - 2, *(index[w] for w in words), len(index) - 1]
            row[: len(ids)] = torch.tensor(ids)
        return out


@dataclass(frozen=True, eq=False)
class NamingTokenizer:
    """A tokenizer of others; where it cannot read a caption, or makes nothing of it, the caption is named."""

    inner: Tokenizer

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids, int64 (n, context_length). Raises DataError with the caption that cannot be read."""
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError:
                raise DataError(f"caption {text!r} is no text: it has half a character (a lone surrogate)") from None
        try:
            return self.inner(list(texts))
        except Exception as error:  # whatever a tokenizer of others raises
            if len(texts) == 1:
                why = " ".join(str(error).split())[:200]
                raise DataError(f"caption {texts[0]!r}: the tokenizer cannot read it ({why})") from None
            return torch.cat([self([text]) for text in texts])


def of_model(architecture: dict[str, Any], vocabulary: int) -> Tokenizer:
    """That of a model, for as many tokens as it looks at. Raises ConfigError where it cannot be read, or is another model's."""
    text = architecture["text_cfg"]
    source, length = text.get("hf_tokenizer_name"), text.get("context_length", CONTEXT)
    if not isinstance(length, int) or not 0 < length <= LONGEST:
        raise ConfigError(f"model: it looks at {length} tokens, expected 1 to {LONGEST}: mend text_cfg.context_length")
    if text.get("hf_model_name") and not source:
        raise ConfigError(
            f"model: its text tower is that of {text['hf_model_name']} and no tokenizer is named: say "
            "text_cfg.hf_tokenizer_name"
        )
    try:
        options = dict(text.get("tokenizer_kwargs") or {})
        if source:
            options["trust_remote_code"] = False  # a configuration runs no code, and nobody is asked whether it may
            with nullcontext() if Path(source).is_dir() else at_once_or_not():
                inner: Any = HFTokenizer(source, length, tokenizer_mode=text.get("tokenizer_mode"), **options)
            words = len(inner.tokenizer)
            empty = not set(inner.tokenizer.get_vocab()) - set(inner.tokenizer.all_special_tokens)
        else:
            inner = SimpleTokenizer(context_length=length, **options)
            words, empty = inner.vocab_size, False
        tokens = inner(["a caption"])
        shape = tuple(tokens.shape)
    except Exception as error:  # whatever a tokenizer of others raises
        where = f"{', '.join(TOKENIZER)} of {source} into the model's folder, or name a folder as text_cfg.hf_tokenizer_name"
        fetch = f"fetch {where}" if source else "mend text_cfg.tokenizer_kwargs"
        raise ConfigError(f"model: its tokenizer {source or 'of open_clip'} cannot be read ({line(error)}): {fetch}") from None
    if empty:  # transformers makes one of nothing where the words are missing
        raise ConfigError(
            f"model: its tokenizer {source} has no words: fetch tokenizer.json, or the vocabulary that it has, into that folder"
        )
    if shape != (1, length) or (vocabulary and words > vocabulary):
        raise ConfigError(
            f"model: its tokenizer {source or 'of open_clip'} has {words} words and gives {shape[-1]} tokens, its text tower "
            f"knows {vocabulary} and looks at {length}: it is that of another model"
        )
    if (
        text.get("pool_type") == "eos" and (end := text.get("eos_id", EOS)) not in tokens[0].tolist()
    ):  # all captions would be the same
        raise ConfigError(
            f"model: its text tower looks for token {end} at the end of a caption, its tokenizer {source or 'of open_clip'} "
            "makes none: mend text_cfg.eos_id"
        )
    return NamingTokenizer(inner)
