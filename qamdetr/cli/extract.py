"""`extract`: encode recordings ahead of training."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import typer

from qamdetr.cli.predict import EncoderOptions, audio_folder, note, option, print_error, refuse
from qamdetr.config import DataConfig
from qamdetr.errors import ConfigError, DataError, IncompleteError, QamDetrError

if TYPE_CHECKING:
    from qamdetr.features.extract import ExtractionReport, Share

DEFAULTS = DataConfig()
PATIENCE = timedelta(days=30)
"""How long a process that is done waits for the slowest; PyTorch's own half an hour is soon over."""


@dataclass(frozen=True)
class ExtractOptions(EncoderOptions):
    """What `extract` can be told."""

    manifest: str | None = option(None, "JSONL", "field JSONL whose queries and recordings are encoded")
    audio_dir: str | None = option(None, "DIR", "its recordings (default: audio/ beside it); alone: every recording in DIR")
    combo: str = option(DEFAULTS.combo, "NAME", "encoders to run")
    dtype: Literal["float32", "bfloat16"] = option(DEFAULTS.encoder_dtype, "", "of the encoders")
    feature_dir: str = option(DEFAULTS.feature_dir, "DIR", "the cache")
    clip_seconds: float = option(1.0, "S", "from one vector to the next, as model.clip_seconds: 1 or 0.5")


class _Work(NamedTuple):
    """What is to be encoded: recordings by vid, queries, and recordings that are not there."""

    recordings: Mapping[str, Path]
    queries: tuple[str, ...]
    absent: tuple[tuple[str, str], ...]


def extract(options: ExtractOptions) -> None:
    """Run a combo's encoders over the recordings and queries of a manifest, or over a folder of recordings, for training.

    It can be stopped at any moment and started again with the same command. Several processes or machines share the work: accelerate launch
    --num_processes 4 -m qamdetr extract ... (without GPUs: torchrun --nproc_per_node 4 -m qamdetr extract ...); each takes a GPU of its own
    where there is one. Exit status 1 when some recordings were skipped because they cannot be read.
    """
    from qamdetr.features.base import get_combo

    combo, models = get_combo(options.combo), options.models()
    streams = list(dict.fromkeys((*combo.audio_streams, *combo.text_streams)))
    for stream in models:
        refuse(stream not in streams, f"--encoder: combo {options.combo!r} has no stream {stream!r}, only {', '.join(streams)}.")
    work = _find_work(options)
    with _joined() as share:
        outcome: ExtractionReport | QamDetrError
        try:
            outcome = _encode(options, work, models, share)
        except QamDetrError as error:
            outcome = error
            if share.count > 1:
                note(f"process {share.index + 1} of {share.count} stops: {error}")
        outcomes = _gather(outcome, share)
        try:
            _conclude(outcomes, work, options.feature_dir, quiet=share.index > 0)
        except QamDetrError as error:
            if share.count == 1:
                raise
            if share.index == 0:
                print_error(str(error))
            # A launcher ends all processes when the first one fails, so nobody leaves before the result is told.
            _gather(None, share)
            raise typer.Exit(error.exit_status) from None


@contextlib.contextmanager
def _joined() -> Iterator[Share]:
    """Connect the processes that `accelerate launch` or `torchrun` started; over gloo, as they exchange a few words at the end only."""
    from qamdetr.features.extract import Share

    count = os.environ.get("WORLD_SIZE", "1")
    if count == "1":
        yield Share()
        return
    from torch import distributed

    from qamdetr.features.hub import one_line

    try:
        distributed.init_process_group("gloo", timeout=PATIENCE)
        share = Share(distributed.get_rank(), distributed.get_world_size())
    except (RuntimeError, ValueError) as error:
        what = f"The {count} processes cannot be connected ({one_line(error)})"
        raise ConfigError(what, "start them with `accelerate launch` or `torchrun`") from error
    try:
        yield share
    finally:
        distributed.destroy_process_group()  # else gloo may abort a process that has ended well


def _gather(item: Any, share: Share) -> list[Any]:  # noqa: ANN401 - any item
    """Give every process the items of all, in their order; all must call it."""
    items = [item] * share.count
    if share.count > 1:
        from torch import distributed

        from qamdetr.features.hub import one_line

        try:
            distributed.all_gather_object(items, item)
        except (RuntimeError, ConnectionError) as error:
            what = f"Another of the {share.count} processes cannot be reached ({one_line(error)})"
            raise QamDetrError(what, "run the same command again") from error
    return items


