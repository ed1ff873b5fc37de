"""Offsets of byte-level tokenisers: each token's range holds its letters, whatever alphabet the query is written in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hub_clap_models import save_tiny_gpt2_tokenizer, save_tiny_roberta_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from qamdetr.errors import CheckpointError, QamDetrError
from qamdetr.features.hub_text import HubTokenizer

END = " <|endoftext|>"


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> HubTokenizer:
    folder = tmp_path_factory.mktemp("roberta")
    save_tiny_roberta_tokenizer(folder)
    return HubTokenizer(folder, stream="roberta", max_tokens=60)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> HubTokenizer:
    folder = tmp_path_factory.mktemp("gpt2")
    save_tiny_gpt2_tokenizer(folder)
    return HubTokenizer(folder, stream="ms_clap", max_tokens=60, suffix=END)


def test_ranges_hold_letters_without_the_blank_before(roberta: HubTokenizer, gpt2: HubTokenizer) -> None:
    query = "a dog barks"
    ids, offsets = roberta.encode(query)
    assert [query[begin:end] for begin, end in offsets] == ["", "a", "dog", "barks", ""]
    assert (ids[0], ids[-1]) == (0, 2)
    ids, offsets = gpt2.encode(query)
    # The suffix is a blank and the end token; neither stands for anything in the query.
    assert [query[begin:end] for begin, end in offsets] == ["a", "dog", "barks", "", ""]
    assert ids[-1] == 0


def test_a_letter_of_several_tokens_is_whole_in_each(roberta: HubTokenizer, gpt2: HubTokenizer) -> None:
    query = "a 🐶 barks"
    for tokenizer in (roberta, gpt2):
        _, offsets = tokenizer.encode(query)
        pieces = [query[begin:end] for begin, end in offsets if begin < end]
        assert pieces[0] == "a"
        assert pieces[-1] == "barks"
        assert len(pieces) > 3
        assert set(pieces[1:-1]) == {"🐶"}


@pytest.mark.parametrize("kind", ["roberta", "gpt2"])
@given(query=st.text(alphabet="abz äöß漢字🐶é.\t\n ", min_size=1, max_size=14))
@settings(max_examples=150, deadline=None)
def test_ranges_are_in_order_and_miss_no_letter(kind: str, query: str, request: pytest.FixtureRequest) -> None:
    ids, offsets = request.getfixturevalue(kind).encode(query)
    assert len(ids) == len(offsets)
    ranges = [(begin, end) for begin, end in offsets if begin < end]
    assert ranges == sorted(ranges)
    assert all(begin == end == 0 for begin, end in offsets if begin >= end)
    assert all(not query[begin].isspace() and not query[end - 1].isspace() for begin, end in ranges)
    covered = {at for begin, end in ranges for at in range(begin, end)}
    assert covered == {at for at, letter in enumerate(query) if not letter.isspace()}


def test_ids_are_those_of_the_fast_tokeniser_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_tiny_roberta_tokenizer(tmp_path)
    stock = AutoTokenizer.from_pretrained(tmp_path)
    mine = HubTokenizer(tmp_path, stream="roberta", max_tokens=60)
    for query in ("a dog barks", " Ein Hund bellt!", "🐶", "rain  on a roof"):
        assert mine.encode(query)[0] == stock(query)["input_ids"]


def test_a_folder_without_tokenizer_json_serves_too(tmp_path: Path) -> None:
    save_tiny_roberta_tokenizer(tmp_path / "full")
    bare = shutil.copytree(tmp_path / "full", tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    full, rebuilt = (HubTokenizer(folder, stream="roberta", max_tokens=60) for folder in (tmp_path / "full", bare))
    assert rebuilt.encode("a dog barks, then 🐶") == full.encode("a dog barks, then 🐶")
    assert rebuilt.probe == full.probe


def test_truncation_stored_in_the_file_is_not_obeyed(tmp_path: Path) -> None:
    tokenizer = save_tiny_roberta_tokenizer(tmp_path)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=12)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids, _ = HubTokenizer(tmp_path, stream="roberta", max_tokens=60).encode("a dog barks twice")
    assert 6 <= len(ids) < 12


def test_nothing_is_cut_silently(roberta: HubTokenizer) -> None:
    with pytest.raises(QamDetrError, match="The query has 63 tokens; the text encoder roberta reads at most 60"):
        roberta.encode(" ".join(["a"] * 61))


def test_other_vocabularies_have_other_probes(roberta: HubTokenizer, gpt2: HubTokenizer) -> None:
    assert roberta.probe != gpt2.probe


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=f"{tmp_path} cannot be read as the encoder roberta"):
        HubTokenizer(tmp_path, stream="roberta", max_tokens=60)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="roberta"):
        HubTokenizer(tmp_path, stream="roberta", max_tokens=60)


def test_tokens_that_stand_apart_are_never_joined(tmp_path: Path) -> None:
    """As the package msclap reads `!`, which its vocabulary joins to other signs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: number for number, token in enumerate(["!", "?", "a", "Ġ", "?!", "!!", "Ġ!"])}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[("?", "!"), ("!", "!"), ("Ġ", "!")]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    plain.save(str(tmp_path / "tokenizer.json"))
    joined = HubTokenizer(tmp_path, stream="ms_clap", max_tokens=60)
    apart = HubTokenizer(tmp_path, stream="ms_clap", max_tokens=60, apart=("!",))
    assert joined.encode("a?!!")[0] == [2, 4, 0]
    assert apart.encode("a?!!") == ([2, 1, 0, 0], ((0, 1), (1, 2), (2, 3), (3, 4)))
    assert apart.encode("a !")[0] == [2, 3, 0]
    assert joined.probe != apart.probe
