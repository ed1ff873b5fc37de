"""The lines in which visitors wait for their turn, so that they can be told that they wait, and how many are before them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from qamdetr.errors import QamDetrError


class LineFullError(QamDetrError):
    """More wait already than the page lets wait."""


class Ticket:
    """A place in a line: first one waits for one's turn, then one has it, until the ticket is given back."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def wait(self, seconds: float | None = None) -> int:
        """Wait for one's turn.

        Args:
            seconds: At most so long; None for as long as it takes.

        Returns:
            How many are still before; 0 = it is one's turn.
        """
        return self._line.wait(self, seconds)

    def until_turn(self, poll_seconds: float) -> Iterator[int]:
        """Wait for one's turn; yields, at once and then every `poll_seconds`, how many are still before."""
        seconds = 0.0
        while before := self.wait(seconds):
            yield before
            seconds = poll_seconds


class Line:
    """Serves in the order in which visitors came, `places` at a time."""

    def __init__(self, places: int, most_waiting: int) -> None:
        """Open an empty line.

        Args:
            places: How many have their turn at the same time.
            most_waiting: How many more may wait; whoever comes then is turned away.
        """
        self._places = places
        self._most_waiting = most_waiting
        self._tickets: list[Ticket] = []
        self._moved = threading.Condition()

    @contextmanager
    def ticket(self) -> Iterator[Ticket]:
        """Stand in line until the block ends, whichever way.

        Raises:
            LineFullError: Too many wait.
        """
        mine = Ticket(self)
        with self._moved:
            waiting = len(self._tickets) - self._places
            if waiting >= self._most_waiting:
                many = "1 request is" if waiting == 1 else f"{waiting} requests are"
                raise LineFullError(f"Too many at once: {many} waiting already, which is the limit; try again in a moment.")
            self._tickets.append(mine)
        try:
            yield mine
        finally:
            with self._moved:
                self._tickets.remove(mine)
                self._moved.notify_all()

    def wait(self, ticket: Ticket, seconds: float | None) -> int:
        """Do as `Ticket.wait`."""
        with self._moved:
            self._moved.wait_for(lambda: self._before(ticket) == 0, seconds)
            return self._before(ticket)

    def _before(self, ticket: Ticket) -> int:
        return max(self._tickets.index(ticket) - self._places + 1, 0)
