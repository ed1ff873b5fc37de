"""Trains the pocket audio encoder against the distilled text encoder, and the map of text into their joint space.

    python -m recipes.pocket.audio --bank build/sounds --text build/pocket-text --output build/pocket-first
    python -m recipes.pocket.audio --bank build/sounds --text build/pocket-first --init-from build/pocket-first --output …

Each clip of a mixture should lie near the captions of the groups that sound in it and far from all others: a softmax over groups (which
sound is it) and a sigmoid per group (is it there at all). Sentence vectors stay as the teacher placed them; only a linear map is learned,
so that words outside the captions keep their neighbours.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax, normalize, pad
from torch.optim.swa_utils import AveragedModel

from qamdetr.features.pocket import (
    FRAMES_PER_CLIP,
    PocketAudioModel,
    PocketTextModel,
    log_mel,
    unpack_state,
)
from recipes.pocket.mixtures import MixtureMaker, Source, load_backgrounds, load_sources
from recipes.pocket.sound_bank.build import ESC10_GROUPS, TRAIN_BANKS, load_groups
from recipes.pocket.text import encode_batch, pack_state

REAL_GROUP_WEIGHT = 6.0
"""Groups of real recordings from many places are drawn this much more often than generated ones."""


@dataclass(frozen=True)
class AudioTrainConfig:
    """The optimisation of the audio encoder."""

    seed: int = 0
    steps: int = 3000
    batch_size: int = 32
    num_clips: int = 5
    learning_rate: float = 2e-3
    joint_learning_rate: float = 2e-4
    warm_fraction: float = 0.3  # of the steps, in which mixtures go from easy to hard
    weight_decay: float = 0.02
    ema_decay: float = 0.998
    sentence_noise: float = 0.35
    joint_anchor: float = 0.3
    threads: int = 2


class JointObjective(nn.Module):
    """Softmax and sigmoid losses of clip vectors against group captions, with learned scales."""

    def __init__(self, text: PocketTextModel, captions: Sequence[Tensor], ancestors: Tensor) -> None:
        super().__init__()
        self.joint = text.joint
        self.captions = captions
        self.ancestors = ancestors
        self.classifier = nn.Linear(text.joint.out_features, len(captions))  # a plain classifier beside the joint space speeds up the start
        self.log_scale = nn.Parameter(torch.tensor(3.4))
        self.presence = nn.Parameter(torch.tensor([2.3, -3.0]))  # log of scale, and offset, of the presence logit
        with torch.no_grad():
            self.anchor = self._similarity_of_captions()

    def draw_sentences(self, noise: float) -> Tensor:
        """Return `(groups, sentence_dim)`: per group a random point between two of its captions, with noise."""
        rows = []
        for bank in self.captions:
            first, second = torch.randint(len(bank), (2,)).tolist()
            rows.append(torch.lerp(bank[first], bank[second], float(torch.rand(())) * 0.7))
        sentences = normalize(torch.stack(rows), dim=-1)
        return normalize(sentences + noise * torch.randn_like(sentences) / sentences.shape[-1] ** 0.5, dim=-1)

    def forward(self, audio: Tensor, hidden: Tensor, labels: Tensor, counted: Tensor, noise: float) -> tuple[Tensor, ...]:
        """Return softmax, presence, anchor and classifier losses of `(batch, clips, dim)` audio; labels `(batch, clips, groups)`."""
        text = normalize(self.joint(self.draw_sentences(noise)), dim=-1)
        cosine = audio @ text.T
        leaf = labels * ~self.ancestors
        allowed = (counted & ~self.ancestors) | (leaf > 0)
        softmax_loss = _which(self.log_scale.exp() * cosine, leaf, allowed)
        classifier_loss = _which(self.classifier(hidden), leaf, allowed)
        presence_logit = self.presence[0].exp() * cosine + self.presence[1]
        presence = binary_cross_entropy_with_logits(presence_logit, labels, reduction="none", pos_weight=torch.tensor(4.0))
        presence_loss = (presence * counted).sum() / counted.sum() * 10
        anchor_loss = (self._similarity_of_captions() - self.anchor).square().mean() * 10
        return softmax_loss, presence_loss, anchor_loss, classifier_loss

    def _similarity_of_captions(self) -> Tensor:
        """Cosines of a fixed spread of captions in the joint space; held near their start so that meaning is kept."""
        sample = torch.cat([bank[:3] for bank in self.captions])
        joint = normalize(self.joint(sample), dim=-1)
        return joint @ joint.T


def _which(logits: Tensor, leaf: Tensor, allowed: Tensor) -> Tensor:
    """Cross-entropy of `(batch, clips, groups)` logits against the sounding groups, over clips in which something sounds."""
    log_probability = log_softmax(logits.masked_fill(~allowed, -1e4), dim=-1)
    sounding = leaf.sum(dim=-1)
    loss = -(leaf * log_probability).sum(dim=-1) / sounding.clamp(min=1)
    return loss.sum() / (sounding > 0).sum().clamp(min=1)


def load_text(folder: Path) -> tuple[PocketTextModel, Tokenizer]:
    """Load the distilled text encoder; its joint map starts as the main directions of the sentence space."""
    model = PocketTextModel()
    model.load_state_dict(unpack_state(load_file(folder / "text.safetensors")))
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def embed(model: PocketTextModel, tokenizer: Tokenizer, sentences: Sequence[str]) -> Tensor:
    """Return `(sentences, sentence_dim)` unit vectors."""
    ids, mask = encode_batch(tokenizer, sentences)
    with torch.no_grad():
        sentences_out: Tensor = model(ids, mask)[1]
    return sentences_out


@torch.inference_mode()
def zero_shot(model: PocketAudioModel, text: Tensor, sources: Sequence[Source], groups: Sequence[str]) -> dict[str, float]:
    """Classify clips and one-second windows among `groups` by the cosine with `text` `(groups, dim)`; accuracies in percent.

    As in serving, a recording is padded to whole seconds; seconds 40 dB under the loudest do not count.
    """
    right, windows = 0, []
    for source in sources:
        power = torch.from_numpy(source.powers[0])
        power = pad(power, (0, -power.shape[1] % FRAMES_PER_CLIP))
        level_db = 10 * torch.log10(power.reshape(power.shape[0], -1, FRAMES_PER_CLIP).mean(dim=(0, 2)) + 1e-12)
        cosine = model(log_mel(power).unsqueeze(0))[0] @ text.T
        heard = level_db > level_db.max() - 40
        truth = groups.index(source.group)
        right += int(cosine[heard].mean(dim=0).argmax() == truth)
        windows.append((cosine[heard].argmax(dim=-1) == truth).float())
    return {"clips": 100 * right / len(sources), "windows": 100 * float(torch.cat(windows).mean())}


def train(
    audio: PocketAudioModel,
    objective: JointObjective,
    maker: MixtureMaker,
    config: AudioTrainConfig,
    validate: Callable[[PocketAudioModel], dict[str, float]],
) -> PocketAudioModel:
    """Train and return the averaged (EMA) audio encoder."""
    torch.manual_seed(config.seed)
    ema = AveragedModel(audio, avg_fn=_growing_average(config.ema_decay), use_buffers=True)
    joint = list(objective.joint.parameters())
    fast = [*audio.parameters(), *(p for p in objective.parameters() if all(p is not other for other in joint))]
    rates = [config.learning_rate, config.joint_learning_rate]
    groups = [{"params": fast, "lr": rates[0]}, {"params": joint, "lr": rates[1]}]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=config.steps, pct_start=0.1)
    sums = np.zeros(4)
    for step in range(1, config.steps + 1):
        audio.train()
        maker.difficulty = min(1.0, step / max(config.warm_fraction * config.steps, 1))
        log_mels, labels, counted = maker.batch(config.batch_size)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = audio.hidden(log_mels)
        hidden = hidden.float()
        vectors = normalize(audio.output(hidden), dim=-1)
        losses = objective(vectors, hidden, labels, counted, config.sentence_noise)
        loss = losses[0] + losses[1] + config.joint_anchor * losses[2] + losses[3]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(fast, 5.0)
        optimizer.step()
        schedule.step()
        ema.update_parameters(audio)
        sums += [float(value.detach()) for value in losses]
        if step % 100 == 0:
            which, presence, anchor, classifier = sums / 100
            sums[:] = 0
            scores = validate(_averaged(ema)) if step % 300 == 0 or step == config.steps else {}
            losses_text = f"which {which:.3f}, presence {presence:.3f}, anchor {anchor:.4f}, classifier {classifier:.3f}"
            log(f"step {step}/{config.steps}: {losses_text} {scores}")
    return _averaged(ema)


def _averaged(ema: AveragedModel) -> PocketAudioModel:
    model: PocketAudioModel = ema.module.eval()  # type: ignore[assignment]
    return model


def _growing_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Average that forgets the untrained start soon: the decay grows towards its final value."""

    def average(kept: Tensor, new: Tensor, updates: Tensor | int) -> Tensor:
        rate = min(decay, (1 + int(updates)) / (10 + int(updates)))
        return kept + (1 - rate) * (new - kept) if kept.is_floating_point() else new

    return average


