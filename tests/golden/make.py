"""What the program answered before it was rebuilt: answers, scores, features, trained weights and every one-line mistake.

`python tests/golden/make.py` writes the files beside it anew; `test_golden.py` holds the program to them. It was run on commit f584b19, the
last one before the rebuilding, on two x86 cores, and uses only the command line and what the README shows of Python, so it runs before and
after. Rows of `mistakes.tsv` are `command, exit status, line`; a new row needs only its command. Run it again only to change an answer on
purpose, and look at the difference. Changed since on purpose: what typer says of unknown words and bad values; keys, ranges and endings
that came or went; remedies that fit (a wrong rate, a missing tracker); the folder of features, which has one per stream; the weights, since
dropout draws otherwise and fewer items have a negative; notes say what words are taken as.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib
import io
import itertools
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import yaml
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ASSETS = ROOT / "assets"
CHECKPOINTS = sorted(path.parent.name for path in ROOT.glob("checkpoints/*/config.yaml") if path.parent.name != "pocket-encoder")
SOUND = HERE / "street.flac"
"""Eight seconds of an example without loss, whose features are kept."""
EXAMPLES = json.loads((ASSETS / "examples.json").read_text(encoding="utf-8"))


def run(*words: object) -> tuple[int, str, str]:
    """Run a command line, `train.py` included; returns (exit status, stdout, stderr)."""
    program = importlib.import_module("train" if words[:1] == ("train.py",) else "qamdetr.cli")
    given = [str(word) for word in words if word != "train.py"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            status = program.main(given)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
    return status, out.getvalue(), err.getvalue()


def answers() -> dict[str, list]:
    """`checkpoint/verifier/protocol/recording` -> for each query: found, beta, moments (start, end, scores), and the saliency once."""
    from qamdetr.inference.retriever import MomentRetriever

    recordings, found = {}, {}
    for checkpoint in CHECKPOINTS:
        retriever = MomentRetriever.from_pretrained(checkpoint)
        for item, verifier, protocol in itertools.product(EXAMPLES, ("none", "pocket"), ("exact", "official")):
            file, queries = item["file"], [query["query"] for query in item["queries"]]
            heard = (retriever.encoder.name, retriever.encoder.fingerprint, file)  # checkpoints share their encoders
            if heard not in recordings:
                recordings[heard] = retriever.encode(ASSETS / file)
            results = retriever.retrieve_many(recordings[heard], queries, verifier=verifier, protocol=protocol)
            rows = [_row(result, with_saliency=verifier == "none" and protocol == "exact") for result in results]
            found[f"{checkpoint}/{verifier}/{protocol}/{file}"] = rows
    return found


def _row(result, *, with_saliency: bool) -> dict:
    moments = [
        [round(m.start_seconds, 3), round(m.end_seconds, 3)]
        + [None if value is None else round(value, 4) for value in (m.score, m.decoder_score, m.foreground, m.quality, m.verifier_score)]
        for m in result.moments
    ]
    row = {"query": result.query, "found": result.found, "beta": result.beta, "moments": moments, "notes": list(result.notes)}
    return row | ({"saliency": [round(value, 3) for value in result.saliency]} if with_saliency else {})


def scores(folder: Path) -> dict[str, str]:
    """What `evaluate` and `calibrate` print, as text and as JSON, on the examples' own truth; `folder` gets the files."""
    write_truth(folder)
    for name, checkpoint in (("a", "qam-detr-pocket"), ("b", "ladder-1-baseline")):
        if not (folder / f"{name}.jsonl").is_file():
            asked = ["--manifest", folder / "truth.jsonl", "--audio-dir", ASSETS, "--checkpoint", checkpoint]
            assert run("predict", *asked, "--output", folder / f"{name}.jsonl")[0] == 0
    evaluate = ["evaluate", folder / "a.jsonl", folder / "truth.jsonl"]
    more = ["--thresholds", "--by-length", "--bootstrap", 2000, "--against", folder / "b.jsonl"]
    calibrate = ["calibrate", "--manifest", folder / "short.jsonl", "--audio-dir", ASSETS, "--checkpoint", "qam-detr-pocket"]
    commands = {"evaluate": evaluate, "evaluate all": [*evaluate, *more], "calibrate": [*calibrate, "--verifier", "pocket", "--dry-run"]}
    told = {}
    for (name, command), (kind, option) in itertools.product(commands.items(), (("text", []), ("json", ["--json"]))):
        status, out, err = run(*command, *option)
        assert status == 0, err
        told[f"{name} {kind}"] = out.replace(str(folder), "FOLDER")
    return told


def write_truth(folder: Path) -> None:
    """Write the examples as a field manifest, and the two short recordings of them, as each call of `calibrate` encodes them."""
    lines = [
        {"qid": f"{Path(item['file']).stem}-{number}", "query": query["query"], "vid": Path(item["file"]).stem,
         "duration": soundfile.info(ASSETS / item["file"]).duration, "relevant_windows": query["windows"]}
        for item in EXAMPLES for number, query in enumerate(item["queries"])
    ]  # fmt: skip
    for name, vids in (("truth", None), ("short", ("street", "living-room"))):
        kept = [json.dumps(line) + "\n" for line in lines if vids is None or line["vid"] in vids]
        (folder / f"{name}.jsonl").write_text("".join(kept), encoding="utf-8")


def features() -> dict[str, np.ndarray]:
    """Stream -> `(clips, dim)`."""
    from qamdetr.inference.retriever import MomentRetriever

    return {name: rows.numpy() for name, rows in MomentRetriever.from_pretrained().encode(SOUND).streams.items()}


