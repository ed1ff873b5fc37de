"""What trains the pocket encoders: mixtures and their teacher, the network, the joint space, the distillation of text."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.nn.functional import normalize

from qamdetr.errors import QamDetrError
from qamdetr.features.known import WordMap
from qamdetr.features.pocket import CutConvolution, PocketAudioModel, PocketTextModel
from recipes.pocket.audio import AudioTrainConfig, JointObjective, Pool, class_shares, pack_word_map, train_joint
from recipes.pocket.layers import fit, teach_layers
from recipes.pocket.mixtures import AUDIBLE_DB, MASKED_DB, MixtureMaker, Source, describe, write_pool
from recipes.pocket.teacher import Heard, Teacher
from recipes.pocket.text import DistillConfig, distil, held_out_cosine, vocabulary_words

RATE = 24_000
GROUPS = ["alarm", "alarm/siren", "vehicle/engine", "tool/typing"]


class Listener:
    """In the place of the teacher: hears the siren as class 1, the engine as 2, the typing as 3, by their bands."""

    def __call__(self, patch: np.ndarray) -> Heard:
        bands = patch.mean(axis=0)
        kind = 1 + int(np.argmax([bands[begin : begin + 6].max() for begin in (17, 1, 39)]))
        return Heard(np.where(np.arange(521) == kind, 110, 50).astype(np.int8), np.full(1024, -128, dtype=np.int8))


def make_source(group: str, seed: int) -> Source:
    """A tone with harmonics of its group's own height, or clicks."""
    rng = np.random.default_rng(seed)
    hz = {"alarm/siren": 1000, "vehicle/engine": 200, "tool/typing": 3000}[group] * rng.uniform(0.9, 1.1)
    samples = np.sin(2 * np.pi * hz * np.arange(2 * RATE) / RATE) + 0.05 * rng.standard_normal(2 * RATE)
    return Source(group, (0.3 * samples).astype(np.float32), real=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of forty mixtures."""
    folder = tmp_path_factory.mktemp("pool")
    background = np.random.default_rng(9).standard_normal(20 * RATE).astype(np.float32)
    maker = MixtureMaker([make_source(group, seed) for group in GROUPS[1:] for seed in range(3)], [background], seed=0)
    write_pool(maker, Listener(), folder, 40)  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize(
    ("gain", "low_db", "high_db"), [(1.0, AUDIBLE_DB, 999.0), (0.007, MASKED_DB, AUDIBLE_DB), (1e-4, -99.0, MASKED_DB)]
)
def test_an_event_is_audible_undecided_or_masked_by_what_is_around_it(gain: float, low_db: float, high_db: float) -> None:
    noise, event = np.random.default_rng(0).standard_normal(10 * RATE).astype(np.float32), np.zeros(10 * RATE, dtype=np.float32)
    event[2 * RATE : 4 * RATE] = gain * make_source("alarm/siren", 0).samples
    known = describe(0.1 * noise + event, [(5, event)], Listener())  # type: ignore[arg-type]
    assert known["source"].tolist() == [5, -1, -1, -1]
    assert np.flatnonzero(known["share"][0] > 0.25).tolist() == [4, 5, 6, 7]
    level_db = known["level_db"][0, 4:8]
    assert ((low_db < level_db) & (level_db < high_db)).all()


def test_a_pool_knows_ancestors_and_what_the_teacher_heard(folder: Path) -> None:
    pool = Pool([folder], GROUPS)
    assert len(pool) == 40
    cells = [pool.mixture(index) for index in range(40)]
    assert pool.seen(0).shape == (20, 96, 64)
    labels, counted, logits = (torch.stack([getattr(each, name) for each in cells]) for name in ("labels", "counted", "logits"))
    assert labels.shape == counted.shape == (40, 20, len(GROUPS))
    assert torch.equal(labels[..., 0], labels[..., 1])
    assert counted[labels > 0].all()
    assert 0.2 < (labels.sum(dim=-1) > 0).float().mean() < 1.0
    assert (logits > 0).sum(dim=-1).eq(1).all()


@pytest.mark.parametrize(
    ("source", "target", "size", "stride", "groups"), [(1, 5, 3, 2, 1), (6, 6, 3, 1, 6), (6, 6, 3, 2, 6), (5, 7, 1, 1, 1)]
)
def test_a_layer_is_found_by_what_it_gives(source: int, target: int, size: int, stride: int, groups: int) -> None:
    torch.manual_seed(0)
    sought, layer = (CutConvolution(source, target, size, stride, groups=groups) for _ in range(2))
    inputs = 3 * torch.randn(20, source, 8, 12)
    with torch.no_grad():
        sought.weight.mul_(3)
        assert fit(layer, inputs, sought(inputs)) < 1e-3
        other = torch.randn(3, source, 8, 12)
        torch.testing.assert_close(layer(other), sought(other), atol=0.05, rtol=0)


def test_layers_are_taught_in_turn() -> None:
    torch.manual_seed(0)
    sought, model = (PocketAudioModel(widths=(4, 6, 8), halved=(0, 2)).eval() for _ in range(2))

    class Layers:
        def layers(self, patch: np.ndarray) -> list[np.ndarray]:
            x, maps = torch.from_numpy(patch)[None, None], []
            for layer in sought.layers:
                x = layer(x)
                maps.append(x[0].detach().numpy())
            return maps

        def dequantised(self, layer: int, maps: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(maps)

    said: list[str] = []
    seen = torch.randn(30, 96, 64)
    teach_layers(model, Layers(), seen, said.append)  # type: ignore[arg-type]
    assert len(said) == len(model.layers) == 5
    with torch.no_grad():
        torch.testing.assert_close(model.states(seen), sought.states(seen), atol=0.05, rtol=0)


def test_clips_come_to_lie_near_the_captions_of_what_sounds_in_them(folder: Path) -> None:
    torch.manual_seed(0)
    pool, config = Pool([folder], GROUPS), AudioTrainConfig(steps=200, batch_size=128)
    model = PocketAudioModel(widths=(4, 8, 32), halved=(0, 1, 2), dim=32)
    heard, sounds = pool.everything(), torch.rand(len(GROUPS), 32)
    assert heard.states.shape == (800, 1024)
    heard = replace(heard, states=heard.labels @ sounds + 0.1 * torch.rand(800, 32))
    captions = [normalize(torch.randn(3, 48) * 0.3 + torch.randn(48), dim=-1) for _ in range(len(GROUPS) + 521)]
    banks, joint = (captions[: len(GROUPS)], captions[len(GROUPS) :]), torch.nn.Linear(48, 32, bias=False)
    objective = JointObjective(joint, *banks, torch.tensor([True, False, False, False]))
    train_joint(model, objective, heard, [*range(521)], config)
    with torch.no_grad():
        word_map = WordMap(pack_word_map(joint, *banks))
        assert len(word_map.sentences) == 3 * len(captions)
        prompts = word_map(torch.stack([bank[0] for bank in captions[1 : len(GROUPS)]]))
        vectors = model.to_joint(sounds[1:] + sounds[0] * torch.tensor([[1.0], [0.0], [0.0]]))
    assert (vectors @ prompts.T).argmax(dim=1).tolist() == [0, 1, 2]


def test_usual_scores_have_no_share() -> None:
    shares = class_shares(torch.tensor([[-2.0, 2.0, -9.0], [-2.0, -9.0, -3.0], [-2.0, -9.0, -9.0]]))
    assert shares[:, 0].eq(0).all()
    assert shares[0, 1] > 0.9
    assert shares[1:].sum() < 0.1


def test_a_missing_teacher_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(QamDetrError, match="pip install ai-edge-litert"):
        Teacher(tmp_path)


@pytest.mark.slow
def test_distillation_brings_the_student_to_its_teacher() -> None:
    words = [f"word{chr(97 + i)}" for i in range(26)]
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, **{word: i + 1 for i, word in enumerate(words)}}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    assert vocabulary_words(tokenizer) == words
    generator = torch.Generator().manual_seed(0)
    meaning = torch.randn(26, 24, generator=generator)
    sentences = [f"{a} {b}" for a in words for b in words]
    targets = normalize(torch.stack([meaning[i] + meaning[j] for i in range(26) for j in range(26)]), dim=-1)
    keep = torch.rand(len(sentences), generator=generator) < 0.9
    corpus = [s for s, kept in zip(sentences, keep, strict=True) if kept]
    held_out = [s for s, kept in zip(sentences, keep, strict=True) if not kept]
    torch.manual_seed(0)
    student = PocketTextModel(vocab_size=27, dim=32, sentence_dim=24, dropout=0.0)
    before = held_out_cosine(student.eval(), tokenizer, held_out, targets[~keep])
    distil(student, tokenizer, corpus, targets[keep], DistillConfig(batch_size=64, epochs=12, learning_rate=3e-3))
    assert held_out_cosine(student, tokenizer, held_out, targets[~keep]) > max(0.8, before + 0.3)
