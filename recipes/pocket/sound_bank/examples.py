"""Makes the app's example recordings, with their true moments, out of generated sounds only (so that they carry no licence but ours).

    python -m recipes.pocket.sound_bank.examples --bank build/sounds --output assets [--only NAME …]

They use the bank's `heldout` clips and backgrounds: the encoders have never heard them.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from qamdetr.data.manifest import read_manifest
from qamdetr.synthesis import SceneRecipe
from qamdetr.synthesis.synthesize import synthesize


@dataclass(frozen=True)
class Example:
    """One example recording.

    Attributes:
        title: Name to show.
        seconds: Its length.
        seed: Of the scene; where nothing happens, the number of the background.
        queries: Group of the bank -> words to ask for it; empty = a background alone, in which nothing is to be found.
        absent_queries: Words for sounds that are not in it.
        compression: Of Vorbis, from 0 (best) to 1 (smallest).
    """

    title: str
    seconds: float
    seed: int
    queries: dict[str, str]
    absent_queries: tuple[str, ...]
    compression: float | None = None


EXAMPLES = {
    "street": Example(
        "A street, one and a half minutes",
        90.0,
        11,
        {"alarm/siren": "an ambulance passes", "vehicle/horn": "a car honks", "human/footsteps": "somebody walking",
         "speech/man": "a man talks"},
        ("a dog barks",),
    ),
    "living-room": Example(
        "A living room, two and a half minutes",
        150.0,
        5,
        {"music/piano": "someone plays the piano", "phone/ring": "the phone rings", "door/knock": "a knock on the door",
         "tool/vacuum": "vacuum cleaner", "speech/woman": "a woman is speaking"},
        ("a baby cries",),
    ),
    "countryside": Example(
        "The countryside, four minutes",
        240.0,
        7,
        {"weather/thunder": "thunder in the distance", "animal/crickets": "crickets", "bell/tubular": "bells ring",
         "animal/bird": "birdsong", "vehicle/motorcycle": "a motorbike goes by"},
        ("a chainsaw",),
    ),
    "rehearsal": Example(
        "A rehearsal, nine minutes",
        540.0,
        3,
        {"music/guitar": "somebody plays the guitar", "music/choir": "a choir sings", "music/drums": "drums",
         "human/clapping": "an audience applauds", "speech/man": "a man is talking", "door/knock": "a knock on the door"},
        ("a baby cries",),
        compression=0.9,
    ),
    "empty-room": Example(
        "An empty room, nothing to find",
        60.0,
        5,
        {},
        ("somebody talks", "a dog barks", "the phone rings", "music"),
        compression=0.9,
    ),
}  # fmt: skip


def make_example(name: str, example: Example, bank: Path, output: Path) -> dict[str, Any]:
    """Render one example as OGG; return its entry of `examples.json`."""
    found = _make_scene(name, example, bank, output) if example.queries else _make_background(name, example, bank, output)
    absent = [{"query": query, "windows": []} for query in example.absent_queries]
    return {"file": f"{name}.ogg", "title": example.title, "queries": [*found, *absent]}


def _make_background(name: str, example: Example, bank: Path, output: Path) -> list[dict[str, Any]]:
    source = sorted((bank / "backgrounds-heldout").glob("*.flac"))[example.seed]
    rate = soundfile.info(source).samplerate
    samples, _ = soundfile.read(source, frames=round(example.seconds * rate), dtype="float32")
    _write_ogg(output / f"{name}.ogg", samples, rate, example.compression)
    return []


def _make_scene(name: str, example: Example, bank: Path, output: Path) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        clips = Path(folder) / "clips"
        clips.mkdir()
        with (bank / "heldout" / "clips.csv").open(encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["group"] in example.queries and row["licenses"] != "CC0"]
        with (clips / "clips.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("file_name", "group", "extend", "caption_1"))
            for row in rows:
                sound = (bank / "heldout" / row["file_name"]).resolve()
                (clips / sound.name).symlink_to(sound)
                writer.writerow((sound.name, row["group"], row["extend"], example.queries[row["group"]]))
        count = len(example.queries)
        recipe = SceneRecipe(
            name=name, seed=example.seed, num_scenes=1, min_scene_seconds=example.seconds, max_scene_seconds=example.seconds,
            min_groups=count, max_groups=count, max_occurrences=3, absent_share=0.0, ancestor_caption_share=0.0, min_snr_db=6.0,
            overlap_share=0.0,  # a visitor should be able to check the truth by ear
        )  # fmt: skip
        manifest = synthesize(clips, bank / "backgrounds-heldout", Path(folder) / "scene", recipe)
        entries = read_manifest(manifest)
        samples, rate = soundfile.read(manifest.parent / "audio" / f"{entries[0].vid}.flac", dtype="float32")
        _write_ogg(output / f"{name}.ogg", samples, rate, example.compression)
    return [{"query": entry.query, "windows": [list(window) for window in entry.relevant_windows or ()]} for entry in entries]


def _write_ogg(path: Path, samples: np.ndarray, rate: int, compression: float | None) -> None:
    with soundfile.SoundFile(path, "w", rate, 1, format="OGG", subtype="VORBIS", compression_level=compression) as ogg:
        for begin in range(0, len(samples), rate):  # libsndfile's Vorbis writer crashes on minutes of sound at once
            ogg.write(samples[begin : begin + rate])


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Make the app's example recordings.")
    parser.add_argument("--bank", type=Path, required=True, help="folder made by recipes.pocket.sound_bank.build")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=EXAMPLES, help="make these alone; the others stay as they are")
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    listing = arguments.output / "examples.json"
    known = {entry["file"]: entry for entry in json.loads(listing.read_text(encoding="utf-8"))} if listing.is_file() else {}
    for name in arguments.only or EXAMPLES:
        known[f"{name}.ogg"] = make_example(name, EXAMPLES[name], arguments.bank, arguments.output)
    entries = [known[f"{name}.ogg"] for name in EXAMPLES if f"{name}.ogg" in known]
    listing.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
