"""Answers a manifest from stored features, without audio or encoders: public files, or the project's own cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from qamdetr.config import load_config
from qamdetr.data.dataset import MomentDataset
from qamdetr.data.feature_store import FeatureStore, require_features
from qamdetr.data.manifest import QueryEntry
from qamdetr.errors import ConfigError, DataError
from qamdetr.features.cache import list_recordings
from qamdetr.inference.pretrained import CONFIG_FILE, find_checkpoint, load_pretrained
from qamdetr.inference.retriever import MomentRetriever
from qamdetr.types import Recording, TextFeatures


class StoredEncoder:
    """Stands where a combo's encoders stand, and gives what they gave when the features were stored.

    Recordings go by their `vid`, queries by their wording: two queries of a manifest in the same words have the same features.
    """

    def __init__(self, name: str, store: FeatureStore, entries: Sequence[QueryEntry]) -> None:
        self.name = name
        self._store = store
        self._by_vid = {entry.vid: entry for entry in entries}
        self._by_query = {entry.query: entry for entry in entries}

    def encode_recording(self, path: str | Path) -> Recording:
        """Read the features of a recording; there is no audio, so nothing to play, crop or draw.

        Args:
            path: The `vid`.

        Raises:
            DataError: Missing or damaged features.
        """
        entry = self._by_vid[str(path)]
        return Recording(entry.vid, "", entry.duration_seconds, self._store.audio(entry.vid), np.zeros((2, 0), dtype=np.float32))

    def encode_query(self, query: str) -> Mapping[str, TextFeatures]:
        """Read the features of a query of the manifest.

        Raises:
            DataError: Missing or damaged features.
        """
        return self._store.text(self._by_query[query])


def open_stored(
    name_or_dir: str | Path, entries: Sequence[QueryEntry], overrides: Sequence[str] = (), *, audio_dir: Path | None = None
) -> MomentRetriever:
    """Open a checkpoint for the recordings and queries of a manifest, whose features lie where the checkpoint's `data` section says.

    Args:
        name_or_dir: A checkpoint, such as `runs/NAME/best`.
        entries: The manifest.
        overrides: `a.b=c` changes of the checkpoint's configuration, such as other feature folders.
        audio_dir: Folder of the recordings, where it is at hand: tells apart cached features of recordings with the same name.

    Raises:
        CheckpointError: The checkpoint cannot be used.
        ConfigError: `overrides` change the network.
        DataError: Features are missing (all are named at once), damaged, of other recordings, or from another version of the encoders.
    """
    model, trained = load_pretrained(name_or_dir)
    config = load_config(find_checkpoint(name_or_dir) / CONFIG_FILE, overrides)
    if config.model != trained.model:
        raise ConfigError("--set changes the model section; the weights fit the network that they were trained in: leave it out.")
    store = FeatureStore(config.model, config.data, list_recordings(audio_dir) if audio_dir else None)
    require_features([(store, entries)])
    store.check_widths(entries[0])
    MomentDataset(entries, store)  # refuses features of another length than the manifest says
    found, wanted = (_encoder_versions(version) for version in (store.encoder_version(entries), trained.data.encoder))
    if found and wanted and found != wanted:
        raise DataError(
            f"{config.data.feature_dir} holds features of encoder version {', '.join(found)}, {name_or_dir} was trained on version "
            f"{', '.join(wanted)}; extract with those encoders, or train again on these."
        )
    return MomentRetriever(model, config, StoredEncoder(config.data.combo, store, entries))


def _encoder_versions(version: str) -> list[str]:
    """Leave out what names public files: their digits differ from one data set to the next."""
    return [part for part in version.split("+") if part and not part.startswith("public-")]
