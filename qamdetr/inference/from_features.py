"""Answers a manifest from stored features, without encoders: public files, or the project's own cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from qamdetr.audio import find_recordings
from qamdetr.data.dataset import MomentDataset
from qamdetr.data.manifest import QueryEntry, names_in
from qamdetr.errors import DataError
from qamdetr.features.base import OnStage
from qamdetr.features.store import FeatureStore, describe_settings, require_features
from qamdetr.inference.checkpoint import load_changed
from qamdetr.inference.retriever import MomentRetriever
from qamdetr.inference.trained_encoder import own_versions
from qamdetr.types import Recording, TextFeatures


class StoredEncoder:
    """Stands where a combo's encoders stand, and gives what they gave when the features were stored.

    Recordings go by their `vid`, queries by their wording: two queries of a manifest in the same words have the same features.
    """

    def __init__(self, name: str, store: FeatureStore, entries: Sequence[QueryEntry], audio: Mapping[str, Path] | None = None) -> None:
        """Bind a manifest to its features.

        Args:
            name: Name of the combo.
            store: Where the features lie.
            entries: The manifest.
            audio: `vid` -> audio file, where it is at hand, for verifiers that listen.
        """
        self.name = name
        self._store = store
        self._by_vid = {entry.vid: entry for entry in entries}
        self._by_query = {entry.query: entry for entry in entries}
        self._audio = dict(audio or {})

    def encode_recording(self, path: str | Path, on_stage: OnStage | None = None) -> Recording:
        """Read the features of a recording; its audio is not opened, so there is no waveform to draw.

        Args:
            path: The `vid`.
            on_stage: Not called: reading has no stages.

        Raises:
            DataError: Missing or damaged features.
        """
        entry = self._by_vid[str(path)]
        audio = str(self._audio.get(entry.vid, ""))
        return Recording(entry.vid, audio, entry.duration_seconds, self._store.audio(entry.vid), np.zeros((2, 0), dtype=np.float32))

    def encode_query(self, query: str) -> Mapping[str, TextFeatures]:
        """Read the features of a query of the manifest.

        Raises:
            DataError: Missing or damaged features.
        """
        return self._store.text(query, self._by_query[query].qid)


def open_stored(
    name_or_dir: str | Path,
    entries: Sequence[QueryEntry],
    overrides: Sequence[str] = (),
    *,
    audio_dir: Path | None = None,
    device: str | None = None,
) -> MomentRetriever:
    """Open a checkpoint for the recordings and queries of a manifest, whose features lie where the checkpoint's `data` section says.

    Args:
        name_or_dir: A checkpoint, such as `runs/NAME/best`.
        entries: The manifest.
        overrides: `a.b=c` changes of the checkpoint's configuration, such as other feature folders.
        audio_dir: Folder of the recordings, where it is at hand: tells apart cached features of recordings with the same name, and lets
            verifiers listen.
        device: Where the network runs; None = the CPU.

    Raises:
        CheckpointError: The checkpoint cannot be used.
        ConfigError: `overrides` change the network, or there is no such device.
        AudioError: `audio_dir` holds two recordings of one name.
        DataError: Features are missing (all are named at once), damaged, of other recordings, or from another version of the encoders.
    """
    model, config = load_changed(name_or_dir, overrides)
    audio = find_recordings(audio_dir) if audio_dir and audio_dir.is_dir() else {}
    store = FeatureStore(config.model, config.data, audio)
    require_features([(store, *names_in(entries))])
    store.check(*names_in(entries[:1]))
    MomentDataset(entries, store)  # refuses features of another length than the manifest says
    found, wanted = own_versions(store.encoder_version(*names_in(entries))), own_versions(config.data.encoder)
    if found and wanted and found != wanted:
        data = config.data
        models, dtype = store.settings
        settings = describe_settings(models, dtype) if dtype else ""
        theirs = f" ({describe_settings(data.encoder_models, data.encoder_dtype)})" if settings else ""
        raise DataError(
            f"{data.feature_dir} holds features of encoder version {', '.join(found)}{f' ({settings})' if settings else ''}, {name_or_dir} "
            f"was trained on version {', '.join(wanted)}{theirs}; extract with those encoders, or train again on these."
        )
    return MomentRetriever(model, config, StoredEncoder(config.data.combo, store, entries, audio), device=device)
