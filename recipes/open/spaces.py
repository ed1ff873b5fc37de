r"""Joint spaces beside the pocket encoders', with ears and words of other kinds: to train the open-vocabulary model on, and to leave out.

    python -m recipes.open.spaces --pool build/pool --teacher ../shared/teacher --output build/spaces [--only NAME ...]
    python -m recipes.open.run extract --combo open:letters ...       # any command of the program, with these spaces at hand

Each is taught in minutes on the taught mixtures of `recipes.pocket.mixtures`, and is far worse than a CLAP. Importing this file registers
them as streams, `teacher_scores` and so on, whose weights lie in `build/spaces` (`$QAMDETR_SPACES`).
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize

from qamdetr.features.base import AudioStream, EncoderOptions, stream, weights_fingerprint
from qamdetr.features.known import stem
from qamdetr.features.pocket import EarFrontEnd, Pocket, patches
from qamdetr.types import TextFeatures
from recipes.pocket import teacher
from recipes.pocket.audio import GENERAL_CLASSES, Pool, class_shares, log, which
from recipes.pocket.sound_bank.build import load_groups
from recipes.pocket.text import encode_batch, teacher_dir

FOLDER, TEACHER = Path(os.environ.get("QAMDETR_SPACES", "build/spaces")), Path(os.environ.get("QAMDETR_TEACHER", "../shared/teacher"))
STEPS, BATCH_CELLS = 1500, 256
LETTER_BUCKETS, WORD_BUCKETS = 8192, 4096

_WORD = re.compile(r"[a-z']+")


@dataclass(frozen=True)
class Space:
    """Which ears hear and which words are read, how wide the space is, and the seed of what is drawn."""

    ears: str
    words: str
    dim: int
    seed: int


SPACES = {
    "teacher_scores": Space("scores", "minilm", 384, 0),
    "teacher_minilm": Space("yamnet", "minilm", 320, 1),
    "letters": Space("network", "letters", 128, 2),
    "chance": Space("chance", "words", 192, 3),
    "unseen": Space("network", "minilm", 96, 4),
}
"""Of these, `letters` and `chance` share neither ears nor words with the pocket encoders; `unseen` is looked at once, at the end."""


# Ears: of patches (cells, 96, 64) to numbers (cells, width).


class Network(nn.Sequential):
    """A small network of its own, taught with the space."""

    width = 256

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for source, target in ((1, 32), (32, 64), (64, 128), (128, self.width)):
            layers += [nn.Conv2d(source, target, 3, 2, 1), nn.BatchNorm2d(target), nn.ReLU()]
        super().__init__(nn.Unflatten(1, (1, -1)), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, seen: Tensor) -> Tensor:
        """Hear patches."""
        for layer in self:
            seen = layer(seen)
        return seen


class Chance(nn.Module):
    """Filters as chance gave them, never taught; what is taught reads mean, maximum and spread of what they give."""

    width = 3 * 384

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.near, self.far = nn.Conv2d(1, 96, (7, 9), (3, 3)), nn.Conv2d(96, 384, (5, 5), (2, 2))
        for each in (self.near, self.far):
            each.requires_grad_(requires_grad=False)

    def forward(self, seen: Tensor) -> Tensor:
        """Hear patches."""
        maps = torch.relu(self.far(torch.relu(self.near(seen[:, None])))).flatten(2)
        return torch.cat([maps.mean(dim=2), maps.amax(dim=2), maps.std(dim=2)], dim=1)


class Yamnet(nn.Module):
    """The teacher's embedding, or its scores."""

    def __init__(self, *, scores: bool) -> None:
        super().__init__()
        self._scores, self._teacher = scores, teacher.Teacher(TEACHER)
        self.width = 521 if scores else 1024

    def forward(self, seen: Tensor) -> Tensor:
        """Hear patches, one by one."""
        heard = [self._teacher(patch) for patch in seen.numpy()]
        if self._scores:
            return (torch.from_numpy(np.stack([each.logits for each in heard])).float() - teacher.LOGIT_ZERO) * teacher.LOGIT_STEP
        return (torch.from_numpy(np.stack([each.embedding for each in heard])).float() - teacher.NOTHING) * teacher.EMBEDDING_STEP


# Words: of sentences to numbers (sentences, width).


