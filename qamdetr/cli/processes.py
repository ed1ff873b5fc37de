"""Finds out how many processes a launcher started (`accelerate launch`, `torchrun`, `mpirun`), and lets them hear of each other.

For work that shares no gradients: nothing is set up in a plain run, and processes exchange a few words at the end, over gloo, which needs
no GPU. A process that is done waits for the slowest, however long.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from qamdetr.errors import ConfigError, QamDetrError

_RANK = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
_WORLD_SIZE = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_LOCAL_RANK = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK")
_PATIENCE = timedelta(days=30)  # PyTorch's own half an hour is soon over between the first and the last to finish

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Processes:
    """One of the processes of a run.

    Attributes:
        index: Its number among them, from 0.
        count: How many there are, on all machines.
        local_index: Its number on its machine.
    """

    index: int = 0
    count: int = 1
    local_index: int = 0

    def gather(self, item: _Item) -> list[_Item]:
        """Give every process the items of all, in their order; all must call it.

        Raises:
            QamDetrError: A process or the network is gone.
        """
        if self.count == 1:
            return [item]
        from torch import distributed

        items: list[_Item | None] = [None] * self.count
        try:
            distributed.all_gather_object(items, item)
        except (RuntimeError, ConnectionError) as error:
            reason = " ".join(str(error).split())[:160]
            raise QamDetrError(
                f"Another of the {self.count} processes cannot be reached ({reason}); run the same command again."
            ) from error
        return items  # type: ignore[return-value]

    def device(self, wanted: str | None) -> str | None:
        """Return the device of this process: `wanted`, with a GPU of its own where it names none; None leaves the choice."""
        if wanted is None and os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true", "yes", "on"}:
            return "cpu"
        if self.count == 1 or wanted not in {None, "cuda"}:
            return wanted
        from torch import cuda

        return f"cuda:{self.local_index % cuda.device_count()}" if cuda.is_available() else wanted


@contextlib.contextmanager
def joined_processes() -> Iterator[Processes]:
    """Connect the processes of a launcher for the length of the block; alone, nothing is connected.

    Raises:
        ConfigError: The launcher's environment is incomplete.
    """
    processes = Processes(_number(_RANK, 0), _number(_WORLD_SIZE, 1), _number(_LOCAL_RANK, 0))
    if processes.count == 1:
        yield processes
        return
    from torch import distributed

    try:
        distributed.init_process_group("gloo", rank=processes.index, world_size=processes.count, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"The {processes.count} processes cannot be connected ({reason}); start them with `accelerate launch` or `torchrun`."
        ) from error
    try:
        yield processes
    finally:
        distributed.destroy_process_group()


def _number(names: tuple[str, ...], default: int) -> int:
    found = next((os.environ[name] for name in names if os.environ.get(name)), str(default))
    if not found.isdigit():
        raise ConfigError(f"{names[0]} is {found!r} in the environment; it must be a whole number, as a launcher sets it.")
    return int(found)
