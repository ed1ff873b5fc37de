"""Builds the table of known sounds that is shipped with the pocket encoders; run it again whenever they or their captions change.

    python -m recipes.pocket.known [--groups groups.yaml] [--classes audioset.yaml]

Kinds are those of the encoders' word map: the groups of the sound bank, which were taught with sounds, and the teacher's classes, which are
there as words. Its sentences are embedded anew, so that a text encoder that was distilled again (its vectors stay where their teacher has
them) needs no other joint space. What tells words that are understood from others is fitted to `known_dev.yaml`, and its threshold to the
wordings of the validation scenes: these are put less plainly, as what people ask is. See `qamdetr.features.known`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize
from scipy.special import expit

from qamdetr.config import CHECKPOINT_DIR
from qamdetr.errors import QamDetrError
from qamdetr.features.base import open_streams
from qamdetr.features.known import TABLE_FILE, KnownSounds, WordMap, script, text_version, words_of
from qamdetr.features.pocket import POCKET_CHECKPOINT
from recipes.pocket.audio import embed, load_text, pack_sentences

HERE = Path(__file__).parent
WORDINGS, PLAIN = 3, 8  # of a kind: those that the table shows; those that are plain, whose words are words for sounds
KNOWN_REFUSED, NOT_SURE = 0.05, 0.15  # shares of the wordings that nothing was taught: refused; refused or doubted
TAKEN_RIGHT = 0.9  # share of captions, each asked for with the others, that lead to their own kind: from such a cosine on one is "taken as"
PENALTY = 0.05
SAME_KIND = 0.6  # mean cosine of a kind's captions by two text encoders of one teacher; 0.88 and more where measured, 0.33 of others


def build(groups: Path, classes: Path, dev: Path, unheard: Path, output: Path) -> dict[str, Any]:
    """Write the word map's sentences, and the table beside it, for these groups and classes; returns what was measured.

    `dev` holds sentences that are understood and others, `unheard` wordings of the groups that nothing was taught.

    Raises:
        QamDetrError: The word map was made of others.
    """
    pocket = open_streams(("pocket",), ("pocket",)).text["pocket"]
    stored = {name: value.clone() for name, value in load_file(output / "joint.safetensors").items()}
    heard, words_only = _kinds(groups), _kinds(classes)
    kinds = [(name, wordings, is_heard) for part, is_heard in ((heard, True), (words_only, False)) for name, wordings in part]
    captions = [caption for _, wordings, _ in kinds for caption in wordings]
    if stored["kind_of"].tolist() != [index for index, (_, wordings, _) in enumerate(kinds) for _ in wordings]:
        what = (
            f"{groups.name} and {classes.name} hold {len(captions)} captions of {len(kinds)} kinds, the word map {len(stored['kind_of'])}"
        )
        raise QamDetrError(f"{what} of {len(stored['kinds'])}", "run recipes.pocket.audio again")
    text = load_text(output)
    sentences = pack_sentences(torch.cat([embed(*text, wordings) for _, wordings, _ in kinds]))
    cosines = torch.cosine_similarity(sentences.float(), stored["sentences"].float())
    same = torch.split(cosines, [len(wordings) for _, wordings, _ in kinds])
    if others := [name for (name, *_), each in zip(kinds, same, strict=True) if each.mean() < SAME_KIND]:
        raise QamDetrError(f"The captions of {others[0]!r} are not those of the word map", "run recipes.pocket.audio again")
    if (sentences.int() - stored["sentences"].int()).abs().max() > 1:  # what another CPU rounds otherwise is no new version of the encoders
        save_file(stored := stored | {"sentences": sentences}, output / "joint.safetensors")
    word_map = WordMap(stored)
    words = words_of([caption for _, wordings, _ in kinds for caption in wordings[:PLAIN]])
    languages = yaml.safe_load((HERE / "languages.yaml").read_text(encoding="utf-8"))
    spoken = {word.lower() for caption in captions for word in caption.replace(",", "").split()}
    table: dict[str, Any] = {
        "text_encoder": text_version(output),
        "taken_from": _taken_from(word_map.sentences, word_map.kind_of.numpy(), [name for name, *_ in kinds], len(heard)),
        "judge": {"weights": [0.0] * 6, "from": 0.5, "sure_from": 0.5},
        "kinds": [{"kind": name, "wordings": wordings[:WORDINGS], "heard": is_heard} for name, wordings, is_heard in kinds],
        "languages": {language: sorted({*small} - spoken) for language, small in languages.items()},
        "words": sorted(words),
    }
    _write(output, table)
    known, unknown = _dev_sentences(dev, {*captions})
    opened = KnownSounds(output, word_map)
    beside = [wording for _, wordings in _kinds(unheard) for wording in wordings]
    good, bad, new = (np.array([opened.evidence(each, pocket.encode_text(each)) for each in part]) for part in (known, unknown, beside))
    weights = _logistic(np.concatenate([good, bad]), np.arange(len(good) + len(bad)) < len(good))
    threshold, sure = np.quantile(_probability(weights, new), [KNOWN_REFUSED, NOT_SURE]).round(4).tolist()
    table["judge"] = {"weights": weights.round(4).tolist(), "from": threshold, "sure_from": sure}
    _write(output, table)
    wrong = [text for text, row in zip(known, good, strict=True) if _probability(weights, row) < threshold]
    taken = [text for text, row in zip(unknown, bad, strict=True) if _probability(weights, row) >= threshold]
    counts = {"kinds": len(kinds), "captions": len(captions), "known": len(known), "unknown": len(unknown), "unheard": len(beside)}
    return {**counts, "taken_from": table["taken_from"], "judge": table["judge"], "known_refused": wrong, "unknown_taken": taken}


def _kinds(path: Path) -> list[tuple[str, list[str]]]:
    """Read names and captions of groups (mappings with `captions`) or classes (lists)."""
    table = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [(name, list(row["captions"] if isinstance(row, dict) else row)) for name, row in table.items()]


def _dev_sentences(path: Path, captions: set[str]) -> tuple[list[str], list[str]]:
    """Read the sentences to fit to; those that are captions, and those that their script gives away, would say nothing."""
    dev = yaml.safe_load(path.read_text(encoding="utf-8"))
    known = [sentence for sentence in map(str, dev["known"]) if sentence not in captions]
    unknown = [str(sentence) for part in dev["unknown"].values() for sentence in part]
    return known, [sentence for sentence in unknown if not script(sentence)]


def _logistic(rows: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return weights and bias with the least cross-entropy, both sides counting the same."""
    sign, share = np.where(truth, 1.0, -1.0), np.where(truth, 0.5 / truth.sum(), 0.5 / (~truth).sum())
    padded = np.column_stack([rows, np.ones(len(rows))])

    def loss(weights: np.ndarray) -> float:
        return float((share * np.logaddexp(0, -sign * (padded @ weights))).sum() + PENALTY / len(rows) * (weights[:-1] ** 2).sum())

    return np.asarray(minimize(loss, np.zeros(padded.shape[1])).x)


