import pickle

import pytest

from qamdetr.errors import AudioError, CheckpointError, QamDetrError


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (("x.wav is empty (0 bytes)", "record it again"), "x.wav is empty (0 bytes); record it again."),
        (("x.wav is empty.", "record it again."), "x.wav is empty; record it again."),
        (("x.wav is empty; record it again.",), "x.wav is empty; record it again."),
        (("is empty", "record it again", "x.wav"), "x.wav is empty; record it again."),
    ],
)
def test_error_is_one_sentence_of_what_and_remedy(fields: tuple[str, ...], sentence: str) -> None:
    assert str(AudioError(*fields)) == sentence


def test_error_keeps_its_fields_through_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(AudioError("is too long", "cut it", "/tmp/x.wav")))
    assert isinstance(error, QamDetrError)
    assert (error.what, error.remedy, error.subject) == ("is too long", "cut it", "/tmp/x.wav")


def test_a_file_is_called_as_its_reader_knows_it_and_nothing_else_is_changed() -> None:
    assert (
        str(CheckpointError("weights are damaged", "copy it again", "/runs/a").about("run: a"))
        == "Checkpoint run: a: weights are damaged; copy it again."
    )
    assert str(AudioError("No recording").about("x.wav")) == "No recording"