def minilm(sentences: Sequence[str]) -> Tensor:
    """Read with all-MiniLM-L6-v2 itself."""
    model, tokenizer = _minilm()
    read = []
    for begin in range(0, len(sentences), 64):
        ids, mask = encode_batch(tokenizer, sentences[begin : begin + 64])
        with torch.inference_mode():
            states = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        read.append(normalize((states * mask[..., None]).sum(dim=1), dim=-1).clone())
    return torch.cat(read)


@functools.cache
def _minilm() -> tuple[Any, Tokenizer]:
    from transformers import AutoModel

    tokenizer = Tokenizer.from_file(str(teacher_dir() / "tokenizer.json"))
    tokenizer.no_padding()
    return AutoModel.from_pretrained(teacher_dir()).eval(), tokenizer


def letters(sentences: Sequence[str]) -> Tensor:
    """Count the strings of three to five letters."""
    padded = [[f" {word} " for word in _words(sentence)] for sentence in sentences]
    return _counted([[w[i : i + n] for w in each for n in (3, 4, 5) for i in range(len(w) - n + 1)] for each in padded], LETTER_BUCKETS)


def words(sentences: Sequence[str]) -> Tensor:
    """Count the stems of words."""
    return _counted([[stem(word) for word in _words(sentence)] for sentence in sentences], WORD_BUCKETS)


def _words(sentence: str) -> list[str]:
    return [word for word in _WORD.findall(sentence.lower()) if word not in {"a", "an", "the", "of", "is", "in", "on", "and", "to", "at"}]


def _counted(parts: Sequence[Sequence[str]], buckets: int) -> Tensor:
    counts = torch.zeros(len(parts), buckets)
    for row, each in enumerate(parts):
        for part in each:
            counts[row, zlib.crc32(part.encode()) % buckets] += 1
    return normalize(counts.sqrt(), dim=-1)


WORDS: Mapping[str, tuple[Callable[[Sequence[str]], Tensor], int]] = {
    "minilm": (minilm, 384),
    "letters": (letters, LETTER_BUCKETS),
    "words": (words, WORD_BUCKETS),
}


def ears_of(space: Space) -> Network | Chance | Yamnet:
    """Build the ears of a space."""
    if space.ears == "network":
        return Network()
    return Chance(space.seed) if space.ears == "chance" else Yamnet(scores=space.ears == "scores")


