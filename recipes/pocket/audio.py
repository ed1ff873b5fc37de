r"""Trains the pocket audio encoder on a pool of taught mixtures, and the map of text into the space both share.

    python -m recipes.pocket.audio --pool build/pool --bank build/sounds --text build/pocket-text --teacher ../shared/teacher \
        --output checkpoints/pocket-encoder

First the layers of the network are fitted to the teacher's (`recipes.pocket.layers`). Then, on the teacher's embedding, which the network
now gives too, the joint space: a clip should lie near the captions of the groups that sound in it, and of the classes that the teacher
hears, and far from all others. Sentence vectors stay as their teacher placed them; a straight map of them is learned, so that words
outside the captions keep their neighbours, and beside it every caption is kept with the place of its sound (`WordMap`).
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, dropout, log_softmax, normalize

from qamdetr.features.pocket import PocketAudioModel, PocketTextModel, patches, unpack_state
from recipes.pocket import teacher
from recipes.pocket.layers import teach_layers
from recipes.pocket.mixtures import AUDIBLE_DB, MASKED_DB, NUM_CELLS
from recipes.pocket.sound_bank.build import TRAIN_BANKS, load_groups
from recipes.pocket.text import encode_batch

# fmt: off
GENERAL_CLASSES = frozenset({
    "Animal", "Domestic animals, pets", "Livestock, farm animals, working animals", "Wild animals", "Outside, urban or manmade",
    "Outside, rural or natural", "Inside, small room", "Inside, large room or hall", "Inside, public space", "Sound effect", "Silence",
    "Vehicle", "Field recording", "Reverberation", "Echo", "Noise", "Environmental noise", "Static", "Single-lens reflex camera",
    "Cacophony", "White noise", "Pink noise", "Distortion", "Sidetone", "Throbbing", "Vibration", "Mechanisms", "Tools", "Human sounds",
    "Respiratory sounds", "Motor vehicle (road)",
})
# fmt: on
"""Classes whose scores say little of which sound it is, and would win over those that do."""


@dataclass(frozen=True)
class AudioTrainConfig:
    """How much the network is taught, and the optimisation of the joint space."""

    seed: int = 0
    patches: int = 4000
    steps: int = 2000
    batch_size: int = 1024
    learning_rate: float = 2e-3
    map_learning_rate: float = 3e-4
    weight_decay: float = 0.02
    class_weight: float = 0.5
    anchor_weight: float = 0.3
    sentence_noise: float = 0.5
    dropout: float = 0.2
    threads: int = 2


@dataclass(frozen=True)
class Cells:
    """Half seconds of the pool: what is heard in them and what is known of them; shapes `(cells, …)`."""

    states: Tensor  # (…, 1024) the teacher's embedding, which the network gives too
    logits: Tensor  # (…, 521) of the teacher
    labels: Tensor  # (…, groups) 1 where a group sounds
    counted: Tensor  # (…, groups) False where that cannot be said


class Pool:
    """The mixtures of folders, in memory."""

    def __init__(self, folders: Sequence[Path], groups: Sequence[str]) -> None:
        self.groups = groups
        # Row of a group marks itself and its ancestors: captions of `speech` describe `speech/man`.
        self._rows = {name: np.array([f"{name}/".startswith(f"{group}/") for group in groups]) for name in groups}
        self._mixtures: list[tuple[list[str], dict[str, NDArray[np.generic]]]] = []
        for folder in folders:
            names = json.loads((folder / "sources.json").read_text(encoding="utf-8"))
            for file in sorted(folder.glob("*.npz")):
                with np.load(file) as shard:
                    columns = {key: shard[key] for key in shard.files}
                self._mixtures += [(names, {key: column[row] for key, column in columns.items()}) for row in range(len(columns["logits"]))]

    def __len__(self) -> int:
        return len(self._mixtures)

    def mixture(self, index: int) -> Cells:
        """Return all cells of a mixture."""
        names, kept = self._mixtures[index]
        labels = np.zeros((NUM_CELLS, len(self.groups)), dtype=np.float32)
        counted = np.ones(labels.shape, dtype=bool)
        for source, level_db, share in zip(kept["source"], kept["level_db"], kept["share"], strict=True):
            if source < 0:
                continue
            heard, unheard = (level_db > AUDIBLE_DB) & (share > 0.25), (level_db < MASKED_DB) | (share < 0.04)
            row = self._rows[names[source]]
            labels[np.ix_(heard, row)] = 1.0
            counted[np.ix_(~heard & ~unheard, row)] = False
        states = (torch.from_numpy(kept["embedding"]).float() - teacher.NOTHING) * teacher.EMBEDDING_STEP
        logits = (torch.from_numpy(kept["logits"]).float() - teacher.LOGIT_ZERO) * teacher.LOGIT_STEP
        return Cells(states, logits, torch.from_numpy(labels), torch.from_numpy(counted | (labels > 0)))

    def seen(self, index: int) -> Tensor:
        """Return the patches `(cells, 96, 64)` of a mixture."""
        return patches(torch.from_numpy(self._mixtures[index][1]["magnitudes"]).float()[None])[0]

    def everything(self) -> Cells:
        """Return the cells of all mixtures."""
        mixtures = [astuple(self.mixture(index)) for index in range(len(self))]
        return Cells(*(torch.cat(column) for column in zip(*mixtures, strict=True)))


def which(logits: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
    """Cross-entropy of `(…, groups)` logits against the groups that sound, over cells in which something sounds."""
    log_probability = log_softmax(logits.masked_fill(~counted, -1e4), dim=-1)
    sounding = labels.sum(dim=-1)
    loss = -(labels * log_probability).sum(dim=-1) / sounding.clamp(min=1)
    return loss.sum() / (sounding > 0).sum().clamp(min=1)


class JointObjective(nn.Module):
    """Losses of clip vectors against the captions of groups and of the teacher's classes, with learned scales."""

    def __init__(self, joint: nn.Linear, groups: Sequence[Tensor], classes: Sequence[Tensor], ancestors: Tensor) -> None:
        super().__init__()
        self.joint, self.groups, self.classes, self.ancestors = joint, groups, classes, ancestors
        self.log_scale = nn.Parameter(torch.full((2,), 3.0))
        self.presence = nn.Parameter(torch.tensor([2.3, -3.0]))  # log of scale, and offset, of the presence logit
        self.fixed = torch.cat([bank[:2] for bank in (*groups, *classes)])
        with torch.no_grad():
            self.anchor = self._similarities()

    def forward(self, audio: Tensor, labels: Tensor, counted: Tensor, shares: Tensor, noise: float) -> tuple[Tensor, ...]:
        """Return losses of groups, classes, presence, anchor of unit vectors `(batch, dim)`; `shares` `(batch, classes)` sum to <= 1."""
        cosine = audio @ self._draw(self.groups, noise).T
        leaves = labels * ~self.ancestors
        groups = which(self.log_scale[0].exp() * cosine, leaves, (counted & ~self.ancestors) | (leaves > 0))
        log_probability = log_softmax(self.log_scale[1].exp() * (audio @ self._draw(self.classes, noise).T), dim=-1)
        classes = -(shares * log_probability).sum() / shares.sum().clamp(min=1)
        logit = self.presence[0].exp() * cosine + self.presence[1]
        presence = binary_cross_entropy_with_logits(logit, labels, reduction="none", pos_weight=torch.tensor(4.0))
        return groups, classes, (presence * counted).sum() / counted.sum() * 10, (self._similarities() - self.anchor).square().mean() * 10

    def _draw(self, banks: Sequence[Tensor], noise: float) -> Tensor:
        """Return `(banks, dim)`: per bank a random point between two of its captions, with noise, in the joint space."""
        begins, sizes = torch.tensor([[0, *map(len, banks[:-1])], [*map(len, banks)]])
        first, second = begins.cumsum(0) + (torch.rand(2, len(banks)) * sizes).long()
        captions = torch.cat([*banks])
        sentences = normalize(torch.lerp(captions[first], captions[second], 0.7 * torch.rand(len(banks), 1)), dim=-1)
        sentences = normalize(sentences + noise * torch.randn_like(sentences) / sentences.shape[-1] ** 0.5, dim=-1)
        return normalize(self.joint(sentences), dim=-1)

    def _similarities(self) -> Tensor:
        """Cosines of a fixed spread of captions in the joint space; held near their start so that meaning is kept."""
        joint = normalize(self.joint(self.fixed), dim=-1)
        return joint @ joint.T


