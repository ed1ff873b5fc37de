"""The Clotho-Moment recipe as a tool: long recordings with known moments, out of your captioned clips and your backgrounds.

`sources` reads the folders, `plan` decides, `render` mixes; this file runs them and writes the result: `audio/{vid}.flac`,
`manifest.jsonl` (the field's format), `scenes.jsonl` (every event with its clips and level), `attribution.csv` (the sources used) and a
data card.

An interrupted run goes on where it stopped when it is started again with the same folders and recipe: scenes are drawn one by one from
(seed, number), audio files appear whole or not at all, and the manifest is written last.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from qamdetr.data.manifest import QueryEntry, write_manifest
from qamdetr.errors import DataError
from qamdetr.files import remove_abandoned, write_whole
from qamdetr.synthesis import SceneRecipe
from qamdetr.synthesis.plan import ScenePlan, ScenePlanner
from qamdetr.synthesis.render import SourceCache, render_scenes
from qamdetr.synthesis.sources import SOURCE_COLUMNS, Library, read_library

_FINISHED = "[!.]*.flac"  # names of files that are still being written begin with a dot


def synthesize(clips_dir: str | Path, backgrounds_dir: str | Path | None, output_dir: str | Path, recipe: SceneRecipe) -> Path:
    """Make scenes out of captioned clips and backgrounds (formats: `synthesis.sources`); return the path of `manifest.jsonl`.

    Without backgrounds there is synthesised pink noise at a low level. The same recipe and sources give the same bytes, however many
    processes work. Faulty folders, an output folder that holds another data set, or a disk that refuses are `DataError`s.
    """
    clips, output = Path(clips_dir), Path(output_dir)
    backgrounds = None if backgrounds_dir is None else Path(backgrounds_dir)
    manifest = output / "manifest.jsonl"
    if manifest.exists():
        raise DataError(f"{manifest} exists already and is never overwritten", "choose another output folder or remove that one")
    library = read_library(clips, backgrounds)
    plans = [*map(ScenePlanner(library, recipe).plan, range(recipe.num_scenes))]
    if not any(plan.queries for plan in plans):
        raise DataError(f"{clips / 'clips.csv'}: {recipe.num_scenes} scenes would hold 0 queries", "give captions to more groups")
    try:
        _claim(output, library, recipe)
        _render_all(plans, SourceCache(clips, backgrounds, recipe.sample_rate_hz), output / "audio", recipe)
        write_whole(output / "scenes.jsonl", "".join(json.dumps(asdict(plan), ensure_ascii=False) + "\n" for plan in plans))
        used = _used_sources(plans, library)
        attribution = io.StringIO(newline="")
        writer = csv.DictWriter(attribution, ["role", "file", *SOURCE_COLUMNS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(used)
        write_whole(output / "attribution.csv", attribution.getvalue())
        write_whole(output / "README.md", _data_card(plans, library, recipe, used))
    except OSError as error:
        remedy = "free space there; the same command goes on where it stopped"
        raise DataError(f"{output} cannot be written ({error.strerror or error})", remedy) from error
    write_manifest(manifest, [entry for plan in plans for entry in entries_of(plan)])
    return manifest


def entries_of(plan: ScenePlan) -> list[QueryEntry]:
    """Lines of the manifest of one scene; qids are `{vid}_{n}` with n from 1, absent queries have no windows."""
    return [
        QueryEntry(f"{plan.vid}_{number}", query.text, plan.vid, plan.duration_seconds, query.windows, groups=query.groups)
        for number, query in enumerate(plan.queries, start=1)
    ]


def _claim(output: Path, library: Library, recipe: SceneRecipe) -> None:
    """Note recipe and sources in the output folder, or check that an interrupted run had the same."""
    wanted = {name: value for name, value in asdict(recipe).items() if name != "num_workers"}
    sources = repr((library.clips, sorted(library.captions.items()), library.backgrounds))
    text = json.dumps({**wanted, "sources_sha256": hashlib.sha256(sources.encode()).hexdigest()}, indent=2) + "\n"
    note = output / "recipe.json"
    remove_abandoned(output)
    if note.is_file():
        if note.read_text(encoding="utf-8") != text:
            raise DataError(f"{output} holds an unfinished run with another recipe or other sources", "choose another folder or remove it")
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output} is not an empty folder and holds no {note.name} of an interrupted run", "choose another folder")
    output.mkdir(parents=True, exist_ok=True)
    write_whole(note, text)


def _render_all(plans: Sequence[ScenePlan], sources: SourceCache, audio_dir: Path, recipe: SceneRecipe) -> None:
    """Render the scenes that are not there yet, in `num_workers` processes that each keep their own decoded sources."""
    audio_dir.mkdir(exist_ok=True)
    remove_abandoned(audio_dir)
    done = {path.stem for path in audio_dir.glob(_FINISHED)}
    todo = [plan for plan in plans if plan.vid not in done]
    workers = min(recipe.num_workers, len(todo))
    with tqdm(total=len(plans), initial=len(plans) - len(todo), desc="scenes", unit="scene", disable=None) as bar:
        if workers <= 1:
            render_scenes(todo, sources, recipe.fade_seconds, audio_dir, bar.update)
            return
        # spawn: a forked copy of a process that runs threads (torch, numba) may hang.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            shares = [todo[worker::workers] for worker in range(workers)]
            futures = [pool.submit(render_scenes, share, sources, recipe.fade_seconds, audio_dir) for share in shares]
            while wait(futures, timeout=0.5).not_done:
                bar.update(sum(1 for _ in audio_dir.glob(_FINISHED)) - bar.n)
            for future in futures:
                future.result()


def _used_sources(plans: Sequence[ScenePlan], library: Library) -> list[dict[str, str]]:
    """One row per source file that is heard in a scene: role, file, licence and so on."""
    clips = {segment.file for plan in plans for event in plan.events for segment in event.segments}
    backgrounds = {part.file for plan in plans for part in plan.backgrounds}
    rows = [{"role": "clip", "file": clip.file, **clip.source} for clip in library.clips if clip.file in clips]
    return rows + [{"role": "background", "file": b.file, **b.source} for b in library.backgrounds if b.file in backgrounds]


def _data_card(plans: Sequence[ScenePlan], library: Library, recipe: SceneRecipe, used: Sequence[dict[str, str]]) -> str:
    """Write the data card: what is in the folder, and its sources with their licences."""
    queries = [query for plan in plans for query in plan.queries]
    licences = Counter((row["role"], row.get("license", "not stated")) for row in used)
    background = "recordings" if library.backgrounds else "synthesised pink noise"
    sources = "\n".join(f"| {role} | {licence} | {number} |" for (role, licence), number in sorted(licences.items()))
    return f"""# Synthesised scenes `{recipe.name}`, seed {recipe.seed}

{len(plans)} recordings ({sum(plan.duration_seconds for plan in plans) / 3600:.2f} hours) for audio moment retrieval, made with
`python -m qamdetr synthesize` after the Clotho-Moment recipe: captioned clips laid over {background} at random times and levels. The sounds
are those of the sources; that they meet, and when, is synthetic. There are {len(queries)} queries, {sum(not q.windows for q in queries)} \
of them about a sound that is absent; `python -m qamdetr data-report manifest.jsonl` says more.

`audio/{{vid}}.flac` are mono, {recipe.sample_rate_hz} Hz, 16 bit; a line of `manifest.jsonl` is a query with the groups that it is about
and windows in seconds (none: the sound is absent); `scenes.jsonl` has every event with its SNR in dB over the background there;
`recipe.json` has the settings.
`attribution.csv` lists the sources, with author and licence as far as stated:

| role | licence | files |
|---|---|---|
{sources}
"""
