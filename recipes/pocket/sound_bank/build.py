"""Builds the sound bank: real recordings and generated sounds as one folder of captioned clips, and a folder of backgrounds.

    python -m recipes.pocket.sound_bank.build --real DIR --output build/sounds

`--real` holds the folders `esc10`, `sounds`, `sonic_pi_samples` and `speech`. Each fold of ESC-10 and ESC-50 gets a bank of its own
(`fold1` … `fold4`). The other clips of `sounds` are dealt out to `real` (five sixths of the recordings) and `real-heldout`, generated and
other sounds to `train` and `heldout`, so that tests can use sounds that training never heard. More folders only list clips of these, as
`python -m qamdetr synthesize --clips` reads them: `scenes-train` (`TRAIN_BANKS`), `scenes-val` (what is held out, fold 4), `scenes-fifty`
(all kinds of fold 4 in wordings that training never saw), and `scenes-test` (the ten kinds of ESC-10's fold 4, likewise, with heldout
generated sounds as distractors without captions).
"""

from __future__ import annotations

import argparse
import csv
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml
from numpy.typing import NDArray

from qamdetr.audio import Sound, resample
from qamdetr.errors import AudioError, QamDetrError
from recipes.pocket.sound_bank import instruments, synthetic, voices

SAMPLE_RATE_HZ = 24_000
HELD_OUT_EVERY = 6
TRAIN_BANKS = ("train", "real", "fold1", "fold2", "fold3")
"""Folders of the bank that training may hear."""

ESC10_GROUPS = {
    "dog_bark": "animal/dog", "rooster": "animal/rooster", "rain": "water/rain", "sea_waves": "water/sea", "crackling_fire": "fire",
    "crying_baby": "human/baby", "sneezing": "human/sneeze", "clock_tick": "clock", "helicopter": "vehicle/helicopter",
    "chainsaw": "tool/chainsaw",
}  # fmt: skip
"""Class folder of ESC-10 -> group of the bank."""

ESC50_GROUPS = ESC10_GROUPS | {
    "pig": "animal/pig", "cow": "animal/cow", "frog": "animal/frog", "cat": "animal/cat", "hen": "animal/hen", "insects": "animal/insect",
    "sheep": "animal/sheep", "crow": "animal/crow", "crickets": "animal/crickets", "chirping_birds": "animal/bird",
    "water_drops": "water/drip", "wind": "weather/wind", "pouring_water": "water/pour", "toilet_flush": "household/toilet",
    "thunderstorm": "weather/thunder", "clapping": "human/clapping", "breathing": "human/breathing", "coughing": "human/cough",
    "footsteps": "human/footsteps", "laughing": "human/laugh", "brushing_teeth": "human/toothbrush", "snoring": "snore",
    "drinking_sipping": "human/drinking", "door_wood_knock": "door/knock", "mouse_click": "tool/mouse", "keyboard_typing": "tool/typing",
    "door_wood_creaks": "door/creak", "can_opening": "household/can", "washing_machine": "household/washing_machine",
    "vacuum_cleaner": "tool/vacuum", "clock_alarm": "alarm/clock", "glass_breaking": "glass/break", "siren": "alarm/siren",
    "car_horn": "vehicle/horn", "engine": "vehicle/engine", "train": "vehicle/train", "church_bells": "bell/church",
    "airplane": "vehicle/airplane", "fireworks": "fireworks", "hand_saw": "tool/saw",
}  # fmt: skip
"""Class of ESC-50 -> group of the bank."""