class Both(nn.Module):
    """Ears and words with a linear map each into the joint space; the teacher's scores need none, as their classes have names."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        torch.manual_seed(space.seed)
        self.ears = ears_of(space)
        self.read, width = WORDS[space.words]
        self.heard = nn.Sequential(nn.LayerNorm(self.ears.width), nn.Dropout(0.1), nn.Linear(self.ears.width, space.dim))
        self.said = nn.Sequential(nn.Dropout(0.2), nn.Linear(width, space.dim))
        self.log_scale = nn.Parameter(torch.full((2,), 3.0))
        self.by_name = space.ears == "scores"
        self.names = nn.Parameter(torch.zeros(521, space.dim if self.by_name else 0), requires_grad=False)
        self.usual = nn.Parameter(torch.zeros(521), requires_grad=False)

    def clips(self, heard: Tensor) -> Tensor:
        """Map what the ears give to unit vectors."""
        if self.by_name:
            # Beyond their usual score, else the parents of all classes win.
            beyond = (torch.sigmoid(heard) - self.usual).clamp(min=0) / (self.usual + 0.01).sqrt()
            return normalize(beyond @ self.names, dim=-1)
        return normalize(self.heard(heard), dim=-1)

    def sentences(self, read: Tensor) -> Tensor:
        """Map what was read to unit vectors."""
        return normalize(read if self.by_name else self.said(read), dim=-1)


def teach(name: str, pools: Sequence[Path], folder: Path) -> None:
    """Teach a space on pools of taught mixtures, and store it."""
    space = SPACES[name]
    tables = load_groups()
    groups = list(tables)
    classes = {column: each for column, each in enumerate(teacher.class_names(TEACHER)) if each not in GENERAL_CLASSES}
    wordings = yaml.safe_load((Path(__file__).parents[1] / "pocket" / "sound_bank" / "audioset.yaml").read_text(encoding="utf-8"))
    pool = Pool(pools, groups)
    both = Both(space)
    banks = [both.read(tables[group]["captions"]) for group in groups] + [both.read(wordings[each]) for each in classes.values()]
    ancestors = torch.tensor([any(other.startswith(f"{group}/") for other in groups) for group in groups])
    cells = pool.everything()
    shares = class_shares(cells.logits[:, [*classes]])
    if space.ears == "scores":
        both.names.copy_(both.read([each.lower() for each in teacher.class_names(TEACHER)]))
        both.usual.copy_(torch.sigmoid(cells.logits).mean(dim=0))
    else:
        _train(both, space, pool, cells, banks, ancestors, shares)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(both.eval().state_dict(), folder / f"{name}.pt")
    log(f"{name}: done")


def _train(both: Both, space: Space, pool: Pool, cells: Any, banks: Sequence[Tensor], ancestors: Tensor, shares: Tensor) -> None:  # noqa: ANN401
    optimizer = torch.optim.AdamW(both.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS, pct_start=0.1)
    per_mixture, num_groups = len(cells.states) // len(pool), len(ancestors)
    both.train()
    for step in range(1, STEPS + 1):
        if space.ears == "yamnet":
            drawn = torch.randint(len(cells.states), (BATCH_CELLS,))
            heard = cells.states[drawn]
        else:
            mixtures = torch.randint(len(pool), (BATCH_CELLS // 8,)).tolist()
            rows = torch.stack([torch.randperm(per_mixture)[:8] for _ in mixtures])
            drawn = (torch.tensor(mixtures)[:, None] * per_mixture + rows).flatten()
            heard = both.ears(torch.cat([pool.seen(index)[row] for index, row in zip(mixtures, rows, strict=True)]))
        said = both.sentences(torch.stack([bank[int(torch.randint(len(bank), ()))] for bank in banks]))
        cosine = both.clips(heard) @ said.T
        leaves = cells.labels[drawn] * ~ancestors
        loss = which(both.log_scale[0].exp() * cosine[:, :num_groups], leaves, (cells.counted[drawn] & ~ancestors) | (leaves > 0))
        of_classes = log_softmax(both.log_scale[1].exp() * cosine[:, num_groups:], dim=-1)
        loss = loss - 0.5 * (shares[drawn] * of_classes).sum() / shares[drawn].sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 300 == 0:
            log(f"{step}/{STEPS}: {float(loss.detach()):.3f}")


class TaughtSpace(Pocket):
    """Any of `SPACES` as a stream of half seconds; what is silent is told as the pocket encoder does."""

    listener, is_joint = EarFrontEnd, True

    def __init__(self, folder: Path, options: EncoderOptions) -> None:
        AudioStream.__init__(self, folder, options)
        self.both = Both(SPACES[self.name])
        state = torch.load(FOLDER / f"{self.name}.pt", weights_only=True)
        self.both.load_state_dict(state)
        self.both.eval()
        self.fingerprint = weights_fingerprint(f"{self.name}-1", state)

    def encode_section(self, kept: Tensor) -> Tensor:
        """Encode mel magnitudes `(64, 100 * seconds)` at once to unit vectors `(clips, dim)`."""
        vectors = self.both.clips(self.both.ears(patches(kept[None])[0]))
        return vectors if self.options.clip_seconds != 1.0 else normalize(vectors[::2] + vectors[1::2], dim=-1)

    @torch.inference_mode()
    def encode_text(self, query: str) -> TextFeatures:
        """Encode one query; its only token is itself."""
        pooled = self.both.sentences(self.both.read([query]))
        return TextFeatures(pooled.clone(), ((0, len(query)),), pooled[0].clone())


for _name, _space in SPACES.items():
    stream(_name, dim=_space.dim, rate_hz=EarFrontEnd.rate_hz)(type(_name, (TaughtSpace,), {}))


def main(argv: Sequence[str] | None = None) -> None:
    """Teach spaces from the command line."""
    parser = argparse.ArgumentParser(description="Teach joint spaces of other kinds.")
    parser.add_argument("--pool", type=Path, nargs="+", required=True, help="folders made by recipes.pocket.mixtures")
    parser.add_argument("--output", type=Path, default=FOLDER)
    parser.add_argument("--only", nargs="+", choices=SPACES, default=list(SPACES))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    for name in arguments.only:
        teach(name, arguments.pool, arguments.output)


if __name__ == "__main__":
    main()
