"""The known sounds of the pocket encoders: what words are near to, where that sounds (`WordMap`), and whether a query is understood.

The sentences lie beside the encoders, in `joint.safetensors`, and what is said of them in `known_sounds.json`, which belongs to one text
encoder; `recipes.pocket.known` builds it and fits every number in it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from qamdetr.types import TextFeatures

TABLE_FILE = "known_sounds.json"
NEAREST = 5  # captions whose mean cosine counts beside the best one's
NAMED = 3  # kinds that a note names
SHARPNESS = 0.1  # of the kinds' shares in a clip: the cosine that counts e-fold
SAME = 0.98  # cosine of a query that is a caption, but for rounding
RECALL_COSINE = 1 / 30  # of the sentences that a query recalls: the cosine that counts e-fold
RECALLED = 0.7  # share of what near sentences sound like, beside the straight map
WORDED = 0.05  # of the captions that put a sound in words: the cosine that counts e-fold
NEAR = 0.5  # cosine of kinds that one sound can pass for

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_ENDING = re.compile(r"(?<=...)(?:ing|ed|es|s|e)$")
_NEGATION = re.compile(r"\b(?:no|not|never|neither|nor|without|nobody|nothing|none|except|\w+n['\u2019]t)\b|\bcannot\b", re.IGNORECASE)
_GOES_ON = re.compile(r"\b(?:not|never|cannot|\w+n['\u2019]t)\s+(?:stop|start|end|go|run)\w*", re.IGNORECASE)  # it does sound
_NUMBERS = "two|three|four|five|six|seven|eight|nine|ten|twice|thrice|both|a pair of|several"
_SMALL = "a an and as at by for from in is it of on or please that the there this to with"  # words that name no sound
_ORDINALS = "first|third|fourth|fifth|sixth|last|final|next|previous"
_COUNTING = re.compile(rf"\b(?:{_NUMBERS}|{_ORDINALS}|the second|second to last|\d+(?:st|nd|rd|th)?)\b(?!-)", re.IGNORECASE)
_SCRIPTS = {"CJK": "Chinese characters", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean"}


class WordMap:
    """Sentence vectors to the space of sounds: to where the sentences near to it sound, and by a straight map for the rest.

    The straight map alone loses much of which sound a sentence means (docs/decisions/0017). A sentence does not recall itself, so that a
    network trained on sentences that are kept here meets vectors as uncertain as those of new ones.

    Attributes:
        sentences: `(sentences, sentence_dim)` unit vectors of what is known; `kind_of` `(sentences,)` are rows of `kinds`.
        kinds: `(kinds, dim)` unit vectors.
    """

    def __init__(self, stored: Mapping[str, Tensor]) -> None:
        """Open what `recipes.pocket.audio` has stored: half precision, and sentences as int8, each with a scale of its own."""
        self.straight, self.kinds = stored["straight.weight"].float(), stored["kinds"].float()
        self.sentences, self.kind_of = normalize(stored["sentences"].float(), dim=-1), stored["kind_of"].long()
        self._doubt = stored["doubt"][self.kind_of]  # how far those stand back whose sound was not taught

    def __call__(self, sentence: Tensor) -> Tensor:
        """Map unit vectors `(…, sentence_dim)` to unit vectors `(…, dim)`."""
        cosine = (self.sentences @ sentence.mT).mT  # one sentence is half as fast the other way round
        near = (cosine / RECALL_COSINE - self._doubt).masked_fill(cosine > SAME, -torch.inf).softmax(dim=-1)
        shares = torch.zeros(*near.shape[:-1], len(self.kinds)).index_add(-1, self.kind_of, near)
        return self._place(sentence, shares @ self.kinds)

    def places(self) -> Tensor:
        """Return where each of the sentences lies itself, `(sentences, dim)`, its own kind being recalled."""
        return self._place(self.sentences, self.kinds[self.kind_of])

    def _place(self, sentence: Tensor, recalled: Tensor) -> Tensor:
        straight = normalize(sentence @ self.straight.T, dim=-1)
        return normalize(torch.lerp(straight, normalize(recalled, dim=-1), RECALLED), dim=-1)


@dataclass(frozen=True)
class Kind:
    """A kind of sound, and sentences for it, the plainest first."""

    name: str
    wordings: tuple[str, ...]
    is_heard: bool  # the encoders were taught it with real sounds, so that `heard` asks for it


@dataclass(frozen=True)
class Understood:
    """What there is to say of the words of a query."""

    known: bool
    notes: tuple[str, ...] = ()


class KnownSounds:
    """The table, opened; read-only, threads share it.

    Attributes:
        kinds: The kinds of sound.
        vectors: `(kinds, dim)` unit vectors in the joint space, the mean of the captions of each.
    """

    def __init__(self, folder: Path, word_map: WordMap) -> None:
        table = json.loads((folder / TABLE_FILE).read_text(encoding="utf-8"))
        self.version: str = table["text_encoder"]
        self.kinds = tuple(Kind(row["kind"], tuple(row["wordings"]), row["heard"]) for row in table["kinds"])
        self._sentences, self._captions = word_map.sentences, word_map.places()
        self._kind_of: list[int] = word_map.kind_of.tolist()
        self.vectors = word_map.kinds
        self._words = frozenset(table["words"])
        self._languages: dict[str, list[str]] = {}
        for language, words in table["languages"].items():
            for word in words:
                self._languages.setdefault(word, []).append(language)
        self._judge = table["judge"]  # weights of `evidence`, a bias, and the probability from which words are understood
        self._taken_from: float = table["taken_from"]  # cosine with a caption from which a query is taken as its kind

    @classmethod
    def beside(cls, folder: Path, word_map: WordMap) -> KnownSounds | None:
        """Open the table of the encoders in a folder; None where there is none, or one that was made for another text encoder."""
        if not (folder / TABLE_FILE).is_file():
            return None
        table = cls(folder, word_map)
        return table if table.version == text_version(folder) else None

    def likeliest(self, clips: Tensor, count: int) -> list[Kind]:
        """Return the kinds, of those taught with sounds, that have the largest shares in some clip of `(clips, dim)`, largest first."""
        heard = [index for index, kind in enumerate(self.kinds) if kind.is_heard]
        shares = (normalize(clips.float(), dim=-1) @ self.vectors[heard].T / SHARPNESS).softmax(dim=-1)
        best = (shares * clips.any(dim=-1, keepdim=True)).amax(dim=0)  # silent clips are zero
        return [self.kinds[heard[place]] for place in best.argsort(descending=True)[:count].tolist()]

    def are_near(self, one: Kind, other: Kind) -> bool:
        """Whether two kinds are one above the other, or near in meaning, so that one sound can pass for both."""
        nested = f"{one.name}/".startswith(f"{other.name}/") or f"{other.name}/".startswith(f"{one.name}/")
        a, b = (self.vectors[self.kinds.index(kind)] for kind in (one, other))
        return nested or float(a @ b) >= NEAR

    def nearest(self, vector: Tensor) -> list[tuple[Kind, float]]:
        """Return kinds and cosines of their best captions with a vector `(dim,)` of the joint space, best first."""
        return self._best(self._captions @ normalize(vector.float(), dim=-1))

    def _best(self, cosines: Tensor) -> list[tuple[Kind, float]]:
        found: dict[int, float] = {}
        best = cosines.topk(min(20 * NAMED, len(cosines)))
        for cosine, index in sorted(zip(best.values.tolist(), best.indices.tolist(), strict=True), key=lambda pair: (-pair[0], pair[1])):
            found.setdefault(self._kind_of[index], cosine)
        return [(self.kinds[index], cosine) for index, cosine in found.items()]

    def names(self, kind: Kind, vector: Tensor) -> bool:
        """Whether a kind, or one near to it, is among the `NAMED` nearest to a vector `(dim,)` of a sound."""
        return any(other is kind or self.are_near(other, kind) for other, _ in self.nearest(vector)[:NAMED])

    def in_words(self, vector: Tensor) -> Tensor:
        """Return the unit vector `(dim,)` of the words for a sound's vector: the mean of all captions, the more like it the more.

        Vectors of sounds lie apart from those of words; a network that reads words is lost with one.
        """
        near = (self._captions @ normalize(vector.float(), dim=-1) / WORDED).softmax(dim=0)
        return normalize(near @ self._captions, dim=-1)

    def evidence(self, query: str, text: TextFeatures, cosines: Tensor | None = None) -> list[float]:
        """Return what speaks for a query's words being understood: see the comments; `cosines` are those with the sentences, if at hand."""
        words = list(_WORD.finditer(query))
        lowered = [match.group().lower().replace("\u2019", "'") for match in words]
        count = max(len(words), 1)
        best = (self._cosines(text) if cosines is None else cosines).topk(NEAREST).values
        known = sum(stem(word) in self._words for word in lowered) / count
        # A tokenizer cuts words that it has not met into many pieces.
        pieces = sum(end > begin for begin, end in text.offsets)
        foreign = sum(word in self._languages for word in lowered) / count
        return [float(best[0]), float(best.mean()), known, min(pieces / count - 1, 3.0) if words else 3.0, foreign]

    def understand(self, query: str, text: TextFeatures) -> Understood:
        """Judge the words of a query and say what is to be said of them; `text` is the query, encoded."""
        if strange := script(query):
            return Understood(False, (f"This is written in {strange}; these encoders know English words only.",))
        if _WORD.search(query) and {match.group().lower() for match in _WORD.finditer(query)} <= {*_SMALL.split()}:
            return Understood(False, ("These words name no sound; describe one, such as “a dog barks”.",))
        *weights, bias = self._judge["weights"]
        cosines = self._cosines(text)
        logit = bias + sum(weight * value for weight, value in zip(weights, self.evidence(query, text, cosines), strict=True))
        near = self._best(cosines)
        named = list(dict.fromkeys(f"“{kind.wordings[0]}”" for kind, _ in near))
        probable = 1 / (1 + math.exp(-logit))
        if probable < self._judge["from"]:
            if language := self._language(query):
                return Understood(False, (f"This looks like {language}; these encoders know English words only.",))
            return Understood(False, (f"I do not know these words; nearest: {', '.join(named[:NAMED])}.",))
        notes = []
        if probable < self._judge["sure_from"]:
            notes.append(f"I am not sure of these words; nearest: {', '.join(named[:NAMED])}.")
        kind, cosine = near[0]
        negation = _NEGATION.search(_GOES_ON.sub("", query))
        # Nothing to tell where the query is one of the captions, or holds all words of the plainest.
        if not negation and self._taken_from <= cosine < SAME and not words_of(kind.wordings[:1]) - {"a", "an", "the"} <= words_of([query]):
            notes.append(f"Taken as {named[0]}.")
        if negation:
            notes.append(f"“{negation.group()}” is not understood: what it denies is asked for, too.")
        if counting := _COUNTING.search(query):
            notes.append(f"“{counting.group()}” is not understood: sounds are neither counted nor put in order.")
        return Understood(True, tuple(notes))

    def _cosines(self, text: TextFeatures) -> Tensor:
        """Of a query's meaning with the captions'; zero where its encoder gives none."""
        return torch.zeros(len(self._sentences)) if text.sentence is None else self._sentences @ text.sentence

    def _language(self, query: str) -> str:
        """Name the language whose small words a sentence has; empty where none stands out."""
        words = [match.group().lower() for match in _WORD.finditer(query)]
        votes = Counter(language for word in words for language in self._languages.get(word, ())).most_common(2)
        if votes and (len(votes) == 1 or votes[0][1] > votes[1][1]):
            return votes[0][0]
        return "a language other than English" if votes or any(not word.isascii() for word in words) else ""


def script(query: str) -> str:
    """Name the script of a sentence most of whose letters are not Latin; empty for Latin ones and for no letters."""
    letters = [unicodedata.name(letter, "?").split()[0] for letter in query if letter.isalpha()]
    strange = [name for name in letters if name not in ("LATIN", "FULLWIDTH", "MODIFIER")]
    if 2 * len(strange) <= len(letters):
        return ""
    names = Counter(strange)
    name = next((name for name in ("HIRAGANA", "KATAKANA", "HANGUL") if name in names), names.most_common(1)[0][0])
    return _SCRIPTS.get(name, f"{name.capitalize()} letters")


def stem(word: str) -> str:
    """Cut off the ending by which an English word is bent."""
    return _ENDING.sub("", word.removesuffix("'s"))


def words_of(sentences: Sequence[str]) -> set[str]:
    """Return the stems of the words of sentences."""
    return {stem(match.group().lower()) for sentence in sentences for match in _WORD.finditer(sentence)}


def text_version(folder: Path) -> str:
    """Return 16 hex digits of the text encoder in a folder, and of the map of its words to sounds."""
    files = (folder / "text.safetensors", folder / "tokenizer.json", folder / "joint.safetensors")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
