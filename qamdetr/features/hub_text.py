"""Tokenisers of pretrained text encoders: ids, and the characters of the query that each token stands for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qamdetr.errors import CheckpointError, QamDetrError
from qamdetr.features.hub import reading

Offsets = tuple[tuple[int, int], ...]
"""Per token, the character range `[begin, end)` in the query; `(0, 0)` for tokens that stand for no letters of it."""

_PROBE = "Zwölf Boxkämpfer jagen a quick dog, 42 times, it barks: 🐶!!"


class HubTokenizer:
    """A fast tokeniser from a folder in the hub's layout."""

    def __init__(
        self, folder: Path, *, stream: str, max_tokens: int, suffix: str = "", apart: Sequence[str] = (), vocab_size: int | None = None
    ) -> None:
        """Read the tokeniser.

        Args:
            folder: Holds `tokenizer.json`, or else the vocabulary and settings that Transformers makes a fast tokeniser of.
            stream: Name of the encoder, for messages.
            max_tokens: Most tokens that the encoder reads, special ones and those of the suffix included.
            suffix: Text that the encoder expects behind every query.
            apart: Tokens of the vocabulary that are never joined to their neighbours.
            vocab_size: Rows of the encoder's word table, where it is known.

        Raises:
            CheckpointError: Files missing or damaged, or a vocabulary that is larger than the encoder's.
        """
        self._stream = stream
        self._suffix = suffix
        self._max_tokens = max_tokens
        with reading(stream, folder):
            self._tokenizer = _read(folder)
            # Files may carry the settings of somebody's last call.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            self._tokenizer.add_special_tokens(list(apart))
        known = self._tokenizer.get_vocab_size()
        if vocab_size is not None and known > vocab_size:
            raise CheckpointError(
                f"{folder}: the tokeniser knows {known} tokens, the encoder {stream} {vocab_size}; they do not belong together."
            )

    def encode(self, query: str) -> tuple[list[int], Offsets]:
        """Return token ids and offsets. A token's range covers its letters alone, not the blank that byte-level vocabularies put before.

        Where a letter is cut into several tokens (emoji), each of them has the range of the whole letter.

        Raises:
            QamDetrError: More tokens than the encoder reads; nothing is cut silently.
        """
        encoding = self._tokenizer.encode(query + self._suffix)
        if len(encoding.ids) > self._max_tokens:
            raise QamDetrError(
                f"The query has {len(encoding.ids)} tokens; the text encoder {self._stream} reads at most {self._max_tokens}. "
                "Use a shorter sentence."
            )
        return list(encoding.ids), tuple(_letters(query, begin, end) for begin, end in encoding.offsets)

    @property
    def probe(self) -> tuple[list[int], Offsets]:
        """What the tokeniser makes of a fixed sentence: differs between vocabularies, whatever files they come from."""
        encoding = self._tokenizer.encode(_PROBE + self._suffix)
        return list(encoding.ids), tuple((begin, end) for begin, end in encoding.offsets)


def _read(folder: Path) -> Any:  # noqa: ANN401 - tokenizers has no types
    path = folder / "tokenizer.json"
    if path.is_file():
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(path))
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer


def _letters(query: str, begin: int, end: int) -> tuple[int, int]:
    """Cut a range to the query (what lies behind belongs to the suffix) and take blanks off both ends."""
    text = query[begin:end]
    trimmed = text.strip()
    if not trimmed:
        return (0, 0)
    begin += text.index(trimmed)
    return (begin, begin + len(trimmed))
