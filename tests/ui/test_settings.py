from __future__ import annotations

import re
from pathlib import Path

import pytest

from qamdetr.config import VerifierConfig
from qamdetr.errors import ConfigError
from qamdetr.ui import settings as settings_module
from qamdetr.ui.settings import AppSettings, check_start

REPOSITORY = Path(__file__).resolve().parents[2]


def test_without_variables_it_is_the_page_of_ones_own_machine_and_a_space_is_more_careful():
    usual, hosted = (AppSettings.from_environment(given) for given in ({}, {"SPACE_ID": "someone/qam-detr"}))
    assert usual == AppSettings()
    assert (usual.training, hosted.hosted, hosted.training) == (True, True, False)
    assert (hosted.upload_mb, hosted.longest_minutes) < (usual.upload_mb, usual.longest_minutes)
    assert AppSettings.from_environment({"SPACE_ID": "someone/qam-detr", "QAMDETR_TRAINING": "1"}).training


def test_every_variable_is_read_and_blanks_count_as_unset():
    large, url = "Qwen/Qwen2.5-Omni-3B", "http://localhost:8000/v1"
    texts = {"TRAINING": "off", "UPLOAD_MB": " 20 ", "LONGEST_MINUTES": "1.5", "QUEUE_LENGTH": "3", "WARM_UP": "No", "MCP": ""}
    texts |= {"CHECKPOINT": "ladder-2-bimamba", "VERIFIER_MODEL": large, "VERIFIER_URL": url}
    given = {"GRADIO_SERVER_PORT": "8080", **{f"QAMDETR_{name}": text for name, text in texts.items()}}
    settings = AppSettings.from_environment(given)
    assert settings == AppSettings(
        training=False,
        upload_mb=20,
        longest_minutes=1.5,
        queue_length=3,
        checkpoint="ladder-2-bimamba",
        verifiers=("none", "pocket", "qwen2.5-omni", "server"),
        verifier_model=large,
        verifier_url=url,
        warm_up=False,
        server_port=8080,
    )
    for name, changed in (("pocket", {}), ("qwen2.5-omni", {"model": large}), ("server", {"url": url})):
        assert settings.verifier_config(name, VerifierConfig(batch_size=7)) == VerifierConfig(batch_size=7, **changed)


READING = [
    ("QAMDETR_TRAINING", "maybe", "1 (on) or 0 (off)"),
    *(("QAMDETR_UPLOAD_MB", value, limit) for value, limit in (("0", "from 1 to 10000"), ("12.5", "whole number"))),
    *(("QAMDETR_LONGEST_MINUTES", value, limit) for value, limit in (("1441", "to 1440"), ("nan", "from 0.1"))),
    ("QAMDETR_QUEUE_LENGTH", "1001", "whole number from 1 to 1000"),
    ("QAMDETR_VERIFIER_MODEL", "/nonexistent", "hub id"),
    ("QAMDETR_VERIFIER_URL", "localhost:8000", "http://"),
    ("QAMDETR_CHECKPOINT", "no-such-model", "qam-detr-pocket"),
]
STARTING = [
    *(("GRADIO_SERVER_PORT", value, "1 to 65535") for value in ("abc", "65536")),
    ("GRADIO_SERVER_NAME", "192.0.2.1", "IPv4"),
    *((name, "/dev/null/x", "name another") for name in ("QAMDETR_RUNS", "QAMDETR_CACHE")),
    ("QAMDETR_CHECKPOINTS", "/nonexistent", "correct the path"),
    *(("GRADIO_ROOT_PATH", value, "must begin with a slash") for value in ("sounds", "/no slash", "/sounds?x=1")),
]


@pytest.mark.parametrize(("name", "value", "limit"), READING + STARTING)
def test_a_wrong_value_is_one_line_with_variable_value_and_limit_before_gradio_is_imported(name, value, limit):
    check = AppSettings.from_environment if (name, value, limit) in READING else check_start
    with pytest.raises(ConfigError) as caught:
        check({name: value})
    message = str(caught.value)
    assert all(part in message for part in (name, value, limit)), message
    assert "\n" not in message


def test_every_variable_is_documented_with_its_default():
    page = (REPOSITORY / "docs" / "hosting.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| ([^|]*) \|", page, flags=re.MULTILINE))
    own = {value for name, value in vars(settings_module).items() if name.endswith("_VARIABLE") and value.startswith("QAMDETR")}
    assert own <= set(rows)
    usual, hosted = AppSettings(), AppSettings.from_environment({"SPACE_ID": "a/b"})
    for field in ("upload_mb", "longest_minutes", "queue_length"):
        numbers = [float(number) for number in re.findall(r"\d+", rows[f"QAMDETR_{field.upper()}"])]
        assert numbers == list(dict.fromkeys(float(getattr(settings, field)) for settings in (usual, hosted))), field


def test_paths_behind_a_proxy_are_taken_and_folders_that_will_be_written_are_made(tmp_path):
    for path in ("/", "/sounds", "/a/b", "https://example.org/sounds"):
        check_start({"GRADIO_ROOT_PATH": path, "QAMDETR_RUNS": str(tmp_path / "a" / "runs"), "QAMDETR_CACHE": " "})
    assert (tmp_path / "a" / "runs").is_dir()
