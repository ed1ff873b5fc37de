"""Opens the training and validation sets, and refuses to start when anything is missing."""

from __future__ import annotations

import json
import logging
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
    """Both sets, ready to be read, and the loaders over them."""

    train: MomentDataset
    val: MomentDataset
    sampler: LengthBucketSampler  # order of the training set
    train_loader: DataLoader[Any]
    val_loader: DataLoader[Any]
    section: DataConfig
    """The configuration's `data` section as a checkpoint needs it to open the same encoders: with their version, and with the models and
    the type that are noted beside the features where the configuration is silent."""
    fingerprint: str
    """16 hex digits that change with a manifest's content, any feature file that is read, the encoders' version, the streams' widths."""


def load_data(config: Config) -> TrainingData:
    """Read both manifests and check, before anything else, that every feature is there; all that are missing are named at once.

    Windows past the end of their recording are clamped; how many is logged.
    """
    check_manifests(config)
    data = config.data
    train_entries, val_entries = _known_entries(data.train_manifest), _known_entries(data.val_manifest)
    train_store = _open_store(config, data.train_manifest, data.audio_dir)
    val_store = _open_store(config, data.val_manifest, data.val_audio_dir)
    section = _with_encoders(data, train_store)
    in_spaces = [replace(config, data=replace(data, combo=combo)) for combo in data.more_spaces]
    more = [_open_store(each, data.train_manifest, data.audio_dir) for each in in_spaces]
    require_features([*((store, *names_in(train_entries)) for store in (train_store, *more)), (val_store, *names_in(val_entries))])
    train_store.check(*names_in(train_entries[:1]))
    # All of the validation set is read once now, so that a bad value in it cannot cost an epoch of training.
    val_store.check(*names_in(val_entries))
    # Queries whose windows all lie after the last clip would teach that the sound is absent.
    seconds = {entry.vid: train_store.num_clips(entry.vid) * train_store.clip_seconds for entry in train_entries}
    heard = [entry for entry in train_entries if not entry.relevant_windows or covered_windows(entry, seconds[entry.vid])]
    if len(heard) < len(train_entries):
        told = "%s: %d queries whose windows lie after the last clip of the features were left out."
        _log.warning(told, data.train_manifest, len(train_entries) - len(heard))
    crops: dict[str, Any] = {"max_clips": data.max_clips, "crop_probability": data.crop_probability, "text_noise": data.text_noise}
    train_set = MomentDataset(heard, train_store, *more, seed=config.train.seed, **crops)
    val_set = MomentDataset(val_entries, val_store)
    sampler = LengthBucketSampler(train_set.lengths_clips, config.train.batch_size, seed=config.train.seed, spaces=1 + len(more))
    val_sampler = LengthBucketSampler(val_set.lengths_clips, config.train.batch_size, shuffle=False)

    def load(dataset: MomentDataset, order: LengthBucketSampler) -> DataLoader[Any]:
        collator = Collator(
            dataset.entries,
            saliency_windows=data.saliency_windows,
            negative_share=data.negative_share,
            negative_similarity=data.negative_similarity,
            pooled=dataset.pooled,
            space_bend=data.space_bend if dataset is train_set else 0.0,
        )
        return DataLoader(dataset, batch_sampler=order, collate_fn=collator, num_workers=data.num_workers)

    encoder = train_store.encoder_version(*names_in(heard))
    features = train_store.content(*names_in(heard)) + val_store.content(*names_in(val_entries))
    streams = [list(widths.items()) for widths in (config.model.audio_streams, config.model.text_streams)]
    digest = blake2b(json.dumps([encoder, streams, features]).encode(), digest_size=8)
    for manifest in (data.train_manifest, data.val_manifest):
        digest.update(blake2b(Path(manifest).read_bytes()).digest())
    return TrainingData(
        train=train_set,
        val=val_set,
        sampler=sampler,
        train_loader=load(train_set, sampler),
        val_loader=load(val_set, val_sampler),
        section=replace(section, encoder=encoder),
        fingerprint=digest.hexdigest(),
    )


def check_manifests(config: Config) -> None:
    """Look for both manifests before anything is read; all that is wrong with them is told at once."""
    manifests = {"data.train_manifest": config.data.train_manifest, "data.val_manifest": config.data.val_manifest}
    if empty := [key for key, manifest in manifests.items() if not manifest]:
        remedy = "name a JSONL manifest, such as one that `python -m qamdetr synthesize` makes"
        raise ConfigError(f"{' and '.join(empty)}: no file is named", remedy)
    if absent := [f"{key}={manifest}" for key, manifest in manifests.items() if not Path(manifest).is_file()]:
        raise DataError(f"There is no file {' and no file '.join(absent)}", "download or make the data set, or correct the path")


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


def _with_encoders(data: DataConfig, store: FeatureStore) -> DataConfig:
    """Take over what is noted beside the features of their encoders: a checkpoint that named others could not be served."""
    models, dtype = store.settings
    if not dtype:
        return data
    pairs = {f"encoder_models.{stream}": (data.encoder_models.get(stream, found), found) for stream, found in models.items()}
    if data.encoder_dtype != DataConfig.encoder_dtype:
        pairs["encoder_dtype"] = (data.encoder_dtype, dtype)
    for key, (wanted, found) in pairs.items():
        # One folder may be written in two ways.
        if wanted != found and not (found and Path(wanted).expanduser().resolve() == Path(found).expanduser().resolve()):
            what = f"data.{key} is {wanted}, the features in {data.feature_dir} were made with {found or 'the default model'}"
            remedy = "leave that setting out, or extract with it (into another data.feature_dir, unless the weights are the same)"
            raise ConfigError(what, remedy)
    named = {**{stream: model for stream, model in models.items() if model}, **data.encoder_models}
    return replace(data, encoder_dtype=cast("Any", dtype), encoder_models=named)
