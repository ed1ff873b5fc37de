"""Training and serving give the network the same numbers: what `MomentRetriever` feeds it, `MomentDataset` and `Collator` feed it too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_system import TinyEncoder, tiny_config, tiny_model, write_sound

from qamdetr.audio import find_recordings
from qamdetr.data.dataset import Collator, MomentDataset
from qamdetr.data.manifest import QueryEntry
from qamdetr.features.extract import extract
from qamdetr.features.store import FeatureStore
from qamdetr.inference import retriever as serving
from qamdetr.inference.retriever import Member, MomentRetriever
from qamdetr.types import Batch

SECONDS = {"walk": 12.4, "street": 30.0}
QUERIES = ("a dog barks", "rain")
ENTRIES = [QueryEntry(f"{vid}{query}", query, vid, seconds, ((1.0, 4.5),)) for vid, seconds in SECONDS.items() for query in QUERIES]


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
def served_and_trained(tmp_path: Path) -> tuple[MomentRetriever, MomentDataset, Mapping[str, Path]]:
    """A joint space and raw-scale statistics, extracted as a user would; one recording ends inside a clip."""
    config = tiny_config()
    config = replace(
        config, model=replace(config.model, similarity=True), data=replace(config.data, feature_dir=str(tmp_path / "features"))
    )
    (tmp_path / "audio").mkdir()
    for seed, (vid, seconds) in enumerate(SECONDS.items()):
        write_sound(tmp_path / "audio" / f"{vid}.wav", seconds, seed)
    recordings, encoder = find_recordings(tmp_path / "audio"), HalfEncoder()
    extract(recordings.items(), QUERIES, tmp_path / "features", encoder, show_progress=False)
    retriever = MomentRetriever([Member(tiny_model(config), config)], encoder)
    return retriever, MomentDataset(ENTRIES, FeatureStore(config.model, config.data, recordings)), recordings


def test_training_and_serving_feed_the_network_the_same(served_and_trained, monkeypatch: pytest.MonkeyPatch) -> None:
    retriever, dataset, recordings = served_and_trained
    fed: list[Batch] = []
    prepare = serving.prepare
    monkeypatch.setattr(serving, "prepare", lambda *given: fed.append(prepare(*given)) or fed[-1])
    for index, entry in enumerate(ENTRIES):
        answer = retriever.retrieve(retriever.encode(str(recordings[entry.vid])), entry.query)
        served, trained = fed.pop(), Collator(ENTRIES)([dataset[index]]).batch
        for one, other in ((served.audio, trained.audio), (served.text, trained.text)):
            assert list(one) == list(other)
            assert all(torch.equal(one[name], other[name]) for name in one)
        for name in ("audio_mask", "text_mask", "text_pooled"):
            assert torch.equal(getattr(served, name), getattr(trained, name))
        with torch.inference_mode():
            assert retriever.members[0].model(trained).saliency[0].sigmoid().tolist() == pytest.approx(answer.saliency, abs=1e-6)
    assert not fed, "one pass per query, so that nothing is compared with itself"


def test_a_batch_holds_each_item_as_it_is_alone_with_tef_and_only_statistics_keep_their_size(served_and_trained) -> None:
    dataset = served_and_trained[1]
    items = [dataset[index] for index in range(len(dataset))]
    together = Collator(ENTRIES)(items).batch
    for index, item in enumerate(items):
        alone = Collator(ENTRIES)([item]).batch
        for name, rows in alone.audio.items():
            assert torch.equal(together.audio[name][index, : item.num_clips], rows[0])
            assert not together.audio[name][index, item.num_clips :].any()
        clips = torch.arange(item.num_clips)
        assert torch.allclose(alone.audio["pocket"][0, :, -2:], torch.stack([clips, clips + 1], dim=1) / item.num_clips)
        for rows in (alone.audio["pocket"][..., :-2], alone.text["pocket"]):
            assert torch.allclose(rows.norm(dim=-1), torch.ones(rows.shape[:2]), atol=1e-5)
        assert torch.equal(alone.audio["mel_stats"][0], item.audio["mel_stats"])
