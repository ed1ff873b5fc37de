"""The table of known sounds that is shipped: what is understood, what is not, and what is said of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.functional import normalize

from qamdetr.config import CHECKPOINT_DIR
from qamdetr.features.base import open_streams
from qamdetr.features.known import TABLE_FILE, KnownSounds, WordMap

FOLDER = CHECKPOINT_DIR / "pocket-encoder"


@pytest.fixture(scope="module")
def pocket():
    return open_streams(("pocket",), ("pocket",)).text["pocket"]


@pytest.fixture(scope="module")
def known(pocket):
    assert pocket.known_sounds is not None, "the table is not of this encoder: run `python -m recipes.pocket.known`"
    return pocket.known_sounds


GOOD = ["a dog barks", "the lawn is being mown", "a tram squeals round a bend", "hoovering the stairs", "somebody hammers at the gate"]


@pytest.mark.parametrize("query", [*GOOD, "Rain!", "THUNDER", "the neighbour's dog", "a caf\u00e9 full of people talking", "birds"])
def test_good_english_is_understood_however_it_is_put(known, pocket, query):
    assert known.understand(query, pocket.encode_text(query)).known


SAID = {
    "a hound is barking": "Taken as \u201ca dog barks\u201d.",
    "no speech": "\u201cno\u201d is not understood: what it denies is asked for, too.",
    "rain without thunder": "\u201cwithout\u201d is not understood",
    "the third bark": "\u201cthird\u201d is not understood: sounds are neither counted nor put in order.",
    "two dogs bark": "\u201ctwo\u201d is not understood",
    "the meaning of life": "I am not sure of these words; nearest: \u201c",
}


@pytest.mark.parametrize(("query", "note"), SAID.items())
def test_what_is_made_of_the_words_is_said(known, pocket, query, note):
    words = known.understand(query, pocket.encode_text(query))
    assert words.known
    assert any(said.startswith(note) for said in words.notes), words.notes


@pytest.mark.parametrize("query", ["a dog barks", "the dog will not stop barking", "a second-hand car starts", "a three-wheeled motorbike"])
def test_nothing_is_said_where_nothing_has_to_be(known, pocket, query):
    assert not [note for note in known.understand(query, pocket.encode_text(query)).notes if "not understood" in note]


UNKNOWN = {
    "an amendment to the tax law": "I do not know these words; nearest: \u201c",
    "xqzvbn kkjh": "I do not know these words; nearest: \u201c",
    "ein Kind lacht und der Hund bellt": "This looks like German; these encoders know English words only.",
    "quelqu'un chante dans la rue": "This looks like French",
    "\u0441\u043e\u0431\u0430\u043a\u0430": "This is written in Cyrillic letters; these encoders know English words only.",
    "\u72ac\u304c\u5420\u3048\u308b": "This is written in Japanese",
    "\u72d7\u5728\u53eb": "This is written in Chinese characters",
    "\U0001f436": "I do not know these words",
    "4711": "I do not know these words",
    "the the": "These words name no sound; describe one",
}


@pytest.mark.parametrize(("query", "note"), UNKNOWN.items())
def test_words_that_are_not_known_are_named_as_such(known, pocket, query, note):
    words = known.understand(query, pocket.encode_text(query))
    assert (words.known, len(words.notes)) == (False, 1)
    assert words.notes[0].startswith(note), words.notes


def test_of_nonsense_little_is_taken_for_words_and_less_without_a_doubt(known, pocket):
    asked = yaml.safe_load((Path(__file__).parents[2] / "benchmarks" / "nonsense.yaml").read_text(encoding="utf-8"))
    judged = [known.understand(text, pocket.encode_text(text)) for texts in asked.values() for text in texts]
    taken = [words.notes for words in judged if words.known]
    assert len(taken) <= 0.12 * len(judged)
    assert sum(not any(note.startswith("I am not sure") for note in notes) for notes in taken) <= 0.05 * len(judged)


def test_a_table_of_another_encoder_is_not_used(pocket, tmp_path):
    names = (TABLE_FILE, "text.safetensors", "tokenizer.json", "joint.safetensors")
    for name in names:
        shutil.copy(FOLDER / name, tmp_path / name)
    assert KnownSounds.beside(tmp_path, pocket.word_map) is not None
    (tmp_path / "tokenizer.json").write_bytes(b"another")
    assert KnownSounds.beside(tmp_path, pocket.word_map) is None
    (tmp_path / TABLE_FILE).unlink()
    assert KnownSounds.beside(tmp_path, pocket.word_map) is None


def test_a_sentence_goes_where_near_sentences_sound_and_does_not_recall_itself() -> None:
    torch.manual_seed(0)
    sentences, kind_of = normalize(torch.eye(8)[[0, 0, 1, 1]] + 0.4 * torch.rand(4, 8), dim=-1), torch.tensor([0, 0, 1, 1])
    stored = {"straight.weight": torch.zeros(3, 8), "sentences": sentences, "kinds": torch.eye(3)[:2], "doubt": torch.zeros(2)}
    found = WordMap({**stored, "kind_of": kind_of})(sentences)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(4))
    assert found.argmax(dim=-1).tolist() == [0, 0, 1, 1]
    kind_of[1] = 1  # the first sentence is alone now, and its own kind is not what it recalls
    assert WordMap({**stored, "kind_of": kind_of})(sentences).argmax(dim=-1).tolist() == [1, 0, 1, 1]


def test_kinds_explain_the_clips_that_are_most_like_them(known):
    index = [kind.is_heard for kind in known.kinds].index(True)
    clips = torch.stack([torch.zeros_like(known.vectors[0]), known.vectors[index]])
    assert known.likeliest(clips, 5)[0] == known.kinds[index]
    assert known.nearest(known.vectors[index])[0][0] == known.kinds[index]
