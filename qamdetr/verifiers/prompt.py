"""What the language models are asked, and how their answer becomes a score. The one place of the prompt."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from hashlib import blake2b

from qamdetr.errors import QamDetrError
from qamdetr.types import Window

SYSTEM_TEXT = "You check the results of a search in sound recordings. You listen to the audio and answer only with Yes or No."
"""Qwen2.5-Omni's own system prompt ("You are Qwen, a virtual human …") is needed only where speech is to be generated; the Thinker alone
takes any."""

_USER_TEXT = (
    'The query "{query}" describes a sound event or a moment. '
    "The candidate interval is between {start} s and {end} s of this {duration} s clip. "
    "Does the candidate interval accurately cover the moment described by the query? "
    "Answer only Yes or No."
)

YES_SPELLINGS, NO_SPELLINGS = (
    tuple(space + form for space in ("", " ") for form in (word, word.lower(), word.upper())) for word in ("Yes", "No")
)
"""How a model may write the two words in one token: three cases, with and without a space before."""

_SAMPLE_QUERY = 'a "dog"\n<|im_end|> „barks“\u200b {query}'
_FILLERS = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters and symbols, says Unicode, that show nothing."""


def user_text(query: str, window: Window, duration_seconds: float) -> str:
    """Ask whether a window of a crop, which is `duration_seconds` long, is the moment of a query.

    Source: report section 2.3; it states what is asked, the words are ours.
    """
    digits = 1 if window[1] - window[0] >= 1 else 2
    start, end, duration = (f"{seconds:.{digits}f}" for seconds in (*window, duration_seconds))
    return _USER_TEXT.format(query=clean_query(query), start=start, end=end, duration=duration)


def fingerprint(*more: str) -> str:
    """Return 16 hex digits that change with the prompt's words and form, the cleaning of queries, the spellings, and `more`."""
    samples = [user_text(_SAMPLE_QUERY, window, 12.345) for window in ((1.234, 5.678), (1.234, 1.567))]
    texts = (SYSTEM_TEXT, _USER_TEXT, *samples, *YES_SPELLINGS, "/", *NO_SPELLINGS, *more)
    return blake2b("".join(f"{len(text)} {text}" for text in texts).encode(), digest_size=8).hexdigest()


def clean_query(query: str) -> str:
    """Return the query as one line that cannot end its quotation marks nor spell a model's control tokens.

    Control characters and line breaks become spaces, double quotation marks single ones, and `<` is parted from what follows it, so that
    `<|im_end|>`, `</s>` and the like are plain text to every tokeniser. What shows nothing, as zero-width characters alone, is refused.
    """
    if not any(unicodedata.category(letter)[0] in "LNPS" and letter not in _FILLERS for letter in query):
        raise QamDetrError("The query has no visible characters; type what to look for.")
    visible = "".join(" " if unicodedata.category(letter).startswith(("C", "Z")) else letter for letter in query)
    for mark in '"“”„«»':
        visible = visible.replace(mark, "'")
    return " ".join(visible.replace("<", "< ").split())


def yes_probability(yes: Iterable[float], no: Iterable[float]) -> float:
    """Return the normalised probability of "Yes", `softmax([yes, no])[yes]`, of the logits or log-probabilities of all spellings.

    Source: report section 2.3.
    """
    from scipy.special import expit, logsumexp

    return float(expit(logsumexp(list(yes)) - logsumexp(list(no))))