def _probability(weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.asarray(expit(rows @ weights[:-1] + weights[-1]))


def _taken_from(vectors: torch.Tensor, kind_of: np.ndarray, names: Sequence[str], num_heard: int) -> float:
    """Return the cosine from which a caption's nearest other caption is of its own group, or of one above or below, in `TAKEN_RIGHT`."""
    heard = kind_of < num_heard
    vectors, kinds = vectors[torch.from_numpy(heard)], kind_of[heard]
    cosines = vectors @ vectors.T
    cosines.fill_diagonal_(-1)
    best = cosines.max(dim=1)
    pairs = [(names[one], names[two]) for one, two in zip(kinds, kinds[best.indices.numpy()], strict=True)]
    right = np.array([f"{one}/".startswith(f"{two}/") or f"{two}/".startswith(f"{one}/") for one, two in pairs])
    order = np.argsort(-best.values.numpy())
    good = np.flatnonzero(np.cumsum(right[order]) >= TAKEN_RIGHT * np.arange(1, len(order) + 1))
    return round(float(best.values[order[good[-1]]]), 4) if len(good) else 1.0


def _write(output: Path, table: dict[str, Any]) -> None:
    rows = {key: json.dumps(value, ensure_ascii=False) for key, value in table.items()}
    rows["kinds"] = "[\n  " + ",\n  ".join(json.dumps(kind, ensure_ascii=False) for kind in table["kinds"]) + "\n ]"
    text = ",\n".join(f' "{key}": {value}' for key, value in rows.items())
    (output / TABLE_FILE).write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Build the table of known sounds.")
    parser.add_argument("--groups", type=Path, default=HERE / "sound_bank" / "groups.yaml")
    parser.add_argument("--classes", type=Path, default=HERE / "sound_bank" / "audioset.yaml")
    arguments = parser.parse_args(argv)
    beside = HERE / "sound_bank" / "validation_wordings.yaml"
    output = CHECKPOINT_DIR / POCKET_CHECKPOINT  # the encoders that a process opens, whose words are judged
    measured = build(arguments.groups, arguments.classes, HERE / "known_dev.yaml", beside, output)
    sys.stdout.write(json.dumps(measured, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
