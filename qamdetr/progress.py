"""How far long work is: told where the work is done, heard by whoever called it, who may end the work by raising."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

OnShare = Callable[[float | None], None]
"""Told the share that is done of the present stage, in [0, 1]; None where that cannot be known."""

_listener: ContextVar[OnShare | None] = ContextVar("listener", default=None)


@contextmanager
def heard_by(on_share: OnShare) -> Iterator[None]:
    """Send what the work inside tells to `on_share`, in this thread alone; what it raises ends the work."""
    token = _listener.set(on_share)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(share: float | None) -> None:
    """Tell the share of the present stage that is done; work that takes seconds calls it often, at least once a second or so."""
    on_share = _listener.get()
    if on_share is not None:
        on_share(share if share is None else min(max(share, 0.0), 1.0))
