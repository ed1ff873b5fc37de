"""Opens the training and validation sets, and refuses to start when anything is missing."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from qamdetr.config import Config
from qamdetr.data.collate import Collator
from qamdetr.data.dataset import MomentDataset
from qamdetr.data.manifest import QueryEntry, read_manifest
from qamdetr.data.sampler import LengthBucketSampler
from qamdetr.errors import ConfigError, DataError
from qamdetr.features.cache import FeatureCache, list_recordings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """Both sets, ready to be read, and the loaders over them."""

    train: MomentDataset
    val: MomentDataset
    sampler: LengthBucketSampler
    train_loader: DataLoader[Any]
    val_loader: DataLoader[Any]
    encoder: str


def load_data(config: Config) -> TrainingData:
    """Read both manifests and check, before anything else, that every feature is there.

    Raises:
        DataError: A manifest or features are missing or damaged.
    """
    train_entries, train_cache = _open_set(config, config.data.train_manifest, config.data.audio_dir, "data.train_manifest")
    val_entries, val_cache = _open_set(config, config.data.val_manifest, config.data.val_audio_dir, "data.val_manifest")
    train_set = MomentDataset(
        train_entries,
        train_cache,
        seed=config.train.seed,
        max_clips=config.data.max_clips,
        crop_probability=config.data.crop_probability,
        text_noise=config.data.text_noise,
    )
    val_set = MomentDataset(val_entries, val_cache)
    sampler = LengthBucketSampler(train_set.lengths_clips, config.train.batch_size, seed=config.train.seed)
    val_sampler = LengthBucketSampler(val_set.lengths_clips, config.train.batch_size, shuffle=False)
    workers = config.data.num_workers
    train_collator = Collator(train_entries, saliency_windows=config.data.saliency_windows)
    val_collator = Collator(val_entries, saliency_windows=config.data.saliency_windows)
    return TrainingData(
        train=train_set,
        val=val_set,
        sampler=sampler,
        train_loader=DataLoader(train_set, batch_sampler=sampler, collate_fn=train_collator, num_workers=workers),
        val_loader=DataLoader(val_set, batch_sampler=val_sampler, collate_fn=val_collator, num_workers=workers),
        encoder=train_cache.fingerprint,
    )


def _open_set(config: Config, manifest: str, audio_dir: str, key: str) -> tuple[list[QueryEntry], FeatureCache]:
    """Read a manifest and open the features of its recordings; the audio lies in `audio/` beside it unless said otherwise."""
    if not manifest:
        raise ConfigError(f"{key} is empty; name a JSONL manifest, such as one that `python -m qamdetr synthesize` makes.")
    known = read_manifest(manifest)
    entries = [entry for entry in known if entry.relevant_windows is not None]
    if not any(entry.relevant_windows for entry in entries):
        raise DataError(f"{manifest} has no query with `relevant_windows`; training and validation need the true windows.")
    if len(entries) < len(known):
        _log.warning("%s: %d queries without known windows were left out.", manifest, len(known) - len(entries))
    recordings = list_recordings(Path(audio_dir) if audio_dir else Path(manifest).parent / "audio")
    cache = FeatureCache(
        Path(config.data.feature_dir),
        config.data.combo,
        recordings,
        audio_streams=tuple(config.model.audio_streams),
        text_streams=tuple(config.model.text_streams),
    )
    cache.require((entry.vid for entry in entries), (entry.query for entry in entries))
    cache.check_widths(entries[0].vid, entries[0].query, config.model.audio_streams, config.model.text_streams)
    return entries, cache
