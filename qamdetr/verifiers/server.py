"""The `server` verifier: a model behind an OpenAI-compatible chat endpoint that hears audio and returns log-probabilities."""

from __future__ import annotations

import base64
import contextlib
import io
import math
import os
import re
import textwrap
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import soundfile

from qamdetr.config import VerifierConfig
from qamdetr.errors import QamDetrError
from qamdetr.features.hub import one_line
from qamdetr.types import Candidate, Recording, TextFeatures
from qamdetr.verifiers import prompt
from qamdetr.verifiers.base import SAMPLE_RATE_HZ, Crop, PartialAnswersError, Verifier, read_crops, verifier

KEY_VARIABLE = "QAMDETR_VERIFIER_API_KEY"
URL_VARIABLE = "QAMDETR_VERIFIER_URL"

TOP_LOGPROBS = 20  # alternatives, as many as the protocol allows; vLLM's own limit (`--max-logprobs`) is the same unless it is changed
_CHECK_SECONDS = 10.0  # that `check` waits at most; naming its models takes a server no time
_FIRST_WAIT_SECONDS = 0.5
_VISIBLE_ASCII = re.compile(r"[!-~]*")


@verifier("server", label="Server (OpenAI-compatible)", hears=True)
class ServerVerifier(Verifier):
    """Sends each crop to a server and reads how likely its first word is Yes or No.

    The crops leave this machine. The key comes from the environment alone (`QAMDETR_VERIFIER_API_KEY`), so that no config file, log or
    cache can hold it. A broken connection, HTTP 429 and 5xx are tried again, `verifier.retries` times, with waits that double from half a
    second; silence and other HTTP errors are final.

    Source: report section 2.3, with the model behind a server.
    """

    def __init__(self, settings: VerifierConfig | None = None) -> None:
        """Check address and key; nothing is sent yet."""
        super().__init__(settings)
        url = self.settings.url or os.environ.get(URL_VARIABLE, "")
        if not url:
            remedy = f"set verifier.url or {URL_VARIABLE}, for example to http://localhost:8000/v1, or use verifier 'pocket'"
            raise QamDetrError("Verifier 'server' has no address", remedy)
        self.url = usable_url(url.strip())
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not _VISIBLE_ASCII.fullmatch(self._key):
            raise QamDetrError(f"The key in {KEY_VARIABLE} holds blanks or characters outside ASCII; set it to the key alone.")
        self._offered = ""

    @property
    def identity(self) -> str:
        """Name, address, model and prompt; what the server does behind that name is its own."""
        return f"{self.name} {self.url} {self._model()} prompt-{prompt.fingerprint(str(TOP_LOGPROBS))}"

    def check(self) -> None:
        """Ask the server once for its models."""
        with self._client(min(self.settings.timeout_seconds, _CHECK_SECONDS)) as client:
            if not self.settings.model:
                self._offered = self._ask_model(client, retries=0)
            elif (answer := self._exchange(client, "models")).status_code in {401, 403}:  # one that names no models may have that one
                raise self._refusal(answer)

    def verify(self, recording: Recording, query: str, text: Mapping[str, TextFeatures], candidates: Sequence[Candidate]) -> list[float]:
        """Score candidates, `batch_size` requests at once; the first that fails ends them all."""
        crops = read_crops(recording, candidates)
        scores: dict[int, float] = {}
        errors: list[QamDetrError] = []

        def ask(place: int, crop: Crop) -> None:
            if errors:
                return
            try:
                answer = self._ask(client, "chat/completions", chat_request(crop, query, model), retries=self.settings.retries)
                scores[place] = read_score(answer, self.url)
            except QamDetrError as error:  # told by the thread that waits
                errors.append(error)

        model = self._model()
        with self._client() as client, ThreadPoolExecutor(min(self.settings.batch_size, len(crops))) as pool:
            list(pool.map(ask, range(len(crops)), crops))  # which Ctrl-C ends without waiting for crops that have not begun
        if not errors:
            return [scores[place] for place in range(len(crops))]
        self._offered = ""  # the server may be serving another model by now
        raise PartialAnswersError(str(errors[0]), scores) from errors[0]

    def _model(self) -> str:
        """Return the server's name of the model: as set, or the first that it offers, asked once."""
        if not self.settings.model and not self._offered:
            with self._client() as client:
                self._offered = self._ask_model(client, self.settings.retries)
        return self.settings.model or self._offered

    def _ask_model(self, client: httpx.Client, retries: int) -> str:
        try:
            return str(self._ask(client, "models", retries=retries)["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise QamDetrError(f"{self.url}/models names no model; set verifier.model to the server's name of it.") from None

    def _client(self, timeout_seconds: float | None = None) -> httpx.Client:
        headers = {"User-Agent": "qamdetr", **({"Authorization": f"Bearer {self._key}"} if self._key else {})}
        # Redirects are not followed: they would carry crops and key to an address that the user did not name.
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout_seconds or self.settings.timeout_seconds)

    def _ask(self, client: httpx.Client, path: str, body: object = None, *, retries: int) -> Any:  # noqa: ANN401 - whatever JSON it sends
        """Get `path`, or post JSON to it, and return the JSON of the answer."""
        tried = 0
        while True:
            tried += 1
            try:
                answer = self._exchange(client, path, body)
                if answer.status_code >= 300:
                    raise self._refusal(answer)
                return answer.json()
            except (ValueError, RecursionError):
                what = f"The answer of {self.url} is not JSON"
                raise QamDetrError(what, "check that the address is that of an OpenAI-compatible API") from None
            except _PassingError as problem:
                if tried > retries:
                    raise QamDetrError(f"{problem} (tried {tried} times)") from None
                time.sleep(_FIRST_WAIT_SECONDS * 2 ** (tried - 1))

    def _exchange(self, client: httpx.Client, path: str, body: object = None) -> httpx.Response:
        """Send one request. Causes are not chained: they could show the headers, the key among them."""
        try:
            return client.request("GET" if body is None else "POST", path, json=body)
        except httpx.TimeoutException:
            remedy = "check that the server runs there" if body is None else "raise verifier.timeout_seconds or lower verifier.batch_size"
            raise QamDetrError(f"{self.url} gave no answer within {client.timeout.read:g} s", remedy) from None
        except (httpx.ReadError, httpx.RemoteProtocolError, httpx.DecodingError):
            raise _PassingError(f"The answer of {self.url} broke off", "check the server and what lies between") from None
        except httpx.HTTPError as error:
            raise _PassingError(f"Cannot connect to {self.url} ({one_line(error)})", "check that the server runs there") from None

    def _refusal(self, answer: httpx.Response) -> QamDetrError:
        """Say what an HTTP error means, with the server's own words."""
        text, status = answer.text, answer.status_code
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
            told = answer.json()
            told = told.get("error", told)
            text = told if isinstance(told, str) else str(told["message"])
        text = text.replace(self._key, "…") if self._key else text
        shown = textwrap.shorten(text, 160, placeholder=" …").rstrip(".")
        message = f"{self.url} answers HTTP {status}{f' ({shown})' if shown else ''}."
        if status == 429 or status >= 500:
            return _PassingError(message)
        if status in {401, 403}:
            message += f" Set the key in the environment variable {KEY_VARIABLE}."
        elif status == 404:
            message += " Check verifier.url (it ends with /v1 as a rule) and verifier.model."
        elif status < 400:
            message += " Redirects are not followed; give the final address."
        return QamDetrError(message)


class _PassingError(QamDetrError):
    """Something that may go better on another try."""


def usable_url(url: str) -> str:
    """Return an address without slashes at its end, or refuse one that cannot be used. What may hold a secret is not quoted."""
    if any(mark in url for mark in "@?#"):
        what = "The server's address holds a user name, a password, `?` or `#`"
        raise QamDetrError(what, "end it with its path, as in http://localhost:8000/v1, and give keys in the environment")
    if not _VISIBLE_ASCII.fullmatch(url):
        raise QamDetrError(f"The server's address {url!r} holds blanks or characters outside ASCII; write them as %20 and the like.")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise QamDetrError(f"{url!r} is not an HTTP address; give one such as http://localhost:8000/v1.")
    return url.rstrip("/")


def chat_request(crop: Crop, query: str, model: str) -> dict[str, Any]:
    """Return the body of a request: crop (16-bit WAV; what exceeds full scale is clipped) and question, and the wish for one token."""
    wav = io.BytesIO()
    soundfile.write(wav, np.clip(crop.samples, -1, 1), SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16")
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav.getvalue()).decode(), "format": "wav"}}
    question = {"type": "text", "text": prompt.user_text(query, crop.window, crop.duration_seconds)}
    messages = [{"role": "system", "content": prompt.SYSTEM_TEXT}, {"role": "user", "content": [sound, question]}]
    wish = {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
    return {"model": model, "messages": messages, **wish}


def read_score(answer: Any, url: str) -> float:  # noqa: ANN401 - whatever JSON the server sends
    """Score of one answer, from the alternatives to its first token.

    A word that is not among them is at most as likely as the last of them, and is taken to be so: the score errs towards 0.5, not away.
    """
    try:
        words = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        listed = {str(item["token"]): float(item["logprob"]) for item in words}
    except (KeyError, IndexError, TypeError, ValueError):
        listed = {}
    alternatives = {token: value for token, value in listed.items() if math.isfinite(value)}
    if len(alternatives) < 2:  # one alone, the chosen word, tells nothing of the other
        remedy = f"the server must be OpenAI-compatible and support `top_logprobs` (vLLM: --max-logprobs {TOP_LOGPROBS} or more)"
        raise QamDetrError(f"The answer of {url} has no log-probabilities of several words", remedy)
    yes, no = ([alternatives[form] for form in forms if form in alternatives] for forms in (prompt.YES_SPELLINGS, prompt.NO_SPELLINGS))
    if not yes and not no:
        likeliest = max(alternatives, key=alternatives.__getitem__)
        raise QamDetrError(f"The model at {url} answers neither Yes nor No (its first word is {likeliest[:30]!r}); serve Qwen2.5-Omni.")
    least = [min(alternatives.values())]
    return prompt.yes_probability(yes or least, no or least)
