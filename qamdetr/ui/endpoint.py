"""The public endpoint `/retrieve`: what programs call over HTTP, through gradio's clients, and as a tool of the Model Context Protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from qamdetr.export.text import to_json_object
from qamdetr.inference.checkpoint import DEFAULT_CHECKPOINT
from qamdetr.progress import heard_by
from qamdetr.types import Recording, Result
from qamdetr.ui.caller import caller_waits
from qamdetr.ui.encoding_progress import POLL_SECONDS, StoppedError
from qamdetr.ui.endpoint_arguments import check_words, checked_top_k
from qamdetr.ui.page_errors import page_error
from qamdetr.ui.queries import checked_query
from qamdetr.ui.recordings import Recordings
from qamdetr.ui.settings import AppSettings
from qamdetr.ui.shared_retriever import Retriever, SharedRetriever

ENDPOINT = "retrieve"


class Endpoint:
    """Answers one query on one recording, and stops when its caller has left. Callers have no session, and push nobody out of theirs."""

    def __init__(self, model: SharedRetriever, recordings: Recordings, settings: AppSettings | None = None) -> None:
        self._model = model
        self._recordings = recordings
        self._settings = settings or AppSettings()

    def build(self) -> None:
        """Add `/retrieve` to the current `gr.Blocks`; its components are never shown and only describe the arguments."""
        audio = gr.Audio(type="filepath", label="Recording", visible=False)
        query = gr.Textbox(label="Query", visible=False)
        top_k = gr.Number(10, precision=0, label="Most moments to return, 1 to 100", visible=False)
        verifier = gr.Radio(list(self._settings.verifiers), value="none", label="Verifier", visible=False)
        beta = gr.Number(None, label="Weight of the verifier, 0 to 1; left out: the checkpoint's own", visible=False)
        checkpoint = gr.Textbox(None, label="Name of the model; left out: the one that the page starts with", visible=False)
        answer = gr.JSON(label="Moments", visible=False)
        trigger = gr.Button(visible=False)
        inputs = [audio, query, top_k, verifier, beta, checkpoint]
        # Without `queue`, MCP calls this function itself and not over HTTP, through one client for all: only so it is seen who has left.
        # Over HTTP it changes nothing; `PageBlocks` sees to gradio's clients.
        trigger.click(self.retrieve, inputs, answer, api_name=ENDPOINT, queue=False, concurrency_limit=None)

    def retrieve(
        self,
        audio: str,
        query: str,
        top_k: float = 10,
        verifier: str = "none",
        beta: float | None = None,
        checkpoint: str | None = None,
    ) -> dict[str, Any]:
        """Find the moments of a recording that match a query, with scores, best first; times are in seconds.

        The answer is what `python -m qamdetr predict --format json` writes per query: `audio, duration, query, found, encoder, verifier,
        beta, moments: [{start, end, score, decoder_score, foreground, quality, verifier_score}], saliency: [per second], notes`. Look at
        `found` first: when it is false, the best moment is below the model's threshold, and the sound is not in this recording.

        In the Model Context Protocol (MCP), `audio` is the address of a file that was uploaded to this page, a public http or https address
        that gives the file itself, or the file as `data:audio/wav;base64,...`; paths, private addresses and this machine's are refused.

        A mistake comes back as one line that says what, the limit and the remedy: a file that is no audio, too large or too long; an empty
        or overlong query; an option of the wrong kind or out of range; a model that is not offered or whose encoders are not here; too many
        callers at once.

        Args:
            audio: The recording (WAV, FLAC, OGG, MP3, anything ffmpeg reads): an uploaded file. In MCP: an address or `data:;base64,...`.
            query: What to look for, in words; at most 500 characters. English, unless the model's encoders know other languages.
            top_k: Most moments to return, 1 to 100.
            verifier: Second opinion on each candidate: `none`, `pocket`, or `qwen2.5-omni` or `server` where the page offers them.
            beta: Weight of the verifier in the score, 0 to 1; leave it out for the checkpoint's own.
            checkpoint: Name of the model, as the page lists them; leave it out for the one that the page starts with.

        Returns:
            The JSON object described above.
        """
        try:
            check_words((query, top_k, verifier, beta, checkpoint), self._settings.verifiers)
            name = checkpoint or self._model.first
            self._model.open_offered(name, f"pass checkpoint={DEFAULT_CHECKPOINT!r}")
            recording = self._recordings.encode_for_program(name, Path(audio), caller_waits)
            retriever = self._model.get(name)
            result = self._answer(retriever, recording, query, checked_top_k(top_k), verifier, beta)
        except StoppedError:
            raise gr.Error("The caller has left.", print_exception=False) from None  # which nobody reads
        except Exception as error:
            raise page_error(error, shown=False) from error
        return {**to_json_object(result), "audio": Path(audio).name}

    def _answer(self, retriever: Retriever, recording: Recording, query: str, top_k: int, verifier: str, beta: float | None) -> Result:
        chosen = self._model.verifier(verifier, retriever)
        with self._model.answering.ticket() as ticket:
            for _ in ticket.until_turn(POLL_SECONDS):
                _stop_if_left()
            with heard_by(lambda _: _stop_if_left()):
                (result,) = retriever.retrieve_many(recording, [checked_query(query)], top_k=top_k, verifier=chosen, beta=beta)
        return result


def _stop_if_left() -> None:
    if not caller_waits():
        raise StoppedError
