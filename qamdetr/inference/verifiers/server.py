"""The `server` verifier: a model behind an OpenAI-compatible chat endpoint that hears audio and returns log-probabilities."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soundfile

from qamdetr.config import VerifierConfig
from qamdetr.errors import QamDetrError
from qamdetr.inference.verifiers import prompt
from qamdetr.inference.verifiers.crops import SAMPLE_RATE_HZ, Crop, read_crops
from qamdetr.inference.verifiers.http_json import JsonClient
from qamdetr.types import Candidate, Recording, TextFeatures

URL_VARIABLE, KEY_VARIABLE = "QAMDETR_VERIFIER_URL", "QAMDETR_VERIFIER_API_KEY"

TOP_LOGPROBS = 20
"""As many alternatives as the protocol allows; vLLM's own limit (`--max-logprobs`) is the same unless it is changed."""


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

    @property
    def identity(self) -> str:
        """Name, address, model and prompt; what the server does behind that name is its own."""
        return f"{self.name} {self.client.url} {self._model()} prompt-{prompt.PROMPT_VERSION}"

    def verify(self, recording: Recording, query: str, text: Mapping[str, TextFeatures], candidates: Sequence[Candidate]) -> list[float]:
        """Score candidates, `batch_size` requests at once; see `Verifier`. The first request that fails ends them all.

        Raises:
            QamDetrError: The server cannot be reached, refuses, or answers neither Yes nor No.
        """
        if not candidates:
            return []
        crops = read_crops(recording, candidates)
        model = self._model()
        with ThreadPoolExecutor(min(self.settings.batch_size, len(crops))) as pool:
            futures = [pool.submit(self._score, crop, query, model) for crop in crops]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self._asked.clear()  # the server may be serving another model by now
                raise

    def _score(self, crop: Crop, query: str, model: str) -> float:
        return read_score(self.client.post("chat/completions", chat_request(crop, query, model)), self.client.url)

    def _model(self) -> str:
        """Return the server's name of the model: as set, or the first that it offers, asked once."""
        if self.settings.model:
            return self.settings.model
        if not self._asked:
            answer = self.client.get("models")
            try:
                self._asked["model"] = str(answer["data"][0]["id"])
            except (KeyError, IndexError, TypeError):
                raise QamDetrError(f"{self.client.url}/models names no model; set verifier.model to the server's name of it.") from None
        return self._asked["model"]


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


def read_score(answer: Any, url: str) -> float:  # noqa: ANN401 - whatever JSON the server sends
    """Score of one answer, from the alternatives to its first token.

    A word that is not among them is at most as likely as the last of them, and is taken to be so: the score errs towards 0.5, not away.

    Raises:
        QamDetrError: There are no log-probabilities, or the answer is neither Yes nor No.
    """
    try:
        choice = answer["choices"][0]
    except (KeyError, IndexError, TypeError):
        raise QamDetrError(f"The answer of {url} is not that of an OpenAI-compatible chat server; check the address.") from None
    try:
        listed = {str(item["token"]): float(item["logprob"]) for item in choice["logprobs"]["content"][0]["top_logprobs"]}
    except (KeyError, IndexError, TypeError, ValueError):
        listed = {}
    alternatives = {token: value for token, value in listed.items() if math.isfinite(value)}
    if len(alternatives) < 2:  # one alone, the chosen word, tells nothing of the other
        raise QamDetrError(
            f"The answer of {url} has no log-probabilities of several words; the server must support `logprobs` with `top_logprobs` "
            f"(vLLM: --max-logprobs {TOP_LOGPROBS} or more)."
        )
    yes, no = ([alternatives[form] for form in forms if form in alternatives] for forms in (prompt.YES_SPELLINGS, prompt.NO_SPELLINGS))
    if not yes and not no:
        likeliest = max(alternatives, key=alternatives.__getitem__)
        raise QamDetrError(f"The model at {url} answers neither Yes nor No (its first word is {likeliest[:30]!r}); serve Qwen2.5-Omni.")
    least = [min(alternatives.values())]
    return prompt.yes_probability(yes or least, no or least)
