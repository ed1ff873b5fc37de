"""Text from outside, made fit for one line, one field, one spreadsheet cell or one file name. What is harmless is not changed."""

from __future__ import annotations

import unicodedata

_FORMULA_STARTS = frozenset("=+-@\u2212")
_REORDERING = dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)))  # hides what is written by turning it round
_MAX_NAME_BYTES = 120


def one_line(text: str) -> str:
    """Collapse line breaks, tabs and repeated blanks, which separate records and fields; other control characters become blanks."""
    shown = text.translate(_REORDERING)
    return " ".join("".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in shown).split())


def cell(text: str) -> str:
    """Return one line that no spreadsheet takes for a formula: where one would, it begins with an apostrophe.

    Blanks and invisible characters before the sign do not hide it, nor do its full-width and small forms.
    """
    text = one_line(text)
    first = next((letter for letter in text if unicodedata.category(letter) not in {"Cf", "Zs"}), "")
    return f"'{text}" if unicodedata.normalize("NFKC", first)[:1] in _FORMULA_STARTS and first else text


def tab_cell(text: str) -> str:
    """Return a cell for files that separate fields by tabs and quote nothing: a double quote would swallow the lines after it."""
    return cell(text).replace('"', "'")


def word(text: str) -> str:
    """Return one word for files that separate fields by blanks."""
    return "_".join(one_line(text).split()) or "_"


def file_name_part(text: str, *, fallback: str, max_letters: int = 40) -> str:
    """Return letters, digits and single hyphens only: nothing that a shell, an archive or any file system gives a meaning.

    Args:
        text: A query or the stem of a file name.
        fallback: What stands for a text without any letter or digit.
        max_letters: Longest part.
    """
    kept = "".join(letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in unicodedata.normalize("NFC", text))
    part = "-".join(kept.split())[:max_letters]
    # Letters of some scripts have four bytes, and file systems count bytes.
    part = part.encode("utf-8")[:_MAX_NAME_BYTES].decode("utf-8", errors="ignore").strip("-")
    return part or fallback
