"""What one visitor has opened."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from qamdetr.types import Recording
from qamdetr.ui.ablations import Ask
from qamdetr.ui.encoding_progress import EncodingRun
from qamdetr.ui.examples import Example
from qamdetr.ui.lane_results import LaneResult
from qamdetr.ui.presenters import View, empty_view, result_view

KEPT_RECORDINGS = 3
"""Encoded recordings that a session keeps: going back to an earlier one costs nothing, and an hour of features is some 4 MB."""


class Encoded:
    """Recordings that are encoded or being encoded.

    Attributes:
        recordings: (version of the encoders, path) -> encoded recording, the one used last at the end.
        runs: Key of `recordings` -> what is being encoded.
    """

    def __init__(self, most: int = KEPT_RECORDINGS) -> None:
        """Begin with nothing.

        Args:
            most: Recordings to keep.
        """
        self._most = most
        self.recordings: OrderedDict[tuple[str, str], Recording] = OrderedDict()
        self.runs: dict[tuple[str, str], EncodingRun] = {}

    def keep(self, encoder: str, path: str, recording: Recording) -> None:
        """Remember an encoded recording and forget the one that was used longest ago."""
        self.recordings[encoder, path] = recording
        self.recordings.move_to_end((encoder, path))
        while len(self.recordings) > self._most:
            self.recordings.popitem(last=False)


class Session(Encoded):
    """What one visitor has opened; lives in `gr.State` and nowhere else.

    Attributes:
        greeted: The page has loaded with this session, or has been told that it lost an earlier one.
        recording: The open one, or None.
        waiting: Path, title and example of a recording that is being opened, or could not be for want of a model or a place; or None.
        asking: Stands for the question that is being answered, or None; whoever takes it away ends the answering.
        checkpoint: The model in use; the visitor may choose another.
        example: The example that is open, or None.
        queries: What was asked last.
        lanes: The answers on the page.
        asks: The models that gave them.
        chosen: What goes into an export: `(lane, index in the moments of its result)`; None = untouched: the likely moments.
        beta: Weight of the verifier that the answers were asked with.
        base: View of the open recording without an answer.
        view: What the page shows; put back when something fails.
    """

    def __init__(self, checkpoint: str = "", *, greeted: bool = True) -> None:
        super().__init__()
        self.greeted = greeted
        self.recording: Recording | None = None
        self.waiting: tuple[Path, str, Example | None] | None = None
        self.asking: object | None = None
        self.checkpoint = checkpoint
        self.example: Example | None = None
        self.queries: list[str] = []
        self.beta = 0.0
        self.show(empty_view())

    def stop(self) -> None:
        """End what is going on: nobody waits for a recording or an answer any more."""
        self.waiting, self.asking = None, None

    @property
    def idle(self) -> bool:
        """Whether nothing is going on, so that the page may show `view`."""
        return self.waiting is None and self.asking is None

    def show(self, base: View) -> None:
        """Show a recording, or nothing, without an answer."""
        self.base = self.view = base
        self.lanes: list[LaneResult] = []
        self.asks: list[Ask] = []
        self.chosen: list[tuple[int, int]] | None = None

    def answer(self, queries: Sequence[str], lanes: Sequence[LaneResult], asks: Sequence[Ask], beta: float) -> None:
        """Show answers on the open recording."""
        self.queries, self.lanes, self.asks, self.beta = list(queries), list(lanes), list(asks), beta
        self.chosen = None
        self.view = result_view(self.base, self.lanes)
