from __future__ import annotations

from qamdetr.ui import model_card


def test_hearing_note_is_the_section_of_the_first_card_that_has_one():
    without = "# Card\n\nnothing of the kind\n"
    card = "# Card\n\n## What it can and cannot hear\n\nDogs.\n\n### Not\nBats.\n\n## Licence\nCC0\n"
    note = model_card.hearing_note([without, card])
    assert note.startswith("Dogs.")
    assert "Bats." in note
    assert "CC0" not in note
    assert model_card.hearing_note([without]) == model_card.HEARING_FALLBACK