SONIC_PI_GROUPS = {
    "ambi_choir": "music/choir", "ambi_glass": "music/glass", "ambi_piano": "music/piano", "arovane_beat": "music/drums/loop",
    "drum_bass": "music/drums/kick", "drum_heavy_kick": "music/drums/kick", "drum_cowbell": "music/drums/cowbell",
    "drum_cymbal": "music/drums/cymbal", "drum_splash": "music/drums/cymbal", "drum_roll": "music/drums/snare",
    "drum_snare": "music/drums/snare", "drum_tom": "music/drums/tom", "elec_beep": "alarm/beep", "elec_bell": "bell/strike",
    "elec_chime": "bell/chime", "guit_": "music/guitar", "loop_3d_printer": "tool/printer", "loop_amen": "music/drums/loop",
    "loop_breakbeat": "music/drums/loop", "loop_drone": "music/synth", "loop_tabla": "music/drums/tabla", "tabla_": "music/drums/tabla",
    "mehackit_phone": "phone/electronic", "misc_burp": "human/burp", "misc_cineboom": "explosion", "misc_crow": "animal/crow",
    "perc_bell": "bell/strike", "perc_door": "door/slam", "perc_snap": "human/snap", "perc_till": "tool/till",
    "vinyl_hiss": "vinyl/hiss", "vinyl_backspin": "vinyl", "vinyl_rewind": "vinyl", "vinyl_scratch": "vinyl",
}  # fmt: skip
"""Beginning of a Sonic Pi sample's name -> group; samples without an entry are not used."""


@dataclass(frozen=True)
class RealSound:
    """One real recording on disk: what it is, which folder of the bank it belongs to, and whom to thank."""

    path: Path
    group: str
    fold: int | None  # of ESC-10 and ESC-50
    bank: str  # fold1 … fold4, real or real-heldout
    caption: str
    source: str
    licence: str

    @property
    def split(self) -> str:
        """`train`, or `val` for what no training may hear."""
        return "train" if self.bank in TRAIN_BANKS else "val"


@dataclass(frozen=True)
class Clip:
    """One sound of the bank with where it came from."""

    group: str
    samples: NDArray[np.float32]
    rate_hz: int
    source: str
    licence: str


