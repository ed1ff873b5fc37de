"""What whoever runs the page may choose, from environment variables; `docs/hosting.md` lists them. Without any, safe defaults."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from qamdetr.audio_blocks import MAX_SECONDS
from qamdetr.config import VerifierConfig
from qamdetr.errors import CheckpointError, ConfigError, QamDetrError
from qamdetr.inference.checkpoint import DEFAULT_CHECKPOINT, find_checkpoint
from qamdetr.ui.start_checks import CHECKPOINTS_VARIABLE, server_port
from qamdetr.verifiers.qwen_omni import check_model
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

MOST_THREADS = 200
"""A request that waits keeps a thread, which sleeps."""

PASSING_REQUESTS = 40
"""Requests besides those that wait for the model; as many threads as gradio has by itself."""

MOST_WAITING = (MOST_THREADS - PASSING_REQUESTS) // 2
"""In each of the two lines; were there more, nothing but waiting would be left, and buttons would not answer."""

_YES_NO = {**dict.fromkeys(("1", "true", "yes", "on"), True), **dict.fromkeys(("0", "false", "no", "off"), False)}


@dataclass(frozen=True)
class AppSettings:
    """How the page is run. The defaults are those of one's own machine.

    Attributes:
        hosted: Strangers use the page: a Space.
        training: Show the tab that trains; whoever sees it can use the machine's disk and processor for hours.
        upload_mb: Largest file that is taken, in MB of 1024 * 1024 bytes.
        longest_minutes: Longest recording that is encoded.
        queue_length: Requests that may wait in each line, up to `MOST_WAITING`; later ones are told that the line is full.
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
    longest_minutes: float = MAX_SECONDS / 60
    queue_length: int = 32
    checkpoint: str = DEFAULT_CHECKPOINT
    verifiers: tuple[str, ...] = ("none", "pocket")
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
            queue_length=int(_number(given, QUEUE_VARIABLE, usual.queue_length, 1, MOST_WAITING, whole=True)),
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
            check_model(model)
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