def class_shares(logits: Tensor) -> Tensor:
    """Turn the teacher's `(cells, classes)` logits into what each class has in a cell, beyond its usual score.

    Rows sum to how sure the teacher is that it hears anything in particular, in [0, 1].
    """
    probability = torch.sigmoid(logits)
    usual = probability.mean(dim=0)
    beyond = ((probability - 1.2 * usual).clamp(min=0) / (usual + 0.01).sqrt()) ** 1.3
    sure = ((probability.amax(dim=-1, keepdim=True) - 0.12) / 0.4).clamp(0, 1)
    return sure * beyond / beyond.sum(dim=-1, keepdim=True).clamp(min=1e-9)


def train_joint(model: PocketAudioModel, objective: JointObjective, heard: Cells, classes: Sequence[int], config: AudioTrainConfig) -> None:
    """Train the last layers of the network and the map of text; `classes` are columns of the logits."""
    torch.manual_seed(config.seed)
    shares = class_shares(heard.logits[:, classes])
    fast = [*model.straight.parameters(), *model.bent.parameters(), objective.log_scale, objective.presence]
    rates = [config.learning_rate, config.map_learning_rate]
    optimizer = torch.optim.AdamW(
        [{"params": fast, "lr": rates[0]}, {"params": objective.joint.parameters(), "lr": rates[1]}], weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=config.steps, pct_start=0.1)
    for step in range(1, config.steps + 1):
        drawn = torch.randint(len(heard.states), (config.batch_size,))
        audio = model.to_joint(dropout(heard.states[drawn], config.dropout))
        losses = objective(audio, heard.labels[drawn], heard.counted[drawn], shares[drawn], config.sentence_noise)
        loss = losses[0] + config.class_weight * losses[1] + losses[2] + config.anchor_weight * losses[3]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            log(f"joint {step}/{config.steps}: " + ", ".join(f"{float(value.detach()):.3f}" for value in losses))


