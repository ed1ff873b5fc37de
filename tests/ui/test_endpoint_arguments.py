from __future__ import annotations

import re

import pytest

from qamdetr.errors import AudioError, ConfigError
from qamdetr.ui.endpoint_arguments import FILE_MARK, addresses, check_raw, checked_beta, checked_top_k, file_error, kept_upload, shown

FILE = {"path": "/uploads/walk.wav", "meta": FILE_MARK}
GOOD = {"audio": FILE, "query": "a dog", "top_k": 10, "verifier": "none", "beta": None, "checkpoint": None}
VERIFIERS = ("none", "pocket")


@pytest.mark.parametrize("value", [1, 100, 3.0])
def test_whole_numbers_in_range_are_taken(value):
    assert checked_top_k(value) == value
    assert isinstance(checked_top_k(value), int)


@pytest.mark.parametrize("value", ["abc", "5", None, True, [1], {}, 3.7, 0, 101, -1, float("nan"), float("inf")])
def test_what_is_no_number_of_moments_is_named_with_limit_and_remedy(value):
    told = f"top_k is {value!r}; it must be a whole number from 1 to 100; leave it out for 10."
    with pytest.raises(ConfigError, match=f"^{re.escape(told)}$"):
        checked_top_k(value)


@pytest.mark.parametrize("value", ["x", True, [0.5], 1.5, -0.1, float("nan")])
def test_what_is_no_weight_is_named_with_limit_and_remedy(value):
    told = f"beta is {value!r}; it must be a number from 0 to 1; leave it out for the checkpoint's own."
    with pytest.raises(ConfigError, match=f"^{re.escape(told)}$"):
        checked_beta(value)


def test_weights_in_range_are_taken_and_none_is_the_checkpoints_own():
    assert [checked_beta(value) for value in (0, 1, 0.25, None)] == [0, 1, 0.25, None]


def test_good_arguments_pass():
    check_raw(list(GOOD.values()), VERIFIERS)
    check_raw([FILE, "rain", 1, "pocket", 1, "qam-detr-pocket"], VERIFIERS)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"query": ["a dog"]}, "query is ['a dog']; it must be text"),
        ({"query": 5}, "query is 5; it must be text"),
        ({"query": None}, "The query is empty"),
        ({"verifier": None}, "Verifier None is not offered here; choose one of none, pocket."),
        ({"verifier": 3}, "Verifier 3 is not offered here"),
        ({"verifier": ["none"]}, "Verifier ['none'] is not offered here"),
        ({"verifier": "server"}, "Verifier 'server' is not offered here"),
        ({"checkpoint": 5}, "checkpoint is 5; it must be a model's name"),
        ({"audio": None}, "No recording was given; upload the file"),
        ({"audio": {}}, "No recording was given"),
        ({"audio": 5}, "audio is 5, which is no uploaded file"),
        ({"audio": "walk.wav"}, "audio is 'walk.wav', which is no uploaded file"),
        ({"audio": [FILE]}, "which is no uploaded file"),
        ({"audio": {"path": "/uploads/walk.wav"}}, "which is no uploaded file"),
        ({"audio": {"path": "/uploads/walk.wav", "meta": "x"}}, "which is no uploaded file"),
        ({"audio": {"path": "", "meta": FILE_MARK}}, "which is no uploaded file"),
    ],
)
def test_each_wrong_argument_is_one_line(wrong, told):
    with pytest.raises((ConfigError, AudioError)) as caught:
        check_raw(list({**GOOD, **wrong}.values()), VERIFIERS)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [[], [FILE], [*GOOD.values(), 1]])
def test_too_few_or_too_many_values_are_counted(values):
    with pytest.raises(ConfigError, match=rf"^{len(values)} values came; /retrieve takes 6, in this order: audio, query, top_k"):
        check_raw(values, VERIFIERS)


def test_addresses_are_found_wherever_they_stand():
    far = {"path": "HTTPS://example.org/a.wav", "meta": FILE_MARK}
    assert addresses(["walk.wav", {"inside": [far]}, FILE, 5, None]) == [far["path"]]
    assert addresses({"path": {"path": "http://10.0.0.1/"}}) == ["http://10.0.0.1/"]
    assert addresses("http://example.org is only a text here") == []


def test_an_address_of_ones_own_upload_is_the_upload(tmp_path):
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "a b.wav").touch()
    (tmp_path / "secret").touch()

    def path_of(address):
        return kept_upload({"path": address, "meta": FILE_MARK}, uploads)["path"]

    for host in ("http://127.0.0.1:7860", "https://example.org/sounds"):
        assert path_of(f"{host}/gradio_api/file={uploads}/a%20b.wav") == str(uploads / "a b.wav")
    for outside in (f"{tmp_path}/secret", f"{uploads}/../secret", f"{uploads}/none.wav", f"{uploads}"):
        address = f"http://127.0.0.1:7860/gradio_api/file={outside}"
        assert path_of(address) == address
    assert path_of("/etc/hostname") == "/etc/hostname"


def test_why_a_file_was_not_taken():
    assert "could not be fetched from 'http://10.0.0.1/a.wav'; it must be a public address" in str(
        file_error({"path": "http://10.0.0.1/a.wav"})
    )
    assert "/etc/hostname" not in str(file_error({"path": "/etc/hostname"}))


def test_long_values_are_shown_in_part_and_on_one_line():
    assert shown("a\nb\x1b[31m") == r"'a\nb\x1b[31m'"
    assert len(shown("x" * 1000)) == 61
