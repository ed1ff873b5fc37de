"""Tests of the sound bank: its tables, its formulas, its folders, and the programs that it drives."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from qamdetr.synthesis.sources import read_library
from recipes.pocket.sound_bank import instruments, synthetic, voices
from recipes.pocket.sound_bank.build import ESC10_GROUPS, SAMPLE_RATE_HZ, SONIC_PI_GROUPS, Bank, Clip, load_groups


def all_captions(file_name: str) -> list[str]:
    groups = load_groups(file_name)
    texts = [entry["captions"] if isinstance(entry, dict) else entry for entry in groups.values()]
    return [caption for captions in texts for caption in captions]


def test_every_group_that_a_source_names_is_in_the_table() -> None:
    named = {*ESC10_GROUPS.values(), *SONIC_PI_GROUPS.values(), *synthetic.MAKERS, *instruments.PROGRAMS, *instruments.PERCUSSION}
    named |= {*voices.VOICES, "speech/crowd", "speech/man/digits", "music/drums"}
    assert named - set(load_groups()) == set()


def test_test_wordings_are_new_to_training() -> None:
    training = {caption.casefold() for caption in all_captions("groups.yaml")}
    wordings = all_captions("test_wordings.yaml")
    assert len(wordings) == len(set(wordings)) >= 60
    assert not training & {wording.casefold() for wording in wordings}
    assert set(load_groups("test_wordings.yaml")) == set(ESC10_GROUPS.values())


def test_words_that_are_kept_out_of_training_are_kept_out() -> None:
    table = Path(synthetic.__file__).with_name("groups.yaml").read_text(encoding="utf-8")
    comment = "".join(line[1:] for line in table.splitlines(keepends=True) if line.startswith("#"))
    kept_out = set(re.findall(r"\w+", comment.split("stay new:")[1]))
    assert "puppy" in kept_out
    assert not kept_out & {word for caption in all_captions("groups.yaml") for word in re.findall(r"\w+", caption.casefold())}


@pytest.mark.parametrize("group", sorted(synthetic.MAKERS))
def test_formula_sounds_are_audible_finite_and_repeatable(group: str) -> None:
    first, second = (synthetic.MAKERS[group](np.random.default_rng(3), SAMPLE_RATE_HZ) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.dtype == np.float32
    assert 0.5 < np.abs(first).max() <= 1.0
    assert 0.1 < len(first) / SAMPLE_RATE_HZ < 12


def test_a_bank_folder_is_one_that_scenes_can_be_made_of(tmp_path: Path) -> None:
    groups = load_groups()
    bank = Bank(tmp_path / "bank", groups)
    for group in ("alarm/siren", "door/knock"):
        samples = synthetic.MAKERS[group](np.random.default_rng(0), SAMPLE_RATE_HZ)
        bank.add(Clip(group, samples, SAMPLE_RATE_HZ, "formula", "this project"))
    bank.finish({name: entry["captions"] for name, entry in groups.items()})
    library = read_library(bank.folder, None)
    assert [clip.group for clip in library.clips] == ["alarm/siren", "door/knock"]
    assert "a siren wails" in library.captions["alarm/siren"]
    assert "music/piano" not in library.captions
