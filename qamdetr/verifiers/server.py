"""The `server` verifier: a model behind an OpenAI-compatible chat endpoint that hears audio and returns log-probabilities."""

from __future__ import annotations

import base64
import io
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import soundfile

from qamdetr.config import VerifierConfig
from qamdetr.errors import QamDetrError
from qamdetr.types import Candidate, Recording, TextFeatures
from qamdetr.verifiers import prompt
from qamdetr.verifiers.base import PartialAnswersError
from qamdetr.verifiers.crops import SAMPLE_RATE_HZ, Crop, read_crops
from qamdetr.verifiers.http_json import KEY_VARIABLE, JsonClient, UnreachableError
from qamdetr.verifiers.outage import Outage

URL_VARIABLE = "QAMDETR_VERIFIER_URL"

TOP_LOGPROBS = 20
"""As many alternatives as the protocol allows; vLLM's own limit (`--max-logprobs`) is the same unless it is changed."""

_CHECK_SECONDS = 10.0
"""How long `check` waits at most; naming its models takes a server no time."""


@dataclass(frozen=True)
class ServerVerifier:
    """Sends each crop to a server and reads how likely its first word is Yes or No.

    The crops leave this machine. The key comes from the environment alone (`QAMDETR_VERIFIER_API_KEY`), so that no config file, log or
    cache can hold it.

    Source: report section 2.3, with the model behind a server.
    """

    client: JsonClient
    settings: VerifierConfig
    name: str = "server"
    needs_audio: bool = True
    _asked: dict[str, str] = field(default_factory=dict)
    _outage: Outage = field(default_factory=Outage)

    @property
    def identity(self) -> str:
        """Name, address, model and prompt; what the server does behind that name is its own."""
        return f"{self.name} {self.client.url} {self._model()} prompt-{prompt.fingerprint(str(TOP_LOGPROBS))}"

    def check(self) -> None:
        """Ask the server once for its models, whether or not an outage was noted; see `Verifier`.

        Raises:
            QamDetrError: It cannot be reached or refuses the key, or names no model where the settings name none.
        """
        client = replace(self.client, timeout_seconds=min(self.client.timeout_seconds, _CHECK_SECONDS), retries=0)
        if self.settings.model:
            client.reach("models")
        else:
            self._asked["model"] = _first_model(client)

    def verify(self, recording: Recording, query: str, text: Mapping[str, TextFeatures], candidates: Sequence[Candidate]) -> list[float]:
        """Score candidates, `batch_size` requests at once; see `Verifier`.

        The first request that fails ends them all. A server that fails to answer three times in a row is left alone for a while, during
        which this fails at once; see `Outage`.

        Raises:
            PartialAnswersError: A request failed after others had been answered.
            QamDetrError: The server cannot be reached, refuses, or answers neither Yes nor No.
        """
        if not candidates:
            return []
        self._outage.check()
        crops = read_crops(recording, candidates)
        scores, error = self._ask_all(crops, query, self._model())
        if scores:
            self._outage.over()
        elif isinstance(error, UnreachableError):
            self._outage.failed(error)
        if error is None:
            return [scores[place] for place in range(len(crops))]
        self._asked.clear()  # the server may be serving another model by now
        if scores and isinstance(error, QamDetrError):
            raise PartialAnswersError(str(error), scores) from error
        raise error

    def _ask_all(self, crops: Sequence[Crop], query: str, model: str) -> tuple[dict[int, float], Exception | None]:
        """Return the scores that came, by the crop's place, and the first failure, after which no other crop is begun."""
        scores: dict[int, float] = {}
        errors: list[Exception] = []
        stop = threading.Event()

        def ask(place: int, crop: Crop) -> None:
            if stop.is_set():
                return
            try:
                answer = self.client.post("chat/completions", chat_request(crop, query, model), stop)
                scores[place] = read_score(answer, self.client.url, self.client.masked)
            except Exception as error:  # told by the thread that waits
                errors.append(error)
                stop.set()

        with ThreadPoolExecutor(min(self.settings.batch_size, len(crops))) as pool:
            try:
                for future in [pool.submit(ask, place, crop) for place, crop in enumerate(crops)]:
                    future.result()
            finally:
                stop.set()  # Ctrl-C must not wait for crops that have not begun
        return scores, errors[0] if errors else None

    def _model(self) -> str:
        """Return the server's name of the model: as set, or the first that it offers, asked once."""
        if self.settings.model:
            return self.settings.model
        if not self._asked:
            self._outage.check()
            try:
                self._asked["model"] = _first_model(self.client)
            except UnreachableError as error:
                self._outage.failed(error)
                raise
        return self._asked["model"]


