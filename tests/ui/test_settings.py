from __future__ import annotations

import re
import socket
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
    assert (usual.training, usual.verifiers, usual.checkpoint) == (True, ("none", "pocket"), "qam-detr-pocket")
    assert (usual.upload_bytes, usual.longest_seconds) == (500 * 1024**2, 7200)
    assert (hosted.hosted, hosted.training) == (True, False)
    assert (hosted.upload_mb, hosted.longest_minutes) < (usual.upload_mb, usual.longest_minutes)
    assert AppSettings.from_environment({"SPACE_ID": "someone/qam-detr", "QAMDETR_TRAINING": "1"}).training


READ = {
    "QAMDETR_TRAINING": ("off", "training", False),
    "QAMDETR_UPLOAD_MB": (" 20 ", "upload_mb", 20),
    "QAMDETR_LONGEST_MINUTES": ("1.5", "longest_minutes", 1.5),
    "QAMDETR_QUEUE_LENGTH": ("3", "queue_length", 3),
    "QAMDETR_CHECKPOINT": ("ladder-2-bimamba", "checkpoint", "ladder-2-bimamba"),
    "QAMDETR_WARM_UP": ("No", "warm_up", False),
    "QAMDETR_MCP": ("", "mcp", False),
    "GRADIO_SERVER_PORT": ("8080", "server_port", 8080),
    "QAMDETR_VERIFIER_MODEL": ("Qwen/Qwen2.5-Omni-3B", "verifier_model", "Qwen/Qwen2.5-Omni-3B"),
    "QAMDETR_VERIFIER_URL": ("http://localhost:8000/v1", "verifier_url", "http://localhost:8000/v1"),
}


def test_every_variable_is_read_and_blanks_count_as_unset():
    settings = AppSettings.from_environment({variable: text for variable, (text, _, _) in READ.items()})
    verifiers = ("none", "pocket", "qwen2.5-omni", "server")
    assert settings == AppSettings(verifiers=verifiers, **{field: value for _, field, value in READ.values()})
    changes = ({}, {"model": "Qwen/Qwen2.5-Omni-3B"}, {"url": "http://localhost:8000/v1"})
    for name, changed in zip(verifiers[1:], changes, strict=True):
        assert settings.verifier_config(name, VerifierConfig(batch_size=7)) == VerifierConfig(batch_size=7, **changed)


def test_incomplete_folders_and_a_missing_package_are_refused_and_a_hub_id_is_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("qamdetr.config.CHECKPOINT_DIR", tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for name, value, told in (
        ("QAMDETR_VERIFIER_MODEL", str(tmp_path), "QAMDETR_VERIFIER_MODEL is .* has no "),
        ("QAMDETR_CHECKPOINTS", str(tmp_path), "QAMDETR_CHECKPOINTS is .* No checkpoint 'qam-detr-pocket'"),
        ("QAMDETR_MCP", "1", r"QAMDETR_MCP is on.*gradio\[mcp\]"),
    ):
        with pytest.raises(ConfigError, match=told):
            AppSettings.from_environment({name: value})
    settings = AppSettings.from_environment({"QAMDETR_VERIFIER_MODEL": "nobody/nothing", "QAMDETR_MCP": "0"})
    assert (settings.verifier_model, settings.mcp) == ("nobody/nothing", False)


READING = [
    *((name, value, "1 (on) or 0 (off)") for name, value in (("QAMDETR_TRAINING", "maybe"), ("QAMDETR_WARM_UP", "2"))),
    *(("QAMDETR_UPLOAD_MB", value, limit) for value, limit in (("0", "from 1 to 10000"), ("12.5", "whole number"))),
    *(("QAMDETR_LONGEST_MINUTES", value, limit) for value, limit in (("1441", "to 1440"), ("nan", "from 0.1"))),
    *(("QAMDETR_QUEUE_LENGTH", value, limit) for value, limit in (("many", "whole number from 1"), ("1001", "from 1 to 1000"))),
    ("QAMDETR_VERIFIER_MODEL", "/nonexistent", "hub id"),
    ("QAMDETR_VERIFIER_URL", "localhost:8000", "http://"),
    ("QAMDETR_CHECKPOINT", "no-such-model", "qam-detr-pocket"),
]
STARTING = [
    *(("GRADIO_SERVER_PORT", value, "1 to 65535") for value in ("abc", "0", "65536")),
    *(("GRADIO_SERVER_NAME", value, "IPv4") for value in ("192.0.2.1", "::1")),
    *((name, "/dev/null/x", "name another") for name in ("QAMDETR_RUNS", "QAMDETR_CACHE")),
    ("QAMDETR_CHECKPOINTS", "/nonexistent", "correct the path"),
    *(("GRADIO_ROOT_PATH", value, "must begin with a slash") for value in ("sounds", "/no slash", "http://", "/sounds?x=1")),
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
    for variable, field in (("UPLOAD_MB", "upload_mb"), ("LONGEST_MINUTES", "longest_minutes"), ("QUEUE_LENGTH", "queue_length")):
        numbers = [float(number) for number in re.findall(r"\d+", rows[f"QAMDETR_{variable}"])]
        assert numbers == list(dict.fromkeys(float(getattr(settings, field)) for settings in (usual, hosted))), variable
    assert usual.checkpoint in rows["QAMDETR_CHECKPOINT"]


def test_a_taken_port_is_refused_where_it_was_named_and_folders_that_will_be_written_are_made(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"GRADIO_SERVER_PORT is '{taken}'.*another program listens"):
            check_start({"GRADIO_SERVER_PORT": str(taken)})
        monkeypatch.setattr(settings_module, "USUAL_PORT", taken)
        assert check_start({}).startswith(f"Port {taken} is taken")
    for path in ("/", "/sounds", "/a/b", "https://example.org/sounds"):
        check_start({"GRADIO_ROOT_PATH": path, "QAMDETR_RUNS": str(tmp_path / "a" / "runs"), "QAMDETR_CACHE": " "})
    assert (tmp_path / "a" / "runs").is_dir()
