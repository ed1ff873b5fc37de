"""What whoever runs the page may choose, from environment variables; `docs/hosting.md` lists them. Without any, safe defaults."""

from __future__ import annotations

import errno
import importlib.util
import math
import os
import re
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from qamdetr.audio import MAX_SECONDS
from qamdetr.config import VerifierConfig
from qamdetr.errors import CheckpointError, ConfigError, QamDetrError
from qamdetr.features.hub import MissingModelError
from qamdetr.inference.checkpoint import DEFAULT_CHECKPOINT, find_checkpoint
from qamdetr.verifiers import VERIFIERS
from qamdetr.verifiers.base import DEFAULT_VERIFIER
from qamdetr.verifiers.qwen_omni import locate_model
from qamdetr.verifiers.server import URL_VARIABLE, ServerVerifier

HOSTED_VARIABLE = "SPACE_ID"
"""Set by Hugging Face on every Space: strangers use the page, and the machine is not theirs."""

CHECKPOINT_VARIABLE = "QAMDETR_CHECKPOINT"
TRAINING_VARIABLE = "QAMDETR_TRAINING"
UPLOAD_VARIABLE = "QAMDETR_UPLOAD_MB"
LONGEST_VARIABLE = "QAMDETR_LONGEST_MINUTES"
QUEUE_VARIABLE = "QAMDETR_QUEUE_LENGTH"
MODEL_VARIABLE = "QAMDETR_VERIFIER_MODEL"
WARM_UP_VARIABLE = "QAMDETR_WARM_UP"
MCP_VARIABLE = "QAMDETR_MCP"

MAX_WAITING = 1000
"""Requests that wait cost next to nothing, but nobody waits for so many others."""

PASSING_REQUESTS = 8
"""Places in the queue besides: every press of a button passes through it."""

_YES_NO = {**dict.fromkeys(("1", "true", "yes", "on"), True), **dict.fromkeys(("0", "false", "no", "off"), False)}


NEED_SETTINGS = ("qwen2.5-omni", "server")
"""Verifiers that are offered where a variable names their model or address."""


def usual_verifiers() -> tuple[str, ...]:
    """List the verifiers that are registered and need no setting, after `none`."""
    return (DEFAULT_VERIFIER, *(name for name in VERIFIERS if name not in NEED_SETTINGS))


