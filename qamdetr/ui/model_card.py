"""What the page quotes of the checkpoints' cards. Pure: the caller reads the files."""

from __future__ import annotations

import re
from collections.abc import Iterable

CARD_SECTION = "What it can and cannot hear"
"""Heading of the checkpoint card's section that the page quotes."""

HEARING_FALLBACK = (
    "The *pocket* encoder is small, made by this project and runs offline. It knows everyday sounds (animals, weather, water, "
    "machines, speech, instruments, alarms) better than rare ones. It does not understand what is said, who says it, or music by name."
)


def hearing_note(cards: Iterable[str]) -> str:
    """Body of the section `CARD_SECTION` of the first checkpoint card that has one, or a general note."""
    for card in cards:
        heading = re.search(rf"^(#+)\s*{re.escape(CARD_SECTION)}\s*$", card, flags=re.MULTILINE | re.IGNORECASE)
        if heading:
            next_heading = rf"^#{{1,{len(heading[1])}}}\s"  # of the same or a higher level: subsections belong to it
            return re.split(next_heading, card[heading.end() :], maxsplit=1, flags=re.MULTILINE)[0].strip()
    return HEARING_FALLBACK
