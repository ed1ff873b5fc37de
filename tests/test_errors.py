import pickle

import pytest

from qamdetr.errors import AudioError, QamDetrError


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (("x.wav is empty (0 bytes)", "record it again"), "x.wav is empty (0 bytes); record it again."),
        (("x.wav is empty.", "record it again."), "x.wav is empty; record it again."),
        (("x.wav is empty; record it again.",), "x.wav is empty; record it again."),
    ],
)
def test_error_is_one_sentence_of_what_and_remedy(fields: tuple[str, ...], sentence: str) -> None:
    assert str(AudioError(*fields)) == sentence


def test_error_keeps_its_fields_through_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(AudioError("too long", "cut it")))
    assert isinstance(error, QamDetrError)
    assert (error.what, error.remedy) == ("too long", "cut it")