@dataclass(frozen=True)
class AppSettings:
    """How the page is run. The defaults are those of one's own machine.

    Attributes:
        hosted: Strangers use the page: a Space.
        training: Show the tab that trains; whoever sees it can use the machine's disk and processor for hours.
        upload_mb: Largest file that is taken, in MB of 1024 * 1024 bytes.
        longest_minutes: Longest recording that is encoded.
        queue_length: Requests that may wait, up to `MAX_WAITING`; later ones are told that the queue is full.
        checkpoint: Name or folder of the model that the page starts with.
        verifiers: What is offered, `none` first.
        verifier_model: Hub id or folder for `qwen2.5-omni`; empty where it is not offered.
        verifier_url: Address for `server`; empty where it is not offered.
        warm_up: Load the model at start, so that the first visitor does not wait.
        mcp: Serve `/retrieve` as a tool of the Model Context Protocol as well.
        server_port: Where it listens, and nowhere else; None for gradio's own, or the next one that is free.
    """

    hosted: bool = False
    training: bool = True
    upload_mb: int = 500
    longest_minutes: float = 120.0
    queue_length: int = 32
    checkpoint: str = DEFAULT_CHECKPOINT
    verifiers: tuple[str, ...] = field(default_factory=usual_verifiers)
    verifier_model: str = ""
    verifier_url: str = ""
    warm_up: bool = True
    mcp: bool = False
    server_port: int | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> AppSettings:
        """Read and check all variables; one that is empty counts as not set.

        Args:
            environment: Names and values; None for those of the process.

        Raises:
            ConfigError: A value that cannot be used; names the variable, the value and what is possible.
        """
        given = {name: value.strip() for name, value in (os.environ if environment is None else environment).items() if value.strip()}
        hosted = HOSTED_VARIABLE in given
        usual = cls(hosted=True, training=False, upload_mb=200, longest_minutes=60.0) if hosted else cls()
        model, url = _verifier_model(given), _server_address(given)
        offered = (("qwen2.5-omni",) if model else ()) + (("server",) if url else ())
        return replace(
            usual,
            training=_switch(given, TRAINING_VARIABLE, usual.training),
            upload_mb=int(_number(given, UPLOAD_VARIABLE, usual.upload_mb, 1, 10_000, whole=True)),
            longest_minutes=_number(given, LONGEST_VARIABLE, usual.longest_minutes, 0.1, MAX_SECONDS / 60),
            queue_length=int(_number(given, QUEUE_VARIABLE, usual.queue_length, 1, MAX_WAITING, whole=True)),
            checkpoint=_checkpoint(given),
            verifiers=(*usual.verifiers, *offered),
            verifier_model=model,
            verifier_url=url,
            warm_up=_switch(given, WARM_UP_VARIABLE, usual.warm_up),
            mcp=_mcp(given, usual.mcp),
            server_port=server_port(given),
        )

    @property
    def upload_bytes(self) -> int:
        """`upload_mb` in bytes."""
        return self.upload_mb * 1024**2

    @property
    def longest_seconds(self) -> float:
        """`longest_minutes` in seconds."""
        return self.longest_minutes * 60

    def verifier_config(self, name: str, trained: VerifierConfig) -> VerifierConfig:
        """Give an offered verifier its settings: the checkpoint's own, with the model or address that the environment names."""
        if name == "qwen2.5-omni" and self.verifier_model:
            return replace(trained, model=self.verifier_model)
        if name == "server" and self.verifier_url:
            return replace(trained, url=self.verifier_url)
        return trained


def _switch(given: Mapping[str, str], name: str, usual: bool) -> bool:
    value = given.get(name)
    if value is None:
        return usual
    if value.lower() not in _YES_NO:
        raise ConfigError(f"{name} is {value!r} in the environment; it must be 1 (on) or 0 (off).")
    return _YES_NO[value.lower()]


def _mcp(given: Mapping[str, str], usual: bool) -> bool:
    wanted = _switch(given, MCP_VARIABLE, usual)
    if wanted and importlib.util.find_spec("mcp") is None:
        raise ConfigError(
            f"{MCP_VARIABLE} is on in the environment, but the package mcp is not here; pip install 'gradio[mcp]', or set it to 0."
        )
    return wanted


def _number(given: Mapping[str, str], name: str, usual: float, least: float, most: float, *, whole: bool = False) -> float:
    text = given.get(name)
    if text is None:
        return usual
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"{name} is {text!r} in the environment; it must be {kind} from {least:g} to {most:g}.")
    return value


def _checkpoint(given: Mapping[str, str]) -> str:
    name = given.get(CHECKPOINT_VARIABLE, DEFAULT_CHECKPOINT)
    variable = next((variable for variable in (CHECKPOINT_VARIABLE, CHECKPOINTS_VARIABLE) if variable in given), None)
    if variable is not None:
        try:
            find_checkpoint(name)
        except CheckpointError as error:
            raise ConfigError(f"{variable} is {given[variable]!r} in the environment. {error}") from error
    return name


def _verifier_model(given: Mapping[str, str]) -> str:
    model = given.get(MODEL_VARIABLE, "")
    if model:
        try:
            locate_model(model, download=False)
        except MissingModelError:
            return model  # a hub id; it is fetched when the verifier is asked
        except CheckpointError as error:
            raise ConfigError(f"{MODEL_VARIABLE} is {model!r} in the environment. {error}") from error
    return model


def _server_address(given: Mapping[str, str]) -> str:
    url = given.get(URL_VARIABLE, "")
    if url:
        try:
            ServerVerifier(VerifierConfig(url=url))
        except QamDetrError as error:
            raise ConfigError(f"{URL_VARIABLE} cannot be used: {error}") from error
    return url


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
