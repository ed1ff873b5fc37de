import pickle

import pytest

from qamdetr.errors import AudioError, CheckpointError


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (AudioError("x.wav is empty.", "record it again."), "x.wav is empty; record it again."),
        (AudioError("x.wav is empty; record it again."), "x.wav is empty; record it again."),
        (AudioError("is empty", "record it again", "x.wav"), "x.wav is empty; record it again."),
        (CheckpointError("is old", "copy it", "/runs/a").about("run: a"), "Checkpoint run: a: is old; copy it."),
        (AudioError("No recording").about("x.wav"), "No recording"),
    ],
)
def test_error_is_one_sentence_of_what_and_remedy_also_in_another_process(error: AudioError, sentence: str) -> None:
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == sentence