def _first_model(client: JsonClient) -> str:
    answer = client.get("models")
    try:
        return str(answer["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        told = f"{client.url}/models names no model; set verifier.model to the server's name of it."
        raise QamDetrError(client.masked(told)) from None


def open_server(settings: VerifierConfig) -> ServerVerifier:
    """Make the verifier; nothing is sent yet.

    Raises:
        QamDetrError: No address, or one that is not HTTP.
    """
    url = settings.url or os.environ.get(URL_VARIABLE, "")
    if not url:
        raise QamDetrError(
            f"Verifier 'server' has no address; set verifier.url or {URL_VARIABLE}, for example to http://localhost:8000/v1, "
            "or use verifier 'pocket'."
        )
    client = JsonClient(url, os.environ.get(KEY_VARIABLE, ""), settings.timeout_seconds, settings.retries)
    return ServerVerifier(client, settings)


def chat_request(crop: Crop, query: str, model: str) -> dict[str, Any]:
    """Return the body of a request: crop and question, one token to answer with, and its alternatives."""
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav_bytes(crop.samples)).decode(), "format": "wav"}}
    question = {"type": "text", "text": prompt.user_text(query, crop.window, crop.duration_seconds)}
    return {
        "model": model,
        "messages": [{"role": "system", "content": prompt.SYSTEM_TEXT}, {"role": "user", "content": [sound, question]}],
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": TOP_LOGPROBS,
    }


def wav_bytes(samples: np.ndarray) -> bytes:
    """Mono 16-bit WAV at 16 kHz of `(n,)` samples; what exceeds full scale is clipped."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1, 1), SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def read_score(answer: Any, url: str, masked: Callable[[str], str] = str) -> float:  # noqa: ANN401 - whatever JSON the server sends
    """Score of one answer, from the alternatives to its first token.

    A word that is not among them is at most as likely as the last of them, and is taken to be so: the score errs towards 0.5, not away.

    Args:
        answer: JSON of the server.
        url: Its address, for messages.
        masked: Takes secrets out of a message, in which the server's words may stand.

    Raises:
        QamDetrError: There are no log-probabilities, or the answer is neither Yes nor No.
    """
    try:
        choice = answer["choices"][0]
    except (KeyError, IndexError, TypeError):
        raise QamDetrError(masked(f"The answer of {url} is not that of an OpenAI-compatible chat server; check the address.")) from None
    try:
        listed = {str(item["token"]): float(item["logprob"]) for item in choice["logprobs"]["content"][0]["top_logprobs"]}
    except (KeyError, IndexError, TypeError, ValueError):
        listed = {}
    alternatives = {token: value for token, value in listed.items() if math.isfinite(value)}
    if len(alternatives) < 2:  # one alone, the chosen word, tells nothing of the other
        raise QamDetrError(
            masked(f"The answer of {url} has no log-probabilities of several words; the server must support `logprobs` with ")
            + f"`top_logprobs` (vLLM: --max-logprobs {TOP_LOGPROBS} or more)."
        )
    yes, no = ([alternatives[form] for form in forms if form in alternatives] for forms in (prompt.YES_SPELLINGS, prompt.NO_SPELLINGS))
    if not yes and not no:
        likeliest = max(alternatives, key=alternatives.__getitem__)
        told = f"The model at {masked(url)} answers neither Yes nor No (its first word is {masked(likeliest)[:30]!r}); serve Qwen2.5-Omni."
        raise QamDetrError(told)
    least = [min(alternatives.values())]
    return prompt.yes_probability(yes or least, no or least)