CLASS_DOUBT = 1.0
"""How far kinds that only the teacher knows stand back, in `WordMap`, behind those that the network was taught with sounds."""


def pack_sentences(sentences: Tensor) -> Tensor:
    """Return unit vectors as int8, each with a scale of its own."""
    return (sentences * 127 / sentences.abs().amax(dim=-1, keepdim=True)).round().to(torch.int8)


@torch.no_grad()
def pack_word_map(joint: nn.Linear, groups: Sequence[Tensor], classes: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return what `WordMap` opens: the map, every caption, and where the captions of a group or class lie together."""
    banks = [*groups, *classes]
    places = torch.stack([normalize(joint(bank), dim=-1).mean(dim=0) for bank in banks])
    return {
        "straight.weight": joint.weight.half(),
        "sentences": pack_sentences(torch.cat(banks)),
        "kind_of": torch.repeat_interleave(torch.tensor([len(bank) for bank in banks])).to(torch.int16),
        "kinds": normalize(places, dim=-1).half(),
        "doubt": torch.tensor([0.0] * len(groups) + [CLASS_DOUBT] * len(classes)),
    }


def load_text(folder: Path) -> tuple[PocketTextModel, Tokenizer]:
    """Load the distilled text encoder."""
    model = PocketTextModel()
    model.load_state_dict(unpack_state(load_file(folder / "text.safetensors")))
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def embed(model: PocketTextModel, tokenizer: Tokenizer, sentences: Sequence[str]) -> Tensor:
    """Return `(sentences, sentence_dim)` unit vectors."""
    ids, mask = encode_batch(tokenizer, sentences)
    with torch.no_grad():
        sentences_out: Tensor = model(ids, mask)[1]
    return sentences_out


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
    parser.add_argument("--pool", type=Path, nargs="+", required=True, help="folders made by recipes.pocket.mixtures")
    parser.add_argument("--bank", type=Path, required=True, help="folder made by recipes.pocket.sound_bank.build, for the attribution")
    parser.add_argument("--text", type=Path, required=True, help="folder made by recipes.pocket.text")
    parser.add_argument("--teacher", type=Path, required=True, help="folder of yamnet_class_map.csv")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--begin-from", type=Path, help="audio.safetensors of an earlier run: its network is kept, the joint space made anew"
    )
    parser.add_argument("--seed", type=int, default=AudioTrainConfig.seed)
    arguments = parser.parse_args(argv)
    config = AudioTrainConfig(arguments.seed)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    tables = load_groups()
    names, classes = list(tables), dict(enumerate(teacher.class_names(arguments.teacher)))
    classes = {column: name for column, name in classes.items() if name not in GENERAL_CLASSES}
    pool = Pool(arguments.pool, names)
    log(f"{len(pool)} mixtures, {len(names)} groups")
    arguments.output.mkdir(parents=True, exist_ok=True)
    model = PocketAudioModel()
    if arguments.begin_from:
        earlier = load_file(arguments.begin_from)
        model.layers.load_state_dict({name.removeprefix("layers."): earlier[name] for name in earlier if name.startswith("layers.")})
    else:
        drawn = [pool.seen(index) for index in torch.randperm(len(pool))[: config.patches // 4].tolist()]
        seen = torch.cat([cells[torch.randperm(len(cells))[:4]] for cells in drawn])
        teach_layers(model, teacher.Teacher(arguments.teacher), seen, log)
    text, tokenizer = load_text(arguments.text)
    wordings = yaml.safe_load((Path(__file__).parent / "sound_bank" / "audioset.yaml").read_text(encoding="utf-8"))
    of_groups = [embed(text, tokenizer, tables[name]["captions"]) for name in names]
    of_all_classes = {name: embed(text, tokenizer, captions) for name, captions in wordings.items()}
    of_classes = [of_all_classes[name] for name in classes.values()]
    joint = nn.Linear(text.sentence.out_features, model.straight.out_features, bias=False)
    with torch.no_grad():  # the main directions of the captions
        directions = torch.linalg.svd(torch.cat([*of_groups, *of_classes]), full_matrices=True)[2]
        joint.weight.copy_(directions[: joint.out_features])
    ancestors = torch.tensor([any(other.startswith(name + "/") for other in names) for name in names])
    objective = JointObjective(joint, of_groups, of_classes, ancestors)
    train_joint(model, objective, pool.everything(), [*classes], config)
    halved = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    save_file({key: value.contiguous() for key, value in halved.items()}, arguments.output / "audio.safetensors")
    save_file(pack_word_map(joint, of_groups, [*of_all_classes.values()]), arguments.output / "joint.safetensors")
    report: dict[str, object] = {
        "mixtures": len(pool),
        "groups": len(names),
        "classes": len(classes),
        "patches": config.patches,
        "steps": config.steps,
    }
    report["presence"] = [round(float(value), 4) for value in (objective.presence[0].detach().exp(), objective.presence[1].detach())]
    (arguments.output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name in ("text.safetensors", "text_report.json", "tokenizer.json"):
        shutil.copyfile(arguments.text / name, arguments.output / name)
    write_attribution([arguments.bank / name for name in TRAIN_BANKS], arguments.output / "attribution.csv")


if __name__ == "__main__":
    main()
