"""Training and serving give the network the same numbers: what `MomentRetriever` feeds it, `MomentDataset` and `Collator` feed it too."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stored_features import OwnFeatures, write_audio_file, write_text_file
from tiny_system import TinyEncoder, tiny_config, tiny_model, write_sound

from qamdetr.audio import find_recordings
from qamdetr.config import Config
from qamdetr.data.dataset import Collator, MomentDataset
from qamdetr.data.manifest import QueryEntry
from qamdetr.features.base import Step
from qamdetr.features.extract import extract
from qamdetr.features.store import FeatureStore
from qamdetr.inference import retriever as serving
from qamdetr.inference.retriever import Member, MomentRetriever
from qamdetr.types import Batch, Recording, TextFeatures

QUERIES = ("a dog barks", "rain")


@dataclass
class Set:
    """A data set of both kinds of use: a store for training, an encoder and files for serving."""

    config: Config
    entries: list[QueryEntry]
    store: FeatureStore
    encoder: object
    paths: dict[str, str]


def half(tensor: torch.Tensor) -> torch.Tensor:
    """What the cache keeps of a tensor."""
    return tensor.half().float()


class HalfEncoder(TinyEncoder):
    """Encodes audio and queries anew, rounded as the cache stores them."""

    def encoding(self, sound, only=()):
        recording = yield from super().encoding(sound, only)
        return replace(recording, streams={name: half(rows) for name, rows in recording.streams.items()})

    def encode_query(self, query):
        return {
            name: replace(each, tokens=half(each.tokens), pooled=half(each.pooled)) for name, each in super().encode_query(query).items()
        }


@pytest.fixture
def pocket_set(tmp_path: Path) -> Set:
    """A joint space, raw-scale statistics and true audio, extracted as a user would; two recordings that end inside a clip."""
    config = tiny_config()
    config = replace(
        config, model=replace(config.model, similarity=True), data=replace(config.data, feature_dir=str(tmp_path / "features"))
    )
    lengths = {"walk": 12.4, "street": 30.0}
    (tmp_path / "audio").mkdir()
    for seed, (vid, seconds) in enumerate(lengths.items()):
        write_sound(tmp_path / "audio" / f"{vid}.wav", seconds, seed)
    recordings = find_recordings(tmp_path / "audio")
    encoder = HalfEncoder()
    encoder.fingerprint = "tiny-1"
    extract(recordings.items(), QUERIES, tmp_path / "features", encoder, show_progress=False)
    entries = [QueryEntry(f"{v}{q}", q, v, s, ((1.0, 4.5),)) for v, s in lengths.items() for q in QUERIES]
    store = FeatureStore(config.model, config.data, recordings)
    return Set(config, entries, store, encoder, {vid: str(path) for vid, path in recordings.items()})


@pytest.fixture
def public_set(tmp_path: Path) -> Set:
    """Public files as main stream, the project's cache beside them, one clip longer; other tokens in each text stream."""
    config = tiny_config()
    config = replace(
        config,
        model=replace(config.model, audio_streams={"ms": 6, "laion": 4, "mel_stats": 3}, text_streams={"laion": 4, "ms": 6}),
        data=replace(
            config.data,
            feature_dir=str(tmp_path),
            combo="A",
            audio_features={"ms": str(tmp_path / "clap")},
            text_features={"ms": str(tmp_path / "clap_text")},
        ),
    )
    cache, lengths = OwnFeatures(tmp_path), {"walk": 13, "street": 30}
    generator = torch.Generator().manual_seed(0)
    for vid, num_clips in lengths.items():
        write_audio_file(tmp_path / "clap", vid, num_clips)
        streams = {"laion": torch.randn(num_clips + 1, 4, generator=generator), "mel_stats": 20 * torch.randn(num_clips + 1, 3)}
        cache.write_audio(vid, streams)
    for query in QUERIES:
        tokens = torch.randn(len(query.split()), 4, generator=generator)
        cache.write_text(query, {"laion": TextFeatures(tokens, tuple((i, i + 1) for i in range(len(tokens))))})
    entries = [QueryEntry(f"{v}{q}", q, v, float(n), ((1.0, 4.5),)) for v, n in lengths.items() for q in QUERIES]
    for entry in entries:
        write_text_file(tmp_path / "clap_text", entry.qid, 5, seed=QUERIES.index(entry.query))

    class StoredEncoder:
        """Serves what lies in the files, read without the store."""

        name = "A"

        def encoding(self, sound):
            yield Step("stored", None)
            path = sound.path
            streams = {"ms": torch.from_numpy(np.load(tmp_path / "clap" / f"{path}.npz")["features"]), **OwnFeatures(tmp_path).audio(path)}
            cut = {name: rows[: lengths[path]] for name, rows in streams.items()}
            return Recording(path, "", float(lengths[path]), cut, np.zeros((2, 1)))

        def encode_query(self, query):
            tokens = np.load(tmp_path / "clap_text" / f"qidwalk{query}.npz")["last_hidden_state"]
            return {**OwnFeatures(tmp_path).text(query), "ms": TextFeatures(torch.from_numpy(tokens), ())}

    return Set(config, entries, FeatureStore(config.model, config.data), StoredEncoder(), {vid: vid for vid in lengths})


