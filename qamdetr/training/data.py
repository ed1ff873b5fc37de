"""Opens the training and validation sets, and refuses to start when anything is missing."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

from torch.utils.data import DataLoader

from qamdetr.audio import find_recordings
from qamdetr.config import Config, DataConfig
from qamdetr.data.dataset import Collator, LengthBucketSampler, MomentDataset, covered_windows
from qamdetr.data.manifest import QueryEntry, names_in, read_manifest
from qamdetr.errors import ConfigError, DataError
from qamdetr.features.store import FeatureStore, require_features

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """Both sets, ready to be read, and the loaders over them.

    Attributes:
        train, val: Items.
        sampler: Order of the training set.
        train_loader, val_loader: Batches.
        encoder: What made the training set's features, as `FeatureStore.encoder_version` names it.
        section: The configuration's `data` section as a checkpoint needs it to open the same encoders: with `encoder`, and with the models
            and the type that the cache notes where the configuration is silent.
        fingerprint: 16 hex digits that change with either manifest's content, with any feature file that is read, with `encoder`, or with
            names or widths of the streams.
    """

    train: MomentDataset
    val: MomentDataset
    sampler: LengthBucketSampler
    train_loader: DataLoader[Any]
    val_loader: DataLoader[Any]
    encoder: str
    section: DataConfig
    fingerprint: str


def load_data(config: Config) -> TrainingData:
    """Read both manifests and check, before anything else, that every feature is there.

    Windows past the end of their recording are clamped; how many is logged.

    Raises:
        ConfigError: No manifest is named, a folder for a stream that the model does not have, or encoders that are not those of the cache.
        DataError: Manifests or features are missing or damaged; all missing features are named at once.
        AudioError: Two recordings of one name.
    """
    check_manifests(config)
    train_entries, val_entries = _known_entries(config.data.train_manifest), _known_entries(config.data.val_manifest)
    train_store = _open_store(config, config.data.train_manifest, config.data.audio_dir)
    val_store = _open_store(config, config.data.val_manifest, config.data.val_audio_dir)
    section = _with_encoders(config.data, *train_store.settings)
    require_features([(train_store, *names_in(train_entries)), (val_store, *names_in(val_entries))])
    train_store.check(*names_in(train_entries[:1]))
    # All of the validation set is read once now, so that a bad value in it cannot cost an epoch of training.
    val_store.check(*names_in(val_entries))
    train_entries = _heard_entries(config.data.train_manifest, train_entries, train_store)
    train_set = MomentDataset(
        train_entries,
        train_store,
        seed=config.train.seed,
        max_clips=config.data.max_clips,
        crop_probability=config.data.crop_probability,
        text_noise=config.data.text_noise,
    )
    val_set = MomentDataset(val_entries, val_store)
    sampler = LengthBucketSampler(train_set.lengths_clips, config.train.batch_size, seed=config.train.seed)
    val_sampler = LengthBucketSampler(val_set.lengths_clips, config.train.batch_size, shuffle=False)
    workers = config.data.num_workers
    train_collator = Collator(train_entries, saliency_windows=config.data.saliency_windows)
    val_collator = Collator(val_entries, saliency_windows=config.data.saliency_windows)
    encoder = train_store.encoder_version(*names_in(train_entries))
    features = train_store.content(*names_in(train_entries)) + val_store.content(*names_in(val_entries))
    return TrainingData(
        train=train_set,
        val=val_set,
        sampler=sampler,
        train_loader=DataLoader(train_set, batch_sampler=sampler, collate_fn=train_collator, num_workers=workers),
        val_loader=DataLoader(val_set, batch_sampler=val_sampler, collate_fn=val_collator, num_workers=workers),
        encoder=encoder,
        section=replace(section, encoder=encoder),
        fingerprint=_fingerprint(config, encoder, features),
    )


def check_manifests(config: Config) -> None:
    """Look for both manifests before anything is read.

    Raises:
        ConfigError: One is not named; all that are not are told at once.
        DataError: One is not there; likewise.
    """
    manifests = {"data.train_manifest": config.data.train_manifest, "data.val_manifest": config.data.val_manifest}
    empty = [key for key, manifest in manifests.items() if not manifest]
    if empty:
        raise ConfigError(
            f"{' and '.join(empty)}: no file is named; name a JSONL manifest, such as one that `python -m qamdetr synthesize` makes."
        )
    absent = [f"{key}={manifest}" for key, manifest in manifests.items() if not Path(manifest).is_file()]
    if absent:
        raise DataError(f"There is no file {' and no file '.join(absent)}; download or make the data set, or correct the path.")


def _known_entries(manifest: str) -> list[QueryEntry]:
    """Read the queries of which the windows are known."""
    known = read_manifest(manifest)
    entries = [entry for entry in known if entry.relevant_windows is not None]
    if not any(entry.relevant_windows for entry in entries):
        raise DataError(f"{manifest} has no query with `relevant_windows`; training and validation need the true windows.")
    if len(entries) < len(known):
        _log.warning("%s: %d queries without known windows were left out.", manifest, len(known) - len(entries))
    return entries


def _open_store(config: Config, manifest: str, audio_dir: str) -> FeatureStore:
    """Open the features of a manifest's recordings; the audio lies in `audio/` beside it unless said otherwise."""
    folder = Path(audio_dir) if audio_dir else Path(manifest).parent / "audio"
    return FeatureStore(config.model, config.data, find_recordings(folder) if folder.is_dir() else None)


def _with_encoders(data: DataConfig, models: Mapping[str, str], dtype: str) -> DataConfig:
    """Take over what stands beside the features of their encoders: a checkpoint that named others could not be served.

    Raises:
        ConfigError: The configuration names another type or model.
    """
    if not dtype:
        return data
    if data.encoder_dtype not in (DataConfig.encoder_dtype, dtype):
        raise _other_encoders(data, "encoder_dtype", data.encoder_dtype, dtype)
    for stream, found in models.items():
        wanted = data.encoder_models.get(stream, found)
        # One folder may be written in two ways.
        if wanted != found and not (found and Path(wanted).expanduser().resolve() == Path(found).expanduser().resolve()):
            raise _other_encoders(data, f"encoder_models.{stream}", wanted, found)
    named = {**{stream: model for stream, model in models.items() if model}, **data.encoder_models}
    return replace(data, encoder_dtype=cast("Any", dtype), encoder_models=named)


def _other_encoders(data: DataConfig, key: str, wanted: str, found: str) -> ConfigError:
    return ConfigError(
        f"data.{key} is {wanted}, the features in {data.feature_dir} were made with {found or 'the default model'}; "
        "leave that setting out, or extract with it (into another data.feature_dir, unless the weights are the same)."
    )


def _heard_entries(manifest: str, entries: Sequence[QueryEntry], store: FeatureStore) -> list[QueryEntry]:
    """Leave out queries whose windows all lie after the last clip: trained on, they would teach that the sound is absent."""
    heard = [entry for entry in entries if not entry.relevant_windows or covered_windows(entry, store.num_clips(entry.vid))]
    unheard = len(entries) - len(heard)
    if unheard:
        _log.warning("%s: %d queries whose windows lie after the last clip of the features were left out.", manifest, unheard)
    return heard


def _fingerprint(config: Config, encoder: str, features: str) -> str:
    streams = [list(config.model.audio_streams.items()), list(config.model.text_streams.items())]
    digest = blake2b(json.dumps([encoder, streams, features]).encode(), digest_size=8)
    for manifest in (config.data.train_manifest, config.data.val_manifest):
        digest.update(blake2b(Path(manifest).read_bytes()).digest())
    return digest.hexdigest()