@dataclass
class Bank:
    """A folder of clips in the format that `data.synthesis` reads."""

    folder: Path
    groups: dict[str, Any]
    rows: list[tuple[str, str, str, str, str]] = field(default_factory=list)

    def add(self, clip: Clip) -> None:
        """Write one clip."""
        (self.folder / "audio").mkdir(parents=True, exist_ok=True)
        name = f"audio/{clip.group.replace('/', '-')}-{len(self.rows):04d}.flac"
        samples = resample(clip.samples, clip.rate_hz, SAMPLE_RATE_HZ)
        soundfile.write(self.folder / name, np.clip(samples, -1, 1), SAMPLE_RATE_HZ)
        self.rows.append((name, clip.group, self.groups[clip.group].get("extend", "no"), clip.source, clip.licence))

    def finish(self, captions: dict[str, list[str]]) -> None:
        """Write `clips.csv`, and `groups.csv` with the captions of groups that have clips."""
        present = {row[1] for row in self.rows}
        captions = {name: texts for name, texts in captions.items() if any((group + "/").startswith(name + "/") for group in present)}
        with (self.folder / "clips.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("file_name", "group", "extend", "source", "licenses"), *self.rows])
        with (self.folder / "groups.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("group", "caption"), *((name, text) for name, texts in captions.items() for text in texts)])


def load_groups(file_name: str = "groups.yaml") -> dict[str, Any]:
    """Read a table of groups that lies beside this file."""
    groups: dict[str, Any] = yaml.safe_load((Path(__file__).parent / file_name).read_text(encoding="utf-8"))
    return groups


def unseen_wordings() -> dict[str, list[str]]:
    """Return, per group of ESC-50's kinds, the wordings that training never saw."""
    return {ESC50_GROUPS[kind]: wordings for kind, wordings in load_groups("unseen_wordings.yaml").items()}


def real_sounds(real: Path) -> list[RealSound]:
    """List every clip of `esc10` and `sounds` that the bank uses, in a fixed order.

    ESC-10's class folders hold files named `fold-source-take.ogg`. `sounds/clips.csv` labels its files; `real_sounds.csv` beside this file
    says which group each label belongs to (none: nobody can name it by ear), and the worst place among the teacher's classes
    (`teacher_rank`) at which a weak label is still believed. Takes of one recording stay on one side.
    """
    found = []
    with (real / "esc10" / "attribution.csv").open(encoding="utf-8") as file:
        for row in sorted(csv.DictReader(file), key=lambda row: row["file"]):
            source = f"{row['title']} by {row['author']} ({row['source_id']})"
            path, fold = real / "esc10" / row["file"], int(row["fold"])
            found.append(RealSound(path, ESC10_GROUPS[row["class"]], fold, f"fold{fold}", row["title"], source, row["license"]))
    with (Path(__file__).parent / "real_sounds.csv").open(encoding="utf-8") as file:
        labels = {row["label"]: row for row in csv.DictReader(file)}
    side: dict[str, str] = {}
    counts: dict[str, int] = {}
    with (real / "sounds" / "clips.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            group, worst_rank = labels[row["label"]]["group"], labels[row["label"]]["worst_rank"]
            if not group or (worst_rank and int(row["teacher_rank"] or worst_rank) > int(worst_rank)):
                continue
            recording = _recording(row)
            if recording not in side:
                counts[group] = counts.get(group, 0) + 1
                side[recording] = "real-heldout" if counts[group] % HELD_OUT_EVERY == 0 else "real"
            bank = f"fold{row['fold']}" if row["fold"] else side[recording]
            source = f"{row['caption']} by {row['author']} ({row['source']})"
            path = real / "sounds" / row["file"]
            found.append(RealSound(path, group, int(row["fold"]) if row["fold"] else None, bank, row["caption"], source, row["licence"]))
    return found


def _recording(row: dict[str, str]) -> str:
    """Name the recording a clip was cut from: the page it came from, or else its file name without number or note of the take."""
    page = re.search(r"\((https?://(?!github)[^)\s]+)\)", row["source"])
    stem = re.sub(r"([-_.]?([A-G][bs]?)?\d+(-\w+)?)+$", "", Path(row["file"]).stem)
    return page[1] if page else str(Path(row["file"]).with_name(stem))


def sonic_pi_clips(folder: Path) -> Iterator[Clip]:
    """Yield Sonic Pi's samples that belong to a group."""
    for path in sorted(folder.glob("*.flac")):
        group = next((group for prefix, group in SONIC_PI_GROUPS.items() if path.stem.startswith(prefix)), None)
        if group is None:
            continue
        try:
            yield Clip(group, *_heard(path), f"Sonic Pi sample {path.stem}", "CC0")
        except AudioError as error:  # a few drum strokes are shorter than the shortest usable recording
            say(f"left out: {error}")


def _heard(path: Path) -> tuple[NDArray[np.float32], int]:
    sound = Sound(path)
    return sound.samples(), sound.rate_hz


def speech_clips(folder: Path, rng: np.random.Generator) -> Iterator[Clip]:
    """Yield sentences, and rows of two to five spoken digits by one speaker."""
    for path in sorted((folder / "sentences").iterdir()):
        # The sentences do not say who reads; only this well-known one is labelled as a man.
        group = "speech/man" if path.stem == "jfk" else "speech"
        yield Clip(group, *_heard(path), path.stem, "public domain / BSD")
    by_speaker: dict[str, list[Path]] = {}
    for path in sorted((folder / "digits").glob("*.wav")):
        by_speaker.setdefault(path.stem.split("_")[1], []).append(path)
    for speaker, paths in sorted(by_speaker.items()):
        order = list(rng.permutation(len(paths)))
        while order:
            take = [_heard(paths[order.pop()]) for _ in range(min(len(order), int(rng.integers(2, 6))))]
            rate_hz = take[0][1]
            gap = np.zeros(int(rng.uniform(0.1, 0.4) * rate_hz), dtype=np.float32)
            samples = np.concatenate([part for digit, _ in take for part in (digit, gap)])
            yield Clip("speech/man/digits", samples, rate_hz, f"FSDD {speaker}", "CC BY-SA 4.0")


def generated_clips(rng: np.random.Generator, per_group: int) -> Iterator[Clip]:
    """Yield formula sounds, instruments and voices."""
    for group, maker in synthetic.MAKERS.items():
        for _ in range(per_group):
            yield Clip(group, maker(rng, SAMPLE_RATE_HZ), SAMPLE_RATE_HZ, "formula", "this project")
    for group, samples in instruments.render_all(rng, max(per_group // 3, 2), SAMPLE_RATE_HZ):
        yield Clip(group, samples, SAMPLE_RATE_HZ, "FluidSynth with FluidR3 GM", "MIT (soundfont)")
    for group, samples in voices.render_all(rng, 2 * per_group, SAMPLE_RATE_HZ):
        yield Clip(group, samples, SAMPLE_RATE_HZ, "espeak-ng", "this project")


def write_scene_folders(output: Path, banks: dict[str, Bank], groups: dict[str, Any], captions: dict[str, list[str]]) -> None:
    """Write the folders that only list clips of the banks."""
    ten = set(ESC10_GROUPS.values())
    members = {
        "scenes-train": (TRAIN_BANKS, captions),
        "scenes-val": (("heldout", "real-heldout", "fold4"), load_groups("validation_wordings.yaml")),
        "scenes-fifty": (("fold4",), unseen_wordings()),
        "scenes-test": (("heldout", "fold4"), load_groups("test_wordings.yaml")),
    }
    for folder, (names, wordings) in members.items():
        listing = Bank(output / folder, groups)
        listing.folder.mkdir()
        for name in names:
            for file, group, extend, source, licence in banks[name].rows:
                if folder == "scenes-test" and name == "fold4" and group not in ten:
                    continue
                # These scenes draw distractors by kind, so that half of a scene's sounds are ones it asks for.
                distractor = folder == "scenes-test" and name == "heldout"
                listing.rows.append((f"../{name}/{file}", f"other/{group.split('/')[0]}" if distractor else group, extend, source, licence))
        listing.finish(wordings)


def write_backgrounds(folder: Path, rng: np.random.Generator, count: int) -> None:
    """Write `count` backgrounds of two minutes."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        soundfile.write(folder / f"background-{index:03d}.flac", synthetic.background(rng, SAMPLE_RATE_HZ, 120.0), SAMPLE_RATE_HZ)


def build(real: Path, output: Path, per_group: int, backgrounds: int, seed: int) -> None:
    """Build all banks.

    Raises:
        QamDetrError: The output folder already holds a bank, or a tool that makes sound is missing.
    """
    if output.exists():
        raise QamDetrError(f"{output} exists already; remove it or choose another --output.")
    groups = load_groups()
    names = ["train", "heldout", "real", "real-heldout", *(f"fold{fold}" for fold in range(1, 5))]
    banks = {name: Bank(output / name, groups) for name in names}
    for sound in real_sounds(real):
        banks[sound.bank].add(Clip(sound.group, *_heard(sound.path), sound.source, sound.licence))
    say(f"real recordings: {sum(len(bank.rows) for bank in banks.values())} clips")
    rng = np.random.default_rng(seed)
    counts: dict[str, int] = {}
    for clip in chain(sonic_pi_clips(real / "sonic_pi_samples"), speech_clips(real / "speech", rng), generated_clips(rng, per_group)):
        counts[clip.group] = counts.get(clip.group, 0) + 1
        banks["heldout" if counts[clip.group] % HELD_OUT_EVERY == 0 else "train"].add(clip)
    captions = {name: entry["captions"] for name, entry in groups.items()}
    for bank in banks.values():
        bank.finish(captions)
    write_scene_folders(output, banks, groups, captions)
    write_backgrounds(output / "backgrounds-train", rng, backgrounds)
    write_backgrounds(output / "backgrounds-heldout", rng, max(backgrounds // 4, 2))
    say(", ".join(f"{name}: {len(bank.rows)} clips" for name, bank in banks.items()))


def say(message: str) -> None:
    """Print one line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {message}", flush=True)  # noqa: T201 - progress of a command


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Build the sound bank.")
    parser.add_argument("--real", type=Path, required=True, help="folder with esc10, sounds, sonic_pi_samples and speech")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--per-group", type=int, default=36, help="variations of each generated group")
    parser.add_argument("--backgrounds", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    build(arguments.real, arguments.output, arguments.per_group, arguments.backgrounds, arguments.seed)


if __name__ == "__main__":
    main()
