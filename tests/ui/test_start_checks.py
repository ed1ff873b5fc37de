from __future__ import annotations

import socket

import pytest

from qamdetr.errors import ConfigError
from qamdetr.ui import start_checks
from qamdetr.ui.start_checks import check_start


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.mark.parametrize(
    ("name", "value", "possible"),
    [
        ("GRADIO_SERVER_PORT", "abc", "1 to 65535"),
        ("GRADIO_SERVER_PORT", "0", "1 to 65535"),
        ("GRADIO_SERVER_PORT", "65536", "1 to 65535"),
        ("GRADIO_SERVER_NAME", "192.0.2.1", "IPv4"),
        ("GRADIO_SERVER_NAME", "::1", "IPv4"),
        ("QAMDETR_RUNS", "/dev/null/x", "name another"),
        ("QAMDETR_CACHE", "/dev/null/x", "name another"),
        ("QAMDETR_CHECKPOINTS", "/nonexistent", "correct the path"),
    ],
)
def test_a_wrong_value_is_one_line_with_variable_value_and_remedy(name, value, possible):
    with pytest.raises(ConfigError) as caught:
        check_start({name: value})
    message = str(caught.value)
    assert all(part in message for part in (name, repr(value), possible)), message
    assert "\n" not in message


def test_a_taken_port_is_refused_where_it_was_named_and_told_where_not(taken, monkeypatch):
    with pytest.raises(ConfigError, match=f"GRADIO_SERVER_PORT is '{taken}'.*another program listens"):
        check_start({"GRADIO_SERVER_PORT": str(taken)})
    monkeypatch.setattr(start_checks, "USUAL_PORT", taken)
    assert check_start({}).startswith(f"Port {taken} is taken")


def test_folders_that_will_be_written_are_made(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    assert check_start({"QAMDETR_RUNS": str(tmp_path / "a" / "runs"), "QAMDETR_CACHE": " ", "GRADIO_SERVER_PORT": str(port)}) == ""
    assert (tmp_path / "a" / "runs").is_dir()


@pytest.mark.parametrize("path", ["sounds", "/no slash", "sounds here", "http://", "/sounds?x=1"])
def test_a_root_path_that_gradio_would_fall_over_is_one_line(path):
    with pytest.raises(ConfigError, match=r"^GRADIO_ROOT_PATH is .*; it must begin with a slash"):
        check_start({"GRADIO_ROOT_PATH": path})


@pytest.mark.parametrize("path", ["/", "/sounds", "/a/b", "https://example.org/sounds"])
def test_a_root_path_may_be_a_path_or_an_address(path):
    check_start({"GRADIO_ROOT_PATH": path})