def _device(wanted: str | None, share: Share) -> str | None:
    """Return the device of this process: with a GPU of its own where none is named; None leaves the choice."""
    if wanted is None and os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true", "yes", "on"}:
        return "cpu"
    if share.count == 1 or wanted not in {None, "cuda"}:
        return wanted
    from torch import cuda

    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % cuda.device_count()}" if cuda.is_available() else wanted


def _encode(options: ExtractOptions, work: _Work, models: Mapping[str, str], share: Share) -> ExtractionReport:
    """Encode this process's share."""
    from tqdm import tqdm

    from qamdetr.features.bank import bank_sentences
    from qamdetr.features.base import get_combo, joint_of, open_streams
    from qamdetr.features.extract import extract as encode

    def tell(reason: str) -> None:
        tqdm.write(f"qamdetr: skipped: {reason}", file=sys.stderr)

    device = _device(options.device, share)
    how: dict[str, Any] = {"models": models, "dtype": options.dtype, "device": device, "clip_seconds": options.clip_seconds}
    combo = open_streams(*get_combo(options.combo), name=options.combo, **how)
    for _, reason in work.absent if share.index == 0 else ():
        tell(reason)
    files, feature_dir = work.recordings.items(), Path(options.feature_dir)
    bank = bank_sentences() if joint_of(options.combo) else ()
    return encode(files, [*work.queries, *bank], feature_dir, combo, share=share, on_skip=tell)


def _conclude(outcomes: Sequence[ExtractionReport | QamDetrError], work: _Work, feature_dir: str, *, quiet: bool) -> None:
    """Sum up all processes; raise what stopped one of them, or an `IncompleteError` where something was skipped."""
    from qamdetr.features.extract import ExtractionReport

    total = ExtractionReport(skipped=work.absent)
    for outcome in outcomes:
        if isinstance(outcome, QamDetrError):
            raise outcome
        total += outcome
    if not quiet:
        new, known = _counted(total.recordings, total.queries), _counted(total.cached_recordings, total.cached_queries)
        note(f"encoded {new} into {feature_dir}; {known} were there already.")
        for _, reason in sorted(total.skipped):
            note(f"skipped: {reason}")
    if total.skipped:
        asked = len(work.recordings) + len(work.absent) + len(set(work.queries))
        what = f"{len(total.skipped)} of {asked} recordings and queries were skipped (listed above), all others are in the cache"
        raise IncompleteError(what, "mend them and run the same command again, or go on without them")


def _find_work(options: ExtractOptions) -> _Work:
    """Read the manifest or list the folder."""
    from qamdetr.audio import AUDIO_SUFFIXES, find_recordings
    from qamdetr.data.manifest import read_manifest

    if options.manifest is None:
        if options.audio_dir is None:
            raise ConfigError("Give --manifest JSONL for its recordings and queries, or --audio-dir DIR for all recordings of a folder.")
        found = find_recordings(options.audio_dir)
        if not found:
            raise DataError(f"{options.audio_dir} holds no recordings", f"give a folder of files that end in {', '.join(AUDIO_SUFFIXES)}")
        return _Work(found, (), ())
    entries = read_manifest(options.manifest, clamp=False)
    folder = audio_folder(options.manifest, options.audio_dir)
    found = find_recordings(folder)
    vids = dict.fromkeys(entry.vid for entry in entries)
    absent = sorted(set(vids) - set(found))
    if len(absent) == len(vids):
        what = f"None of the {len(vids)} recordings of {options.manifest} is in {folder}, such as {absent[0]!r}"
        raise DataError(what, "give their folder")
    told = tuple((vid, f"{vid!r} of {options.manifest} is not in {folder}") for vid in absent)
    return _Work({vid: found[vid] for vid in vids if vid in found}, tuple(entry.query for entry in entries), told)


def _counted(recordings: int, queries: int) -> str:
    return f"{recordings} recording{'s' * (recordings != 1)} and {queries} quer{'y' if queries == 1 else 'ies'}"