def write_attribution(folders: Sequence[Path], path: Path) -> None:
    """List every source that the encoder heard, with its licence."""
    rows = set()
    for folder in folders:
        with (folder / "clips.csv").open(encoding="utf-8") as file:
            rows |= {(row["source"], row["licenses"]) for row in csv.DictReader(file)}
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("source", "licence"), *sorted(rows)])


def log(message: str) -> None:
    """Print one line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {message}", flush=True)  # noqa: T201 - progress of a training command


def main(argv: Sequence[str] | None = None) -> None:
    """Run the training from the command line."""
    parser = argparse.ArgumentParser(description="Train the pocket audio encoder.")
    parser.add_argument("--bank", type=Path, required=True, help="folder made by recipes.pocket.sound_bank.build")
    parser.add_argument("--text", type=Path, required=True, help="folder made by recipes.pocket.text")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=AudioTrainConfig.steps)
    parser.add_argument("--learning-rate", type=float, default=AudioTrainConfig.learning_rate)
    parser.add_argument("--warm-fraction", type=float, default=AudioTrainConfig.warm_fraction)
    parser.add_argument("--init-from", type=Path, help="folder of an earlier run of this command, to go on from")
    arguments = parser.parse_args(argv)
    config = AudioTrainConfig(steps=arguments.steps, learning_rate=arguments.learning_rate, warm_fraction=arguments.warm_fraction)
    torch.set_num_threads(config.threads)
    text_model, tokenizer = load_text(arguments.text)
    groups = load_groups()
    names = list(groups)
    captions = [embed(text_model, tokenizer, groups[name]["captions"]) for name in names]
    audio = PocketAudioModel()
    if arguments.init_from:
        state = load_file(arguments.init_from / "audio.safetensors")
        audio.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    else:
        with torch.no_grad():
            text_model.joint.weight.copy_(torch.linalg.svd(torch.cat(captions), full_matrices=True)[2][: text_model.joint.out_features])
    ancestors = torch.tensor([any(other.startswith(name + "/") for other in names) for name in names])
    objective = JointObjective(text_model, captions, ancestors)
    sources = load_sources([arguments.bank / name for name in TRAIN_BANKS])
    log(f"{len(sources)} sources in {len({source.group for source in sources})} groups")
    weights = dict.fromkeys(ESC10_GROUPS.values(), REAL_GROUP_WEIGHT)
    maker = MixtureMaker(sources, load_backgrounds(arguments.bank / "backgrounds-train"), names, weights, config.num_clips, config.seed)
    ten = list(ESC10_GROUPS.values())
    validation = [source for source in load_sources([arguments.bank / "fold4"], speeds=(1.0,)) if source.group in ten]

    def validate(model: PocketAudioModel) -> dict[str, float]:
        prompts = torch.stack([text_model.to_joint(captions[names.index(group)][:1]).detach()[0] for group in ten])
        return {name: round(value, 1) for name, value in zero_shot(model, prompts, validation, ten).items()}

    audio = train(audio, objective, maker, config, validate)
    arguments.output.mkdir(parents=True, exist_ok=True)
    halved = {key: value.half() if value.is_floating_point() else value for key, value in audio.state_dict().items()}
    save_file({key: value.contiguous() for key, value in halved.items()}, arguments.output / "audio.safetensors")
    save_file(pack_state(text_model), arguments.output / "text.safetensors")
    report: dict[str, object] = {"steps": config.steps, "sources": len(sources), "groups": len(names), "fold4_zero_shot": validate(audio)}
    report["presence"] = [round(float(value), 4) for value in (objective.presence[0].detach().exp(), objective.presence[1].detach())]
    (arguments.output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name in ("text_report.json", "tokenizer.json"):
        shutil.copyfile(arguments.text / name, arguments.output / name)
    write_attribution([arguments.bank / name for name in TRAIN_BANKS], arguments.output / "attribution.csv")


if __name__ == "__main__":
    main()
