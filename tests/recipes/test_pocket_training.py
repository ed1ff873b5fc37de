"""Tests of what trains the pocket encoders: mixtures, the joint objective, the distillation corpus."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.nn.functional import normalize

from qamdetr.features.pocket import FRAMES_PER_CLIP, NUM_MELS, PocketAudioModel, PocketTextModel
from recipes.pocket.audio import AudioTrainConfig, JointObjective, train, zero_shot
from recipes.pocket.mixtures import MixtureMaker, Source, active_frames, played_at
from recipes.pocket.sound_bank import synthetic
from recipes.pocket.text import DistillConfig, distil, held_out_cosine, vocabulary_words

RATE = 24_000
GROUPS = ["alarm", "alarm/siren", "vehicle/engine", "tool/typing"]


def make_source(group: str, seed: int) -> Source:
    power = played_at(synthetic.MAKERS[group](np.random.default_rng(seed), RATE), RATE, 1.0)
    return Source(group, loops=True, powers=(power,), active=(active_frames(power),))


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return [make_source(group, seed) for group in GROUPS[1:] for seed in range(3)]


@pytest.fixture
def maker(sources: list[Source]) -> MixtureMaker:
    background = played_at(synthetic.background(np.random.default_rng(9), RATE, 20.0), RATE, 1.0)
    return MixtureMaker(sources, [background], GROUPS, {}, num_clips=3, seed=0)


def test_mixtures_have_labels_per_clip_and_mark_ancestors(maker: MixtureMaker) -> None:
    log_mels, labels, counted = maker.batch(64)
    assert log_mels.shape == (64, NUM_MELS, 3 * FRAMES_PER_CLIP)
    assert torch.isfinite(log_mels).all()
    assert labels.shape == counted.shape == (64, 3, len(GROUPS))
    assert torch.equal(labels[..., 0], labels[..., 1])
    assert counted[labels > 0].all()
    assert 0.2 < (labels[..., 1:].sum(dim=-1) > 0).float().mean() < 1.0


@pytest.mark.slow
def test_a_short_training_tells_three_sounds_apart(maker: MixtureMaker) -> None:
    torch.manual_seed(0)
    text = PocketTextModel(vocab_size=4, dim=32, sentence_dim=48)
    captions = [normalize(torch.randn(3, 48) * 0.3 + torch.randn(48), dim=-1) for _ in GROUPS]
    objective = JointObjective(text, captions, ancestors=torch.tensor([True, False, False, False]))
    model = PocketAudioModel(channels=(8, 16, 16, 32), dim=32)
    config = AudioTrainConfig(steps=60, batch_size=12, num_clips=3, ema_decay=0.9, warm_fraction=1.0)
    trained = train(model, objective, maker, config, lambda _: {})
    prompts = torch.stack([text.to_joint(bank)[0] for bank in captions[1:]]).detach()
    unheard = [make_source(group, seed) for group in GROUPS[1:] for seed in (50, 51, 52)]
    assert zero_shot(trained, prompts, unheard, GROUPS[1:])["clips"] >= 75


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
