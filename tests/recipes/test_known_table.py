"""The recipe of the table of known sounds, on a bank of three kinds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from qamdetr.config import CHECKPOINT_DIR
from qamdetr.errors import QamDetrError
from qamdetr.features.base import open_streams
from qamdetr.features.known import KnownSounds, WordMap
from recipes.pocket.audio import pack_word_map
from recipes.pocket.known import build


def test_the_table_holds_groups_and_classes_and_tells_known_words_from_others(tmp_path: Path) -> None:
    groups = {name: {"captions": captions} for name, captions in GROUPS.items()}
    tables = {"groups": groups, "classes": CLASSES, "others": {"Whistle": ["heavy rain", "thunder"]}, "dev": DEV, "unheard": UNHEARD}
    for name, table in tables.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(table))
    pocket, banks = open_streams(("pocket",), ("pocket",)).text["pocket"], [*GROUPS.values(), *CLASSES.values()]
    vectors = [torch.stack([pocket.encode_text(text).sentence for text in bank]) for bank in banks]
    vectors = [torch.nn.functional.normalize(part + 0.03 * torch.randn(part.shape), dim=-1) for part in vectors]  # another text encoder's
    save_file(pack_word_map(torch.nn.Linear(384, 256, bias=False), vectors[:2], vectors[2:]), tmp_path / "joint.safetensors")
    for name in ("text.safetensors", "tokenizer.json"):
        shutil.copy(CHECKPOINT_DIR / "pocket-encoder" / name, tmp_path)
    with pytest.raises(QamDetrError, match="captions of 'Whistle' are not those"):
        build(*(tmp_path / f"{name}.yaml" for name in ("groups", "others", "dev", "unheard")), tmp_path)
    measured = build(*(tmp_path / f"{name}.yaml" for name in ("groups", "classes", "dev", "unheard")), tmp_path)
    counts = {name: measured[name] for name in ("kinds", "captions", "known", "unknown", "unheard")}
    assert counts == {"kinds": 3, "captions": 7, "known": 12, "unknown": 12, "unheard": 1}, "none counts twice"
    word_map = WordMap(load_file(tmp_path / "joint.safetensors"))
    assert all(pocket.encode_text(banks[0][row]).sentence @ word_map.sentences[row] > 0.999 for row in range(3)), "embedded anew"
    table = KnownSounds(tmp_path, word_map)
    assert [(kind.name, kind.is_heard) for kind in table.kinds] == [("animal/dog", True), ("water/rain", True), ("Whistle", False)]
    for query, known in (("barking of a dog", True), ("it is raining", True), ("stock market", False)):
        assert table.understand(query, pocket.encode_text(query)).known == known, query


def test_the_judge_is_not_fitted_to_what_it_is_measured_with() -> None:
    root = Path(__file__).parents[2]
    asked = yaml.safe_load((root / "benchmarks" / "nonsense.yaml").read_text(encoding="utf-8"))
    fitted = yaml.safe_load((root / "recipes" / "pocket" / "known_dev.yaml").read_text(encoding="utf-8"))
    sentences = {str(text).casefold() for texts in fitted["unknown"].values() for text in texts}
    assert not sentences & {str(text).casefold() for texts in asked.values() for text in texts}


GROUPS = {"animal/dog": ["a dog barks", "dogs bark", "barking"], "water/rain": ["it rains", "rain falls"]}
CLASSES = {"Whistle": ["a whistle", "a dog barks"]}
KNOWN = ["a dog is barking", "a bark", "rain", "heavy rain", "a barking dog", "the rain falls", "a man whistles"]
UNKNOWN = ["tax law", "xqz", "blue", "a contract", "geometry", "policy", "price", "kkj", "homework", "theory", "vitamins", "hotel"]
MORE = ["whistling", "many dogs bark", "raindrops", "the dog barks", "a dog barks", "rainfall"]  # one is a caption
UNHEARD = {"animal/dog": {"captions": ["a hound is heard"]}}
DEV = {"known": [*KNOWN, *MORE], "unknown": {"words": UNKNOWN}}
