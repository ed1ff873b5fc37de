"""What can be said of the environment before anything large is imported: address, port and folders.

Nothing here imports gradio, which reads its variables when it is imported, and then ends with a traceback or goes elsewhere without a word.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path

from qamdetr.errors import ConfigError

NAME_VARIABLE, PORT_VARIABLE = "GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT"
ROOT_VARIABLE = "GRADIO_ROOT_PATH"
USUAL_NAME, USUAL_PORT = "127.0.0.1", 7860
WRITTEN_FOLDERS = ("QAMDETR_RUNS", "QAMDETR_CACHE")
CHECKPOINTS_VARIABLE = "QAMDETR_CHECKPOINTS"

Environment = Mapping[str, str]

_ROOT_PATH = re.compile(r"(/|https?://[^/\s])[^\s?#]*")


def check_start(environment: Environment | None = None) -> str:
    """Check what the environment says of the machine: server address, and folders; makes those that will be written.

    Args:
        environment: Names and values; None for those of the process.

    Returns:
        One line that is worth saying, or nothing.

    Raises:
        ConfigError: A value that cannot be used; names the variable, the value and what is possible.
    """
    source = os.environ if environment is None else environment
    given = {name: value.strip() for name, value in source.items() if value.strip()}
    for name in WRITTEN_FOLDERS:
        if name in given:
            _check_written(name, given[name])
    folder = given.get(CHECKPOINTS_VARIABLE)
    if folder is not None and not Path(folder).is_dir():
        raise ConfigError(f"{CHECKPOINTS_VARIABLE} is {folder!r} in the environment, which is no folder here; correct the path.")
    _check_root_path(given.get(ROOT_VARIABLE, ""))
    port = server_port(given)
    return _check_address(given.get(NAME_VARIABLE, USUAL_NAME), port)


def server_port(given: Environment) -> int | None:
    """Return the port that the environment names, None where it names none.

    Raises:
        ConfigError: No port.
    """
    text = given.get(PORT_VARIABLE, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise ConfigError(f"{PORT_VARIABLE} is {text!r} in the environment; it must be a whole number from 1 to 65535.")
    return int(text)


def port_taken(port: int) -> ConfigError:
    """Return the error of a port that was asked for and is not free."""
    return ConfigError(f"{PORT_VARIABLE} is '{port}' in the environment, and another program listens there; end it, or name a free port.")


def _check_root_path(path: str) -> None:
    if path and not _ROOT_PATH.fullmatch(path):
        raise ConfigError(
            f"{ROOT_VARIABLE} is {path!r} in the environment; it must begin with a slash and have no spaces, such as /sounds, or be a "
            "whole address, such as https://example.org/sounds."
        )


def _check_written(name: str, value: str) -> None:
    folder = Path(value).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"{name} is {value!r} in the environment, where nothing can be written ({error.strerror or error}); name another folder."
        ) from error


def _check_address(name: str, port: int | None) -> str:
    problem = (
        f"{NAME_VARIABLE} is {name!r} in the environment; it must be an IPv4 address or name of this machine, such as 127.0.0.1 or 0.0.0.0"
    )
    with socket.socket(socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((name, USUAL_PORT if port is None else port))
        except (socket.gaierror, UnicodeError) as error:
            raise ConfigError(f"{problem}.") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE and port is not None:
                raise port_taken(port) from error
            if error.errno == errno.EADDRINUSE:
                return f"Port {USUAL_PORT} is taken; the next free one is used, unless {PORT_VARIABLE} names one."
            if error.errno == errno.EACCES:
                raise ConfigError(
                    f"{PORT_VARIABLE} is '{port}' in the environment, which this user may not listen on; name one above 1023."
                ) from error
            raise ConfigError(f"{problem} ({error.strerror or error}).") from error
    return ""