def weights(folder: Path) -> dict[str, np.ndarray]:
    """Weights after 30 steps of `train.py` on public feature files of random numbers, one thread; `folder` must be the current folder."""
    random = np.random.default_rng(7)
    lines = []
    for name in ("sound", "level", "text"):
        (folder / "set" / name).mkdir(parents=True)
    for number in range(20):
        clips, start = int(random.integers(20, 40)), int(random.integers(0, 10))
        sound, level = (random.standard_normal((clips, width), dtype=np.float32) for width in (8, 4))
        sound[start : start + 6, 0] += 3
        np.savez(folder / "set" / "sound" / f"v{number}.npz", features=sound)
        np.savez(folder / "set" / "level" / f"v{number}.npz", features=level)
        np.savez(folder / "set" / "text" / f"qid{number}.npz", last_hidden_state=random.standard_normal((4, 8), dtype=np.float32))
        windows = [] if number % 5 == 4 else [[start, start + 6]]
        lines.append({"qid": number, "query": f"sound {number}", "vid": f"v{number}", "duration": clips, "relevant_windows": windows})
    (folder / "set" / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    status, _, err = run("train.py", "--config", HERE / "tiny.yaml", "--name", "run", "--threads", 1)
    assert status == 0, err
    (state,) = (folder / "runs" / "run" / "last").rglob("model.safetensors")
    return dict(sorted(load_file(state).items()))


def hash_of(arrays: dict[str, np.ndarray]) -> str:
    """A digest of names and bits."""
    return hashlib.sha256(b"".join(name.encode() + array.tobytes() for name, array in arrays.items())).hexdigest()


def make_world(folder: Path) -> None:
    """Files to be mistaken with, for the commands of `mistakes.tsv`."""
    for name, text in yaml.safe_load((HERE / "world.yaml").read_text(encoding="utf-8")).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 8 * 8000)
    sounds = {"good.wav": 8, "audio/v.wav": 8, "short.wav": 0.05, "nosamples.wav": 0, "twice/a.wav": 1, "twice/a.flac": 1}
    for name in ("audio", "d", "none", "twice", "clips/nocsv", "clips/latin"):
        (folder / name).mkdir(parents=True)
    for name, seconds in (sounds | {f"clips/{letter}/a.wav": 2 for letter in "def"}).items():
        soundfile.write(folder / name, noise[: int(seconds * 8000)], 8000)
    soundfile.write(folder / "slow.wav", noise[:4000], 400)
    for name, values in (("latin.jsonl", b"\xe9\n"), ("clips/latin/clips.csv", b"file_name\n\xe9\n")):
        (folder / name).write_bytes(values)
    for name in ("ck-config", "ck-weights", "ck-noweights", "ck-other", "ck-key"):
        shutil.copytree(ROOT / "checkpoints" / "ladder-1-baseline", folder / name)
    (folder / "ck-config" / "config.yaml").write_text("model: 3\n", encoding="utf-8")
    weights_file = folder / "ck-weights" / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:1000])
    (folder / "ck-noweights" / "model.safetensors").unlink()
    for name, change in (("ck-other", {"dim": 64}), ("ck-key", {"strange": 1})):
        config = yaml.safe_load((folder / name / "config.yaml").read_text(encoding="utf-8"))
        config["model"].update(change)
        (folder / name / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def mistakes(commands: list[str], folder: Path) -> Iterator[tuple[int, str]]:
    """For each command: exit status and the line that it says; `folder` must hold the world and be the current folder."""
    for command in commands:
        status, _, err = run(*shlex.split(command))
        lines = [line for line in err.replace("\r", "\n").splitlines() if "error: " in line]
        assert len(lines) == 1, (command, status, err)
        yield status, lines[0].replace(str(folder), "FOLDER").replace(str(ROOT), "ROOT")


def read_mistakes() -> list[tuple[str, str, str]]:
    """Rows of the table: command, exit status, line."""
    rows = [line.split("\t") for line in (HERE / "mistakes.tsv").read_text(encoding="utf-8").splitlines()]
    return [(row[0], *(row[1:3] or ("", ""))) for row in rows]


@contextlib.contextmanager
def inside() -> Iterator[Path]:
    """A temporary folder as the current one."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        yield Path(name).resolve()


def main() -> None:
    """Write every file beside this one."""
    sys.path.insert(0, str(ROOT))
    if not SOUND.is_file():
        sound, rate = soundfile.read(ASSETS / "street.ogg", start=12 * 24000, frames=8 * 24000, dtype="int16")
        soundfile.write(SOUND, sound, rate)
    with inside() as folder:
        for name, values in (("answers", answers()), ("scores", scores(folder))):
            told = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
            (HERE / f"{name}.json.gz").write_bytes(gzip.compress(told.encode(), mtime=0))
        for name in "ab":
            (HERE / f"{name}.jsonl.gz").write_bytes(gzip.compress((folder / f"{name}.jsonl").read_bytes(), mtime=0))
    np.savez_compressed(HERE / "features.npz", **features())
    with inside() as folder:
        trained = weights(folder)
    np.savez_compressed(HERE / "weights.npz", **trained)
    (HERE / "weights.sha256").write_text(hash_of(trained) + "\n", encoding="utf-8")
    commands = [row[0] for row in read_mistakes()]
    with inside() as folder:
        make_world(folder)
        rows = [f"{command}\t{status}\t{line}\n" for command, (status, line) in zip(commands, mistakes(commands, folder), strict=True)]
    (HERE / "mistakes.tsv").write_text("".join(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
