"""What may be switched off in a model, the rows of Table 1, and which models answer when somebody looks inside. Pure: no gradio."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from qamdetr.config import Config, ModelConfig, switches
from qamdetr.errors import CheckpointError, ConfigError
from qamdetr.inference.checkpoint import CONFIG_FILE, find_checkpoint, read_checkpoint_config
from qamdetr.verifiers.base import DEFAULT_VERIFIER

MAX_LANES = 16
"""Answers that the page shows at once."""

VERIFIER = "verifier"
"""Name of the verifier among the components; all others are names that `QamDetr.forward` takes as `bypass`."""


@dataclass(frozen=True)
class Row:
    """One row of the report's Table 1: a system with one component more than the row before.

    Attributes:
        number: 1 to 6.
        label: As in the table.
        checkpoint: The shipped model that was trained this way.
    """

    number: int
    label: str
    checkpoint: str


TABLE_ROWS = (
    Row(1, "DETR-style baseline", "ladder-1-baseline"),
    Row(2, "+ BiMamba encoder", "ladder-2-bimamba"),
    Row(3, "+ Quality regression loss", "ladder-3-quality"),
    Row(4, "+ Multi-scale temporal fusion", "ladder-4-multiscale"),
    Row(5, "+ 3-way cross-attention", "ladder-5-three-way"),
    Row(6, "+ Multi-feature integration", "ladder-6-multi-feature"),
)

ENCODER_ROWS = (1, 2)
"""The two rows that differ in the temporal encoder alone: Transformer and BiMamba."""


@dataclass(frozen=True)
class Ask:
    """One model that answers every query: one lane per query.

    Attributes:
        checkpoint: Name or folder.
        bypass: Components of the network that are left out.
        verifier: Who looks at the candidates.
        label: What its lane is called where several models answer.
        how: "trained this way: …" or "bypassed in the full model: …".
    """

    checkpoint: str
    bypass: tuple[str, ...]
    verifier: str
    label: str
    how: str


def read_config(checkpoint: str) -> Config:
    """Read the configuration of a checkpoint without loading its weights.

    Raises:
        CheckpointError: No such checkpoint, or a configuration that this version cannot read.
    """
    return _read(checkpoint, (find_checkpoint(checkpoint) / CONFIG_FILE).stat().st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _read(checkpoint: str, changed_ns: int) -> Config:  # a run that goes on writes the same file again
    return read_checkpoint_config(checkpoint)


def components(checkpoint: str, verifier: str = DEFAULT_VERIFIER) -> list[tuple[str, str]]:
    """List what can be left out of a model's answer: `(label, name)`; empty where the checkpoint cannot be read."""
    try:
        names = bypassable(read_config(checkpoint).model)
    except CheckpointError:
        return []
    return [(label_of(name), name) for name in (*names, *((VERIFIER,) if verifier != DEFAULT_VERIFIER else ()))]


def bypassable(model: ModelConfig) -> tuple[str, ...]:
    """Names that a network of this configuration can bypass; the same as `QamDetr.bypassable`, without building it."""
    streams = [f"audio/{name}" for name in list(model.audio_streams)[1:]] + [f"text/{name}" for name in list(model.text_streams)[1:]]
    return (*streams, *(name for name, switch in switches().items() if switch.bypassable and switch.is_on(model)))


def label_of(component: str) -> str:
    """Call a component by its name in the report."""
    kind, _, stream = component.partition("/")
    if stream:
        return f"{kind} stream {stream}"
    known = switches()
    return known[component].label if component in known else component


def table_rows(known: Collection[str]) -> list[Row]:
    """Rows of Table 1 whose models are among the `known` names."""
    return [row for row in TABLE_ROWS if row.checkpoint in known]


def plan(checkpoint: str, verifier: str, off: Collection[str], rows: Collection[int], folder: str = "") -> list[Ask]:
    """Choose the models that answer: the whole one, the same with components left out, and rows of Table 1.

    Args:
        checkpoint: The chosen model.
        verifier: The chosen verifier; the rows are asked with it, too.
        off: Components to leave out in the second answer; names that this model does not have are passed over.
        rows: Numbers of rows to compare with; a row that is the chosen model itself is there already.
        folder: Where the chosen model lies; empty where its name tells.

    Returns:
        The whole model first.
    """
    asks = [Ask(checkpoint, (), verifier, checkpoint, _how_trained(folder or checkpoint))]
    out = [name for _, name in components(folder or checkpoint, verifier) if name in off]
    if out:
        names = _and([label_of(name) for name in out])
        checker = DEFAULT_VERIFIER if VERIFIER in out else verifier
        bypass = tuple(name for name in out if name != VERIFIER)
        asks.append(Ask(checkpoint, bypass, checker, f"Without {names}", f"bypassed in the full model: {names}"))
    others = [row for row in TABLE_ROWS if row.number in rows and row.checkpoint != checkpoint]
    return asks + [Ask(row.checkpoint, (), verifier, f"Row {row.number}: {row.label}", _how_trained(row.checkpoint)) for row in others]


def compared(asks: Sequence[Ask]) -> tuple[list[str], list[int]]:
    """Return `off` and `rows` that `plan` made these of; the order is the page's."""
    whole, *others = asks
    off = [
        name
        for ask in others
        if ask.checkpoint == whole.checkpoint
        for name in (*ask.bypass, *((VERIFIER,) if ask.verifier != whole.verifier else ()))
    ]
    return off, [row.number for row in TABLE_ROWS if row.checkpoint in {ask.checkpoint for ask in others} - {whole.checkpoint}]


def check_lanes(num_queries: int, num_asks: int) -> None:
    """Refuse more answers than can be compared by eye.

    Raises:
        ConfigError: Over `MAX_LANES`.
    """
    if num_queries * num_asks > MAX_LANES:
        raise ConfigError(
            f"{num_queries} queries to {num_asks} models are {num_queries * num_asks} answers; the limit is {MAX_LANES} at once: ask fewer "
            "queries, or compare fewer models."
        )


def lane_label(query: str, ask: Ask, num_queries: int, num_asks: int) -> str:
    """Call a lane by what tells it from the others."""
    if num_asks == 1:
        return query
    return ask.label if num_queries == 1 else f"{query} · {ask.label}"


def describe(model: ModelConfig) -> str:
    """Say in a few words what a network is made of."""
    parts = ["BiMamba" if model.encoder == "bimamba" else "Transformer", *(s.label for s in switches().values() if s.is_on(model))]
    streams = list(dict.fromkeys([*model.audio_streams, *model.text_streams]))
    return f"{', '.join(parts)}; {'streams' if len(streams) > 1 else 'stream'} {_and(streams)}"


def _how_trained(checkpoint: str) -> str:
    try:
        return f"trained this way: {describe(read_config(checkpoint).model)}"
    except CheckpointError:  # whoever opens the model says so
        return ""


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