@pytest.mark.parametrize("kind", ["pocket_set", "public_set"])
def test_training_and_serving_feed_the_network_the_same(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    toy: Set = request.getfixturevalue(kind)
    fed: list[Batch] = []
    prepare = serving.prepare
    monkeypatch.setattr(serving, "prepare", lambda audio, text: fed.append(prepare(audio, text)) or fed[-1])
    retriever = MomentRetriever([Member(tiny_model(toy.config), toy.config)], toy.encoder)
    dataset, collate = MomentDataset(toy.entries, toy.store), Collator(toy.entries)
    for index, entry in enumerate(toy.entries):
        answer = retriever.retrieve(retriever.encode(toy.paths[entry.vid]), entry.query)
        served, trained = fed.pop(), collate([dataset[index]]).batch
        assert list(trained.audio) == list(served.audio) == list(toy.config.model.audio_streams)
        assert list(trained.text) == list(served.text) == list(toy.config.model.text_streams)
        assert all(torch.equal(trained.audio[name], served.audio[name]) for name in served.audio)
        assert all(torch.equal(trained.text[name], served.text[name]) for name in served.text)
        assert torch.equal(trained.audio_mask, served.audio_mask)
        assert torch.equal(trained.text_mask, served.text_mask)
        assert (trained.text_pooled is None) == (served.text_pooled is None) == (kind == "public_set")
        assert served.text_pooled is None or torch.equal(trained.text_pooled, served.text_pooled)
        with torch.inference_mode():
            assert retriever.members[0].model(trained).saliency[0].sigmoid().tolist() == pytest.approx(answer.saliency, abs=1e-6)
    assert not fed, "one pass per query, so that nothing is compared with itself"


@pytest.mark.parametrize("kind", ["pocket_set", "public_set"])
def test_the_main_stream_ends_with_tef_and_only_statistics_keep_their_size(kind: str, request: pytest.FixtureRequest) -> None:
    toy: Set = request.getfixturevalue(kind)
    item = MomentDataset(toy.entries, toy.store)[0]
    batch = Collator(toy.entries)([item]).batch
    main, *others = batch.audio
    clips = torch.arange(item.num_clips)
    assert torch.allclose(batch.audio[main][0, :, -2:], torch.stack([clips, clips + 1], dim=1) / item.num_clips)
    units = [batch.audio[main][..., :-2], *(batch.audio[name] for name in others if name != "mel_stats"), *batch.text.values()]
    for rows in units:
        assert torch.allclose(rows.norm(dim=-1), torch.ones(rows.shape[:2]), atol=1e-5)
    assert torch.equal(batch.audio["mel_stats"][0], item.audio["mel_stats"])


def test_a_batch_holds_each_item_as_it_is_alone(public_set: Set) -> None:
    dataset = MomentDataset(public_set.entries, public_set.store)
    items = [dataset[index] for index in range(len(dataset))]
    together = Collator(public_set.entries)(items).batch
    for index, item in enumerate(items):
        alone = Collator(public_set.entries)([item]).batch
        for name, rows in alone.audio.items():
            assert torch.equal(together.audio[name][index, : item.num_clips], rows[0])
            assert not together.audio[name][index, item.num_clips :].any()
