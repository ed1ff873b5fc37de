"""Stand-in for Hugging Face's package `spaces` on ZeroGPU: work runs in a fork of this process, and all that goes in and out is pickled."""

from __future__ import annotations

import multiprocessing
from multiprocessing.reduction import ForkingPickler

LOANS: list[float] = []
"""Seconds asked for, call by call."""

REGISTERED: list[str] = []

_processes = multiprocessing.get_context("fork")


def GPU(*, duration):  # noqa: N802 - the package's own name
    def lend(task):
        REGISTERED.append(task.__name__)

        def borrow(*arguments):
            LOANS.append(duration(*arguments))
            here, there = _processes.Pipe()
            worker = _processes.Process(target=_work, args=(task, ForkingPickler.dumps(arguments), there))
            worker.start()
            done, answer = here.recv()
            worker.join()
            if not done:
                raise RuntimeError(f"ZeroGPU worker error: {answer}")  # as there: the class is all that is left of an error
            return answer

        return borrow

    return lend


def _work(task, sent, there):
    arguments = ForkingPickler.loads(sent)
    try:
        there.send((True, task(*arguments)))
    except Exception as error:
        there.send((False, type(error).__name__))
